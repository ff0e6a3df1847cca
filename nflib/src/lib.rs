//! What a Millrace network function (NF) links.
//!
//! The layers, lowest first:
//!
//! | module | subject |
//! |---|---|
//! | [`shm`] | the shared-memory core: packet region, rings, channels. The only `unsafe` of this crate |
#![deny(unsafe_code)]

pub mod shm;
