//! DPDK 22.11: bindings, and a C shim for the functions that DPDK defines inline.
//!
//! Nothing links libdpdk. [`api`] loads it when it is first called, so a program that links this
//! crate starts on a machine without DPDK and can say what is missing, or do without. The drivers
//! are found by EAL itself, in the directory that DPDK was built with.
//!
//! With `--no-default-features` the crate is empty.
#![cfg_attr(not(feature = "dpdk"), forbid(unsafe_code))]

/// `rte_hash`, to be measured against.
#[cfg(feature = "dpdk")]
pub mod hash;
#[cfg(feature = "dpdk")]
mod load;
/// `rte_ring`, to be measured against.
#[cfg(feature = "dpdk")]
pub mod ring;

#[cfg(feature = "dpdk")]
pub use load::{LoadError, api, take_log};

/// The bindings as bindgen made them: types, constants and the table of functions `Api`.
#[cfg(feature = "dpdk")]
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    clippy::undocumented_unsafe_blocks,
    clippy::missing_safety_doc,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unsafe_op_in_unsafe_fn,
    dead_code
)]
pub mod sys {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}
