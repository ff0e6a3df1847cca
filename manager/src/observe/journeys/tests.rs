//! Ways put together from events in any order, against the ways that made them.

use super::*;
use crate::observe::{HopName, RouteName, ServiceName};
use nflib::descriptor::ActionCode;
use proptest::prelude::*;

/// Two chains of three services, two NFs each; and a service 9 that is in no chain of them.
const WEB: u16 = 5;
const VOICE: u16 = 6;
const STRANGER: u16 = 90;

fn directory() -> Directory {
    let service = |service: u16| ServiceName { service, name: format!("s{service}").into() };
    let nf = |nf: u16, service: u16| NfName {
        nf,
        instance: u32::from(nf) + 100,
        service,
        service_name: format!("s{service}").into(),
        slot: service,
        isolated: false,
    };
    let route = |chain: &str, services: &[u16]| RouteName {
        chain: chain.into(),
        hops: services
            .iter()
            .map(|&service| HopName { service, name: format!("s{service}").into() })
            .collect(),
    };
    let mut nfs: Vec<_> = (0..4)
        .flat_map(|service| [nf(10 * service, service), nf(10 * service + 1, service)])
        .collect();
    nfs.push(nf(STRANGER, 9));
    Directory::of(
        &["lan", "wan"],
        (0..10).map(service).collect(),
        nfs,
        vec![(WEB, route("web", &[0, 1, 2])), (VOICE, route("voice", &[3, 1]))],
    )
}

fn event(kind: EventKind, buffer: u32, time_ns: u64) -> Event {
    Event {
        kind,
        buffer,
        time_ns,
        hop: Event::NO_HOP,
        peer: NOBODY,
        marked: true,
        ..Event::default()
    }
}

fn port_in(buffer: u32, time_ns: u64, trace: u16) -> Event {
    Event { peer: trace, ..event(EventKind::PortIn, buffer, time_ns) }
}

fn port_out(buffer: u32, time_ns: u64) -> Event {
    Event { target: 1, ..event(EventKind::PortOut, buffer, time_ns) }
}

fn nf_in(buffer: u32, time_ns: u64, at: (u16, u8), peer: u16) -> Event {
    Event { route: at.0, hop: at.1, peer, ..event(EventKind::NfIn, buffer, time_ns) }
}

fn nf_out(buffer: u32, time_ns: u64, at: (u16, u8), action: ActionCode) -> Event {
    Event { route: at.0, hop: at.1, code: action as u8, ..event(EventKind::NfOut, buffer, time_ns) }
}

const ALL: Emptied = Emptied { workers: true, nfs: true };
const WORKER: Source = Source::Worker(0);

fn of(nf: u16) -> Source {
    Source::Nf(nf)
}

struct Bench {
    journeys: Journeys,
    directory: Directory,
    done: Vec<Journey>,
}

impl Bench {
    fn new() -> Self {
        Self { journeys: Journeys::new(), directory: directory(), done: Vec::new() }
    }

    fn give(&mut self, events: &[(Source, Event)]) {
        for (source, event) in events {
            self.journeys.event(*source, event, &[]);
        }
    }

    fn turn(&mut self, emptied: Emptied, now_ns: u64) {
        self.journeys.end_turn(emptied, now_ns, &self.directory, &mut |way| self.done.push(way));
    }

    /// Ends turns until everything that can be known is.
    fn settle(&mut self, now_ns: u64) {
        (0..3).for_each(|_| self.turn(ALL, now_ns));
    }
}

/// Through the first two services of the chain "web".
fn two_hops() -> Vec<(Source, Event)> {
    vec![
        (WORKER, port_in(7, 100, 3)),
        (of(0), nf_in(7, 150, (WEB, 0), NOBODY)),
        (of(0), nf_out(7, 170, (WEB, 0), ActionCode::Next)),
        (of(11), nf_in(7, 200, (WEB, 1), 0)),
        (of(11), nf_out(7, 300, (WEB, 1), ActionCode::Out)),
        (WORKER, port_out(7, 340)),
    ]
}

