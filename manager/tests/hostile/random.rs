//! Random mutations of everything an NF can map, at any time, while packets flow.
//!
//! What breaks a ring ends the intruder; then another comes, and goes on. Packets are written to
//! only while they are the intruder's: an NF of the trusted domain that writes into others' packets
//! harms them, and no manager could tell.

use std::time::Instant;

use fastrand::Rng;
use nflib::control::{Request, ServiceRef, Target};
use nflib::descriptor::{ActionCode, Delivery, Returned};

use super::intruder::{HEAD, Intruder, SETTLED, SLOTS, TAIL, TAKEN, next};
use super::stage::{Place, set};

/// Mutations in an ordinary run of the tests.
const MUTATIONS: u64 = 1_000_000;
/// Mutations between two looks at packets and messages.
const BATCH: u64 = 256;
/// Batches after which an intruder goes that has not broken its rings.
const BATCHES_A_LIFE: u64 = 300;
/// Of so many mutations one is of an index that ends the intruder.
const FATAL_ONE_IN: u32 = 40_000;

fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} = {value:?}")))
}

#[test]
fn random_mutations_in_a_domain_of_its_own() {
    run(Place::Isolated);
}

#[test]
fn random_mutations_in_the_trusted_domain() {
    run(Place::Trusted);
}

#[test]
fn random_mutations_beside_an_honest_neighbour() {
    run(Place::Before);
}

#[allow(clippy::print_stdout)] // shown by the test harness
fn run(place: Place) {
    let Some((stage, mut intruder)) = set(place) else { return };
    let (seed, mutations) = (number("MILLRACE_SEED", 1), number("MILLRACE_MUTATIONS", MUTATIONS));
    let (mut random, began) = (Rng::with_seed(seed), Instant::now());
    let (mut done, mut intruders, mut writes_packets, mut batches) = (0, 1, false, 0);
    while done < mutations {
        let packets = intruder.take();
        for _ in 0..BATCH {
            if writes_packets {
                mutate_what_is_its_own(&mut random, &intruder, &packets);
            } else {
                mutate(&mut random, &mut intruder);
            }
        }
        (done, batches) = (done + BATCH, batches + 1);
        let returned: Vec<Returned> = packets.iter().map(next).collect();
        intruder.give(&returned);
        if random.u32(..64) == 0 {
            talk(&mut random, &intruder);
        }
        if intruder.is_out || batches == BATCHES_A_LIFE {
            // Who lies about which packets are its own cannot write into its own only: another one.
            (intruders, batches, writes_packets) = (intruders + 1, 0, !writes_packets);
            drop(intruder);
            intruder = Intruder::attach(&stage.manager);
        }
        if done.is_multiple_of(1024 * BATCH) {
            stage.assert_bystander_well();
        }
    }
    let seconds = began.elapsed().as_secs();
    println!("{place:?}: {done} mutations by {intruders} intruders in {seconds} s, seed {seed}");
    drop(intruder);
    stage.assert_bystander_well();
    let mut honest = Intruder::attach(&stage.manager);
    stage.wait_until_all_run(&mut honest);
    stage.end_with_domain(honest);
}

/// One mutation of anything but packets.
fn mutate(random: &mut Rng, intruder: &mut Intruder) {
    if random.u32(..FATAL_ONE_IN) == 0 {
        let (towards_nf, word) = (random.bool(), [TAIL, HEAD][random.usize(..2)]);
        return intruder.words.store(intruder.word_at(towards_nf, word), random.u32(..));
    }
    match random.u32(..100) {
        0..3 => {
            // Its event ring: the indices, or events.
            let at = [1024, 1032, 2048, 4096 + 8 * random.usize(..64)][random.usize(..4)];
            intruder.tap.store(at, plausible(random, intruder));
        }
        3..40 => {
            let slot = random.usize(..intruder.terms.channel.ring_capacity as usize);
            let word = SLOTS + 16 * slot + 4 * random.usize(..4);
            let value = plausible(random, intruder);
            intruder.words.store(intruder.word_at(random.bool(), word), value);
        }
        40..45 => {
            let mut forged = Returned {
                buffer: plausible(random, intruder),
                offset_bytes: random.u16(..),
                len_bytes: random.u16(..2000),
                flow_hash: random.u32(..),
                target: random.u16(..4),
                hop: random.u8(..3),
                action: random.u8(..8),
            };
            if forged.action == ActionCode::ToService as u8 {
                // It may send the bystander its own packets, and has them dropped there if they are
                // not what that one expects. That is no harm to the bystander's, but would look so.
                forged.target = u16::MAX;
            }
            intruder.give_once(&[forged]);
        }
        45..60 => mutate_edge(random, intruder),
        _ => mutate_what_is_its_own(random, intruder, &[]),
    }
}

