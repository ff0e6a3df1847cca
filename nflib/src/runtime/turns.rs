//! The loop of an attached NF: rings in, the NF, rings out.
//!
//! One ring pair, a *lane*, joins the NF to each worker of the manager. A packet goes back by the
//! lane it came from, and the slots of a burst are released only when all of it has been passed on
//! or is held, so that a burst in work is still in the ring for the manager to see.
//!
//! While there is work the loop drains it, and yields the core after each [`QUANTUM_PKTS`] so that
//! several NFs can share it. Without work it looks again a few times, yields for longer, and
//! then sleeps until the manager wakes it.
#![forbid(unsafe_code)]

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::RunError;
use super::attach::Attachment;
use crate::burst::MAX_BURST_PKTS;
use crate::context::Departure;
use crate::control::{self, FrameReader, MAX_REPLY_BYTES, Reply, Request};
use crate::descriptor::{ActionCode, Delivery, Returned};
use crate::engine::Engine;
use crate::nf::{Action, NetworkFunction, Setup};
use crate::shm::{Channel, Consumer, NfCounter, Producer};

/// Packets processed before the core is offered to others. A yield for each burst of 32 costs a
/// chain on one core nine tenths of its rate.
const QUANTUM_PKTS: usize = 1024;
/// Empty looks at the rings before the core is offered to others.
const SPIN_TURNS: u32 = 64;
/// Empty looks, each with a yield, before the loop sleeps.
const YIELD_TURNS: u32 = 1024;
/// Longest sleep: how late a message of the manager may be noticed.
const MAX_SLEEP: Duration = Duration::from_millis(50);
/// How long a full return ring is left alone when it stays full.
const FULL_RING_PAUSE: Duration = Duration::from_micros(100);
/// How often the control socket is looked at while there is work.
const CONTROL_INTERVAL_NS: u64 = 10_000_000;
/// How long the manager may take to stop delivering, and to take the last packets.
const LEAVE_TIMEOUT_NS: u64 = 2_000_000_000;

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// In good order.
    Stopped,
    /// The connection broke.
    ManagerGone,
}

/// What the control socket had to say.
enum Word {
    Nothing,
    Stop(String),
    Detached,
    Gone,
}

/// Where the loop stands on its way out.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Running,
    /// Asked the manager to stop delivering; since when.
    Detaching {
        since_ns: u64,
    },
    /// Nothing more will come.
    Draining,
}

/// The ring pair of one worker.
struct Lane {
    deliveries: Consumer<Delivery>,
    returns: Producer<Returned>,
    /// Decided and not yet pushed, oldest first.
    unsent: Vec<Returned>,
}

pub(super) struct Turns<'n, N> {
    engine: Engine<&'n mut N>,
    socket: UnixStream,
    reader: FrameReader,
    channel: Channel,
    lanes: Vec<Lane>,
    clock: Instant,
    phase: Phase,
    next_control_ns: u64,
    turns: u64,
    rx_pkts: u64,
    tx_pkts: u64,
    drop_pkts: u64,
    busy_ns: u64,
    /// When the turn before this one began, if it had work.
    busy_since_ns: Option<u64>,
}

impl<'n, N: NetworkFunction> Turns<'n, N> {
    pub(super) fn new(
        nf: &'n mut N,
        attachment: Attachment,
        first_arrival: u64,
    ) -> Result<Self, RunError> {
        let Attachment { socket, region, channel, terms } = attachment;
        let hold_cap_pkts = (terms.region.buffers / 4).max(1) as usize;
        let setup = Setup {
            service: terms.service,
            instance: terms.instance,
            region: terms.region,
            hold_limit_pkts: nf.hold_limit_pkts().min(hold_cap_pkts),
        };
        let lanes = (0..channel.geometry().workers)
            .filter_map(|worker| channel.nf_ends(worker))
            .map(|(deliveries, returns)| Lane { deliveries, returns, unsent: Vec::new() })
            .collect();
        Ok(Self {
            engine: Engine::new(nf, region, setup, first_arrival, 0)?,
            socket,
            reader: FrameReader::new(MAX_REPLY_BYTES),
            channel,
            lanes,
            clock: Instant::now(),
            phase: Phase::Running,
            next_control_ns: 0,
            turns: 0,
            rx_pkts: 0,
            tx_pkts: 0,
            drop_pkts: 0,
            busy_ns: 0,
            busy_since_ns: None,
        })
    }

