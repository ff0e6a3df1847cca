//! From events of marked packets to their ways.
//!
//! A marked packet is seen by a worker as it comes in, by every NF as it takes it and passes it on, and by a worker
//! as it leaves or is dropped. A buffer has one holder at a time and one worker for ever, so the events of
//! a packet are those of its buffer between its `PortIn` and its `PortOut` or `Drop`.
//!
//! Rings are read one after the other, so events of a packet come in any order. Two facts put them right:
//! - Whoever passes a packet on has written its events before. So when a packet's end was read, all its events
//!   are in the rings, and each ring that is found empty *afterwards* has given up its own: the way is complete.
//! - An NF's event that was read belongs to a `PortIn` that is already in its worker's ring. Once that was
//!   found empty afterwards and no packet fits the event, it is a lie or a leftover.
//!
//! What NFs say is checked before it counts: the time must lie between the packet's begin and end, and
//! the NF's service at the hop that the event names. A way with a contradiction in it, or from which events may be
//! missing, is *torn*. All that is kept is bounded, for each NF and altogether.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;
mod walk;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use nflib::observe::{Event, EventKind, NOBODY};
use nflib::shm::BufferIndex;

use super::{Directory, NfName, Source};
use crate::plan::NfNumber;

/// Packets under way at a time, at most.
const MAX_PACKETS: usize = 32_768;
/// Events of NFs about one buffer, at most.
const MAX_EVENTS_A_BUFFER: usize = 1024;
/// What is kept of one NF's events, bytes.
const MAX_BYTES_AN_NF: usize = 4 << 20;
/// What is kept of all events, bytes.
const MAX_BYTES: usize = 64 << 20;
/// What an event takes beside its bytes, about.
const EVENT_BYTES: usize = 128;
/// How long a packet may be under way before it is no longer waited for, nanoseconds.
pub const PATIENCE_NS: u64 = 30_000_000_000;

/// The bytes of a packet at one moment, as far as they were kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Where it started in its buffer.
    pub offset_bytes: u16,
    /// Its length.
    pub len_bytes: u16,
    /// Its first bytes.
    pub kept: Box<[u8]>,
}

/// A stay at an NF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Whose number it is.
    pub nf: NfNumber,
    /// Who that was; `None` when the directory does not know it any more.
    pub name: Option<Arc<NfName>>,
    /// The chain and the position in it; `None` off the route.
    pub place: Option<Place>,
    /// Who pushed it to here; `None`: a worker.
    pub from: Option<NfNumber>,
    /// Since the place before let it go, nanoseconds.
    pub wait_ns: u64,
    /// When it was taken from the ring, nanoseconds of CLOCK_MONOTONIC.
    pub in_ns: u64,
    /// When it was passed on; `None`: it never was.
    pub out_ns: Option<u64>,
    /// It was held meanwhile.
    pub held: bool,
    /// What was decided: code and target of the event.
    pub action: Option<(u8, u16)>,
    /// As it came.
    pub before: View,
    /// As it went.
    pub after: Option<View>,
}

/// A position in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The chain.
    pub chain: Arc<str>,
    /// The position.
    pub hop: u8,
    /// The service there.
    pub service: Arc<str>,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A port took it.
    Sent {
        /// The port.
        port: u16,
    },
    /// It was dropped.
    Dropped {
        /// The number of the reason.
        reason: u8,
        /// The service's place among the workers' counters, or [`NOBODY`].
        slot: u16,
    },
    /// It has not come out, or not yet.
    Inside,
}

/// A packet's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journey {
    /// The slot of the trace that it is marked for; `None`: a sample of latency.
    pub trace: Option<u16>,
    /// Events of it are missing, or contradict each other.
    pub torn: bool,
    /// The event of its begin.
    pub begin: Event,
    /// As it came in.
    pub first: View,
    /// The chain that it entered, where known.
    pub chain: Option<Arc<str>>,
    /// The NFs, in the order of its stays.
    pub steps: Vec<Step>,
    /// What became of it.
    pub end: End,
    /// When, nanoseconds of CLOCK_MONOTONIC; of one inside, when it was last seen.
    pub end_ns: u64,
    /// As it was in the end, if it has ended.
    pub last: Option<View>,
}

/// Whether every ring of a kind was found empty once within a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emptied {
    /// Those of the workers.
    pub workers: bool,
    /// Those of the NFs.
    pub nfs: bool,
}

/// An event of an NF.
#[derive(Clone, Debug)]
struct Seen {
    nf: NfNumber,
    event: Event,
    kept: Box<[u8]>,
    turn: u64,
}

