//! The real program between a manager on a Unix socket and clients over HTTP.

mod common;

use common::{Answer, Console, FakeManager, LIMIT, command};
use nflib::control::Status;
use nix::sys::signal::Signal;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Instant;
use tempfile::TempDir;

fn socket() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("manager.sock");
    (dir, path)
}

#[test]
fn the_status_is_the_managers() {
    let (_dir, socket) = socket();
    let _manager = FakeManager::start(&socket, Answer::Status);
    let console = Console::start(&socket);
    let response = console.wait_for_code(200);
    assert!(response.head.contains("content-type: application/json"));
    let status: Status = serde_json::from_str(&response.body).unwrap();
    assert_eq!((status.version.as_str(), status.ports[0].name.as_str()), ("test", "lan"));
}

#[test]
fn a_manager_that_goes_away_is_a_503_and_one_that_comes_back_a_200() {
    let (_dir, socket) = socket();
    let console = Console::start(&socket);
    let error = console.wait_for_code(503).json();
    assert_eq!(error["error"]["code"], "manager_away");

    let manager = FakeManager::start(&socket, Answer::Status);
    console.wait_for_code(200);
    assert_eq!(console.get("/healthz").json()["manager"], "up");
    drop(manager);
    console.wait_for_code(503);
    assert_eq!(console.get("/healthz").json()["manager"], "away");

    // Soon it says what to do, too.
    let mut away = console.events().filter(|(name, _)| name == "away");
    let says_how = |data: &serde_json::Value| {
        data["message"].as_str().is_some_and(|text| text.contains("start millrace-manager"))
    };
    assert!(away.any(|(_, data)| says_how(&data)));

    let _manager = FakeManager::start(&socket, Answer::Status);
    console.wait_for_code(200);
}

#[test]
fn an_open_page_sees_the_manager_come_with_rates_and_go() {
    let (_dir, socket) = socket();
    let console = Console::start(&socket);
    let mut events = console.events();
    let (name, data) = events.next().unwrap();
    assert_eq!((name.as_str(), &data["interval_ms"]), ("away", &100.into()));

    let manager = FakeManager::start(&socket, Answer::Status);
    let (_, first) = events.by_ref().find(|(name, _)| name == "status").unwrap();
    let (_, with_rates) = events.by_ref().find(|(_, data)| data["rates"].is_object()).unwrap();
    assert!(first["status"]["at_ns"].as_u64() < with_rates["status"]["at_ns"].as_u64());
    let port = &with_rates["rates"]["ports"][0];
    assert_eq!((&port["rx_pps"], &port["rx_bps"]), (&1e6.into(), &8e8.into()));

    drop(manager);
    assert!(events.any(|(name, _)| name == "away"));
}

#[test]
fn two_hundred_open_pages_cost_the_manager_no_more_than_one() {
    let (_dir, socket) = socket();
    let manager = FakeManager::start(&socket, Answer::Status);
    let console = Console::start(&socket);
    console.wait_for_code(200);
    let mut pages: Vec<_> = (0..200).map(|_| console.events()).collect();
    let before = manager.requests();
    let started = Instant::now();
    for page in &mut pages {
        assert_eq!(page.take(5).filter(|(name, _)| name == "status").count(), 5);
    }
    // One per interval of 100 ms; ticks that were late may add a few at either end.
    let intervals = u64::try_from(started.elapsed().as_millis() / 100).unwrap();
    assert!(manager.requests() - before <= intervals + 3);
    assert_eq!(manager.connections(), 1);
}

#[test]
fn what_is_no_manager_of_this_release_is_named_as_such() {
    for (answer, expected) in
        [(Answer::Nonsense, "not a manager of this release"), (Answer::Refusal, "refused: not you")]
    {
        let (_dir, socket) = socket();
        let _manager = FakeManager::start(&socket, answer);
        let console = Console::start(&socket);
        let said = |(_, data): (String, serde_json::Value)| {
            data["message"].as_str().is_some_and(|text| text.contains(expected))
        };
        assert!(console.events().any(said), "{expected}");
        assert_eq!(console.get("/api/v1/status").code, 503);
    }
}

#[test]
fn a_manager_that_hangs_blocks_no_page() {
    let (_dir, socket) = socket();
    let _silent = UnixListener::bind(&socket).unwrap();
    let console = Console::start(&socket);
    assert_eq!(console.get("/").code, 200);
    assert_eq!(console.get("/api/v1/status").code, 503);
    let silent = |(_, data): (String, serde_json::Value)| {
        data["message"].as_str().is_some_and(|text| text.contains("does not answer"))
    };
    assert!(console.events().any(silent));
}

