//! Captures: where there can be some, which are under way, and one as a download.
#![forbid(unsafe_code)]

use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use nflib::control::{CapturePoint, CaptureRequest, CaptureStatus, Reply, Request};
use schemars::JsonSchema;
use serde::Deserialize;

use super::download::{attached, by_this_page_or_a_program, pipe, slot};
use super::error::ApiError;
use super::extract::Parameters;
use super::look::json;
use super::operation::Operation;
use super::question::unexpected;
use crate::filter;
use crate::manager::{Cost, LOOK_LIMIT};
use crate::reading::unix_ms;
use crate::routes::Shared;

/// The media type of pcapng (draft-ietf-opsawg-pcapng, section 8).
pub const PCAPNG: &str = "application/x-pcapng";
/// How long a capture goes on that nobody bounded, and how long at most, seconds.
const DEFAULT_S: u32 = 10;
const MAX_S: u32 = 3600;
/// Most packets of a capture.
const MAX_PKTS: u64 = 10_000_000;
/// Most first bytes of a packet: all of any buffer.
const MAX_SNAP_BYTES: u16 = nflib::observe::MAX_KEPT_BYTES;
/// Most places of one capture.
const MAX_PLACES: usize = 16;
/// How much later than was asked for a capture may end by itself before it is ended here.
const GRACE: Duration = Duration::from_secs(5);

type Answered = Result<Response, ApiError>;

/// The operations.
pub fn operations() -> Vec<Operation> {
    vec![
        Operation::get("/api/v1/captures", "listCaptures", "Captures under way", captures)
            .answers::<Vec<CaptureStatus>>(),
        Operation::get(
            "/api/v1/captures/points",
            "listCapturePoints",
            "Where packets can be captured",
            points,
        )
        .answers::<Vec<CapturePoint>>()
        .asks(),
        Operation::get(
            "/api/v1/captures/download",
            "capture",
            "Capture packets: a pcapng file that grows until a limit is reached or the client goes",
            capture,
        )
        .query::<CaptureQuery>()
        .answers_other(&[PCAPNG])
        .captures(),
    ]
}

async fn captures(State(shared): State<Shared>) -> Answered {
    let reading = shared.latest();
    reading.status()?;
    Ok(json(&reading.seen().captures))
}

async fn points(State(shared): State<Shared>) -> Answered {
    match shared.asker.ask(Request::CapturePoints, Cost::Look, LOOK_LIMIT).await? {
        Reply::CapturePoints { points } => Ok(json(&points)),
        _ => Err(unexpected("where packets can be captured")),
    }
}

/// Where, what, and how much.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CaptureQuery {
    /// Places, with commas between them, as the list of points has them: `port:lan:in`,
    /// `nf:firewall:out`, `ring:manager:firewall`, `drop`, `drop:no_rule`.
    at: String,
    /// Only packets that this takes, in tcpdump's syntax: `udp port 53`; absent: all.
    #[schemars(length(max = 1024))]
    filter: Option<String>,
    /// End after so many packets; absent: no such limit.
    #[schemars(range(min = 1, max = 10_000_000))]
    count: Option<u64>,
    /// End after so many seconds; absent: 10.
    #[schemars(range(min = 1, max = 3600))]
    seconds: Option<u32>,
    /// First bytes of each packet to keep; absent: all.
    #[schemars(range(min = 1, max = 16_384))]
    snap: Option<u16>,
}

impl CaptureQuery {
    fn places(&self) -> Result<Vec<String>, ApiError> {
        let places = self.at.split(',').map(str::trim).filter(|place| !place.is_empty());
        let places: Vec<String> = places.map(str::to_owned).collect();
        match places.len() {
            0 => Err(ApiError::bad_request("at: expected a place, as in at=port:lan:in")),
            1..=MAX_PLACES => Ok(places),
            _ => Err(ApiError::bad_request(format!("at: at most {MAX_PLACES} places at once"))),
        }
    }

    fn check(&self) -> Result<(), ApiError> {
        let outside =
            |name, range: String| Err(ApiError::bad_request(format!("{name}: expected {range}")));
        if self.seconds.is_some_and(|seconds| !(1..=MAX_S).contains(&seconds)) {
            return outside("seconds", format!("1 to {MAX_S}"));
        }
        if self.count.is_some_and(|count| !(1..=MAX_PKTS).contains(&count)) {
            return outside("count", format!("1 to {MAX_PKTS} packets"));
        }
        if self.snap.is_some_and(|snap| !(1..=MAX_SNAP_BYTES).contains(&snap)) {
            return outside("snap", format!("1 to {MAX_SNAP_BYTES} bytes"));
        }
        Ok(())
    }
}

async fn capture(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Parameters(query): Parameters<CaptureQuery>,
) -> Answered {
    by_this_page_or_a_program(&headers)?;
    query.check()?;
    let at = query.places()?;
    let filter_text = query.filter.unwrap_or_default();
    let slot = slot(&shared)?;
    let filter = filter::compile(&filter_text).await?;
    let limit = Duration::from_secs(u64::from(query.seconds.unwrap_or(DEFAULT_S)));
    let name = format!("millrace-{}-{}.pcapng", at[0], unix_ms() / 1000);
    let request = CaptureRequest {
        at,
        filter,
        filter_text,
        snap_bytes: query.snap.unwrap_or(0),
        max_pkts: query.count.unwrap_or(0),
        max_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        name: "millrace-web".to_owned(),
    };
    let asked = shared.asker.ask_for_files(Request::Capture(request), Cost::Look, LOOK_LIMIT);
    match asked.await? {
        (Reply::Capturing { .. }, mut files) if files.len() == 1 => {
            let body = pipe(files.remove(0), limit + GRACE, &shared, slot)?;
            Ok(attached(body, PCAPNG, &name))
        }
        _ => Err(unexpected("a capture")),
    }
}
