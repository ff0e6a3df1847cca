//! The web console: an unprivileged process between browsers and the manager's control socket.
//!
//! ```text
//! manager ◄── control socket ── poller (thread) ── watch ──► server ── HTTP ──► pages, programs
//! ```
//!
//! [`poller`] asks the manager for one status per interval and publishes it as a [`reading`], which
//! all readers share, so the manager's work and the console's do not depend on how many pages are
//! open; [`record`] remembers what it says. [`guard`] stands before every request, [`routes`] answers
//! them from the one table in [`api`], and [`page`] is what browsers load. What only the manager can
//! tell or do goes through [`manager`], few at once.
#![forbid(unsafe_code)]

pub mod access;
pub mod api;
pub mod connections;
pub mod demand;
pub mod filter;
pub mod guard;
pub mod history;
pub mod latency;
pub mod manager;
pub mod metrics;
pub mod options;
pub mod page;
pub mod poller;
pub mod reading;
pub mod record;
pub mod routes;
pub mod seen;
pub mod server;
pub mod timeline;
pub mod tls;
