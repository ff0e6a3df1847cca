//! Forward error correction for packets: for every k packets m parity packets follow, and of these
//! k + m any k bring back all.
//!
//! Nothing here reads a clock, a socket or shared memory: packets go in as bytes with the time, and
//! come out as bytes. The NFs `fec-encode` and `fec-decode` put it on a link.
//!
//! ```text
//! inner packets ─► Encoder ─┬─ shims of the source packets ─────► Decoder ─┬─ deliver / duplicate / …
//!                     ▲     └─ repair packets (next_repair) ────►    │     └─ recovered packets
//!                     └──────────── reports ◄────────────────────────┘
//! ```

pub mod adapt;
pub mod code;
pub mod decoder;
pub mod encoder;
pub mod gf;
pub mod inner;
pub mod kernel;
pub mod mac;
pub mod model;
pub mod report;
pub mod solve;
pub mod wire;