#[test]
fn the_page_and_its_files_are_served_with_headers_that_forbid_the_rest() {
    let (_dir, socket) = socket();
    let console = Console::start(&socket);
    let page = console.get("/");
    assert_eq!(page.code, 200);
    assert!(page.body.contains("<title>Millrace</title>"));
    for file in millrace_web::page::FILES {
        let response = console.get(file.path);
        assert_eq!((response.code, response.body.as_str()), (200, file.text), "{}", file.path);
        assert!(response.head.contains("content-security-policy: default-src 'self'"));
        assert!(response.head.contains("x-content-type-options: nosniff"));
        assert!(!response.head.contains("access-control-"));
    }
}

#[test]
fn a_foreign_host_origin_method_or_path_is_refused_in_json() {
    let (_dir, socket) = socket();
    let console = Console::start(&socket);
    for (head, code, name) in [
        ("GET / HTTP/1.1\r\nHost: evil.example\r\n", 421, "foreign_host"),
        ("GET /api/v1/status HTTP/1.1\r\nHost: evil.example:8080\r\n", 421, "foreign_host"),
        ("GET / HTTP/1.0\r\n", 400, "bad_request"),
        (
            "GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n",
            403,
            "foreign_origin",
        ),
        ("POST / HTTP/1.1\r\nHost: localhost\r\n", 405, "method_not_allowed"),
        ("PATCH /api/v1/rules HTTP/1.1\r\nHost: localhost\r\n", 405, "method_not_allowed"),
        ("GET /etc/passwd HTTP/1.1\r\nHost: localhost\r\n", 404, "not_found"),
        ("GET /../Cargo.toml HTTP/1.1\r\nHost: localhost\r\n", 404, "not_found"),
    ] {
        let response = console.ask(head);
        assert_eq!(response.code, code, "{head}");
        assert_eq!(response.json()["error"]["code"], name, "{head}");
        assert!(response.head.contains("content-security-policy:"), "{head}");
    }
}

#[test]
fn bytes_that_are_no_http_end_that_connection_only() {
    let (_dir, socket) = socket();
    let console = Console::start(&socket);
    let mut answer = Vec::new();
    let mut stream = console.open("\u{0}\u{1}\u{2} not HTTP");
    let _ = stream.read_to_end(&mut answer);
    let long = "x".repeat(1 << 20);
    let _ = std::panic::catch_unwind(|| console.open(&format!("GET /{long} HTTP/1.1\r\n")));
    assert_eq!(console.get("/healthz").code, 200);
}

#[test]
fn who_opens_many_connections_and_says_nothing_keeps_others_out_for_a_while_at_most() {
    if !common::long_is_wanted() {
        return;
    }
    let (_dir, socket) = socket();
    let console = Console::start(&socket);
    // More than are served at once.
    let silent: Vec<_> = (0..600).map(|_| TcpStream::connect(console.address).unwrap()).collect();
    assert_eq!(console.get("/healthz").code, 200);
    drop(silent);
}

#[test]
fn a_signal_ends_it_cleanly_though_pages_are_open() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (_dir, socket) = socket();
        let _manager = FakeManager::start(&socket, Answer::Status);
        let console = Console::start(&socket);
        let mut page = console.events();
        page.next().unwrap();
        let started = Instant::now();
        let (status, last) = console.signal(signal);
        assert!(status.success(), "{signal}: {status}");
        assert_eq!(last, "stopped\n");
        // The page sees the end of its stream, not a broken one.
        while page.next().is_some() {}
        assert!(started.elapsed() < LIMIT);
    }
}

#[test]
fn what_it_cannot_start_with_is_one_line_and_a_failure() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (arguments, expected) in [
        (["--listen", address.as_str()], "is in use"),
        (["--listen", "0.0.0.0:8080"], "only with a token"),
        (["--listen", "nowhere"], "expected an address and a port"),
        (["--interval-ms", "5"], "100..=10000"),
        (["--log", "loudly=very"], "is not a log level"),
        (["--colour", "blue"], "--colour"),
    ] {
        let output = command().args(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        let lines: Vec<_> =
            BufReader::new(&output.stderr[..]).lines().map(Result::unwrap).collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with("millrace-web: ") && lines[0].contains(expected), "{lines:?}");
    }
}
