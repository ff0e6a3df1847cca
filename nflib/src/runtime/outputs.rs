//! Where an NF's packets go: a return ring to each worker of the manager, and a direct edge to each
//! NF that may come next; and what waits for room in them.
//!
//! What has something queued stands on a dirty list, so that a burst costs by the outputs it goes
//! to, not by those there are.
#![forbid(unsafe_code)]

use crate::descriptor::{ActionCode, Delivery, Returned, RouteId, ServiceId};
use crate::nf::Action;
use crate::shm::{
    BufferIndex, Doorbell, HopEntry, NO_NF, Producer, RingError, RingMemory, RouteTable, SlotValue,
    WorkerAlarm,
};

use super::marks::{HoldMap, Marks};

/// How long an edge may take nothing at all before what waits for it is refused: a neighbour that hangs
/// must not stop this NF, and with it every chain that this NF is in. One that is merely slow, or waits
/// for its turn on a crowded core, takes a burst of some milliseconds at most in that time (see
/// [`Passage::adapt_burst`](super::passage::Passage::adapt_burst)).
pub(crate) const PATIENCE_NS: u64 = 500_000_000;

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

    /// Pushes what fits of `packets`, made into values, without queueing it; the rest is queued, in
    /// order. Nothing was queued before.
    #[inline]
    fn push_at_once<H: HoldMap>(
        &mut self,
        packets: &[Delivery],
        value: impl Fn(&Delivery) -> T,
        marks: &mut Marks<H>,
    ) -> Result<usize, RingError> {
        debug_assert!(!self.unsettled && self.queued.is_empty(), "one push between settles");
        let pushed = self.ring.push_made(packets, &value)?;
        if pushed > 0 {
            self.unsettled = true;
            marks.clear(packets[..pushed].iter().map(Named::buffer));
        }
        if pushed < packets.len() {
            self.queued.extend(packets[pushed..].iter().map(value));
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

/// Where packets of one hop of one route go, about which the same was decided.
#[derive(Clone, Copy)]
enum Way {
    /// To the manager.
    Lane,
    /// By the edge at this place, to the NF at this hop.
    Edge { place: u16, hop: u8 },
    /// To one of a set of NFs, by the flow: by an edge where there is one.
    ByFlow { entry: HopEntry, hop: u8 },
}

/// A direct edge to another NF.
struct OutEdge<M> {
    nf: u16,
    output: Output<Delivery, M>,
    bell: Option<Doorbell>,
    room: Room,
}

impl<M: RingMemory> OutEdge<M> {
    /// Settles the ring if it was pushed to, and wakes the NF that got something.
    #[inline]
    fn settle(&mut self) {
        if self.output.settle()
            && let Some(bell) = &self.bell
        {
            bell.ring();
        }
    }

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
pub(crate) struct Outputs<M> {
    lanes: Vec<Output<Returned, M>>,
    /// How to wake the worker behind each lane; empty when that is not possible.
    alarms: Vec<WorkerAlarm>,
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
    /// Place of an edge that took a burst at once, until it is settled; else [`NO_EDGE`].
    pushed_at_once: u16,
    refused_pkts: u64,
}

impl<M: RingMemory> Outputs<M> {
    /// `lanes`: the return rings, at least one, at most 65,535.
    pub(crate) fn new(
        lanes: impl Iterator<Item = Producer<Returned, M>>,
        worker_buffers: u32,
        service: ServiceId,
        routes: RouteTable,
    ) -> Self {
        Self {
            lanes: lanes.map(Output::new).collect(),
            alarms: Vec::new(),
            worker_buffers: worker_buffers.max(1),
            edges: Vec::new(),
            edge_of: Vec::new(),
            service,
            routes,
            dirty_lanes: Vec::new(),
            dirty_edges: Vec::new(),
            pushed_at_once: NO_EDGE,
            refused_pkts: 0,
        }
    }

    /// How to wake the workers from now on, by lane.
    pub(super) fn wake_workers_by(&mut self, alarms: Vec<WorkerAlarm>) {
        self.alarms = alarms;
    }

    /// Wakes a worker if it sleeps, and can be woken.
    pub(super) fn wake_worker(&self, worker: u16) {
        if let Some(alarm) = self.alarms.get(usize::from(worker)) {
            alarm.ring();
        }
    }

    /// Packets that were refused because the next NF took none.
    pub(crate) fn refused_pkts(&self) -> u64 {
        self.refused_pkts
    }

    /// True while something is queued: between turns, waits for room.
    #[inline]
    pub(crate) fn have_leftovers(&self) -> bool {
        !self.dirty_lanes.is_empty() || !self.dirty_edges.is_empty()
    }

    /// True while something waits for room in a ring to a worker.
    pub(super) fn wait_for_workers(&self) -> bool {
        !self.dirty_lanes.is_empty()
    }

    /// True while nothing that waits can go: no edge with something queued is half empty, and no lane
    /// has any room. What comes then rings, see [`Inputs::offer_room`](super::inputs::Inputs).
    pub(super) fn are_full(&mut self) -> bool {
        let Self { lanes, edges, dirty_lanes, dirty_edges, .. } = self;
        let edge_is_full = |&place: &u16| {
            edges[usize::from(place)].as_mut().is_some_and(|edge| {
                let ring = &mut edge.output.ring;
                ring.in_flight().is_ok_and(|pkts| pkts > ring.capacity() / 2)
            })
        };
        let lane_is_full = |&place: &u16| {
            let ring = &mut lanes[usize::from(place)].ring;
            ring.in_flight().is_ok_and(|pkts| pkts == ring.capacity())
        };
        dirty_edges.iter().all(edge_is_full) && dirty_lanes.iter().all(lane_is_full)
    }

    /// Uses a ring to an NF from now on, instead of one it may have. `nf` is not [`NO_NF`].
    pub(crate) fn open_edge(
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
    pub(crate) fn close_edge(&mut self, nf: u16) -> bool {
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

    /// Pushes a whole burst, if all of it takes one way, without looking at each packet. All are at one
    /// hop of one route, and nothing is queued. `None`: not possible, nothing was done.
    ///
    /// # Errors
    /// The manager broke a return ring.
    #[inline]
    pub(crate) fn push_at_once<H: HoldMap>(
        &mut self,
        packets: &[Delivery],
        action: Action,
        marks: &mut Marks<H>,
        now_ns: u64,
    ) -> Result<Option<usize>, RingError> {
        let Some(first) = packets.first() else { return Ok(None) };
        match self.way(first, action) {
            Way::Edge { place, hop } => {
                let Some(edge) = self.edges[usize::from(place)].as_mut() else { return Ok(None) };
                let hops = hop.wrapping_sub(first.hop);
                let value = |packet: &Delivery| packet.hops_on(hops);
                let pushed = edge.output.push_at_once(packets, value, marks);
                if pushed == Ok(packets.len()) {
                    edge.room = Room::Free;
                    self.pushed_at_once = place;
                    return Ok(Some(packets.len()));
                }
                if pushed.is_ok() {
                    self.dirty_edges.push(place);
                }
                // `None`: the edge was broken and is closed.
                let Some(moved_pkts) = self.edge_pushed(place, pushed, now_ns) else {
                    return Ok(None);
                };
                Ok(Some(moved_pkts + self.push_lanes(marks)?))
            }
            Way::Lane if self.lanes.len() == 1 => {
                let (code, target) = code_of(action);
                let value = |packet: &Delivery| returned(packet, packet.hop, code, target);
                let pushed = self.lanes[0].push_at_once(packets, value, marks)?;
                self.dirty_lanes.push(0);
                Ok(Some(pushed))
            }
            _ => Ok(None),
        }
    }

    /// Queues packets about which the same was decided for where they are to go.
    pub(crate) fn queue_run(&mut self, packets: &[Delivery], action: Action) {
        let at = |packet: &Delivery| (packet.route, packet.hop);
        for alike in packets.chunk_by(|one, next| at(one) == at(next)) {
            self.queue_alike(alike, action);
        }
    }

    /// Queues packets of one hop of one route about which the same was decided, at least one.
    fn queue_alike(&mut self, packets: &[Delivery], action: Action) {
        match self.way(&packets[0], action) {
            Way::Edge { place, hop } => self.queue_by_edge(place, hop, packets),
            Way::ByFlow { entry, hop } => {
                for packet in packets {
                    let packet = std::slice::from_ref(packet);
                    match self.edge_to(self.routes.nf_of(entry, packet[0].flow_hash)) {
                        Some(place) => self.queue_by_edge(place, hop, packet),
                        None => self.queue_by_lanes(packet, action),
                    }
                }
            }
            Way::Lane => self.queue_by_lanes(packets, action),
        }
    }

    #[inline]
    fn queue_by_edge(&mut self, place: u16, hop: u8, packets: &[Delivery]) {
        // `edge_of` leads to edges only.
        let Some(edge) = self.edges.get_mut(usize::from(place)).and_then(Option::as_mut) else {
            return;
        };
        if edge.output.queued.is_empty() {
            self.dirty_edges.push(place);
        }
        let next = |packet: &Delivery| packet.hops_on(hop.wrapping_sub(packet.hop));
        edge.output.queued.extend(packets.iter().map(next));
    }

    #[inline]
    fn queue_by_lanes(&mut self, packets: &[Delivery], action: Action) {
        let (code, target) = code_of(action);
        for packet in packets {
            self.give_back(returned(packet, packet.hop, code, target));
        }
    }

    /// The way of a packet, and of all at the same hop of the same route.
    #[inline]
    fn way(&self, packet: &Delivery, action: Action) -> Way {
        let by_edge = || {
            if self.edge_of.is_empty() {
                return None;
            }
            let hop = match action {
                Action::Next => packet.hop.checked_add(1)?,
                Action::ToService(service) => self.routes.hop_of(packet.route, service)?,
                _ => return None,
            };
            match self.routes.entry_at(packet.route, hop)? {
                HopEntry::Nf(nf) => Some(Way::Edge { place: self.edge_to(nf)?, hop }),
                entry @ HopEntry::Set { .. } => Some(Way::ByFlow { entry, hop }),
            }
        };
        by_edge().unwrap_or(Way::Lane)
    }

    /// The place of the edge to an NF.
    #[inline]
    fn edge_to(&self, nf: u16) -> Option<u16> {
        self.edge_of.get(usize::from(nf)).copied().filter(|&place| place != NO_EDGE)
    }

    /// A packet that waited for an edge which is closed: the manager takes it there.
    fn undelivered(&self, packet: Delivery) -> Returned {
        let Delivery { route, hop, .. } = packet;
        match hop.checked_sub(1) {
            Some(here) if self.routes.service_at(route, here) == Some(self.service) => {
                returned(&packet, here, ActionCode::Next, 0)
            }
            _ => {
                // No edge leads to a hop that the route has not.
                let service = self.routes.service_at(route, hop).unwrap_or_default();
                returned(&packet, self.hop_on(route), ActionCode::ToService, service)
            }
        }
    }

    /// A packet that the next NF does not take.
    fn refused(&self, packet: Delivery, nf: u16) -> Returned {
        returned(&packet, self.hop_on(packet.route), ActionCode::Refused, nf)
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
        if let Some(lane) = self.lanes.get_mut(place) {
            if lane.queued.is_empty() {
                self.dirty_lanes.push(place as u16);
            }
            lane.queued.push(packet);
        }
    }

    /// One push to every output that has something queued. Returns the packets that moved.
    ///
    /// Edges come first: what they refuse goes back by the lanes.
    ///
    /// # Errors
    /// The manager broke a return ring. An edge that its NF broke is closed.
    #[inline]
    pub(crate) fn push_all<H: HoldMap>(
        &mut self,
        marks: &mut Marks<H>,
        now_ns: u64,
    ) -> Result<usize, RingError> {
        let mut moved_pkts = 0;
        // From the last: one that closes leaves the list.
        for at in (0..self.dirty_edges.len()).rev() {
            moved_pkts += self.push_edge(self.dirty_edges[at], marks, now_ns);
        }
        moved_pkts += self.push_lanes(marks)?;
        Ok(moved_pkts)
    }

    #[inline]
    fn push_lanes<H: HoldMap>(&mut self, marks: &mut Marks<H>) -> Result<usize, RingError> {
        let mut moved_pkts = 0;
        for &place in &self.dirty_lanes {
            moved_pkts += self.lanes[usize::from(place)].push(marks)?;
        }
        Ok(moved_pkts)
    }

    #[inline]
    fn push_edge<H: HoldMap>(&mut self, place: u16, marks: &mut Marks<H>, now_ns: u64) -> usize {
        let Some(edge) = self.edges[usize::from(place)].as_mut() else { return 0 };
        let pushed = edge.output.push(marks);
        self.edge_pushed(place, pushed, now_ns).unwrap_or_default()
    }

    /// Sees to an edge after a push: what it refuses is queued to go back, and a broken one is closed
    /// (`None`). Returns the packets that moved.
    #[inline]
    fn edge_pushed(
        &mut self,
        place: u16,
        pushed: Result<usize, RingError>,
        now_ns: u64,
    ) -> Option<usize> {
        let edge = self.edges[usize::from(place)].as_mut()?;
        let nf = edge.nf;
        let pushed_pkts = match pushed {
            Ok(pushed_pkts) => pushed_pkts,
            Err(error) => {
                tracing::warn!("NF {nf} broke the ring to it: {error}; it is used no more");
                self.close_edge(nf);
                return None;
            }
        };
        if !edge.gives_up(pushed_pkts, now_ns) {
            return Some(pushed_pkts);
        }
        let refused = edge.output.take_leftovers();
        self.refused_pkts += refused.len() as u64;
        for &packet in &refused {
            self.give_back(self.refused(packet, nf));
        }
        Some(pushed_pkts + refused.len())
    }

    /// Notes in the hold map what could not be pushed.
    #[inline]
    pub(crate) fn mark_leftovers<H: HoldMap>(&mut self, marks: &mut Marks<H>) {
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
    pub(crate) fn settle(&mut self) {
        if self.pushed_at_once != NO_EDGE {
            let place = std::mem::replace(&mut self.pushed_at_once, NO_EDGE);
            if let Some(edge) = self.edges[usize::from(place)].as_mut() {
                edge.settle();
            }
        }
        if self.have_leftovers() {
            self.settle_dirty();
        }
    }

    /// Settles what was queued for; what has nothing queued any more leaves the lists.
    fn settle_dirty(&mut self) {
        let Self { lanes, alarms, edges, dirty_lanes, dirty_edges, .. } = self;
        dirty_lanes.retain(|&place| {
            let lane = &mut lanes[usize::from(place)];
            if lane.settle()
                && let Some(alarm) = alarms.get(usize::from(place))
            {
                alarm.ring();
            }
            !lane.queued.is_empty()
        });
        dirty_edges.retain(|&place| {
            let Some(edge) = edges[usize::from(place)].as_mut() else { return false };
            edge.settle();
            !edge.output.queued.is_empty()
        });
    }
}

/// An action as it travels, and what it names.
pub(super) fn code_of(action: Action) -> (ActionCode, u16) {
    match action {
        // A held packet never departs; if one did, dropping it would be the least harm.
        Action::Drop | Action::Hold => (ActionCode::Drop, 0),
        Action::Next => (ActionCode::Next, 0),
        Action::ToService(service) => (ActionCode::ToService, service),
        Action::Out(port) => (ActionCode::Out, u16::from(port)),
        Action::Branch(branch) => (ActionCode::Branch, branch.0),
    }
}

/// A packet for the manager.
#[inline]
fn returned(packet: &Delivery, hop: u8, action: ActionCode, target: u16) -> Returned {
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
