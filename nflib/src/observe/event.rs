//! One look at one packet.
#![forbid(unsafe_code)]

use crate::descriptor::{PortId, RouteId};
use crate::shm::BufferIndex;

/// Stands in [`Event::peer`] and [`Event::target`] for: no NF, or the manager.
pub const NOBODY: u16 = u16::MAX;

/// Where a packet was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EventKind {
    /// A port received it: `target` is the port. A worker writes this.
    #[default]
    PortIn = 1,
    /// A port took it to send it: `target` is the port. A worker writes this.
    PortOut = 2,
    /// An NF took it from a ring: `peer` is the NF that had pushed it there, or [`NOBODY`]: a worker.
    /// The NF writes this.
    NfIn = 3,
    /// An NF decided about it: `code` is the [`ActionCode`](crate::descriptor::ActionCode), `target` what
    /// the action names. The NF writes this before it passes the packet on.
    NfOut = 4,
    /// An NF keeps it for now. The NF writes this.
    NfHold = 5,
    /// It was dropped: `code` is the number of the reason, `target` the service's place among the
    /// workers' counters, or [`NOBODY`] between ports. A worker writes this.
    Drop = 6,
}

impl EventKind {
    /// The kind behind a code read from another process.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        const ALL: [EventKind; 6] = [
            EventKind::PortIn,
            EventKind::PortOut,
            EventKind::NfIn,
            EventKind::NfOut,
            EventKind::NfHold,
            EventKind::Drop,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == code)
    }
}

/// One look at one packet; the bytes kept of it, if any, follow it on the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// When, nanoseconds of CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// The packet's buffer.
    pub buffer: BufferIndex,
    /// Its flow hash.
    pub flow_hash: u32,
    /// The taps that took it, a bit each.
    pub taps: u32,
    /// Where the packet starts in its buffer, bytes.
    pub offset_bytes: u16,
    /// The packet's length, bytes.
    pub len_bytes: u16,
    /// How many of its first bytes were kept.
    pub kept_bytes: u16,
    /// The route it travels; meaningless where `hop` is [`Event::NO_HOP`].
    pub route: RouteId,
    /// Its position in the route, or [`Event::NO_HOP`].
    pub hop: u8,
    /// The port it came in by, or [`NO_PORT`](crate::descriptor::NO_PORT).
    pub ingress: PortId,
    /// Where it was seen.
    pub kind: EventKind,
    /// As [`EventKind`] says.
    pub code: u8,
    /// As [`EventKind`] says.
    pub target: u16,
    /// As [`EventKind`] says.
    pub peer: u16,
    /// It is marked.
    pub marked: bool,
}

impl Event {
    /// The hop of a packet that is on no route (yet).
    pub const NO_HOP: u8 = u8::MAX;
    /// Words of an event on a ring.
    pub const WORDS: usize = 5;

    /// As it lies on a ring, five words, little endian.
    ///
    /// ```text
    ///     63            48 47            32 31            16 15             0
    /// w0 │ time_ns                                                          │
    /// w1 │ flow_hash                       │ buffer                         │
    /// w2 │ kept_bytes     │ len_bytes      │ offset_bytes   │ route          │
    /// w3 │ code  │ kind   │ ingress │ hop  │ target         │ peer           │
    /// w4 │ marked (bit 63)                 │ taps                           │
    /// ```
    #[must_use]
    pub fn to_words(self) -> [u64; Self::WORDS] {
        let Self { route, offset_bytes, len_bytes, kept_bytes, .. } = self;
        let halves = |low: u16, second: u16, third: u16, high: u16| {
            u64::from(low)
                | u64::from(second) << 16
                | u64::from(third) << 32
                | u64::from(high) << 48
        };
        let place = u16::from_le_bytes([self.hop, self.ingress]);
        let what = u16::from_le_bytes([self.kind as u8, self.code]);
        [
            self.time_ns,
            u64::from(self.buffer) | u64::from(self.flow_hash) << 32,
            halves(route, offset_bytes, len_bytes, kept_bytes),
            halves(self.peer, self.target, place, what),
            u64::from(self.taps) | u64::from(self.marked) << 63,
        ]
    }

    /// The event that another process wrote; `None` when it is none. Everything in it is that process's
    /// word.
    #[must_use]
    pub fn from_words(words: [u64; Self::WORDS]) -> Option<Self> {
        let half = |word: u64, at: u32| (word >> (16 * at)) as u16;
        let [hop, ingress] = half(words[3], 2).to_le_bytes();
        let [kind, code] = half(words[3], 3).to_le_bytes();
        Some(Self {
            time_ns: words[0],
            buffer: words[1] as u32,
            flow_hash: (words[1] >> 32) as u32,
            route: half(words[2], 0),
            offset_bytes: half(words[2], 1),
            len_bytes: half(words[2], 2),
            kept_bytes: half(words[2], 3),
            peer: half(words[3], 0),
            target: half(words[3], 1),
            hop,
            ingress,
            kind: EventKind::from_code(kind)?,
            code,
            taps: words[4] as u32,
            marked: words[4] >> 63 == 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event() -> impl Strategy<Value = Event> {
        let kinds = (1u8..=6).prop_map(|code| EventKind::from_code(code).unwrap());
        let first = (any::<u64>(), any::<u32>(), any::<u32>(), any::<u32>(), any::<u16>());
        let then = (any::<u16>(), any::<u16>(), any::<u16>(), any::<u8>(), any::<u8>());
        let last = (kinds, any::<u8>(), any::<u16>(), any::<u16>(), any::<bool>());
        (first, then, last).prop_map(|(a, b, c)| Event {
            time_ns: a.0,
            buffer: a.1,
            flow_hash: a.2,
            taps: a.3,
            offset_bytes: a.4,
            len_bytes: b.0,
            kept_bytes: b.1,
            route: b.2,
            hop: b.3,
            ingress: b.4,
            kind: c.0,
            code: c.1,
            target: c.2,
            peer: c.3,
            marked: c.4,
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(event in event()) {
            prop_assert_eq!(Event::from_words(event.to_words()), Some(event));
        }

        #[test]
        fn any_words_are_an_event_or_none(words: [u64; Event::WORDS]) {
            let kind = (words[3] >> 48) as u8;
            prop_assert_eq!(Event::from_words(words).is_some(), (1..=6).contains(&kind));
        }
    }
}
