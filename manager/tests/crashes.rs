//! NFs that crash: what is found of them, what is not taken for a crash, and whether it happens again.
//!
//! Real managers, real NFs. `forward --crash-on` dies of the packet that says so, in every way there is.

#[path = "support/running.rs"]
mod running;
#[path = "support/skip.rs"]
mod skip;

#[path = "crashes/keeping.rs"]
mod keeping;
#[path = "crashes/lab.rs"]
mod lab;
#[path = "crashes/replaying.rs"]
mod replaying;
#[path = "crashes/strangers.rs"]
mod strangers;
#[path = "crashes/ways.rs"]
mod ways;
