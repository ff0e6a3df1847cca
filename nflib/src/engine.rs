//! One NF and its packets, without a transport: arrivals in, departures out.
//!
//! The run loop drives it from rings, the test bench from plain frames; both see the same code.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::burst::{Burst, MAX_BURST_PKTS};
use crate::context::{Context, Departure, HoldTable};
use crate::control::SendRefusal;
use crate::descriptor::Delivery;
use crate::message::{MessageToken, Outbox};
use crate::nf::{Action, NetworkFunction, NfError, Setup};
use crate::packet::Slot;
use crate::shm::{BufferIndex, PacketMemory, Region};

pub(crate) struct Engine<N> {
    nf: N,
    memory: PacketMemory,
    setup: Setup,
    hold: HoldTable,
    slots: Vec<Option<Slot>>,
    /// Decided packets, oldest first; the transport drains it.
    pub(crate) out: Vec<Departure>,
    /// Numbers packets, over all attachments of an NF, so that ids are never used again.
    pub(crate) next_arrival: u64,
    next_tick_ns: Option<u64>,
    /// Packets that should have been held and were dropped because the table was full.
    pub(crate) hold_overflow_pkts: u64,
    /// Descriptors that named a range outside a buffer, or a buffer this NF holds already.
    pub(crate) refused_pkts: u64,
    /// The NF asked to end.
    pub(crate) stop: bool,
    /// Messages to other NFs; the transport takes them out.
    pub(crate) outbox: Outbox,
}

impl<N: NetworkFunction> Engine<N> {
    /// Sets the NF up. `first_arrival` is the number of the first packet, not 0.
    pub(crate) fn new(
        mut nf: N,
        region: Arc<Region>,
        setup: Setup,
        first_arrival: u64,
        now_ns: u64,
    ) -> Result<Self, NfError> {
        nf.setup(&setup)?;
        let hold = HoldTable::new(region.geometry().buffers, setup.hold_limit_pkts);
        let mut engine = Self {
            nf,
            memory: PacketMemory::new(region),
            setup,
            hold,
            slots: Vec::with_capacity(MAX_BURST_PKTS),
            out: Vec::with_capacity(2 * MAX_BURST_PKTS),
            next_arrival: first_arrival,
            next_tick_ns: None,
            hold_overflow_pkts: 0,
            refused_pkts: 0,
            stop: false,
            outbox: Outbox::default(),
        };
        engine.plan_tick(now_ns);
        Ok(engine)
    }

    /// Packets held now.
    pub(crate) fn held_pkts(&self) -> usize {
        self.hold.len()
    }

    /// The arrival number given last.
    pub(crate) fn newest_arrival(&self) -> u64 {
        self.next_arrival - 1
    }

    /// When the next tick is due.
    pub(crate) fn next_tick_ns(&self) -> Option<u64> {
        self.next_tick_ns
    }

    /// The bytes of a departing packet.
    pub(crate) fn bytes<'a>(&'a self, slot: &'a Slot) -> &'a [u8] {
        slot.bytes(&self.memory)
    }

    /// Gives a burst to the NF; what it decides is in `out`.
    #[inline]
    pub(crate) fn run_burst(&mut self, arrivals: &[Delivery], now_ns: u64) {
        for &arrival in arrivals {
            if self.admit(arrival) && arrival.is_loan() {
                self.fill(now_ns);
            }
        }
        let mut slots = std::mem::take(&mut self.slots);
        let (nf, mut ctx) = self.nf_in_context(now_ns);
        nf.process_burst(&mut Burst::new(ctx.memory, &mut slots), &mut ctx);
        for undecided in slots.drain(..).flatten() {
            ctx.depart(undecided, Action::Next);
        }
        self.slots = slots;
    }

    /// The NF, and what it can ask and do while it is called.
    #[inline]
    fn nf_in_context(&mut self, now_ns: u64) -> (&mut N, Context<'_>) {
        let Self { nf, memory, setup, hold, out, hold_overflow_pkts, stop, outbox, .. } = self;
        let memory = &*memory;
        let ctx = Context { memory, setup, now_ns, hold, out, hold_overflow_pkts, stop, outbox };
        (nf, ctx)
    }

    /// Gives a message to the NF; returns its answer. What it lets go is in `out`.
    pub(crate) fn message(
        &mut self,
        from: Option<u32>,
        payload: &[u8],
        now_ns: u64,
    ) -> Result<Vec<u8>, String> {
        let (nf, mut ctx) = self.nf_in_context(now_ns);
        nf.message(from, payload, &mut ctx)
    }

    /// Tells the NF what became of a message it sent. What it lets go is in `out`.
    pub(crate) fn sent(
        &mut self,
        token: MessageToken,
        result: Result<u32, SendRefusal>,
        now_ns: u64,
    ) {
        let (nf, mut ctx) = self.nf_in_context(now_ns);
        nf.sent(token, result, &mut ctx);
    }

    /// Gives the loan that was just admitted to the NF.
    #[cold]
    fn fill(&mut self, now_ns: u64) {
        let Some(mut slot) = self.slots.pop().flatten() else { return };
        let (nf, mut ctx) = self.nf_in_context(now_ns);
        let action = nf.fill(&mut slot.view(ctx.memory), &mut ctx);
        ctx.depart(slot, action);
    }

    /// Tells the NF that it leaves. What it lets go is in `out`.
    pub(crate) fn leaving(&mut self, now_ns: u64) {
        let (nf, mut ctx) = self.nf_in_context(now_ns);
        nf.leaving(&mut ctx);
    }

