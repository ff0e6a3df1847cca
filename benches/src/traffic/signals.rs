//! Signals as events of a loop: end in good order, begin the next phase.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// SIGTERM or SIGINT: come to an end.
    Stop,
    /// SIGUSR1: the next phase begins.
    NextPhase,
}

/// The signals of this thread, which from now on come here only.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Takes SIGTERM, SIGINT and SIGUSR1 over. To be called before other threads start.
    ///
    /// # Errors
    /// The system calls'.
    pub fn take_over() -> io::Result<Self> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1] {
            mask.add(signal);
        }
        mask.thread_block()?;
        let fd = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { fd })
    }

    /// The next signal that has come.
    ///
    /// # Errors
    /// The system call's.
    pub fn next(&self) -> io::Result<Option<Asked>> {
        let signal = self.fd.read_signal()?;
        Ok(signal.map(|info| {
            if info.ssi_signo == Signal::SIGUSR1 as u32 { Asked::NextPhase } else { Asked::Stop }
        }))
    }

    /// Sleeps so long, or until a signal comes.
    ///
    /// # Errors
    /// The system call's.
    pub fn sleep(&self, time: Duration) -> io::Result<()> {
        let mut events = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut events, Some(TimeSpec::from_duration(time)), None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
