//! What is left of NFs that crashed.
#![forbid(unsafe_code)]

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use nflib::control::{CrashStatus, Reply, Request};
use schemars::JsonSchema;
use serde::Serialize;

use super::capture::PCAPNG;
use super::download::{attached, by_this_page_or_a_program, file, slot};
use super::error::ApiError;
use super::extract::Segments;
use super::look::json;
use super::operation::Operation;
use super::question::unexpected;
use crate::manager::{Cost, LOOK_LIMIT};
use crate::routes::Shared;

const TEXT: &str = "text/plain; charset=utf-8";
const BYTES: &str = "application/octet-stream";

type Answered = Result<Response, ApiError>;

/// The operations.
pub fn operations() -> Vec<Operation> {
    vec![
        Operation::get(
            "/api/v1/crashes",
            "listCrashes",
            "What is left of NFs that crashed, the newest first",
            crashes,
        )
        .answers::<Vec<Crash>>(),
        Operation::get("/api/v1/crashes/{crash}", "showCrash", "One crash", crash)
            .segment("crash", "Its name")
            .answers::<Crash>(),
        Operation::get(
            "/api/v1/crashes/{crash}/files/{file}",
            "crashFile",
            "A file of a crash: packets, last words, log",
            crash_file,
        )
        .segment("crash", "Its name")
        .segment("file", "The file's name")
        .answers_other(&[PCAPNG, TEXT, BYTES])
        .captures(),
    ]
}

/// What is left of an NF that crashed.
#[derive(Serialize, JsonSchema)]
struct Crash {
    /// Its name, for commands.
    name: String,
    /// When, nanoseconds since 1970.
    time_unix_ns: u64,
    /// The service.
    service: String,
    /// The instance.
    instance: u32,
    /// How its process ended: `SIGSEGV`, `exit status 101`.
    why: String,
    /// The last words it found: a panic's message, or the place where a signal struck.
    last_words: Option<String>,
    /// The folder, on the manager's machine.
    path: String,
    /// Its files.
    files: Vec<CrashFile>,
    /// Packets that were recorded before.
    recorded_pkts: u64,
    /// Packets that it had in hand.
    in_hand_pkts: u64,
}

/// A file of a crash.
#[derive(Serialize, JsonSchema)]
struct CrashFile {
    /// Its name.
    name: String,
    /// Its length, bytes.
    len_bytes: u64,
}

impl From<&CrashStatus> for Crash {
    fn from(crash: &CrashStatus) -> Self {
        let file = |(name, len_bytes): &(String, u64)| CrashFile {
            name: name.clone(),
            len_bytes: *len_bytes,
        };
        Self {
            name: crash.name.clone(),
            time_unix_ns: crash.time_unix_ns,
            service: crash.service.clone(),
            instance: crash.instance,
            why: crash.why.clone(),
            last_words: crash.last_words.clone(),
            path: crash.path.clone(),
            files: crash.files.iter().map(file).collect(),
            recorded_pkts: crash.recorded_pkts,
            in_hand_pkts: crash.in_hand_pkts,
        }
    }
}

async fn crashes(State(shared): State<Shared>) -> Answered {
    let reading = shared.latest();
    reading.status()?;
    Ok(json(&reading.seen().crashes.iter().map(Crash::from).collect::<Vec<_>>()))
}

fn no_crash(name: &str) -> ApiError {
    ApiError::not_found(format!("there is no crash {name:?}"))
}

async fn crash(State(shared): State<Shared>, Segments(name): Segments<String>) -> Answered {
    let reading = shared.latest();
    reading.status()?;
    let seen = reading.seen();
    let found = seen.crashes.iter().find(|crash| crash.name == name);
    Ok(json(&Crash::from(found.ok_or_else(|| no_crash(&name))?)))
}

async fn crash_file(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Segments((name, wanted)): Segments<(String, String)>,
) -> Answered {
    by_this_page_or_a_program(&headers)?;
    let slot = slot(&shared)?;
    let request = Request::Crash { name: name.clone() };
    let (crash, mut files) =
        match shared.asker.ask_for_files(request, Cost::Look, LOOK_LIMIT).await? {
            (Reply::Crash(crash), files) => (crash, files),
            _ => return Err(unexpected("the files of a crash")),
        };
    let missing = || ApiError::not_found(format!("crash {name:?} has no file {wanted:?}"));
    let at = crash.files.iter().position(|(file, _)| *file == wanted).ok_or_else(missing)?;
    if at >= files.len() {
        return Err(missing());
    }
    let body = file(files.swap_remove(at), slot);
    Ok(attached(body, content_type(&wanted), &format!("{name}-{wanted}")))
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, end)| end) {
        "pcapng" => PCAPNG,
        "txt" | "log" | "json" | "toml" => TEXT,
        _ => BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_open_in_wireshark_and_nothing_is_taken_for_a_page() {
        assert_eq!(content_type("packets.pcapng"), PCAPNG);
        assert_eq!(content_type("log.txt"), TEXT);
        assert_eq!((content_type("page.html"), content_type("backtrace")), (BYTES, BYTES));
    }
}
