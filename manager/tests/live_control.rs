//! What runs is changed while packets flow: chains, rules, instances, and NFs that come, go and die.
//!
//! Real managers, real NFs, the control socket. The generator numbers the packets of each flow, and
//! the sink says which of them are missing, late or there twice. The rate is one that two cores shared
//! with much else carry, so that nothing may be lost for want of time.

#[path = "support/running.rs"]
mod running;
#[path = "support/skip.rs"]
mod skip;

#[path = "live_control/access.rs"]
mod access;
#[path = "live_control/adoption.rs"]
mod adoption;
#[path = "live_control/apply.rs"]
mod apply;
#[path = "live_control/buffers.rs"]
mod buffers;
#[path = "live_control/crowd.rs"]
mod crowd;
#[path = "live_control/deaths.rs"]
mod deaths;
#[path = "live_control/holes.rs"]
mod holes;
#[path = "live_control/inherited.rs"]
mod inherited;
#[path = "live_control/limits.rs"]
mod limits;
#[path = "live_control/messages.rs"]
mod messages;
#[path = "live_control/mistakes.rs"]
mod mistakes;
#[path = "live_control/raw.rs"]
mod raw;
#[path = "live_control/restart.rs"]
mod restart;
#[path = "live_control/rules.rs"]
mod rules;
#[path = "live_control/scale.rs"]
mod scale;
#[path = "live_control/stuck.rs"]
mod stuck;
#[path = "live_control/swap.rs"]
mod swap;
#[path = "live_control/tables.rs"]
mod tables;
#[path = "live_control/upgrade.rs"]
mod upgrade;
