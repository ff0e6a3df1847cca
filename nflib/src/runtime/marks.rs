//! The hold map as the NF writes it: which of its packets lie in no ring.
#![forbid(unsafe_code)]

use crate::shm::{BufferIndex, Channel};

/// A bit for each buffer, where the manager finds it after a death.
pub(crate) trait HoldMap {
    /// Sets or clears the bit of a buffer.
    fn set_held(&self, buffer: BufferIndex, held: bool);
    /// Whether the bit of a buffer is set.
    fn is_held(&self, buffer: BufferIndex) -> bool;
}

impl HoldMap for std::sync::Arc<Channel> {
    fn set_held(&self, buffer: BufferIndex, held: bool) {
        Channel::set_held(self, buffer, held);
    }

    fn is_held(&self, buffer: BufferIndex) -> bool {
        Channel::is_held(self, buffer)
    }
}

/// The hold map, and how many of its bits are set: with none, no packet is looked up.
pub(crate) struct Marks<H> {
    map: H,
    set_bits: usize,
}

impl<H: HoldMap> Marks<H> {
    /// Over a map without any bit set.
    pub(crate) fn new(map: H) -> Self {
        Self { map, set_bits: 0 }
    }

    /// Sets the bit of a buffer if it is not set.
    pub(crate) fn set(&mut self, buffer: BufferIndex) {
        if !self.map.is_held(buffer) {
            self.map.set_held(buffer, true);
            self.set_bits += 1;
        }
    }

    /// Clears the bits of buffers that were pushed on.
    #[inline]
    pub(crate) fn clear(&mut self, pushed: impl Iterator<Item = BufferIndex>) {
        if self.set_bits == 0 {
            return;
        }
        for buffer in pushed {
            if self.map.is_held(buffer) {
                self.map.set_held(buffer, false);
                // The manager could clear bits of a live NF, and must not break it by that.
                self.set_bits = self.set_bits.saturating_sub(1);
            }
        }
    }
}
