//! What the conformance suites share: the bench a port is tried on, and the checks.

pub mod checks;
pub mod lab;
pub mod plain;
pub mod rig;
