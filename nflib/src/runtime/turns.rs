//! The loop of an attached NF: rings in, the NF, rings out; and the control socket beside it.
//!
//! A ring pair, a *lane*, joins the NF to each worker of the manager, and a direct edge to each NF
//! that may come before it or next; [`passage`](super::passage) moves packets between them.
//!
//! While there is work the loop does it, and offers the core to others, if others want it, after a
//! quantum of packets. Without work it spins or yields shortly, then sleeps until somebody rings its
//! doorbell: whoever pushes packets to it, or, if it cannot pass on what it has, whoever takes from
//! the full ring. [`resting`](crate::resting) says which when, and why. It does not fall asleep over an
//! unread message of the manager, which rings the bell after one that wants a prompt answer.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::RunError;
use super::attach::Attachment;
use super::effort::{Effort, looks_a_turn};
use super::inputs::Inputs;
use super::limits::Limits;
use super::lookout::Lookout;
use super::mailbox::Mailbox;
use super::outputs::Outputs;
use super::passage::Passage;
use super::stock;
use nix::sched::sched_getcpu;

use crate::burst::MAX_BURST_PKTS;
use crate::control::{MAX_MESSAGE_BYTES, Reply, Request};
use crate::engine::Engine;
use crate::message::{MessageToken, Outgoing};
use crate::nf::{NetworkFunction, Setup};
use crate::resting::{MAX_QUANTUM_PKTS, MIN_QUANTUM_PKTS, Rest, Resting};
use crate::shm::{
    BlackBox, Channel, Doorbell, Doorbells, EdgeRing, NO_NF, NfCounter, Recorder, SharedRing,
    WorkerAlarm,
};

/// Longest sleep: how late a message of the manager may be noticed.
const MAX_SLEEP: Duration = Duration::from_millis(50);
/// Longest sleep while the socket does not take all that is to be sent.
const UNSENT_SLEEP: Duration = Duration::from_millis(1);
/// How long a full ring to a worker is left alone: a worker does not ring when it takes.
const FULL_RING_PAUSE: Duration = Duration::from_micros(100);
/// Longest sleep while a ring to another NF is full: how late a message of the manager may be noticed
/// then, or that the other NF has died.
const MAX_ROOM_SLEEP: Duration = Duration::from_millis(2);
/// How long messages are listened to before it is the packets' turn.
const LISTEN_LIMIT_NS: u64 = 2_000_000;
/// Messages that are heard in one go however long it takes: a thread that was preempted in the middle
/// has not been flooded.
const LISTEN_LIMIT_MESSAGES: u32 = 4;
/// How often the control socket is looked at while there is work.
const CONTROL_INTERVAL_NS: u64 = 10_000_000;
/// How long the manager may take to stop delivering, and to take the last packets.
const LEAVE_TIMEOUT_NS: u64 = 2_000_000_000;
/// How long packets may go on coming after the manager's word that no more are delivered: those that
/// circulate never end.
const LAST_PACKETS_NS: u64 = 10_000_000_000;

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// In good order.
    Stopped,
    /// The connection broke.
    ManagerGone,
}

/// Where the loop stands on its way out.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Running,
    /// Asked the manager to stop delivering; since when.
    Detaching {
        since_ns: u64,
    },
    /// Nothing more will come but what is in the rings already; since when.
    Draining {
        since_ns: u64,
    },
}

pub(super) struct Turns<'n, N> {
    passage: Passage<&'n mut N, SharedRing, Arc<Channel>>,
    mailbox: Mailbox,
    channel: Arc<Channel>,
    bells: Arc<Doorbells>,
    own_bell: Doorbell,
    clock: Instant,
    phase: Phase,
    next_control_ns: u64,
    /// When, and after how many packets, to leave.
    end_ns: u64,
    packet_limit: u64,
    turns: u64,
    /// Packets before the core is offered to others.
    quantum_pkts: usize,
    /// Looks at the inputs for one at the clock.
    looks_a_turn: usize,
    /// Buffers of each worker.
    worker_buffers: u32,
    resting: Resting,
    /// Others may have had the core since the last turn.
    comes_back: bool,
    /// There may be messages that were not heard for want of time.
    has_more_to_hear: bool,
    effort: Effort,
    /// Where last words go as long as this is here.
    _black_box: Arc<BlackBox>,
}

