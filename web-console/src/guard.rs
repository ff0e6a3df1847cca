//! What stands before every request, and what every answer says to browsers.
//!
//! Who could misuse the console is a page from elsewhere in the user's own browser. Two doors are
//! shut: a name of the attacker's that resolves to this machine (DNS rebinding; the Host header then
//! carries that name) and a script of another origin (the Origin header then differs; and no answer
//! ever allows it to read, there is no CORS header). Then comes who is let in ([`crate::access`]).
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr};

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};

use crate::api::error::ApiError;
use crate::page;
use crate::routes::Shared;

/// Which names this console goes by.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// It listens for others than this machine: any address may be in the Host header. Only a name
    /// can be made to lead here by somebody else.
    pub any_address: bool,
    /// Names it was told (`--host`).
    pub hosts: Vec<String>,
    /// It is reached over TLS.
    pub tls: bool,
}

/// HTTP/1.1 asks for one Host header (RFC 9112, 3.2).
fn no_host() -> ApiError {
    ApiError::bad_request("the request names no host, or several")
}

fn foreign_host() -> ApiError {
    ApiError::new(
        StatusCode::MISDIRECTED_REQUEST,
        "foreign_host",
        "this console does not answer to the name in the request's Host header: use localhost, an \
         address it listens on, or start it with --host NAME",
    )
}

fn foreign_origin() -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "foreign_origin",
        "a page of another origin may not use this console",
    )
}

fn no_token() -> ApiError {
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        "no_token",
        "expected the header Authorization: Bearer TOKEN, or a cookie from /login",
    )
}

