//! The shared-memory core: what the manager and an NF both map.
//!
//! Everything here follows one rule: *whatever another process can write is copied once, checked,
//! then used*. No Rust reference is ever made to bytes a peer may be writing; words are read and
//! written through atomics, slots and packet bytes through raw pointers. The one exception is a buffer that an
//! NF holds by the protocol's word (`bytes`).
#![allow(unsafe_code)]

mod alarm;
mod black_box;
mod bytes;
pub mod channel;
mod doorbells;
mod edge_ring;
mod fds;
mod hints;
mod last_words;
mod lost_pages;
mod mapping;
mod marks;
mod privileges;
mod process;
mod region;
mod remains;
mod ring;
mod routes;
mod scribble;
mod signals;
mod state;
mod survey;
pub(crate) mod sync;
mod tap;

pub use alarm::{AlarmReceiver, AlarmSender, WorkerAlarm, worker_alarm};
pub use black_box::{BlackBox, MAX_RECORDED_PKTS, RecordedPacket, Recorder, RecorderTerms};
pub(crate) use bytes::{Lease, PacketMemory};
pub use channel::{Channel, ChannelError, ChannelGeometry, LAYOUT_VERSION, NfCounter};
pub use doorbells::{Doorbell, Doorbells, global_barrier, register_for_global_barrier};
pub use edge_ring::EdgeRing;
pub use fds::{MAX_FDS, recv_with_fds, send_with_fds};
pub use hints::{advise_huge_pages, prefetch};
pub use last_words::{LastWords, PanicWords, SignalWords, leave_last_words};
pub use lost_pages::{lost_pages, replace_lost_pages};
pub use mapping::{Mapping, PageKind};
pub use marks::{Mark, MarkTable, Marks};
pub use privileges::{
    FilterStep, clear_ambient_capabilities, clear_bounding_capabilities, clear_capabilities,
    install_syscall_filter, landlock_version,
};
pub use process::{SHORT_SLICE_NS, ask_for_short_slices, nudge, pidfd_kill, pidfd_open, set_nice};
pub use region::{HugePages, Region, RegionError, RegionGeometry};
pub use remains::{remaining_buffers, still_there};
pub use ring::{
    Consumer, HeapRing, Producer, Remains, RingError, RingMemory, SLOT_BYTES, SharedRing, SlotValue,
};
pub use routes::{
    HopEntry, MAX_HOPS, MAX_ROUTES, MAX_SET_ENTRIES, NO_NF, RouteTable, RouteTableWriter, bucket_of,
};
pub use scribble::{Scribble, write_to_null};
pub use signals::catch_stop_signals;
pub use state::{Inherited, MAX_STATE_WORDS, State, StateChange, StateFile};
pub(crate) use survey::{Survey, survey};
pub use tap::{TAP_WORDS, TapBroken, TapFile, TapMemory, TapReader, TapWriter};

/// A buffer's number in the packet region, `0..buffers`. Buffers are named by number, never by
/// address, because every process maps the region where it likes.
pub type BufferIndex = u32;
