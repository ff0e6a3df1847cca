//! What a Millrace network function (NF) links.
//!
//! The layers, lowest first:
//!
//! | module | subject |
//! |---|---|
//! | [`shm`] | the shared-memory core: packet region, rings, channels. The only `unsafe` of this crate |
//! | [`descriptor`] | what travels on a ring |
//! | [`control`] | messages of the manager's Unix socket |
#![deny(unsafe_code)]

pub mod control;
pub mod descriptor;
pub mod log;
pub mod shm;
