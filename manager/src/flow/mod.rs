//! The flow table: which packet goes where.
//!
//! | file | subject |
//! |---|---|
//! | `key.rs` | [`FlowKey`]: the fields of a packet, in ten words; reading a frame; the flow hash |
//! | `show.rs` | a key in words |
//! | `matching.rs` | [`Match`]: a value and a mask over the key |
//! | `compile.rs` | from `nflib::control::MatchSpec` to a [`Match`], with its errors |
//! | `tuples.rs` | one hash table a distinct mask; [`MatchSet`] |
//! | `rules.rs` | [`RuleTables`]: rules, priorities, tables with goto, counters |
//! | `timers.rs` | when to look at a rule's timeouts |
//! | `cache.rs` | one entry a flow, in front of the rules |
//! | `changes.rs` | which cached flows a change concerns |
//! | `table.rs` | [`FlowTable`]: rules and cache of one worker; bursts, changes, top flows |
//! | `overlap.rs` | [`find_overlaps`] |
//! | `growing.rs` | containers that grow without a stop |
//!
//! Nothing here does I/O, takes a lock or reads a clock: times are nanoseconds that the caller gives.
//!
//! A rule is chosen so: of the rules of table 0 that match, the one with the highest priority; of
//! several with one priority, the one with the lowest number, that is the one added first
//! ([`find_overlaps`] finds those for a person). What it says becomes of the packet, or the packet
//! goes on to a later table. Where nothing matches, the outcome is [`Outcome::NoRule`].
#![forbid(unsafe_code)]

mod cache;
mod changes;
mod compile;
#[cfg(test)]
mod compile_tests;
#[doc(hidden)]
pub mod fuzz;
mod growing;
mod key;
#[cfg(test)]
mod key_tests;
mod matching;
mod overlap;
mod rules;
mod show;
mod table;
mod timers;
mod tuples;

pub use cache::CacheStats;
pub use compile::MatchError;
pub use key::{ETH_TYPE_NONE, FlowKey, KEY_WORDS};
pub use matching::Match;
pub use overlap::find_overlaps;
pub use rules::{
    Expired, Outcome, Rule, RuleCounters, RuleError, RuleId, RuleTables, TableStep, Then, Timeout,
};
pub use table::{Flow, FlowScan, FlowTable, RuleChange, Verdict};
pub use tuples::MatchSet;
