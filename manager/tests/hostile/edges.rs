//! Attacks on an honest neighbour, over the direct edges to it and from it.
//!
//! The neighbour goes on, or is ended and replaced; the bystander notices nothing, and with another
//! NF in the intruder's place the chain works again.

use std::time::Duration;

use nflib::descriptor::{Delivery, NO_PORT};

use super::intruder::{HEAD, Intruder, SETTLED, SLOTS, TAIL, TAKEN};
use super::running::{until, verified};
use super::stage::{Place, Stage, set};

const DURING: Duration = Duration::from_millis(600);

fn with_edge(place: Place) -> Option<(Stage, Intruder)> {
    let (stage, mut intruder) = set(place)?;
    until("it has an edge", || {
        intruder.behave();
        (!intruder.edges.is_empty()).then_some(())
    });
    Some((stage, intruder))
}

/// The intruder goes; an honest NF takes its place, and packets pass both again.
#[track_caller]
fn end(stage: Stage, intruder: Intruder) {
    drop(intruder);
    stage.assert_bystander_well();
    let mut honest = Intruder::attach(&stage.manager);
    stage.wait_until_all_run(&mut honest);
    let good = || verified(&stage.manager.status(), "out", "good");
    let before = good();
    until("the chain works again", || {
        honest.behave();
        (good() > before + 100).then_some(())
    });
    stage.end_with_domain(honest);
}

