//! The observer: one thread that reads what workers and NFs tell of packets.
//!
//! It sleeps while nothing is asked for, and otherwise reads all rings in rounds. The control thread tells it
//! what changes, passes questions on and gets answers back by a channel, an eventfd saying that there are
//! some: neither ever waits for the other. What workers and NFs are to look at is the control thread's to
//! tell them.
//!
//! Nothing here delays an NF's end: its ring is a file of its own, which is read once more and then forgotten.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use nflib::control::{CaptureRequest, ErrorReply, Reply, TraceRequest};
use nflib::observe::TapSpec;
use nflib::shm::{TapFile, TapReader, set_nice};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::time::{ClockId, clock_gettime};

use super::captures::Captures;
use super::journeys::{Emptied, Journeys};
use super::latency::Latencies;
use super::point_list::capture_points;
use super::traces::{Traces, absent};
use super::{Directory, Source};
use crate::flow::Match;
use crate::plan::NfNumber;
use crate::status::now_ns;
use crate::worker::Observation;

/// Between two rounds, while somebody waits for what is seen.
const ROUND: Duration = Duration::from_millis(10);
/// Between two rounds, while only latencies are sampled.
const SAMPLING_ROUND: Duration = Duration::from_millis(100);
/// How long a round may go on to a further NF's ring.
const ROUND_LIMIT: Duration = Duration::from_millis(5);
/// The thread's nice level: packets come first.
const NICE: i32 = 5;

/// What somebody wants to know, or to be done.
#[derive(Debug)]
pub enum Question {
    /// Where packets can be captured.
    Points,
    /// To capture some.
    Capture(CaptureRequest),
    /// Which captures there are.
    Captures,
    /// To follow packets that this takes.
    Trace(Box<(TraceRequest, Match)>),
    /// What was seen of them.
    Traces(Option<u64>),
    /// To forget a trace.
    ForgetTrace(u64),
    /// How long packets take.
    Latency,
}

/// What the observer is told.
#[derive(Debug)]
pub enum Command {
    /// Names have changed.
    Directory(Arc<Directory>),
    /// An NF has come: its number, its instance id, its ring.
    NfCame(NfNumber, u32, Arc<TapFile>),
    /// An NF has gone.
    NfGone(NfNumber),
    /// A client asks.
    Ask {
        /// The connection to answer on.
        connection: u64,
        /// What.
        question: Question,
    },
}

/// What the observer has to say.
#[derive(Debug)]
pub enum Message {
    /// An answer.
    Answer {
        /// The connection that asked.
        connection: u64,
        /// What to send.
        reply: Box<Reply>,
        /// A descriptor to send along.
        fd: Option<OwnedFd>,
    },
    /// Workers are to look at other things, and so many bytes are to be kept of packets that are shown.
    Observe(Arc<Observation>, u16),
    /// An NF is to have these taps.
    Taps(u32, Vec<TapSpec>),
}

/// The observer, as the control thread has it. Ends its thread when dropped.
pub struct Observer {
    /// `None` while it ends.
    commands: Option<Sender<Command>>,
    messages: Receiver<Message>,
    alarm: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Observer {
    /// Starts it over the workers' rings; a worker marks one packet in `latency_interval_us`, 0: none.
    ///
    /// # Errors
    /// As the system says.
    pub fn start(workers: Vec<Arc<TapFile>>, latency_interval_us: u32) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let alarm = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let (commands, their_commands) = crossbeam_channel::unbounded();
        let (their_messages, messages) = crossbeam_channel::unbounded();
        let mut watcher = Watcher::new(workers, latency_interval_us);
        watcher.messages = Some((their_messages, Arc::clone(&alarm)));
        let thread = std::thread::Builder::new().name("observer".to_owned()).spawn(move || {
            if let Err(error) = set_nice(nix::unistd::gettid().as_raw(), NICE) {
                tracing::debug!(%error, "the observer competes with all others");
            }
            watcher.run(&their_commands);
        })?;
        Ok(Self { commands: Some(commands), messages, alarm, thread: Some(thread) })
    }

