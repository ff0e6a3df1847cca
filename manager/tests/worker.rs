//! The worker against NFs that behave and NFs that do not, with ports whose every buffer is seen.
//!
//! Each test ends with the same assertion: all buffers are back in the pool, and the books balance.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use millrace::chain::ServiceChain;
use millrace::ownership::Edge;
use millrace::pool::BufferPool;
use millrace::ports::{MAX_BURST_PKTS, PortPacket, PortQueue};
use millrace::stats::{DropReason, NfCounters, QueueCounters, WorkerCounters};
use millrace::worker::{NfEdge, Worker, WorkerPort};
use nflib::descriptor::{ActionCode, Delivery, Returned};
use nflib::shm::channel::ChannelGeometry;
use nflib::shm::{Channel, Consumer, HugePages, Producer, Region, RegionGeometry};

const GEOMETRY: RegionGeometry =
    RegionGeometry { buffers: 256, stride_bytes: 2048, headroom_bytes: 256 };
const RING: ChannelGeometry = ChannelGeometry { workers: 1, ring_capacity: 64 };

/// What a probe port is told and what it saw.
#[derive(Default)]
struct Wire {
    to_receive: VecDeque<Vec<u8>>,
    received: Vec<PortPacket>,
    sent: Vec<(PortPacket, Vec<u8>)>,
    tx_room: Option<usize>,
}

/// A port that a test feeds and looks at. Frames go into buffers of the pool as a NIC would put
/// them there.
struct ProbePort {
    wire: Arc<Mutex<Wire>>,
    counters: Arc<QueueCounters>,
}

impl PortQueue for ProbePort {
    fn rx_burst(&mut self, pool: &mut BufferPool, out: &mut Vec<PortPacket>) {
        let mut wire = self.wire.lock().unwrap();
        while out.len() < MAX_BURST_PKTS {
            let Some(frame) = wire.to_receive.pop_front() else { return };
            let Some(buffer) = pool.take_one() else { return };
            let len_bytes = u16::try_from(frame.len()).unwrap();
            assert!(pool.region().write(buffer, 256, &frame));
            let packet = PortPacket { buffer, offset_bytes: 256, len_bytes, flow_hash: 7 };
            self.counters.rx_pkts.add(1);
            wire.received.push(packet);
            out.push(packet);
        }
    }

    fn tx_burst(&mut self, pool: &mut BufferPool, packets: &[PortPacket]) -> usize {
        let mut wire = self.wire.lock().unwrap();
        let taken = packets.len().min(wire.tx_room.unwrap_or(usize::MAX));
        for packet in &packets[..taken] {
            let mut bytes = vec![0; usize::from(packet.len_bytes)];
            assert!(pool.region().read(packet.buffer, packet.offset_bytes, &mut bytes));
            wire.sent.push((*packet, bytes));
            pool.give(&[packet.buffer]);
        }
        self.counters.tx_pkts.add(taken as u64);
        taken
    }

    fn maintain(&mut self, _pool: &mut BufferPool) {}

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }

    fn close(&mut self, _pool: &mut BufferPool) {}
}

/// An NF's ends of the rings, in the test's hands.
struct TestNf {
    region: Region,
    rx: Consumer<Delivery>,
    tx: Producer<Returned>,
    _channel: Channel,
}

impl TestNf {
    fn receive(&mut self) -> Vec<Delivery> {
        let mut out = [Delivery::default(); 64];
        let count = self.rx.pop_burst(&mut out).unwrap();
        out[..count].to_vec()
    }

    fn give_back(&mut self, returned: &[Returned]) {
        assert_eq!(self.tx.push_burst(returned), Ok(returned.len()));
    }

    fn pass(&mut self, delivery: &Delivery, action: ActionCode, target: u16) {
        self.give_back(&[back(delivery, action, target)]);
    }
}

fn back(delivery: &Delivery, action: ActionCode, target: u16) -> Returned {
    Returned {
        reserved: 0,
        buffer: delivery.buffer,
        offset_bytes: delivery.offset_bytes,
        len_bytes: delivery.len_bytes,
        flow_hash: delivery.flow_hash,
        target,
        action: action as u8,
    }
}

/// Two probe ports joined by a chain, and the worker between them.
struct Bench {
    region: Arc<Region>,
    worker: Worker,
    wires: [Arc<Mutex<Wire>>; 2],
    counters: Arc<WorkerCounters>,
    chain: ServiceChain,
}

