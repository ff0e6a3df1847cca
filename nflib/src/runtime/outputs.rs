//! Where an NF's packets go: a return ring to each worker of the manager, and a direct edge to each
//! NF that may come next; and what waits for room in them.
//!
//! What has something queued stands on a dirty list, so that a burst costs by the outputs it goes
//! to, not by those there are.
#![forbid(unsafe_code)]

use crate::context::Departure;
use crate::descriptor::{ActionCode, Delivery, Returned, RouteId, ServiceId};
use crate::nf::Action;
use crate::packet::Slot;
use crate::shm::{
    BufferIndex, Doorbell, NO_NF, Producer, RingError, RingMemory, RouteTable, SlotValue,
};

use super::marks::{HoldMap, Marks};

/// How long an edge may stay full before what waits for it is refused: a neighbour that hangs must
/// not stop this NF, and with it every chain that this NF is in.
pub(super) const PATIENCE_NS: u64 = 50_000_000;

/// Stands in `edge_of` where no edge is.
const NO_EDGE: u16 = u16::MAX;

/// A value on a ring, by the buffer it names.
trait Named: SlotValue {
    fn buffer(&self) -> BufferIndex;
}

impl Named for Delivery {
    fn buffer(&self) -> BufferIndex {
        self.buffer
    }
}

impl Named for Returned {
    fn buffer(&self) -> BufferIndex {
        self.buffer
    }
}

/// One ring, and what is to go into it.
struct Output<T, M> {
    ring: Producer<T, M>,
    /// Decided and not yet pushed, oldest first.
    queued: Vec<T>,
    /// How many of `queued`, from the front, are known to have their hold bit set.
    marked: usize,
    /// Something was pushed since the ring was settled.
    unsettled: bool,
}

impl<T: Named, M: RingMemory> Output<T, M> {
    fn new(ring: Producer<T, M>) -> Self {
        Self { ring, queued: Vec::new(), marked: 0, unsettled: false }
    }

    /// Queues a value; returns true when it is the first.
    #[inline]
    fn queue(&mut self, value: T) -> bool {
        self.queued.push(value);
        self.queued.len() == 1
    }

    /// Pushes what fits, at once; the rest stays, in order.
    #[inline]
    fn push<H: HoldMap>(&mut self, marks: &mut Marks<H>) -> Result<usize, RingError> {
        debug_assert!(!self.unsettled, "one push between settles");
        let pushed = self.ring.push_burst(&self.queued)?;
        if pushed > 0 {
            self.unsettled = true;
            marks.clear(self.queued[..pushed].iter().map(Named::buffer));
            self.queued.drain(..pushed);
            self.marked = self.marked.saturating_sub(pushed);
        }
        Ok(pushed)
    }

    fn mark_leftovers<H: HoldMap>(&mut self, marks: &mut Marks<H>) {
        for value in &self.queued[self.marked..] {
            marks.set(value.buffer());
        }
        self.marked = self.queued.len();
    }

    fn take_leftovers(&mut self) -> Vec<T> {
        self.marked = 0;
        std::mem::take(&mut self.queued)
    }

    #[inline]
    fn settle(&mut self) -> bool {
        let pushed = std::mem::take(&mut self.unsettled);
        if pushed {
            self.ring.settle();
        }
        pushed
    }
}

/// Whether an edge takes packets.
#[derive(Clone, Copy)]
enum Room {
    Free,
    /// It had no room for all, and has taken nothing since.
    FullSince {
        ns: u64,
    },
    /// Full for longer than [`PATIENCE_NS`]: what does not fit is refused at once.
    Stuck,
}

/// A direct edge to another NF.
struct OutEdge<M> {
    nf: u16,
    output: Output<Delivery, M>,
    bell: Option<Doorbell>,
    room: Room,
}

impl<M: RingMemory> OutEdge<M> {
    /// Notes what a push told; true when what is left over shall be refused.
    #[inline]
    fn gives_up(&mut self, pushed: usize, now_ns: u64) -> bool {
        if self.output.queued.is_empty() {
            self.room = Room::Free;
            return false;
        }
        self.room = match self.room {
            Room::Stuck if pushed == 0 => Room::Stuck,
            Room::FullSince { ns } if pushed == 0 && now_ns.saturating_sub(ns) > PATIENCE_NS => {
                tracing::debug!("NF {} takes nothing; refusing packets for it", self.nf);
                Room::Stuck
            }
            full @ Room::FullSince { .. } if pushed == 0 => full,
            _ => Room::FullSince { ns: now_ns },
        };
        matches!(self.room, Room::Stuck)
    }
}

/// All outputs of an NF.
pub(super) struct Outputs<M> {
    lanes: Vec<Output<Returned, M>>,
    /// Buffer `b` goes back by lane `b / worker_buffers`.
    worker_buffers: u32,
    edges: Vec<Option<OutEdge<M>>>,
    /// Place in `edges` by NF number, or [`NO_EDGE`].
    edge_of: Vec<u16>,
    /// What this NF provides.
    service: ServiceId,
    routes: RouteTable,
    /// Places in `lanes` and in `edges` of the outputs with something queued.
    dirty_lanes: Vec<u16>,
    dirty_edges: Vec<u16>,
    refused_pkts: u64,
}

