//! Points against a directory of three ports, three services and four NFs.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::observe::directory::{HopName, RouteName, ServiceName};

/// Ports `lan`, `wan` and `dmz:in`, chain `web` on route 7: firewall (slot 0; 3 and 4), nat (slot 1; 5), probe
/// (slot 2; 6, isolated). An NF's number is its instance and 10.
pub(crate) fn directory() -> Directory {
    let names = ["firewall", "nat", "probe"];
    let named = (1..).zip(names);
    let services: Vec<_> =
        named.map(|(service, name)| ServiceName { service, name: Arc::from(name) }).collect();
    let nf = |instance: u32, slot: u16| NfName {
        nf: instance as u16 + 10,
        instance,
        service: slot + 1,
        service_name: Arc::from(names[usize::from(slot)]),
        slot,
        isolated: slot == 2,
    };
    let hops = services.iter().map(|s| HopName { service: s.service, name: s.name.clone() });
    let route = RouteName { chain: Arc::from("web"), hops: hops.collect() };
    let nfs = vec![nf(3, 0), nf(4, 0), nf(5, 1), nf(6, 2)];
    Directory::of(&["lan", "wan", "dmz:in"], services, nfs, vec![(7, route)])
}

fn parse(text: &str) -> Result<Point, PointError> {
    Point::parse(text, &directory())
}

fn service(name: &str) -> Who {
    Who::Service(name.to_owned())
}

#[test]
fn each_form_is_read() {
    let nf = |who, way| Point::Nf { who, way };
    let ring = |from, to| Point::Ring { from, to };
    let firewall = || End::Nf(service("firewall"));
    for (text, expected) in [
        ("port:lan", Point::Port { port: 0, way: None }),
        ("port:wan:in", Point::Port { port: 1, way: Some(Way::In) }),
        ("port:wan:out", Point::Port { port: 1, way: Some(Way::Out) }),
        ("port:dmz:in", Point::Port { port: 2, way: None }),
        ("port:dmz:in:in", Point::Port { port: 2, way: Some(Way::In) }),
        ("nf:firewall", nf(service("firewall"), None)),
        ("nf:firewall:in", nf(service("firewall"), Some(Way::In))),
        ("nf:firewall#3", nf(Who::Instance(3), None)),
        ("nf:firewall#3:out", nf(Who::Instance(3), Some(Way::Out))),
        ("nf:6:in", nf(Who::Instance(6), Some(Way::In))),
        ("ring:manager:firewall", ring(End::Manager, firewall())),
        ("ring:firewall:5", ring(firewall(), End::Nf(Who::Instance(5)))),
        ("ring:probe#6:manager", ring(End::Nf(Who::Instance(6)), End::Manager)),
        ("drop", Point::Drop { service: None, reason: None }),
        ("drop:no_rule", Point::Drop { service: None, reason: Some(DropReason::NoRule) }),
        ("drop:nat", Point::Drop { service: Some("nat".into()), reason: None }),
        (
            "drop:nat:nf_drop",
            Point::Drop { service: Some("nat".into()), reason: Some(DropReason::NfDrop) },
        ),
    ] {
        assert_eq!(parse(text), Ok(expected), "{text}");
    }
}

