//! The writing end of a capture's pipe: whole blocks or none, without waiting.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

/// What a pipe may hold, bytes, where the system lets us have it: its limit for who is not root.
const PIPE_BYTES: i32 = 1 << 20;
/// Most bytes that wait here for room in the pipe.
const MAX_WAITING_BYTES: usize = 256 << 10;
/// Written at once from here on, also while more comes.
const FLUSH_BYTES: usize = 64 << 10;

/// The writing end.
#[derive(Debug)]
pub(super) struct Outlet {
    /// `None`: nobody reads any more.
    pipe: Option<File>,
    /// Whole blocks, the first of them perhaps written in part.
    waiting: Vec<u8>,
    /// How much of `waiting` is written.
    written: usize,
}

impl Outlet {
    /// A pipe, and its reading end, which blocks.
    ///
    /// # Errors
    /// Those of pipe(2).
    pub(super) fn create() -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        // One of the usual size holds less and does as well.
        let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok((Self { pipe: Some(writer.into()), waiting: Vec::new(), written: 0 }, reader))
    }

    /// Takes all of these bytes, if there is room.
    pub(super) fn put(&mut self, block: &[u8]) -> bool {
        if !self.has_room(block.len()) {
            self.flush();
            if !self.has_room(block.len()) {
                return false;
            }
        }
        self.put_last(block);
        if self.waiting_bytes() >= FLUSH_BYTES {
            self.flush();
        }
        true
    }

    /// Takes these bytes in any case: the last ones, of which there are few.
    pub(super) fn put_last(&mut self, block: &[u8]) {
        if self.pipe.is_some() {
            self.waiting.extend_from_slice(block);
        }
    }

    fn has_room(&self, len: usize) -> bool {
        self.waiting_bytes() + len <= MAX_WAITING_BYTES
    }

    fn waiting_bytes(&self) -> usize {
        self.waiting.len() - self.written
    }

    /// Writes what the pipe has room for.
    pub(super) fn flush(&mut self) {
        while let Some(pipe) = &mut self.pipe
            && self.written < self.waiting.len()
        {
            match pipe.write(&self.waiting[self.written..]) {
                Ok(0) => break,
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.close(),
            }
        }
        self.waiting.drain(..self.written);
        self.written = 0;
    }

    /// Nothing waits, or nobody reads.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting_bytes() == 0
    }

    /// Whether nobody reads any more.
    pub(super) fn is_closed(&mut self) -> bool {
        if let Some(pipe) = &self.pipe {
            let mut ends = [PollFd::new(pipe.as_fd(), PollFlags::empty())];
            let asked = poll(&mut ends, PollTimeout::ZERO);
            let gone = ends[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR));
            if asked.is_ok() && gone {
                self.close();
            }
        }
        self.pipe.is_none()
    }

    fn close(&mut self) {
        *self = Self { pipe: None, waiting: Vec::new(), written: 0 };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_pipe_that_is_full_takes_whole_blocks_or_none_and_memory_is_bounded() {
        let (mut outlet, reader) = Outlet::create().unwrap();
        let block = |number: u32| [&number.to_le_bytes()[..], &[0; 9_996]].concat();
        let taken: Vec<_> = (0..1000).filter(|&number| outlet.put(&block(number))).collect();
        assert!(taken.len() < 1000, "a pipe without end");
        assert!(outlet.waiting.capacity() <= 2 * MAX_WAITING_BYTES);
        let writer = std::thread::spawn(move || {
            while !outlet.is_empty() {
                outlet.flush();
                std::thread::yield_now();
            }
        });
        let mut read = Vec::new();
        File::from(reader).read_to_end(&mut read).unwrap();
        writer.join().unwrap();
        let (blocks, rest) = read.as_chunks::<10_000>();
        assert!(rest.is_empty(), "a torn block");
        let found: Vec<_> =
            blocks.iter().map(|b| u32::from_le_bytes(*b.first_chunk().unwrap())).collect();
        assert_eq!(found, taken);
    }

    #[test]
    fn that_nobody_reads_is_noticed_without_writing() {
        let (mut outlet, reader) = Outlet::create().unwrap();
        assert!(!outlet.is_closed());
        drop(reader);
        assert!(outlet.is_closed());
        assert!(outlet.put(b"x") && outlet.is_empty());
    }
}
