//! The Millrace manager: ports, workers, registry and control, as a library for its two programs
//! and its tests.
#![deny(unsafe_code)]

pub mod alarm;
pub mod change;
pub mod classify;
pub mod conductor;
pub mod config;
pub mod crash;
pub mod edges;
pub mod fabric;
pub mod flow;
pub mod journal;
pub mod machine;
pub mod model;
pub mod numa;
pub mod observe;
pub mod ownership;
pub mod parking;
pub mod plan;
pub mod poll_loop;
pub mod pool;
pub mod ports;
pub mod registry;
pub mod report;
pub mod server;
pub mod shares;
pub mod stats;
pub mod status;
pub mod stuck;
pub mod supervisor;
#[cfg(feature = "otel")]
pub mod telemetry;
pub mod worker;
