//! A worker's thread: turns of the loop, orders of the control thread between them, and what to do
//! when there is nothing to do.
//!
//! Idle policy ([`PollMode::Adaptive`]): as an NF's, see [`nflib::resting`]; then sleep, in `poll(2)` on
//! the ports where they can wake us, and on two alarms: one comes with an order, the other with packets
//! that NFs give back. Where a port can only be looked at, or isolated NFs have packets, which come back
//! unannounced, the sleep is a nap that doubles while nothing comes. Never may more threads spin than there
//! are cores: spinning NFs and a spinning worker on one core pass packets at the speed of the scheduler's
//! clock.
//!
//! On a shared core the worker also gives way after a quantum of packets, and at once when it had to drop
//! packets at a full NF: what it received next would be dropped, too, until that NF has run.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use nflib::descriptor::{ChainId, PortId};
use nflib::resting::{CoreWatch, Rest, Resting};
use nflib::shm::{
    AlarmReceiver, BufferIndex, SHORT_SLICE_NS, ask_for_short_slices, register_for_global_barrier,
};
use nix::poll::{PollFd, PollFlags};
use nix::sys::time::TimeSpec;

use crate::alarm::OrderReceiver;
use crate::change::{Change, Outcome};
use crate::classify::RuleCount;
use crate::config::PollMode;
use crate::flow::{self, Expired, Flow, FlowKey, FlowScan, RuleTables, TableStep};
use crate::plan::NfNumber;
use crate::ports::PortQueue;
use crate::stats::DropCounters;
use crate::worker::{Census, NewNf, Observation, Worker};

/// Longest sleep when all that may happen wakes us. It bounds how late a timeout is noticed.
const SLEEP_MAX: Duration = Duration::from_millis(50);
/// First nap while something may happen unnoticed. The next is twice as long.
const NAP_MIN: Duration = Duration::from_micros(50);
/// Longest nap while NFs have packets.
const NAP_MAX: Duration = Duration::from_millis(1);
/// Longest nap when a port can only be looked at: in this time a burst must not overflow its ring.
const POLLED_NAP_MAX: Duration = Duration::from_micros(250);
/// How much later than asked for a nap may end.
const TIMER_SLACK_NS: u64 = 1_000;
/// How often the kernel is asked whether the core is shared.
const CORE_LOOK_NS: u64 = 10_000_000;
/// How long ports may take at the end to send what they accepted.
const SEND_GRACE: Duration = Duration::from_millis(10);
/// Places of the flow cache looked at in one turn, in eights.
const SCAN_BUDGET: usize = 64;
/// Turns between looks at the order channel while packets flow.
const ORDER_INTERVAL_TURNS: u32 = 32;

/// An order from the control thread.
pub enum Order {
    /// Let an NF in.
    AddNf(Box<NewNf>),
    /// Deliver nothing more to an NF.
    CloseNf(NfNumber),
    /// Take what an NF returned, and forget it.
    RemoveNf(NfNumber),
    /// Take back buffers that a dead NF of the trusted domain had, of the service in this slot.
    Reclaim(Vec<BufferIndex>, u16, Arc<DropCounters>),
    /// Take back all buffers of the trusted domain.
    ReclaimDomain(Arc<DropCounters>),
    /// Lend an NF so many empty buffers, for packets of this chain.
    Lend(NfNumber, u32, ChainId),
    /// Look at other packets from now on.
    Observe(Arc<Observation>),
    /// Follow another plan. Answered by [`Report::Changed`], when it is complete; until then no other
    /// change may be ordered.
    Change(Box<Change>),
    /// Say how the books stand, between turns.
    Snapshot,
    /// Say where each buffer is, between turns.
    Census,
    /// Say what these rules have seen.
    CountRules(Arc<[u64]>),
    /// Say which flows have most packets, so many of them.
    TopFlows(usize),
    /// Say which rules a packet would meet.
    Explain(Box<FlowKey>),
    /// Stop receiving; stop for good when nothing is inside any more or time is up.
    Drain(Duration),
}

