//! What the console knows at one moment, written once for all who ask.
#![forbid(unsafe_code)]

use std::time::Duration;

use axum::body::Bytes;
use nflib::control::Status;
use nflib::control::rates::Rates;
use serde::Serialize;

/// The manager's latest answer, or why there is none. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reading {
    up: bool,
    body: Bytes,
    event: Bytes,
}

/// The data of an event `status`.
#[derive(Serialize)]
struct StatusEvent<'a> {
    status: &'a Status,
    /// None until two statuses of one manager can be compared.
    rates: Option<&'a Rates>,
    interval_ms: u64,
}

/// The data of an event `away`.
#[derive(Serialize)]
struct AwayEvent<'a> {
    message: &'a str,
    interval_ms: u64,
}

/// The body of every answer that is an error.
#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorDetail<'a>,
}

#[derive(Serialize)]
struct ErrorDetail<'a> {
    /// For programs.
    code: &'a str,
    /// For people, one line.
    message: &'a str,
}

impl Reading {
    /// The manager answered.
    ///
    /// # Errors
    /// When the status cannot be written as JSON.
    pub fn up(
        status: &Status,
        rates: Option<&Rates>,
        interval: Duration,
    ) -> Result<Self, serde_json::Error> {
        let data = StatusEvent { status, rates, interval_ms: millis(interval) };
        Ok(Self {
            up: true,
            body: serde_json::to_vec(status)?.into(),
            event: event("status", &serde_json::to_string(&data)?),
        })
    }

    /// The manager did not answer; `message` says why, in one line.
    #[must_use]
    pub fn away(message: &str, interval: Duration) -> Self {
        let data = AwayEvent { message, interval_ms: millis(interval) };
        // Strings and a number: always JSON.
        let data = serde_json::to_string(&data).unwrap_or_default();
        Self { up: false, body: error_body("manager_away", message), event: event("away", &data) }
    }

    /// Whether the manager answered.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// JSON for `/api/v1/status`: a [`Status`], or an error.
    #[must_use]
    pub fn body(&self) -> Bytes {
        self.body.clone()
    }

    /// A whole event for `/api/v1/events`.
    #[must_use]
    pub fn event(&self) -> Bytes {
        self.event.clone()
    }
}

/// `{"error": {"code": …, "message": …}}`, the body of every answer that is an error.
#[must_use]
pub fn error_body(code: &str, message: &str) -> Bytes {
    let body = ErrorBody { error: ErrorDetail { code, message } };
    serde_json::to_vec(&body).unwrap_or_default().into()
}

/// One server-sent event (HTML, section 9.2.5). `json` has no line ends: JSON escapes them.
fn event(name: &str, json: &str) -> Bytes {
    format!("event: {name}\ndata: {json}\n\n").into()
}

fn millis(interval: Duration) -> u64 {
    u64::try_from(interval.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::control::NfStatus;
    use serde_json::Value;

    const INTERVAL: Duration = Duration::from_millis(250);

    fn data_of(event: &Bytes, name: &str) -> Value {
        let text = std::str::from_utf8(event).unwrap();
        let data = text.strip_prefix(&format!("event: {name}\ndata: ")).unwrap();
        serde_json::from_str(data.strip_suffix("\n\n").unwrap()).unwrap()
    }

    #[test]
    fn a_status_is_written_as_the_manager_said_it() {
        let status = Status { version: "1.2.3".into(), pid: 5, ..Default::default() };
        let reading = Reading::up(&status, None, INTERVAL).unwrap();
        assert!(reading.is_up());
        assert_eq!(serde_json::from_slice::<Status>(&reading.body()).unwrap(), status);
        let data = data_of(&reading.event(), "status");
        assert_eq!(data["status"]["version"], "1.2.3");
        assert_eq!((&data["rates"], &data["interval_ms"]), (&Value::Null, &Value::from(250)));
    }

    #[test]
    fn rates_travel_beside_the_status() {
        let before = Status::default();
        let after = Status { at_ns: 500_000_000, ..Default::default() };
        let rates = Rates::between(&before, &after).unwrap();
        let reading = Reading::up(&after, Some(&rates), INTERVAL).unwrap();
        assert_eq!(data_of(&reading.event(), "status")["rates"]["interval_s"], 0.5);
    }

    #[test]
    fn a_manager_that_is_away_is_an_error_with_its_reason() {
        let reading = Reading::away("no manager at /x", INTERVAL);
        assert!(!reading.is_up());
        let body: Value = serde_json::from_slice(&reading.body()).unwrap();
        assert_eq!(body["error"]["code"], "manager_away");
        assert_eq!(body["error"]["message"], "no manager at /x");
        assert_eq!(data_of(&reading.event(), "away")["message"], "no manager at /x");
    }

    #[test]
    fn no_name_that_an_nf_gives_itself_breaks_the_event() {
        let name = "a\n\nevent: away\r\ndata: {}\u{2028}</script>";
        let nf = NfStatus { name: name.into(), ..Default::default() };
        let status = Status { nfs: vec![nf], ..Default::default() };
        let event = Reading::up(&status, None, INTERVAL).unwrap().event();
        assert_eq!(data_of(&event, "status")["status"]["nfs"][0]["name"], name);
        assert_eq!(event.iter().filter(|&&byte| byte == b'\n' || byte == b'\r').count(), 3);
    }
}
