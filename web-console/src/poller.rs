//! The one who asks the manager for its status: once per interval, however many read the answer.
#![forbid(unsafe_code)]

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nflib::control::rates::Rates;
use nflib::control::{self, ControlError, MAX_REPLY_BYTES, Reply, Request, Status, request_status};
use tokio::sync::watch;

use crate::demand::Demand;
use crate::manager::{ManagerError, connect};
use crate::reading::{About, Reading, unix_ms};
use crate::record::Record;
use crate::seen::{Seen, Tally};

/// How long the manager may take to answer; it takes microseconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How often at most the manager is asked what is seen of packets.
const SEEN_INTERVAL: Duration = Duration::from_secs(1);

/// What the poller publishes.
#[derive(Clone, Debug)]
pub struct Readings {
    /// One per base interval, with rates over that time.
    pub calm: watch::Receiver<Reading>,
    /// Every one: as often as somebody wants them.
    pub live: watch::Receiver<Reading>,
}

/// Asks one manager for its status, and asks again.
#[derive(Debug)]
pub struct Poller {
    socket: PathBuf,
    interval: Duration,
    demand: Arc<Demand>,
    record: Arc<Record>,
    connection: Option<UnixStream>,
    /// The latest status.
    before: Option<Arc<Status>>,
    /// The latest that was published among the calm ones, and when.
    calm_before: Option<Arc<Status>>,
    calm_at: Option<Instant>,
    /// What is seen of packets, since when, and what is added up of it.
    seen: Arc<Seen>,
    seen_at: Option<Instant>,
    seen_number: u64,
    tally: Tally,
}

impl Poller {
    /// A poller of the manager at `socket`; it connects when it first asks.
    #[must_use]
    pub fn new(
        socket: PathBuf,
        interval: Duration,
        demand: Arc<Demand>,
        record: Arc<Record>,
    ) -> Self {
        Self {
            socket,
            interval,
            demand,
            record,
            connection: None,
            before: None,
            calm_before: None,
            calm_at: None,
            seen: Arc::default(),
            seen_at: None,
            seen_number: 0,
            tally: Tally::default(),
        }
    }

    fn ask(&mut self) -> Result<Status, ManagerError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.socket, ANSWER_LIMIT)
                .map_err(|error| ManagerError::io(&self.socket, error))?,
        };
        let status = request_status(&connection)
            .map_err(|error| ManagerError::control(&self.socket, error))?;
        // Kept only after a whole answer: a late one would otherwise answer the next question.
        self.connection = Some(connection);
        Ok(status)
    }

    /// Asks for something that a manager may not tell; `None` then.
    fn ask_for(&mut self, request: &Request) -> Option<Reply> {
        let connection = self.connection.take()?;
        let asked = control::send(&connection, request, &[])
            .and_then(|()| control::recv::<Reply>(&connection, MAX_REPLY_BYTES));
        match asked {
            Ok((reply, _)) => {
                self.connection = Some(connection);
                Some(reply)
            }
            // What it answered is whole, if not understood; after anything else the next one opens anew.
            Err(error) => {
                if matches!(error, ControlError::Malformed(_)) {
                    self.connection = Some(connection);
                }
                None
            }
        }
    }

    /// Asks what is seen of packets.
    fn look(&mut self) {
        let mut seen = Seen::default();
        if let Some(Reply::Latency(report)) = self.ask_for(&Request::Latency) {
            let report = Arc::new(*report);
            self.record.latency(&report, unix_ms());
            seen.latency = Some(report);
        }
        if let Some(Reply::Captures { captures }) = self.ask_for(&Request::Captures) {
            seen.captures = captures;
        }
        if let Some(Reply::Traces { traces }) = self.ask_for(&Request::Traces { id: None }) {
            seen.traces = traces;
        }
        if let Some(Reply::Crashes { crashes }) = self.ask_for(&Request::Crashes) {
            seen.crashes = crashes;
        }
        seen.sums = self.tally.observe(&seen.captures, &seen.traces);
        self.seen = Arc::new(seen);
    }

    fn about(&self, timeline_seq: u64, number: u64) -> About {
        About { interval: self.interval, timeline_seq, number }
    }

    /// Asks once and publishes; blocks for at most a few seconds while a manager says nothing.
    fn turn(&mut self, calm: &watch::Sender<Reading>, live: &watch::Sender<Reading>) {
        let (now, number) = (Instant::now(), self.demand.begin());
        // With some tolerance: a faster beat need not meet the interval exactly.
        let due = self.calm_at.is_none_or(|at| now - at + self.interval / 10 >= self.interval);
        // Whoever wants a reading at once has begun or forgotten a trace, or changed something.
        let wanted = number > self.seen_number;
        match self.ask() {
            Ok(status) => {
                let beat = SEEN_INTERVAL.min(self.interval);
                if wanted || self.seen_at.is_none_or(|at| now - at + beat / 10 >= beat) {
                    self.look();
                    (self.seen_at, self.seen_number) = (Some(now), number);
                }
                let status = Arc::new(status);
                let came = self.before.is_none();
                let seq = self.record.up(&status, unix_ms());
                let reading = |before: &Option<Arc<Status>>| {
                    let rates = before.as_ref().and_then(|before| Rates::between(before, &status));
                    let seen = Arc::clone(&self.seen);
                    Reading::up(Arc::clone(&status), rates, seen, self.about(seq, number))
                };
                live.send_replace(reading(&self.before));
                if due || came {
                    calm.send_replace(reading(&self.calm_before));
                    (self.calm_at, self.calm_before) = (Some(now), Some(Arc::clone(&status)));
                }
                if came {
                    let (version, pid) = (&status.version, status.pid);
                    tracing::info!(
                        version,
                        pid,
                        "the manager at {} answers",
                        self.socket.display()
                    );
                }
                self.before = Some(status);
            }
            Err(error) => {
                self.tally.interrupt();
                let went = self.before.take().is_some();
                if went || calm.borrow().away_message() != Some(&error.to_string()) {
                    tracing::warn!("away: {error}");
                }
                let seq = self.record.away(&error.to_string(), unix_ms());
                let about = self.about(seq, number);
                let reading = Reading::away(error.code(), error.to_string(), about);
                live.send_replace(reading.clone());
                if due || went {
                    calm.send_replace(reading);
                    self.calm_at = Some(now);
                }
                self.calm_before = None;
            }
        }
    }

    /// Publishes until nobody can receive any more.
    fn run(mut self, calm: &watch::Sender<Reading>, live: &watch::Sender<Reading>) {
        while !calm.is_closed() {
            let started = Instant::now();
            self.turn(calm, live);
            // After a slow answer no request is made up for.
            self.demand.wait(started, self.interval);
        }
    }
}

/// Starts a poller on a thread of its own; it ends when the last receiver is dropped.
///
/// A thread, because a manager that hangs may block it, and must block nothing else.
///
/// # Errors
/// When no thread can be had.
pub fn spawn(poller: Poller) -> io::Result<Readings> {
    let message = "the manager has not been asked yet".to_owned();
    let first = Reading::away("manager_away", message, poller.about(0, 0));
    let (calm_sender, calm) = watch::channel(first.clone());
    let (live_sender, live) = watch::channel(first);
    std::thread::Builder::new()
        .name("poller".to_owned())
        .spawn(move || poller.run(&calm_sender, &live_sender))?;
    Ok(Readings { calm, live })
}
