//! What a manager tells in its log, and to a collector of spans.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

#[path = "support/running.rs"]
mod running;
#[path = "support/skip.rs"]
mod skip;

use nix::sys::signal::Signal;
use running::{MANAGER, Process, until};

const TABLES: &str = "[[port]]\nname = \"sink\"\nbackend = \"sink\"\n";

#[test]
fn a_log_for_machines_is_a_json_object_a_line() {
    let directory = tempfile::tempdir().unwrap();
    let (file, socket) = (directory.path().join("m.toml"), directory.path().join("m.sock"));
    let text = format!("[manager]\nsocket = {socket:?}\n[pool]\nbuffers = 1024\n{TABLES}");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(MANAGER);
    command.args(["--log-format", "json", "--config"]).arg(&file);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut manager = Process(child.unwrap());
    let log = manager.0.stderr.take().unwrap();
    until("it listens", || std::os::unix::net::UnixStream::connect(&socket).ok());
    manager.signal(Signal::SIGTERM);
    let lines: Vec<_> = BufReader::new(log).lines().map(Result::unwrap).collect();
    assert!(!lines.is_empty());
    let all: Vec<serde_json::Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect();
    for event in &all {
        for field in ["timestamp", "level", "message", "target"] {
            assert!(event[field].is_string(), "{field} in {event}");
        }
    }
    let stopping = all.iter().find(|event| event["message"] == "stopping: draining");
    assert_eq!(stopping.unwrap()["signal"], 15, "fields are fields");
}

#[cfg(feature = "otel")]
mod spans {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc;

    use nflib::control::{ChainSpec, Edit};

    use super::running::Manager;
    use super::*;

    /// Takes what is posted, and answers as a collector does.
    fn collect(stream: TcpStream) -> Option<serde_json::Value> {
        let mut reader = BufReader::new(stream);
        let (mut line, mut length, mut path) = (String::new(), 0, String::new());
        while reader.read_line(&mut line).ok()? > 0 && !line.trim().is_empty() {
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            } else if let Some(rest) = line.strip_prefix("POST ") {
                path = rest.split(' ').next()?.to_owned();
            }
            line.clear();
        }
        assert_eq!(path, "/v1/traces");
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
        reader.get_mut().write_all(answer.as_bytes()).ok()?;
        serde_json::from_slice(&body).ok()
    }

    /// Names of spans with their string attributes.
    fn spans_in(posted: &serde_json::Value) -> Vec<(String, String)> {
        let resources = posted["resourceSpans"].as_array().unwrap();
        let scopes = resources.iter().flat_map(|all| all["scopeSpans"].as_array().unwrap());
        let spans = scopes.flat_map(|scope| scope["spans"].as_array().unwrap());
        spans
            .map(|span| (span["name"].as_str().unwrap().to_owned(), span["attributes"].to_string()))
            .collect()
    }

    #[test]
    fn requests_and_changes_are_spans_at_a_collector() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (posted, received) = mpsc::channel();
        std::thread::spawn(move || {
            for body in listener.incoming().map_while(Result::ok).filter_map(collect) {
                let _ = posted.send(body);
            }
        });
        let mut command = Command::new(MANAGER);
        command.args(["--otlp-endpoint", &endpoint]);
        let manager = Manager::start_by(command, "", TABLES);
        drop(manager.status());
        let chain =
            ChainSpec { name: "new".to_owned(), end: "egress".to_owned(), ..ChainSpec::default() };
        manager.edit(vec![Edit::SetChain { chain, new: true }]).unwrap();
        // What waits is sent at the end.
        manager.stop();
        let spans: Vec<_> = received.try_iter().flat_map(|body| spans_in(&body)).collect();
        let seen = |name: &str, attribute: &str| {
            spans.iter().any(|(n, attributes)| n == name && attributes.contains(attribute))
        };
        assert!(seen("request", "\"status\"") && seen("request", "\"edit\""), "{spans:?}");
        assert!(seen("change", "request"), "{spans:?}");
    }

    #[test]
    fn a_collector_that_is_away_stops_nothing_and_a_wrong_address_is_one_line() {
        let mut command = Command::new(MANAGER);
        command.args(["--otlp-endpoint", "http://127.0.0.1:9"]);
        let manager = Manager::start_by(command, "", TABLES);
        drop(manager.status());
        manager.stop();
        let wrong = ["--config", "/dev/null", "--otlp-endpoint", "localhost:4318"];
        let output = Command::new(MANAGER).args(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("http://127.0.0.1:4318"), "{said}");
    }
}
