//! What handlers take from a request; whatever is wrong with it is told as JSON.
#![forbid(unsafe_code)]

use std::time::Duration;

use axum::body::{Bytes, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;

use super::error::ApiError;
use crate::routes::Shared;

/// Longest body but for a configuration, bytes: a list of some hundred edits.
pub const BODY_BYTES: usize = 256 << 10;
/// Longest body with a configuration, bytes: JSON may take two bytes for one of the file.
pub const CONFIG_BODY_BYTES: usize = 8 << 20;
/// How long a body may take to come.
const BODY_LIMIT: Duration = Duration::from_secs(30);

/// The segments of the path that stand in braces.
pub struct Segments<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<Shared> for Segments<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &Shared) -> Result<Self, ApiError> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        path.map(|Path(segments)| Self(segments))
            .map_err(|error| ApiError::bad_request(one_line(&error.body_text())))
    }
}

/// The parameters behind the question mark.
pub struct Parameters<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<Shared> for Parameters<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &Shared) -> Result<Self, ApiError> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query
            .map(|Query(parameters)| Self(parameters))
            .map_err(|error| ApiError::bad_request(one_line(&error.body_text())))
    }
}

/// A body of JSON, of at most `MAX_BYTES`.
pub struct Body<T, const MAX_BYTES: usize = BODY_BYTES>(pub T);

impl<T: DeserializeOwned, const MAX_BYTES: usize> FromRequest<Shared> for Body<T, MAX_BYTES> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &Shared) -> Result<Self, ApiError> {
        let bytes = read(request, MAX_BYTES).await?;
        let value = serde_json::from_slice(&bytes)
            .map_err(|error| ApiError::bad_request(one_line(&format!("the body: {error}"))))?;
        Ok(Self(value))
    }
}

async fn read(request: Request, max_bytes: usize) -> Result<Bytes, ApiError> {
    if !is_json(request.headers()) {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "not_json",
            "expected a body of JSON, with the header Content-Type: application/json",
        ));
    }
    let too_large = || {
        let message = format!("a body of more than {max_bytes} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    };
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|len| len.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|len| len > max_bytes as u64) {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_LIMIT, to_bytes(request.into_body(), max_bytes)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        // A body without a length that goes on for too long, or a client that went.
        Ok(Err(_)) => Err(too_large()),
        Err(_) => {
            let message = format!("the body took longer than {} s", BODY_LIMIT.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "too_slow", message))
        }
    }
}

/// A page of another origin cannot send this type without asking first (Fetch, section 3.3), and is
/// then not answered.
fn is_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(kind), None) = (types.next(), types.next()) else { return false };
    let essence = kind.to_str().ok().and_then(|kind| kind.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

fn one_line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join(" ")
}
