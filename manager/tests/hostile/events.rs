//! An NF that tells lies of packets, or writes rubbish where it should tell of them.

use std::time::Duration;

use nflib::control::MatchSpec;
use nflib::control::{LatencyReport, Reply, Request, TraceRequest, TraceStatus, spec::Value};
use nflib::observe::{Event, EventKind};
use nflib::shm::Scribble;

use super::intruder::Intruder;
use super::running::until;
use super::stage::{Place, Stage, set};

/// Where the words of an event ring stand, see `nflib/src/shm/tap.rs`.
const WRITTEN: usize = 1024;
const LOST: usize = 1032;
const RING: usize = 4096;
const RING_BYTES: usize = 1 << 20;

/// How long each attack goes on.
const DURING: Duration = Duration::from_millis(1500);

fn store64(tap: &Scribble, at: usize, value: u64) {
    tap.store(at, value as u32);
    tap.store(at + 4, (value >> 32) as u32);
}

fn latency(stage: &Stage) -> LatencyReport {
    match stage.manager.ask(&Request::Latency) {
        Reply::Latency(report) => *report,
        other => panic!("{other:?}"),
    }
}

/// That the bystander's packets can be followed and timed as if nothing was.
#[track_caller]
fn assert_bystander_is_seen(stage: &Stage) {
    let in_port = Some(Value::Text("good-in".into()));
    let matches = MatchSpec { in_port, ..MatchSpec::default() };
    let request = TraceRequest { matches, count: 5, ..TraceRequest::default() };
    let Reply::Tracing { id } = stage.manager.ask(&Request::Trace(request)) else { panic!() };
    let trace: TraceStatus = until("the bystander's packets are followed", || {
        let Reply::Traces { mut traces } = stage.manager.ask(&Request::Traces { id: Some(id) })
        else {
            panic!()
        };
        let trace = traces.remove(0);
        let ended = trace.packets.iter().filter(|packet| packet.end != "still inside").count();
        (trace.done && ended as u64 + trace.torn_pkts == 5).then_some(trace)
    });
    assert_eq!(trace.torn_pkts, 0, "{trace:?}");
    for packet in &trace.packets {
        assert_eq!(
            (packet.steps.len(), packet.end.as_str()),
            (3, "sent by good-out"),
            "{packet:?}"
        );
        assert!(packet.steps[1].place.starts_with("nf:good#"), "{packet:?}");
    }
    let timed = |report: &LatencyReport| {
        let hop = report.hops.iter().find(|hop| hop.chain == "bystander");
        hop.map_or(0, |hop| hop.took.count)
    };
    let before = timed(&latency(stage));
    until("the bystander is timed", || (timed(&latency(stage)) > before).then_some(()));
}

fn attack(place: Place, mut lie: impl FnMut(&Intruder, u64)) {
    let Some((stage, mut intruder)) = set(place) else { return };
    let mut round = 0;
    stage.keep_on(DURING, || {
        intruder.behave();
        lie(&intruder, round);
        round += 1;
    });
    assert_bystander_is_seen(&stage);
    let said = stage.end(intruder);
    let given_up = said.matches("is read no more").count();
    assert!(given_up <= 1, "said {given_up} times");
}

#[test]
fn rubbish_in_an_event_ring_is_given_up_once_and_harms_nobody() {
    attack(Place::Trusted, |intruder, round| {
        let at = RING + (round as usize * 52 + 8) % (RING_BYTES - 64);
        for word in 0..13 {
            intruder
                .tap
                .store(at + 4 * word, 0x9e37_79b9u32.wrapping_mul(round as u32 + word as u32));
        }
        store64(&intruder.tap, WRITTEN, round * 7);
    });
}

#[test]
fn an_event_ring_that_says_it_holds_more_than_there_is_harms_nobody() {
    attack(Place::Isolated, |intruder, round| {
        store64(&intruder.tap, WRITTEN, u64::MAX - round);
        store64(&intruder.tap, LOST, round << 40);
    });
}

#[test]
fn events_that_are_made_up_change_nothing_of_what_is_seen_of_others() {
    let mut written = 0usize;
    attack(Place::Trusted, move |intruder, round| {
        // Of every buffer, at every hop of the first routes, now and then, marked and tapped.
        for step in 0..64u64 {
            let number = round * 64 + step;
            let kind = [EventKind::NfIn, EventKind::NfOut, EventKind::PortIn, EventKind::PortOut];
            let event = Event {
                time_ns: millrace::status::now_ns() - number % 5 * 1000,
                buffer: (number % 16_384) as u32,
                kind: kind[number as usize % 4],
                route: (number / 3 % 4) as u16,
                hop: (number % 3) as u8,
                peer: (number % 5) as u16,
                target: 1,
                marked: true,
                taps: u32::MAX,
                ..Event::default()
            };
            for word in event.to_words() {
                store64(&intruder.tap, RING + written * 8 % RING_BYTES, word);
                written += 1;
            }
        }
        store64(&intruder.tap, WRITTEN, written as u64);
    });
}
