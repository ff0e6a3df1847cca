//! NFs run against a manager of a few lines, in this process.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;
use crate::control::{
    self, Attached, ErrorCode, MAX_REQUEST_BYTES, PROTOCOL_VERSION, Reply, Request, ServiceRef,
};
use crate::descriptor::{ActionCode, Delivery, NO_PORT, Returned};
use crate::shm::channel::ChannelGeometry;
use crate::shm::{
    BlackBox, Channel, Consumer, Doorbell, Doorbells, HugePages, LAYOUT_VERSION, MarkTable,
    NfCounter, Producer, RecorderTerms, Region, RegionGeometry, RouteTableWriter, TapFile,
    register_for_global_barrier,
};
use crate::{Action, Context, Packet};

mod edges;
mod messages;

const REGION: RegionGeometry =
    RegionGeometry { buffers: 256, stride_bytes: 2048, headroom_bytes: 256 };
/// The first of two workers has more buffers than two rings and a burst hold.
const WORKER_BUFFERS: u32 = 200;
const CHANNEL: ChannelGeometry =
    ChannelGeometry { workers: 2, ring_capacity: 64, buffers: REGION.buffers };

const RECORDER: RecorderTerms = RecorderTerms { slots: 16, kept_bytes: 64, all: false };

/// A directory with a socket path in it, and what an NF needs to find it.
struct Place {
    _dir: tempfile::TempDir,
    args: NfArgs,
}

fn place(no_wait: bool) -> Place {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("manager.sock");
    Place {
        _dir: dir,
        args: NfArgs { no_wait, log: "off".into(), ..NfArgs::new(ServiceRef::Id(3), socket) },
    }
}

/// What all NFs of a manager share.
struct World {
    region: Region,
    routes: RouteTableWriter,
    bells: Arc<Doorbells>,
    marks: Arc<MarkTable>,
}

impl World {
    fn new() -> Arc<Self> {
        assert!(register_for_global_barrier());
        Arc::new(Self {
            region: Region::create(REGION, HugePages::Off).unwrap(),
            routes: RouteTableWriter::create().unwrap(),
            bells: Arc::new(Doorbells::create(8).unwrap()),
            marks: MarkTable::create(REGION.buffers).unwrap(),
        })
    }
}

/// A manager, as one of its NFs sees it.
struct FakeManager {
    world: Arc<World>,
    socket: UnixStream,
    channel: Channel,
    bell: Doorbell,
    lanes: Vec<(Producer<Delivery>, Consumer<Returned>)>,
}

fn listen(path: &PathBuf) -> UnixListener {
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).unwrap()
}

fn receive_attach(listener: &UnixListener) -> UnixStream {
    let (socket, _) = listener.accept().unwrap();
    let Request::Attach(request) = control::recv(&socket, MAX_REQUEST_BYTES).unwrap().0 else {
        panic!("not an attach")
    };
    assert_eq!((request.protocol, request.layout), (PROTOCOL_VERSION, LAYOUT_VERSION));
    assert_eq!((request.name.as_str(), request.service), ("test-nf", ServiceRef::Id(3)));
    socket
}

fn terms(nf: u16) -> Attached {
    Attached {
        instance: 9,
        nf,
        service: 3,
        region: REGION,
        channel: CHANNEL,
        worker_buffers: WORKER_BUFFERS,
        manager_version: "test".into(),
        core: None,
        jump_services: Vec::new(),
        quantum_pkts: 4096,
        read_only: false,
        state: None,
        own_region: false,
        recorder: RECORDER,
    }
}

fn accept(listener: &UnixListener) -> FakeManager {
    accept_into(listener, &World::new(), 0)
}

/// As number `nf` of a world.
fn accept_into(listener: &UnixListener, world: &Arc<World>, nf: u16) -> FakeManager {
    accept_with(listener, world, nf, &[])
}