impl<'n, N: NetworkFunction> Turns<'n, N> {
    pub(super) fn new(
        nf: &'n mut N,
        attachment: Attachment,
        first_arrival: u64,
        limits: &Limits,
    ) -> Result<Self, RunError> {
        let Attachment { socket, region, channel, routes, bells, own_bell, .. } = attachment;
        let Attachment { marks, tap, black_box, alarms, state, terms, .. } = attachment;
        let hold_cap_pkts = (terms.region.buffers / 4).max(1) as usize;
        let setup = Setup {
            service: terms.service,
            instance: terms.instance,
            region: terms.region,
            hold_limit_pkts: nf.hold_limit_pkts().min(hold_cap_pkts),
            jump_services: terms.jump_services,
            read_only: terms.read_only,
            state,
        };
        let (deliveries, returns): (Vec<_>, Vec<_>) =
            (0..channel.geometry().workers).filter_map(|worker| channel.nf_ends(worker)).unzip();
        let channel = Arc::new(channel);
        let mut outputs =
            Outputs::new(returns.into_iter(), terms.worker_buffers, terms.service, routes);
        let alarm = |(pipe, worker)| WorkerAlarm::new(Arc::clone(&channel), worker, pipe);
        outputs.wake_workers_by(alarms.into_iter().zip(0..).map(alarm).collect());
        let lookout = Lookout::new(marks, &tap, Arc::clone(&region));
        let clock = Instant::now();
        let recorder =
            Recorder::new(Arc::clone(&black_box), Arc::clone(&region), super::lookout::now_ns());
        let mut passage = Passage::new(
            Engine::new(nf, region, setup, first_arrival, 0)?,
            Inputs::new(deliveries.into_iter()),
            outputs,
            Arc::clone(&channel),
        );
        passage.lookout = Some(Box::new(lookout));
        passage.recorder = recorder;
        let quantum_pkts = terms.quantum_pkts.clamp(MIN_QUANTUM_PKTS, MAX_QUANTUM_PKTS) as usize;
        passage.limit_burst(quantum_pkts);
        Ok(Self {
            passage,
            mailbox: Mailbox::new(socket),
            channel,
            bells,
            own_bell,
            clock,
            phase: Phase::Running,
            next_control_ns: 0,
            end_ns: limits.time_left().map_or(u64::MAX, ns),
            packet_limit: limits.packets_left(),
            turns: 0,
            quantum_pkts,
            looks_a_turn: 1,
            worker_buffers: terms.worker_buffers.max(1),
            resting: Resting::default(),
            comes_back: true,
            has_more_to_hear: false,
            effort: Effort::new(0),
            _black_box: black_box,
        })
    }

    /// Numbers of packets of the next attachment start here.
    pub(super) fn next_arrival(&self) -> u64 {
        self.passage.engine.next_arrival
    }

    /// Packets taken so far.
    pub(super) fn rx_pkts(&self) -> u64 {
        self.passage.rx_pkts
    }

    fn now_ns(&self) -> u64 {
        ns(self.clock.elapsed())
    }

    /// Turns until `stop` is set, the NF or the manager asks to end, or the manager vanishes.
    pub(super) fn run(&mut self, stop: &AtomicBool) -> Result<Ending, RunError> {
        let mut quantum_pkts = 0;
        loop {
            let now_ns = self.now_ns();
            self.effort.next_turn(now_ns);
            if now_ns >= self.next_control_ns {
                self.next_control_ns = now_ns + CONTROL_INTERVAL_NS;
                self.look_at_costs(now_ns);
                if self.listen(now_ns)? == Ending::ManagerGone {
                    return Ok(self.without_manager());
                }
                if self.overstays(now_ns) {
                    tracing::warn!("packets still come; the manager will find them itself");
                    self.leave()?;
                    return Ok(Ending::Stopped);
                }
            }
            if let Some(why) = self.reason_to_leave(stop, now_ns) {
                self.ask_to_leave(why, now_ns)?;
            }
            if std::mem::take(&mut self.comes_back) {
                self.judge_order();
            }
            if self.passage.engine.has_stock() {
                self.see_to_stock(now_ns)?;
            }
            let moved_pkts = self.turn(now_ns)?;
            if !self.passage.engine.outbox.is_empty() {
                self.send_messages();
            }
            if moved_pkts > 0 {
                self.resting.worked();
                quantum_pkts += moved_pkts;
                if quantum_pkts >= self.quantum_pkts {
                    quantum_pkts = 0;
                    self.end_quantum();
                }
                continue;
            }
            quantum_pkts = 0;
            let all_passed_on =
                !self.passage.outputs.have_leftovers() && self.passage.inputs.are_empty();
            if matches!(self.phase, Phase::Draining { .. }) && all_passed_on {
                self.leave()?;
                return Ok(Ending::Stopped);
            }
            self.rest(now_ns);
        }
    }