/// Pushes to the neighbour what `forge` makes of the packets that come.
fn push(place: Place, forge: impl Fn(&Intruder, &Delivery) -> Vec<Delivery>) {
    let Some((stage, mut intruder)) = with_edge(place) else { return };
    stage.keep_on(DURING, || {
        let packets = intruder.take();
        let forged: Vec<_> = packets.iter().flat_map(|packet| forge(&intruder, packet)).collect();
        match intruder.edges.iter_mut().find(|edge| edge.pushes) {
            Some(edge) => {
                let _ = edge.producer.push_burst(&forged);
            }
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    });
    stage.assert_bystander_well();
    end(stage, intruder);
}

fn on(packet: &Delivery) -> Delivery {
    Delivery { hop: packet.hop + 1, ..*packet }
}

#[test]
fn a_neighbour_is_handed_what_it_should_be() {
    push(Place::Before, |_, packet| vec![on(packet)]);
}

#[test]
fn a_neighbour_is_handed_garbage() {
    push(Place::Before, |_, packet| {
        let mut random = fastrand::Rng::with_seed(packet.flow_hash.into());
        (0..8)
            .map(|_| Delivery {
                buffer: random.u32(..),
                offset_bytes: random.u16(..),
                len_bytes: random.u16(..),
                flow_hash: random.u32(..),
                route: random.u16(..),
                port: random.u8(..),
                hop: random.u8(..),
            })
            .collect()
    });
}

#[test]
fn a_neighbour_is_handed_ranges_beyond_the_buffer() {
    push(Place::Before, |_, packet| {
        let (offset_bytes, len_bytes) = (u16::MAX, packet.len_bytes);
        vec![
            Delivery { offset_bytes, ..on(packet) },
            Delivery { len_bytes: u16::MAX, ..on(packet) },
            Delivery { offset_bytes, len_bytes, ..on(packet) },
        ]
    });
}

#[test]
fn a_neighbour_is_handed_every_buffer_the_bystander_s_among_them() {
    push(Place::Before, |nf, packet| {
        let all = nf.terms.region.buffers;
        (0..16)
            .map(|n| Delivery { buffer: (packet.buffer + n * 1021) % all, ..on(packet) })
            .collect()
    });
}

#[test]
fn a_neighbour_is_handed_a_packet_twice() {
    push(Place::Before, |_, packet| vec![on(packet); 2]);
}

#[test]
fn a_neighbour_is_handed_a_packet_that_the_manager_gets_back_as_well() {
    let Some((stage, mut intruder)) = with_edge(Place::Before) else { return };
    stage.keep_on(DURING, || {
        let packets = intruder.take();
        let forged: Vec<_> = packets.iter().map(on).collect();
        if let Some(edge) = intruder.edges.iter_mut().find(|edge| edge.pushes) {
            let _ = edge.producer.push_burst(&forged);
        }
        let returned: Vec<_> = packets.iter().map(super::intruder::next).collect();
        intruder.give(&returned);
    });
    end(stage, intruder);
}

#[test]
fn a_neighbour_is_handed_routes_and_hops_that_do_not_exist() {
    push(Place::Before, |_, packet| {
        vec![
            Delivery { route: u16::MAX, ..on(packet) },
            Delivery { hop: u8::MAX, ..on(packet) },
            Delivery { hop: 200, route: packet.route + 1, ..on(packet) },
        ]
    });
}

#[test]
fn a_neighbour_is_handed_loans_that_nobody_lent() {
    push(Place::Before, |_, packet| vec![Delivery { port: NO_PORT, len_bytes: 0, ..on(packet) }]);
}

/// Writes a word of every edge, of the end that is the intruder's and of the other.
fn write_words(place: Place, words: &[usize], value: impl Fn(u32) -> u32) {
    let Some((stage, mut intruder)) = with_edge(place) else { return };
    stage.keep_on(DURING, || {
        intruder.behave();
        for edge in &intruder.edges {
            for &word in words {
                edge.words.store(word, value(edge.words.load(word)));
            }
        }
    });
    stage.assert_bystander_well();
    end(stage, intruder);
}

#[test]
fn the_tail_of_the_edge_to_a_neighbour_is_impossible() {
    write_words(Place::Before, &[TAIL], |tail| tail.wrapping_add(1 << 30));
}

#[test]
fn the_head_of_the_edge_from_a_neighbour_is_impossible() {
    write_words(Place::Behind, &[HEAD], |head| head.wrapping_sub(1 << 30));
}

#[test]
fn every_index_of_an_edge_is_impossible() {
    for place in [Place::Before, Place::Behind] {
        write_words(place, &[TAIL, HEAD, SETTLED, TAKEN], |old| old.wrapping_mul(3) ^ 0x55aa_55aa);
    }
}

#[test]
fn a_whole_edge_is_written_over_while_the_neighbour_reads() {
    let Some((stage, mut intruder)) = with_edge(Place::Before) else { return };
    let mut random = fastrand::Rng::with_seed(11);
    stage.keep_on(DURING, || {
        intruder.behave();
        for edge in &intruder.edges {
            for slot in 0..edge.capacity as usize {
                edge.words.store(SLOTS + 16 * slot + 4 * random.usize(..4), random.u32(..));
            }
            edge.words.store(TAIL, edge.words.load(TAIL).wrapping_add(16));
        }
    });
    end(stage, intruder);
}

#[test]
fn the_edge_from_a_neighbour_is_never_read() {
    let Some((stage, mut intruder)) = with_edge(Place::Behind) else { return };
    until("the neighbour gives packets back", || {
        intruder.listen();
        let status = stage.manager.status();
        let full = status.drops.iter().any(|drop| drop.reason == "nf_ring_full");
        full.then_some(())
    });
    end(stage, intruder);
}

#[test]
fn intruders_that_leave_broken_edges_behind_leave_nothing_else() {
    let Some((stage, mut intruder)) = with_edge(Place::Behind) else { return };
    let mut files = Vec::new();
    for _ in 0..6 {
        for edge in &intruder.edges {
            edge.words.store(TAIL, 1 << 30);
            edge.words.store(HEAD, 1 << 29);
        }
        drop(intruder);
        intruder = Intruder::attach(&stage.manager);
        stage.wait_until_all_run(&mut intruder);
        until("edges are closed", || {
            intruder.behave();
            (!stage.manager.status().plan.changing).then_some(())
        });
        files.push(stage.manager.open_files());
    }
    // One that is just being closed may be there still.
    assert!(files[5] <= files[0] + 2, "{files:?}");
    end(stage, intruder);
}

#[test]
fn one_that_hung_up_lives_on_and_writes() {
    for place in [Place::Trusted, Place::Before, Place::Behind, Place::Isolated] {
        let Some((stage, mut intruder)) = set(place) else { return };
        intruder.socket.shutdown(std::net::Shutdown::Both).unwrap();
        let mut random = fastrand::Rng::with_seed(2);
        until("it is taken out", || stage.record(&intruder).is_none().then_some(()));
        stage.keep_on(DURING, || {
            let returned = super::intruder::next(&Delivery {
                buffer: random.u32(..intruder.terms.region.buffers),
                len_bytes: 60,
                ..Delivery::default()
            });
            let _ = intruder.gives.push_burst(&[returned]);
            for edge in &mut intruder.edges {
                let _ = edge.producer.push_burst(&[Delivery {
                    buffer: random.u32(..intruder.terms.region.buffers),
                    len_bytes: 60,
                    ..Delivery::default()
                }]);
                edge.words.store(TAIL, random.u32(..));
                edge.words.store(HEAD, random.u32(..));
            }
        });
        // While it writes: the edges to it are forgotten all the same.
        let mut honest = Intruder::attach(&stage.manager);
        stage.wait_until_all_run(&mut honest);
        drop(intruder);
        stage.end_with_domain(honest);
    }
}
