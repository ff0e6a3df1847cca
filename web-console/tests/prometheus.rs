//! `/metrics` as Prometheus' own tools see it, and what ships for Grafana and Prometheus.

mod common;

use common::{Answer, Console, FakeManager, LIMIT, is_installed};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DASHBOARD: &str = include_str!("../grafana/millrace.json");
const ALERTS: &str = include_str!("../grafana/alerts.yml");
/// Labels that Prometheus adds to what it asks.
const TARGET_LABELS: [&str; 2] = ["job", "instance"];

fn full_console() -> (tempfile::TempDir, FakeManager, Console) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("manager.sock");
    let manager = FakeManager::start(&socket, Answer::Full);
    let console = Console::start(&socket);
    console.wait_for_code(200);
    (dir, manager, console)
}

/// The queries of the dashboard and of the alerts.
fn queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut out: Vec<String> =
        targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    let mut lines = ALERTS.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(expr) = line.trim().strip_prefix("expr: ") else { continue };
        let mut expr = expr.trim_start_matches(">-").to_owned();
        // What is folded stands deeper than the key that follows.
        while let Some(more) = lines.next_if(|line| line.starts_with("          ")) {
            expr += more.trim();
            expr.push(' ');
        }
        out.push(expr);
    }
    out
}

/// Metrics with the labels of their samples.
fn exported(console: &Console) -> BTreeMap<String, BTreeSet<String>> {
    let mut out: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in console.get("/metrics").body.lines().filter(|line| !line.starts_with('#')) {
        let head = line.rsplit_once(' ').map_or(line, |(head, _)| head);
        let (name, labels) = head.split_once('{').unwrap_or((head, ""));
        let labels = labels.split(',').filter_map(|pair| pair.split_once('='));
        out.entry(name.to_owned()).or_default().extend(labels.map(|(name, _)| name.to_owned()));
    }
    out
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

#[test]
fn every_metric_and_label_that_the_dashboard_and_the_alerts_name_is_exported() {
    let (_dir, _manager, console) = full_console();
    let exported = exported(&console);
    let queries = queries();
    assert!(queries.len() > 25, "{queries:?}");
    for query in &queries {
        let metrics: Vec<_> = words(query).filter(|word| word.starts_with("millrace_")).collect();
        assert!(!metrics.is_empty(), "{query}");
        let mut labels: BTreeSet<&str> = TARGET_LABELS.into();
        for metric in metrics {
            let known = exported.get(metric).unwrap_or_else(|| panic!("no {metric}: {query}"));
            labels.extend(known.iter().map(String::as_str));
        }
        // Matchers in braces, and what is grouped by.
        let braces = query.split('{').skip(1).filter_map(|rest| rest.split('}').next());
        let in_braces = braces
            .flat_map(|inside| inside.split(','))
            .filter_map(|matcher| matcher.split(['=', '!']).next());
        let groups = ["by (", "on (", "ignoring ("]
            .into_iter()
            .flat_map(|by| query.split(by).skip(1).filter_map(|rest| rest.split(')').next()));
        for label in in_braces.chain(groups.flat_map(|inside| inside.split(','))) {
            let label = label.trim();
            assert!(label.is_empty() || labels.contains(label), "no label {label:?}: {query}");
        }
    }
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let legend = target["legendFormat"].as_str().unwrap();
            let known: BTreeSet<_> = words(target["expr"].as_str().unwrap())
                .filter_map(|metric| exported.get(metric))
                .flatten()
                .collect();
            for label in legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()) {
                assert!(known.iter().any(|name| *name == label), "no label {label}: {legend}");
            }
        }
    }
}

fn promtool(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn promtool_finds_no_fault_with_metrics_and_alerts() {
    if !is_installed("promtool") {
        return;
    }
    let (_dir, _manager, console) = full_console();
    let metrics = console.get("/metrics");
    assert!(metrics.head.contains("content-type: text/plain; version=0.0.4"));
    assert_eq!(promtool(&["check", "metrics"], &metrics.body), "");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(ALERTS.as_bytes()).unwrap();
    let said = promtool(&["check", "rules", file.path().to_str().unwrap()], "");
    assert!(said.contains("SUCCESS"), "{said}");
}

struct Prometheus {
    child: Child,
    address: String,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    /// Scrapes `console` once a second.
    fn start(console: &Console) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = dir.path().join("prometheus.yml");
        let text = format!(
            "global: {{ scrape_interval: 1s }}\nscrape_configs:\n- job_name: millrace\n  \
             static_configs: [{{ targets: ['{}'] }}]\n",
            console.address
        );
        std::fs::write(&config, text).unwrap();
        let address = format!("127.0.0.1:{port}");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, address, _dir: dir }
    }

    /// The series that a query finds.
    fn query(&self, query: &str) -> Vec<Value> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let Ok(answer) = common::get(&self.address, &format!("/api/v1/query?query={encoded}"))
        else {
            return Vec::new();
        };
        if !answer.body.starts_with('{') {
            return Vec::new();
        }
        let json = answer.json();
        json["data"]["result"].as_array().cloned().unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_real_prometheus_has_data_for_every_query_of_the_dashboard() {
    if !is_installed("prometheus") {
        return;
    }
    let (_dir, _manager, console) = full_console();
    let prometheus = Prometheus::start(&console);
    let started = Instant::now();
    // Two scrapes, for rates.
    while prometheus.query("rate(millrace_port_receive_packets_total[10s]) > 0").is_empty() {
        assert!(started.elapsed() < LIMIT, "Prometheus has no rates");
        std::thread::sleep(Duration::from_millis(200));
    }
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            let query = query.replace("$__rate_interval", "10s").replace("$job", "millrace");
            assert!(!prometheus.query(&query).is_empty(), "no data: {query}");
        }
    }
}
