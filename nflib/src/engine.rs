//! One NF and its packets, without a transport: arrivals in, departures out.
//!
//! The run loop drives it from rings, the test bench from plain frames; both see the same code.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::burst::{Burst, Decisions, MAX_BURST_PKTS, Run};
use crate::context::{Context, Departure, HoldTable};
use crate::control::SendRefusal;
use crate::descriptor::Delivery;
use crate::message::{MessageToken, Outbox};
use crate::nf::{Action, NetworkFunction, NfError, Setup};
use crate::packet::Slot;
use crate::shm::{BufferIndex, Lease, PacketMemory, Region, Survey, survey};

pub(crate) struct Engine<N> {
    nf: N,
    memory: PacketMemory,
    setup: Setup,
    hold: HoldTable,
    /// How often each worker has recalled what it lent for the stock.
    recalls: Vec<u32>,
    /// The burst: descriptors as they came, until they are leases.
    burst: Box<[Delivery; MAX_BURST_PKTS]>,
    decisions: Decisions,
    one_hop: bool,
    /// Number of the first packet of the burst.
    first_arrival: u64,
    /// Decided packets that are not in [`decided`](Self::decided) and leave after those, oldest first;
    /// the transport drains it.
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
        let (hold_pkts, stock_pkts) = (setup.hold_limit_pkts, nf.stock_pkts() as usize);
        let hold = HoldTable::new(region.geometry().buffers, hold_pkts, stock_pkts);
        let mut engine = Self {
            nf,
            memory: PacketMemory::new(region),
            setup,
            hold,
            recalls: Vec::new(),
            burst: Box::new([Delivery::default(); MAX_BURST_PKTS]),
            decisions: Decisions::new(),
            one_hop: false,
            first_arrival,
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

    /// Where the next burst is to be put, for [`run`](Self::run). Ends the burst before it.
    #[inline]
    pub(crate) fn room(&mut self) -> &mut [Delivery; MAX_BURST_PKTS] {
        self.decisions.clear();
        &mut self.burst
    }

    /// What was put there.
    pub(crate) fn arrivals(&self) -> &[Delivery; MAX_BURST_PKTS] {
        &self.burst
    }

    /// Gives a burst, the first `count` in the [`room`](Self::room), to the NF; what it decides is in
    /// [`decided`](Self::decided) and then in `out`.
    #[inline]
    pub(crate) fn run(&mut self, count: usize, now_ns: u64) {
        let count = self.admit(count, now_ns);
        let first_arrival = self.next_arrival;
        self.first_arrival = first_arrival;
        self.next_arrival += count as u64;
        let Self { nf, memory, setup, hold, out, .. } = self;
        let Self { hold_overflow_pkts, stop, outbox, burst, decisions, .. } = self;
        let memory = &*memory;
        let mut ctx =
            Context { memory, setup, now_ns, hold, out, hold_overflow_pkts, stop, outbox };
        let leases = Lease::all(&mut burst[..count]);
        let mut burst = Burst::new(memory, leases, decisions, first_arrival);
        nf.process_burst(&mut burst, &mut ctx);
        burst.conclude(&mut ctx);
    }

    /// Gives a copy of a burst to the NF.
    pub(crate) fn run_burst(&mut self, arrivals: &[Delivery], now_ns: u64) {
        self.room()[..arrivals.len()].copy_from_slice(arrivals);
        self.run(arrivals.len(), now_ns);
    }

    /// What was decided about the packets of the burst that still lie in it, and whether all of them
    /// were at one hop of one route. They leave in this order.
    #[inline]
    pub(crate) fn decided(&self) -> (&[Delivery], &[Run], bool) {
        (&*self.burst, self.decisions.runs(), self.one_hop)
    }

    /// All decided packets, one by one.
    pub(crate) fn take_departures(&mut self) -> Vec<Departure> {
        let leases = Lease::all(&mut self.burst[..]);
        let mut all = Vec::new();
        for &Run { action, start, end } in self.decisions.runs() {
            for (lease, at) in leases[start..end].iter_mut().zip(start..) {
                let slot = Slot { lease: lease.take(), arrival: self.first_arrival + at as u64 };
                all.push(Departure { slot, action });
            }
        }
        self.decisions.clear();
        all.append(&mut self.out);
        all
    }

    /// The decided packets have been seen to.
    #[inline]
    pub(crate) fn forget_decided(&mut self) {
        self.decisions.clear();
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

    /// Checks a burst before anything is done with it; returns how many packets are left in it.
    #[inline]
    fn admit(&mut self, count: usize, now_ns: u64) -> usize {
        let burst = &self.burst[..count];
        let Survey { in_order, one_hop } = survey(burst, self.memory.geometry());
        self.one_hop = one_hop;
        let is_held = |arrival: &Delivery| self.hold.holds(arrival.buffer);
        if in_order && (self.hold.len() == 0 || !burst.iter().any(is_held)) {
            count
        } else {
            self.admit_one_by_one(count, now_ns)
        }
    }

    /// A descriptor that is nonsense costs nobody anything but itself: its buffer, if it names one, goes
    /// back as dropped and empty. Loans are given to the NF at once.
    #[cold]
    fn admit_one_by_one(&mut self, count: usize, now_ns: u64) -> usize {
        let mut kept = 0;
        for at in 0..count {
            let arrival = self.burst[at];
            if self.hold.holds(arrival.buffer) {
                self.refused_pkts += 1;
            } else if let Some(lease) = self.memory.lease(arrival) {
                if arrival.is_loan() {
                    self.fill(lease, now_ns);
                } else {
                    self.burst[kept] = arrival;
                    kept += 1;
                }
            } else {
                self.refused_pkts += 1;
                let empty = Delivery { offset_bytes: 0, len_bytes: 0, ..arrival };
                if let Some(lease) = self.memory.lease(empty) {
                    let slot = self.arrived(lease);
                    self.out.push(Departure { slot, action: Action::Drop });
                }
            }
        }
        kept
    }

    /// Gives a loan to the NF, or puts it in stock.
    fn fill(&mut self, lease: Lease, now_ns: u64) {
        let mut slot = self.arrived(lease);
        if self.hold.has_stock() {
            return self.put_in_stock(slot);
        }
        let (nf, mut ctx) = self.nf_in_context(now_ns);
        let action = nf.fill(&mut slot.view(ctx.memory), &mut ctx);
        ctx.depart(slot, action);
    }

    /// A loan for the stock says by its flow hash how often its worker had recalled its loans before.
    fn put_in_stock(&mut self, slot: Slot) {
        let lent_after = slot.lease.descriptor().flow_hash;
        let is_stale = |recalls: &u32| lent_after.wrapping_sub(*recalls).cast_signed() < 0;
        let refused = match self.recalls.iter().any(is_stale) {
            true => {
                self.hold.note_used(slot.lease.buffer());
                Err(slot)
            }
            false => self.hold.put_in_stock(slot),
        };
        if let Err(slot) = refused {
            self.out.push(Departure { slot, action: Action::Drop });
        }
    }

    /// True when there is a stock, with or without anything in it.
    #[inline]
    pub(crate) fn has_stock(&self) -> bool {
        self.hold.has_stock()
    }

    /// Whether each worker has recalled its loans as often as it is known to.
    #[inline]
    pub(crate) fn knows_recalls(&self, recalls: impl Iterator<Item = u32>) -> bool {
        self.recalls.iter().copied().eq(recalls)
    }

    /// Notes how often each worker has recalled its loans, and lets what is in stock go, in `out`; returns
    /// whether there is anything.
    pub(crate) fn note_recalls(&mut self, recalls: impl Iterator<Item = u32>) -> bool {
        self.recalls.clear();
        self.recalls.extend(recalls);
        self.give_stock_back()
    }

    fn give_stock_back(&mut self) -> bool {
        let stock = self.hold.empty_stock();
        let is_any = !stock.is_empty();
        self.out.extend(stock.into_iter().map(|slot| Departure { slot, action: Action::Drop }));
        is_any
    }

    /// Buffers that have left the stock since this was last emptied: their like is to be asked for.
    #[inline]
    pub(crate) fn used_stock(&mut self) -> &mut Vec<BufferIndex> {
        self.hold.used_stock()
    }

    fn arrived(&mut self, lease: Lease) -> Slot {
        self.next_arrival += 1;
        Slot { lease, arrival: self.next_arrival - 1 }
    }

    /// Tells the NF that it leaves. What it lets go is in `out`.
    pub(crate) fn leaving(&mut self, now_ns: u64) {
        let (nf, mut ctx) = self.nf_in_context(now_ns);
        nf.leaving(&mut ctx);
        self.give_stock_back();
        self.hold.close_stock();
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

    /// True when the NF began to hold packets since [`take_newly_held`](Self::take_newly_held).
    #[inline]
    pub(crate) fn has_newly_held(&self) -> bool {
        self.hold.has_newly_held()
    }

    /// Buffers of packets that the NF began to hold since [`take_newly_held`](Self::take_newly_held), also of
    /// some that it has released since.
    pub(crate) fn newly_held(&self) -> &[BufferIndex] {
        self.hold.newly_held()
    }

    /// The buffers of the packets that the NF began to hold since the last call, and still holds.
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
    use proptest::prelude::*;

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
        let setup = Setup {
            service: 1,
            instance: 1,
            region,
            hold_limit_pkts: 8,
            jump_services: vec![],
            read_only: false,
            state: None,
        };
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
        assert_eq!(departure.slot.lease.descriptor().len_bytes, 0);
        assert_eq!(departure.slot.lease.buffer(), 3);
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
        let mut table = std::mem::replace(&mut engine.hold, HoldTable::new(8, 8, 0));
        assert!(table.remove(first).is_ok());
        engine.hold = table;
        engine.run_burst(&[arrival(5, 256, 60)], 0);
        assert!(engine.hold.remove(first).is_err());
        assert!(engine.hold.remove(PacketId { arrival: 2, buffer: 5 }).is_ok());
    }

    /// What an NF does with one burst.
    #[derive(Clone, Debug)]
    enum Step {
        Decide(usize, Action),
        /// Of the packets held, the one at this place, modulo their number.
        Release(usize, Action),
        All(Action),
        Each(Vec<Action>),
    }

    /// Does as it is told, and writes down what must come of it: the simple model of a burst.
    #[derive(Default)]
    struct Scripted {
        script: Vec<Step>,
        here: Vec<Option<BufferIndex>>,
        held: Vec<(PacketId, BufferIndex)>,
        left: Vec<(BufferIndex, Action)>,
        room: usize,
    }

    impl Scripted {
        fn note(&mut self, id: PacketId, buffer: BufferIndex, action: Action) {
            match action {
                Action::Hold if self.held.len() < self.room => self.held.push((id, buffer)),
                Action::Hold => self.left.push((buffer, Action::Drop)),
                action => self.left.push((buffer, action)),
            }
        }

        fn decide(
            &mut self,
            at: usize,
            action: Action,
            burst: &mut Burst<'_>,
            ctx: &mut Context<'_>,
        ) {
            let here = self.here.get_mut(at).and_then(Option::take);
            let id = burst.packet(at).map(|packet| packet.id());
            assert_eq!(id.map(|id| id.buffer), here);
            assert_eq!(burst.decide(at, action, ctx), here.is_some());
            assert!(burst.packet(at).is_none());
            if let (Some(id), Some(buffer)) = (id, here) {
                self.note(id, buffer, action);
            }
        }

        fn step(&mut self, step: &Step, burst: &mut Burst<'_>, ctx: &mut Context<'_>) {
            match step {
                Step::Decide(at, action) => self.decide(*at, *action, burst, ctx),
                Step::Release(which, action)
                    if !self.held.is_empty() && *action != Action::Hold =>
                {
                    let (id, buffer) = self.held.remove(which % self.held.len());
                    assert_eq!(ctx.release(id, *action), Ok(()));
                    assert!(ctx.release(id, *action).is_err());
                    self.left.push((buffer, *action));
                }
                Step::Release(..) => {}
                Step::All(action) => {
                    for at in 0..self.here.len() {
                        let id = burst.packet(at).map(|packet| packet.id());
                        if let (Some(buffer), Some(id)) = (self.here[at].take(), id) {
                            self.note(id, buffer, *action);
                        }
                    }
                    burst.decide_all(*action, ctx);
                }
                Step::Each(actions) => {
                    let mut actions = actions.iter().cycle();
                    let mut decided = Vec::new();
                    burst.decide_each(ctx, |packet, _| {
                        let action = *actions.next().unwrap();
                        decided.push((packet.id(), action));
                        action
                    });
                    for (id, action) in decided {
                        let here = self.here.iter_mut().find(|here| **here == Some(id.buffer));
                        assert!(here.unwrap().take().is_some());
                        self.note(id, id.buffer, action);
                    }
                }
            }
        }
    }

    impl NetworkFunction for Scripted {
        fn process_burst(&mut self, burst: &mut Burst<'_>, ctx: &mut Context<'_>) {
            let all = (0..burst.len()).map(|at| burst.packet(at).map(|packet| packet.id().buffer));
            self.here = all.collect();
            for step in std::mem::take(&mut self.script) {
                self.step(&step, burst, ctx);
            }
            for buffer in self.here.drain(..).flatten() {
                self.left.push((buffer, Action::Next));
            }
        }
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            4 => Just(Action::Next),
            1 => Just(Action::Drop),
            1 => Just(Action::Out(3)),
            1 => Just(Action::ToService(7)),
            1 => Just(Action::Hold),
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0usize..10, action()).prop_map(|(at, action)| Step::Decide(at, action)),
            2 => (0usize..10, action()).prop_map(|(which, action)| Step::Release(which, action)),
            1 => action().prop_map(Step::All),
            1 => proptest::collection::vec(action(), 1..6).prop_map(Step::Each),
        ]
    }

