//! The decoder of one peer's sessions: lets originals out at once, and brings lost ones back.
//!
//! An original is let out where it lies; a copy stays in the session's window, for its block may need
//! it. Repair packets of blocks in which nothing is missing are dropped, the others are kept until
//! there are as many as packets are missing. Then the block is solved, once, and what comes out is
//! checked before it is let out.
//!
//! All memory is bounded: a window of packets and bytes and a number of waiting blocks for every
//! session, and a number of sessions. Nothing is allocated for a packet, but for the first of a
//! session while there is memory that no session has used yet.
//!
//! A packet that is missing is given up when its window has passed, or after a time. From then on its
//! number is *settled*; that is also when it is counted in reports.
#![forbid(unsafe_code)]

mod blocks;
mod config;
pub mod fuzz;
mod session;
mod solver;
mod window;

pub use config::{
    BLOCKS, DecoderConfig, DecoderConfigError, DecoderStats, InOrder, REPORT_NS, Reject, Rejected,
    SETTLE_NS, Verdict, WINDOW_PKTS,
};

use std::collections::VecDeque;

use self::blocks::Blocks;
use self::session::{Ready, Session, Shared};
use self::solver::Solver;
use self::window::Slot;
use crate::kernel::Kernel;
use crate::report::REPORT_MAX_BYTES;
use crate::wire::{self, Packet, Stream};

/// Fewest packets that may wait to be fetched.
const READY_PKTS: usize = 1024;
const NO_SESSION: u32 = u32::MAX;

/// The decoder of one peer.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    sessions: Vec<Session>,
    /// How many there may be.
    sessions_max: usize,
    /// Where each accepted session is.
    places: Vec<u32>,
    shared: Shared,
    report: [u8; REPORT_MAX_BYTES],
}

impl Decoder {
    /// A decoder without sessions: they come with their first packets.
    ///
    /// # Errors
    /// [`DecoderConfigError`].
    pub fn new(config: DecoderConfig, kernel: Kernel) -> Result<Self, DecoderConfigError> {
        config.check()?;
        let session_bytes = session_bytes(&config);
        let accepted = usize::from(config.sessions.end() - config.sessions.start()) + 1;
        let sessions_max = (config.memory_bytes / session_bytes).min(accepted);
        if sessions_max == 0 {
            let bytes = config.memory_bytes;
            return Err(DecoderConfigError::Memory { bytes, session_bytes });
        }
        let window = if config.in_order.is_some() { config.window_pkts } else { 0 };
        let shared = Shared {
            stats: DecoderStats::default(),
            ready: VecDeque::with_capacity(READY_PKTS.max(2 * window)),
            solver: Solver::new(kernel, config.inner_max_bytes),
            in_order: config.in_order,
            settle_ns: config.settle_ns,
            report_ns: config.report_ns,
            tick_due_ns: u64::MAX,
            report_due_ns: u64::MAX,
        };
        Ok(Self {
            sessions: Vec::with_capacity(sessions_max),
            sessions_max,
            places: vec![NO_SESSION; accepted],
            shared,
            report: [0; REPORT_MAX_BYTES],
            config,
        })
    }

    /// Takes a UDP payload of the peer. Afterwards fetch what it brought back:
    /// [`Decoder::next_recovered`] until it gives none.
    pub fn receive(&mut self, now_ns: u64, payload: &[u8]) -> Verdict {
        self.tick(now_ns);
        let verdict = self.take(now_ns, payload);
        if let Verdict::Reject(reason) = verdict {
            self.shared.stats.rejected.add(reason);
        }
        verdict
    }

    /// The next inner packet that was brought back; with in-order release, the next that was held.
    pub fn next_recovered(&mut self, now_ns: u64) -> Option<&[u8]> {
        self.tick(now_ns);
        let Ready { session, position, len_bytes } = loop {
            let ready = self.shared.ready.pop_front()?;
            let window = &self.sessions.get(ready.session)?.window;
            if window.bytes(ready.position, ready.len_bytes.into()).is_some() {
                break ready;
            }
            self.shared.stats.undelivered += 1;
        };
        self.sessions.get(session)?.window.bytes(position, len_bytes.into())
    }

    /// The next report that is due: a UDP payload for the encoder at the other end.
    pub fn next_report(&mut self, now_ns: u64) -> Option<&[u8]> {
        self.tick(now_ns);
        if now_ns < self.shared.report_due_ns {
            return None;
        }
        let is_due = |session: &Session| session.report_due_ns().is_some_and(|due| due <= now_ns);
        let Some(session) = self.sessions.iter_mut().find(|session| is_due(session)) else {
            let dues = self.sessions.iter().filter_map(Session::report_due_ns);
            self.shared.report_due_ns = dues.min().unwrap_or(u64::MAX);
            return None;
        };
        self.shared.stats.reports += 1;
        // One count for all sessions, so that numbers go up even for one that had to be forgotten.
        let name = (self.config.run, self.shared.stats.reports as u32);
        let len = session.write_report(name, self.config.key.as_ref(), &mut self.report);
        Some(&self.report[..len])
    }

