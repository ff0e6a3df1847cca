//! Descriptors that come back from the intruder: each lie is counted or dropped under its name.

use std::collections::HashSet;
use std::time::Duration;

use nflib::descriptor::{ActionCode, Delivery, Returned};

use super::intruder::{Intruder, next};
use super::running::until;
use super::stage::{Place, Stage, set};

/// How long each attack goes on.
const DURING: Duration = Duration::from_millis(300);

/// What the intruder returns for a packet it got.
type Forge = fn(&Intruder, &Delivery) -> Vec<Returned>;

fn attack(place: Place, forge: Forge) -> Option<(Stage, Intruder)> {
    let (stage, mut intruder) = set(place)?;
    let mut forged = 0;
    while forged < 100 {
        stage.keep_on(DURING, || {
            let packets = intruder.take();
            forged += packets.len();
            let returned: Vec<_> =
                packets.iter().flat_map(|packet| forge(&intruder, packet)).collect();
            intruder.give(&returned);
        });
    }
    Some((stage, intruder))
}

/// The attack is one that breaks a rule, and is counted as that.
fn is_counted(place: Place, forge: Forge) {
    if let Some((stage, intruder)) = attack(place, forge) {
        stage.assert_counted(&intruder, 100);
        stage.end(intruder);
    }
}

/// The attack is something an NF may say, and its packets are dropped for this reason.
fn is_dropped(place: Place, reason: &str, forge: Forge) {
    let Some((stage, intruder)) = attack(place, forge) else { return };
    let status = stage.manager.status();
    let dropped = status.drops.iter().filter(|drop| drop.reason == reason);
    assert!(dropped.map(|drop| drop.pkts).sum::<u64>() >= 100, "{:?}", status.drops);
    stage.assert_unharmed(&intruder);
    stage.end(intruder);
}

fn with_honest(packet: &Delivery, lie: Returned) -> Vec<Returned> {
    vec![lie, next(packet)]
}

