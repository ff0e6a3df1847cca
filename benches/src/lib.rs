//! Benchmarks that print ratios against named peers, all in the same form; and the traffic of the labs.
//!
//! | module | subject |
//! |---|---|
//! | [`report`] | rows, as a table or as JSON lines |
//! | [`environment`] | the machine a figure was taken on |
//! | [`traffic`] | numbered traffic for labs; `unsafe` in its packet sockets and XDP programs only |
#![deny(unsafe_code)]

pub mod environment;
pub mod report;
pub mod traffic;
