//! What is told of packets, and how many may be followed.

use super::*;
use crate::observe::journeys::Emptied;
use crate::observe::{HopName, NfName, RouteName, ServiceName, Source};
use nflib::control::MatchSpec;
use nflib::control::spec::Value;
use nflib::observe::{Event, EventKind};

fn directory() -> Directory {
    let name = |name: &str| -> Arc<str> { name.into() };
    let service = |service: u16, text: &str| ServiceName { service, name: name(text) };
    let nf = |nf: u16, service: u16, text: &str| NfName {
        nf,
        instance: u32::from(nf) + 1,
        service,
        service_name: name(text),
        slot: service,
        isolated: false,
    };
    let hops = vec![
        HopName { service: 0, name: name("router") },
        HopName { service: 1, name: name("firewall") },
    ];
    Directory::of(
        &["lan", "wan"],
        vec![service(0, "router"), service(1, "firewall")],
        vec![nf(0, 0, "router"), nf(1, 1, "firewall")],
        vec![(7, RouteName { chain: name("web"), hops })],
    )
}

fn any() -> Match {
    Match::compile(&MatchSpec::default(), &|_| None).unwrap()
}

fn request(count: u32) -> TraceRequest {
    TraceRequest { count, ..TraceRequest::default() }
}

/// Ethernet, IPv4, UDP to port 53.
fn frame(ttl: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 28, 0, 1, 0, 0, ttl, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0x12, 0x34, 0, 53, 0, 8, 0, 0]);
    frame
}

/// The ways of packets of a trace: changed by the first NF, dropped by the second; the last one is still there.
fn journeys(slot: u16, directory: &Directory) -> (Journeys, Vec<Journey>) {
    let event = |kind, time_ns, buffer| Event {
        kind,
        time_ns,
        buffer,
        len_bytes: 42,
        offset_bytes: 256,
        route: 7,
        peer: NOBODY,
        marked: true,
        ..Event::default()
    };
    let (into, out) = (EventKind::NfIn, EventKind::NfOut);
    let next = ActionCode::Next as u8;
    let mut journeys = Journeys::new();
    for (buffer, begin_ns) in [(3, 1000u64), (4, 5000)] {
        let at = |kind, after_ns| event(kind, begin_ns + after_ns, buffer);
        let begin = Event { peer: slot, ..at(EventKind::PortIn, 0) };
        journeys.event(Source::Worker(0), &begin, &frame(64));
        journeys.event(Source::Nf(0), &at(into, 100), &frame(64));
        journeys.event(Source::Nf(0), &Event { code: next, ..at(out, 150) }, &frame(63));
        let second = |kind, after_ns| Event { hop: 1, ..at(kind, after_ns) };
        journeys.event(Source::Nf(1), &Event { peer: 0, ..second(into, 200) }, &frame(63));
        if buffer == 3 {
            journeys.event(Source::Nf(1), &second(out, 230), &frame(63));
            let drop = Event { code: 8, target: 1, ..at(EventKind::Drop, 300) };
            journeys.event(Source::Worker(0), &drop, &frame(63));
        } else {
            journeys.event(Source::Nf(1), &second(EventKind::NfHold, 210), &[]);
        }
    }
    let mut done = Vec::new();
    for _ in 0..2 {
        let all = Emptied { workers: true, nfs: true };
        journeys.end_turn(all, 6000, directory, &mut |journey| done.push(journey));
    }
    (journeys, done)
}

#[test]
fn a_packet_is_told_place_by_place_with_what_was_changed_and_why_it_went() {
    let directory = directory();
    let mut traces = Traces::default();
    let id = traces.start(request(2), any(), 0).unwrap();
    let slot = traces.following()[0].slot;
    let (journeys, done) = journeys(slot, &directory);
    done.iter().for_each(|journey| traces.take(journey, &directory, 1_000_000));
    let status = traces.status(Some(id), &journeys, &directory, 6000, 1_000_000).unwrap();
    let packets = &status[0].packets;
    assert_eq!(packets.len(), 2);
    let dropped = &packets[0];
    assert_eq!(dropped.time_unix_ns, 1_001_000);
    assert_eq!((dropped.chain.as_deref(), dropped.total_ns), (Some("web"), 300));
    let reason = Directory::reason(8).unwrap();
    assert_eq!(dropped.end, format!("dropped at firewall ({reason})"));
    assert_eq!(dropped.key.tp_dst, Some(Value::Int(53)));
    assert_eq!(dropped.key.in_port, Some(Value::Text("lan".to_owned())));
    let places: Vec<_> =
        dropped.steps.iter().map(|s| (s.place.as_str(), s.at_ns, s.wait_ns, s.took_ns)).collect();
    let drop = format!("drop:{reason}");
    let expected = [
        ("port:lan", 0, 0, 0),
        ("nf:router#1", 100, 100, 50),
        ("nf:firewall#2", 200, 50, 30),
        (drop.as_str(), 300, 70, 0),
    ];
    assert_eq!(places, expected);
    let router = &dropped.steps[1];
    assert_eq!((router.from.as_deref(), router.action.as_deref()), (Some("manager"), Some("next")));
    assert_eq!(router.changed.len(), 1);
    let ttl = &router.changed[0];
    assert_eq!((ttl.at_bytes, ttl.field.as_deref()), (22, Some("ipv4.ttl")));
    assert_eq!((&*ttl.before, &*ttl.after), ("40", "3f"));
    let firewall = &dropped.steps[2];
    assert_eq!(firewall.from.as_deref(), Some("nf:router#1"));
    assert_eq!((firewall.action.as_deref(), firewall.changed.len()), (Some("drop"), 0));

    let inside = &packets[1];
    assert_eq!((inside.end.as_str(), inside.steps.len()), ("still inside", 3));
    assert_eq!(inside.steps[2].action.as_deref(), Some("hold"));
    assert_eq!(inside.steps[2].took_ns, 800);
}

