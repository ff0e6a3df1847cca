//! What is answered to which path.
#![forbid(unsafe_code)]

use std::convert::Infallible;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::{Stream, stream};
use tokio::sync::watch;

use crate::guard::{Refusal, guard};
use crate::page::{FILES, File};
use crate::reading::Reading;

const JSON: &str = "application/json";

/// What the handlers share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The manager's latest answer.
    pub readings: watch::Receiver<Reading>,
    /// True when the console stops; streams end then.
    pub stopping: watch::Receiver<bool>,
}

/// Every path, guarded.
pub fn router(shared: Shared) -> Router {
    let mut router = Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/events", get(events))
        .route("/healthz", get(health));
    for file in FILES {
        router = router.route(file.path, get(async || page_file(file)));
    }
    router.fallback(async || Refusal::NotFound).layer(middleware::from_fn(guard)).with_state(shared)
}

fn page_file(file: &'static File) -> Response {
    answer(StatusCode::OK, file.content_type, Body::from(file.text))
}

/// The manager's latest status; 503 while it is away.
async fn status(State(shared): State<Shared>) -> Response {
    let reading = shared.readings.borrow().clone();
    let status = if reading.is_up() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    answer(status, JSON, Body::from(reading.body()))
}

/// This process lives; whether the manager does is said, and is no fault of the console's.
async fn health(State(shared): State<Shared>) -> Response {
    let manager = if shared.readings.borrow().is_up() { "up" } else { "away" };
    answer(StatusCode::OK, JSON, Body::from(format!("{{\"ok\":true,\"manager\":\"{manager}\"}}")))
}

/// One event per interval: `status` or `away`. A reader that is slow misses some, none piles up.
async fn events(State(shared): State<Shared>) -> Response {
    answer(StatusCode::OK, "text/event-stream", Body::from_stream(event_stream(shared)))
}

fn event_stream(shared: Shared) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let Shared { mut readings, stopping } = shared;
    // The first event is what is known now, not what will be known after an interval.
    readings.mark_changed();
    stream::unfold((readings, stopping), async |(mut readings, mut stopping)| {
        tokio::select! {
            // Resolves to an error when the sender is gone, which is an end too.
            _ = stopping.wait_for(|&stopping| stopping) => return None,
            changed = readings.changed() => changed.ok()?,
        }
        let event = readings.borrow_and_update().event();
        Some((Ok(event), (readings, stopping)))
    })
}

fn answer(status: StatusCode, content_type: &'static str, body: Body) -> Response {
    let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static(content_type))];
    (status, content_type, body).into_response()
}
