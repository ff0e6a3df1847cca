//! The console itself: what it remembers, what it allows, its document, and who is let in.
#![forbid(unsafe_code)]

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nflib::control::MatchSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::extract::{Body, Parameters};
use super::look::{answer, json};
use super::operation::{Method, Operation};
use crate::history::{HistoryAnswer, Tier};
use crate::metrics::Format;
use crate::routes::Shared;
use crate::timeline::Entry;

type Answered = Result<Response, ApiError>;

/// The operations.
pub fn operations() -> Vec<Operation> {
    vec![
        Operation::get("/api/v1/history", "history", "Figures over time", history)
            .query::<HistoryQuery>()
            .answers::<HistoryAnswer>(),
        Operation::get("/api/v1/timeline", "timeline", "What happened", timeline)
            .query::<TimelineQuery>()
            .answers::<Vec<Entry>>(),
        Operation::get(
            "/api/v1/rule-fields",
            "ruleFields",
            "What a rule can match on",
            rule_fields,
        )
        .answers::<Vec<Field>>(),
        Operation::get("/api/v1/console", "console", "What this console allows", console)
            .answers::<Console>(),
        Operation::new(
            Method::Post,
            "/api/v1/session",
            "logIn",
            "Exchange the token for a cookie, as the page does",
            log_in,
        )
        .body::<LogIn>()
        .open(),
        Operation::new(Method::Delete, "/api/v1/session", "logOut", "Forget the cookie", log_out)
            .open(),
        Operation::get("/api/v1/openapi.json", "openapi", "This document", document)
            .answers::<serde_json::Value>(),
        Operation::get("/metrics", "metrics", "All figures for Prometheus", metrics).answers_other(
            &[
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                "text/plain; version=0.0.4; charset=utf-8",
            ],
        ),
        Operation::get("/healthz", "health", "This process lives", health)
            .answers::<Health>()
            .open(),
    ]
}

/// Which figures.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct HistoryQuery {
    /// `fine` (a second a point, ten minutes) or `coarse` (ten seconds a point, two hours).
    #[serde(default)]
    tier: Tier,
    /// Subjects, with commas between them: `port:lan,nf:3`; `port:` takes all ports. Absent: all.
    of: Option<String>,
}

async fn history(
    State(shared): State<Shared>,
    Parameters(query): Parameters<HistoryQuery>,
) -> Answered {
    let of: Option<Vec<&str>> = query.of.as_deref().map(|of| of.split(',').collect());
    let wanted = |subject: &str| {
        let is = |wanted: &str| {
            subject == wanted || (wanted.ends_with(':') && subject.starts_with(wanted))
        };
        of.as_ref().is_none_or(|of| of.iter().any(|wanted| is(wanted)))
    };
    Ok(json(&shared.record.history(query.tier, wanted)))
}

/// Which entries.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TimelineQuery {
    /// Only those behind the entry with this number.
    #[serde(default)]
    after: u64,
}

async fn timeline(
    State(shared): State<Shared>,
    Parameters(query): Parameters<TimelineQuery>,
) -> Answered {
    Ok(json(&shared.record.timeline(query.after)))
}

/// A field of a match.
#[derive(Serialize, JsonSchema)]
struct Field {
    name: String,
    /// What it is matched against.
    meaning: String,
}

/// From the schema, whose descriptions are the fields' own documentation.
async fn rule_fields() -> Answered {
    let schema = schemars::schema_for!(MatchSpec);
    let meaning = |name: &str| {
        let property = schema.get("properties").and_then(|properties| properties.get(name));
        let text = property.and_then(|property| property.get("description")?.as_str());
        text.unwrap_or_default().to_owned()
    };
    let field = |&name: &&str| Field { name: name.to_owned(), meaning: meaning(name) };
    Ok(json(&MatchSpec::FIELDS.iter().map(field).collect::<Vec<_>>()))
}

/// What this console is, for the page.
#[derive(Serialize, JsonSchema)]
struct Console {
    /// Its release.
    version: &'static str,
    /// It may change what runs.
    allow_changes: bool,
    /// It gives out what packets carry.
    allow_captures: bool,
    /// It asks for a token.
    asks_for_token: bool,
    /// How often it asks the manager by itself, milliseconds.
    interval_ms: u64,
}

async fn console(State(shared): State<Shared>) -> Answered {
    Ok(json(&Console {
        version: env!("CARGO_PKG_VERSION"),
        allow_changes: shared.allow_changes,
        allow_captures: shared.allow_captures,
        asks_for_token: shared.access.asks_for_token(),
        interval_ms: u64::try_from(shared.interval.as_millis()).unwrap_or(u64::MAX),
    }))
}

/// Who wants in.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LogIn {
    /// What stands in the token's file.
    token: String,
}

async fn log_in(State(shared): State<Shared>, Body(LogIn { token }): Body<LogIn>) -> Answered {
    let cookie = shared.access.log_in(&token).await?;
    Ok(with_cookie(&cookie))
}

async fn log_out(State(shared): State<Shared>) -> Answered {
    Ok(with_cookie(&shared.access.no_cookie()))
}

fn with_cookie(cookie: &str) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    if let Ok(cookie) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

async fn document() -> Answered {
    Ok(answer(StatusCode::OK, "application/json", super::document::bytes().into()))
}

async fn metrics(State(shared): State<Shared>, headers: HeaderMap) -> Answered {
    let format = Format::of(&headers);
    let text = shared.latest().metrics(format);
    Ok(answer(StatusCode::OK, format.content_type(), text.into()))
}

/// That this process lives.
#[derive(Serialize, JsonSchema)]
struct Health {
    /// Always true.
    ok: bool,
    /// `up` or `away`; that the manager is away is no fault of the console's.
    manager: &'static str,
}

async fn health(State(shared): State<Shared>) -> Answered {
    let manager = if shared.latest().is_up() { "up" } else { "away" };
    Ok(json(&Health { ok: true, manager }))
}