/// The books of one worker, taken between turns: they add up exactly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Packets received, all its queues.
    pub rx_pkts: u64,
    /// Empty buffers lent to NFs.
    pub lent_pkts: u64,
    /// Packets sent.
    pub tx_pkts: u64,
    /// Packets dropped, every place and reason.
    pub dropped_pkts: u64,
    /// Packets inside.
    pub held_pkts: u64,
    /// Of those, packets that wait for a change of plan, or for an NF.
    pub parked_pkts: u64,
    /// Buffers that NFs have.
    pub buffers_at_nfs: u64,
    /// Buffers free.
    pub buffers_free: u64,
    /// Buffers that ports have, where all drivers say so.
    pub buffers_at_ports: u64,
    /// A driver does not say how many it has.
    pub ports_untold: bool,
    /// All buffers of its share.
    pub buffers_total: u64,
    /// Ports whose finite source has nothing more.
    pub exhausted: Vec<PortId>,
    /// Packets and bytes that entered each chain, by chain id.
    pub chains: Vec<(u64, u64)>,
    /// Packets of each chain in the trusted domain, by chain id.
    pub held_by_chain: Vec<u64>,
    /// Packets that an isolated NF may have, and those of a chain in the trusted domain.
    pub credits: (u64, u64),
}

impl Snapshot {
    /// Buffers with nobody: 0, or a buffer was lost (or, below 0, is with two).
    #[must_use]
    pub fn buffers_lost(&self) -> i64 {
        let known = self.buffers_free + self.buffers_at_nfs + self.parked_pkts;
        match self.ports_untold {
            true => 0,
            false => {
                self.buffers_total.cast_signed() - (known + self.buffers_at_ports).cast_signed()
            }
        }
    }

    /// Whether every packet that entered, and every buffer lent, is somewhere.
    #[must_use]
    pub fn balanced(&self) -> bool {
        self.rx_pkts + self.lent_pkts == self.tx_pkts + self.dropped_pkts + self.held_pkts
    }
}

impl std::ops::AddAssign<&Snapshot> for Snapshot {
    fn add_assign(&mut self, other: &Self) {
        self.rx_pkts += other.rx_pkts;
        self.lent_pkts += other.lent_pkts;
        self.tx_pkts += other.tx_pkts;
        self.dropped_pkts += other.dropped_pkts;
        self.held_pkts += other.held_pkts;
        self.parked_pkts += other.parked_pkts;
        self.buffers_at_nfs += other.buffers_at_nfs;
        self.buffers_free += other.buffers_free;
        self.buffers_at_ports += other.buffers_at_ports;
        self.ports_untold |= other.ports_untold;
        self.buffers_total += other.buffers_total;
        self.exhausted.extend(&other.exhausted);
        if self.chains.len() < other.chains.len() {
            self.chains.resize(other.chains.len(), (0, 0));
        }
        for (sum, add) in self.chains.iter_mut().zip(&other.chains) {
            *sum = (sum.0 + add.0, sum.1 + add.1);
        }
        if self.held_by_chain.len() < other.held_by_chain.len() {
            self.held_by_chain.resize(other.held_by_chain.len(), 0);
        }
        for (sum, add) in self.held_by_chain.iter_mut().zip(&other.held_by_chain) {
            *sum += add;
        }
        self.credits = (self.credits.0 + other.credits.0, self.credits.1 + other.credits.1);
    }
}

/// What a worker tells the control thread.
#[derive(Debug)]
pub enum Report {
    /// An order was carried out.
    Done,
    /// Answer to [`Order::Snapshot`].
    Snapshot(Snapshot),
    /// These NFs broke their rings and get nothing more.
    Broken(Vec<NfNumber>),
    /// A change is complete.
    Changed(Outcome),
    /// Answer to [`Order::Census`].
    Census(Box<Census>),
    /// Answer to [`Order::CountRules`], in its order.
    RuleCounts(Vec<Option<RuleCount>>),
    /// Answer to [`Order::TopFlows`]: flows with the time since their last packet, ns, and how many
    /// are known.
    TopFlows(Vec<(Flow, u64)>, u64),
    /// Answer to [`Order::Explain`].
    Explained(flow::Outcome, Vec<TableStep>),
    /// Rules have run out here.
    Expired(Vec<Expired>),
    /// Memory to be given back by somebody with more time.
    Discarded(Vec<RuleTables>),
    /// The worker has stopped; its last books, with every buffer free that can be.
    Stopped(Snapshot),
}

