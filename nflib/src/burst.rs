//! The packets taken at once.
#![forbid(unsafe_code)]

use crate::context::Context;
use crate::nf::Action;
use crate::packet::{Packet, Slot};
use crate::shm::PacketMemory;

/// The most packets in one burst.
pub const MAX_BURST_PKTS: usize = 64;

/// The packets taken at once, each either still here or decided.
pub struct Burst<'a> {
    memory: &'a PacketMemory,
    slots: &'a mut [Option<Slot>],
}

impl<'a> Burst<'a> {
    pub(crate) fn new(memory: &'a PacketMemory, slots: &'a mut [Option<Slot>]) -> Self {
        Self { memory, slots }
    }

    /// Packets the burst began with, at most [`MAX_BURST_PKTS`].
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// True for a burst of no packets.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The packet at a position, or `None` when it was decided, or never was.
    #[must_use]
    #[inline]
    pub fn packet(&mut self, at: usize) -> Option<Packet<'_>> {
        let memory = self.memory;
        self.slots.get_mut(at)?.as_mut().map(|slot| slot.view(memory))
    }

    /// Decides about the packet at a position; it leaves the burst. Returns false, and does
    /// nothing, when there is none. A packet can thus be decided once only.
    #[inline]
    pub fn decide(&mut self, at: usize, action: Action, ctx: &mut Context<'_>) -> bool {
        match self.slots.get_mut(at).and_then(Option::take) {
            Some(slot) => {
                ctx.depart(slot, action);
                true
            }
            None => false,
        }
    }
}