    /// Readable when there is something to [`take`](Self::take).
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.alarm.as_fd()
    }

    /// Tells it something.
    pub fn tell(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // Were it gone, there would be nothing to be told.
            let _ = commands.send(command);
        }
    }

    /// All that it has to say.
    pub fn take(&self) -> Vec<Message> {
        // It is empty more often than not.
        let _ = self.alarm.read();
        self.messages.try_iter().collect()
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A ring, as it is read.
struct Ring {
    reader: TapReader<Arc<TapFile>>,
    /// Events of marked packets that it said it had lost when it was last looked at.
    lost_marked: u64,
    /// It holds what is no event, and is read no more.
    broken: bool,
}

impl Ring {
    fn new(file: &Arc<TapFile>) -> Self {
        Self { reader: file.reader(), lost_marked: 0, broken: false }
    }
}

/// An NF whose ring is read.
struct WatchedNf {
    instance: u32,
    ring: Ring,
    /// The taps that it was told of.
    taps: Vec<TapSpec>,
}

/// What was put together so far.
#[derive(Default)]
struct Seen {
    directory: Arc<Directory>,
    journeys: Journeys,
    traces: Traces,
    latencies: Latencies,
    captures: Captures,
}

/// The thread's own.
struct Watcher {
    workers: Vec<Ring>,
    nfs: BTreeMap<NfNumber, WatchedNf>,
    /// The NF at which the next round begins: where time is short, all have their turn.
    first_nf: NfNumber,
    seen: Seen,
    latency_interval_us: u32,
    messages: Option<(Sender<Message>, Arc<EventFd>)>,
    /// What was told of: generations of captures and traces.
    told: (u64, u64),
    /// NFs came, or names changed: their taps are to be compared.
    nfs_changed: bool,
}

impl Watcher {
    fn new(workers: Vec<Arc<TapFile>>, latency_interval_us: u32) -> Self {
        Self {
            workers: workers.iter().map(Ring::new).collect(),
            nfs: BTreeMap::new(),
            first_nf: 0,
            seen: Seen { journeys: Journeys::new(), ..Seen::default() },
            latency_interval_us,
            messages: None,
            told: (0, 0),
            nfs_changed: false,
        }
    }

    fn run(mut self, commands: &Receiver<Command>) {
        if self.latency_interval_us > 0 {
            self.tell_observation();
        }
        let mut last = Instant::now();
        loop {
            let first = match self.pause() {
                None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(pause) => commands.recv_deadline(last + pause),
            };
            match first {
                Ok(command) => {
                    self.obey(command);
                    commands.try_iter().for_each(|command| self.obey(command));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.end(),
            }
            // Questions do not make rounds more frequent.
            if self.pause().is_some_and(|pause| last.elapsed() >= pause) {
                self.round();
                last = Instant::now();
            }
            self.tell_changes();
        }
    }

    /// How long until the next round; `None`: there is nothing to look at.
    fn pause(&self) -> Option<Duration> {
        let seen = &self.seen;
        let is_waited_for =
            seen.captures.is_active() || seen.traces.is_waiting() || seen.journeys.traced() > 0;
        if is_waited_for {
            Some(ROUND)
        } else if self.latency_interval_us > 0 || !seen.journeys.is_empty() {
            Some(SAMPLING_ROUND)
        } else {
            None
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Directory(directory) => {
                self.seen.directory = directory;
                self.nfs_changed = true;
            }
            Command::NfCame(nf, instance, file) => {
                let watched = WatchedNf { instance, ring: Ring::new(&file), taps: Vec::new() };
                self.nfs.insert(nf, watched);
                self.nfs_changed = true;
            }
            Command::NfGone(nf) => {
                if let Some(mut gone) = self.nfs.remove(&nf)
                    && self.pause().is_some()
                {
                    gone.ring.read(Source::Nf(nf), &mut self.seen);
                }
            }
            Command::Ask { connection, question } => {
                let (reply, fd) = match self.answer(question) {
                    Ok(answer) => answer,
                    Err(error) => (Reply::Error(error), None),
                };
                self.say(Message::Answer { connection, reply: Box::new(reply), fd });
            }
        }
    }

    fn answer(&mut self, question: Question) -> Result<(Reply, Option<OwnedFd>), ErrorReply> {
        let time_ns = now_ns();
        let Seen { directory, journeys, traces, latencies, captures } = &mut self.seen;
        let reply = match question {
            Question::Points => Reply::CapturePoints { points: capture_points(directory) },
            Question::Capture(request) => {
                let (id, reader) = captures.start(&request, directory, time_ns)?;
                return Ok((Reply::Capturing { id }, Some(reader)));
            }
            Question::Captures => Reply::Captures { captures: captures.status(time_ns) },
            Question::Trace(trace) => {
                let (request, matches) = *trace;
                Reply::Tracing { id: traces.start(request, matches, time_ns)? }
            }
            Question::Traces(id) => {
                let offset_ns = unix_offset_ns();
                let traces = traces.status(id, journeys, directory, time_ns, offset_ns)?;
                Reply::Traces { traces }
            }
            Question::ForgetTrace(id) => {
                let slot = traces.forget(id).ok_or_else(|| absent(id))?;
                journeys.forget(slot);
                Reply::Done
            }
            Question::Latency => {
                Reply::Latency(Box::new(latencies.report(self.latency_interval_us.into())))
            }
        };
        Ok((reply, None))
    }

    /// Reads every ring once, as far as time allows, and puts together what can be.
    fn round(&mut self) {
        let mut lost = Vec::new();
        let mut lost_marked = false;
        let mut emptied = Emptied { workers: true, nfs: true };
        for (number, ring) in (0..).zip(&mut self.workers) {
            let source = Source::Worker(number);
            emptied.workers &= ring.read(source, &mut self.seen);
            lost.push((source, ring.reader.lost_pkts()));
            lost_marked |= ring.loses_marks();
        }
        let (all, nfs_lose) = self.read_nfs(ROUND_LIMIT, &mut lost);
        emptied.nfs = all;
        if lost_marked || nfs_lose {
            self.seen.journeys.lost();
        }
        let time_ns = now_ns();
        self.seen.end_turn(emptied, time_ns);
        let Seen { captures, directory, traces, .. } = &mut self.seen;
        captures.turn(time_ns, &lost, directory);
        traces.turn(time_ns);
    }

    /// Reads the rings of NFs for so long, those first that were left out before; one in any case, or NFs would
    /// never be heard beside workers that have much to say. Returns whether it came to all, and whether events of marked
    /// packets were lost.
    fn read_nfs(&mut self, limit: Duration, lost: &mut Vec<(Source, u64)>) -> (bool, bool) {
        let (began, first) = (Instant::now(), self.first_nf);
        let order = self.nfs.range(first..).chain(self.nfs.range(..first));
        let order: Vec<_> = order.map(|(&nf, _)| nf).collect();
        let mut lose = false;
        for (read, nf) in order.into_iter().enumerate() {
            if read > 0 && began.elapsed() >= limit {
                self.first_nf = nf;
                return (false, lose);
            }
            let Some(watched) = self.nfs.get_mut(&nf) else { continue };
            watched.ring.read(Source::Nf(nf), &mut self.seen);
            lost.push((Source::Nf(nf), watched.ring.reader.lost_pkts()));
            lose |= watched.ring.loses_marks();
        }
        (true, lose)
    }

    /// Tells who has to look at other things.
    fn tell_changes(&mut self) {
        let Seen { captures, traces, .. } = &self.seen;
        let now = (captures.generation(), traces.generation());
        if now != self.told {
            self.tell_observation();
        }
        if now.0 != self.told.0 || std::mem::take(&mut self.nfs_changed) {
            let mut messages = Vec::new();
            for (&nf, watched) in &mut self.nfs {
                let taps = self.seen.captures.taps_for_nf(nf);
                if watched.taps != taps {
                    watched.taps = taps.to_vec();
                    messages.push(Message::Taps(watched.instance, taps.to_vec()));
                }
            }
            messages.into_iter().for_each(|message| self.say(message));
        }
        self.told = now;
    }

    fn tell_observation(&self) {
        let Seen { captures, traces, .. } = &self.seen;
        let observation = Observation {
            taps: captures.taps_for_workers().to_vec(),
            traces: traces.following(),
            latency_interval_ns: u64::from(self.latency_interval_us) * 1000,
            tap_share_ns: None,
        };
        self.say(Message::Observe(Arc::new(observation), traces.kept_bytes()));
    }

    fn say(&self, message: Message) {
        if let Some((messages, alarm)) = &self.messages {
            // Without a control thread the manager ends.
            let _ = messages.send(message);
            let _ = alarm.write(1);
        }
    }

    /// The manager ends: captures get what there is, and their end.
    fn end(mut self) {
        self.round();
        let time_ns = now_ns();
        for capture in self.seen.captures.status(time_ns) {
            self.seen.captures.end(capture.id, time_ns, &self.seen.directory);
        }
    }
}

impl Ring {
    /// Whether it has lost events of marked packets since it was asked last.
    fn loses_marks(&mut self) -> bool {
        let now = self.reader.lost_marked();
        std::mem::replace(&mut self.lost_marked, now) != now
    }

    /// Reads what there is; false when it cannot be read.
    fn read(&mut self, source: Source, seen: &mut Seen) -> bool {
        if self.broken {
            return false;
        }
        let Seen { directory, journeys, captures, .. } = seen;
        let result = self.reader.drain(usize::MAX, &mut |event, bytes| {
            if event.marked {
                journeys.event(source, &event, bytes);
            }
            if event.taps != 0 {
                captures.on_event(&source, &event, bytes, directory);
            }
        });
        if let Err(error) = result {
            tracing::warn!("what {source:?} tells of packets is read no more: {error}");
            self.broken = true;
        }
        !self.broken
    }
}

impl Seen {
    fn end_turn(&mut self, emptied: Emptied, time_ns: u64) {
        let Seen { directory, journeys, traces, latencies, .. } = self;
        let offset_ns = unix_offset_ns();
        journeys.end_turn(emptied, time_ns, directory, &mut |journey| match journey.trace {
            Some(_) => traces.take(&journey, directory, offset_ns),
            None => latencies.record(&journey),
        });
    }
}

/// What makes of a time of CLOCK_MONOTONIC one since 1970, nanoseconds.
fn unix_offset_ns() -> u64 {
    let unix = clock_gettime(ClockId::CLOCK_REALTIME).map(Duration::from).unwrap_or_default();
    u64::try_from(unix.as_nanos()).unwrap_or(u64::MAX).saturating_sub(now_ns())
}

#[cfg(test)]
mod tests;
