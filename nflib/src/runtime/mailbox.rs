//! The control socket of an attached NF: whole messages in, with the descriptors they announce, and
//! whole messages out, without ever blocking.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::control::{ControlError, FrameReader, MAX_REPLY_BYTES, Reply, Request, encode};
use crate::shm::{recv_with_fds, send_with_fds};

/// Bytes taken from the socket at once.
const READ_BYTES: usize = 4096;
/// Unsent bytes above which the manager is not listened to: one that does not read its answers gets
/// no more of them.
const OUTGOING_LIMIT_BYTES: usize = 1 << 20;
/// The most descriptors that may wait for their message.
const MAX_WAITING_FDS: usize = 64;

/// Both directions of the socket, which does not block.
pub(super) struct Mailbox {
    socket: UnixStream,
    reader: FrameReader,
    /// Descriptors that came and that no message has asked for yet, oldest first.
    fds: VecDeque<OwnedFd>,
    /// Written by us, not yet taken by the socket.
    outgoing: VecDeque<u8>,
}

impl Mailbox {
    /// Over a socket in non-blocking mode.
    pub(super) fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            reader: FrameReader::new(MAX_REPLY_BYTES),
            fds: VecDeque::new(),
            outgoing: VecDeque::new(),
        }
    }

    /// The next message, or `None` when there is none now.
    ///
    /// # Errors
    /// The connection is over, or of no more use.
    pub(super) fn next(&mut self) -> Result<Option<Reply>, ControlError> {
        loop {
            if let Some(message) = self.reader.next_message()? {
                return Ok(Some(message));
            }
            if self.outgoing.len() > OUTGOING_LIMIT_BYTES {
                return Ok(None);
            }
            // Descriptors come with the first byte of their message. With no message begun, those
            // still here belong to none.
            if self.reader.is_empty() {
                self.fds.clear();
            }
            let (mut bytes, mut fds) = ([0; READ_BYTES], Vec::new());
            match recv_with_fds(&self.socket, &mut bytes, &mut fds) {
                Ok(0) => return Err(ControlError::Closed),
                Ok(n) => self.reader.extend(&bytes[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
            self.fds.extend(fds);
            if self.fds.len() > MAX_WAITING_FDS {
                return Err(ControlError::Unexpected("descriptors that no message announced"));
            }
        }
    }

    /// The oldest descriptor not yet taken: that of the message just read, if it announces one.
    pub(super) fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fds.pop_front()
    }

    /// Sends a message, now or as soon as the socket takes it.
    ///
    /// # Errors
    /// The connection is over.
    pub(super) fn post(&mut self, message: &Request) -> Result<(), ControlError> {
        self.outgoing.extend(encode(message)?);
        self.flush()
    }

    /// Sends what waits, as far as the socket takes it.
    ///
    /// # Errors
    /// The connection is over.
    pub(super) fn flush(&mut self) -> Result<(), ControlError> {
        while !self.outgoing.is_empty() {
            match send_with_fds(&self.socket, self.outgoing.as_slices().0, &[]) {
                Ok(sent) => drop(self.outgoing.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whether something waits to be sent.
    pub(super) fn has_unsent(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether [`next`](Self::next) would find something to read, the end included.
    pub(super) fn is_readable(&self) -> bool {
        if self.outgoing.len() > OUTGOING_LIMIT_BYTES {
            return false;
        }
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::control;

    fn pair() -> (UnixStream, Mailbox) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours, Mailbox::new(theirs))
    }

    fn inode(fd: impl std::os::fd::AsFd) -> u64 {
        nix::sys::stat::fstat(fd).unwrap().st_ino
    }

    fn in_edge(nf: u16) -> Reply {
        Reply::InEdge { nf, ring_capacity: 64 }
    }

    #[test]
    fn each_message_finds_its_own_descriptor_however_many_come_at_once() {
        let (ours, mut mailbox) = pair();
        let files: Vec<_> = (0..20).map(|_| tempfile::tempfile().unwrap()).collect();
        for (nf, file) in (0..).zip(&files) {
            control::send(&ours, &Reply::Sync { token: nf.into() }, &[]).unwrap();
            control::send(&ours, &in_edge(nf), &[file.as_fd()]).unwrap();
        }
        for (nf, file) in (0..).zip(&files) {
            assert_eq!(mailbox.next().unwrap(), Some(Reply::Sync { token: nf.into() }));
            assert_eq!(mailbox.next().unwrap(), Some(in_edge(nf)));
            assert_eq!(inode(mailbox.take_fd().unwrap()), inode(file));
        }
        assert_eq!(mailbox.next().unwrap(), None);
        assert!(mailbox.take_fd().is_none());
    }

    #[test]
    fn a_descriptor_arrives_with_a_message_cut_anywhere() {
        let file = tempfile::tempfile().unwrap();
        let frame = encode(&in_edge(7)).unwrap();
        for cut in 1..frame.len() {
            let (ours, mut mailbox) = pair();
            assert_eq!(send_with_fds(&ours, &frame[..cut], &[file.as_fd()]).unwrap(), cut);
            assert_eq!(mailbox.next().unwrap(), None);
            send_with_fds(&ours, &frame[cut..], &[]).unwrap();
            assert_eq!(mailbox.next().unwrap(), Some(in_edge(7)));
            assert_eq!(inode(mailbox.take_fd().unwrap()), inode(&file));
        }
    }

    #[test]
    fn descriptors_that_nobody_announced_are_closed_and_shift_no_other() {
        let (ours, mut mailbox) = pair();
        let (stray, own) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        control::send(&ours, &Reply::Done, &[stray.as_fd()]).unwrap();
        assert_eq!(mailbox.next().unwrap(), Some(Reply::Done));
        assert_eq!(mailbox.next().unwrap(), None);
        control::send(&ours, &in_edge(1), &[own.as_fd()]).unwrap();
        assert_eq!(mailbox.next().unwrap(), Some(in_edge(1)));
        assert_eq!(inode(mailbox.take_fd().unwrap()), inode(&own));
    }

    #[test]
    fn a_flood_of_descriptors_ends_the_connection() {
        let (ours, mut mailbox) = pair();
        let file = tempfile::tempfile().unwrap();
        // A message that never ends, a descriptor with each byte.
        send_with_fds(&ours, &1_000_000u32.to_le_bytes(), &[]).unwrap();
        for _ in 0..=MAX_WAITING_FDS {
            send_with_fds(&ours, b"x", &[file.as_fd()]).unwrap();
        }
        assert!(mailbox.next().is_err());
    }

    #[test]
    fn nothing_is_lost_when_the_peer_does_not_read_for_a_while() {
        let (ours, mut mailbox) = pair();
        let payload = vec![7; control::MAX_MESSAGE_BYTES];
        let messages: Vec<_> =
            (0..40).map(|token| Request::Answer { token, result: Ok(payload.clone()) }).collect();
        for message in &messages {
            mailbox.post(message).unwrap();
        }
        assert!(mailbox.has_unsent(), "more than the socket holds");
        for message in &messages {
            mailbox.flush().unwrap();
            let (got, _) = control::recv::<Request>(&ours, usize::MAX).unwrap();
            assert_eq!(got, *message);
        }
        assert!(!mailbox.has_unsent());
    }

    #[test]
    fn a_manager_that_reads_nothing_is_listened_to_no_more() {
        let (ours, mut mailbox) = pair();
        control::send(&ours, &Reply::Sync { token: 1 }, &[]).unwrap();
        mailbox.outgoing.extend(std::iter::repeat_n(0, OUTGOING_LIMIT_BYTES + 1));
        assert_eq!(mailbox.next().unwrap(), None);
        mailbox.outgoing.clear();
        assert_eq!(mailbox.next().unwrap(), Some(Reply::Sync { token: 1 }));
    }

    #[test]
    fn readable_means_that_there_is_something_to_hear() {
        let (ours, mut mailbox) = pair();
        assert!(!mailbox.is_readable());
        control::send(&ours, &Reply::Done, &[]).unwrap();
        assert!(mailbox.is_readable());
        assert_eq!(mailbox.next().unwrap(), Some(Reply::Done));
        assert!(!mailbox.is_readable());
        drop(ours);
        assert!(mailbox.is_readable(), "the end is news too");
        assert!(matches!(mailbox.next(), Err(ControlError::Closed)));
    }
}