impl Seen {
    fn cost_bytes(&self) -> usize {
        EVENT_BYTES + self.kept.len()
    }
}

/// A packet that is under way, or whose events are waited for.
#[derive(Debug)]
struct Packet {
    begin: Event,
    first: Box<[u8]>,
    /// The event of its end, its bytes, and the turn in which it was read.
    end: Option<(Event, Box<[u8]>, u64)>,
    /// Events were lost meanwhile.
    suspect: bool,
}

impl Packet {
    fn is_traced(&self) -> bool {
        self.begin.peer != NOBODY
    }

    /// Whether an NF can have seen it at this moment.
    fn spans(&self, time_ns: u64) -> bool {
        let end_ns = self.end.as_ref().map_or(u64::MAX, |(end, ..)| end.time_ns);
        (self.begin.time_ns..=end_ns).contains(&time_ns)
    }
}

/// What is known of one buffer.
#[derive(Debug, Default)]
struct Track {
    /// Its packets, oldest first; only the last one can be without an end.
    packets: VecDeque<Packet>,
    /// Events of NFs that are not yet part of a way, as they came.
    seen: Vec<Seen>,
}

/// What was not taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Events of NFs that fit no packet, or that only workers can have seen.
    pub strange_events: u64,
    /// Events for which there was no room.
    pub surplus_events: u64,
    /// Packets of which no begin was seen, or no end, or for which there was no room.
    pub torn_pkts: u64,
}

/// Puts ways together.
#[derive(Debug, Default)]
pub struct Journeys {
    turn: u64,
    tracks: HashMap<BufferIndex, Track>,
    packets: usize,
    traced: usize,
    bytes_by_nf: HashMap<NfNumber, usize>,
    bytes: usize,
    /// Events were lost: packets whose begin is read up to this turn may lack some.
    suspect_until_turn: u64,
    refused: Refused,
}

