//! The web console: an unprivileged process between browsers and the manager's control socket.
//!
//! ```text
//! manager ◄── control socket ── poller (thread) ── watch ──► server ── HTTP ──► pages, programs
//! ```
//!
//! [`poller`] asks the manager for one status per interval and publishes it as a
//! [`reading`], already written as the bytes of an answer. Every reader shares those bytes, so the
//! manager's work and the console's do not depend on how many pages are open. [`guard`] stands
//! before every request, [`routes`] answers them, and [`page`] is what browsers load.
#![forbid(unsafe_code)]

pub mod guard;
pub mod options;
pub mod page;
pub mod poller;
pub mod reading;
pub mod routes;
pub mod server;