#[test]
fn each_mistake_is_told_what_there_is() {
    for (text, expected) in [
        ("", "expected port:NAME"),
        ("lan", "\"lan\" is no place"),
        ("ports:lan", "is no place"),
        ("drop\u{7}", "\"drop\\u{7}\" is no place"),
        ("ring:manager", "is no place"),
        ("port:lna", "there is no port \"lna\"; there are lan, wan, dmz:in"),
        ("port:lan:up", "there is no port \"lan:up\""),
        ("nf:firewal", "no service \"firewal\"; there are firewall, nat, probe"),
        ("nf:7", "no instance \"7\"; there are firewall#3, firewall#4, nat#5, probe#6"),
        ("nf:nat#3", "no instance \"nat#3\"; there are firewall#3"),
        ("nf:nat#x", "no instance \"nat#x\""),
        ("nf:", "no service \"\""),
        ("ring:manager:manager", "a ring has an NF"),
        ("ring:lan:nat", "no service \"lan\""),
        ("drop:norule", "no service or reason \"norule\"; there are firewall, nat, probe, rx_too"),
        ("drop:nat:x", "no reason \"x\""),
        ("drop:no_rule:nat", "no service or reason \"no_rule\""),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    let none = Directory::default();
    let error = Point::parse("nf:1", &none).unwrap_err().to_string();
    assert!(error.ends_with("there is none"), "{error}");
    assert!(parse(&format!("port:{}", "x".repeat(10_000))).unwrap_err().to_string().len() < 400);
}

fn taps(text: &str) -> Vec<(Where, TapPoint)> {
    parse(text).unwrap().tap_points(&directory())
}

#[test]
fn each_form_is_tapped_where_it_can_be_seen() {
    let at_nf = |nf, at| (Where::Nf(nf), at);
    let reads = |nf, from| at_nf(nf, TapPoint::NfIn { from });
    let drops = |reason, slot| (Where::Workers, TapPoint::Drop { reason, slot });
    let port_in = (Where::Workers, TapPoint::PortIn { port: 1 });
    let port_out = (Where::Workers, TapPoint::PortOut { port: 1 });
    assert_eq!(taps("port:wan"), [port_in, port_out]);
    assert_eq!(taps("port:wan:in"), [port_in]);
    assert_eq!(taps("port:wan:out"), [port_out]);
    assert_eq!(taps("nf:firewall:in"), [reads(13, None), reads(14, None)]);
    assert_eq!(taps("nf:5"), [reads(15, None), at_nf(15, TapPoint::NfOut)]);
    assert_eq!(taps("ring:manager:nat"), [reads(15, Some(NOBODY))]);
    assert_eq!(taps("ring:firewall:nat"), [reads(15, Some(13)), reads(15, Some(14))]);
    assert_eq!(taps("ring:firewall#4:nat"), [reads(15, Some(14))]);
    assert_eq!(taps("ring:nat:manager"), [at_nf(15, TapPoint::NfOut)]);
    assert_eq!(taps("drop"), [drops(None, None)]);
    let no_rule = Some(DropReason::NoRule as u8);
    assert_eq!(taps("drop:no_rule"), [drops(no_rule, None)]);
    assert_eq!(taps("drop:nat:no_rule"), [drops(no_rule, Some(1))]);
    let spec = parse("drop").unwrap().taps(9, &[(6, 0, 0, 1)], 64, &directory());
    assert_eq!((spec[0].1.id, spec[0].1.snap_bytes, spec[0].1.filter.len()), (9, 64, 1));
}

/// An event of an NF on the chain, at a hop.
fn event(kind: EventKind, hop: u8) -> Event {
    Event { kind, hop, route: 7, peer: NOBODY, ..Event::default() }
}

fn place(text: &str, source: Source, event: Event) -> Option<String> {
    let directory = directory();
    let place = parse(text).unwrap().place_of(source, &event, &directory)?;
    Some(place.name(source, &event, &directory))
}

#[test]
fn an_event_is_put_to_its_place() {
    let worker = Source::Worker(0);
    let some = |name: &str| Some(name.to_owned());
    let port = Event { target: 1, ..event(EventKind::PortIn, 0) };
    assert_eq!(place("port:wan", worker, port), some("port:wan"));
    assert_eq!(place("port:wan:out", worker, port), None);
    assert_eq!(place("port:lan", worker, port), None);
    assert_eq!(place("port:wan", Source::Nf(13), port), None, "NFs have no ports");
    assert_eq!(place("nf:firewall", Source::Nf(13), port), None);

    let taken = event(EventKind::NfIn, 0);
    assert_eq!(place("nf:firewall", Source::Nf(14), taken), some("nf:firewall#4"));
    assert_eq!(place("nf:firewall:out", Source::Nf(14), taken), None);
    assert_eq!(place("nf:firewall#3", Source::Nf(14), taken), None);
    assert_eq!(place("nf:firewall", Source::Nf(99), taken), None);
    assert_eq!(place("nf:firewall", worker, taken), None);
    assert_eq!(
        place("ring:manager:firewall", Source::Nf(13), taken),
        some("ring:manager:firewall#3")
    );
    let from_neighbour = Event { peer: 13, ..taken };
    assert_eq!(place("ring:manager:nat", Source::Nf(15), from_neighbour), None);
    assert_eq!(
        place("ring:firewall:nat", Source::Nf(15), from_neighbour),
        some("ring:firewall#3:nat#5")
    );
    assert_eq!(place("ring:firewall#4:nat", Source::Nf(15), from_neighbour), None);

    let dropped = Event { code: DropReason::NfDrop as u8, target: 1, ..event(EventKind::Drop, 1) };
    assert_eq!(place("drop", worker, dropped), some("drop:nat:nf_drop"));
    assert_eq!(place("drop:nat", worker, dropped), some("drop:nat:nf_drop"));
    assert_eq!(place("drop:probe", worker, dropped), None);
    assert_eq!(place("drop:no_rule", worker, dropped), None);
    assert_eq!(place("drop", Source::Nf(15), dropped), None);
    let between_ports = Event { target: NOBODY, ..dropped };
    assert_eq!(place("drop", worker, between_ports), some("drop:nf_drop"));
    assert_eq!(place("drop", worker, Event { code: 200, ..dropped }), None);
}

#[test]
fn what_goes_straight_to_the_next_nf_is_not_on_the_ring_to_the_manager() {
    let out = |hop, code: ActionCode, target| Event {
        code: code as u8,
        target,
        ..event(EventKind::NfOut, hop)
    };
    let by_manager = |nf, event| place("ring:firewall:manager", Source::Nf(nf), event).is_some();
    assert!(!by_manager(13, out(0, ActionCode::Next, 0)));
    assert!(!by_manager(13, out(0, ActionCode::ToService, 2)));
    assert!(by_manager(13, out(0, ActionCode::Drop, 0)));
    assert!(by_manager(13, out(0, ActionCode::Out, 1)));
    assert!(by_manager(13, out(0, ActionCode::ToService, 3)), "that NF is isolated");
    let last = out(2, ActionCode::Next, 0);
    assert_eq!(
        place("ring:probe:manager", Source::Nf(16), last).as_deref(),
        Some("ring:probe#6:manager")
    );
    let next_is_isolated = out(1, ActionCode::Next, 0);
    assert!(place("ring:nat:manager", Source::Nf(15), next_is_isolated).is_some());
    assert!(!by_manager(15, out(0, ActionCode::Drop, 0)));
}

proptest! {
    #[test]
    fn any_text_is_a_point_or_an_error_of_one_line(
        head in select(vec!["port:", "nf:", "ring:", "drop:", "drop", ""]),
        rest in prop::collection::vec(
            select(vec!["lan", "firewall", "nat", "manager", ":", "#", "3", "in", "no_rule", "\n"]), 0..6
        ),
        tail in "\\PC{0,8}",
    ) {
        match Point::parse(&format!("{head}{}{tail}", rest.concat()), &directory()) {
            Ok(point) => drop(point.tap_points(&directory())),
            Err(error) => prop_assert_eq!(error.to_string().lines().count(), 1),
        }
    }

    #[test]
    fn any_event_is_at_a_place_or_at_none(
        text in select(vec!["port:lan", "nf:firewall", "ring:firewall:nat", "ring:nat:manager", "drop"]),
        words: [u64; Event::WORDS],
        kind in 1_u64..7,
        number in 0_u16..30,
        at_nf: bool,
    ) {
        let mut words = words;
        words[3] = words[3] & 0xff00_ffff_ffff_ffff | kind << 48;
        let event = Event::from_words(words).unwrap();
        let source = if at_nf { Source::Nf(number) } else { Source::Worker(number) };
        let _ = place(text, source, event);
    }
}