impl<M: RingMemory> Outputs<M> {
    /// `lanes`: the return rings, at least one, at most 65,535.
    pub(super) fn new(
        lanes: impl Iterator<Item = Producer<Returned, M>>,
        worker_buffers: u32,
        service: ServiceId,
        routes: RouteTable,
    ) -> Self {
        Self {
            lanes: lanes.map(Output::new).collect(),
            worker_buffers: worker_buffers.max(1),
            edges: Vec::new(),
            edge_of: Vec::new(),
            service,
            routes,
            dirty_lanes: Vec::new(),
            dirty_edges: Vec::new(),
            refused_pkts: 0,
        }
    }

    /// Packets that were refused because the next NF took none.
    pub(super) fn refused_pkts(&self) -> u64 {
        self.refused_pkts
    }

    /// True while something waits for room.
    #[inline]
    pub(super) fn have_leftovers(&self) -> bool {
        !self.dirty_lanes.is_empty() || !self.dirty_edges.is_empty()
    }

    /// Uses a ring to an NF from now on, instead of one it may have. `nf` is not [`NO_NF`].
    pub(super) fn open_edge(
        &mut self,
        nf: u16,
        ring: Producer<Delivery, M>,
        bell: Option<Doorbell>,
    ) {
        self.close_edge(nf);
        let edge = OutEdge { nf, output: Output::new(ring), bell, room: Room::Free };
        let place = self.edges.iter().position(Option::is_none).unwrap_or_else(|| {
            self.edges.push(None);
            self.edges.len() - 1
        });
        self.edges[place] = Some(edge);
        let number = usize::from(nf);
        if self.edge_of.len() <= number {
            self.edge_of.resize(number + 1, NO_EDGE);
        }
        // One edge a number, and no edge to NO_NF: fewer than 65,535 of them.
        self.edge_of[number] = place as u16;
    }

    /// Uses the ring to an NF no more; the manager passes on what waits for it. False when there is
    /// none.
    pub(super) fn close_edge(&mut self, nf: u16) -> bool {
        let Some(place) = self.edge_of.get_mut(usize::from(nf)).filter(|at| **at != NO_EDGE) else {
            return false;
        };
        let place = std::mem::replace(place, NO_EDGE);
        self.dirty_edges.retain(|&at| at != place);
        let edge = self.edges.get_mut(usize::from(place)).and_then(Option::take);
        for packet in edge.map(|mut edge| edge.output.take_leftovers()).into_iter().flatten() {
            self.give_back(self.undelivered(packet));
        }
        true
    }

    /// Queues a packet for where it is to go.
    #[inline]
    pub(super) fn queue(&mut self, departure: &Departure) {
        let slot = &departure.slot;
        if let Some((place, hop)) = self.edge_for(slot, departure.action)
            && let Some(edge) = self.edges[usize::from(place)].as_mut()
        {
            if edge.output.queue(delivery(slot, hop)) {
                self.dirty_edges.push(place);
            }
        } else {
            self.give_back(returned(slot, departure.action));
        }
    }

    /// The edge to the NF that the packet goes to, and that NF's hop. `None`: by the manager.
    #[inline]
    fn edge_for(&self, slot: &Slot, action: Action) -> Option<(u16, u8)> {
        if self.edge_of.is_empty() {
            return None;
        }
        let hop = match action {
            Action::Next => slot.hop.checked_add(1)?,
            Action::ToService(service) => self.routes.hop_of(slot.route, service)?,
            _ => return None,
        };
        let nf = self.routes.nf_at(slot.route, hop, slot.flow_hash)?;
        let place = *self.edge_of.get(usize::from(nf))?;
        (place != NO_EDGE).then_some((place, hop))
    }

    /// A packet that waited for an edge which is closed: the manager takes it there.
    fn undelivered(&self, packet: Delivery) -> Returned {
        let Delivery { route, hop, .. } = packet;
        match hop.checked_sub(1) {
            Some(here) if self.routes.service_at(route, here) == Some(self.service) => {
                not_pushed(packet, here, ActionCode::Next, 0)
            }
            _ => {
                // No edge leads to a hop that the route has not.
                let service = self.routes.service_at(route, hop).unwrap_or_default();
                not_pushed(packet, self.hop_on(route), ActionCode::ToService, service)
            }
        }
    }

    /// A packet that the next NF does not take.
    fn refused(&self, packet: Delivery, nf: u16) -> Returned {
        not_pushed(packet, self.hop_on(packet.route), ActionCode::Refused, nf)
    }

    /// A hop at which a route visits this NF's service. A packet that was sent here off its route has
    /// the hop that stands for that.
    fn hop_on(&self, route: RouteId) -> u8 {
        self.routes.hop_of(route, self.service).unwrap_or(u8::MAX)
    }

