//! An NF that speaks the protocol itself, has everything mapped that an NF can map, and keeps to no
//! rule unless a test wants it to.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nflib::control::{self, AttachRequest, Attached, MAX_REPLY_BYTES, Reply, Request, ServiceRef};
use nflib::descriptor::{ActionCode, Delivery, Returned};
use nflib::shm::{Channel, Consumer, EdgeRing, Marks, Producer, Region, RouteTable, Scribble};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::running::Manager;

/// Words of a ring, see `nflib/src/shm/ring.rs`.
pub const TAIL: usize = 0;
pub const SETTLED: usize = 64;
pub const HEAD: usize = 128;
pub const TAKEN: usize = 192;
pub const SLOTS: usize = 256;

/// What it calls itself.
pub const NAME: &str = "intruder";
/// The service it provides.
pub const SERVICE: &str = "evil";

/// Packets taken at once.
const BURST_PKTS: usize = 64;

/// A direct edge, as one of its ends has it.
pub struct Edge {
    pub nf: u16,
    /// It pushes here, and takes there.
    pub pushes: bool,
    pub capacity: u32,
    pub words: Arc<Scribble>,
    pub producer: Producer<Delivery>,
    pub consumer: Consumer<Delivery>,
}

pub struct Intruder {
    pub socket: UnixStream,
    pub terms: Attached,
    pub channel: Channel,
    /// Everything of the channel.
    pub words: Arc<Scribble>,
    /// Everything of the packet region.
    pub region: Arc<Scribble>,
    /// Everything of the doorbells.
    pub bells: Arc<Scribble>,
    /// Everything of its event ring.
    pub tap: Arc<Scribble>,
    pub route_fd: OwnedFd,
    /// The workers' alarms, in the trusted domain.
    pub alarms: Vec<OwnedFd>,
    pub takes: Consumer<Delivery>,
    pub gives: Producer<Returned>,
    pub edges: Vec<Edge>,
    /// It answers when it is asked to say that it is done.
    pub answers: bool,
    /// The manager hung up.
    pub is_out: bool,
}

/// A packet passed on as it should be.
pub fn next(packet: &Delivery) -> Returned {
    Returned {
        buffer: packet.buffer,
        offset_bytes: packet.offset_bytes,
        len_bytes: packet.len_bytes,
        flow_hash: packet.flow_hash,
        target: 0,
        hop: packet.hop,
        action: ActionCode::Next as u8,
    }
}

impl Intruder {
    pub fn attach(manager: &Manager) -> Self {
        Self::attach_as(manager, |_| {})
    }

    pub fn attach_as(manager: &Manager, change: impl FnOnce(&mut AttachRequest)) -> Self {
        let mut request = AttachRequest::new(NAME, ServiceRef::Name(SERVICE.into()));
        change(&mut request);
        let socket = manager.connect();
        control::send(&socket, &Request::Attach(request), &[]).unwrap();
        let (reply, fds) = control::recv::<Reply>(&socket, MAX_REPLY_BYTES).unwrap();
        let Reply::Attached(terms) = reply else { panic!("{reply:?}") };
        let mut fds = fds;
        let alarms = fds.split_off(7);
        let [region, channel, route_fd, bells, marks, tap, _black_box] =
            <[OwnedFd; 7]>::try_from(fds).unwrap();
        let words = Arc::new(Scribble::over(&channel).unwrap());
        let channel = Channel::from_fd(channel, terms.channel).unwrap();
        let (takes, gives) = channel.nf_ends(0).unwrap();
        // An honest library would take it, too.
        let map = if terms.own_region { Region::from_fd_sparse } else { Region::from_fd };
        assert!(map(region.try_clone().unwrap(), terms.region).is_ok());
        assert!(RouteTable::from_fd(&route_fd).is_ok());
        assert!(Marks::from_fd(&marks, terms.region.buffers).is_ok());
        assert!(Scribble::over(&marks).is_err(), "marks are the manager's to make");
        Self {
            socket,
            channel,
            words,
            region: Arc::new(Scribble::over(&region).unwrap()),
            bells: Arc::new(Scribble::over(&bells).unwrap()),
            tap: Arc::new(Scribble::over(&tap).unwrap()),
            route_fd,
            alarms,
            takes,
            gives,
            edges: Vec::new(),
            answers: true,
            is_out: false,
            terms,
        }
    }

    pub fn instance(&self) -> u32 {
        self.terms.instance
    }

    /// Where a word of the ring to it, or from it, stands in the channel.
    pub fn word_at(&self, towards_nf: bool, word: usize) -> usize {
        self.terms.channel.ring_offset_bytes(0, towards_nf) + word
    }

    /// Says something; nobody may hear it any more.
    pub fn say(&self, request: &Request) {
        let _ = control::send(&self.socket, request, &[]);
    }

    /// Acts on every message that is there.
    pub fn listen(&mut self) -> Vec<Reply> {
        let mut heard = Vec::new();
        while !self.is_out && self.is_readable() {
            let Ok((reply, fds)) = control::recv::<Reply>(&self.socket, MAX_REPLY_BYTES) else {
                self.is_out = true;
                break;
            };
            match reply {
                Reply::Sync { token } if self.answers => self.say(&Request::Synced { token }),
                Reply::OutEdge { nf, ring_capacity } => self.open(nf, ring_capacity, true, fds),
                Reply::InEdge { nf, ring_capacity } => self.open(nf, ring_capacity, false, fds),
                Reply::CloseOutEdge { nf } => self.edges.retain(|e| !(e.pushes && e.nf == nf)),
                Reply::CloseInEdge { nf } => self.edges.retain(|e| e.pushes || e.nf != nf),
                other => heard.push(other),
            }
        }
        heard
    }

    fn is_readable(&self) -> bool {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    fn open(&mut self, nf: u16, capacity: u32, pushes: bool, fds: Vec<OwnedFd>) {
        let fd = fds.into_iter().next().expect("an edge comes with its ring");
        let words = Arc::new(Scribble::over(&fd).unwrap());
        let ring = EdgeRing::from_fd(fd, capacity).unwrap();
        let (producer, consumer) = (ring.producer(), ring.consumer());
        self.edges.push(Edge { nf, pushes, capacity, words, producer, consumer });
    }

    /// Takes a burst, from the manager or a neighbour, after a look at the messages.
    pub fn take(&mut self) -> Vec<Delivery> {
        self.listen();
        let mut burst = [Delivery::default(); BURST_PKTS];
        let mut packets = Vec::new();
        let inputs = self.edges.iter_mut().filter(|edge| !edge.pushes);
        for ring in inputs.map(|edge| &mut edge.consumer).chain([&mut self.takes]) {
            let count = ring.pop_burst(&mut burst).unwrap_or(0);
            packets.extend(&burst[..count]);
        }
        packets
    }

    /// Returns descriptors to the manager, as many as fit.
    pub fn give(&mut self, returned: &[Returned]) {
        let mut rest = returned;
        for _ in 0..1000 {
            // What its own lies made impossible cannot be pushed, and need not be.
            let Ok(pushed) = self.gives.push_burst(rest) else { return };
            rest = &rest[pushed..];
            if rest.is_empty() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
    }

    /// Returns descriptors to the manager, if they fit now.
    pub fn give_once(&mut self, returned: &[Returned]) {
        let _ = self.gives.push_burst(returned);
    }

    /// Takes what is there, and passes it on as it should. Returns the packets.
    pub fn behave(&mut self) -> usize {
        let packets = self.take();
        let returned: Vec<_> = packets.iter().map(next).collect();
        self.give(&returned);
        packets.len()
    }
}