impl Bench {
    fn new(services: &[u16]) -> Self {
        let region = Arc::new(Region::create(GEOMETRY, HugePages::Off).unwrap());
        let pool = BufferPool::new(Arc::clone(&region), 0, GEOMETRY.buffers);
        let wires = [Arc::default(), Arc::default()];
        let port = |wire: &Arc<Mutex<Wire>>, egress| {
            let queue = ProbePort { wire: Arc::clone(wire), counters: Arc::default() };
            WorkerPort::new(vec![Box::new(queue)], egress)
        };
        let ports = vec![port(&wires[0], Some(1)), port(&wires[1], None)];
        let chain = ServiceChain::new(services);
        let counters = Arc::new(WorkerCounters::new(chain.services().len()));
        let worker = Worker::new(pool, ports, chain.clone(), Arc::clone(&counters));
        Self { region, worker, wires, counters, chain }
    }

    fn attach(&mut self, edge: Edge, service: u16) -> (TestNf, Arc<NfCounters>) {
        let channel = Arc::new(Channel::create(RING).unwrap());
        let counters = Arc::new(NfCounters::default());
        let slot = self.chain.slot_of(service).unwrap();
        let nf = NfEdge::new(0, slot, &channel, Arc::clone(&counters)).unwrap();
        self.worker.add_nf(edge, nf);
        // The NF's own mappings, from the descriptors, as in another process.
        let theirs = Channel::from_fd(channel.fd().try_clone_to_owned().unwrap(), RING).unwrap();
        let region = self.region.fd().try_clone_to_owned().unwrap();
        let region = Region::from_fd(region, GEOMETRY).unwrap();
        let (rx, tx) = theirs.nf_ends(0).unwrap();
        (TestNf { region, rx, tx, _channel: theirs }, counters)
    }

    fn inject(&self, count: u8) {
        let mut wire = self.wires[0].lock().unwrap();
        wire.to_receive.extend((0..count).map(|n| vec![n; 60]));
    }

    fn sent(&self) -> Vec<(PortPacket, Vec<u8>)> {
        std::mem::take(&mut self.wires[1].lock().unwrap().sent)
    }

    /// Every packet that entered is somewhere, now.
    fn assert_balanced(&self) {
        let (mut rx, mut tx, mut drops) = (0, 0, self.counters.dropped_pkts());
        for queue in self.worker.ports().iter().flat_map(|port| &port.queues) {
            rx += queue.counters().rx_pkts.get();
            tx += queue.counters().tx_pkts.get();
            drops += queue.counters().drops.total();
        }
        assert_eq!(rx, tx + drops + self.worker.held_pkts(), "rx = tx + drops + held");
    }

    fn assert_all_back(&self) {
        self.assert_balanced();
        assert_eq!(self.worker.pool().free_buffers(), GEOMETRY.buffers as usize);
    }
}

#[test]
fn a_packet_crosses_two_nfs_in_the_buffer_the_port_wrote_and_nowhere_else() {
    let mut bench = Bench::new(&[1, 2]);
    let (mut first, _) = bench.attach(0, 1);
    let (mut second, _) = bench.attach(1, 2);
    bench.inject(3);
    bench.worker.turn(true);
    let written = bench.wires[0].lock().unwrap().received.clone();

    let at_first = first.receive();
    for (delivery, port) in at_first.iter().zip(&written) {
        // The same buffer and range: the NF's address is its own base plus the port's offset.
        assert_eq!((delivery.buffer, delivery.offset_bytes), (port.buffer, port.offset_bytes));
        let offset = |region: &Region| {
            let at = region.ptr(delivery.buffer, delivery.offset_bytes).unwrap();
            at.as_ptr() as usize - region.base().as_ptr() as usize
        };
        assert_eq!(offset(&first.region), offset(&bench.region));
        // A write through the NF's mapping is the port's byte.
        assert!(first.region.write(delivery.buffer, delivery.offset_bytes, b"mark"));
        first.pass(delivery, ActionCode::Next, 0);
    }
    bench.worker.turn(true);
    let at_second = second.receive();
    assert_eq!(at_second.len(), 3);
    for delivery in &at_second {
        assert_eq!((delivery.hop, delivery.port, delivery.flow_hash), (1, 0, 7));
        second.pass(delivery, ActionCode::Next, 0);
    }
    bench.worker.turn(true);
    let sent = bench.sent();
    assert_eq!(sent.len(), 3);
    for (n, ((packet, bytes), port)) in sent.iter().zip(&written).enumerate() {
        assert_eq!(packet, port, "sent from the buffer and range it was received into");
        assert_eq!((&bytes[..4], bytes[4]), (&b"mark"[..], u8::try_from(n).unwrap()));
    }
    bench.assert_all_back();
}

