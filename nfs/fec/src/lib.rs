//! Forward error correction for packets: for every k packets m parity packets follow, and of these
//! k + m any k bring back all.
//!
//! Nothing here reads a clock, a socket or shared memory: packets go in as bytes with the time, and
//! come out as bytes. The NFs `fec-encode` and `fec-decode` put it on a link.

pub mod code;
pub mod dialect;
pub mod gf;
pub mod kernel;
pub mod solve;