#[test]
fn a_way_through_two_nfs_has_its_waits_and_stays() {
    let mut bench = Bench::new();
    bench.give(&two_hops());
    bench.turn(ALL, 400);
    assert!(bench.done.is_empty(), "rings may have been read before the packet's end was");
    bench.turn(ALL, 400);
    let way = bench.done.pop().unwrap();
    assert!(!way.torn && bench.done.is_empty() && bench.journeys.is_empty());
    assert_eq!(
        (way.trace, way.chain.as_deref(), way.end),
        (Some(3), Some("web"), End::Sent { port: 1 })
    );
    let times: Vec<_> = way.steps.iter().map(|s| (s.nf, s.wait_ns, s.in_ns, s.out_ns)).collect();
    assert_eq!(times, [(0, 50, 150, Some(170)), (11, 30, 200, Some(300))]);
    assert_eq!(way.steps[1].from, Some(0));
    assert_eq!(way.end_ns, 340);
}

#[test]
fn an_end_waits_until_the_nfs_rings_were_found_empty_after_it() {
    let mut bench = Bench::new();
    let events = two_hops();
    let (of_worker, of_nfs): (Vec<_>, Vec<_>) = events.into_iter().partition(|e| e.0 == WORKER);
    bench.give(&of_worker);
    bench.turn(ALL, 400);
    bench.turn(Emptied { nfs: false, ..ALL }, 400);
    assert!(bench.done.is_empty());
    bench.give(&of_nfs);
    bench.turn(ALL, 400);
    assert_eq!(bench.done.len(), 1);
    assert_eq!((bench.done[0].steps.len(), bench.done[0].torn), (2, false));
}

#[test]
fn a_packet_that_is_held_counts_as_with_the_nf_until_it_goes_on() {
    let mut bench = Bench::new();
    bench.give(&[
        (WORKER, port_in(1, 10, NOBODY)),
        (of(0), nf_in(1, 20, (WEB, 0), NOBODY)),
        (of(0), Event { route: WEB, hop: 0, ..event(EventKind::NfHold, 1, 25) }),
    ]);
    bench.turn(ALL, 30);
    let mut inside = Vec::new();
    bench.journeys.inside(NOBODY, &bench.directory, &mut |way| inside.push(way));
    assert_eq!((inside[0].end, inside[0].end_ns), (End::Inside, 25));
    assert!(inside[0].steps[0].held && !inside[0].torn);
    bench.give(&[(of(0), nf_out(1, 900, (WEB, 0), ActionCode::Next)), (WORKER, port_out(1, 950))]);
    bench.settle(1000);
    let step = &bench.done[0].steps[0];
    assert_eq!((step.held, step.out_ns, bench.done[0].torn), (true, Some(900), false));
}

#[test]
fn a_packet_that_never_comes_back_is_given_up_as_still_inside() {
    let mut bench = Bench::new();
    bench.give(&[(WORKER, port_in(1, 10, 2)), (of(0), nf_in(1, 20, (WEB, 0), NOBODY))]);
    bench.turn(ALL, 10 + PATIENCE_NS);
    assert!(bench.done.is_empty());
    bench.turn(ALL, 11 + PATIENCE_NS);
    assert_eq!((bench.done[0].end, bench.done[0].steps.len()), (End::Inside, 1));
    bench.settle(12 + PATIENCE_NS);
    assert!(bench.journeys.is_empty());
    assert_eq!(bench.journeys.kept_bytes(), 0);
}

#[test]
fn a_packet_of_an_nf_that_died_is_dropped_where_it_was() {
    let mut bench = Bench::new();
    let drop = Event { code: 8, target: 0, ..event(EventKind::Drop, 1, 90) };
    bench.give(&[
        (WORKER, port_in(1, 10, 2)),
        (of(0), nf_in(1, 20, (WEB, 0), NOBODY)),
        (WORKER, drop),
    ]);
    bench.settle(100);
    let way = &bench.done[0];
    assert_eq!((way.end, way.torn), (End::Dropped { reason: 8, slot: 0 }, false));
    assert_eq!((way.steps[0].out_ns, way.end_ns), (None, 90));
}

#[test]
fn a_loop_visits_the_same_nf_as_often_as_it_did() {
    let mut bench = Bench::new();
    let mut events = vec![(WORKER, port_in(1, 10, 2))];
    for round in 0..5 {
        let from = if round == 0 { NOBODY } else { 0 };
        events.push((of(0), nf_in(1, 20 + 10 * round, (WEB, 0), from)));
        events.push((of(0), nf_out(1, 25 + 10 * round, (WEB, 0), ActionCode::ToService)));
    }
    events.push((WORKER, port_out(1, 500)));
    bench.give(&events);
    bench.settle(600);
    assert_eq!((bench.done[0].steps.len(), bench.done[0].torn), (5, false));
}

