//! The Millrace manager: ports, workers, registry and control, as a library for its two programs
//! and its tests.
#![deny(unsafe_code)]

pub mod chain;
pub mod ownership;
pub mod pool;
pub mod ports;
pub mod stats;
pub mod worker;
