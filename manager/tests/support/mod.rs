//! What the conformance suites share: the bench a port is tried on, and the checks.

// Each suite uses a part of this.
#![allow(dead_code)]

pub mod broken;
pub mod checks;
pub mod lab;
pub mod plain;
pub mod rig;
pub mod skip;
pub mod veth;
