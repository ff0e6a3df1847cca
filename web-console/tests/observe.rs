//! Latencies, captures, traces and crashes over HTTP, with a manager of the test's own behind.

mod common;

use common::observed::{CRASH, CRASH_PCAPNG, CRASH_WORDS};
use common::{Answer, Console, FakeManager, LIMIT};
use nflib::control::{Request, TraceRequest};
use serde_json::{Value, json};
use std::io::Read as _;
use std::net::Shutdown;
use std::time::Instant;
use tempfile::TempDir;

fn with(options: &[&str]) -> (TempDir, FakeManager, Console) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("manager.sock");
    let manager = FakeManager::start(&socket, Answer::Full);
    let console = Console::start_with(&socket, &[&["--interval-ms", "100"], options].concat());
    console.wait_for_code(200);
    (dir, manager, console)
}

fn capturing() -> (TempDir, FakeManager, Console) {
    with(&["--allow-captures"])
}

#[track_caller]
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is() {
        assert!(started.elapsed() < LIMIT, "not in time: {what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn latencies_are_told_as_they_are_and_as_they_were() {
    let (_dir, _manager, console) = with(&[]);
    let report = console.get("/api/v1/latency").json();
    assert_eq!(report["hops"][1]["service"], "nat");
    let mut history = Value::Null;
    until("two seconds are remembered", || {
        history = console.get("/api/v1/latency/history").json();
        history["at_unix_ms"].as_array().unwrap().len() >= 2
    });
    let subjects = history["subjects"].as_array().unwrap();
    // The whole way of two kinds of packets, and wait and time at two hops.
    assert_eq!(subjects.len(), 6, "{history}");
    let wait = subjects.iter().find(|one| one["span"] == "wait" && one["hop"] == 0).unwrap();
    let point = &wait["points"][0];
    assert_eq!((&point["p50_ns"], &point["p99_ns"]), (&json!(2560), &json!(4096)));
    let count: u64 =
        point["rows"].as_array().unwrap().iter().map(|row| row[1].as_u64().unwrap()).sum();
    assert_eq!(json!(count), point["count"]);
    let last = history["at_unix_ms"].as_array().unwrap().last().unwrap().clone();
    let later = console.get(&format!("/api/v1/latency/history?after={last}")).json();
    assert!(later["at_unix_ms"].as_array().unwrap().len() <= 1, "{later}");
}

#[test]
fn a_capture_is_a_file_that_ends_when_its_time_is_over() {
    let (_dir, manager, console) = capturing();
    let points = console.get("/api/v1/captures/points").json();
    let at = points[0]["at"].as_str().unwrap();
    let path =
        format!("/api/v1/captures/download?at={at},drop&seconds=1&count=7&snap=64&filter=udp");
    let (response, bytes) = console.download(&path);
    assert_eq!(response.code, 200, "{}", response.head);
    assert!(response.head.contains("content-type: application/x-pcapng"));
    assert!(response.head.contains("attachment; filename=\"millrace-port-lan-in-"));
    assert!(bytes.starts_with(CRASH_PCAPNG) && bytes.len() % CRASH_PCAPNG.len() == 0);
    let Some(Request::Capture(request)) = manager.others().pop() else { panic!() };
    assert_eq!(request.at, ["port:lan:in", "drop"]);
    assert_eq!((request.max_ms, request.max_pkts, request.snap_bytes), (1000, 7, 64));
    assert!(request.filter_text == "udp" && request.filter.len() > 1, "{request:?}");
    until("no capture is under way", || manager.captures().is_empty());
}

#[test]
fn a_capture_ends_when_its_client_goes_and_is_listed_until_then() {
    let (_dir, manager, console) = capturing();
    let head = "GET /api/v1/captures/download?at=drop&seconds=3600 HTTP/1.1\r\nHost: localhost\r\n";
    let mut client = console.open(head);
    let mut bytes = [0; 600];
    client.read_exact(&mut bytes).unwrap();
    until("it is listed", || console.get("/api/v1/captures").json()[0]["at"] == json!(["drop"]));
    assert!(console.get("/metrics").body.contains("\nmillrace_captures 1\n"));
    client.shutdown(Shutdown::Both).unwrap();
    drop(client);
    until("the manager's pipe is closed", || manager.captures().is_empty());
    // What was lost stays counted.
    until("its losses are counted", || {
        console.get("/metrics").body.contains("\nmillrace_capture_lost_packets_total 2\n")
    });
}

#[test]
fn no_more_captures_run_at_once_than_are_bounded_and_all_end_with_the_console() {
    let (_dir, manager, console) = capturing();
    let head = "GET /api/v1/captures/download?at=drop&seconds=3600 HTTP/1.1\r\nHost: localhost\r\n";
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let mut client = console.open(head);
            client.read_exact(&mut [0; 16]).unwrap();
            client
        })
        .collect();
    let refused = console.get("/api/v1/captures/download?at=drop&seconds=1");
    assert_eq!(refused.code, 429, "{}", refused.body);
    assert!(console.get("/api/v1/status").code == 200, "a stream blocks nobody");
    console.signal(nix::sys::signal::Signal::SIGTERM);
    until("all pipes are closed", || manager.captures().is_empty());
    drop(clients);
}