#[test]
fn an_event_that_is_missing_tears_the_way() {
    let all = two_hops();
    for missing in 1..all.len() - 1 {
        let mut bench = Bench::new();
        let mut events = all.clone();
        events.remove(missing);
        bench.give(&events);
        bench.settle(400);
        assert!(bench.done[0].torn, "without event {missing}");
    }
}

#[test]
fn a_stay_that_is_missing_is_noticed_when_events_were_lost() {
    let without_second: Vec<_> =
        two_hops().into_iter().filter(|(source, _)| *source != of(11)).collect();
    for lost in [false, true] {
        let mut bench = Bench::new();
        bench.give(&without_second);
        if lost {
            bench.journeys.lost();
        }
        bench.settle(400);
        assert_eq!(bench.done[0].torn, lost);
    }
    // What is whole is whole, whatever else was lost.
    let mut bench = Bench::new();
    bench.journeys.lost();
    bench.give(&two_hops());
    bench.settle(400);
    assert!(!bench.done[0].torn);
}

#[test]
fn an_nf_off_the_route_or_out_of_time_or_in_a_workers_name_is_not_believed() {
    let mut bench = Bench::new();
    let mut events = two_hops();
    events.extend([
        (of(STRANGER), nf_in(7, 160, (WEB, 0), NOBODY)),
        (of(STRANGER), nf_out(7, 180, (WEB, 7), ActionCode::Drop)),
        (of(STRANGER), nf_in(7, 180, (1234, 0), NOBODY)),
        (of(11), nf_in(7, 99, (WEB, 1), 0)),
        (of(11), nf_in(7, 341, (WEB, 1), 0)),
        (of(11), port_out(7, 320)),
        (of(11), port_in(7, 320, 1)),
        (of(11), nf_in(4_000_000_000, 320, (WEB, 1), 1)),
        (WORKER, nf_in(7, 201, (WEB, 1), 1)),
    ]);
    bench.give(&events);
    bench.settle(400);
    let way = &bench.done[0];
    assert_eq!((way.steps.len(), way.torn, bench.done.len()), (2, false, 1));
    assert_eq!(bench.journeys.refused().strange_events, 9);
    assert!(bench.journeys.is_empty());
}

#[test]
fn a_flood_is_bounded_and_leaves_no_trace() {
    let mut bench = Bench::new();
    bench.give(&two_hops());
    let kept = [0u8; 1024];
    for round in 0..50_000u32 {
        let lie = nf_in(round % 20_000, 160, (WEB, 0), NOBODY);
        bench.journeys.event(of(STRANGER), &lie, &kept);
    }
    assert!(bench.journeys.kept_bytes() <= 2 * MAX_BYTES_AN_NF);
    assert!(bench.journeys.refused().surplus_events > 0);
    bench.settle(400);
    assert!(!bench.done[0].torn);
    assert_eq!((bench.done.len(), bench.journeys.kept_bytes(), bench.journeys.len()), (1, 0, 0));
    assert!(bench.journeys.is_empty());
}

#[test]
fn packets_beyond_the_bound_are_counted_and_not_followed() {
    let mut bench = Bench::new();
    for buffer in 0..MAX_PACKETS as u32 + 10 {
        bench.journeys.event(WORKER, &port_in(buffer, 10, NOBODY), &[]);
    }
    assert_eq!((bench.journeys.len(), bench.journeys.refused().torn_pkts), (MAX_PACKETS, 10));
}

/// A packet as the model has it.
#[derive(Clone, Debug)]
struct Way {
    buffer: u32,
    trace: u16,
    route: u16,
    /// Instance 0 or 1, wait, stay, held.
    stays: Vec<(u16, u64, u64, bool)>,
    dropped: bool,
    gap_ns: u64,
}

fn way() -> impl Strategy<Value = Way> {
    let stay = (0u16..2, 0u64..4, 0u64..4, any::<bool>());
    let stays = prop::collection::vec(stay, 0..=3);
    (0u32..4, prop_oneof![Just(NOBODY), 0u16..3], any::<bool>(), stays, any::<bool>(), 0u64..5)
        .prop_map(|(buffer, trace, web, mut stays, dropped, gap_ns)| {
            let route = if web { WEB } else { VOICE };
            stays.truncate(if web { 3 } else { 2 });
            Way { buffer, trace, route, stays, dropped, gap_ns }
        })
}