/// With the workers' alarms.
fn accept_with(
    listener: &UnixListener,
    world: &Arc<World>,
    nf: u16,
    alarms: &[BorrowedFd<'_>],
) -> FakeManager {
    let socket = receive_attach(listener);
    let channel = Channel::create(CHANNEL).unwrap();
    let routes = world.routes.read_only_fd().unwrap();
    let (marks, tap) = (world.marks.read_only_fd().unwrap(), TapFile::create().unwrap());
    let black_box = BlackBox::create(RECORDER).unwrap();
    let files = [
        world.region.fd(),
        channel.fd(),
        routes.as_fd(),
        world.bells.fd(),
        marks.as_fd(),
        tap.fd(),
        black_box.fd(),
    ];
    let fds = [&files[..], alarms].concat();
    control::send(&socket, &Reply::Attached(terms(nf)), &fds).unwrap();
    let lanes = (0..CHANNEL.workers).map(|w| channel.manager_ends(w).unwrap()).collect();
    let bell = world.bells.bell(nf).unwrap();
    FakeManager { world: Arc::clone(world), socket, channel, bell, lanes }
}

impl FakeManager {
    fn deliver(&mut self, lane: usize, buffers: std::ops::Range<u32>) -> usize {
        let burst: Vec<_> = buffers
            .map(|buffer| {
                assert!(self.world.region.write(buffer, 256, &[buffer as u8; 60]));
                Delivery { buffer, offset_bytes: 256, len_bytes: 60, hop: 3, ..Delivery::default() }
            })
            .collect();
        let pushed = self.lanes[lane].0.push_burst(&burst).unwrap();
        self.bell.ring();
        pushed
    }

    /// Takes what came back by a lane, until `count` did.
    fn take(&mut self, lane: usize, count: usize) -> Vec<Returned> {
        let end = Instant::now() + Duration::from_secs(10);
        let mut all = Vec::new();
        while all.len() < count {
            let mut burst = [Returned::default(); 16];
            let got = self.lanes[lane].1.pop_burst(&mut burst).unwrap();
            all.extend_from_slice(&burst[..got]);
            assert!(Instant::now() < end, "{} of {count} came back", all.len());
            std::thread::yield_now();
        }
        all
    }

    fn say(&self, message: &Reply, fds: &[BorrowedFd<'_>]) {
        control::send(&self.socket, message, fds).unwrap();
    }

    fn stop(&self) {
        self.say(&Reply::Stop { reason: "test over".into() }, &[]);
    }
}

/// Implements nothing, so passes everything on.
struct Pass;

impl NetworkFunction for Pass {}

/// Sends odd buffers out by port 5 with a changed byte, others on; holds those from 250 on.
struct Sorter;

impl NetworkFunction for Sorter {
    fn process(&mut self, packet: &mut Packet<'_>, _: &mut Context<'_>) -> Action {
        let number = packet.bytes()[0];
        match number {
            250.. => Action::Hold,
            _ if number % 2 == 1 => {
                packet.bytes_mut()[1] = 0xee;
                packet.push_front(2).unwrap().copy_from_slice(&[0xaa, 0xbb]);
                Action::Out(5)
            }
            _ => Action::Next,
        }
    }
}

type Running = (JoinHandle<Result<(), RunError>>, Arc<AtomicBool>);

fn start(nf: impl NetworkFunction + 'static, args: &NfArgs) -> Running {
    let stop = Arc::new(AtomicBool::new(false));
    let (flag, args) = (stop.clone(), args.clone());
    (std::thread::spawn(move || run_until("test-nf", nf, &args, &flag)), stop)
}

#[test]
fn packets_come_back_to_the_worker_that_owns_the_buffer_with_what_was_decided() {
    let place = place(false);
    let listener = listen(&place.args.socket);
    let (nf, _) = start(Sorter, &place.args);
    let mut manager = accept(&listener);
    assert_eq!(manager.deliver(0, 0..10), 10);
    // Delivered by another worker's lane, too.
    assert_eq!(manager.deliver(0, 210..215) + manager.deliver(1, 215..220), 10);
    for (lane, first) in [(0, 0), (1, 210)] {
        for (returned, buffer) in manager.take(lane, 10).into_iter().zip(first..) {
            let odd = buffer % 2 == 1;
            let action = if odd { ActionCode::Out } else { ActionCode::Next };
            assert_eq!((returned.buffer, returned.hop), (buffer, 3));
            assert_eq!((returned.action, returned.target), (action as u8, if odd { 5 } else { 0 }));
            let (offset, len) = if odd { (254, 62) } else { (256, 60) };
            assert_eq!((returned.offset_bytes, returned.len_bytes), (offset, len));
            let mut bytes = [0; 4];
            assert!(manager.world.region.read(buffer, 254, &mut bytes));
            let own = buffer as u8;
            assert_eq!(bytes, if odd { [0xaa, 0xbb, own, 0xee] } else { [0, 0, own, own] });
        }
    }
    manager.stop();
    nf.join().unwrap().unwrap();
    assert_eq!(manager.channel.nf_counter(NfCounter::RxPkts), 20);
    assert_eq!(manager.channel.nf_counter(NfCounter::TxPkts), 20);
    assert_eq!(manager.channel.nf_counter(NfCounter::HeldPkts), 0);
}

#[test]
fn an_nf_wakes_a_worker_that_sleeps_when_it_gives_packets_back_and_no_other() {
    let place = place(false);
    let listener = listen(&place.args.socket);
    let (nf, _) = start(Pass, &place.args);
    let (senders, alarms): (Vec<_>, Vec<_>) =
        (0..CHANNEL.workers).map(|_| crate::shm::worker_alarm().unwrap()).unzip();
    let senders: Vec<_> = senders.iter().map(crate::shm::AlarmSender::fd).collect();
    let mut manager = accept_with(&listener, &World::new(), 0, &senders);
    let is_on = |lane: usize| {
        let fd = PollFd::new(alarms[lane].fd(), PollFlags::POLLIN);
        poll(&mut [fd], PollTimeout::ZERO) == Ok(1)
    };
    manager.deliver(0, 0..1);
    manager.take(0, 1);
    assert!(!is_on(0), "it is awake");
    manager.channel.set_worker_sleeps(0, true);
    manager.channel.set_worker_sleeps(1, true);
    manager.deliver(0, 0..1);
    let rung = |lane: usize| {
        let fd = PollFd::new(alarms[lane].fd(), PollFlags::POLLIN);
        poll(&mut [fd], PollTimeout::from(10_000_u16)) == Ok(1)
    };
    assert!(rung(0), "it gets a packet back");
    manager.take(0, 1);
    assert!(!is_on(1) && manager.channel.worker_sleeps(1), "this one gets none");
    manager.stop();
    nf.join().unwrap().unwrap();
}

#[test]
fn alarms_of_too_few_workers_are_refused() {
    let place = place(true);
    let listener = listen(&place.args.socket);
    let (nf, _) = start(Pass, &place.args);
    let (sender, _receiver) = crate::shm::worker_alarm().unwrap();
    let _manager = accept_with(&listener, &World::new(), 0, &[sender.fd()]);
    let error = nf.join().unwrap().unwrap_err();
    assert!(error.to_string().contains("1 alarms for 2 workers"), "{error}");
}

#[test]
fn nothing_is_lost_or_reordered_when_the_manager_is_slow_to_take_packets_back() {
    let place = place(false);
    let listener = listen(&place.args.socket);
    let (nf, _) = start(Pass, &place.args);
    let mut manager = accept(&listener);
    let mut expected = Vec::new();
    let mut seen = Vec::new();
    let mut was_full = false;
    for _ in 0..20 {
        let mut next = 0;
        while next < WORKER_BUFFERS {
            next += manager.deliver(0, next..WORKER_BUFFERS) as u32;
            if next < WORKER_BUFFERS {
                was_full = true;
                // Both rings are full: only now is something taken back.
                std::thread::sleep(Duration::from_millis(1));
                seen.extend(manager.take(0, 1).iter().map(|r| r.buffer));
            }
        }
        expected.extend(0..WORKER_BUFFERS);
        let missing = expected.len() - seen.len();
        seen.extend(manager.take(0, missing).iter().map(|r| r.buffer));
    }
    assert_eq!(seen, expected);
    assert!(was_full);
    manager.stop();
    nf.join().unwrap().unwrap();
}

#[test]
fn a_stop_signal_makes_the_nf_detach_and_return_what_it_held_as_dropped() {
    let place = place(false);
    let listener = listen(&place.args.socket);
    let (nf, stop) = start(Sorter, &place.args);
    let mut manager = accept(&listener);
    manager.deliver(1, 248..254);
    assert_eq!(manager.take(1, 2).len(), 2);
    stop.store(true, Ordering::Relaxed);
    let request = control::recv::<Request>(&manager.socket, MAX_REQUEST_BYTES).unwrap().0;
    assert_eq!(request, Request::Detach);
    manager.deliver(0, 10..11);
    control::send(&manager.socket, &Reply::Detached, &[]).unwrap();
    let last: Vec<_> = manager.take(1, 4).iter().map(|r| (r.buffer, r.action)).collect();
    let drop = ActionCode::Drop as u8;
    assert_eq!(last, [(250, drop), (251, drop), (252, drop), (253, drop)]);
    assert_eq!(manager.take(0, 1)[0].buffer, 10, "what was delivered before is processed");
    nf.join().unwrap().unwrap();
    assert!(matches!(
        control::recv::<Request>(&manager.socket, MAX_REQUEST_BYTES),
        Err(ControlError::Closed)
    ));
}

/// Keeps packets until it leaves, lets them go then, and drops what comes afterwards.
#[derive(Default)]
struct Keeper {
    kept: Vec<crate::PacketId>,
    leaving: bool,
}

impl NetworkFunction for Keeper {
    fn process(&mut self, packet: &mut Packet<'_>, _: &mut Context<'_>) -> Action {
        if self.leaving {
            return Action::Drop;
        }
        self.kept.push(packet.id());
        Action::Hold
    }

    fn leaving(&mut self, ctx: &mut Context<'_>) {
        assert!(!std::mem::replace(&mut self.leaving, true), "it is told once");
        for id in self.kept.drain(..) {
            ctx.release(id, Action::Next).unwrap();
        }
    }
}

#[test]
fn an_nf_hears_that_it_leaves_while_packets_may_still_come() {
    for by_signal in [true, false] {
        let place = place(false);
        let listener = listen(&place.args.socket);
        let (nf, stop) = start(Keeper::default(), &place.args);
        let mut manager = accept(&listener);
        manager.deliver(0, 5..8);
        if by_signal {
            stop.store(true, Ordering::Relaxed);
        } else {
            // All of it is taken first: the word comes by another way.
            while manager.channel.nf_counter(NfCounter::RxPkts) < 3 {
                std::thread::yield_now();
            }
            manager.stop();
        }
        let back: Vec<_> = manager.take(0, 3).iter().map(|r| (r.buffer, r.action)).collect();
        let (next, drop) = (ActionCode::Next as u8, ActionCode::Drop as u8);
        if by_signal {
            // It may have heard before it looked at its packets.
            assert!(back.iter().all(|(_, action)| [next, drop].contains(action)), "{back:?}");
            manager.deliver(0, 10..11);
            assert_eq!(manager.take(0, 1)[0].action, drop, "until nothing more comes");
            control::send(&manager.socket, &Reply::Detached, &[]).unwrap();
        } else {
            assert_eq!(back, [(5, next), (6, next), (7, next)]);
        }
        nf.join().unwrap().unwrap();
    }
}

#[test]
fn when_the_manager_vanishes_the_nf_waits_for_a_new_one_and_works_there() {
    let place = place(false);
    let listener = listen(&place.args.socket);
    let (nf, _) = start(Sorter, &place.args);
    let mut first = accept(&listener);
    first.deliver(0, 0..4);
    assert_eq!(first.take(0, 4).len(), 4);
    drop((first, listener));
    std::thread::sleep(Duration::from_millis(150));
    let listener = listen(&place.args.socket);
    let mut second = accept(&listener);
    second.deliver(1, 200..204);
    assert_eq!(second.take(1, 4).len(), 4);
    second.stop();
    nf.join().unwrap().unwrap();
}

#[test]
fn a_manager_that_dies_before_it_answers_is_waited_for_like_one_that_is_not_there() {
    let place = place(false);
    let listener = listen(&place.args.socket);
    let (nf, _) = start(Sorter, &place.args);
    // One connection that nobody took, and one that nobody read from.
    std::thread::sleep(Duration::from_millis(20));
    drop(listener);
    let listener = listen(&place.args.socket);
    drop(listener.accept().unwrap());
    drop(listener);
    let mut second = accept(&listen(&place.args.socket));
    second.deliver(0, 0..4);
    assert_eq!(second.take(0, 4).len(), 4);
    second.stop();
    nf.join().unwrap().unwrap();
}

#[test]
fn when_the_manager_vanishes_no_wait_ends_the_nf_with_an_error() {
    let place = place(true);
    let listener = listen(&place.args.socket);
    let (nf, _) = start(Sorter, &place.args);
    drop((accept(&listener), listener));
    assert!(matches!(nf.join().unwrap(), Err(RunError::ManagerGone)));
}

#[test]
fn without_a_manager_the_nf_waits_until_one_comes() {
    let place = place(false);
    let (nf, _) = start(Sorter, &place.args);
    std::thread::sleep(Duration::from_millis(150));
    assert!(!nf.is_finished());
    let manager = accept(&listen(&place.args.socket));
    manager.stop();
    nf.join().unwrap().unwrap();
}

#[test]
fn without_a_manager_a_waiting_nf_can_be_stopped() {
    let place = place(false);
    let (nf, stop) = start(Sorter, &place.args);
    stop.store(true, Ordering::Relaxed);
    nf.join().unwrap().unwrap();
}

#[test]
fn without_a_manager_no_wait_names_the_socket() {
    let place = place(true);
    let error = start(Sorter, &place.args).0.join().unwrap().unwrap_err().to_string();
    assert!(error.contains("manager.sock") && error.lines().count() == 1, "{error}");
}

#[test]
fn a_refusal_is_reported_in_the_manager_s_words_and_ends_the_nf() {
    let place = place(false);
    let listener = listen(&place.args.socket);
    let (nf, _) = start(Sorter, &place.args);
    let socket = receive_attach(&listener);
    let message = "service 3 is provided by instance 1 (forward, pid 77)".to_owned();
    let error = control::ErrorReply { code: ErrorCode::ServiceTaken, message: message.clone() };
    control::send(&socket, &Reply::Error(error), &[]).unwrap();
    assert_eq!(nf.join().unwrap().unwrap_err().to_string(), message);
}

#[test]
fn an_nf_that_refuses_its_setup_ends_with_its_own_words() {
    struct Picky;
    impl NetworkFunction for Picky {
        fn setup(&mut self, setup: &crate::Setup) -> Result<(), NfError> {
            Err(NfError::new(format!("service {} is not for me", setup.service)))
        }
    }
    let place = place(false);
    let listener = listen(&place.args.socket);
    let (nf, _) = start(Picky, &place.args);
    let _manager = accept(&listener);
    assert_eq!(nf.join().unwrap().unwrap_err().to_string(), "service 3 is not for me");
}

#[test]
fn an_nf_may_hold_no_more_than_a_quarter_of_the_buffers() {
    struct Greedy;
    impl NetworkFunction for Greedy {
        fn hold_limit_pkts(&self) -> usize {
            usize::MAX
        }
        fn process(&mut self, _: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
            assert_eq!(ctx.setup().hold_limit_pkts, 64);
            Action::Hold
        }
    }
    let place = place(false);
    let listener = listen(&place.args.socket);
    let (nf, _) = start(Greedy, &place.args);
    let mut manager = accept(&listener);
    assert_eq!(manager.deliver(0, 0..50) + manager.deliver(1, 50..100), 100);
    let end = Instant::now() + Duration::from_secs(10);
    let counted = |counter| manager.channel.nf_counter(counter);
    while (counted(NfCounter::HeldPkts), counted(NfCounter::DropPkts)) != (64, 36) {
        assert!(Instant::now() < end, "{} are held", counted(NfCounter::HeldPkts));
        std::thread::yield_now();
    }
    manager.stop();
    nf.join().unwrap().unwrap();
    assert_eq!(manager.channel.nf_counter(NfCounter::TxPkts), 100);
}

#[test]
fn ticks_come_with_and_without_traffic() {
    struct Ticker(u32);
    impl NetworkFunction for Ticker {
        fn tick_interval(&self) -> Option<Duration> {
            Some(Duration::from_millis(5))
        }
        fn tick(&mut self, ctx: &mut Context<'_>) {
            self.0 += 1;
            if self.0 == 10 {
                ctx.request_stop();
            }
        }
    }
    let place = place(false);
    let listener = listen(&place.args.socket);
    let began = Instant::now();
    let (nf, _) = start(Ticker(0), &place.args);
    let manager = accept(&listener);
    let request = control::recv::<Request>(&manager.socket, MAX_REQUEST_BYTES).unwrap().0;
    assert_eq!(request, Request::Detach, "the NF itself asked to end");
    assert!(began.elapsed() >= Duration::from_millis(50));
    control::send(&manager.socket, &Reply::Detached, &[]).unwrap();
    nf.join().unwrap().unwrap();
}

/// Runs `Pass` with limits, feeds it, and expects it to leave in good order by itself.
fn leaves_by_itself(args: &NfArgs, deliver: std::ops::Range<u32>) {
    let listener = listen(&args.socket);
    let (nf, _) = start(Pass, args);
    let mut manager = accept(&listener);
    let count = deliver.len();
    manager.deliver(0, deliver);
    assert_eq!(manager.take(0, count).len(), count);
    let request = control::recv::<Request>(&manager.socket, MAX_REQUEST_BYTES).unwrap().0;
    assert_eq!(request, Request::Detach);
    control::send(&manager.socket, &Reply::Detached, &[]).unwrap();
    nf.join().unwrap().unwrap();
}

#[test]
fn at_its_packet_limit_an_nf_leaves_in_good_order_and_not_before() {
    let place = place(false);
    let args = NfArgs { packet_limit: Some(40), ..place.args.clone() };
    let listener = listen(&args.socket);
    let (nf, _) = start(Pass, &args);
    let mut manager = accept(&listener);
    manager.deliver(0, 0..39);
    assert_eq!(manager.take(0, 39).len(), 39);
    std::thread::sleep(Duration::from_millis(50));
    manager.socket.set_nonblocking(true).unwrap();
    assert!(control::recv::<Request>(&manager.socket, MAX_REQUEST_BYTES).is_err(), "one is left");
    manager.stop();
    manager.bell.ring();
    nf.join().unwrap().unwrap();
    drop(listener);
    leaves_by_itself(&args, 0..40);
}

#[test]
fn at_its_time_limit_an_nf_leaves_in_good_order_also_without_a_manager() {
    let place = place(false);
    let args = NfArgs { time_limit_s: Some(1.0), ..place.args.clone() };
    let began = Instant::now();
    leaves_by_itself(&args, 0..3);
    assert!(began.elapsed() >= Duration::from_secs(1));
    let listener = listen(&args.socket);
    let (nf, _) = start(Pass, &args);
    drop((accept(&listener), listener));
    nf.join().unwrap().unwrap();
}

#[test]
fn a_core_that_cannot_be_had_ends_the_nf_with_one_line_before_any_manager_hears_of_it() {
    // Nobody listens: an NF that first looked for a manager would wait for one.
    let place = place(false);
    let args = NfArgs { core: Some(1023), ..place.args.clone() };
    let (nf, _) = start(Pass, &args);
    let line = nf.join().unwrap().unwrap_err().to_string();
    assert!(line.contains("core 1023") && line.lines().count() == 1, "{line}");
}

/// Makes a packet of its own for each that comes, out of its stock.
struct Doubler;

impl NetworkFunction for Doubler {
    fn process(&mut self, packet: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
        let number = packet.bytes()[0];
        if let Some(id) = ctx.new_packet() {
            let mut made = ctx.held(id).unwrap();
            made.push_back(2).unwrap().copy_from_slice(&[0xdd, number]);
            ctx.release(id, Action::Out(5)).unwrap();
        }
        assert_eq!(ctx.held_pkts(), 0);
        Action::Next
    }

    fn stock_pkts(&self) -> u32 {
        4
    }
}

#[test]
fn what_is_used_of_a_stock_is_asked_for_and_what_is_recalled_goes_back() {
    let place = place(false);
    let listener = listen(&place.args.socket);
    let (nf, _) = start(Doubler, &place.args);
    let mut manager = accept(&listener);
    let lend = |manager: &mut FakeManager, buffers: std::ops::Range<u32>, recalls| {
        let loan = |buffer| Delivery {
            buffer,
            offset_bytes: 256,
            port: NO_PORT,
            flow_hash: recalls,
            ..Delivery::default()
        };
        let loans: Vec<_> = buffers.map(loan).collect();
        assert_eq!(manager.lanes[0].0.push_burst(&loans), Ok(loans.len()));
        manager.bell.ring();
    };
    let asked = |manager: &FakeManager, pkts| {
        let end = Instant::now() + Duration::from_secs(10);
        while manager.channel.asked_pkts(0) != pkts {
            assert!(Instant::now() < end, "{} asked for", manager.channel.asked_pkts(0));
            std::thread::yield_now();
        }
    };
    lend(&mut manager, 100..104, 0);
    manager.deliver(0, 1..7);
    let back = manager.take(0, 10);
    let made: Vec<_> = back.iter().filter(|packet| packet.buffer >= 100).collect();
    assert_eq!(made.len(), 4, "two found the stock empty");
    for packet in &made {
        assert_eq!((packet.action, packet.target, packet.len_bytes), (ActionCode::Out as u8, 5, 2));
        assert_ne!(packet.flow_hash, 0, "each is a flow of its own");
    }
    asked(&manager, 4);
    // As much again; then it is recalled, while the NF sleeps.
    lend(&mut manager, 104..108, 0);
    std::thread::sleep(Duration::from_millis(20));
    manager.channel.set_recalls(0, 1);
    manager.bell.ring();
    let drop = ActionCode::Drop as u8;
    let back = manager.take(0, 4);
    assert!(back.iter().all(|packet| (packet.action, packet.len_bytes) == (drop, 0)), "{back:?}");
    asked(&manager, 8);
    // One that was lent before and comes late goes back as well, another one stays.
    lend(&mut manager, 108..109, 0);
    lend(&mut manager, 109..110, 1);
    assert_eq!(manager.take(0, 1)[0].buffer, 108);
    asked(&manager, 9);
    manager.deliver(0, 1..2);
    let back: std::collections::BTreeSet<_> =
        manager.take(0, 2).iter().map(|packet| packet.buffer).collect();
    assert_eq!(back, [1, 109].into());
    lend(&mut manager, 110..111, 1);
    manager.stop();
    assert_eq!((manager.take(0, 1)[0].buffer, nf.join().unwrap().is_ok()), (110, true));
}