impl Report {
    /// Whether somebody waits for it, having given an order.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        matches!(
            self,
            Self::Done
                | Self::Snapshot(_)
                | Self::Census(_)
                | Self::RuleCounts(_)
                | Self::TopFlows(..)
                | Self::Explained(..)
        )
    }
}

/// The loop's settings.
#[derive(Clone, Copy, Debug)]
pub struct LoopOptions {
    /// The worker's number.
    pub number: u16,
    /// Idle policy.
    pub poll: PollMode,
    /// Receive nothing before every service that a chain names has an NF.
    pub wait_for_nfs: bool,
    /// Packets to move before a shared core is offered to others.
    pub quantum_pkts: u32,
}

/// Runs a worker until it is told to drain. The body of its thread.
pub fn run(
    mut worker: Worker,
    options: LoopOptions,
    orders: &OrderReceiver<Order>,
    alarm: &AlarmReceiver,
    reports: &Sender<Report>,
) {
    let has_barrier = register_for_global_barrier();
    if !has_barrier {
        tracing::debug!("no membarrier(2): NFs sleep for at most 1 ms");
    }
    // Naps are of tens of microseconds, and the kernel would add as many.
    if let Err(error) = nix::sys::prctl::set_timerslack(TIMER_SLACK_NS) {
        tracing::debug!(%error, "naps are longer than they should be");
    }
    // What it gives up by yielding is a slice. With the usual one of milliseconds a program that starts
    // on this core, or a compiler, would run for long before orders and packets are seen again.
    if let Err(error) = ask_for_short_slices(SHORT_SLICE_NS) {
        tracing::debug!(%error, "the worker gives up more of the core than it need");
    }
    // Until the first plan is there nobody knows where packets go.
    let waiting = true;
    let mut state = Loop {
        worker: &mut worker,
        waiting,
        options,
        reports,
        orders,
        alarm,
        has_barrier,
        began: Instant::now(),
        core: CoreWatch::new(0),
        next_core_look_ns: 0,
        resting: Resting::default(),
        quantum_pkts: 0,
        dropped_pkts: 0,
        nap: NAP_MIN,
        drain_until: None,
        flow_scan: None,
    };
    let mut turns_to_orders = 0;
    loop {
        if turns_to_orders == 0 {
            turns_to_orders = ORDER_INTERVAL_TURNS;
            while let Ok(order) = orders.try_recv() {
                state.obey(order);
            }
            state.report();
            state.look_at_core();
        }
        let moved = state.worker.turn(state.drain_until.is_none() && !state.waiting);
        state.scan_flows();
        if let Some(outcome) = state.worker.take_outcome() {
            let _ = state.reports.send(Report::Changed(outcome));
        }
        if state.drained() {
            break;
        }
        if moved > 0 {
            turns_to_orders -= 1;
            state.worked(moved);
        } else {
            turns_to_orders = 0;
            state.idle();
        }
    }
    let grace = Instant::now() + SEND_GRACE;
    while Instant::now() < grace {
        worker.turn(false);
        std::thread::yield_now();
    }
    worker.close();
    let _ = reports.send(Report::Stopped(snapshot(&worker)));
}

struct Loop<'a> {
    worker: &'a mut Worker,
    options: LoopOptions,
    reports: &'a Sender<Report>,
    orders: &'a OrderReceiver<Order>,
    /// NFs that have been told that this worker sleeps turn it on.
    alarm: &'a AlarmReceiver,
    /// NFs can be made to notice that this worker sleeps; without, it takes naps.
    has_barrier: bool,
    began: Instant,
    core: CoreWatch,
    next_core_look_ns: u64,
    resting: Resting,
    /// Packets moved since the core was last offered to others.
    quantum_pkts: usize,
    /// Packets dropped between ports when it was.
    dropped_pkts: u64,
    /// How long to sleep next while something may happen unnoticed.
    nap: Duration,
    drain_until: Option<Instant>,
    /// There is no plan yet, or some service of it never had an NF and the configuration says to
    /// wait for it.
    waiting: bool,
    /// Somebody wants to know the largest flows.
    flow_scan: Option<FlowScan>,
}

