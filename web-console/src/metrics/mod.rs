//! `/metrics`: the manager's status as OpenMetrics 1.0, or in Prometheus' older text format 0.0.4.
//!
//! Base units, one family a thing, labels that are bounded: names of ports, services and chains come
//! from the configuration, instances are those of now, and of families with many lines only the first
//! [`MAX_LINES`] are shown. Names of NFs are their own words, so they stand in one family only. An
//! NF's number is the label `nf`: `instance` is what Prometheus calls the console it asks.
#![forbid(unsafe_code)]

mod families;
mod packets;
mod text;

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;
use nflib::control::Status;

use crate::seen::Seen;
use text::Writer;

/// Most lines of a family; further ones are left out, and counted in `millrace_web_left_out`.
pub const MAX_LINES: usize = 2000;

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    Text = 0,
    /// OpenMetrics 1.0.
    OpenMetrics = 1,
}

impl Format {
    /// What a client accepts: OpenMetrics if it says so, else the older text.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let accepts = |value: &str| {
            value.split(',').any(|item| {
                let mut parts = item.split(';').map(str::trim);
                let kind = parts.next().unwrap_or_default();
                let refused = parts.any(|part| matches!(part, "q=0" | "q=0.0"));
                kind.eq_ignore_ascii_case("application/openmetrics-text") && !refused
            })
        };
        let values = headers.get_all(ACCEPT).iter();
        match values.filter_map(|value| value.to_str().ok()).any(accepts) {
            true => Self::OpenMetrics,
            false => Self::Text,
        }
    }

    /// The media type of the answer.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// All metrics; without a status only that the manager is away.
#[must_use]
pub fn text(status: Option<&Status>, seen: &Seen, format: Format) -> String {
    let mut out = Writer::new(format);
    out.gauge("millrace_up", "Whether the manager answered last time: 1 or 0.")
        .value(&[], if status.is_some() { 1.0 } else { 0.0 });
    if let Some(status) = status {
        families::write(status, &mut out);
        packets::write(seen, &mut out);
    }
    out.end()
}

#[cfg(test)]
mod tests;
