//! How long packets take: as sampled since the manager's start, and over time.
#![forbid(unsafe_code)]

use axum::extract::State;
use axum::response::Response;
use nflib::control::LatencyReport;
use schemars::JsonSchema;
use serde::Deserialize;

use super::error::ApiError;
use super::extract::Parameters;
use super::look::json;
use super::operation::Operation;
use crate::history::Tier;
use crate::latency::LatencyHistory;
use crate::routes::Shared;

type Answered = Result<Response, ApiError>;

/// The operations.
pub fn operations() -> Vec<Operation> {
    vec![
        Operation::get(
            "/api/v1/latency",
            "latency",
            "How long sampled packets took at each hop and altogether, since the manager's start",
            latency,
        )
        .answers::<LatencyReport>(),
        Operation::get(
            "/api/v1/latency/history",
            "latencyHistory",
            "The same over time: how many packets took how long in each step",
            history,
        )
        .query::<LatencyQuery>()
        .answers::<LatencyHistory>(),
    ]
}

async fn latency(State(shared): State<Shared>) -> Answered {
    let reading = shared.latest();
    reading.status()?;
    let untold = || ApiError::away("manager_version", "this manager does not tell latencies");
    Ok(json(reading.seen().latency.as_deref().ok_or_else(untold)?))
}

/// Which points.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LatencyQuery {
    /// `fine` (a second a point, ten minutes) or `coarse` (ten seconds a point, two hours).
    #[serde(default)]
    tier: Tier,
    /// Only points taken later, milliseconds since 1970.
    #[serde(default)]
    after: u64,
}

async fn history(
    State(shared): State<Shared>,
    Parameters(query): Parameters<LatencyQuery>,
) -> Answered {
    Ok(json(&shared.record.latencies(query.tier, query.after)))
}