    /// Queues a packet for the worker that owns its buffer.
    #[inline]
    fn give_back(&mut self, packet: Returned) {
        let last = self.lanes.len().saturating_sub(1);
        let place = match last {
            0 => 0,
            _ => ((packet.buffer / self.worker_buffers) as usize).min(last),
        };
        if let Some(lane) = self.lanes.get_mut(place)
            && lane.queue(packet)
        {
            self.dirty_lanes.push(place as u16);
        }
    }

    /// One push to every output that has something queued. Returns the packets that moved.
    ///
    /// Edges come first: what they refuse goes back by the lanes.
    ///
    /// # Errors
    /// The manager broke a return ring. An edge that its NF broke is closed.
    #[inline]
    pub(super) fn push_all<H: HoldMap>(
        &mut self,
        marks: &mut Marks<H>,
        now_ns: u64,
    ) -> Result<usize, RingError> {
        let mut moved_pkts = 0;
        // From the last: one that closes leaves the list.
        for at in (0..self.dirty_edges.len()).rev() {
            moved_pkts += self.push_edge(self.dirty_edges[at], marks, now_ns);
        }
        for &place in &self.dirty_lanes {
            moved_pkts += self.lanes[usize::from(place)].push(marks)?;
        }
        Ok(moved_pkts)
    }

    #[inline]
    fn push_edge<H: HoldMap>(&mut self, place: u16, marks: &mut Marks<H>, now_ns: u64) -> usize {
        let Some(edge) = self.edges[usize::from(place)].as_mut() else { return 0 };
        let nf = edge.nf;
        let pushed_pkts = match edge.output.push(marks) {
            Ok(pushed_pkts) => pushed_pkts,
            Err(error) => {
                tracing::warn!("NF {nf} broke the ring to it: {error}; it is used no more");
                self.close_edge(nf);
                return 0;
            }
        };
        if !edge.gives_up(pushed_pkts, now_ns) {
            return pushed_pkts;
        }
        let refused = edge.output.take_leftovers();
        self.refused_pkts += refused.len() as u64;
        for &packet in &refused {
            self.give_back(self.refused(packet, nf));
        }
        pushed_pkts + refused.len()
    }

    /// Notes in the hold map what could not be pushed.
    #[inline]
    pub(super) fn mark_leftovers<H: HoldMap>(&mut self, marks: &mut Marks<H>) {
        for &place in &self.dirty_edges {
            if let Some(edge) = self.edges[usize::from(place)].as_mut() {
                edge.output.mark_leftovers(marks);
            }
        }
        for &place in &self.dirty_lanes {
            self.lanes[usize::from(place)].mark_leftovers(marks);
        }
    }

    /// Settles every output that was pushed to, and wakes the NFs that got something.
    #[inline]
    pub(super) fn settle(&mut self) {
        let Self { lanes, edges, dirty_lanes, dirty_edges, .. } = self;
        dirty_lanes.retain(|&place| {
            let lane = &mut lanes[usize::from(place)];
            lane.settle();
            !lane.queued.is_empty()
        });
        dirty_edges.retain(|&place| {
            let Some(edge) = edges[usize::from(place)].as_mut() else { return false };
            if edge.output.settle()
                && let Some(bell) = &edge.bell
            {
                bell.ring();
            }
            !edge.output.queued.is_empty()
        });
    }
}

fn returned(slot: &Slot, action: Action) -> Returned {
    let (action, target) = match action {
        // A held packet never departs; if one did, dropping it would be the least harm.
        Action::Drop | Action::Hold => (ActionCode::Drop, 0),
        Action::Next => (ActionCode::Next, 0),
        Action::ToService(service) => (ActionCode::ToService, service),
        Action::Out(port) => (ActionCode::Out, u16::from(port)),
        Action::Branch(branch) => (ActionCode::Branch, branch.0),
    };
    Returned {
        buffer: slot.lease.buffer(),
        offset_bytes: slot.offset,
        len_bytes: slot.len,
        flow_hash: slot.flow_hash,
        target,
        hop: slot.hop,
        action: action as u8,
    }
}

/// For the NF at position `hop`.
fn delivery(slot: &Slot, hop: u8) -> Delivery {
    Delivery {
        buffer: slot.lease.buffer(),
        offset_bytes: slot.offset,
        len_bytes: slot.len,
        flow_hash: slot.flow_hash,
        route: slot.route,
        port: slot.port,
        hop,
    }
}

/// A packet that was meant for an edge, for the manager.
fn not_pushed(packet: Delivery, hop: u8, action: ActionCode, target: u16) -> Returned {
    Returned {
        buffer: packet.buffer,
        offset_bytes: packet.offset_bytes,
        len_bytes: packet.len_bytes,
        flow_hash: packet.flow_hash,
        target,
        hop,
        action: action as u8,
    }
}

const _: () = assert!(NO_EDGE == NO_NF);
