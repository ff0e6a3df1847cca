//! What the console knows at one moment, shared by all who ask and written at most once in each form.
#![forbid(unsafe_code)]

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::http::StatusCode;
use nflib::control::Status;
use nflib::control::rates::Rates;
use schemars::JsonSchema;
use serde::Serialize;

use crate::api::error::ApiError;
use crate::metrics::{self, Format};
use crate::seen::Seen;

/// The manager's latest answer, or why there is none. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reading(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    what: What,
    at_unix_ms: u64,
    interval_ms: u64,
    timeline_seq: u64,
    number: u64,
    body: OnceLock<Bytes>,
    event: OnceLock<Bytes>,
    metrics: [OnceLock<Bytes>; 2],
}

/// What the console itself knows of a reading.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// How often such a reading comes.
    pub interval: Duration,
    /// Number of the timeline's latest entry.
    pub timeline_seq: u64,
    /// Number of the reading.
    pub number: u64,
}

#[derive(Debug)]
enum What {
    Up { status: Arc<Status>, rates: Option<Rates>, seen: Arc<Seen> },
    Away { code: &'static str, message: String },
}

/// The data of an event `status`.
#[derive(Serialize, JsonSchema)]
pub struct StatusEvent<'a> {
    status: &'a Status,
    /// None until two statuses of one manager can be compared.
    rates: Option<&'a Rates>,
    /// How often such an event comes, milliseconds.
    interval_ms: u64,
    /// When the status came, milliseconds since 1970.
    at_unix_ms: u64,
    /// Number of the latest entry of the timeline.
    timeline_seq: u64,
}

/// The data of an event `away`.
#[derive(Serialize)]
struct AwayEvent<'a> {
    code: &'a str,
    message: &'a str,
    interval_ms: u64,
    at_unix_ms: u64,
    timeline_seq: u64,
}

impl Reading {
    fn new(what: What, about: About) -> Self {
        Self(Arc::new(Inner {
            what,
            at_unix_ms: unix_ms(),
            interval_ms: millis(about.interval),
            timeline_seq: about.timeline_seq,
            number: about.number,
            body: OnceLock::new(),
            event: OnceLock::new(),
            metrics: [OnceLock::new(), OnceLock::new()],
        }))
    }

    /// The manager answered.
    #[must_use]
    pub fn up(status: Arc<Status>, rates: Option<Rates>, seen: Arc<Seen>, about: About) -> Self {
        Self::new(What::Up { status, rates, seen }, about)
    }

    /// The manager did not answer; `message` says why, in one line.
    #[must_use]
    pub fn away(code: &'static str, message: String, about: About) -> Self {
        Self::new(What::Away { code, message }, about)
    }

    /// Its number, by which those who wanted it at once know it ([`Demand::begin`]).
    ///
    /// [`Demand::begin`]: crate::demand::Demand::begin
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0.number
    }

    /// Whether the manager answered.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self.0.what, What::Up { .. })
    }

    /// The status.
    ///
    /// # Errors
    /// 503 and why, when the manager did not answer.
    pub fn status(&self) -> Result<&Status, ApiError> {
        match &self.0.what {
            What::Up { status, .. } => Ok(status),
            What::Away { code, message } => Err(ApiError::away(code, message.clone())),
        }
    }

    /// What moved since the reading before, if these can be compared.
    #[must_use]
    pub fn rates(&self) -> Option<&Rates> {
        match &self.0.what {
            What::Up { rates, .. } => rates.as_ref(),
            What::Away { .. } => None,
        }
    }

    /// What is seen of packets; nothing while the manager does not answer.
    #[must_use]
    pub fn seen(&self) -> Arc<Seen> {
        match &self.0.what {
            What::Up { seen, .. } => Arc::clone(seen),
            What::Away { .. } => Arc::default(),
        }
    }

    /// Why the manager does not answer.
    #[must_use]
    pub fn away_message(&self) -> Option<&str> {
        match &self.0.what {
            What::Up { .. } => None,
            What::Away { message, .. } => Some(message),
        }
    }

    /// JSON for `/api/v1/status`.
    ///
    /// # Errors
    /// 503 and why, when the manager did not answer.
    pub fn body(&self) -> Result<Bytes, ApiError> {
        let status = self.status()?;
        Ok(self.0.body.get_or_init(|| to_json(status)).clone())
    }

    /// A whole event for `/api/v1/events`.
    #[must_use]
    pub fn event(&self) -> Bytes {
        self.0.event.get_or_init(|| self.write_event()).clone()
    }

    /// The text for `/metrics`.
    #[must_use]
    pub fn metrics(&self, format: Format) -> Bytes {
        let text = || metrics::text(self.status().ok(), &self.seen(), format).into();
        self.0.metrics[format as usize].get_or_init(text).clone()
    }

    fn write_event(&self) -> Bytes {
        let Inner { interval_ms, at_unix_ms, timeline_seq, .. } = *self.0;
        match &self.0.what {
            What::Up { status, rates, .. } => {
                let rates = rates.as_ref();
                let data = StatusEvent { status, rates, interval_ms, at_unix_ms, timeline_seq };
                event("status", &data)
            }
            What::Away { code, message } => {
                let data = AwayEvent { code, message, interval_ms, at_unix_ms, timeline_seq };
                event("away", &data)
            }
        }
    }
}

