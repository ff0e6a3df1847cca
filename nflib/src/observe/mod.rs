//! What is seen of packets on their way: events, written where they happen and read by the manager.
//!
//! Workers and NFs look at a packet at *points*: as a port receives and sends it, as an NF takes it from
//! a ring and passes it on, and where it is dropped. What is to be seen there is asked for in two ways:
//!
//! - **Marks.** A worker marks a packet at ingress, by setting the bit of its buffer in a table that every
//!   NF can read. Whoever meets a marked packet writes an event. From these come traces and latencies.
//! - **Taps.** A tap is a point, a filter and a number of bytes. Whoever meets a packet there that the
//!   filter takes writes an event and the packet's first bytes. From these come captures.
//!
//! Events go to a ring of the writer's own in shared memory. The writer never waits: what does not fit is
//! lost, and counted; and of its time it spends a twentieth on taps at most ([`Budget`]), whatever passes
//! unlooked at being counted as lost, too. With no packet marked and no tap set, a burst costs the look at one word.
#![forbid(unsafe_code)]

mod budget;
mod event;
mod filter;
pub mod fuzz;
mod taps;
mod teller;

use serde::{Deserialize, Serialize};

pub use budget::Budget;
pub use event::{Event, EventKind, NOBODY};
pub use filter::{Filter, FilterError};
pub use taps::{Catch, TapSet};
pub use teller::Teller;

use crate::control::FilterStep;
use crate::descriptor::PortId;

/// Number of a tap, below [`MAX_TAPS`].
pub type TapId = u8;
/// Taps there can be at a time, over all captures; an event names those that took its packet as bits.
pub const MAX_TAPS: usize = 32;
/// Most bytes of a packet that a tap takes along: all of any buffer.
pub const MAX_KEPT_BYTES: u16 = 16_384;

/// Where a tap sits, as those who serve it know the places: by numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TapPoint {
    /// At an NF, as it takes packets from its rings; `from` one neighbour, [`NOBODY`]: from the workers,
    /// `None`: from all.
    NfIn {
        /// Who pushed them.
        from: Option<u16>,
    },
    /// At an NF, as it passes packets on or drops them.
    NfOut,
    /// At a worker, as this port receives packets.
    PortIn {
        /// The port.
        port: PortId,
    },
    /// At a worker, as this port takes packets to send.
    PortOut {
        /// The port.
        port: PortId,
    },
    /// At a worker, where packets are dropped.
    Drop {
        /// The number of the reason; `None`: any.
        reason: Option<u8>,
        /// The service's place among the workers' counters, [`NOBODY`]: between ports, `None`: anywhere.
        slot: Option<u16>,
    },
}

/// A tap as it is sent to an NF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapSpec {
    /// Its number, the bit in [`Event::taps`].
    pub id: TapId,
    /// Where it sits.
    pub at: TapPoint,
    /// The compiled filter; empty: all packets.
    pub filter: Vec<FilterStep>,
    /// First bytes of a packet to keep, at most [`MAX_KEPT_BYTES`].
    pub snap_bytes: u16,
}