#[test]
fn only_so_many_bytes_are_compared_as_were_asked_for() {
    let directory = directory();
    let mut traces = Traces::default();
    let id = traces.start(TraceRequest { bytes: 22, ..request(2) }, any(), 0).unwrap();
    assert_eq!(traces.kept_bytes(), 22);
    let slot = traces.following()[0].slot;
    let (journeys, done) = journeys(slot, &directory);
    done.iter().for_each(|journey| traces.take(journey, &directory, 0));
    let status = traces.status(Some(id), &journeys, &directory, 6000, 0).unwrap();
    assert!(status[0].packets[0].steps.iter().all(|step| step.changed.is_empty()));
}

#[test]
fn a_trace_marks_until_it_has_its_packets_and_torn_ones_are_counted() {
    let directory = directory();
    let mut traces = Traces::default();
    let id = traces.start(request(3), any(), 10).unwrap();
    let before = traces.generation();
    let following = traces.following();
    following[0].left.store(1, Ordering::Relaxed);
    traces.turn(20);
    assert_eq!((traces.generation(), traces.is_waiting()), (before, true));
    following[0].left.store(0, Ordering::Relaxed);
    traces.turn(20);
    assert!(traces.generation() > before && traces.is_waiting() && traces.following().is_empty());
    let (_, done) = journeys(following[0].slot, &directory);
    traces.take(&Journey { torn: true, ..done[0].clone() }, &directory, 0);
    let status = traces.status(None, &Journeys::new(), &directory, 20, 0).unwrap();
    let TraceStatus { marked_pkts, torn_pkts, done, .. } = status[0];
    assert_eq!((status[0].id, marked_pkts, torn_pkts, done), (id, 3, 1, true));
    assert!(status[0].packets.is_empty());
    // Of the others nothing was ever heard.
    traces.turn(20 + PATIENCE_NS + SLACK_NS);
    assert!(traces.is_waiting());
    traces.turn(21 + PATIENCE_NS + SLACK_NS);
    assert!(!traces.is_waiting());
    let status = traces.status(None, &Journeys::new(), &directory, 20, 0).unwrap();
    assert_eq!(status[0].torn_pkts, 3);
}

#[test]
fn of_too_many_traces_the_oldest_that_is_done_is_forgotten_or_none() {
    let mut traces = Traces::default();
    let ids: Vec<_> =
        (0..MAX_TRACES).map(|_| traces.start(request(1), any(), 0).unwrap()).collect();
    let refused = traces.start(request(1), any(), 0).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Exhausted);
    traces.following()[3].left.store(0, Ordering::Relaxed);
    traces.start(request(1), any(), 0).unwrap();
    let directory = directory();
    let status = |id| traces.status(Some(id), &Journeys::new(), &directory, 0, 0);
    assert_eq!(status(ids[3]).unwrap_err().code, ErrorCode::NotFound);
    assert!(status(ids[2]).is_ok());
    assert!(traces.forget(ids[2]).is_some() && traces.forget(ids[2]).is_none());
    let mut slots: Vec<_> = traces.following().iter().map(|following| following.slot).collect();
    slots.dedup();
    assert_eq!(slots.len(), MAX_TRACES - 1);
}

#[test]
fn what_cannot_be_traced_is_said_in_one_line() {
    let mut traces = Traces::default();
    for count in [0, MAX_TRACED_PKTS + 1] {
        let refused = traces.start(request(count), any(), 0).unwrap_err();
        assert!(refused.message.contains("expected 1 to 1000"), "{refused}");
    }
    let bytes = TraceRequest { bytes: MAX_TRACED_BYTES + 1, ..request(1) };
    assert!(traces.start(bytes, any(), 0).unwrap_err().message.contains("at most 1024"));
    assert!(traces.following().is_empty());
}
