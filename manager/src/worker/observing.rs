//! What a worker looks at: which packets it marks as they come in, and what it tells of packets at ports
//! and where they are dropped.
//!
//! With nothing asked for, a burst that comes in costs a count and a comparison, and one that goes out a
//! comparison.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

use nflib::observe::{Budget, Event, EventKind, NOBODY, TapPoint, TapSpec, Teller};
use nflib::shm::{Mark, MarkTable, TapFile};

use super::*;
use crate::flow::{FlowKey, Match};
use crate::status::now_ns;

/// Bytes of a frame in which a trace's fields are looked for.
const HEADER_BYTES: usize = 192;
/// Bursts between two looks at the clock, while latencies are sampled.
const BURSTS_A_LOOK: u32 = 16;

/// What workers are to look at.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// Taps at ports and where packets are dropped.
    pub taps: Vec<TapSpec>,
    /// Packets to follow.
    pub traces: Vec<Following>,
    /// A worker marks one packet in so many nanoseconds; 0: none.
    pub latency_interval_ns: u64,
    /// What taps may take of each millisecond, nanoseconds; `None`: the usual share.
    pub tap_share_ns: Option<u64>,
}

/// Packets of one trace.
#[derive(Clone, Debug)]
pub struct Following {
    /// The trace's place, told with the first event of each packet; not [`NOBODY`].
    pub slot: u16,
    /// Which packets, as they come in.
    pub matches: Match,
    /// Of those, each so manieth; 0 and 1: each.
    pub one_in: u32,
    /// How many are still to be marked, by all workers.
    pub left: Arc<AtomicU32>,
}

impl Following {
    /// Takes one of the packets that are left to mark.
    fn claim(&self) -> bool {
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_ok()
    }
}

/// When to mark a packet for its latency.
#[derive(Clone, Copy)]
struct Sampling {
    interval_ns: u64,
    next_ns: u64,
    /// Draws which packet of a burst it is (xorshift, Marsaglia 2003): always the first would be always
    /// the one that waits longest.
    random: u32,
}

/// A route and an ingress port, as they were when a packet came in.
type Came = Option<(u16, PortId)>;

pub(super) struct Watch {
    region: Arc<Region>,
    marks: Arc<MarkTable>,
    teller: Teller,
    traces: Vec<Following>,
    /// Packets seen that each trace matches.
    matched: Vec<u32>,
    sampling: Option<Sampling>,
    /// Bursts until the next look at the clock.
    bursts: u32,
    /// Packets that are marked and inside.
    marked_pkts: usize,
    /// Of each buffer of this worker, while there are taps.
    came: Vec<Came>,
    first: BufferIndex,
}

impl Watch {
    pub(super) fn new(pool: &BufferPool, marks: Arc<MarkTable>, file: &Arc<TapFile>) -> Self {
        Self {
            region: Arc::clone(pool.region()),
            marks,
            teller: Teller::new(file, Arc::clone(pool.region())),
            traces: Vec::new(),
            matched: Vec::new(),
            sampling: None,
            bursts: u32::MAX,
            marked_pkts: 0,
            came: Vec::new(),
            first: pool.first(),
        }
    }

    /// Looks at other things from now on.
    fn observe(&mut self, observation: &Observation, buffers: u32) {
        if let Err(error) = self.teller.set_taps(&observation.taps) {
            // They were checked when they were asked for.
            tracing::error!(%error, "a tap cannot be set");
        }
        let share = observation.tap_share_ns;
        self.teller.bound_taps(share.map_or_else(Budget::default, Budget::of));
        let came = if self.teller.has_taps() { buffers as usize } else { 0 };
        self.came.resize(came, None);
        self.traces.clone_from(&observation.traces);
        self.matched = vec![0; self.traces.len()];
        let interval_ns = observation.latency_interval_ns;
        let (next_ns, random) = (now_ns(), self.first | 1);
        self.sampling = (interval_ns > 0).then_some(Sampling { interval_ns, next_ns, random });
        self.bursts = if interval_ns > 0 { BURSTS_A_LOOK } else { u32::MAX };
    }

    /// Whether a burst that comes in is to be looked at.
    #[inline]
    pub(super) fn looks_at_burst(&mut self) -> bool {
        self.bursts -= 1;
        self.bursts == 0 || self.teller.has_taps() || !self.traces.is_empty()
    }