impl Loop<'_> {
    fn obey(&mut self, order: Order) {
        let report = match order {
            Order::AddNf(new) => {
                self.worker.add_nf(self.options.number, *new);
                Report::Done
            }
            Order::CloseNf(nf) => {
                self.worker.close_nf(nf);
                Report::Done
            }
            Order::RemoveNf(nf) => {
                self.worker.remove_nf(nf);
                Report::Done
            }
            Order::Reclaim(buffers, slot, drops) => {
                self.worker.reclaim(&buffers, slot, &drops);
                Report::Done
            }
            Order::ReclaimDomain(drops) => {
                self.worker.reclaim_domain(&drops);
                Report::Done
            }
            Order::Lend(nf, pkts, chain) => {
                self.worker.owe(nf, pkts, chain);
                Report::Done
            }
            Order::Observe(observation) => {
                self.worker.observe(&observation);
                Report::Done
            }
            Order::Change(change) => {
                self.worker.begin_change(*change);
                let wait = self.options.wait_for_nfs;
                self.waiting &= wait && !self.worker.plan().is_complete();
                return;
            }
            Order::Snapshot => Report::Snapshot(snapshot(self.worker)),
            Order::Census => Report::Census(Box::new(self.worker.census())),
            Order::CountRules(ids) => {
                Report::RuleCounts(self.worker.classifier().rule_counters(&ids))
            }
            Order::TopFlows(limit) => {
                // Over many turns: a million flows take a tenth of a second to look at.
                self.flow_scan = Some(FlowScan::new(limit));
                return;
            }
            Order::Explain(key) => {
                let (outcome, steps) = self.worker.classifier().explain(&key);
                Report::Explained(outcome, steps)
            }
            Order::Drain(limit) => {
                self.drain_until = Some(Instant::now() + limit);
                self.worker.stop_holding();
                return;
            }
        };
        // The control thread may have gone with a panic of its own; then nobody listens.
        let _ = self.reports.send(report);
    }

    /// Says what nobody asked for.
    fn report(&mut self) {
        let mut broken = Vec::new();
        self.worker.take_broken(&mut broken);
        if !broken.is_empty() {
            let _ = self.reports.send(Report::Broken(broken));
        }
        let expired = self.worker.classifier().expire();
        if !expired.is_empty() {
            let _ = self.reports.send(Report::Expired(expired));
        }
        let discarded = self.worker.classifier().take_discarded();
        if !discarded.is_empty() {
            let _ = self.reports.send(Report::Discarded(discarded));
        }
    }

    /// Looks at some more flows for who wants to know the largest.
    fn scan_flows(&mut self) {
        let Some(mut scan) = self.flow_scan.take() else { return };
        if self.worker.classifier().scan_flows(&mut scan, SCAN_BUDGET) {
            let total = scan.flows();
            let flows = self.worker.classifier().finish_scan(scan);
            let _ = self.reports.send(Report::TopFlows(flows, total));
        } else {
            self.flow_scan = Some(scan);
        }
    }

    /// True when the manager stops and there is nothing left to wait for.
    fn drained(&self) -> bool {
        self.drain_until.is_some_and(|until| self.is_empty() || Instant::now() >= until)
    }

    fn is_empty(&self) -> bool {
        self.worker.held_by_nfs() == 0 && self.worker.parked_pkts() == 0
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn look_at_core(&mut self) {
        let now_ns = self.now_ns();
        if now_ns >= self.next_core_look_ns {
            self.next_core_look_ns = now_ns + CORE_LOOK_NS;
            self.core.look(now_ns);
        }
    }

    /// After a turn that moved packets.
    #[inline]
    fn worked(&mut self, moved_pkts: usize) {
        self.resting.worked();
        self.nap = NAP_MIN;
        if !self.core.is_shared() || self.options.poll == PollMode::Busy {
            return;
        }
        self.quantum_pkts += moved_pkts;
        let dropped_pkts = self.worker.counters().dropped_pkts.get();
        let drops = std::mem::replace(&mut self.dropped_pkts, dropped_pkts) != dropped_pkts;
        if drops || self.quantum_pkts >= self.options.quantum_pkts as usize {
            self.quantum_pkts = 0;
            let now_ns = self.now_ns();
            if self.resting.yields_after_work(now_ns, true) {
                self.resting.give_core_away(now_ns);
            }
        }
    }

    fn idle(&mut self) {
        if self.options.poll == PollMode::Busy {
            std::hint::spin_loop();
            return;
        }
        self.quantum_pkts = 0;
        let now_ns = self.now_ns();
        match self.resting.next(now_ns, self.core.is_shared(), false) {
            Rest::Spin => std::hint::spin_loop(),
            Rest::Yield => self.resting.give_core_away(now_ns),
            // Of the second kind a worker takes none: it has no neighbour's bell.
            Rest::Sleep | Rest::AwaitTurn => self.sleep(),
        }
    }

    fn sleep(&mut self) {
        let limit = self.longest_sleep();
        // Long sleeps only: telling the NFs costs more than a nap.
        let to_be_woken = limit > NAP_MAX && self.worker.held_pkts() > 0;
        if !to_be_woken || self.worker.announce_sleep(self.options.number) {
            self.wait(limit);
        }
        if to_be_woken {
            self.worker.announce_waking(self.options.number);
        }
    }

    fn wait(&mut self, limit: Duration) {
        let queues = self.worker.ports().iter().flat_map(|port| &port.queues);
        let alarms = [self.orders.fd(), self.alarm.fd()];
        let fds = queues.filter_map(|queue| queue.poll_fd()).chain(alarms);
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // A signal or an error only makes the sleep shorter.
        let woken = nix::poll::ppoll(&mut fds, Some(TimeSpec::from(limit)), None);
        if woken.is_ok_and(|count| count > 0) {
            // An order is looked for before the next sleep in any case, and so are packets.
            self.orders.quiet();
            self.alarm.quiet();
        }
    }

    /// Whether every packet inside is with an NF that wakes this worker when it gives it back. What is
    /// parked waits for room in a ring, which nobody tells of.
    fn is_woken_by_all(&self) -> bool {
        let with_nfs = self.worker.held_by_nfs() as u64;
        self.has_barrier && with_nfs == self.worker.held_pkts() && self.worker.is_woken_by_nfs()
    }

    fn longest_sleep(&mut self) -> Duration {
        let mut queues = self.worker.ports().iter().flat_map(|port| &port.queues);
        let wakes = |queue: &dyn PortQueue| queue.poll_fd().is_some() || !queue.may_receive();
        let most = if !queues.all(|queue| wakes(queue.as_ref())) {
            POLLED_NAP_MAX
        } else if self.worker.held_pkts() > 0 && !self.is_woken_by_all() {
            NAP_MAX
        } else {
            return SLEEP_MAX;
        };
        let nap = self.nap.min(most);
        self.nap = (2 * nap).min(most);
        nap
    }
}

fn snapshot(worker: &Worker) -> Snapshot {
    let mut books = Snapshot {
        lent_pkts: worker.counters().lent_pkts.get(),
        dropped_pkts: worker.counters().dropped_pkts.get(),
        held_pkts: worker.held_pkts(),
        parked_pkts: worker.parked_pkts() as u64,
        buffers_at_nfs: worker.held_by_nfs() as u64,
        buffers_free: worker.pool().free_buffers() as u64,
        buffers_at_ports: worker.held_by_ports().unwrap_or(0) as u64,
        ports_untold: worker.held_by_ports().is_none(),
        buffers_total: u64::from(worker.pool().count()),
        chains: worker.chain_counts().to_vec(),
        held_by_chain: worker.held_by_chain(),
        credits: worker.credits(),
        ..Snapshot::default()
    };
    for (port, number) in worker.ports().iter().zip(0..) {
        for counters in port.queues.iter().map(|queue| queue.counters()) {
            books.rx_pkts += counters.rx_pkts.get();
            books.tx_pkts += counters.tx_pkts.get();
            books.dropped_pkts += counters.drops.total();
        }
        if port.queues.iter().all(|queue| queue.exhausted()) {
            books.exhausted.push(number);
        }
    }
    books
}