#[test]
fn an_nf_s_new_range_is_what_is_sent() {
    let mut bench = Bench::new(&[1]);
    let (mut nf, _) = bench.attach(0, 1);
    bench.inject(1);
    bench.worker.turn(true);
    let delivery = nf.receive()[0];
    assert!(nf.region.write(delivery.buffer, 250, b"header"));
    let mut longer = back(&delivery, ActionCode::Next, 0);
    longer.offset_bytes -= 6;
    longer.len_bytes += 6;
    nf.give_back(&[longer]);
    bench.worker.turn(true);
    let sent = bench.sent();
    assert_eq!((sent[0].1.len(), &sent[0].1[..6]), (66, &b"header"[..]));
    bench.assert_all_back();
}

#[test]
fn every_action_does_what_it_says() {
    let mut bench = Bench::new(&[1, 2]);
    let (mut first, counters) = bench.attach(0, 1);
    let (mut second, _) = bench.attach(1, 2);
    bench.inject(6);
    bench.worker.turn(true);
    let got = first.receive();
    first.pass(&got[0], ActionCode::Drop, 0);
    first.pass(&got[1], ActionCode::Out, 1);
    first.pass(&got[2], ActionCode::ToService, 2);
    first.pass(&got[3], ActionCode::ToService, 99);
    first.pass(&got[4], ActionCode::Out, 9);
    first.pass(&got[5], ActionCode::Out, 300);
    bench.worker.turn(true);
    assert_eq!(bench.sent().len(), 1);
    let moved = second.receive();
    assert_eq!(moved.len(), 1);
    assert_eq!(moved[0].buffer, got[2].buffer);
    second.pass(&moved[0], ActionCode::Next, 0);
    bench.worker.turn(true);
    assert_eq!(bench.sent().len(), 1);
    let drops = &bench.counters.drops;
    assert_eq!(drops.get(DropReason::UnknownService), 1);
    assert_eq!(drops.get(DropReason::UnknownPort), 2);
    assert_eq!(bench.counters.service_drops(0).unwrap().get(DropReason::NfDrop), 1);
    assert_eq!((counters.drop_pkts.get(), counters.violations.get()), (1, 0));
    bench.assert_all_back();
}

#[test]
fn a_packet_for_a_service_without_nf_is_dropped_under_that_reason() {
    let mut bench = Bench::new(&[1, 2]);
    bench.inject(4);
    bench.worker.turn(true);
    assert_eq!(bench.counters.service_drops(0).unwrap().get(DropReason::NoInstance), 4);
    bench.assert_all_back();
}

#[test]
fn a_packet_whose_chain_ends_at_a_port_without_egress_is_dropped_under_that_reason() {
    let mut bench = Bench::new(&[]);
    bench.wires[1].lock().unwrap().to_receive.push_back(vec![1; 60]);
    bench.worker.turn(true);
    assert_eq!(bench.counters.drops.get(DropReason::NoEgress), 1);
    bench.assert_all_back();
}

#[test]
fn a_ring_that_is_nearly_full_takes_what_fits_and_the_rest_is_counted() {
    let mut bench = Bench::new(&[1]);
    let (mut nf, counters) = bench.attach(0, 1);
    bench.inject(100);
    bench.worker.turn(true);
    bench.worker.turn(true);
    assert_eq!(counters.rx_pkts.get(), 64, "the ring holds 64");
    assert_eq!(counters.ring_full_pkts.get(), 36);
    assert_eq!(bench.counters.service_drops(0).unwrap().get(DropReason::NfRingFull), 36);
    bench.assert_balanced();
    for delivery in nf.receive() {
        nf.pass(&delivery, ActionCode::Next, 0);
    }
    bench.worker.turn(true);
    assert_eq!(bench.sent().len(), 64);
    bench.assert_all_back();
}

