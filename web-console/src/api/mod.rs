//! `/api/v1/…`: one table of operations, from which both the router and the OpenAPI document come.
//!
//! A new operation is a handler in one of the modules below, and a line in its `operations`.
#![forbid(unsafe_code)]

pub mod change;
pub mod console;
pub mod document;
pub mod error;
pub mod extract;
pub mod look;
pub mod operation;
pub mod question;
pub mod stream;

use operation::Operation;

/// Every operation, in the order of the document.
#[must_use]
pub fn operations() -> Vec<Operation> {
    [
        look::operations(),
        question::operations(),
        change::operations(),
        stream::operations(),
        console::operations(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
