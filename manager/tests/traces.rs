//! Packets followed and timed through real managers and NFs.

#[path = "traces/latency.rs"]
mod latency;
#[path = "support/running.rs"]
mod running;
#[path = "support/skip.rs"]
mod skip;
#[path = "traces/stage.rs"]
mod stage;
// Each suite uses a part of this.
#[allow(dead_code)]
#[path = "live_control/tables.rs"]
mod tables;
#[path = "traces/traces.rs"]
mod traces;
