//! Logs: `tracing` to standard error, for people; control paths only.
#![forbid(unsafe_code)]

use std::io::IsTerminal as _;

use thiserror::Error;
use tracing_subscriber::EnvFilter;

/// The log filter cannot be read.
#[derive(Debug, Error)]
#[error("--log {filter:?} is not a log level: expected error, warn, info, debug or trace")]
pub struct LogError {
    filter: String,
}

/// Starts logging to standard error at `filter` (a level, or `tracing-subscriber` directives).
///
/// # Errors
/// [`LogError`]. Starting it twice is no error; the first start counts.
pub fn init(filter: &str) -> Result<(), LogError> {
    let levels =
        EnvFilter::builder().parse(filter).map_err(|_| LogError { filter: filter.to_owned() })?;
    let _ = tracing_subscriber::fmt()
        .with_env_filter(levels)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init();
    Ok(())
}