#[test]
fn what_makes_no_capture_is_told_in_one_line() {
    let (_dir, manager, console) = capturing();
    for (query, code, expected) in [
        ("", 400, "missing field"),
        ("?at=", 400, "expected a place"),
        ("?at=drop&seconds=0", 400, "seconds: expected 1 to 3600"),
        ("?at=drop&seconds=x", 400, "invalid digit"),
        ("?at=drop&count=0", 400, "count: expected"),
        ("?at=drop&snap=20000", 400, "snap: expected"),
        ("?at=drop&colour=1", 400, "unknown field"),
        ("?at=nowhere", 404, "no such place"),
        ("?at=drop&filter=tcp%20portt%2080", 400, "syntax error"),
    ] {
        let response = console.get(&format!("/api/v1/captures/download{query}"));
        assert_eq!(response.code, code, "{query}: {}", response.body);
        let message = response.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(expected) && !message.contains('\n'), "{query}: {message}");
    }
    let link = "GET /api/v1/captures/download?at=drop HTTP/1.1\r\nHost: localhost\r\n\
                Sec-Fetch-Site: cross-site\r\n";
    assert_eq!(console.ask(link).code, 403);
    assert!(manager.captures().is_empty());
}

#[test]
fn a_trace_is_added_told_and_forgotten() {
    let (_dir, manager, console) = capturing();
    let body = r#"{"matches":{"ip_proto":"udp"},"count":3}"#;
    let id = console.send("POST", "/api/v1/traces", body).json()["id"].as_u64().unwrap();
    let Some(Request::Trace(TraceRequest { matches, count: 3, .. })) = manager.others().pop()
    else {
        panic!()
    };
    assert_eq!(matches.to_string(), "ip_proto=udp");
    assert_eq!(console.get("/api/v1/traces").json()[0]["id"], id);
    let trace = console.get(&format!("/api/v1/traces/{id}")).json();
    assert_eq!(trace["packets"][0]["steps"][1]["changed"][0]["after"], "3f");
    assert_eq!(console.send("POST", "/api/v1/traces", r#"{"colour":1}"#).code, 400);
    assert_eq!(console.send("DELETE", &format!("/api/v1/traces/{id}"), "").code, 204);
    assert_eq!(console.get(&format!("/api/v1/traces/{id}")).code, 404);
    assert_eq!(console.get("/api/v1/traces").json(), json!([]));
    assert_eq!(console.send("DELETE", "/api/v1/traces/404", "").code, 404);
}

#[test]
fn a_crash_is_told_and_its_files_come_as_they_are() {
    let (_dir, _manager, console) = capturing();
    let crashes = console.get("/api/v1/crashes").json();
    assert_eq!(crashes[0]["name"], CRASH);
    assert_eq!(console.get(&format!("/api/v1/crashes/{CRASH}")).json(), crashes[0]);
    let (words, bytes) = console.download(&format!("/api/v1/crashes/{CRASH}/files/last-words.txt"));
    assert!(words.head.contains("content-type: text/plain"), "{}", words.head);
    assert_eq!(bytes, CRASH_WORDS);
    let (packets, bytes) =
        console.download(&format!("/api/v1/crashes/{CRASH}/files/packets.pcapng"));
    assert!(packets.head.contains("attachment; filename=\"fw-3-1000-packets.pcapng\""));
    assert_eq!(bytes, CRASH_PCAPNG);
    for path in ["/api/v1/crashes/other", "/api/v1/crashes/other/files/x"] {
        assert_eq!(console.get(path).code, 404, "{path}");
    }
    let missing = console.get(&format!("/api/v1/crashes/{CRASH}/files/..%2Fsecret"));
    assert_eq!(missing.code, 404, "{}", missing.body);
    assert!(console.get("/metrics").body.contains("\nmillrace_crash_bundles 1\n"));
}

#[test]
fn a_console_that_only_shows_gives_no_packet_out() {
    let (_dir, manager, console) = with(&[]);
    for path in
        ["/api/v1/captures/download?at=drop", "/api/v1/crashes/fw-3-1000/files/packets.pcapng"]
    {
        let response = console.get(path);
        assert_eq!(
            (response.code, &response.json()["error"]["code"]),
            (403, &"no_captures".into())
        );
        assert!(response.body.contains("--allow-captures"), "{}", response.body);
    }
    assert_eq!(console.send("POST", "/api/v1/traces", "{}").code, 403);
    assert_eq!(manager.others(), []);
    // What is known without packets is told.
    for path in ["/api/v1/captures", "/api/v1/traces", "/api/v1/crashes", "/api/v1/latency"] {
        assert_eq!(console.get(path).code, 200, "{path}");
    }
    assert_eq!(console.get("/api/v1/console").json()["allow_captures"], false);
}

#[test]
fn while_the_manager_is_away_nothing_old_is_told_as_new() {
    let (_dir, manager, console) = capturing();
    drop(manager);
    console.wait_for_code(503);
    for path in [
        "/api/v1/captures",
        "/api/v1/captures/points",
        "/api/v1/captures/download?at=drop",
        "/api/v1/traces",
        "/api/v1/crashes",
        "/api/v1/latency",
    ] {
        assert_eq!(console.get(path).code, 503, "{path}");
    }
    assert_eq!(console.get("/api/v1/latency/history").code, 200);
}