    proptest! {
        #[test]
        fn packets_leave_once_and_in_the_order_decided_whatever_an_nf_does(
            room in 0usize..8,
            bursts in proptest::collection::vec(
                (1usize..9, any::<bool>(), proptest::collection::vec(step(), 0..14)), 1..12),
        ) {
            let region = RegionGeometry { buffers: 64, stride_bytes: 128, headroom_bytes: 0 };
            let setup =
                Setup { service: 1, instance: 1, region, hold_limit_pkts: room, jump_services: vec![], read_only: false, state: None };
            let region = Arc::new(Region::create(region, HugePages::Off).unwrap());
            let nf = Scripted { room, ..Scripted::default() };
            let mut engine = Engine::new(nf, region, setup, 1, 0).unwrap();
            let mut free: std::collections::VecDeque<u32> = (0..64).collect();
            for (count, in_order, mut script) in bursts {
                if in_order {
                    // As most NFs do it: from the first packet to the last.
                    let in_place = script.iter_mut().filter_map(|step| match step {
                        Step::Decide(at, _) => Some(at),
                        _ => None,
                    });
                    in_place.zip(0..).for_each(|(at, n)| *at = n);
                }
                engine.nf.script = script;
                let burst: Vec<_> = free.drain(..count).map(|b| arrival(b, 0, 60)).collect();
                engine.run_burst(&burst, 0);
                let left = engine.take_departures();
                let left: Vec<_> =
                    left.iter().map(|d| (d.slot.lease.buffer(), d.action)).collect();
                prop_assert_eq!(&left, &std::mem::take(&mut engine.nf.left));
                prop_assert_eq!(engine.held_pkts(), engine.nf.held.len());
                free.extend(left.iter().map(|&(buffer, _)| buffer));
            }
            prop_assert_eq!(free.len() + engine.held_pkts(), 64);
        }
    }
}
