//! Crashes on demand, for experiments with NFs that do: what is found of one afterwards, and who finds it.
#![forbid(unsafe_code)]

use std::time::Duration;

use clap::ValueEnum;
use nflib::shm::write_to_null;

/// How to crash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum How {
    /// A panic
    #[default]
    Panic,
    /// A write through a null pointer
    Null,
    /// Recursion without end
    Stack,
    /// abort(3)
    Abort,
    /// exit(3), with status 1
    Exit,
    /// Not at all: it hangs
    Hang,
}

/// Which packet to crash at, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// A packet that contains these bytes.
    pub on: Vec<u8>,
    pub by: How,
}

impl Crash {
    /// Crashes if this is the packet.
    pub fn look(&self, packet: &[u8]) {
        if !self.on.is_empty() && packet.windows(self.on.len()).any(|bytes| bytes == self.on) {
            self.crash(packet);
        }
    }

    #[inline(never)]
    fn crash(&self, packet: &[u8]) {
        match self.by {
            How::Panic => panic!("a packet of {} bytes is too much for me", packet.len()),
            How::Null => write_to_null(),
            How::Stack => drop(recurse(1)),
            How::Abort => std::process::abort(),
            How::Exit => std::process::exit(1),
            How::Hang => loop {
                std::thread::sleep(Duration::from_secs(3600));
            },
        }
    }
}

#[allow(unconditional_recursion)]
#[inline(never)]
fn recurse(depth: u64) -> u64 {
    // Something to do afterwards, or it would be a loop.
    std::hint::black_box(recurse(std::hint::black_box(depth) + 1)) + depth
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_packet_that_is_named_is_crashed_at() {
        let crash = Crash { on: b"die".to_vec(), by: How::Panic };
        for packet in [&b""[..], b"di", b"live and let di"] {
            crash.look(packet);
        }
        let caught = std::panic::catch_unwind(|| crash.look(b"xdiex")).unwrap_err();
        assert_eq!(*caught.downcast::<String>().unwrap(), "a packet of 5 bytes is too much for me");
        Crash { on: Vec::new(), by: How::Abort }.look(b"nothing is in everything");
    }
}
