//! From the manager's pipe to wherever the packets are to go, until an end, a signal, or nobody wants more.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Context as _;
use millrace::observe::pcapng;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::blocks::{Blocks, Seen, each};

/// What is read at once, bytes.
const READ_BYTES: usize = 256 << 10;
/// Most that is still read of a pipe after a signal, bytes: more than a pipe holds.
const LAST_BYTES: usize = 4 << 20;

/// Where packets go.
pub trait Sink {
    /// Takes some whole blocks. An error of the kind `BrokenPipe` says that nobody wants more.
    fn take(&mut self, blocks: &[u8]) -> std::io::Result<()>;

    /// A descriptor that tells by POLLERR that nobody wants more.
    fn output(&self) -> Option<BorrowedFd<'_>>;

    /// Whether what is written is a file of its own that has to end well.
    fn is_file(&self) -> bool;
}

/// Blocks as they are.
pub struct Copy<W>(W);

impl<W: Write + AsFd> Copy<W> {
    /// Into a file or a pipe.
    pub fn new(output: W) -> Self {
        Self(output)
    }
}

impl<W: Write + AsFd> Sink for Copy<W> {
    fn take(&mut self, blocks: &[u8]) -> std::io::Result<()> {
        self.0.write_all(blocks)?;
        self.0.flush()
    }

    fn output(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }

    fn is_file(&self) -> bool {
        true
    }
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At a limit: all that there was is written.
    Complete,
    /// The manager ended before its capture did.
    ManagerGone,
    /// SIGINT, SIGTERM or SIGHUP.
    Signal,
    /// Nobody wants more.
    SinkGone,
}

/// Reads captures; signals wait for it, from when it was made.
pub struct Pump {
    signals: SignalFd,
    blocks: Blocks,
    /// What went by.
    pub seen: Seen,
}

impl Pump {
    /// Takes the signals that end a program for itself.
    ///
    /// # Errors
    /// Those of signalfd(2).
    pub fn new() -> anyhow::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block().context("signals cannot be blocked")?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("signals cannot be waited for")?;
        Ok(Self { signals, blocks: Blocks::default(), seen: Seen::default() })
    }

    /// Until the capture ends, a signal comes, or the sink has enough.
    ///
    /// # Errors
    /// Of reading and of the sink; or what comes is no pcapng.
    pub fn run(&mut self, mut reader: &File, sink: &mut impl Sink) -> anyhow::Result<End> {
        let mut bytes = vec![0; READ_BYTES];
        loop {
            if let Some(end) = self.wait(reader, sink)? {
                return Ok(end);
            }
            let count = match reader.read(&mut bytes) {
                Ok(0) if self.seen.is_complete() => return Ok(End::Complete),
                Ok(0) => return Ok(End::ManagerGone),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("reading what was captured"),
            };
            if !self.pass_on(&bytes[..count], sink)? {
                return Ok(End::SinkGone);
            }
        }
    }

    /// Until there is something to read; an end, if there is one before.
    fn wait(&self, reader: &File, sink: &impl Sink) -> anyhow::Result<Option<End>> {
        loop {
            let mut ends = vec![
                PollFd::new(reader.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            ends.extend(sink.output().map(|fd| PollFd::new(fd, PollFlags::empty())));
            match poll(&mut ends, PollTimeout::NONE) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error).context("waiting for packets"),
            }
            let has = |at: usize, flags| {
                ends.get(at)
                    .and_then(PollFd::revents)
                    .is_some_and(|events| events.intersects(flags))
            };
            if has(1, PollFlags::POLLIN) {
                return Ok(Some(End::Signal));
            }
            if has(2, PollFlags::POLLERR) {
                return Ok(Some(End::SinkGone));
            }
            if has(0, PollFlags::POLLIN | PollFlags::POLLHUP) {
                return Ok(None);
            }
        }
    }

    /// False when the sink has enough.
    fn pass_on(&mut self, bytes: &[u8], sink: &mut impl Sink) -> anyhow::Result<bool> {
        self.blocks.extend(bytes)?;
        each(self.blocks.whole(), |block| self.seen.note(&block))?;
        let taken = sink.take(self.blocks.whole());
        self.blocks.clear_whole();
        match taken {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(error).context("writing what was captured"),
        }
    }

    /// After a signal: what is in the pipe still, and the counts that the manager would have written.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn last_words(
        &mut self,
        mut reader: &File,
        sink: &mut impl Sink,
        lost_pkts: u64,
    ) -> anyhow::Result<()> {
        fcntl(reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("the capture's pipe")?;
        let mut bytes = vec![0; READ_BYTES];
        let mut read_bytes = 0;
        while read_bytes < LAST_BYTES {
            match reader.read(&mut bytes) {
                Ok(0) => break,
                Ok(count) => {
                    read_bytes += count;
                    if !self.pass_on(&bytes[..count], sink)? {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("reading what was captured"),
            }
        }
        if !sink.is_file() || self.seen.interfaces.is_empty() {
            return Ok(());
        }
        let mut end = Vec::new();
        let told: u64 =
            self.seen.interfaces.iter().map(|(_, lost)| *lost).fold(0, u64::saturating_add);
        for (number, &(pkts, told_lost_pkts)) in (0..).zip(&self.seen.interfaces) {
            // What no packet has told of is put to the first.
            let untold_pkts = if number == 0 { lost_pkts.saturating_sub(told) } else { 0 };
            let counted = pcapng::Statistics {
                interface: number,
                time_unix_ns: self.seen.last_unix_ns,
                lost_pkts: Some(told_lost_pkts.saturating_add(untold_pkts)),
                delivered_pkts: Some(pkts),
                ..pcapng::Statistics::default()
            };
            pcapng::statistics(&mut end, &counted);
        }
        match sink.take(&end) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(error).context("writing what was captured")
            }
            _ => Ok(()),
        }
    }
}
