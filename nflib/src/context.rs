//! What an NF can ask and do while it works: the time, the packets it holds, messages.
#![forbid(unsafe_code)]

use thiserror::Error;

use crate::control::Target;
use crate::message::{MessageToken, Outbox, SendError};
use crate::nf::{Action, Setup};
use crate::packet::{Packet, PacketId, Slot};
use crate::shm::{BufferIndex, PacketMemory};

/// Why a held packet could not be released or looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HoldError {
    /// It is not held: never was, was released already, or is still in [`Packet`] form because
    /// `process` has not returned [`Action::Hold`] for it yet.
    #[error("packet {0} is not held: it was released already, or Action::Hold was not returned")]
    NotHeld(PacketId),
}

/// A packet on its way out of the NF, apart from its burst.
#[derive(Debug)]
pub(crate) struct Departure {
    pub(crate) slot: Slot,
    pub(crate) action: Action,
}

/// Empty buffers that were lent to be used at any time, as part of those held.
#[derive(Debug, Default)]
struct Stock {
    /// The last to come is the first to be used: it is the likeliest to be in a cache.
    ids: Vec<PacketId>,
    limit_pkts: usize,
    /// Buffers that are not in stock any more, whose like is to be asked for.
    used: Vec<BufferIndex>,
    /// Times that nothing was there.
    empty: u64,
}

/// The packets an NF holds: a bounded table, found by buffer number.
#[derive(Debug)]
pub(crate) struct HoldTable {
    /// For each buffer of the region: position in `held` plus 1, or 0. Private pages of zeroes cost
    /// nothing until they are used.
    position: Vec<u32>,
    held: Vec<Slot>,
    limit_pkts: usize,
    stock: Stock,
    /// Buffers of packets held since this was last emptied; some may be released again.
    newly_held: Vec<BufferIndex>,
}

