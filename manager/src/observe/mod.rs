//! What is seen of packets, put together: names, journeys, traces, latencies.
//!
//! Workers and NFs write events to rings of their own (`nflib::observe`). One thread of the manager reads
//! them, asleep while nothing is asked for, and puts each to what it is for: marked packets to journeys,
//! of which traces and latencies are made, taps to captures. Names of what events mention by number come
//! from a [`Directory`], which the control thread replaces when something has changed.
#![forbid(unsafe_code)]

pub mod captures;
pub mod changes;
pub mod directory;
pub mod fields;
pub mod histogram;
pub mod journeys;
pub mod latency;
pub mod pcapng;
pub mod point_list;
mod point_text;
pub mod points;
pub mod thread;
pub mod traces;

pub use directory::{Directory, DirectoryKeeper, HopName, NfName, RouteName, ServiceName};
pub use points::Source;
pub use thread::{Command, Message, Observer, Question};