impl Journeys {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self { turn: 1, ..Self::default() }
    }

    /// Packets that are waited for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packets
    }

    /// Those of them that are marked for a trace.
    #[must_use]
    pub fn traced(&self) -> usize {
        self.traced
    }

    /// True when nothing is waited for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tracks.is_empty()
    }

    /// What was not taken so far.
    #[must_use]
    pub fn refused(&self) -> Refused {
        self.refused
    }

    /// What is kept of NFs' events, bytes.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.bytes
    }

    /// Takes in an event of a marked packet.
    pub fn event(&mut self, source: Source, event: &Event, kept: &[u8]) {
        match (source, event.kind) {
            (Source::Worker(_), EventKind::PortIn) => self.begin(event, kept),
            (Source::Worker(_), EventKind::PortOut | EventKind::Drop) => self.end(event, kept),
            (Source::Nf(nf), EventKind::NfIn | EventKind::NfOut | EventKind::NfHold) => {
                self.seen(nf, event, kept);
            }
            _ => self.refused.strange_events += 1,
        }
    }

    /// Events were lost in some ring since the last turn.
    pub fn lost(&mut self) {
        // What was lost may concern packets whose begin is still unread.
        self.suspect_until_turn = self.turn + 1;
        let packets = self.tracks.values_mut().flat_map(|track| &mut track.packets);
        packets.for_each(|packet| packet.suspect = true);
    }

    fn begin(&mut self, event: &Event, kept: &[u8]) {
        if self.packets >= MAX_PACKETS {
            self.refused.torn_pkts += 1;
            return;
        }
        let suspect = self.turn <= self.suspect_until_turn;
        let track = self.tracks.entry(event.buffer).or_default();
        if track.packets.back().is_some_and(|last| last.end.is_none()) {
            // Its end was lost: the buffer has another packet now.
            let last = track.packets.pop_back();
            self.packets -= 1;
            self.traced -= last.map_or(0, |last| usize::from(last.is_traced()));
            self.refused.torn_pkts += 1;
        }
        let packet = Packet { begin: *event, first: kept.into(), end: None, suspect };
        self.packets += 1;
        self.traced += usize::from(packet.is_traced());
        track.packets.push_back(packet);
    }

    fn end(&mut self, event: &Event, kept: &[u8]) {
        let track = self.tracks.get_mut(&event.buffer);
        let last = track.and_then(|track| track.packets.back_mut());
        match last.filter(|last| last.end.is_none()) {
            Some(packet) => packet.end = Some((*event, kept.into(), self.turn)),
            None => self.refused.torn_pkts += 1,
        }
    }

    fn seen(&mut self, nf: NfNumber, event: &Event, kept: &[u8]) {
        let seen = Seen { nf, event: *event, kept: kept.into(), turn: self.turn };
        let cost_bytes = seen.cost_bytes();
        let of_nf = self.bytes_by_nf.entry(nf).or_default();
        let has_room =
            *of_nf + cost_bytes <= MAX_BYTES_AN_NF && self.bytes + cost_bytes <= MAX_BYTES;
        let track = match self.tracks.get_mut(&event.buffer) {
            Some(track) => track,
            // An NF may make up buffers.
            None if has_room => self.tracks.entry(event.buffer).or_default(),
            None => {
                self.refused.surplus_events += 1;
                return;
            }
        };
        if !has_room || track.seen.len() >= MAX_EVENTS_A_BUFFER {
            self.refused.surplus_events += 1;
            track.packets.iter_mut().for_each(|packet| packet.suspect = true);
            return;
        }
        *of_nf += cost_bytes;
        self.bytes += cost_bytes;
        track.seen.push(seen);
    }

    /// Ends a turn, in which the rings were read. Gives out the ways that are complete, in no order
    /// that means anything.
    pub fn end_turn(
        &mut self,
        emptied: Emptied,
        now_ns: u64,
        directory: &Directory,
        done: &mut dyn FnMut(Journey),
    ) {
        let turn = self.turn;
        self.turn += 1;
        let mut tracks = std::mem::take(&mut self.tracks);
        tracks.retain(|_, track| {
            while let Some(packet) = self.next_ready(track, turn, emptied, now_ns) {
                let seen = take_spanned(&mut track.seen, &packet);
                seen.iter().for_each(|seen| self.release(seen));
                let (journey, strange) = walk::walk(&packet, seen, directory);
                self.refused.strange_events += strange;
                done(journey);
            }
            if emptied.workers {
                // Its packet, had it one, would be here by now.
                let mut refused = 0;
                track.seen.retain(|seen| {
                    let time_ns = seen.event.time_ns;
                    let fits = seen.turn >= turn || track.packets.iter().any(|p| p.spans(time_ns));
                    if !fits {
                        refused += 1;
                        self.release(seen);
                    }
                    fits
                });
                self.refused.strange_events += refused;
            }
            !track.packets.is_empty() || !track.seen.is_empty()
        });
        if tracks.is_empty() {
            // The room that a flood took is given back.
            tracks.shrink_to(1024);
            self.bytes_by_nf.clear();
        }
        self.tracks = tracks;
    }

    /// The packet of a buffer whose way can be told now: its end was read in an earlier turn, and all rings
    /// of NFs have been empty since; or nobody waits for it any longer.
    fn next_ready(
        &mut self,
        track: &mut Track,
        turn: u64,
        emptied: Emptied,
        now_ns: u64,
    ) -> Option<Packet> {
        let first = track.packets.front()?;
        let ready = match &first.end {
            Some((.., read)) => emptied.nfs && *read < turn,
            None => now_ns.saturating_sub(first.begin.time_ns) > PATIENCE_NS,
        };
        if !ready {
            return None;
        }
        let first = track.packets.pop_front()?;
        self.packets -= 1;
        self.traced -= usize::from(first.is_traced());
        Some(first)
    }

    fn release(&mut self, seen: &Seen) {
        self.bytes -= seen.cost_bytes();
        if let Some(bytes) = self.bytes_by_nf.get_mut(&seen.nf) {
            *bytes -= seen.cost_bytes();
        }
    }

    /// Packets marked for a trace that are still inside, as far as they have come.
    pub fn inside(&self, slot: u16, directory: &Directory, each: &mut dyn FnMut(Journey)) {
        for track in self.tracks.values() {
            let Some(packet) = track.packets.back().filter(|packet| packet.end.is_none()) else {
                continue;
            };
            if packet.begin.peer == slot {
                let spanned = track.seen.iter().filter(|seen| packet.spans(seen.event.time_ns));
                each(walk::walk(packet, spanned.cloned().collect(), directory).0);
            }
        }
    }

    /// Forgets the packets of a trace.
    pub fn forget(&mut self, slot: u16) {
        debug_assert_ne!(slot, NOBODY, "samples belong to no trace");
        for track in self.tracks.values_mut() {
            let before = track.packets.len();
            track.packets.retain(|packet| packet.begin.peer != slot);
            self.packets -= before - track.packets.len();
            self.traced -= before - track.packets.len();
        }
    }
}

/// Takes out the events that can be of a packet, in the order in which they were read.
fn take_spanned(seen: &mut Vec<Seen>, packet: &Packet) -> Vec<Seen> {
    let all = std::mem::take(seen);
    let (spanned, rest) = all.into_iter().partition(|seen| packet.spans(seen.event.time_ns));
    *seen = rest;
    spanned
}
