//! Latencies, captures, traces and crashes of a real manager with real NFs and traffic, over HTTP.

mod common;
#[path = "common/lab.rs"]
mod lab;

use common::Console;
use lab::{Lab, packets_by_tshark, until};
use nflib::control::{LatencyReport, TraceStatus};
use serde::de::DeserializeOwned;
use serde_json::Value;

fn stage() -> Option<(Lab, Console)> {
    let lab = Lab::start()?;
    // What came before the NFs did was dropped.
    lab.until("packets come out", |status| status.ports.iter().any(|port| port.tx_pkts > 0));
    let console = Console::start_with(&lab.socket(), &["--interval-ms", "100", "--allow-captures"]);
    console.wait_for_code(200);
    Some((lab, console))
}

#[track_caller]
fn told<T: DeserializeOwned>(console: &Console, path: &str) -> T {
    let response = console.get(path);
    assert_eq!(response.code, 200, "{path}: {}", response.body);
    serde_json::from_str(&response.body).unwrap()
}

#[test]
fn a_capture_at_a_real_nf_is_read_by_tshark() {
    let Some((mut lab, console)) = stage() else { return };
    for (at, query, expected) in [
        ("nf:fw:in", "count=50&seconds=20", 50),
        ("port:wan:out", "count=20&seconds=20&filter=udp&snap=60", 20),
        // Nothing is dropped, and so nothing is captured until the time is over.
        ("drop", "seconds=1", 0),
    ] {
        let (response, bytes) =
            console.download(&format!("/api/v1/captures/download?at={at}&{query}"));
        assert_eq!(response.code, 200, "{at}: {}", response.head);
        assert!(bytes.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]), "{at}: {} bytes", bytes.len());
        if let Some(packets) = packets_by_tshark(&bytes) {
            assert_eq!(packets, expected, "{at}");
        }
    }
    let refused = console.get("/api/v1/captures/download?at=nf:nowhere:in");
    assert!((400..500).contains(&refused.code), "{}", refused.body);
    assert!(refused.body.contains("nowhere"), "{}", refused.body);
    let points = console.get("/api/v1/captures/points").body;
    assert!(points.contains("\"port:lan:in\"") && points.contains("\"drop\""), "{points}");
    lab.stop();
}

#[test]
fn a_capture_of_a_client_that_goes_ends_at_the_manager() {
    use std::io::Read as _;
    let Some((mut lab, console)) = stage() else { return };
    let head = "GET /api/v1/captures/download?at=port:lan:in&seconds=600 HTTP/1.1\r\n\
                Host: localhost\r\n";
    let mut client = console.open(head);
    client.read_exact(&mut [0; 600]).unwrap();
    until("it is listed", || console.get("/api/v1/captures").body.contains("port:lan:in"));
    drop(client);
    until("it has ended", || console.get("/api/v1/captures").body == "[]");
    lab.stop();
}

#[test]
fn real_packets_are_followed_from_port_to_port() {
    let Some((mut lab, console)) = stage() else { return };
    let body = r#"{"matches":{"ip_proto":"udp"},"count":3}"#;
    let added = console.send("POST", "/api/v1/traces", body);
    assert_eq!(added.code, 200, "{}", added.body);
    let path = format!("/api/v1/traces/{}", added.json()["id"]);
    let mut trace = TraceStatus::default();
    until("three packets have been followed", || {
        trace = told(&console, &path);
        trace.done && trace.packets.len() == 3
    });
    for packet in &trace.packets {
        assert_eq!(
            (packet.end.as_str(), packet.chain.as_deref()),
            ("sent by wan", Some("default"))
        );
        let services: Vec<_> =
            packet.steps.iter().filter_map(|step| step.service.as_deref()).collect();
        assert_eq!(services, ["fw", "nat"], "{packet:?}");
        let times: Vec<_> = packet.steps.iter().map(|step| step.at_ns).collect();
        assert!(times.is_sorted() && packet.total_ns >= times[times.len() - 1], "{packet:?}");
    }
    assert_eq!(console.send("DELETE", &path, "").code, 204);
    assert_eq!(console.get(&path).code, 404);
    lab.stop();
}

#[test]
fn latencies_of_each_hop_come_by_themselves() {
    let Some((mut lab, console)) = stage() else { return };
    let mut report = LatencyReport::default();
    until("some packets have been sampled", || {
        report = told(&console, "/api/v1/latency");
        report.sampled_pkts > 100 && report.hops.iter().all(|hop| hop.took.count > 0)
    });
    let hops: Vec<_> =
        report.hops.iter().map(|hop| (hop.chain.as_str(), hop.service.as_str())).collect();
    assert_eq!(hops, [("default", "fw"), ("default", "nat")]);
    until("they are remembered", || {
        let history = console.get("/api/v1/latency/history").json();
        history["subjects"].as_array().unwrap().len() == 5
    });
    let metrics = console.get("/metrics").body;
    for line in [
        "millrace_hop_wait_seconds_bucket{chain=\"default\",hop=\"0\",service=\"fw\",le=\"+Inf\"}",
        "millrace_hop_processing_seconds_count{chain=\"default\",hop=\"1\",service=\"nat\"}",
        "millrace_chain_latency_seconds_sum{chain=\"default\"}",
    ] {
        assert!(metrics.contains(line), "{line}");
    }
    lab.stop();
}

#[test]
fn what_a_killed_nf_leaves_is_listed_and_given_out() {
    let Some((mut lab, console)) = stage() else { return };
    lab.until("packets flow", |status| status.nfs.iter().all(|nf| nf.rx_pkts > 0));
    let killed = lab.kill_nf("fw");
    let mut crashes: Vec<Value> = Vec::new();
    until("its crash is listed", || {
        crashes = told(&console, "/api/v1/crashes");
        crashes.len() == 1
    });
    let crash = &crashes[0];
    assert_eq!((&crash["service"], &crash["instance"]), (&"fw".into(), &killed.into()));
    let recorded_pkts = crash["recorded_pkts"].as_u64().unwrap();
    assert!(recorded_pkts > 0, "{crash}");
    for file in crash["files"].as_array().unwrap() {
        let (name, len_bytes) = (file["name"].as_str().unwrap(), &file["len_bytes"]);
        let path = format!("/api/v1/crashes/{}/files/{name}", crash["name"].as_str().unwrap());
        let (response, bytes) = console.download(&path);
        assert_eq!(
            (response.code, bytes.len() as u64),
            (200, len_bytes.as_u64().unwrap()),
            "{path}"
        );
        let packets = if name.ends_with(".pcapng") { packets_by_tshark(&bytes) } else { None };
        assert!(packets.is_none_or(|pkts| pkts as u64 >= recorded_pkts), "{packets:?} {crash}");
    }
    lab.until("it was started again", |status| status.nfs.len() == 3);
    lab.stop();
}
