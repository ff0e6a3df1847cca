//! Traces: what single packets meet.

use nflib::control::{Reply, Request, TraceRequest, TraceStatus, TracedPacket};
use nix::sys::signal::Signal;

use super::running::until;
use super::stage::{Stage, THROUGH, WALLED, set};

fn places(packet: &TracedPacket) -> Vec<&str> {
    // `nf:a#1` by its service: instances are numbered as they come.
    packet.steps.iter().map(|step| step.place.split('#').next().unwrap()).collect()
}

#[test]
fn a_packet_is_seen_at_every_nf_with_its_waits_and_what_was_changed() {
    let Some(stage) = set("") else { return };
    let trace = stage.trace(THROUGH, "5");
    assert!(trace.done);
    assert_eq!((trace.marked_pkts, trace.torn_pkts, trace.packets.len()), (5, 0, 5));
    for packet in &trace.packets {
        assert_eq!(places(packet), ["port:in", "nf:a", "nf:b", "nf:c", "port:out"]);
        assert_eq!(
            (packet.end.as_str(), packet.chain.as_deref()),
            ("sent by out", Some("default"))
        );
        assert_eq!((packet.len_bytes, packet.key.to_string().contains(THROUGH)), (60, true));
        assert!(packet.steps.windows(2).all(|pair| pair[0].at_ns <= pair[1].at_ns));
        assert_eq!(packet.total_ns, packet.steps[4].at_ns);
        let spent_ns: u64 = packet.steps.iter().map(|step| step.wait_ns + step.took_ns).sum();
        assert_eq!(spent_ns, packet.total_ns, "{packet:?}");
        for nf in &packet.steps[1..4] {
            assert_eq!(nf.action.as_deref(), Some("next"));
            assert!(nf.wait_ns > 0 && nf.took_ns > 0, "{nf:?}");
        }
        assert_eq!(packet.steps[1].from.as_deref(), Some("manager"));
        let changed = |step: usize| {
            let changed = packet.steps[step].changed.iter();
            changed.map(|change| change.field.as_deref().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!((changed(1), changed(3)), (vec![], vec![]));
        assert_eq!(changed(2), ["eth.dst", "eth.src"]);
        let macs = &packet.steps[2].changed;
        assert_eq!((&macs[0].before, &macs[0].after), (&macs[1].after, &macs[1].before));
    }
    stage.stop();
}

#[test]
fn a_packet_that_is_dropped_is_seen_to_its_end_with_the_reason() {
    let Some(stage) = set("") else { return };
    let trace = stage.trace(WALLED, "2");
    for packet in &trace.packets {
        assert_eq!(places(packet), ["port:in", "nf:wall", "drop:nf_drop"]);
        assert_eq!(packet.end, "dropped at wall (nf_drop)");
        assert_eq!(packet.steps[1].action.as_deref(), Some("drop"));
        assert_eq!(packet.steps[2].service.as_deref(), Some("wall"));
    }
    assert_eq!(trace.packets.len(), 2);
    stage.stop();
}

#[test]
fn a_person_reads_a_trace_as_a_timeline_and_forgets_it() {
    let Some(stage) = set("") else { return };
    let said = stage.says(&["trace", "add", "--match", THROUGH, "--count", "2", "--wait"]);
    assert_eq!(said.matches("packet ").count(), 2, "{said}");
    for words in ["nf:b#", "eth.dst", "waited", "took", "→ next", "█", "sent by out after"] {
        assert!(said.contains(words), "{words:?} is missing in: {said}");
    }
    let list = stage.says(&["trace", "list"]);
    assert!(list.contains("done") && list.contains(THROUGH), "{list}");
    assert_eq!(stage.says(&["trace", "show", "1"]), said);
    assert_eq!(stage.says(&["trace", "forget", "1"]), "");
    assert_eq!(stage.says(&["trace", "list"]), "no trace\n");
    stage.stop();
}

#[test]
fn of_packets_that_match_only_each_so_manieth_is_followed() {
    let Some(stage) = set("") else { return };
    let args = ["trace", "add", "--count", "20", "--one-in", "50", "--wait"];
    let trace: TraceStatus = stage.json(&args);
    assert_eq!(trace.packets.len(), 20);
    // Each is fifty packets after the one before, at 10,000 a second; bursts blur it.
    let times: Vec<_> = trace.packets.iter().map(|packet| packet.time_unix_ns).collect();
    assert!(times[19] - times[0] > 19 * 50 * 100_000 / 2, "{times:?}");
    stage.stop();
}

#[test]
fn a_packet_that_an_nf_keeps_is_shown_where_it_is() {
    let Some(stage) = set("") else { return };
    stage.nfs[2].signal(Signal::SIGSTOP);
    // Not of any flow: those of the wall end there.
    let (field, value) = THROUGH.split_once('=').unwrap();
    let matches = serde_json::from_value(serde_json::json!({ field: value })).unwrap();
    let request = TraceRequest { matches, count: 3, ..TraceRequest::default() };
    let Reply::Tracing { id } = stage.ask(&Request::Trace(request)) else { panic!() };
    let look = |stage: &Stage| -> TraceStatus {
        let Reply::Traces { mut traces } = stage.ask(&Request::Traces { id: Some(id) }) else {
            panic!()
        };
        traces.remove(0)
    };
    until("packets are seen before the NF that stands still", || {
        let trace = look(&stage);
        let inside = trace.packets.iter().find(|packet| packet.end == "still inside")?;
        (places(inside) == ["port:in", "nf:a", "nf:b"]).then_some(())
    });
    stage.nfs[2].signal(Signal::SIGCONT);
    until("they come out", || {
        let trace = look(&stage);
        let out = trace.packets.iter().filter(|packet| packet.end != "still inside").count() as u64;
        (trace.done && out + trace.torn_pkts == 3).then_some(())
    });
    stage.stop();
}

#[test]
fn a_trace_that_cannot_be_is_refused_in_one_line() {
    let Some(stage) = set("") else { return };
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["add", "--match", "tp_dst=80"], 1, &["tp_dst means nothing by itself", "ip_proto"]),
        (&["add", "--match", "in_port=wan"], 1, &["no port \"wan\"; there are in, out"]),
        (&["add", "--match", "ip_src=1.2.3.4", "ip_dst=x"], 1, &["ip_dst = x", "expected"]),
        (&["add", "--match", "ipsrc=1.2.3.4"], 2, &["did you mean ip_src"]),
        (&["add", "--match", "http"], 2, &["no match", "FIELD=VALUE"]),
        (&["add", "--count", "0"], 1, &["expected 1 to 1000"]),
        (&["add", "--bytes", "9999"], 1, &["at most 1024"]),
        (&["show", "99"], 1, &["no trace 99"]),
        (&["forget", "99"], 1, &["no trace 99"]),
    ];
    for (args, code, words) in cases {
        let output = stage.millrace(&[&["trace"], *args].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), said.lines().count()), (Some(*code), 1), "{said}");
        for word in *words {
            assert!(said.contains(word), "{word:?} is missing in: {said}");
        }
    }
    assert_eq!(stage.says(&["trace", "list"]), "no trace\n");
    stage.stop();
}

#[test]
fn following_every_packet_loses_none_and_no_buffer() {
    let Some(stage) = set("") else { return };
    for _ in 0..4 {
        let request = TraceRequest { count: 1000, ..TraceRequest::default() };
        assert!(matches!(stage.ask(&Request::Trace(request)), Reply::Tracing { .. }));
    }
    let traces = until("all packets were followed", || {
        let Reply::Traces { traces } = stage.ask(&Request::Traces { id: None }) else { panic!() };
        traces.iter().all(|trace| trace.done).then_some(traces)
    });
    assert_eq!(traces.len(), 4);
    let mut told = 0;
    for id in traces.iter().map(|trace| trace.id) {
        told += until("its packets are told of", || {
            let Reply::Traces { traces } = stage.ask(&Request::Traces { id: Some(id) }) else {
                panic!()
            };
            let (torn, told) = (traces[0].torn_pkts, traces[0].packets.len() as u64);
            (torn + told == 1000).then_some(told)
        });
    }
    // How many ways are torn depends on whether the observer gets a core in time to read the rings.
    assert!(told > 0);
    let drops = stage.manager.status().drops;
    assert!(drops.iter().all(|drop| drop.place == "service:wall"), "{drops:?}");
    stage.stop();
}