    /// Takes the hold of an arrival's buffer. A descriptor that is nonsense costs nobody anything
    /// but itself: its buffer, if it names one, goes back as dropped and empty. Returns whether the
    /// packet is in.
    #[inline]
    fn admit(&mut self, arrival: Delivery) -> bool {
        let Delivery { buffer, offset_bytes, len_bytes, flow_hash, route, port, hop } = arrival;
        let slot = |lease, offset, len, arrival| Slot {
            lease,
            offset,
            len,
            port,
            route,
            hop,
            flow_hash,
            arrival,
        };
        if self.hold.holds(buffer) {
            self.refused_pkts += 1;
            false
        } else if let Some(lease) = self.memory.lease(buffer, offset_bytes, len_bytes) {
            self.slots.push(Some(slot(lease, offset_bytes, len_bytes, self.next_arrival)));
            self.next_arrival += 1;
            true
        } else {
            self.refused_pkts += 1;
            if let Some(lease) = self.memory.lease(buffer, 0, 0) {
                let slot = slot(lease, 0, 0, self.next_arrival);
                self.next_arrival += 1;
                self.out.push(Departure { slot, action: Action::Drop });
            }
            false
        }
    }

    /// Ticks once if a tick is due. Returns whether it was.
    pub(crate) fn tick_if_due(&mut self, now_ns: u64) -> bool {
        if self.next_tick_ns.is_none_or(|due_ns| now_ns < due_ns) {
            return false;
        }
        let (nf, mut ctx) = self.nf_in_context(now_ns);
        nf.tick(&mut ctx);
        self.plan_tick(now_ns);
        true
    }

    fn plan_tick(&mut self, now_ns: u64) {
        self.next_tick_ns = self.nf.tick_interval().map(|interval| {
            // At least a microsecond, so that ticks cannot keep packets out.
            let interval_ns = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX).max(1_000);
            now_ns.saturating_add(interval_ns)
        });
    }

    /// The buffers of the packets that the NF began to hold since the last call, and still holds.
    #[inline]
    pub(crate) fn take_newly_held(&mut self) -> impl Iterator<Item = BufferIndex> {
        self.hold.take_newly_held()
    }

    /// Takes every held packet from the NF; they are in `out`, dropped.
    pub(crate) fn drop_held(&mut self) {
        for slot in self.hold.drain() {
            self.out.push(Departure { slot, action: Action::Drop });
        }
    }

    /// The NF.
    pub(crate) fn nf_mut(&mut self) -> &mut N {
        &mut self.nf
    }

    pub(crate) fn nf(&self) -> &N {
        &self.nf
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::PacketId;
    use crate::shm::{BufferIndex, HugePages, RegionGeometry};
    use crate::{Context, Packet};

    struct HoldAll;

    impl NetworkFunction for HoldAll {
        fn process(&mut self, _: &mut Packet<'_>, _: &mut Context<'_>) -> Action {
            Action::Hold
        }
    }

    fn engine() -> Engine<HoldAll> {
        let region = RegionGeometry { buffers: 8, stride_bytes: 2048, headroom_bytes: 256 };
        let setup =
            Setup { service: 1, instance: 1, region, hold_limit_pkts: 8, jump_services: vec![] };
        let region = Arc::new(Region::create(region, HugePages::Off).unwrap());
        Engine::new(HoldAll, region, setup, 1, 0).unwrap()
    }

    fn arrival(buffer: BufferIndex, offset_bytes: u16, len_bytes: u16) -> Delivery {
        Delivery { buffer, offset_bytes, len_bytes, ..Delivery::default() }
    }

    #[test]
    fn a_descriptor_outside_its_buffer_gives_the_buffer_back_as_an_empty_drop() {
        let mut engine = engine();
        engine.run_burst(&[arrival(3, 2000, 100)], 0);
        let departure = engine.out.pop().unwrap();
        assert_eq!(departure.action, Action::Drop);
        assert_eq!((departure.slot.lease.buffer(), departure.slot.len), (3, 0));
        assert_eq!((engine.refused_pkts, engine.held_pkts()), (1, 0));
    }

    #[test]
    fn a_descriptor_of_no_buffer_is_refused() {
        let mut engine = engine();
        engine.run_burst(&[arrival(8, 256, 60), arrival(u32::MAX, 256, 60)], 0);
        assert!(engine.out.is_empty());
        assert_eq!((engine.refused_pkts, engine.held_pkts()), (2, 0));
    }

    #[test]
    fn a_descriptor_of_a_buffer_that_is_held_here_is_refused() {
        let mut engine = engine();
        engine.run_burst(&[arrival(5, 256, 60)], 0);
        engine.run_burst(&[arrival(5, 256, 70)], 0);
        assert!(engine.out.is_empty());
        assert_eq!((engine.refused_pkts, engine.held_pkts()), (1, 1));
    }

    #[test]
    fn the_id_of_a_released_packet_does_not_name_the_next_one_in_its_buffer() {
        let mut engine = engine();
        engine.run_burst(&[arrival(5, 256, 60)], 0);
        let first = PacketId { arrival: 1, buffer: 5 };
        let mut table = std::mem::replace(&mut engine.hold, HoldTable::new(8, 8));
        assert!(table.remove(first).is_ok());
        engine.hold = table;
        engine.run_burst(&[arrival(5, 256, 60)], 0);
        assert!(engine.hold.remove(first).is_err());
        assert!(engine.hold.remove(PacketId { arrival: 2, buffer: 5 }).is_ok());
    }
}