    /// Numbers of packets of the next attachment start here.
    pub(super) fn next_arrival(&self) -> u64 {
        self.engine.next_arrival
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Turns until `stop` is set, the NF or the manager asks to end, or the manager vanishes.
    pub(super) fn run(&mut self, stop: &AtomicBool) -> Result<Ending, RunError> {
        let mut idle_turns = 0;
        let mut quantum_pkts = 0;
        loop {
            let now_ns = self.now_ns();
            if now_ns >= self.next_control_ns {
                self.next_control_ns = now_ns + CONTROL_INTERVAL_NS;
                if self.listen(now_ns) == Ending::ManagerGone {
                    return Ok(Ending::ManagerGone);
                }
            }
            if stop.load(Ordering::Relaxed) || self.engine.stop {
                self.ask_to_leave(now_ns);
            }
            let moved_pkts = self.turn(now_ns)?;
            if moved_pkts > 0 {
                idle_turns = 0;
                quantum_pkts += moved_pkts;
                if quantum_pkts >= QUANTUM_PKTS {
                    quantum_pkts = 0;
                    std::thread::yield_now();
                }
                continue;
            }
            quantum_pkts = 0;
            if self.phase == Phase::Draining && self.lanes.iter().all(|l| l.deliveries.is_empty()) {
                self.leave(now_ns)?;
                return Ok(Ending::Stopped);
            }
            idle_turns += 1;
            self.idle(idle_turns);
        }
    }

    /// One look at every lane, and at the clock. Returns the packets moved.
    fn turn(&mut self, now_ns: u64) -> Result<usize, RunError> {
        if let Some(since_ns) = self.busy_since_ns.take() {
            self.busy_ns += now_ns - since_ns;
            self.channel.set_nf_counter(NfCounter::BusyNs, self.busy_ns);
        }
        let mut moved_pkts = 0;
        for lane in 0..self.lanes.len() {
            moved_pkts += self.serve(lane, now_ns)?;
        }
        if self.engine.tick_if_due(now_ns) {
            self.dispatch();
            moved_pkts += self.flush_all()?;
        }
        self.turns += 1;
        self.channel.set_nf_counter(NfCounter::Progress, self.turns);
        if moved_pkts > 0 {
            self.busy_since_ns = Some(now_ns);
            self.publish_counters();
        }
        Ok(moved_pkts)
    }

    /// A burst of one lane: read, process, pass on, and only then release.
    fn serve(&mut self, number: usize, now_ns: u64) -> Result<usize, RunError> {
        let lane = &mut self.lanes[number];
        let sent_pkts = lane.flush()?;
        if !lane.unsent.is_empty() {
            // The manager does not keep up; what it has not taken stays here, and so does the rest
            // in its ring.
            return Ok(sent_pkts);
        }
        lane.deliveries.release();
        let mut burst = [Delivery::default(); MAX_BURST_PKTS];
        let count = lane.deliveries.read_burst(&mut burst)?;
        if count == 0 {
            return Ok(sent_pkts);
        }
        self.rx_pkts += count as u64;
        self.engine.run_burst(&burst[..count], number as u16, now_ns);
        self.dispatch();
        self.flush_all()?;
        let lane = &mut self.lanes[number];
        if lane.unsent.is_empty() {
            lane.deliveries.release();
        }
        Ok(count)
    }

    /// Puts what the NF decided on the lanes the packets came from.
    fn dispatch(&mut self) {
        for departure in self.engine.out.drain(..) {
            self.tx_pkts += 1;
            self.drop_pkts += u64::from(departure.action == Action::Drop);
            if let Some(lane) = self.lanes.get_mut(usize::from(departure.slot.lane)) {
                lane.unsent.push(descriptor(&departure));
            }
        }
    }

    fn flush_all(&mut self) -> Result<usize, RunError> {
        let mut sent_pkts = 0;
        for lane in &mut self.lanes {
            sent_pkts += lane.flush()?;
        }
        Ok(sent_pkts)
    }

    fn publish_counters(&self) {
        let held_pkts = self.engine.held_pkts() as u64;
        self.channel.set_nf_counter(NfCounter::RxPkts, self.rx_pkts);
        self.channel.set_nf_counter(NfCounter::TxPkts, self.tx_pkts);
        self.channel.set_nf_counter(NfCounter::DropPkts, self.drop_pkts);
        self.channel.set_nf_counter(NfCounter::HeldPkts, held_pkts);
    }

    /// What to do with a turn that found nothing.
    fn idle(&self, idle_turns: u32) {
        if idle_turns <= SPIN_TURNS {
            std::hint::spin_loop();
        } else if idle_turns <= SPIN_TURNS + YIELD_TURNS {
            std::thread::yield_now();
        } else if self.lanes.iter().any(|lane| !lane.unsent.is_empty()) {
            std::thread::sleep(FULL_RING_PAUSE);
        } else {
            let until_tick = self
                .engine
                .next_tick_ns()
                .map(|due_ns| Duration::from_nanos(due_ns.saturating_sub(self.now_ns())));
            let limit = until_tick.map_or(MAX_SLEEP, |until| until.min(MAX_SLEEP));
            let is_idle = || self.lanes.iter().all(|lane| lane.deliveries.is_empty());
            self.channel.sleep_nf(limit, is_idle);
        }
    }

    /// Hears what the manager says.
    fn listen(&mut self, now_ns: u64) -> Ending {
        match self.next_word() {
            Word::Gone => return Ending::ManagerGone,
            Word::Stop(reason) => {
                tracing::info!("told to stop: {reason}");
                self.phase = Phase::Draining;
            }
            Word::Detached => self.phase = Phase::Draining,
            Word::Nothing => {}
        }
        match self.phase {
            Phase::Detaching { since_ns } if now_ns - since_ns > LEAVE_TIMEOUT_NS => {
                tracing::warn!("the manager does not answer; leaving without it");
                self.phase = Phase::Draining;
            }
            _ => {}
        }
        Ending::Stopped
    }

    fn next_word(&mut self) -> Word {
        let mut bytes = [0; 4096];
        loop {
            match self.reader.next_message::<Reply>() {
                Ok(Some(Reply::Stop { reason })) => return Word::Stop(reason),
                Ok(Some(Reply::Detached)) => return Word::Detached,
                Ok(Some(_)) => continue,
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!("{error}");
                    return Word::Gone;
                }
            }
            match self.socket.read(&mut bytes) {
                Ok(0) => return Word::Gone,
                Ok(n) => self.reader.extend(&bytes[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Word::Nothing,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Word::Gone,
            }
        }
    }

    /// Begins to leave, once.
    fn ask_to_leave(&mut self, now_ns: u64) {
        if self.phase == Phase::Running {
            tracing::info!("stopping");
            self.phase = Phase::Detaching { since_ns: now_ns };
            if control::send(&self.socket, &Request::Detach, &[]).is_err() {
                self.phase = Phase::Draining;
            }
        }
        if matches!(self.phase, Phase::Detaching { .. }) {
            // The answer comes soon: look for it in every turn.
            self.next_control_ns = now_ns;
        }
    }

    /// Returns what the NF holds, and waits until the manager has taken it.
    fn leave(&mut self, now_ns: u64) -> Result<(), RunError> {
        self.engine.drop_held();
        self.dispatch();
        while self.flush_all().is_ok() && self.lanes.iter().any(|lane| !lane.unsent.is_empty()) {
            if self.now_ns() - now_ns > LEAVE_TIMEOUT_NS {
                tracing::warn!(
                    "the manager does not take the last packets; it will find them itself"
                );
                break;
            }
            std::thread::sleep(FULL_RING_PAUSE);
        }
        for lane in &mut self.lanes {
            lane.deliveries.release();
        }
        self.publish_counters();
        let (overflow, refused) = (self.engine.hold_overflow_pkts, self.engine.refused_pkts);
        tracing::info!(
            "{} packets in, {} out, {} of them dropped ({overflow} for want of room to hold, \
             {refused} impossible descriptors)",
            self.rx_pkts,
            self.tx_pkts,
            self.drop_pkts,
        );
        Ok(())
    }
}

impl Lane {
    /// Pushes what fits; the rest is kept, in order.
    fn flush(&mut self) -> Result<usize, RunError> {
        if self.unsent.is_empty() {
            return Ok(0);
        }
        let sent = self.returns.push_burst(&self.unsent)?;
        self.unsent.drain(..sent);
        Ok(sent)
    }
}

fn descriptor(departure: &Departure) -> Returned {
    let slot = &departure.slot;
    let (action, target) = match departure.action {
        // A held packet never departs; if one did, dropping it would be the least harm.
        Action::Drop | Action::Hold => (ActionCode::Drop, 0),
        Action::Next => (ActionCode::Next, 0),
        Action::ToService(service) => (ActionCode::ToService, service),
        Action::Out(port) => (ActionCode::Out, u16::from(port)),
    };
    Returned {
        reserved: 0,
        buffer: slot.lease.buffer(),
        offset_bytes: slot.offset,
        len_bytes: slot.len,
        flow_hash: slot.flow_hash,
        target,
        action: action as u8,
    }
}