/// Two tests of each: in a domain of its own, and in the one that the bystander is in.
macro_rules! attacks {
    ($($name:ident: $check:ident($($how:expr),+);)+) => {
        mod isolated {
            use super::*;
            $(#[test] fn $name() { $check(Place::Isolated, $($how),+); })+
        }
        mod trusted {
            use super::*;
            $(#[test] fn $name() { $check(Place::Trusted, $($how),+); })+
        }
    };
}

attacks! {
    a_buffer_beyond_the_region: is_counted(|_, packet| {
        with_honest(packet, Returned { buffer: u32::MAX, ..next(packet) })
    });
    the_buffer_behind_the_last: is_counted(|nf, packet| {
        with_honest(packet, Returned { buffer: nf.terms.region.buffers, ..next(packet) })
    });
    every_buffer_there_is_the_bystanders_among_them: is_counted(|nf, packet| {
        // A few for each packet; together all of them.
        let (first, all) = (packet.flow_hash.wrapping_mul(packet.buffer), nf.terms.region.buffers);
        let mut returned: Vec<_> = (0..32)
            .map(|n| Returned { buffer: (first.wrapping_add(n * 509)) % all, ..next(packet) })
            .collect();
        returned.push(next(packet));
        returned
    });
    the_same_packet_twice_in_a_burst: is_counted(|_, packet| vec![next(packet); 2]);
    a_packet_given_back_long_ago: is_counted(|nf, packet| {
        let before = (packet.buffer + nf.terms.region.buffers / 2) % nf.terms.region.buffers;
        with_honest(packet, Returned { buffer: before, ..next(packet) })
    });
    a_length_beyond_the_buffer: is_counted(|_, packet| {
        vec![Returned { len_bytes: u16::MAX, ..next(packet) }]
    });
    an_offset_beyond_the_buffer: is_counted(|_, packet| {
        vec![Returned { offset_bytes: u16::MAX, ..next(packet) }]
    });
    an_offset_and_a_length_that_overflow_together: is_counted(|_, packet| {
        vec![Returned { offset_bytes: u16::MAX, len_bytes: u16::MAX, ..next(packet) }]
    });
    one_byte_too_long: is_counted(|nf, packet| {
        let room = nf.terms.region.stride_bytes as u16 - packet.offset_bytes;
        vec![Returned { len_bytes: room + 1, ..next(packet) }]
    });
    an_action_that_does_not_exist: is_counted(|_, packet| {
        vec![Returned { action: 6 + (packet.flow_hash % 250) as u8, ..next(packet) }]
    });
    a_hop_beyond_the_route: is_counted(|_, packet| vec![Returned { hop: 254, ..next(packet) }]);
    a_hop_off_the_route: is_counted(|_, packet| vec![Returned { hop: 255, ..next(packet) }]);
    a_hop_that_is_another_services: is_counted(|_, packet| {
        vec![Returned { hop: packet.hop + 1, ..next(packet) }]
    });
    a_port_that_does_not_exist: is_dropped("unknown_port", |_, packet| {
        let target = if packet.flow_hash.is_multiple_of(2) { 200 } else { u16::MAX };
        vec![Returned { action: ActionCode::Out as u8, target, ..next(packet) }]
    });
    a_service_that_does_not_exist: is_dropped("unknown_service", |_, packet| {
        vec![Returned { action: ActionCode::ToService as u8, target: u16::MAX, ..next(packet) }]
    });
    a_branch_that_does_not_exist: is_dropped("unknown_branch", |_, packet| {
        vec![Returned { action: ActionCode::Branch as u8, target: 7, ..next(packet) }]
    });
}

/// Says of every NF there is that its ring is full. Nobody is blamed who has nothing to do with it.
fn blame_everybody(_: &Intruder, packet: &Delivery) -> Vec<Returned> {
    let target = (packet.flow_hash % 8) as u16;
    vec![Returned { action: ActionCode::Refused as u8, target, ..next(packet) }]
}

#[test]
fn the_bystander_is_blamed_for_a_full_ring_by_one_that_has_no_neighbours() {
    is_counted(Place::Isolated, blame_everybody);
}

#[test]
fn the_bystander_is_blamed_for_a_full_ring_by_one_that_is_not_its_neighbour() {
    is_dropped(Place::Trusted, "nf_ring_full", blame_everybody);
}

#[test]
fn packets_to_itself_for_ever() {
    for place in [Place::Isolated, Place::Trusted] {
        let Some((stage, mut intruder)) = set(place) else { return };
        // A few go round and round, lest they fill the ring before one of them is old enough.
        let mut going_round = HashSet::new();
        let mut round = || {
            let packets = intruder.take();
            let returned = packets.iter().map(|packet| {
                let round = going_round.contains(&packet.buffer)
                    || (going_round.len() < 32 && going_round.insert(packet.buffer));
                let (action, target) = (ActionCode::ToService as u8, intruder.terms.service);
                if round { Returned { action, target, ..next(packet) } } else { next(packet) }
            });
            let returned: Vec<_> = returned.collect();
            intruder.give(&returned);
            std::thread::sleep(Duration::from_micros(100));
        };
        until("they are taken out", || {
            (0..500).for_each(|_| round());
            let drops = stage.manager.status().drops;
            drops.iter().any(|drop| drop.reason == "hop_limit" && drop.pkts >= 10).then_some(())
        });
        stage.end(intruder);
    }
}

#[test]
fn packets_without_a_byte() {
    for place in [Place::Isolated, Place::Trusted] {
        let forge: Forge = |_, packet| vec![Returned { len_bytes: 0, ..next(packet) }];
        let Some((stage, intruder)) = attack(place, forge) else { return };
        stage.assert_unharmed(&intruder);
        stage.end(intruder);
    }
}

#[test]
fn the_bystanders_service_is_sent_packets_that_are_not_its_own() {
    for place in [Place::Isolated, Place::Trusted] {
        // Any NF may do so; those who lose are the packets' own flows.
        let forge: Forge = |nf, packet| {
            let target = nf.terms.service + 1;
            vec![Returned { action: ActionCode::ToService as u8, target, ..next(packet) }]
        };
        let Some((stage, intruder)) = attack(place, forge) else { return };
        stage.end(intruder);
    }
}

#[test]
fn nothing_but_garbage_as_fast_as_it_can() {
    for place in [Place::Isolated, Place::Trusted] {
        let Some((stage, mut intruder)) = set(place) else { return };
        let mut random = fastrand::Rng::with_seed(3);
        stage.keep_on(2 * DURING, || {
            let garbage: Vec<_> = (0..512)
                .map(|_| Returned {
                    buffer: random.u32(..),
                    offset_bytes: random.u16(..),
                    len_bytes: random.u16(..),
                    flow_hash: random.u32(..),
                    target: random.u16(..),
                    hop: random.u8(..),
                    action: random.u8(..),
                })
                .collect();
            intruder.give(&garbage);
            intruder.behave();
        });
        stage.assert_counted(&intruder, 1000);
        stage.end(intruder);
    }
}
