//! Benchmarks that print ratios against named peers, all in the same form; and the traffic of the labs.
//!
//! | module | subject |
//! |---|---|
//! | [`instructions`] | instructions a packet, against committed figures |
//! | [`report`] | rows, as a table or as JSON lines |
//! | [`environment`] | the machine a figure was taken on |
//! | [`data_path`] | the data path as a whole: what `millrace bench data-path` measures |
//! | [`fec`] | forward error correction: what `millrace bench fec` measures; `unsafe` where it calls ISA-L only |
//! | [`soak`] | chaos under load: NFs killed, stopped, scaled and reconfigured; what `scripts/soak` runs |
//! | [`traffic`] | numbered traffic for labs; `unsafe` in its packet sockets and XDP programs only |
#![deny(unsafe_code)]

pub mod data_path;
pub mod environment;
pub mod fec;
pub mod instructions;
pub mod report;
pub mod soak;
pub mod traffic;