/// What must come out of a way: trace, begin, each stay's NF, times and whether it was held, end.
type Told = (u32, Option<u16>, u64, Vec<(u16, u64, u64, bool)>, End, u64);

/// Events of ways, one after the other on each buffer, with the times when they are written; times may
/// coincide. Returns what must be told.
fn events_of(ways: &[Way]) -> (Vec<(u64, Source, Event)>, Vec<Told>) {
    let services: [&[u16]; 2] = [&[0, 1, 2], &[3, 1]];
    let mut free_ns = [0u64; 4];
    let (mut events, mut told) = (Vec::new(), Vec::new());
    for way in ways {
        let worker = Source::Worker(way.buffer as u16 % 2);
        // A buffer comes back only some time after its packet went.
        let begin_ns = free_ns[way.buffer as usize] + 1 + way.gap_ns;
        let (buffer, mut now_ns) = (way.buffer, begin_ns);
        events.push((worker, port_in(buffer, now_ns, way.trace)));
        let (mut from, mut steps) = (NOBODY, Vec::new());
        for (hop, &(instance, wait_ns, stay_ns, held)) in (0u8..).zip(&way.stays) {
            let service = services[usize::from(way.route == VOICE)][usize::from(hop)];
            let (nf, at) = (10 * service + instance, (way.route, hop));
            now_ns += wait_ns;
            events.push((of(nf), nf_in(buffer, now_ns, at, from)));
            let in_ns = now_ns;
            if held {
                let hold = event(EventKind::NfHold, buffer, now_ns);
                events.push((of(nf), Event { route: at.0, hop: at.1, ..hold }));
            }
            now_ns += stay_ns;
            events.push((of(nf), nf_out(buffer, now_ns, at, ActionCode::Next)));
            steps.push((nf, in_ns, now_ns, held));
            from = nf;
        }
        now_ns += 1;
        let (last, end) = match way.dropped {
            true => (
                Event { code: 9, target: 2, ..event(EventKind::Drop, buffer, now_ns) },
                End::Dropped { reason: 9, slot: 2 },
            ),
            false => (port_out(buffer, now_ns), End::Sent { port: 1 }),
        };
        events.push((worker, last));
        free_ns[way.buffer as usize] = now_ns;
        let trace = Some(way.trace).filter(|&slot| slot != NOBODY);
        told.push((buffer, trace, begin_ns, steps, end, now_ns));
    }
    // Each writes its ring in the order of time; of one moment, in the order of the packets.
    events.sort_by_key(|(_, event): &(Source, Event)| event.time_ns);
    (events.into_iter().map(|(source, event)| (event.time_ns, source, event)).collect(), told)
}

/// Reads the rings in turns: each turn reads some rings, in any order, some of them to their end at
/// that moment, while time goes on.
fn read_in_turns(bench: &mut Bench, events: &[(u64, Source, Event)], choices: &[(u8, u8, u8)]) {
    let mut rings: Vec<Source> = events.iter().map(|(_, source, _)| *source).collect();
    rings.sort_unstable();
    rings.dedup();
    let mut at = vec![0; rings.len()];
    let last_ns = events.iter().map(|(written_ns, ..)| *written_ns).max().unwrap_or(0);
    let (mut now_ns, mut choices) = (0, choices.iter().cycle());
    let mut choose = || choices.next().copied().unwrap_or_default();
    for turn in 0.. {
        let over = now_ns >= last_ns && turn > 20;
        let (first, _, _) = choose();
        let (mut workers, mut nfs) = (true, true);
        now_ns += 1;
        for step in 0..rings.len() {
            let ring = (usize::from(first) + step) % rings.len();
            let (passes, share, _) = choose();
            now_ns += u64::from(passes % 4);
            let own = events.iter().filter(|(_, source, _)| *source == rings[ring]);
            let there: Vec<_> = own.filter(|(written_ns, ..)| *written_ns <= now_ns).collect();
            let wanted = match over || share % 3 > 0 {
                true => there.len(),
                false => at[ring] + (there.len() - at[ring]) * usize::from(share) / 255,
            };
            for (_, source, event) in &there[at[ring]..wanted] {
                bench.journeys.event(*source, event, &[]);
            }
            at[ring] = wanted;
            match rings[ring] {
                Source::Worker(_) => workers &= wanted == there.len(),
                Source::Nf(_) => nfs &= wanted == there.len(),
            }
        }
        bench.turn(Emptied { workers, nfs }, now_ns);
        if over {
            return bench.settle(now_ns);
        }
    }
}

