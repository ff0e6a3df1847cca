//! Alarms of the manager's workers: how an NF wakes a worker that sleeps.
//!
//! A worker that has nothing to do sleeps in `poll(2)`, since its ports must be able to wake it, and so
//! a futex will not do. It has a pipe, whose writing end the NFs of the trusted domain get, and a word
//! in each NF's channel that says whether it sleeps; while it does not, an NF only looks at that word.
//!
//! An NF that writes what it should not here can wake the worker for nothing, or keep another NF of
//! its domain from waking it, which then wakes at the end of its time-out. The reading end is a file
//! description of the worker's own, so that nobody can make its reads block.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::OFlag;

use super::Channel;

/// The worker's end.
#[derive(Debug)]
pub struct AlarmReceiver(OwnedFd);

/// An NF's end, as it travels to it.
#[derive(Debug)]
pub struct AlarmSender(OwnedFd);

/// Makes both ends.
///
/// # Errors
/// As pipe2(2).
pub fn worker_alarm() -> io::Result<(AlarmSender, AlarmReceiver)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    Ok((AlarmSender(write), AlarmReceiver(read)))
}

impl AlarmReceiver {
    /// Readable since somebody rang, until [`quiet`](Self::quiet).
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Turns the alarm off. What is rung for from now on turns it on again.
    pub fn quiet(&self) {
        let mut bytes = [0; 512];
        // One read: who writes without end shall not keep the worker here.
        let _ = nix::unistd::read(&self.0, &mut bytes);
    }
}

impl AlarmSender {
    /// The file, to hand to an NF.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How an NF wakes a worker.
#[derive(Debug)]
pub struct WorkerAlarm {
    channel: Arc<Channel>,
    worker: u16,
    pipe: OwnedFd,
}

impl WorkerAlarm {
    /// The alarm of a worker: `pipe` came with the channel.
    #[must_use]
    pub fn new(channel: Arc<Channel>, worker: u16, pipe: OwnedFd) -> Self {
        Self { channel, worker, pipe }
    }

    /// Wakes the worker if it sleeps. To be called after packets were given back; while the worker is
    /// awake it costs one load of a line that nobody writes.
    #[inline]
    pub fn ring(&self) {
        if self.channel.worker_sleeps(self.worker) {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        // The worker says it again before its next sleep.
        self.channel.set_worker_sleeps(self.worker, false);
        // One that is full is on already.
        let _ = nix::unistd::write(&self.pipe, &[1]);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::shm::ChannelGeometry;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn is_on(alarm: &AlarmReceiver) -> bool {
        poll(&mut [PollFd::new(alarm.fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
    }

    #[test]
    fn an_nf_wakes_a_worker_that_sleeps_and_leaves_one_that_does_not_alone() {
        let geometry = ChannelGeometry { workers: 2, ring_capacity: 8, buffers: 8 };
        let channel = Arc::new(Channel::create(geometry).unwrap());
        let (sender, receiver) = worker_alarm().unwrap();
        let pipe = sender.fd().try_clone_to_owned().unwrap();
        let alarm = WorkerAlarm::new(Arc::clone(&channel), 1, pipe);
        alarm.ring();
        assert!(!is_on(&receiver), "awake");
        channel.set_worker_sleeps(0, true);
        alarm.ring();
        assert!(!is_on(&receiver), "another worker");
        channel.set_worker_sleeps(1, true);
        alarm.ring();
        assert!(is_on(&receiver) && !channel.worker_sleeps(1), "woken once");
        receiver.quiet();
        assert!(!is_on(&receiver));
        receiver.quiet();
    }

    #[test]
    fn an_alarm_that_is_never_turned_off_blocks_nobody() {
        let geometry = ChannelGeometry { workers: 1, ring_capacity: 8, buffers: 8 };
        let channel = Arc::new(Channel::create(geometry).unwrap());
        let (sender, receiver) = worker_alarm().unwrap();
        let pipe = sender.fd().try_clone_to_owned().unwrap();
        let alarm = WorkerAlarm::new(Arc::clone(&channel), 0, pipe);
        for _ in 0..100_000 {
            channel.set_worker_sleeps(0, true);
            alarm.ring();
        }
        assert!(is_on(&receiver));
    }
}