    /// Whether what leaves is to be looked at.
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.marked_pkts > 0 || self.teller.has_taps()
    }

    /// Which packet of a burst is marked for its latency, if one is.
    fn sample(&mut self, count: usize) -> Option<usize> {
        if self.bursts > 0 {
            return None;
        }
        let Some(sampling) = &mut self.sampling else {
            self.bursts = u32::MAX;
            return None;
        };
        self.bursts = BURSTS_A_LOOK;
        let time_ns = now_ns();
        if time_ns < sampling.next_ns {
            return None;
        }
        sampling.next_ns = time_ns + sampling.interval_ns;
        sampling.random ^= sampling.random << 13;
        sampling.random ^= sampling.random >> 17;
        sampling.random ^= sampling.random << 5;
        Some(sampling.random as usize % count.max(1))
    }

    /// The trace that takes a packet, if one does, of which there are then fewer left. `key` is known where the
    /// packet's headers were read anyhow.
    fn trace_of(
        &mut self,
        packet: &PortPacket,
        ingress: PortId,
        key: Option<&FlowKey>,
    ) -> Option<u16> {
        if self.traces.is_empty() {
            return None;
        }
        let key = match key {
            Some(key) => *key,
            None => self.key_of(packet, ingress)?,
        };
        for (trace, matched) in self.traces.iter().zip(&mut self.matched) {
            if trace.matches.matches(&key) {
                let turn = matched.is_multiple_of(trace.one_in.max(1));
                *matched = matched.wrapping_add(1);
                if turn && trace.claim() {
                    return Some(trace.slot);
                }
            }
        }
        None
    }

    fn key_of(&self, packet: &PortPacket, ingress: PortId) -> Option<FlowKey> {
        let mut header = [0; HEADER_BYTES];
        let header = &mut header[..usize::from(packet.len_bytes).min(HEADER_BYTES)];
        let there = self.region.read(packet.buffer, packet.offset_bytes, header);
        there.then(|| FlowKey::parse_start(header, packet.len_bytes.into(), ingress, 0, 0))
    }

    /// A packet has come in, into the trace of this slot or into none: marks it and tells of it, as it is to be.
    fn came_in(
        &mut self,
        packet: &PortPacket,
        port: PortId,
        route: Option<u16>,
        (slot, sampled): (Option<u16>, bool),
        tapped: bool,
    ) {
        if let Some(came) = self.came.get_mut(packet.buffer.wrapping_sub(self.first) as usize) {
            *came = route.map(|route| (route, port));
        }
        let mark = match (slot, sampled) {
            (Some(_), _) => Some(Mark::Shown),
            (None, true) => Some(Mark::Timed),
            (None, false) => None,
        };
        if let Some(mark) = mark {
            self.marked_pkts += usize::from(self.marks.set(packet.buffer, mark));
        }
        let event = Event {
            kind: EventKind::PortIn,
            target: port.into(),
            peer: slot.unwrap_or(NOBODY),
            route: route.unwrap_or(0),
            hop: if route.is_some() { 0 } else { Event::NO_HOP },
            ingress: port,
            ..event_of(packet)
        };
        self.tell(event, mark, tapped, |at| at == TapPoint::PortIn { port });
    }

    /// Packets have been taken by a port to be sent.
    #[cold]
    #[inline(never)]
    pub(super) fn sent(&mut self, packets: &[PortPacket], port: PortId) {
        let is_here = |at| at == TapPoint::PortOut { port };
        let (begun_ns, tapped) = self.begin_looking(packets.len(), is_here);
        for packet in packets {
            let mark = self.take_mark(packet.buffer);
            if mark.is_some() || tapped {
                let (kind, target) = (EventKind::PortOut, port.into());
                let event = Event { kind, target, ..self.known_of(packet) };
                self.tell(event, mark, tapped, is_here);
            }
        }
        self.end_looking(begun_ns, tapped);
    }

    /// Packets are dropped; `slot` is that of the service, or [`NOBODY`].
    #[cold]
    #[inline(never)]
    pub(super) fn dropped(&mut self, packets: &[PortPacket], slot: u16, reason: DropReason) {
        let code = reason as u8;
        let is_here = |at| match at {
            TapPoint::Drop { reason, slot: at } => {
                reason.is_none_or(|reason| reason == code) && at.is_none_or(|at| at == slot)
            }
            _ => false,
        };
        let (begun_ns, tapped) = self.begin_looking(packets.len(), is_here);
        for packet in packets {
            let mark = self.take_mark(packet.buffer);
            if mark.is_some() || tapped {
                let event =
                    Event { kind: EventKind::Drop, target: slot, code, ..self.known_of(packet) };
                self.tell(event, mark, tapped, is_here);
            }
        }
        self.end_looking(begun_ns, tapped);
    }

    /// Whether taps look at so many packets at such a place now, and since when. Those that they would take and
    /// have no time for are counted as lost.
    fn begin_looking(&mut self, pkts: usize, is_here: impl Fn(TapPoint) -> bool) -> (u64, bool) {
        if !self.teller.has_tap_at(is_here) {
            return (0, false);
        }
        let begun_ns = now_ns();
        (begun_ns, self.teller.begin(begun_ns, pkts))
    }

    fn end_looking(&mut self, begun_ns: u64, tapped: bool) {
        if tapped {
            self.teller.end(now_ns().saturating_sub(begun_ns));
        }
    }

    fn take_mark(&mut self, buffer: BufferIndex) -> Option<Mark> {
        if self.marked_pkts == 0 {
            return None;
        }
        let mark = self.marks.take(buffer);
        self.marked_pkts -= usize::from(mark.is_some());
        mark
    }

    /// An event of a packet, with where it came in.
    fn known_of(&self, packet: &PortPacket) -> Event {
        let at = packet.buffer.wrapping_sub(self.first) as usize;
        let (route, hop, ingress) = match self.came.get(at).copied().flatten() {
            Some((route, ingress)) => (route, 0, ingress),
            None => (0, Event::NO_HOP, NO_PORT),
        };
        Event { route, hop, ingress, peer: NOBODY, ..event_of(packet) }
    }

    fn tell(
        &mut self,
        event: Event,
        mark: Option<Mark>,
        tapped: bool,
        is_here: impl Fn(TapPoint) -> bool,
    ) {
        self.teller.tell(event, (mark, self.marks.kept_bytes()), tapped, is_here);
    }
}

