//! What is answered to which path.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::{Semaphore, watch};

use crate::access::Access;
use crate::api::error::ApiError;
use crate::api::look::answer;
use crate::api::operations;
use crate::demand::Demand;
use crate::guard::{Names, guard};
use crate::manager::Asker;
use crate::page::{FILES, File};
use crate::poller::Readings;
use crate::reading::Reading;
use crate::record::Record;

/// How long an answer to a change waits for the status behind it.
const RENEW_LIMIT: Duration = Duration::from_secs(2);

/// What the handlers share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The manager's latest answers.
    pub readings: Readings,
    /// True when the console stops; streams end then.
    pub stopping: watch::Receiver<bool>,
    /// How often streams want readings.
    pub demand: Arc<Demand>,
    /// What the console remembers.
    pub record: Arc<Record>,
    /// Asks the manager what only it knows.
    pub asker: Arc<Asker>,
    /// Who is let in.
    pub access: Arc<Access>,
    /// Which names the console goes by.
    pub names: Arc<Names>,
    /// Whether anything may be changed.
    pub allow_changes: bool,
    /// Whether what packets carry is given out.
    pub allow_captures: bool,
    /// Downloads of packets under way.
    pub downloads: Arc<Semaphore>,
    /// How often the manager is asked when nobody wants it more often.
    pub interval: Duration,
}

impl Shared {
    /// The latest reading.
    #[must_use]
    pub fn latest(&self) -> Reading {
        self.readings.live.borrow().clone()
    }

    /// Waits for a reading that was begun after now, so that whoever changed something and looks
    /// then sees what he has done. Not for longer than a moment, should the manager hang.
    pub async fn renew(&self) {
        let number = self.demand.at_once();
        let mut live = self.readings.live.clone();
        let renewed = live.wait_for(|reading| reading.number() >= number);
        // Too late, or the poller is gone: then the looks are old, and say how old.
        let _ = tokio::time::timeout(RENEW_LIMIT, renewed).await;
    }
}

/// Every path, guarded.
pub fn router(shared: Shared) -> Router {
    let mut router = Router::new();
    for operation in operations() {
        let path = operation.path;
        router = router.route(path, operation.router(&shared));
    }
    for file in FILES {
        router = router.route(file.path, get(async || page_file(file)));
    }
    router
        .method_not_allowed_fallback(no_such_method)
        .fallback(async || {
            ApiError::not_found("there is nothing here; see / and /api/v1/openapi.json")
        })
        .layer(map_response(no_body_of_others))
        .layer(from_fn_with_state(shared.clone(), guard))
        .with_state(shared)
}

fn page_file(file: &'static File) -> Response {
    answer(StatusCode::OK, file.content_type, Body::from(file.text))
}

async fn no_such_method() -> ApiError {
    let message = "this path does not take that method; the header Allow says which it takes";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

/// Should a part of the server below refuse a request in words of its own, they become JSON too.
async fn no_body_of_others(response: Response) -> Response {
    let status = response.status();
    let is_text = |headers: &HeaderMap| {
        let kind = headers.get(header::CONTENT_TYPE);
        kind.is_none_or(|kind: &HeaderValue| kind.as_bytes().starts_with(b"text/plain"))
    };
    if (status.is_client_error() || status.is_server_error()) && is_text(response.headers()) {
        let reason = status.canonical_reason().unwrap_or("refused");
        return ApiError::new(status, "refused", reason).into_response();
    }
    response
}