impl HoldTable {
    /// Of so many buffers, `limit_pkts` may be held, and `stock_pkts` be in stock besides.
    pub(crate) fn new(buffers: u32, limit_pkts: usize, stock_pkts: usize) -> Self {
        let limit_pkts = limit_pkts.min(buffers as usize);
        let stock_pkts = stock_pkts.min(buffers as usize - limit_pkts);
        let stock = Stock { limit_pkts: stock_pkts, ..Stock::default() };
        Self {
            position: vec![0; buffers as usize],
            held: Vec::with_capacity(limit_pkts + stock_pkts),
            limit_pkts,
            stock,
            newly_held: Vec::new(),
        }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// Those held since the last [`take_newly_held`](Self::take_newly_held), with those released since.
    pub(crate) fn newly_held(&self) -> &[BufferIndex] {
        &self.newly_held
    }

    /// True when some were held since the last [`take_newly_held`](Self::take_newly_held).
    #[inline]
    pub(crate) fn has_newly_held(&self) -> bool {
        !self.newly_held.is_empty()
    }

    /// True when a packet in this buffer is held: then no descriptor can rightly name it.
    #[inline]
    pub(crate) fn holds(&self, buffer: BufferIndex) -> bool {
        !self.held.is_empty() && self.position.get(buffer as usize).is_some_and(|&p| p != 0)
    }

    /// How many of the held are in stock.
    #[inline]
    pub(crate) fn stock_pkts(&self) -> usize {
        self.stock.ids.len()
    }

    /// Whether there is a stock, with or without anything in it.
    #[inline]
    pub(crate) fn has_stock(&self) -> bool {
        self.stock.limit_pkts > 0
    }

    fn room(&self) -> usize {
        self.limit_pkts.saturating_sub(self.held.len() - self.stock.ids.len())
    }

    /// Takes a loan into stock, or gives it back when there is no room.
    pub(crate) fn put_in_stock(&mut self, slot: Slot) -> Result<(), Slot> {
        if self.stock.ids.len() == self.stock.limit_pkts {
            return Err(slot);
        }
        self.stock.ids.push(slot.id());
        self.put(slot);
        Ok(())
    }

    /// A buffer out of stock: from now on it is held like any packet.
    fn take_from_stock(&mut self) -> Option<PacketId> {
        let id = self.stock.ids.pop();
        match id {
            Some(id) => self.stock.used.push(id.buffer),
            None => self.stock.empty += 1,
        }
        id
    }

    /// Takes out all that is in stock; as much is to be asked for again.
    pub(crate) fn empty_stock(&mut self) -> Vec<Slot> {
        let ids = std::mem::take(&mut self.stock.ids);
        self.stock.used.extend(ids.iter().map(|id| id.buffer));
        ids.into_iter().filter_map(|id| self.remove(id).ok()).collect()
    }

    /// Nothing comes into stock any more.
    pub(crate) fn close_stock(&mut self) {
        self.stock.limit_pkts = 0;
    }

    /// Notes that a buffer that was lent for the stock is not in it.
    pub(crate) fn note_used(&mut self, buffer: BufferIndex) {
        self.stock.used.push(buffer);
    }

    /// Buffers whose like is to be asked for, since the last call.
    #[inline]
    pub(crate) fn used_stock(&mut self) -> &mut Vec<BufferIndex> {
        &mut self.stock.used
    }

    fn find(&self, id: PacketId) -> Result<usize, HoldError> {
        let not_held = HoldError::NotHeld(id);
        let position = *self.position.get(id.buffer as usize).ok_or(not_held)?;
        let at = (position as usize).checked_sub(1).ok_or(not_held)?;
        // A later packet may lie in the same buffer; its arrival number differs.
        if self.held.get(at).ok_or(not_held)?.id() == id { Ok(at) } else { Err(not_held) }
    }

    /// Gives the slot back when there is no room.
    fn insert(&mut self, slot: Slot) -> Result<(), Slot> {
        if self.room() == 0 {
            return Err(slot);
        }
        self.put(slot);
        Ok(())
    }

    fn put(&mut self, slot: Slot) {
        let buffer = slot.lease.buffer();
        self.held.push(slot);
        // `held.len() ≤ buffers ≤ u32::MAX`.
        self.position[buffer as usize] = self.held.len() as u32;
        self.newly_held.push(buffer);
    }

    pub(crate) fn remove(&mut self, id: PacketId) -> Result<Slot, HoldError> {
        let at = self.find(id)?;
        let slot = self.held.swap_remove(at);
        self.position[id.buffer as usize] = 0;
        if let Some(moved) = self.held.get(at) {
            self.position[moved.lease.buffer() as usize] = at as u32 + 1;
        }
        Ok(slot)
    }

    /// The buffers of the packets that were held since the last call and still are.
    pub(crate) fn take_newly_held(&mut self) -> impl Iterator<Item = BufferIndex> {
        let Self { position, newly_held, .. } = self;
        let position = &*position;
        newly_held.drain(..).filter(|&buffer| position[buffer as usize] != 0)
    }

    /// Takes every held packet out, in the order of arrival.
    pub(crate) fn drain(&mut self) -> Vec<Slot> {
        let mut all = std::mem::take(&mut self.held);
        self.stock.ids.clear();
        for slot in &all {
            self.position[slot.lease.buffer() as usize] = 0;
        }
        all.sort_unstable_by_key(|slot| slot.arrival);
        all
    }
}

/// What an NF can ask and do during `process_burst`, `process`, `tick`, `message` and `sent`.
pub struct Context<'a> {
    pub(crate) memory: &'a PacketMemory,
    pub(crate) setup: &'a Setup,
    pub(crate) now_ns: u64,
    pub(crate) hold: &'a mut HoldTable,
    pub(crate) out: &'a mut Vec<Departure>,
    pub(crate) hold_overflow_pkts: &'a mut u64,
    pub(crate) stop: &'a mut bool,
    pub(crate) outbox: &'a mut Outbox,
}