fn event_of(packet: &PortPacket) -> Event {
    let &PortPacket { buffer, offset_bytes, len_bytes, flow_hash } = packet;
    Event { time_ns: now_ns(), buffer, offset_bytes, len_bytes, flow_hash, ..Event::default() }
}

/// Who looks at what leaves, if there is anything to look at.
#[inline]
pub(super) fn watching(watch: &mut Option<Box<Watch>>) -> Option<&mut Watch> {
    watch.as_deref_mut().filter(|watch| watch.is_on())
}

impl Worker {
    /// Lets this worker mark packets and tell of them.
    pub fn watch_with(&mut self, marks: Arc<MarkTable>, file: &Arc<TapFile>) {
        self.watch = Some(Box::new(Watch::new(&self.pool, marks, file)));
    }

    /// Looks at these things from now on.
    pub fn observe(&mut self, observation: &Observation) {
        let buffers = self.pool.count();
        if let Some(watch) = &mut self.watch {
            watch.observe(observation, buffers);
        }
    }

    /// Packets that are marked and inside.
    #[must_use]
    pub fn marked_pkts(&self) -> usize {
        self.watch.as_ref().map_or(0, |watch| watch.marked_pkts)
    }

    /// Looks at a burst that was classified just now and has not gone anywhere yet.
    #[cold]
    #[inline(never)]
    pub(super) fn watch_burst(&mut self, plan: &Plan, port: PortId, received: &[PortPacket]) {
        let Some(watch) = &mut self.watch else { return };
        let sampled = watch.sample(received.len());
        if sampled.is_none() && !watch.teller.has_taps() && watch.traces.is_empty() {
            return;
        }
        let is_here = |at| at == TapPoint::PortIn { port };
        let (begun_ns, tapped) = watch.begin_looking(received.len(), is_here);
        for (at, packet) in received.iter().enumerate() {
            let route = match self.classifier.verdict(at) {
                Verdict::Chain(chain) => plan.route_of(chain).map(|route| route.id),
                _ => None,
            };
            let sampled = sampled == Some(at);
            let slot = watch.trace_of(packet, port, self.classifier.key(at));
            if sampled || slot.is_some() || watch.teller.has_taps() {
                watch.came_in(packet, port, route, (slot, sampled), tapped);
            }
        }
        watch.end_looking(begun_ns, tapped);
    }
}
