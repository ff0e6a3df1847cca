//! A session's window: what became of each of its newest numbers, and copies of packets.
#![forbid(unsafe_code)]

/// What became of a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// From before the session's first packet: it may never have existed.
    #[default]
    Unknown,
    /// It exists and has not come.
    Missing,
    /// It came.
    Received,
    /// It was recovered.
    Recovered,
    /// It was recovered, and then it came.
    RecoveredLate,
    /// It was given up.
    Lost,
}

/// No block.
pub(super) const NO_BLOCK: u16 = u16::MAX;

/// A number's place in the window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// Where its copy lies, as [`Window::store`] said. Of a missing packet: since when it is, ns.
    pub position: u64,
    pub len_bytes: u16,
    /// The waiting block that it belongs to.
    pub block: u16,
    pub state: State,
    /// It is the first of a block that was counted.
    pub counted: bool,
    /// It is the first of a block of which all packets are here.
    pub whole: bool,
}

impl Slot {
    pub const fn new(state: State) -> Self {
        Self { position: 0, len_bytes: 0, block: NO_BLOCK, state, counted: false, whole: false }
    }

    /// A number that is known to exist since now.
    pub const fn missing(now_ns: u64) -> Self {
        Self { position: now_ns, ..Self::new(State::Missing) }
    }

    /// Since when it is known to be missing, if it is.
    pub const fn missing_since_ns(&self) -> u64 {
        self.position
    }

    /// Whether there is a copy of it, if it was not overwritten.
    pub fn is_here(&self) -> bool {
        matches!(self.state, State::Received | State::Recovered | State::RecoveredLate)
    }
}

/// The places of the newest numbers, and a ring of bytes for copies of packets, which overwrites the
/// oldest.
#[derive(Debug)]
pub(super) struct Window {
    slots: Vec<Slot>,
    bytes: Vec<u8>,
    /// Bytes written ever, with what was left out at the ring's end.
    written: u64,
}

impl Window {
    /// `pkts` is a power of two.
    pub fn new(pkts: usize, bytes: usize) -> Self {
        Self { slots: vec![Slot::new(State::Unknown); pkts], bytes: vec![0; bytes], written: 0 }
    }

    pub fn pkts(&self) -> u64 {
        self.slots.len() as u64
    }

    pub fn slot(&self, number: u64) -> &Slot {
        &self.slots[number as usize & (self.slots.len() - 1)]
    }

    pub fn slot_mut(&mut self, number: u64) -> &mut Slot {
        let mask = self.slots.len() - 1;
        &mut self.slots[number as usize & mask]
    }

    /// Sets all places to `state`, as new.
    pub fn reset(&mut self, state: State) {
        self.slots.fill(Slot::new(state));
    }

    /// Keeps a copy of `packet`, which is not longer than the ring, and says where.
    pub fn store(&mut self, packet: &[u8]) -> u64 {
        let size = self.bytes.len();
        let mut at = (self.written % size as u64) as usize;
        if at + packet.len() > size {
            self.written += (size - at) as u64;
            at = 0;
        }
        self.bytes[at..at + packet.len()].copy_from_slice(packet);
        let position = self.written;
        self.written += packet.len() as u64;
        position
    }

    /// The copy at `position`; `None` when it was overwritten.
    pub fn bytes(&self, position: u64, len_bytes: usize) -> Option<&[u8]> {
        let size = self.bytes.len();
        if self.written - position > size as u64 {
            return None;
        }
        self.bytes.get((position % size as u64) as usize..)?.get(..len_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_copy_is_whole_or_gone(
            lengths in proptest::collection::vec(0..40usize, 1..200), size in 40..300usize,
        ) {
            let mut window = Window::new(64, size);
            let mut copies = Vec::new();
            for (at, len) in lengths.into_iter().enumerate() {
                let packet = vec![at as u8; len];
                copies.push((window.store(&packet), packet));
                let mut room = size - 40.min(size);
                for (age, (position, packet)) in copies.iter().rev().enumerate() {
                    let found = window.bytes(*position, packet.len());
                    prop_assert!(found.is_none_or(|found| found == packet));
                    // The newest are there: at most one packet's room is lost at the ring's end.
                    room = room.saturating_sub(packet.len());
                    prop_assert!(found.is_some() || age > 0 && room == 0, "{} bytes", packet.len());
                }
            }
        }
    }
}
