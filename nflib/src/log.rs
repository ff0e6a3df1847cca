//! Logs: `tracing` to standard error, a line an event, for people or for machines; control paths only.
#![forbid(unsafe_code)]

use std::io::IsTerminal as _;

use clap::ValueEnum;
use thiserror::Error;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

/// The log filter cannot be read.
#[derive(Debug, Error)]
#[error("--log {filter:?} is not a log level: expected error, warn, info, debug or trace")]
pub struct LogError {
    filter: String,
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// For machines: a JSON object a line, with `timestamp`, `level`, `target`, `message` and the event's
    /// fields.
    Json,
}

/// Something else that is told of events and spans, by a filter of its own.
pub type Listener = Box<dyn Layer<Registry> + Send + Sync>;

/// Starts logging to standard error at `filter` (a level, or `tracing-subscriber` directives).
///
/// # Errors
/// [`LogError`]. Starting it twice is no error; the first start counts.
pub fn init(filter: &str, format: LogFormat) -> Result<(), LogError> {
    init_with(filter, format, None)
}

/// As [`init`], with one who listens besides.
///
/// # Errors
/// [`LogError`].
pub fn init_with(
    filter: &str,
    format: LogFormat,
    listener: Option<Listener>,
) -> Result<(), LogError> {
    let levels =
        EnvFilter::builder().parse(filter).map_err(|_| LogError { filter: filter.to_owned() })?;
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Human => {
            lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).boxed()
        }
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    let registry = Registry::default().with(listener);
    let _ = registry.with(lines.with_filter(levels)).try_init();
    Ok(())
}