/// Lets a request pass or refuses it, and puts the security headers on the answer either way.
pub async fn guard(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let mut response = match check(&shared.names, request.uri(), request.headers()) {
        Ok(()) if is_open(request.uri().path()) || shared.access.admits(request.headers()) => {
            next.run(request).await
        }
        // Who opens the page in a browser is led to where the token can be given.
        Ok(()) if request.uri().path() == "/" => Redirect::to("/login").into_response(),
        Ok(()) => no_token().into_response(),
        Err(refusal) => {
            tracing::debug!(code = refusal.code, path = request.uri().path(), "refused");
            refusal.into_response()
        }
    };
    let headers = response.headers_mut();
    for (name, value) in SECURITY_HEADERS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// What is answered without a token: how to give one, and that this process lives.
fn is_open(path: &str) -> bool {
    matches!(path, "/healthz" | "/api/v1/session") || page::is_open(path)
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

fn check(names: &Names, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().map_err(|_| foreign_host())?,
        _ => return Err(no_host()),
    };
    // The target of a request may carry a host too, which then counts (RFC 9112, 3.2.2).
    let target = uri.authority().map(Authority::as_str);
    let is_ours = |authority: &str| names.include(authority);
    if !is_ours(host) || !target.is_none_or(is_ours) {
        return Err(foreign_host());
    }
    let scheme = if names.tls { "https://" } else { "http://" };
    for origin in headers.get_all(header::ORIGIN) {
        let origin = origin.to_str().ok().and_then(|origin| origin.strip_prefix(scheme));
        if !origin.is_some_and(|origin| origin.eq_ignore_ascii_case(host)) {
            return Err(foreign_origin());
        }
    }
    Ok(())
}

impl Names {
    /// Whether a host, with or without a port, is a name of this console's.
    fn include(&self, authority: &str) -> bool {
        if is_loopback(authority) {
            return true;
        }
        let host = match authority.strip_prefix('[') {
            Some(rest) => match rest.split_once(']') {
                Some((host, port)) if is_port(port) && host.parse::<Ipv6Addr>().is_ok() => host,
                _ => return false,
            },
            None => {
                let (host, port) =
                    authority.split_at(authority.find(':').unwrap_or(authority.len()));
                if !is_port(port) {
                    return false;
                }
                host
            }
        };
        (self.any_address && host.parse::<IpAddr>().is_ok())
            || self.hosts.iter().any(|name| name.eq_ignore_ascii_case(host))
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
    use proptest::prelude::*;

    fn asked_of(names: &Names, target: &str, headers: &[(&str, &str)]) -> Result<(), &'static str> {
        let mut request = axum::http::Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        check(names, request.uri(), request.headers()).map_err(|error| error.code)
    }

    fn asked(target: &str, headers: &[(&str, &str)]) -> Result<(), &'static str> {
        asked_of(&Names::default(), target, headers)
    }

    fn with_host(host: &str) -> Result<(), &'static str> {
        asked("/", &[("host", host)])
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
            assert_eq!(with_host(host), Err("foreign_host"), "{host}");
        }
    }

    #[test]
    fn no_host_or_two_hosts_are_refused() {
        assert_eq!(asked("/", &[]), Err("bad_request"));
        let twice = [("host", "localhost"), ("host", "localhost")];
        assert_eq!(asked("/", &twice), Err("bad_request"));
    }

    #[test]
    fn a_host_in_the_target_counts_as_much_as_the_header() {
        let header = [("host", "localhost")];
        assert_eq!(asked("http://localhost/", &header), Ok(()));
        let foreign = asked("http://evil.example/", &header);
        assert_eq!(foreign, Err("foreign_host"));
    }

    #[test]
    fn only_this_consoles_own_page_may_say_an_origin() {
        let from = |origin| asked("/", &[("host", "localhost:8080"), ("origin", origin)]);
        assert_eq!(from("http://localhost:8080"), Ok(()));
        for origin in ["http://evil.example", "http://localhost:3000", "null", "file://", ""] {
            assert_eq!(from(origin), Err("foreign_origin"), "{origin}");
        }
    }

    #[test]
    fn one_that_listens_for_others_answers_to_addresses_and_to_names_it_was_told() {
        let names = Names { any_address: true, hosts: vec!["console.example".into()], tls: false };
        let with = |host| asked_of(&names, "/", &[("host", host)]);
        for host in ["192.0.2.1:8080", "[2001:db8::1]:8080", "Console.Example", "localhost:1"] {
            assert_eq!(with(host), Ok(()), "{host}");
        }
        for host in ["evil.example", "console.example.evil.example", "[::1]x", "console.example:"] {
            assert_eq!(with(host), Err("foreign_host"), "{host}");
        }
    }

    #[test]
    fn over_tls_an_origin_without_it_is_another() {
        let names = Names { tls: true, ..Names::default() };
        let from =
            |origin| asked_of(&names, "/", &[("host", "localhost:8080"), ("origin", origin)]);
        assert_eq!(from("https://localhost:8080"), Ok(()));
        assert_eq!(from("http://localhost:8080"), Err("foreign_origin"));
    }

    proptest! {
        #[test]
        fn whoever_is_answered_named_this_machine_or_an_address(
            host in r"(localhost|127\.0\.0\.1|\[::1\]|10\.0\.0\.1)?[a-z0-9.:\[\]]{0,5}",
            origin in r"((http://)?(localhost|127\.0\.0\.1)?[a-z0-9.:]{0,3})?",
        ) {
            let mut request = axum::http::Request::builder().uri("/").header("host", &host);
            if !origin.is_empty() {
                request = request.header("origin", &origin);
            }
            // What is no header at all never comes this far.
            let Ok(request) = request.body(()) else { return Ok(()) };
            let names = Names { any_address: true, ..Names::default() };
            if check(&names, request.uri(), request.headers()).is_ok() {
                let bare = host.rsplit_once(':').map_or(&*host, |(bare, _)| bare);
                let bare = bare.trim_matches(['[', ']']);
                let is_ours = bare.eq_ignore_ascii_case("localhost")
                    || bare.parse::<IpAddr>().is_ok()
                    || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
                prop_assert!(is_ours, "{host:?}");
                let own = format!("http://{host}");
                prop_assert!(origin.is_empty() || origin == own);
            }
        }
    }
}