    /// Gives back what is recalled, and asks for what was used.
    fn see_to_stock(&mut self, now_ns: u64) -> Result<(), RunError> {
        let Self { passage, channel, worker_buffers, .. } = self;
        if stock::is_recalled(&passage.engine, channel)
            && stock::heed_recalls(&mut passage.engine, channel)
        {
            passage.pass_on(None, now_ns)?;
        }
        if !passage.engine.used_stock().is_empty() {
            let outputs = &passage.outputs;
            stock::ask_for_more(&mut passage.engine, channel, *worker_buffers, |worker| {
                outputs.wake_worker(worker);
            });
        }
        Ok(())
    }

    /// Why to leave now, if there is a reason.
    #[inline]
    fn reason_to_leave(&self, stop: &AtomicBool, now_ns: u64) -> Option<&'static str> {
        if stop.load(Ordering::Relaxed) {
            Some("signal received")
        } else if self.passage.engine.stop {
            Some("the NF asks to end")
        } else if self.passage.rx_pkts >= self.packet_limit {
            Some("the limit of --packet-limit is reached")
        } else if now_ns >= self.end_ns {
            Some("the time of --time-limit-s is over")
        } else {
            None
        }
    }

    /// One look at every input, or some while there are whole bursts of cheap packets. Returns the packets moved.
    fn turn(&mut self, now_ns: u64) -> Result<usize, RunError> {
        let mut moved_pkts = self.passage.turn(now_ns)?;
        for looks in 1..self.looks_a_turn {
            if moved_pkts < looks * MAX_BURST_PKTS {
                break;
            }
            moved_pkts += self.passage.turn(now_ns)?;
        }
        self.turns += 1;
        self.channel.set_nf_counter(NfCounter::Progress, self.turns);
        if moved_pkts > 0 {
            self.effort.works();
            self.passage.inputs.offer_room();
            self.publish_counters();
        }
        Ok(moved_pkts)
    }

    fn publish_counters(&self) {
        let Passage { rx_pkts, tx_pkts, drop_pkts, ref engine, .. } = self.passage;
        self.channel.set_nf_counter(NfCounter::RxPkts, rx_pkts);
        self.channel.set_nf_counter(NfCounter::TxPkts, tx_pkts);
        self.channel.set_nf_counter(NfCounter::DropPkts, drop_pkts);
        self.channel.set_nf_counter(NfCounter::HeldPkts, engine.held_pkts() as u64);
    }

    /// Learns what packets cost and whether the core is shared, and tells the manager.
    fn look_at_costs(&mut self, now_ns: u64) {
        if let Some(pkt_ns) = self.effort.look(now_ns, self.passage.rx_pkts) {
            self.passage.adapt_burst(pkt_ns);
            self.looks_a_turn = looks_a_turn(pkt_ns, self.quantum_pkts);
        }
        self.channel.set_nf_counter(NfCounter::BusyNs, self.effort.busy_ns());
    }

    /// Learns whether this NF's place among those that share its core is right.
    fn judge_order(&mut self) {
        if !self.effort.core_is_shared() {
            return;
        }
        let Ok(core) = sched_getcpu() else { return };
        let core = u32::try_from(core).unwrap_or(u32::MAX);
        self.own_bell.take_turn(core);
        if let Some(in_turn) = self.passage.inputs.are_in_turn(core) {
            self.resting.visit(in_turn);
        }
    }

    /// Offers the core to others after much work, if they want it.
    fn end_quantum(&mut self) {
        if self.passage.inputs.are_empty() {
            // The next turn finds nothing, and the core is offered then: once, not twice.
            return;
        }
        let now_ns = self.now_ns();
        if self.resting.yields_after_work(now_ns, self.effort.core_is_shared()) {
            self.effort.next_turn(now_ns);
            self.resting.give_core_away(now_ns);
            self.effort.rested(self.now_ns());
            self.comes_back = true;
        }
    }

    /// What to do with a turn that found nothing.
    fn rest(&mut self, now_ns: u64) {
        if self.has_more_to_hear {
            return;
        }
        let blocked = self.passage.outputs.have_leftovers();
        match self.resting.next(now_ns, self.effort.core_is_shared(), blocked) {
            Rest::Spin => return std::hint::spin_loop(),
            Rest::Yield => self.resting.give_core_away(now_ns),
            Rest::Sleep if blocked => self.sleep_for_room(),
            Rest::Sleep => self.sleep(),
            Rest::AwaitTurn => {
                let Self { passage, own_bell, .. } = self;
                own_bell.sleep_shortly(|| passage.inputs.are_empty());
            }
        }
        self.comes_back = true;
        self.effort.rested(self.now_ns());
    }

    /// Sleeps until a full ring has room again, a tick or the end is due.
    fn sleep_for_room(&mut self) {
        let outputs = &mut self.passage.outputs;
        let most = if outputs.wait_for_workers() { FULL_RING_PAUSE } else { MAX_ROOM_SLEEP };
        let until_due = self.until_due();
        let Self { passage, own_bell, .. } = self;
        own_bell.sleep_for_room(until_due.min(most), || passage.outputs.are_full());
    }

    /// Until a tick or the end is due.
    fn until_due(&self) -> Duration {
        let due_ns = self.passage.engine.next_tick_ns().unwrap_or(u64::MAX).min(self.end_ns);
        Duration::from_nanos(due_ns.saturating_sub(self.now_ns()))
    }

    /// Sleeps until somebody rings, a tick or the end is due, or there may be news on the socket.
    fn sleep(&mut self) {
        let until_due = self.until_due();
        let unsent = self.mailbox.has_unsent() || !self.passage.engine.outbox.is_empty();
        let most = if unsent { UNSENT_SLEEP } else { MAX_SLEEP };
        let Self { passage, mailbox, own_bell, channel, .. } = self;
        // The socket, too: the manager may have written, and rung the bell, while this loop was
        // still looking around.
        let all_quiet = || {
            passage.inputs.are_empty()
                && !mailbox.is_readable()
                && !stock::is_recalled(&passage.engine, channel)
        };
        own_bell.sleep(until_due.min(most), all_quiet);
        self.next_control_ns = 0;
    }

    /// Hears what the manager says, all of it before any more packets; but not for so long that
    /// whoever sends messages without end keeps the packets waiting.
    fn listen(&mut self, now_ns: u64) -> Result<Ending, RunError> {
        self.has_more_to_hear = false;
        for heard in 1.. {
            match self.mailbox.next() {
                Ok(Some(message)) => {
                    self.act_on(message, now_ns)?;
                    let long = self.now_ns().saturating_sub(now_ns) > LISTEN_LIMIT_NS;
                    if heard >= LISTEN_LIMIT_MESSAGES && long {
                        self.has_more_to_hear = true;
                        self.next_control_ns = 0;
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => return Ok(Self::connection_lost(&error)),
            }
        }
        if let Err(error) = self.mailbox.flush() {
            return Ok(Self::connection_lost(&error));
        }
        match self.phase {
            Phase::Detaching { since_ns } if now_ns - since_ns > LEAVE_TIMEOUT_NS => {
                tracing::warn!("the manager does not answer; leaving without it");
                self.phase = Phase::Draining { since_ns: now_ns };
            }
            _ => {}
        }
        Ok(Ending::Stopped)
    }

    /// How to end when the connection is lost. One that was leaving has nobody left to wait for: its
    /// last word may have come together with the end of the connection, as when a manager stops.
    fn without_manager(&self) -> Ending {
        if self.phase == Phase::Running { Ending::ManagerGone } else { Ending::Stopped }
    }

    fn connection_lost(error: &crate::control::ControlError) -> Ending {
        tracing::warn!("{error}");
        Ending::ManagerGone
    }

    fn act_on(&mut self, message: Reply, now_ns: u64) -> Result<(), RunError> {
        match message {
            Reply::Stop { reason } => {
                tracing::info!("told to stop: {reason}");
                self.drain(now_ns)?;
            }
            Reply::Detached => self.drain(now_ns)?,
            Reply::OutEdge { nf, ring_capacity } => {
                let ring = self.open_edge(nf, ring_capacity)?;
                let bell = self.bells.bell(nf);
                if bell.is_none() {
                    tracing::warn!("NF {nf} has no doorbell here; it may notice packets late");
                }
                self.passage.outputs.open_edge(nf, ring.producer(), bell);
            }
            Reply::InEdge { nf, ring_capacity } => {
                let ring = self.open_edge(nf, ring_capacity)?;
                self.passage.inputs.open_edge(nf, ring.consumer(), self.bells.bell(nf));
            }
            Reply::CloseOutEdge { nf } => {
                if !self.passage.outputs.close_edge(nf) {
                    tracing::debug!("there is no edge to NF {nf} to close");
                }
            }
            Reply::CloseInEdge { nf } => {
                if !self.passage.inputs.close_edge(nf) {
                    tracing::debug!("there is no edge from NF {nf} to close");
                }
            }
            Reply::Taps { taps } => {
                if let Some(lookout) = &mut self.passage.lookout {
                    lookout.set_taps(&taps);
                }
            }
            Reply::Sync { token } => self.post(&Request::Synced { token }),
            Reply::Message { from, payload, token } => {
                let answer = self.passage.engine.message(from, &payload, now_ns);
                if let Some(token) = token {
                    self.post(&Request::Answer { token, result: answer.and_then(short_enough) });
                }
                self.passage.pass_on(None, now_ns)?;
            }
            Reply::Sent { token, result } => {
                self.passage.engine.sent(MessageToken(token), result, now_ns);
                self.passage.pass_on(None, now_ns)?;
            }
            other => tracing::debug!("not for an attached NF: {other:?}"),
        }
        Ok(())
    }

    /// The ring that comes with the message just read.
    fn open_edge(&mut self, nf: u16, ring_capacity: u32) -> Result<EdgeRing, RunError> {
        let fault = |why: String| RunError::Edge { nf, why };
        if nf == NO_NF {
            return Err(fault("this number stands for no NF".into()));
        }
        let fd: Option<OwnedFd> = self.mailbox.take_fd();
        let fd = fd.ok_or_else(|| fault("its descriptor did not come along".into()))?;
        EdgeRing::from_fd(fd, ring_capacity).map_err(|error| fault(error.to_string()))
    }

    /// Says something to the manager. One that is gone is noticed by listening.
    fn post(&mut self, message: &Request) {
        if let Err(error) = self.mailbox.post(message) {
            tracing::debug!("{error}");
        }
    }

    /// Hands the NF's messages to the socket, as long as it takes them.
    fn send_messages(&mut self) {
        while !self.mailbox.has_unsent()
            && let Some(Outgoing { token, target, payload }) = self.passage.engine.outbox.take()
        {
            self.post(&Request::Send { target, payload, token: token.0 });
        }
    }

    /// Begins to leave, once.
    fn ask_to_leave(&mut self, why: &str, now_ns: u64) -> Result<(), RunError> {
        if self.phase == Phase::Running {
            tracing::info!("leaving: {why}");
            self.tell_leaving(now_ns)?;
            self.phase = Phase::Detaching { since_ns: now_ns };
            self.post(&Request::Detach);
        }
        if matches!(self.phase, Phase::Detaching { .. }) {
            // The answer comes soon: look for it in every turn.
            self.next_control_ns = now_ns;
        }
        Ok(())
    }

    fn tell_leaving(&mut self, now_ns: u64) -> Result<(), RunError> {
        self.passage.engine.leaving(now_ns);
        self.passage.pass_on(None, now_ns)?;
        Ok(())
    }

    /// Nothing more will come: whatever is in the rings is the last.
    fn drain(&mut self, now_ns: u64) -> Result<(), RunError> {
        if self.phase == Phase::Running {
            self.tell_leaving(now_ns)?;
        }
        self.phase = Phase::Draining { since_ns: now_ns };
        Ok(())
    }

    /// Whether packets have gone on coming for too long: they circulate.
    fn overstays(&self, now_ns: u64) -> bool {
        matches!(self.phase, Phase::Draining { since_ns } if now_ns - since_ns > LAST_PACKETS_NS)
    }

    /// Returns what the NF holds, and waits until it is taken.
    fn leave(&mut self) -> Result<(), RunError> {
        let begun_ns = self.now_ns();
        self.passage.engine.drop_held();
        loop {
            let now_ns = self.now_ns();
            if self.passage.pass_on(None, now_ns).is_err() || !self.passage.outputs.have_leftovers()
            {
                break;
            }
            if now_ns - begun_ns > LEAVE_TIMEOUT_NS {
                tracing::warn!(
                    "the manager does not take the last packets; it will find them itself"
                );
                break;
            }
            std::thread::sleep(FULL_RING_PAUSE);
        }
        self.publish_counters();
        self.look_at_costs(self.now_ns());
        let engine = &self.passage.engine;
        tracing::info!(
            "{} packets in, {} out, {} of them dropped ({} for want of room to hold), {} refused by \
             the next NF, {} impossible descriptors",
            self.passage.rx_pkts,
            self.passage.tx_pkts,
            self.passage.drop_pkts,
            engine.hold_overflow_pkts,
            self.passage.outputs.refused_pkts(),
            engine.refused_pkts,
        );
        Ok(())
    }
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// An answer that a message can carry.
fn short_enough(answer: Vec<u8>) -> Result<Vec<u8>, String> {
    match answer.len() {
        0..=MAX_MESSAGE_BYTES => Ok(answer),
        len => Err(format!("the answer of {len} bytes is longer than {MAX_MESSAGE_BYTES}")),
    }
}