impl Context<'_> {
    /// The time in nanoseconds of the monotonic clock, read once before this burst or tick; for an NF whose packets
    /// cost next to nothing, once for some bursts, some microseconds before.
    #[must_use]
    #[inline]
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// What the NF was told at `setup`.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        self.setup
    }

    /// Sends a held packet on its way, exactly once. It leaves before the packets that are decided
    /// after this call. [`Action::Hold`] keeps it held.
    ///
    /// # Errors
    /// [`HoldError::NotHeld`] when the packet is not held (any more); nothing happens.
    pub fn release(&mut self, id: PacketId, action: Action) -> Result<(), HoldError> {
        if action == Action::Hold {
            return self.hold.find(id).map(|_| ());
        }
        let slot = self.hold.remove(id)?;
        self.out.push(Departure { slot, action });
        Ok(())
    }

    /// A held packet, to read or change.
    ///
    /// # Errors
    /// [`HoldError::NotHeld`]
    pub fn held(&mut self, id: PacketId) -> Result<Packet<'_>, HoldError> {
        let at = self.hold.find(id)?;
        Ok(self.hold.held[at].view(self.memory))
    }

    /// The bytes of a held packet, to read; several can be read at once.
    ///
    /// # Errors
    /// [`HoldError::NotHeld`]
    pub fn held_bytes(&self, id: PacketId) -> Result<&[u8], HoldError> {
        Ok(self.hold.held[self.hold.find(id)?].bytes(self.memory))
    }

    /// An empty packet out of stock ([`stock_pkts`](crate::NetworkFunction::stock_pkts)), to be made into
    /// one of the NF's own: held, behind the headroom, without any byte, at this NF on the first chain
    /// that has its service. [`held`](Self::held) gives it to be written, [`release`](Self::release)
    /// sends it. `None` when the stock is empty; that is counted
    /// ([`stock_was_empty`](Self::stock_was_empty)).
    ///
    /// When chains change, what is in stock is exchanged for what fits the new ones; a packet that was
    /// taken and not released makes that change wait for it, like any held packet.
    pub fn new_packet(&mut self) -> Option<PacketId> {
        let id = self.hold.take_from_stock()?;
        let at = self.hold.find(id).ok()?;
        // What it was lent by said when, and its packets shall not all go the same way.
        let spread = id.buffer.wrapping_mul(0x9e37_79b1);
        self.hold.held[at].lease.set_flow_hash(spread);
        Some(id)
    }

    /// Packets that could not be made since the NF was attached, for want of an empty buffer.
    #[must_use]
    pub fn stock_was_empty(&self) -> u64 {
        self.hold.stock.empty
    }

    /// How many packets are held, without the stock.
    #[must_use]
    pub fn held_pkts(&self) -> usize {
        self.hold.len() - self.hold.stock_pkts()
    }

    /// How many more packets may be held. At 0, [`Action::Hold`] drops the packet.
    #[must_use]
    pub fn hold_room(&self) -> usize {
        self.hold.room()
    }

    /// Sends a message to one NF, or to each instance of a service, by way of the manager. What became
    /// of it is told by [`NetworkFunction::sent`](crate::NetworkFunction::sent).
    ///
    /// # Errors
    /// [`SendError`]; the message is not sent.
    pub fn send(&mut self, target: Target, payload: &[u8]) -> Result<MessageToken, SendError> {
        self.outbox.put(target, payload)
    }

    /// Asks the program to end as if it had got SIGTERM, after this burst or tick.
    pub fn request_stop(&mut self) {
        *self.stop = true;
    }

    /// Keeps a packet, or gives it back, counted, when there is no room: it is to be dropped.
    pub(crate) fn hold(&mut self, slot: Slot) -> Result<(), Slot> {
        self.hold.insert(slot).inspect_err(|_| *self.hold_overflow_pkts += 1)
    }

    /// Carries out an action.
    pub(crate) fn depart(&mut self, slot: Slot, action: Action) {
        let (slot, action) = match action {
            Action::Hold => match self.hold(slot) {
                Ok(()) => return,
                Err(slot) => (slot, Action::Drop),
            },
            other => (slot, other),
        };
        self.out.push(Departure { slot, action });
    }
}
