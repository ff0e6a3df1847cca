//! What is downloaded as it comes: captures from a pipe, files of crashes. Bounded in number, bytes and time;
//! whoever goes away ends it.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use tokio::net::unix::pipe;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;

use super::error::ApiError;
use crate::routes::Shared;

/// Most bytes of one download.
const MAX_BYTES: u64 = 1 << 30;
/// Read at a time, bytes: as much as a pipe holds by default (pipe(7)).
const PIECE_BYTES: usize = 64 << 10;

/// Room for one download; given back when it ends.
pub fn slot(shared: &Shared) -> Result<OwnedSemaphorePermit, ApiError> {
    let busy =
        |_| ApiError::busy("as many downloads are under way as this console serves: wait for one");
    Arc::clone(&shared.downloads).try_acquire_owned().map_err(busy)
}

/// A page from elsewhere can make a browser follow a link, though it cannot read what comes; it shall not
/// start captures with that (Fetch Metadata, section 2.2: browsers say where a request comes from).
pub fn by_this_page_or_a_program(headers: &HeaderMap) -> Result<(), ApiError> {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    if site.is_none_or(|site| matches!(site, b"same-origin" | b"none")) {
        return Ok(());
    }
    let message = "a link on a page of another origin may not start this";
    Err(ApiError::new(StatusCode::FORBIDDEN, "foreign_origin", message))
}

/// An answer that browsers keep as a file by this name.
pub fn attached(body: Body, content_type: &'static str, name: &str) -> Response {
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let plain: String =
        name.chars().map(|c| if is_plain(&c) { c } else { '-' }).take(120).collect();
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    let disposition = format!("attachment; filename=\"{plain}\"");
    if let Ok(disposition) = HeaderValue::from_str(&disposition) {
        headers.insert(header::CONTENT_DISPOSITION, disposition);
    }
    response
}

/// What comes out of a pipe until its other end is closed, the client goes, the console stops, or the time is
/// over.
pub fn pipe(
    reading_end: OwnedFd,
    limit: Duration,
    shared: &Shared,
    slot: OwnedSemaphorePermit,
) -> Result<Body, ApiError> {
    let pipe = pipe::Receiver::from_owned_fd(reading_end).map_err(|error| {
        ApiError::away("manager_version", format!("what the manager sent is no pipe: {error}"))
    })?;
    let piped = Piped {
        pipe,
        left_bytes: MAX_BYTES,
        end: Instant::now() + limit,
        stopping: shared.stopping.clone(),
        _slot: slot,
    };
    Ok(Body::from_stream(stream::unfold(piped, async |mut piped| {
        let piece = piped.next().await?;
        Some((piece, piped))
    })))
}

struct Piped {
    pipe: pipe::Receiver,
    left_bytes: u64,
    end: Instant,
    stopping: watch::Receiver<bool>,
    _slot: OwnedSemaphorePermit,
}

impl Piped {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        let Self { pipe, left_bytes, end, stopping, .. } = self;
        let room = usize::try_from(*left_bytes).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        if room == 0 {
            return None;
        }
        let mut bytes = vec![0; room];
        let len = tokio::select! {
            len = read(pipe, &mut bytes) => len,
            // Resolves to an error when the sender is gone, which is an end too.
            _ = stopping.wait_for(|&stopping| stopping) => return None,
            () = tokio::time::sleep_until(*end) => return None,
        };
        match len {
            Ok(0) => None,
            Ok(len) => {
                *left_bytes -= len as u64;
                bytes.truncate(len);
                Some(Ok(bytes.into()))
            }
            Err(error) => Some(Err(error)),
        }
    }
}

async fn read(pipe: &pipe::Receiver, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        pipe.readable().await?;
        match pipe.try_read(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

/// A file, read on a thread that may block, as fast as the client takes it.
pub fn file(file: OwnedFd, slot: OwnedSemaphorePermit) -> Body {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(2);
    tokio::task::spawn_blocking(move || {
        let _slot = slot;
        let mut file = File::from(file).take(MAX_BYTES);
        loop {
            let mut bytes = vec![0; PIECE_BYTES];
            let piece = match file.read(&mut bytes) {
                Ok(0) => return,
                Ok(len) => {
                    bytes.truncate(len);
                    Ok(bytes.into())
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = piece.is_err();
            // Nobody receives any more: the client has gone.
            if sender.blocking_send(piece).is_err() || failed {
                return;
            }
        }
    });
    Body::from_stream(stream::unfold(receiver, async |mut receiver| {
        let piece = receiver.recv().await?;
        Some((piece, receiver))
    }))
}
