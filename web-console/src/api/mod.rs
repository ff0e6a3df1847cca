//! `/api/v1/…`: one table of operations, from which both the router and the OpenAPI document come.
//!
//! A new operation is a handler in one of the modules below, and a line in its `operations`.
#![forbid(unsafe_code)]

pub mod capture;
pub mod change;
pub mod console;
pub mod crash;
pub mod document;
pub mod download;
pub mod error;
pub mod extract;
pub mod latency;
pub mod look;
pub mod operation;
pub mod question;
pub mod stream;
pub mod trace;

use operation::Operation;

/// Every operation, in the order of the document.
#[must_use]
pub fn operations() -> Vec<Operation> {
    [
        look::operations(),
        question::operations(),
        latency::operations(),
        capture::operations(),
        trace::operations(),
        crash::operations(),
        change::operations(),
        stream::operations(),
        console::operations(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
