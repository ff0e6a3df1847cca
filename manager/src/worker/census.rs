//! Where every buffer of a worker's share is, between two turns.
//!
//! Everybody who has buffers says which: the free list, the ownership table, the queues, and what waits
//! for a change of plan or for an NF. Whom nobody names is lost, and whom two name is a defect; both are what the
//! books could not tell from numbers alone.
#![forbid(unsafe_code)]

use nflib::control::BufferUse;

use super::*;

/// Where one buffer is, as far as the worker knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Whereabouts {
    /// Nobody says that it has it.
    #[default]
    Unknown,
    /// It is free.
    Free,
    /// An NF has it, or some NF of the trusted domain.
    Nf(Holder, Passage),
    /// It waits for a change of plan, or for an NF.
    Parked,
    /// A port has it.
    Port(PortId, BufferUse),
}

/// Where the buffers of one worker's share are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// The first buffer of the share.
    pub first: BufferIndex,
    /// Each buffer's place, from the first on.
    pub places: Vec<Whereabouts>,
    /// Buffers that two have.
    pub twice: u64,
    /// Buffers that a driver's own list says are free, where it does not say which.
    pub free_unnamed: u64,
    /// A port's driver does not say which buffers it has: those unknown are free or with it.
    pub untold_by: Option<PortId>,
}

impl Census {
    fn note(&mut self, buffer: BufferIndex, place: Whereabouts) {
        match self.places.get_mut(buffer.wrapping_sub(self.first) as usize) {
            Some(known) if *known == Whereabouts::Unknown => *known = place,
            _ => self.twice += 1,
        }
    }
}

impl Worker {
    /// Asks everybody for his buffers. Takes as long as it takes to look at each once.
    #[must_use]
    pub fn census(&self) -> Census {
        let places = vec![Whereabouts::Unknown; self.pool.count() as usize];
        let mut census = Census { first: self.pool.first(), places, ..Census::default() };
        match self.pool.list_free() {
            Some(free) => free.iter().for_each(|free| census.note(*free, Whereabouts::Free)),
            None => census.free_unnamed = self.pool.free_buffers() as u64,
        }
        for (buffer, holder, passage) in self.owners.held() {
            census.note(buffer, Whereabouts::Nf(holder, passage));
        }
        let parked = self.transition.iter().flat_map(Transition::parked_buffers);
        for buffer in parked.chain(self.waiting.buffers()) {
            census.note(buffer, Whereabouts::Parked);
        }
        for (port, number) in self.ports.iter().zip(0..) {
            for queue in &port.queues {
                if queue.held_buffers().is_none() {
                    census.untold_by = Some(number);
                }
                let note = &mut |buffer, used| census.note(buffer, Whereabouts::Port(number, used));
                queue.tell_buffers(note);
            }
        }
        census
    }

    /// Buffers with ports; `None` when a driver does not say.
    #[must_use]
    pub fn held_by_ports(&self) -> Option<usize> {
        self.ports.iter().flat_map(|port| &port.queues).map(|queue| queue.held_buffers()).sum()
    }
}