/// One mutation of a word that no descriptor depends on, or of a packet that it has.
fn mutate_what_is_its_own(random: &mut Rng, intruder: &Intruder, packets: &[Delivery]) {
    match random.u32(..100) {
        0..25 => {
            let word = [SETTLED, TAKEN][random.usize(..2)];
            intruder.words.store(intruder.word_at(random.bool(), word), random.u32(..));
        }
        25..50 => {
            let at = random.usize(..intruder.bells.len_bytes() - 3);
            let value = if random.bool() { random.u32(..4) } else { random.u32(..) };
            intruder.bells.store(at, value);
        }
        50..75 if !packets.is_empty() => {
            let packet = &packets[random.usize(..packets.len())];
            let stride = intruder.terms.region.stride_bytes as usize;
            let at = packet.buffer as usize * stride + random.usize(..stride - 3);
            intruder.region.store(at, random.u32(..));
        }
        // Everything before the rings: header, counters, hold map.
        _ => {
            let end = intruder.word_at(true, 0);
            intruder.words.store(random.usize(..end - 3), random.u32(..));
        }
    }
}

/// A buffer's number as often as not.
fn plausible(random: &mut Rng, intruder: &Intruder) -> u32 {
    if random.bool() { random.u32(..intruder.terms.region.buffers) } else { random.u32(..) }
}

fn mutate_edge(random: &mut Rng, intruder: &mut Intruder) {
    let (forged, slot) = (plausible(random, intruder), random.usize(..64));
    let Some(at) = (!intruder.edges.is_empty()).then(|| random.usize(..intruder.edges.len()))
    else {
        return;
    };
    let edge = &mut intruder.edges[at];
    match random.u32(..1000) {
        0 => edge.words.store([TAIL, HEAD][random.usize(..2)], random.u32(..)),
        1..100 => edge.words.store([SETTLED, TAKEN][random.usize(..2)], random.u32(..)),
        100..600 => {
            let slot = slot * edge.capacity as usize / 64;
            edge.words.store(SLOTS + 16 * slot + 4 * random.usize(..4), forged);
        }
        _ => {
            let packet = Delivery {
                buffer: forged,
                offset_bytes: random.u16(..),
                len_bytes: random.u16(..),
                flow_hash: random.u32(..),
                route: random.u16(..4),
                port: random.u8(..),
                hop: random.u8(..4),
            };
            let _ = edge.producer.push_burst(&[packet]);
        }
    }
}

/// Says something that an NF may say, with random contents.
fn talk(random: &mut Rng, intruder: &Intruder) {
    let token = if random.bool() { random.u64(..10) } else { random.u64(..) };
    let target = match random.u32(..3) {
        0 => Target::Instance(random.u32(..8)),
        1 => Target::Service(ServiceRef::Id(random.u16(..))),
        _ => Target::Service(ServiceRef::Name("good".into())),
    };
    let payload = vec![random.u8(..); random.usize(..200)];
    intruder.say(&match random.u32(..6) {
        0 => Request::Status,
        1 => Request::Synced { token },
        2 => Request::Answer { token, result: Err("\u{1b}[2J\n".into()) },
        3 => Request::Shutdown { keep_nfs: false },
        _ => Request::Send { target, payload, token },
    });
}
