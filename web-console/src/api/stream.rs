//! The live stream: server-sent events, as often as the reader wants.
#![forbid(unsafe_code)]

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::{Stream, stream};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::error::ApiError;
use super::extract::Parameters;
use super::look::answer;
use super::operation::Operation;
use crate::demand::{MAX_HZ, Wish, period};
use crate::reading::Reading;
use crate::routes::Shared;

const EVENT_STREAM: &str = "text/event-stream";

/// The operations.
pub fn operations() -> Vec<Operation> {
    let summary = "Server-sent events: `status` with a StatusEvent, or `away` with why";
    vec![
        Operation::get("/api/v1/events", "events", summary, events)
            .query::<EventsQuery>()
            .answers_other(&[EVENT_STREAM]),
    ]
}

/// How often.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    /// Events a second, 1 to 10; absent: as often as the console asks by itself (`--interval-ms`).
    #[schemars(range(min = 1, max = 10))]
    hz: Option<u8>,
}

async fn events(
    State(shared): State<Shared>,
    Parameters(query): Parameters<EventsQuery>,
) -> Result<Response, ApiError> {
    if query.hz.is_some_and(|hz| !(1..=MAX_HZ).contains(&hz)) {
        return Err(ApiError::bad_request(format!("hz: expected 1 to {MAX_HZ}")));
    }
    let events = Events::new(&shared, query.hz);
    Ok(answer(StatusCode::OK, EVENT_STREAM, Body::from_stream(events.stream())))
}

/// One reader's events.
struct Events {
    readings: watch::Receiver<Reading>,
    stopping: watch::Receiver<bool>,
    /// Of a reader that wants them more often than they come by themselves.
    pace: Option<(Wish, Instant)>,
    hz: u8,
}

impl Events {
    fn new(shared: &Shared, hz: Option<u8>) -> Self {
        let fast = hz.filter(|&hz| period(hz) < shared.interval);
        let mut readings = match fast {
            Some(_) => shared.readings.live.clone(),
            None => shared.readings.calm.clone(),
        };
        // The first event is what is known now, not what will be known after an interval.
        readings.mark_changed();
        let pace = fast.map(|hz| (shared.demand.wish(hz), Instant::now()));
        Self { readings, stopping: shared.stopping.clone(), pace, hz: fast.unwrap_or(1) }
    }

    /// A reader that is slow misses some, none piles up.
    fn stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        stream::unfold(self, async |mut events| {
            let event = events.next().await?;
            Some((Ok(event), events))
        })
    }

    async fn next(&mut self) -> Option<Bytes> {
        let Self { readings, stopping, pace, hz } = self;
        let ready = async {
            // Others may want readings more often than this one.
            if let Some((_, next)) = pace {
                tokio::time::sleep_until(*next).await;
                *next = Instant::now() + period(*hz).mul_f64(0.9);
            }
            readings.changed().await
        };
        tokio::select! {
            // Resolves to an error when the sender is gone, which is an end too.
            _ = stopping.wait_for(|&stopping| stopping) => return None,
            changed = ready => changed.ok()?,
        }
        Some(self.readings.borrow_and_update().event())
    }
}
