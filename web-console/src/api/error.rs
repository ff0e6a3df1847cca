//! Answers that are errors: a status code, a word for programs, a line for people.
#![forbid(unsafe_code)]

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nflib::control::{ErrorCode, ErrorReply, MAX_REQUEST_BYTES};
use schemars::JsonSchema;
use serde::Serialize;

use crate::manager::ManagerError;

/// What is answered instead of what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// For programs.
    pub code: &'static str,
    /// For people: what was wrong, what was expected, what to do. One line.
    pub message: String,
}

/// The body of every answer that is an error.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub struct ErrorBody<'a> {
    error: ErrorDetail<'a>,
}

#[derive(Serialize, JsonSchema)]
struct ErrorDetail<'a> {
    /// For programs.
    code: &'a str,
    /// For people, one line.
    message: &'a str,
}

impl ApiError {
    /// An error with these.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// What was asked makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// There is nothing by that name.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// Too much at once, for this console or for the manager.
    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", message)
    }

    /// The manager cannot be asked now.
    pub fn away(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
    }

    /// The JSON of the answer.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        let body = ErrorBody { error: ErrorDetail { code: self.code, message: &self.message } };
        // Two strings: always JSON.
        serde_json::to_vec(&body).unwrap_or_default()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Body::from(self.body())).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            StatusCode::UNAUTHORIZED => {
                let scheme = HeaderValue::from_static("Bearer realm=\"millrace\"");
                headers.insert(header::WWW_AUTHENTICATE, scheme);
            }
            _ => {}
        }
        response
    }
}

impl From<ErrorReply> for ApiError {
    /// What the manager refused, as HTTP says it.
    fn from(refusal: ErrorReply) -> Self {
        let (status, code) = match refusal.code {
            ErrorCode::BadRequest => (StatusCode::BAD_REQUEST, "bad_request"),
            ErrorCode::Version => (StatusCode::SERVICE_UNAVAILABLE, "manager_version"),
            ErrorCode::UnknownService | ErrorCode::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            ErrorCode::ServiceTaken => (StatusCode::CONFLICT, "service_taken"),
            ErrorCode::Invalid => (StatusCode::CONFLICT, "invalid"),
            ErrorCode::Timeout => (StatusCode::SERVICE_UNAVAILABLE, "timeout"),
            ErrorCode::Forbidden => (StatusCode::FORBIDDEN, "forbidden"),
            ErrorCode::Exhausted => (StatusCode::TOO_MANY_REQUESTS, "busy"),
            ErrorCode::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "manager_stopping"),
        };
        Self::new(status, code, refusal.message)
    }
}

impl From<ManagerError> for ApiError {
    fn from(error: ManagerError) -> Self {
        match error {
            ManagerError::Refused { refusal, .. } => refusal.into(),
            ManagerError::TooLong { .. } => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                format!("the manager accepts {MAX_REQUEST_BYTES} bytes: ask for less at once"),
            ),
            other => Self::away(other.code(), other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_json_with_a_code_and_a_message() {
        let error = ApiError::bad_request("a \"quoted\"\nline");
        let body: serde_json::Value = serde_json::from_slice(&error.body()).unwrap();
        assert_eq!(body["error"]["code"], "bad_request");
        assert_eq!(body["error"]["message"], "a \"quoted\"\nline");
    }

    #[test]
    fn what_the_manager_refuses_keeps_its_reason_and_gets_a_fitting_status() {
        for (code, status) in [
            (ErrorCode::NotFound, 404),
            (ErrorCode::Invalid, 409),
            (ErrorCode::Forbidden, 403),
            (ErrorCode::Exhausted, 429),
            (ErrorCode::Stopping, 503),
        ] {
            let error = ApiError::from(ErrorReply { code, message: "why".into() });
            assert_eq!((error.status.as_u16(), error.message.as_str()), (status, "why"));
        }
    }

    #[test]
    fn who_is_to_come_again_is_told_when() {
        let response = ApiError::busy("later").into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        let response = ApiError::not_found("never").into_response();
        assert!(!response.headers().contains_key(header::RETRY_AFTER));
    }
}
