//! The operations, over HTTP, with a manager of the test's own behind.

mod common;

use common::{Answer, Console, FakeManager};
use nflib::control::{Edit, Request, ServiceRef, Target};
use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A manager, and a console that may change things.
fn changing() -> (TempDir, FakeManager, Console) {
    with(&["--interval-ms", "100", "--allow-changes"])
}

fn with(options: &[&str]) -> (TempDir, FakeManager, Console) {
    let dir = tempfile::tempdir().unwrap();
    let socket: PathBuf = dir.path().join("manager.sock");
    let manager = FakeManager::start(&socket, Answer::Status);
    let console = Console::start_with(&socket, options);
    console.wait_for_code(200);
    (dir, manager, console)
}

/// Every operation of the document: method, path with its braces filled, what it needs.
fn documented(console: &Console) -> Vec<(String, String, String)> {
    let document = console.get("/api/v1/openapi.json").json();
    let mut out = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let path = path
                .replace("{instance}", "7")
                .replace("{trace}", "7")
                .replace("{crash}", "x")
                .replace("{file}", "x")
                .replace("{name}", "x")
                .replace("{rule}", "x")
                .replace("{service}", "x");
            let needs = operation["description"].as_str().unwrap_or_default().to_owned();
            out.push((method.to_uppercase(), path, needs));
        }
    }
    out
}

#[test]
fn every_operation_of_the_document_is_answered_by_the_server() {
    let (_dir, _manager, console) = changing();
    for (method, path, _) in documented(&console) {
        if path == "/api/v1/events" {
            continue;
        }
        let response = console.send(&method, &path, "{}");
        // A thing named x is nowhere; that is another answer than a path that is nowhere.
        let nowhere = response.code == 404 && response.body.contains("nothing here");
        assert!(!nowhere && response.code != 405, "{method} {path}: {}", response.body);
        assert!(response.code < 500, "{method} {path}: {}", response.body);
    }
}

