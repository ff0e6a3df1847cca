//! Messages from an NF to other NFs, on their way to the control socket.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

use crate::control::{MAX_MESSAGE_BYTES, Target};

/// Messages that may wait in an NF to be sent.
pub const MAX_UNSENT_MESSAGES: usize = 64;

/// Names a message that was sent, for [`NetworkFunction::sent`](crate::NetworkFunction::sent). Not
/// used again while the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageToken(pub(crate) u64);

/// Why a message was not taken; it is not sent, and nothing is said about it later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SendError {
    /// As many messages wait as may.
    #[error("{MAX_UNSENT_MESSAGES} messages wait to be sent already; try again later")]
    Full,
    /// It is too long.
    #[error("a message of {len_bytes} bytes; at most {MAX_MESSAGE_BYTES} are possible")]
    TooLong {
        /// Its length.
        len_bytes: usize,
    },
}

/// A message that waits to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub(crate) token: MessageToken,
    pub(crate) target: Target,
    pub(crate) payload: Vec<u8>,
}

/// What an NF has to say, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: VecDeque<Outgoing>,
}

impl Outbox {
    pub(crate) fn put(
        &mut self,
        target: Target,
        payload: &[u8],
    ) -> Result<MessageToken, SendError> {
        static NEWEST: AtomicU64 = AtomicU64::new(0);
        let len_bytes = payload.len();
        if len_bytes > MAX_MESSAGE_BYTES {
            return Err(SendError::TooLong { len_bytes });
        }
        if self.waiting.len() >= MAX_UNSENT_MESSAGES {
            return Err(SendError::Full);
        }
        let token = MessageToken(NEWEST.fetch_add(1, Ordering::Relaxed) + 1);
        self.waiting.push_back(Outgoing { token, target, payload: payload.to_vec() });
        Ok(token)
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Messages that wait.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The names of those that wait, without the oldest so many.
    pub(crate) fn tokens_from(&self, from: usize) -> impl Iterator<Item = MessageToken> {
        self.waiting.range(from..).map(|message| message.token)
    }

    pub(crate) fn take(&mut self) -> Option<Outgoing> {
        self.waiting.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_messages_wait_as_may_and_no_more() {
        let mut outbox = Outbox::default();
        let tokens: Vec<_> = (0..MAX_UNSENT_MESSAGES)
            .map(|n| outbox.put(Target::Instance(1), &[n as u8]).unwrap())
            .collect();
        assert_eq!(outbox.put(Target::Instance(1), &[]), Err(SendError::Full));
        let first = outbox.take().unwrap();
        assert_eq!((first.token, first.payload), (tokens[0], vec![0]));
        assert!(!tokens.contains(&outbox.put(Target::Instance(1), &[]).unwrap()));
    }

    #[test]
    fn the_longest_message_is_taken_and_a_longer_one_is_not() {
        let mut outbox = Outbox::default();
        let longest = vec![255; MAX_MESSAGE_BYTES];
        assert!(outbox.put(Target::Instance(1), &longest).is_ok());
        let len_bytes = MAX_MESSAGE_BYTES + 1;
        let error = outbox.put(Target::Instance(1), &vec![0; len_bytes]).unwrap_err();
        assert_eq!(error, SendError::TooLong { len_bytes });
        assert!(error.to_string().contains("16385"));
    }
}
