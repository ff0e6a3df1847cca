//! NFs that attach as they should and then attack, and strangers who attack the control socket.
//!
//! Each test is one attack on a real manager, whose profile has debug assertions and overflow checks,
//! so that a sum that overflows or an assertion that fails ends it. Beside the attacker runs a
//! bystander: a chain of its own with an NF and traffic of its own, whose packets are numbered. It may
//! lose nothing. Afterwards every buffer is free again.
//!
//! `MILLRACE_MUTATIONS` is the number of random mutations in `random.rs`, `MILLRACE_SEED` their seed.

#[path = "support/running.rs"]
mod running;
#[path = "support/skip.rs"]
mod skip;
#[allow(dead_code)] // its other suites use the rest
#[path = "live_control/tables.rs"]
mod tables;

#[path = "hostile/conversation.rs"]
mod conversation;
#[path = "hostile/descriptors.rs"]
mod descriptors;
#[path = "hostile/edges.rs"]
mod edges;
#[path = "hostile/events.rs"]
mod events;
#[path = "hostile/hoarding.rs"]
mod hoarding;
#[path = "hostile/intruder.rs"]
mod intruder;
#[path = "hostile/pages.rs"]
mod pages;
#[path = "hostile/random.rs"]
mod random;
#[path = "hostile/rings.rs"]
mod rings;
#[path = "hostile/stage.rs"]
mod stage;
#[path = "hostile/strangers.rs"]
mod strangers;

#[test]
fn the_manager_under_attack_has_debug_assertions_and_overflow_checks() {
    let overflows = std::panic::catch_unwind(|| std::hint::black_box(u8::MAX) + 1).is_err();
    if !cfg!(debug_assertions) || !overflows {
        skip::skip(
            "this profile has no debug assertions or no overflow checks; use the dev profile",
        );
    }
}