#[test]
fn a_port_that_is_full_drops_the_rest_under_that_reason() {
    let mut bench = Bench::new(&[]);
    bench.wires[1].lock().unwrap().tx_room = Some(5);
    bench.inject(8);
    bench.worker.turn(true);
    let queue = bench.worker.ports()[1].queues[0].counters();
    assert_eq!((queue.tx_pkts.get(), queue.drops.get(DropReason::TxFull)), (5, 3));
    bench.assert_all_back();
}

#[test]
fn descriptors_an_nf_has_no_right_to_are_counted_and_change_nothing() {
    let mut bench = Bench::new(&[1, 2]);
    let (mut nf, counters) = bench.attach(0, 1);
    let (mut other, _) = bench.attach(1, 2);
    bench.inject(4);
    bench.worker.turn(true);
    let got = nf.receive();
    nf.pass(&got[0], ActionCode::Next, 0);
    bench.worker.turn(true);
    let theirs = other.receive()[0];

    let never_given = got.iter().map(|d| d.buffer).max().unwrap() + 1;
    for buffer in [theirs.buffer, never_given, GEOMETRY.buffers, u32::MAX] {
        nf.give_back(&[Returned { buffer, action: 1, ..Returned::default() }]);
    }
    nf.pass(&got[1], ActionCode::Next, 0);
    nf.pass(&got[1], ActionCode::Next, 0);
    bench.worker.turn(true);
    assert_eq!(counters.violations.get(), 5, "another's, never given, two unknown, one twice");
    bench.assert_balanced();

    // The bystander's packets are untouched.
    let at_other = other.receive();
    assert_eq!(at_other.iter().map(|d| d.buffer).collect::<Vec<_>>(), [got[1].buffer]);
    for delivery in [theirs, at_other[0]] {
        other.pass(&delivery, ActionCode::Next, 0);
    }
    nf.pass(&got[2], ActionCode::Drop, 0);
    nf.pass(&got[3], ActionCode::Drop, 0);
    bench.worker.turn(true);
    assert_eq!(bench.sent().len(), 2);
    bench.assert_all_back();
}

#[test]
fn a_range_outside_the_buffer_or_an_unknown_action_is_dropped_under_a_named_reason() {
    let mut bench = Bench::new(&[1]);
    let (mut nf, counters) = bench.attach(0, 1);
    bench.inject(3);
    bench.worker.turn(true);
    let got = nf.receive();
    nf.give_back(&[
        Returned { len_bytes: 2000, ..back(&got[0], ActionCode::Next, 0) },
        Returned { offset_bytes: u16::MAX, ..back(&got[1], ActionCode::Next, 0) },
        Returned { action: 200, ..back(&got[2], ActionCode::Next, 0) },
    ]);
    bench.worker.turn(true);
    assert_eq!(bench.counters.service_drops(0).unwrap().get(DropReason::NfMalformed), 3);
    assert_eq!(counters.violations.get(), 3);
    assert!(bench.sent().is_empty());
    bench.assert_all_back();
}

#[test]
fn an_nf_that_dies_gives_every_buffer_back_wherever_it_was() {
    let mut bench = Bench::new(&[1, 2]);
    let (mut nf, _) = bench.attach(0, 1);
    let (mut bystander, _) = bench.attach(1, 2);
    bench.inject(30);
    bench.worker.turn(true);
    // Some in its hands, some in its ring, some returned and not yet collected.
    let mut taken = [Delivery::default(); 10];
    assert_eq!(nf.rx.read_burst(&mut taken), Ok(10));
    nf.pass(&taken[0], ActionCode::Next, 0);
    nf.pass(&taken[1], ActionCode::Drop, 0);
    drop(nf);
    bench.worker.remove_nf(0);
    assert_eq!(bench.counters.service_drops(0).unwrap().get(DropReason::NfGone), 28);
    bench.assert_balanced();
    // What it had returned went on.
    let passed = bystander.receive();
    assert_eq!(passed.len(), 1);
    bystander.pass(&passed[0], ActionCode::Next, 0);
    bench.worker.turn(true);
    assert_eq!(bench.sent().len(), 1);
    bench.assert_all_back();
}