/// JSON of something that can always be written as such: no maps with odd keys, no readers that fail.
pub fn to_json(value: &impl Serialize) -> Bytes {
    match serde_json::to_vec(value) {
        Ok(bytes) => bytes.into(),
        Err(error) => {
            let error = ApiError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "console_fault",
                format!("cannot be written as JSON: {error}"),
            );
            error.body().into()
        }
    }
}

/// One server-sent event (HTML, section 9.2.5). JSON has no line ends: it escapes them.
fn event(name: &str, data: &impl Serialize) -> Bytes {
    let mut bytes = format!("event: {name}\ndata: ").into_bytes();
    bytes.extend_from_slice(&to_json(data));
    bytes.extend_from_slice(b"\n\n");
    bytes.into()
}

/// Now, milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

fn millis(interval: Duration) -> u64 {
    u64::try_from(interval.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::control::NfStatus;
    use serde_json::Value;

    const ABOUT: About = About { interval: Duration::from_millis(250), timeline_seq: 3, number: 0 };

    fn data_of(event: &Bytes, name: &str) -> Value {
        let text = std::str::from_utf8(event).unwrap();
        let data = text.strip_prefix(&format!("event: {name}\ndata: ")).unwrap();
        serde_json::from_str(data.strip_suffix("\n\n").unwrap()).unwrap()
    }

    fn up(status: &Status, rates: Option<Rates>) -> Reading {
        Reading::up(Arc::new(status.clone()), rates, Arc::default(), ABOUT)
    }

    #[test]
    fn a_status_is_written_as_the_manager_said_it() {
        let status = Status { version: "1.2.3".into(), pid: 5, ..Default::default() };
        let reading = up(&status, None);
        assert!(reading.is_up());
        assert_eq!(serde_json::from_slice::<Status>(&reading.body().unwrap()).unwrap(), status);
        let data = data_of(&reading.event(), "status");
        assert_eq!(data["status"]["version"], "1.2.3");
        assert_eq!((&data["rates"], &data["interval_ms"]), (&Value::Null, &Value::from(250)));
        assert_eq!(data["timeline_seq"], 3);
    }

    #[test]
    fn rates_travel_beside_the_status() {
        let before = Status::default();
        let after = Status { at_ns: 500_000_000, ..Default::default() };
        let rates = Rates::between(&before, &after).unwrap();
        let reading = up(&after, Some(rates));
        assert_eq!(data_of(&reading.event(), "status")["rates"]["interval_s"], 0.5);
    }

    #[test]
    fn a_manager_that_is_away_is_an_error_with_its_reason() {
        let reading = Reading::away("manager_away", "no manager at /x".into(), ABOUT);
        assert!(!reading.is_up());
        let error = reading.body().unwrap_err();
        assert_eq!((error.status.as_u16(), error.code), (503, "manager_away"));
        assert_eq!(error.message, "no manager at /x");
        assert_eq!(data_of(&reading.event(), "away")["message"], "no manager at /x");
    }

    #[test]
    fn no_name_that_an_nf_gives_itself_breaks_the_event() {
        let name = "a\n\nevent: away\r\ndata: {}\u{2028}</script>";
        let nf = NfStatus { name: name.into(), ..Default::default() };
        let status = Status { nfs: vec![nf], ..Default::default() };
        let event = up(&status, None).event();
        assert_eq!(data_of(&event, "status")["status"]["nfs"][0]["name"], name);
        assert_eq!(event.iter().filter(|&&byte| byte == b'\n' || byte == b'\r').count(), 3);
    }
}