    /// When there is something to do without a packet: call [`Decoder::next_recovered`] and
    /// [`Decoder::next_report`] then. `None` while there is not.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        let deadline_ns = self.shared.tick_due_ns.min(self.shared.report_due_ns);
        (deadline_ns < u64::MAX).then_some(deadline_ns)
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> DecoderStats {
        self.shared.stats
    }

    /// Its settings.
    #[must_use]
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Most sessions at a time, and the memory of each, bytes.
    #[must_use]
    pub fn session_limits(&self) -> (usize, usize) {
        (self.sessions_max, session_bytes(&self.config))
    }

    fn take(&mut self, now_ns: u64, payload: &[u8]) -> Verdict {
        let packet = match wire::parse(payload, self.config.key.as_ref()) {
            Ok(packet) => packet,
            Err(error) => return Verdict::Reject(error.into()),
        };
        match packet {
            Packet::Report => Verdict::Report,
            Packet::Source { stream, sequence, inner } => {
                if inner.len() > self.config.inner_max_bytes {
                    return Verdict::Reject(Reject::TooLong);
                }
                if !matches!(inner[0] >> 4, 4 | 6) {
                    return Verdict::Reject(Reject::NotIp);
                }
                match self.session_of_source(now_ns, stream, sequence) {
                    Ok((session, shared)) => session.source(shared, now_ns, sequence, inner),
                    Err(reason) => Verdict::Reject(reason),
                }
            }
            Packet::Repair { stream, repair, coded } => {
                if coded.len() > self.config.inner_max_bytes {
                    return Verdict::Reject(Reject::TooLong);
                }
                match self.session_of_repair(stream) {
                    Ok((session, shared)) => session.repair(shared, now_ns, repair, coded),
                    Err(reason) => Verdict::Reject(reason),
                }
            }
        }
    }

    /// Where an accepted session is, or would be, in the table of places.
    fn place(&self, session: u16) -> Result<usize, Reject> {
        if !self.config.sessions.contains(&session) {
            return Err(Reject::Session);
        }
        Ok(usize::from(session - self.config.sessions.start()))
    }

    /// The session of a source packet, which may begin it, or a new epoch of it.
    fn session_of_source(
        &mut self,
        now_ns: u64,
        stream: Stream,
        sequence: u32,
    ) -> Result<(&mut Session, &mut Shared), Reject> {
        let place = self.place(stream.session)?;
        let known = self.places[place];
        let index = if known == NO_SESSION { self.make_room() } else { known as usize };
        let (session, shared) = (&mut self.sessions[index], &mut self.shared);
        if known == NO_SESSION {
            session.forget_epochs();
            session.start(shared, now_ns, stream, sequence);
            self.places[place] = index as u32;
            shared.stats.sessions += 1;
        } else {
            session.check_epoch(shared, now_ns, stream, sequence)?;
        }
        session.used_ns = now_ns;
        Ok((session, shared))
    }

    fn session_of_repair(&mut self, stream: Stream) -> Result<(&mut Session, &mut Shared), Reject> {
        let place = self.place(stream.session)?;
        let index = self.places[place] as usize;
        let session = self.sessions.get_mut(index).ok_or(Reject::Epoch)?;
        if session.stream != stream {
            return Err(Reject::Epoch);
        }
        Ok((session, &mut self.shared))
    }

    /// The index of a session that is nobody's: a new one, or the one that was silent for longest.
    fn make_room(&mut self) -> usize {
        if self.sessions.len() < self.sessions_max {
            self.sessions.push(Session::new(self.sessions.len(), &self.config));
            return self.sessions.len() - 1;
        }
        let silent = self.sessions.iter_mut().min_by_key(|session| session.used_ns);
        let Some(session) = silent else { return 0 };
        session.finish(&mut self.shared);
        let (index, number) = (session.index, session.stream.session);
        let waiting = self.shared.ready.len();
        self.shared.ready.retain(|ready| ready.session != index);
        self.shared.stats.undelivered += (waiting - self.shared.ready.len()) as u64;
        self.shared.stats.sessions -= 1;
        self.shared.stats.sessions_evicted += 1;
        if let Ok(place) = self.place(number) {
            self.places[place] = NO_SESSION;
        }
        index
    }

    fn tick(&mut self, now_ns: u64) {
        if now_ns < self.shared.tick_due_ns {
            return;
        }
        self.shared.tick_due_ns = u64::MAX;
        for session in &mut self.sessions {
            session.tick(&mut self.shared, now_ns);
        }
    }
}

/// Memory of one session.
fn session_bytes(config: &DecoderConfig) -> usize {
    size_of::<Session>()
        + config.window_bytes
        + config.window_pkts.next_power_of_two() * size_of::<Slot>()
        + config.blocks_max * Blocks::BYTES
}

#[cfg(test)]
mod tests;