fn told_by(bench: &Bench) -> Vec<Told> {
    let told = |way: &Journey| {
        let stays = way.steps.iter();
        let stays = stays.map(|s| (s.nf, s.in_ns, s.out_ns.unwrap_or(0), s.held)).collect();
        (way.begin.buffer, way.trace, way.begin.time_ns, stays, way.end, way.end_ns)
    };
    bench.done.iter().map(told).collect()
}

fn sorted(mut told: Vec<Told>) -> Vec<Told> {
    told.sort_by_key(|way| (way.0, way.2));
    told
}

/// Lies of NFs that are on no route of the packets they speak of.
fn lies() -> impl Strategy<Value = Vec<Event>> {
    let one = (any::<[u64; Event::WORDS]>(), 0u32..5, 0u64..60, 1u8..=6, any::<bool>()).prop_map(
        |(words, buffer, time_ns, kind, wild)| {
            let mut words = words;
            words[3] = words[3] & !(0xff << 48) | u64::from(kind) << 48;
            let event = Event::from_words(words).unwrap();
            let near = Event {
                buffer,
                time_ns,
                hop: event.hop % 4,
                route: WEB + event.route % 2,
                ..event
            };
            if wild { event } else { near }
        },
    );
    prop::collection::vec(one, 0..60)
}

proptest! {
    #[test]
    fn ways_come_out_as_they_were_however_the_rings_are_read(
        ways in prop::collection::vec(way(), 0..25),
        choices in prop::collection::vec(any::<(u8, u8, u8)>(), 1..50),
    ) {
        let (events, told) = events_of(&ways);
        let mut bench = Bench::new();
        read_in_turns(&mut bench, &events, &choices);
        prop_assert!(bench.done.iter().all(|way| !way.torn));
        prop_assert_eq!(sorted(told_by(&bench)), sorted(told));
        prop_assert!(bench.journeys.is_empty());
        prop_assert_eq!(bench.journeys.kept_bytes(), 0);
        prop_assert_eq!(bench.journeys.refused(), Refused::default());
    }

    #[test]
    fn lies_of_an_nf_that_is_not_on_the_route_change_nothing(
        ways in prop::collection::vec(way(), 0..15),
        lies in lies(),
        choices in prop::collection::vec(any::<(u8, u8, u8)>(), 1..50),
    ) {
        let (mut events, told) = events_of(&ways);
        // Off the route everybody may be.
        let lies = lies.into_iter().filter(|lie| lie.hop != Event::NO_HOP);
        events.extend((0..).zip(lies).map(|(written_ns, lie)| (written_ns, of(STRANGER), lie)));
        let mut bench = Bench::new();
        read_in_turns(&mut bench, &events, &choices);
        prop_assert!(bench.done.iter().all(|way| !way.torn));
        prop_assert_eq!(sorted(told_by(&bench)), sorted(told));
        prop_assert!(bench.journeys.is_empty());
        prop_assert_eq!(bench.journeys.kept_bytes(), 0);
    }

    #[test]
    fn any_events_in_any_order_are_survived_and_forgotten(
        events in prop::collection::vec(
            (any::<[u64; Event::WORDS]>(), 0u32..4, 0u64..40, 1u8..=6, 0u16..6), 0..200,
        ),
        turns in prop::collection::vec((any::<bool>(), any::<bool>()), 0..200),
    ) {
        let mut bench = Bench::new();
        for (at, (mut words, buffer, time_ns, kind, who)) in events.into_iter().enumerate() {
            words[3] = words[3] & !(0xff << 48) | u64::from(kind) << 48;
            let event = Event::from_words(words).unwrap();
            let event = Event { buffer, time_ns, hop: event.hop % 4, route: WEB + event.route % 3, ..event };
            let source = if who < 2 { Source::Worker(who) } else { of(10 * (who - 2)) };
            bench.journeys.event(source, &event, &[1, 2, 3]);
            if let Some(&(workers, nfs)) = turns.get(at) {
                bench.turn(Emptied { workers, nfs }, time_ns);
            }
        }
        bench.settle(u64::MAX);
        prop_assert!(bench.journeys.is_empty());
        prop_assert_eq!((bench.journeys.kept_bytes(), bench.journeys.len()), (0, 0));
    }
}
