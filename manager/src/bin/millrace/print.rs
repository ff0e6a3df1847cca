//! What leaves by standard output, and what counts as a mistake of the caller.
#![forbid(unsafe_code)]

use std::io::Write as _;

use anyhow::Context as _;
use serde::Serialize;
use thiserror::Error;

/// A command line that makes no sense: what is wrong, what was expected. Exit code 2.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// A [`Usage`] as an error.
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    Usage(message.into()).into()
}

/// A value as one line of JSON.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    text(&(serde_json::to_string(value).context("cannot write JSON")? + "\n"))
}

/// A text as it is.
pub fn text(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// A value for programs, or a text for people.
pub fn either(
    as_json: bool,
    value: &impl Serialize,
    show: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    if as_json { json(value) } else { text(&show()) }
}