#[test]
fn without_leave_nothing_that_changes_things_reaches_the_manager() {
    let (_dir, manager, console) = with(&["--interval-ms", "100"]);
    let refused = |option: &str, code: &str, least: usize| {
        let mut all = documented(&console);
        all.retain(|(.., needs)| needs.split('`').nth(1) == Some(option));
        assert!(all.len() >= least, "{all:?}");
        for (method, path, _) in all {
            let response = console.send(&method, &path, r#"{"instances":1}"#);
            assert_eq!(response.code, 403, "{method} {path}");
            assert_eq!(response.json()["error"]["code"], code);
            assert!(response.body.contains(option));
        }
    };
    refused("--allow-changes", "read_only", 13);
    refused("--allow-captures", "no_captures", 4);
    assert_eq!(manager.others(), []);
    // A difference is no change.
    assert_eq!(console.send("POST", "/api/v1/config/diff", r#"{"text":"x"}"#).code, 200);
    assert!(matches!(&manager.others()[..], [Request::Apply { dry_run: true, .. }]));
}

#[test]
fn what_is_asked_reaches_the_manager_as_the_command_line_would_ask_it() {
    let (_dir, manager, console) = changing();
    let service = |name: &str| ServiceRef::Name(name.into());
    let edit = |edit| Request::Edit { edits: vec![edit] };
    let command = vec!["nf".to_owned(), "x".to_owned()];
    for (method, path, body, expected) in [
        ("DELETE", "/api/v1/rules/12", "", edit(Edit::RemoveRule { id: 12 })),
        ("DELETE", "/api/v1/rules/web", "", edit(Edit::RemoveRuleNamed { name: "web".into() })),
        ("DELETE", "/api/v1/chains/a%20b", "", edit(Edit::RemoveChain { name: "a b".into() })),
        (
            "PUT",
            "/api/v1/services/fw/instances",
            r#"{"instances":3}"#,
            edit(Edit::Scale { service: service("fw"), instances: 3 }),
        ),
        (
            "PUT",
            "/api/v1/services/7/command",
            r#"{"command":["nf","x"]}"#,
            edit(Edit::SetCommand { service: ServiceRef::Id(7), command: command.clone() }),
        ),
        (
            "POST",
            "/api/v1/services/fw/upgrade",
            r#"{"command":["nf","x"],"probation_ms":5}"#,
            Request::Upgrade { service: service("fw"), command, probation_ms: 5 },
        ),
        ("DELETE", "/api/v1/nfs/3", "", Request::StopNf { instance: 3 }),
        (
            "POST",
            "/api/v1/nfs/3/call",
            r#"{"text":"get"}"#,
            Request::Call { target: Target::Instance(3), payload: b"get".to_vec() },
        ),
        (
            "POST",
            "/api/v1/config/apply",
            r#"{"path":"m.toml","text":"x"}"#,
            Request::Apply { path: "m.toml".into(), text: "x".into(), dry_run: false },
        ),
    ] {
        let response = console.send(method, path, body);
        assert!(response.code < 300, "{method} {path}: {} {}", response.code, response.body);
        assert_eq!(manager.others().pop(), Some(expected), "{method} {path}");
    }
    let rule = r#"{"priority":5,"match":{"tp_dst":80},"then":{"chain":"web"}}"#;
    let applied = console.send("POST", "/api/v1/rules", rule).json();
    assert_eq!(applied["generation"], 9);
    let Some(Request::Edit { edits }) = manager.others().pop() else { panic!() };
    let Edit::AddRule { rule } = &edits[0] else { panic!() };
    assert_eq!((rule.priority, rule.matches.to_string().as_str()), (5, "tp_dst=80"));
}

#[test]
fn what_each_nf_answers_is_text_bytes_or_why_not() {
    let (_dir, _manager, console) = changing();
    let called = console.send("POST", "/api/v1/services/fw/call", r#"{"text":"x"}"#).json();
    assert_eq!((&called[0]["text"], &called[1]["bytes"][0]), (&"yes".into(), &255.into()));
    assert_eq!(called[2]["error"], "no");
}

#[test]
fn a_request_that_makes_no_sense_is_told_so_with_a_fitting_code() {
    let (_dir, manager, console) = changing();
    let long = format!(r#"{{"text":"{}"}}"#, "x".repeat(300 << 10));
    let message = format!(r#"{{"text":"{}"}}"#, "x".repeat(17 << 10));
    for (method, path, body, code, name) in [
        ("POST", "/api/v1/rules", "{", 400, "bad_request"),
        ("POST", "/api/v1/rules", r#"{"then":{},"colour":1}"#, 400, "bad_request"),
        ("POST", "/api/v1/nfs/3/call", &long, 413, "too_large"),
        ("POST", "/api/v1/nfs/3/call", &message, 413, "too_large"),
        ("POST", "/api/v1/nfs/x/call", r#"{"text":""}"#, 400, "bad_request"),
        ("PUT", "/api/v1/chains/a", r#"{"name":"b"}"#, 400, "bad_request"),
        ("DELETE", "/api/v1/nfs/404", "", 404, "not_found"),
        ("POST", "/api/v1/config/apply", r#"{"text":""}"#, 409, "invalid"),
        ("GET", "/api/v1/ports/nowhere", "", 404, "not_found"),
        ("GET", "/api/v1/rules?limit=x", "", 400, "bad_request"),
        ("GET", "/api/v1/rules?colour=1", "", 400, "bad_request"),
        ("GET", "/api/v1/ports?x=1", "", 400, "bad_request"),
        ("GET", "/api/v1/events?hz=0", "", 400, "bad_request"),
        ("GET", "/api/v1/flows/explain?packet=tcp", "", 400, "bad_request"),
        ("GET", "/api/v1/flows/explain?frame=0", "", 400, "bad_request"),
        ("GET", "/api/v1/flows?limit=100000", "", 400, "bad_request"),
    ] {
        let response = console.send(method, path, body);
        assert_eq!(response.code, code, "{method} {path}: {}", response.body);
        assert_eq!(response.json()["error"]["code"], name, "{method} {path}");
    }
    let good = console.send("POST", "/api/v1/config/check", r#"{"text":"x"}"#).json();
    let bad = console.send("POST", "/api/v1/config/check", r#"{"text":""}"#).json();
    assert_eq!((&good["good"], &bad["good"]), (&true.into(), &false.into()));
    assert_eq!(bad["problem"], "the file says nothing");
    drop(manager);
    console.wait_for_code(503);
    let response = console.send("DELETE", "/api/v1/nfs/3", "");
    assert_eq!((response.code, &response.json()["error"]["code"]), (503, &"manager_away".into()));
}

#[test]
fn a_page_of_another_origin_and_a_body_that_a_form_can_send_change_nothing() {
    let (_dir, manager, console) = changing();
    let foreign = console
        .ask("DELETE /api/v1/nfs/3 HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n");
    assert_eq!(foreign.code, 403);
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let head = format!(
            "POST /api/v1/rules HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n\
             Content-Length: 0\r\n"
        );
        assert_eq!(console.ask(&head).code, 415, "{kind}");
    }
    assert_eq!(manager.others(), []);
}

#[test]
fn questions_to_the_manager_are_bounded_and_looks_at_the_status_are_not() {
    let (_dir, manager, console) = changing();
    let codes: BTreeSet<_> = (0..200).map(|_| console.get("/api/v1/buffers").code).collect();
    assert_eq!(codes, [200, 429].into());
    let censuses = manager.others().len();
    assert!(censuses < 50, "{censuses}");
    let connections = manager.connections();
    for _ in 0..200 {
        assert_eq!(console.get("/api/v1/ports").code, 200);
    }
    assert_eq!(manager.connections(), connections);
}

#[test]
fn who_wants_more_events_gets_them_and_the_others_do_not() {
    let (_dir, manager, console) = with(&["--interval-ms", "1000"]);
    let (mut calm, fast) = (console.events(), console.events_at("/api/v1/events?hz=10"));
    calm.next().unwrap();
    let (before, started) = (manager.requests(), Instant::now());
    assert_eq!(fast.take(12).filter(|(name, _)| name == "status").count(), 12);
    let took = started.elapsed();
    // At the base interval of a second they would take 11 s.
    assert!(took.as_secs() < 6, "{took:?}");
    let (_, data) = calm.next().unwrap();
    let interval_s = data["rates"]["interval_s"].as_f64().unwrap();
    assert!(interval_s > 0.5, "rates of a calm stream are over a second or so: {interval_s}");
    // The manager was asked ten times a second at most.
    let limit = u64::try_from(took.as_millis() / 100).unwrap() + 12;
    assert!(manager.requests() - before <= limit);
}

#[test]
fn what_happened_is_remembered_for_those_who_come_later() {
    let (_dir, manager, console) = changing();
    drop(manager);
    console.wait_for_code(503);
    let timeline = console.get("/api/v1/timeline").json();
    let kinds: Vec<_> = timeline.as_array().unwrap().iter().map(|e| e["kind"].clone()).collect();
    assert_eq!(kinds, ["manager", "manager"]);
    assert_eq!(timeline[1]["level"], "bad");
    assert_eq!(console.get("/api/v1/timeline?after=1").json().as_array().unwrap().len(), 1);
}

/// A token file, and a console that asks for what is in it.
fn guarded(more: &[&str]) -> (TempDir, FakeManager, Console, &'static str) {
    use std::os::unix::fs::OpenOptionsExt as _;
    const TOKEN: &str = "correct-horse-battery-staple";
    let dir = tempfile::tempdir().unwrap();
    let (socket, file) = (dir.path().join("manager.sock"), dir.path().join("token"));
    let mut opened = std::fs::OpenOptions::new();
    let mut opened = opened.write(true).create_new(true).mode(0o600).open(&file).unwrap();
    std::io::Write::write_all(&mut opened, TOKEN.as_bytes()).unwrap();
    let manager = FakeManager::start(&socket, Answer::Status);
    let file = file.to_str().unwrap();
    let options = [&["--interval-ms", "100", "--token-file", file], more].concat();
    let console = Console::start_with(&socket, &options);
    (dir, manager, console, TOKEN)
}

#[test]
fn without_the_token_nothing_is_shown_but_the_way_to_give_it() {
    let (_dir, manager, console, token) = guarded(&["--allow-changes"]);
    for path in ["/api/v1/status", "/metrics", "/api/v1/openapi.json", "/main.js", "/nowhere"] {
        let response = console.get(path);
        assert_eq!(response.code, 401, "{path}");
        assert!(response.head.contains("www-authenticate: bearer"), "{path}");
    }
    assert_eq!(console.get("/healthz").code, 200);
    assert_eq!(console.get("/login").code, 200);
    let page = console.get("/");
    assert!(page.code == 303 && page.head.contains("location: /login"));
    assert_eq!(console.send("DELETE", "/api/v1/nfs/3", "").code, 401);
    assert_eq!(manager.others(), []);
    let wrong = console.send("POST", "/api/v1/session", r#"{"token":"wrong"}"#);
    assert_eq!((wrong.code, wrong.head.contains("set-cookie")), (401, false));

    let right = console.send("POST", "/api/v1/session", &format!(r#"{{"token":"{token}"}}"#));
    assert_eq!(right.code, 204);
    let cookie = right.head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    assert!(cookie.contains("httponly") && cookie.contains("samesite=strict"), "{cookie}");
    let pair = cookie.split(';').next().unwrap();
    let by = |header: &str| {
        console.ask(&format!("GET / HTTP/1.1\r\nHost: localhost\r\n{header}\r\n")).code
    };
    assert_eq!(by(&format!("Cookie: {pair}")), 200);
    assert_eq!(by(&format!("Authorization: Bearer {token}")), 200);
    assert_eq!(by(&format!("Authorization: Bearer {token}x")), 303);
}

#[test]
fn over_tls_it_answers_to_those_who_speak_it() {
    if !common::is_installed("openssl") {
        return;
    }
    let keys = tempfile::tempdir().unwrap();
    let (certificate, key) = (keys.path().join("c.pem"), keys.path().join("k.pem"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let (_dir, _manager, console, token) = guarded(&["--tls-cert", certificate, "--tls-key", key]);
    // A client that never ends its handshake keeps nobody out.
    let _silent = std::net::TcpStream::connect(console.address).unwrap();
    let mut plain = console.open("GET /healthz HTTP/1.1\r\nHost: localhost\r\n");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    let ask = || over_tls(&console, certificate, token);
    // The manager may not have been asked yet.
    let mut answers = (0..200).map(|_| ask()).inspect(|text| {
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        std::thread::sleep(Duration::from_millis(20));
    });
    let last = answers.find(|text| text.contains("millrace_up 1"));
    assert!(last.is_some(), "the manager is there: {}", ask());
}

/// What the console answers to a client that checks its certificate.
fn over_tls(console: &Console, certificate: &str, token: &str) -> String {
    let mut client = std::process::Command::new("openssl")
        .args(["s_client", "-quiet", "-verify_return_error", "-CAfile", certificate])
        .args(["-servername", "localhost", "-connect", &console.address.to_string()])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let request = format!(
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nOrigin: https://localhost\r\n\
         Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    );
    let mut stdin = client.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, request.as_bytes()).unwrap();
    let mut text = String::new();
    client.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    drop(stdin);
    client.wait().unwrap();
    text
}
