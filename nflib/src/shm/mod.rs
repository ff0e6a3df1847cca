//! The shared-memory core: what the manager and an NF both map.
//!
//! Everything here follows one rule: *whatever another process can write is copied once, checked,
//! then used*. No Rust reference is ever made to bytes a peer may be writing; words are read and
//! written through atomics, packet bytes through raw pointers.
#![allow(unsafe_code)]

mod bytes;
mod mapping;
mod region;

pub(crate) use bytes::{Lease, PacketMemory};
pub use mapping::{Mapping, PageKind};
pub use region::{HugePages, Region, RegionError, RegionGeometry};

/// A buffer's number in the packet region, `0..buffers`. Buffers are named by number, never by
/// address, because every process maps the region where it likes.
pub type BufferIndex = u32;
