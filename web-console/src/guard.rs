//! What stands before every request, and what every answer says to browsers.
//!
//! The console listens on loopback only, so the one who could misuse it is a page from elsewhere in
//! the user's own browser. Two doors are shut: a name of the attacker's that resolves to 127.0.0.1
//! (DNS rebinding; the Host header then carries that name) and a script of another origin (the
//! Origin header then differs; and no answer ever allows it to read, there is no CORS header).
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr};

use axum::body::Body;
use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use thiserror::Error;

use crate::reading::error_body;

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// HTTP/1.1 asks for one Host header, and one that is a host and a port (RFC 9112, 3.2).
    #[error("the request names no host, or several")]
    NoHost,
    /// The host is not this machine's.
    #[error(
        "this console answers to localhost, 127.0.0.1 and [::1] only, not to the name in the \
         request's Host header"
    )]
    ForeignHost,
    /// A page from elsewhere asks.
    #[error("a page of another origin may not use this console")]
    ForeignOrigin,
    /// Nothing here can be changed.
    #[error("only GET: this console shows, it changes nothing")]
    Method,
    /// There is nothing by that name.
    #[error("there is nothing here; see / and /api/v1/status")]
    NotFound,
}

impl Refusal {
    fn status_and_code(self) -> (StatusCode, &'static str) {
        match self {
            Self::NoHost => (StatusCode::BAD_REQUEST, "bad_request"),
            Self::ForeignHost => (StatusCode::MISDIRECTED_REQUEST, "foreign_host"),
            Self::ForeignOrigin => (StatusCode::FORBIDDEN, "foreign_origin"),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found"),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, code) = self.status_and_code();
        let mut response = Body::from(error_body(code, &self.to_string())).into_response();
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self == Self::Method {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

/// Lets a request pass or refuses it, and puts the security headers on the answer either way.
pub async fn guard(request: Request, next: Next) -> Response {
    let mut response = match check(request.method(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => {
            tracing::debug!(%refusal, uri = %request.uri(), "refused");
            refusal.into_response()
        }
    };
    let headers = response.headers_mut();
    for (name, value) in SECURITY_HEADERS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// The page loads from here, talks to here, and is shown in no frame; nothing is kept by caches.
const SECURITY_HEADERS: [(HeaderName, &str); 7] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         object-src 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

fn check(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().map_err(|_| Refusal::ForeignHost)?,
        _ => return Err(Refusal::NoHost),
    };
    // The target of a request may carry a host too, which then counts (RFC 9112, 3.2.2).
    let target = uri.authority().map(Authority::as_str);
    if !is_loopback(host) || !target.is_none_or(is_loopback) {
        return Err(Refusal::ForeignHost);
    }
    for origin in headers.get_all(header::ORIGIN) {
        let origin = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://"));
        if !origin.is_some_and(|origin| origin.eq_ignore_ascii_case(host)) {
            return Err(Refusal::ForeignOrigin);
        }
    }
    match *method {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(Refusal::Method),
    }
}

/// Whether a host, with or without a port, is a name of this machine's loopback. Any port: behind
/// `ssh -L` the browser's differs from ours.
fn is_loopback(authority: &str) -> bool {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, port)) => return is_port(port) && is_loopback_v6(host),
            None => return false,
        },
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let is_address = || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    is_port(port) && (host.eq_ignore_ascii_case("localhost") || is_address())
}

fn is_loopback_v6(host: &str) -> bool {
    host.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback())
}

/// Nothing, or a colon and a number.
fn is_port(text: &str) -> bool {
    text.is_empty() || text.strip_prefix(':').is_some_and(|number| number.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: Method, target: &str, headers: &[(&str, &str)]) -> Result<(), Refusal> {
        let mut request = axum::http::Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        check(request.method(), request.uri(), request.headers())
    }

    fn with_host(host: &str) -> Result<(), Refusal> {
        asked(Method::GET, "/", &[("host", host)])
    }

    #[test]
    fn the_names_of_loopback_are_answered_with_any_port() {
        for host in
            ["localhost", "LocalHost:8080", "127.0.0.1", "127.0.0.1:1", "127.8.8.8:80", "[::1]:9"]
        {
            assert_eq!(with_host(host), Ok(()), "{host}");
        }
    }

    #[test]
    fn every_other_name_is_refused() {
        for host in [
            "evil.example",
            "localhost.evil.example",
            "localhost.",
            "127.0.0.1.evil.example",
            "127.1",
            "2130706433",
            "192.0.2.1:8080",
            "0.0.0.0",
            "[::]",
            "[::1",
            "[::1]x",
            "[127.0.0.1]",
            "::1",
            "localhost:",
            "localhost:http",
            "localhost:99999",
            "localhost:80:80",
            "user@localhost",
            "localhost localhost",
            "",
        ] {
            assert_eq!(with_host(host), Err(Refusal::ForeignHost), "{host}");
        }
    }

    #[test]
    fn no_host_or_two_hosts_are_refused() {
        assert_eq!(asked(Method::GET, "/", &[]), Err(Refusal::NoHost));
        let twice = [("host", "localhost"), ("host", "localhost")];
        assert_eq!(asked(Method::GET, "/", &twice), Err(Refusal::NoHost));
    }

    #[test]
    fn a_host_in_the_target_counts_as_much_as_the_header() {
        let header = [("host", "localhost")];
        assert_eq!(asked(Method::GET, "http://localhost/", &header), Ok(()));
        let foreign = asked(Method::GET, "http://evil.example/", &header);
        assert_eq!(foreign, Err(Refusal::ForeignHost));
    }

    #[test]
    fn only_this_consoles_own_page_may_say_an_origin() {
        let from =
            |origin| asked(Method::GET, "/", &[("host", "localhost:8080"), ("origin", origin)]);
        assert_eq!(from("http://localhost:8080"), Ok(()));
        for origin in ["http://evil.example", "http://localhost:3000", "null", "file://", ""] {
            assert_eq!(from(origin), Err(Refusal::ForeignOrigin), "{origin}");
        }
    }

    #[test]
    fn nothing_but_get_and_head_is_answered() {
        let header = [("host", "localhost")];
        assert_eq!(asked(Method::HEAD, "/", &header), Ok(()));
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::TRACE] {
            assert_eq!(asked(method, "/", &header), Err(Refusal::Method));
        }
    }
}
