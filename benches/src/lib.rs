//! Benchmarks that print ratios against named peers, all in the same form.
//!
//! | module | subject |
//! |---|---|
//! | [`report`] | rows, as a table or as JSON lines |
//! | [`environment`] | the machine a figure was taken on |
#![forbid(unsafe_code)]

pub mod environment;
pub mod report;
