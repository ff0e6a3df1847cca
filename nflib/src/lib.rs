//! What a Millrace network function (NF) links.
//!
//! An NF is a type that implements [`NetworkFunction`]; [`TestBench`](testing::TestBench) tries it
//! without a manager:
//!
//! ```
//! use nflib::{Action, Context, NetworkFunction, Packet, testing::TestBench};
//!
//! /// Drops frames that are longer than 100 bytes.
//! struct ShortOnly;
//!
//! impl NetworkFunction for ShortOnly {
//!     fn process(&mut self, packet: &mut Packet<'_>, _: &mut Context<'_>) -> Action {
//!         if packet.len() > 100 { Action::Drop } else { Action::Next }
//!     }
//! }
//!
//! let mut bench = TestBench::new(ShortOnly);
//! assert_eq!(bench.feed_one(&[0; 60]).unwrap().action, Action::Next);
//! assert_eq!(bench.feed_one(&[0; 101]).unwrap().action, Action::Drop);
//! ```
//!
//! The layers, lowest first:
//!
//! | module | subject |
//! |---|---|
//! | [`shm`] | the shared-memory core: packet region, rings, channels. The only `unsafe` of this crate |
//! | [`descriptor`], [`branch`] | what travels on a ring |
//! | [`control`] | messages of the manager's Unix socket |
//! | [`packet`], [`burst`], [`context`] | packets as an NF sees them, and what it can do with them |
//! | [`headers`] | where a frame's headers are, and changing them with their checksums |
//! | [`nf`] | the [`NetworkFunction`] trait |
//! | [`message`], [`settings`] | messages to other NFs, and settings of a running one |
//! | [`args`], [`runtime`] | the command line of an NF, and its loop |
//! | [`observe`] | what is seen of packets on their way: marks, taps and events |
//! | [`resting`] | when a polling thread spins, yields and sleeps; workers use it, too |
//! | [`trail`] | the NFs that a packet met, written into the packet; for labs |
//! | [`testing`] | a bench to test an NF without a manager |
#![deny(unsafe_code)]

pub mod args;
pub mod branch;
pub mod burst;
pub mod context;
pub mod control;
pub mod descriptor;
mod engine;
mod fused;
pub mod headers;
pub mod log;
pub mod message;
pub mod nf;
pub mod observe;
pub mod packet;
pub mod resting;
pub mod runtime;
pub mod settings;
pub mod shm;
pub mod testing;
pub mod trail;

pub use args::NfArgs;
pub use branch::BranchId;
pub use burst::Burst;
pub use context::{Context, HoldError};
pub use fused::Fused;
pub use message::{MessageToken, SendError};
pub use nf::{Action, NetworkFunction, NfError, PortId, ServiceId, Setup};
pub use packet::{Packet, PacketError, PacketId};
pub use runtime::{run, run_as};
pub use shm::{Inherited, State, StateChange};
