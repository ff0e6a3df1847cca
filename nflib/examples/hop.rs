//! What a hop costs: `cargo run --release -p nflib --example hop -- [NF] [PACKETS] [NFS] [ROUNDS]
//! [TAPPED] [RECORD]`.
//!
//! NF: `next` implements nothing, `forward` counts packets and bytes, `jump` sends each packet to its own
//! service, `mixed` one in nine, `touch` changes a byte of each packet. PACKETS go round through NFS
//! NFs, ROUNDS times in 200 runs. With ROUNDS under 10,000 there is one run, for counting instructions:
//! the difference of two such runs is that of their hops. A tap takes TAPPED bytes of each packet at each NF,
//! if that is a number. RECORD: `off`, `budget` (with a flight recorder whose budget is used up) or `all`
//! (every packet is recorded).
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)] // what it is for

use std::time::Instant;

use nflib::shm::RecorderTerms;
use nflib::testing::{Hop, HopOptions};
use nflib::{Action, Burst, Context, NetworkFunction, NfError, Packet};

struct Next;
impl NetworkFunction for Next {}

struct Jump;
impl NetworkFunction for Jump {
    fn process(&mut self, _: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
        Action::ToService(ctx.setup().service)
    }
}

#[derive(Default)]
struct Forward {
    pkts: u64,
    bytes: u64,
}
impl NetworkFunction for Forward {
    fn process_burst(&mut self, burst: &mut Burst<'_>, ctx: &mut Context<'_>) {
        burst.decide_each(ctx, |packet, _| {
            self.pkts += 1;
            self.bytes += packet.len() as u64;
            Action::Next
        });
    }
}

struct Touch;
impl NetworkFunction for Touch {
    fn process(&mut self, packet: &mut Packet<'_>, _: &mut Context<'_>) -> Action {
        if let Some(ttl) = packet.bytes_mut().get_mut(22) {
            *ttl = ttl.wrapping_sub(1);
        }
        Action::Next
    }
}

/// One packet in nine goes to the start of the route.
struct Mixed(u32);
impl NetworkFunction for Mixed {
    fn process(&mut self, _: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
        self.0 = self.0.wrapping_add(1);
        if self.0.is_multiple_of(9) {
            return Action::ToService(ctx.setup().service);
        }
        Action::Next
    }
}

/// Short ones, so that some are not interrupted.
const RUNS: usize = 200;

fn measure<N: NetworkFunction>(
    new: impl Fn() -> N,
    in_flight_pkts: u32,
    nfs: usize,
    rounds: usize,
    tapped_bytes: Option<u16>,
    recorder: Option<RecorderTerms>,
) -> Result<(), NfError> {
    let counts = rounds < 10_000;
    // Where instructions are counted time passes slowly: taps would use up their share of it.
    let tap_share_ns = counts.then_some(u64::MAX);
    let tapped = HopOptions { tapped_bytes, tap_share_ns, ..HopOptions::default() };
    let options = HopOptions { in_flight_pkts, recorder, ..tapped };
    let mut circle = Hop::circle((0..nfs).map(|_| new()).collect(), options)?;
    if counts {
        println!("{} hops", circle.run(rounds)?);
        return Ok(());
    }
    let mut all_ns = Vec::new();
    for _ in 0..RUNS {
        let begun = Instant::now();
        let hops = circle.run(rounds / RUNS)?;
        all_ns.push(begun.elapsed().as_nanos() as f64 / hops as f64);
    }
    all_ns.sort_by(f64::total_cmp);
    let (best, median) = (all_ns[0], all_ns[RUNS / 2]);
    println!("{best:.2} ns/hop ({:.0} M/s), median {median:.2}", 1e3 / best);
    Ok(())
}

fn main() -> Result<(), NfError> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let number = |at: usize, default| args.get(at).and_then(|n| n.parse().ok()).unwrap_or(default);
    let (pkts, nfs, rounds) = (number(1, 32) as u32, number(2, 1), number(3, 300_000));
    let tapped = args.get(4).and_then(|bytes| bytes.parse().ok());
    let recorder = match args.get(5).map_or("off", String::as_str) {
        "off" => None,
        which => Some(RecorderTerms { slots: 256, kept_bytes: 128, all: which == "all" }),
    };
    match args.first().map_or("next", String::as_str) {
        "next" => measure(|| Next, pkts, nfs, rounds, tapped, recorder),
        "forward" => measure(Forward::default, pkts, nfs, rounds, tapped, recorder),
        "jump" => measure(|| Jump, pkts, nfs, rounds, tapped, recorder),
        "touch" => measure(|| Touch, pkts, nfs, rounds, tapped, recorder),
        "mixed" => measure(|| Mixed(0), pkts, nfs, rounds, tapped, recorder),
        other => Err(NfError::new(format!(
            "no NF {other}; expected next, forward, jump, touch or mixed"
        ))),
    }
}