#[test]
fn an_nf_that_breaks_its_ring_is_reported_and_gets_nothing_more() {
    let mut bench = Bench::new(&[1]);
    let (nf, counters) = bench.attach(0, 1);
    bench.inject(2);
    bench.worker.turn(true);
    // An index that no honest consumer can have: ahead of the producer.
    let mapping_of = nf._channel.fd().try_clone_to_owned().unwrap();
    nix::sys::uio::pwrite(mapping_of, &77u32.to_le_bytes(), 8192 + 128).unwrap();
    bench.inject(64);
    bench.worker.turn(true);
    bench.inject(64);
    bench.worker.turn(true);
    let mut broken = Vec::new();
    bench.worker.take_broken(&mut broken);
    assert_eq!(broken, [0]);
    assert!(counters.violations.get() > 0);
    bench.worker.remove_nf(0);
    bench.inject(1);
    bench.worker.turn(true);
    assert_eq!(bench.counters.service_drops(0).unwrap().get(DropReason::NoInstance), 1);
    bench.assert_all_back();
}

#[test]
fn an_nf_that_goes_on_writing_while_it_is_removed_holds_nobody_up() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let mut bench = Bench::new(&[1]);
    // Whether the writer keeps ahead of the removal is a race; many rounds make it happen.
    for _ in 0..3000 {
        let (mut nf, counters) = bench.attach(0, 1);
        bench.inject(2);
        bench.worker.turn(true);
        let removed = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&removed);
        let liar = std::thread::spawn(move || {
            let lie = [Returned { buffer: u32::MAX, ..Returned::default() }; 64];
            // Bounded, so that this test fails and does not hang.
            for _ in 0..200_000 {
                let _ = nf.tx.push_burst(&lie);
                if seen.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        while counters.violations.get() == 0 {
            bench.worker.turn(false);
        }
        let before = counters.violations.get();
        bench.worker.remove_nf(0);
        removed.store(true, Ordering::Relaxed);
        liar.join().unwrap();
        let during = counters.violations.get() - before;
        assert!(during <= u64::from(RING.ring_capacity), "{during} descriptors were looked at");
    }
    bench.assert_all_back();
}

#[test]
fn packets_that_circle_by_to_service_end_at_the_hop_limit() {
    let mut bench = Bench::new(&[1]);
    let (mut nf, _) = bench.attach(0, 1);
    bench.inject(1);
    bench.worker.turn(true);
    let mut rounds = 0;
    while let [delivery] = nf.receive()[..] {
        nf.pass(&delivery, ActionCode::ToService, 1);
        bench.worker.turn(true);
        rounds += 1;
        assert!(rounds < 1000, "the loop must end");
    }
    assert_eq!(bench.counters.service_drops(0).unwrap().get(DropReason::HopLimit), 1);
    bench.assert_all_back();
}

#[test]
fn a_replacement_nf_takes_over_where_the_old_one_left() {
    let mut bench = Bench::new(&[1]);
    for round in 0..200u16 {
        let (mut nf, _) = bench.attach(round % 3, 1);
        bench.inject(2);
        bench.worker.turn(true);
        let got = nf.receive();
        assert_eq!(got.len(), 2, "round {round}");
        nf.pass(&got[0], ActionCode::Next, 0);
        bench.worker.remove_nf(round % 3);
    }
    assert_eq!(bench.sent().len(), 200);
    bench.assert_all_back();
}

mod random {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Whatever two NFs return, in whatever order, no packet is lost from the books and no
        /// buffer from the pool.
        #[test]
        fn no_sequence_of_returns_loses_a_packet_or_a_buffer(
            steps in proptest::collection::vec(
                (any::<bool>(), 0u32..300, any::<u16>(), any::<u16>(), 0u8..6, 0u16..4), 0..150),
        ) {
            let mut bench = Bench::new(&[1, 2]);
            let nfs = [bench.attach(0, 1).0, bench.attach(1, 2).0];
            let [mut a, mut b] = nfs;
            for (first, buffer, offset_bytes, len_bytes, action, target) in steps {
                bench.inject(1);
                bench.worker.turn(true);
                let nf = if first { &mut a } else { &mut b };
                let _ = nf.receive();
                let lie = Returned { buffer, offset_bytes, len_bytes, flow_hash: 0, target, reserved: 0, action };
                let honest = Returned { offset_bytes: 256, len_bytes: 60, ..lie };
                let _ = nf.tx.push_burst(&[lie, honest]);
                bench.worker.turn(true);
                bench.assert_balanced();
            }
            bench.worker.remove_nf(0);
            bench.worker.remove_nf(1);
            bench.worker.turn(false);
            bench.assert_all_back();
        }
    }
}
