//! Test traffic for labs, and what became of it: the parts of `lab-traffic`.
//!
//! A sender makes flows of TCP segments to port 80 ("http") and UDP datagrams to other ports, each
//! packet numbered within its flow and with an empty trail ([`nflib::trail`]) for the NFs on its way. A
//! receiver accounts for each: lost, out of order, twice, altered, and which way it came.
//!
//! | module | subject |
//! |---|---|
//! | [`label`] | what a packet says of itself: run, flow, number, time |
//! | [`flows`] | the flows of a run, their frames, and the order in which they send |
//! | [`pace`] | when to send |
//! | [`ledger`] | what came of each flow: order, losses |
//! | [`ways`] | which way it came, from phase to phase |
//! | [`sender`], [`receiver`] | the two loops and their reports |
//! | [`packet_socket`] | packet(7) sockets; `unsafe` |
//! | [`xdp_program`] | frames made in the kernel, and an end that drops them, by bpf(2); `unsafe` |
//! | [`interface`] | the kernel's own drop counters |
//! | [`signals`] | being told to stop, or to begin the next phase |

pub mod flows;
pub mod interface;
pub mod label;
pub mod ledger;
pub mod pace;
#[allow(unsafe_code)]
pub mod packet_socket;
pub mod receiver;
pub mod sender;
pub mod signals;
pub mod ways;
#[allow(unsafe_code)]
pub mod xdp_program;

use nix::time::{ClockId, clock_gettime};

/// Now, nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share.
///
/// # Errors
/// The system call's.
pub fn now_ns() -> std::io::Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned())
}
