//! The flow table: its cache against DPDK's `rte_hash`, its wildcard search against a list, its
//! changes against `rte_hash` and the standard library's map; in one run.
//!
//! ```text
//! cargo bench -p millrace-benches --bench flow_table [-- --json] [--reps N]
//! ```
//! Keys are the 80 bytes of a `FlowKey`, the same for both. The peer finds a value; ours finds the
//! verdict, and counts the packet for its flow and for its rule. Runs alternate, the thread's CPU
//! time is taken, medians are compared. The peer's loops run whole in C; its table has the CRC hash
//! and no locks, on hugepages when enough are free (`HugePages_Free`), as ours is where the kernel
//! gives them on advice.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::error::Error;
use std::hint::black_box;
use std::time::Duration;

use dpdk_sys::hash::PeerHash;
use millrace::flow::{FlowKey, FlowTable, Match, Rule, Then, Verdict};
use millrace_benches::environment;
use millrace_benches::report::{Report, Row, median};
use nflib::control::MatchSpec;
use nflib::control::spec::Value;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// Lookups that are measured at once.
const STREAM: usize = 1 << 20;
/// Memory for the peer's largest table.
const PEER_MIB: u32 = 512;
/// Rules of the wildcard rows.
const WILDCARDS: usize = 1000;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let reps = args
        .iter()
        .position(|arg| arg == "--reps")
        .and_then(|at| args.get(at + 1)?.parse().ok())
        .unwrap_or(7)
        .max(5);
    let mut report = Report::new(args.iter().any(|arg| arg == "--json"));
    report.environment(&environment::describe());
    let mut core = CpuSet::new();
    core.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &core)?;
    parsing(reps, &mut report)?;
    for flows in [1_000, 64_000, 1_000_000] {
        exact(flows, reps, &mut report)?;
    }
    wildcards(reps, &mut report)?;
    changes(reps, &mut report)?;
    longest_insertion(&mut report)?;
    while_changing(reps, &mut report)?;
    report.finish();
    Ok(())
}

/// Time this thread has run.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

fn timed(work: impl FnOnce()) -> f64 {
    let begin = cpu_time();
    work();
    cpu_time().saturating_sub(begin).as_secs_f64()
}

/// Runs both in turn; the first pair warms up. Returns the medians of what they say.
fn in_turn(
    reps: usize,
    mut ours: impl FnMut() -> f64,
    mut theirs: impl FnMut() -> f64,
) -> (f64, f64) {
    let mut values = [Vec::new(), Vec::new()];
    for rep in 0..=reps {
        let pair = [ours(), theirs()];
        if rep > 0 {
            values.iter_mut().zip(pair).for_each(|(all, value)| all.push(value));
        }
    }
    let [mut ours, mut theirs] = values;
    (median(&mut ours), median(&mut theirs))
}

fn row(work: &str, unit: &'static str, peer: &'static str, values: (f64, f64), aim: f64) -> Row {
    let (ours, peer_value) = values;
    Row { work: work.into(), ours, unit, peer, peer_value, ratio: ours / peer_value, aim }
}

/// A TCP segment of flow `n`, as a frame of 64 bytes.
fn frame(n: u32) -> [u8; 64] {
    let mut frame = [0; 64];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    frame[14..24].copy_from_slice(&[0x45, 0, 0, 50, 0, 0, 0, 0, 64, 6]);
    // Spread as addresses are: a few networks, many hosts and ports.
    let spread = n.wrapping_mul(0x9e37_79b1);
    frame[26..30].copy_from_slice(&(0x0a00_0000 | spread >> 12).to_be_bytes());
    frame[30..34].copy_from_slice(&[192, 168, (spread >> 9) as u8, 1]);
    frame[34..38].copy_from_slice(&[(n >> 8) as u8, n as u8, 0, 80 + (n >> 16) as u8]);
    frame[46..48].copy_from_slice(&[0x50, 0x10]);
    frame
}

fn key(n: u32) -> FlowKey {
    FlowKey::parse(&frame(n), 0, 0, 0)
}

/// Packets of random flows: every flow once where the stream has room for it.
fn stream(flows: u32) -> Vec<u32> {
    let mut random = fastrand::Rng::with_seed(7);
    if flows as usize * 2 < STREAM {
        return (0..STREAM).map(|_| random.u32(0..flows)).collect();
    }
    let mut all: Vec<u32> = (0..flows).collect();
    random.shuffle(&mut all);
    all
}

fn bytes_of(keys: &[FlowKey]) -> Vec<u8> {
    keys.iter().flat_map(|key| key.words().iter().flat_map(|word| word.to_ne_bytes())).collect()
}

fn any(id: u64, then: Then) -> Rule {
    Rule { id, then, ..Rule::default() }
}

/// Classifies keys in bursts; with no hashes, they are computed on the way.
fn classify(table: &mut FlowTable, keys: &[FlowKey], hashes: Option<&[u32]>, burst: usize) {
    let mut out = [Verdict::default(); 64];
    let bytes = [64; 64];
    let mut copied = [0; 64];
    let mut now_ns = 0;
    for at in (0..keys.len() / burst * burst).step_by(burst) {
        match hashes {
            Some(hashes) => copied[..burst].copy_from_slice(&hashes[at..at + burst]),
            None => copied[..burst].fill(0),
        }
        now_ns += 1;
        table.classify_burst(&keys[at..at + burst], &mut copied, &bytes, now_ns, &mut out);
        black_box(&out);
    }
}

fn millions(count: usize, seconds: f64) -> f64 {
    count as f64 / seconds / 1e6
}

/// Reading a key from a frame, and its hash. The peer: the parser of NFs, which tells more.
fn parsing(reps: usize, report: &mut Report) -> Result<()> {
    let frames: Vec<_> = (0..1024).map(frame).collect();
    let rounds = 1024;
    let ns = |seconds: f64| seconds * 1e9 / (rounds * frames.len()) as f64;
    let ours = || {
        ns(timed(|| {
            for frame in frames.iter().cycle().take(rounds * frames.len()) {
                black_box(FlowKey::parse(black_box(frame), 0, 0, 0));
            }
        }))
    };
    let theirs = || {
        ns(timed(|| {
            for frame in frames.iter().cycle().take(rounds * frames.len()) {
                black_box(nflib::headers::Headers::parse(black_box(frame)));
            }
        }))
    };
    let (parse, headers) = in_turn(reps, ours, theirs);
    let mut shown =
        row("reading a key from a frame", "ns", "Headers::parse", (parse, headers), 0.0);
    shown.ratio = headers / parse;
    report.row(&shown);
    Ok(())
}

/// Lookups of known flows.
fn exact(flows: u32, reps: usize, report: &mut Report) -> Result<()> {
    let order = stream(flows);
    let keys: Vec<_> = order.iter().map(|&n| key(n)).collect();
    let bytes = bytes_of(&keys);
    let mut table = FlowTable::new(flows);
    table.insert(any(1, Then::Chain(1)), 0)?;
    let mut peer = PeerHash::new(flows, size_of::<FlowKey>(), PEER_MIB)?;
    for n in 0..flows {
        if !peer.add(&bytes_of(&[key(n)]), u64::from(n) + 1) {
            return Err(format!("rte_hash has no room for flow {n} of {flows}").into());
        }
    }
    peer.collapse_pages();
    let nic: Vec<u32> = keys.iter().map(FlowKey::flow_hash).collect();
    let of_peer: Vec<u32> =
        bytes.chunks(size_of::<FlowKey>()).map(|key| peer.hash_of(key)).collect();
    let rounds = 4;
    for (burst, hashed) in [(32, false), (64, false), (64, true)] {
        let values = in_turn(
            reps,
            || {
                let nic = hashed.then_some(&nic[..]);
                let work = || (0..rounds).for_each(|_| classify(&mut table, &keys, nic, burst));
                millions(rounds * keys.len(), timed(work))
            },
            || {
                let hashes = hashed.then_some(&of_peer[..]);
                let work = || {
                    for _ in 0..rounds {
                        black_box(peer.lookup(&bytes, hashes, burst as u32));
                    }
                };
                millions(rounds * keys.len(), timed(work))
            },
        );
        let given = if hashed { ", hash given" } else { "" };
        let work = format!("{} k known flows, burst {burst}{given}", flows / 1000);
        let aim = if flows == 1_000_000 { 1.0 } else { 0.0 };
        report.row(&row(&work, "M lookups/s", "rte_hash bulk", values, aim));
    }
    let stats = table.cache_stats();
    // Of a million flows a handful finds both of its buckets full.
    if stats.evicted * 10_000 > u64::from(flows) {
        return Err(format!("flows did not stay in the cache: {stats:?}").into());
    }
    Ok(())
}

/// A set of masks, each a pair of prefix lengths and whether the port is looked at.
fn wildcard_rules(masks: usize) -> Result<Vec<Rule>> {
    let mut random = fastrand::Rng::with_seed(11);
    let mut rules = Vec::new();
    for n in 0..WILDCARDS {
        let mask = n % masks;
        let (src, dst) = (16 + mask % 4 * 4, 17 + mask / 4 % 4 * 4);
        let address = |random: &mut fastrand::Rng, length| {
            Some(Value::Text(format!(
                "{}.{}.{}.{}/{length}",
                172,
                random.u8(..),
                random.u8(..),
                random.u8(..)
            )))
        };
        let mut spec = MatchSpec {
            ip_src: address(&mut random, src),
            ip_dst: address(&mut random, dst),
            ..MatchSpec::default()
        };
        if mask >= 16 {
            spec.ip_proto = Some(Value::Text("tcp".into()));
            spec.tp_dst = Some(Value::Int(random.u64(1..1000)));
        }
        let matches = Match::compile(&spec, &|_| None)?;
        let priority = 1 + random.u16(..100);
        rules.push(Rule { id: n as u64 + 2, priority, matches, ..Rule::default() });
    }
    rules.push(any(1, Then::Chain(1)));
    Ok(rules)
}

/// Lookups in 1,000 wildcard rules without a cache, of packets that only the last rule takes, so
/// that every mask is probed.
fn wildcards(reps: usize, report: &mut Report) -> Result<()> {
    let keys: Vec<_> = (0..65_536).map(key).collect();
    let mut costs = Vec::new();
    for masks in [4_usize, 16, 32] {
        let rules = wildcard_rules(masks)?;
        let mut table = FlowTable::new(0);
        for rule in &rules {
            table.insert(*rule, 0)?;
        }
        let some = &keys[..2048];
        let values = in_turn(
            reps,
            || millions(keys.len(), timed(|| classify(&mut table, &keys, None, 64))),
            || {
                millions(
                    some.len(),
                    timed(|| {
                        for key in some {
                            let best = rules.iter().filter(|rule| rule.matches.matches(key));
                            black_box(best.max_by_key(|rule| rule.priority));
                        }
                    }),
                )
            },
        );
        costs.push((masks, 1e3 / values.0));
        let work = format!("{WILDCARDS} wildcard rules, {masks} masks, no cache");
        report.row(&row(&work, "M lookups/s", "a list", values, 0.0));
    }
    let [(few, fast), _, (many, slow)] = costs[..] else { return Ok(()) };
    let per_mask = (slow - fast) / (many - few) as f64;
    let mut peer = PeerHash::new(64, size_of::<FlowKey>(), PEER_MIB)?;
    peer.add(&bytes_of(&[key(1)]), 1);
    let bytes = bytes_of(&keys);
    let lookup =
        1e9 * timed(|| {
            black_box(peer.lookup(&bytes, None, 64));
        }) / keys.len() as f64;
    let mut shown = row("cost of one more mask", "ns", "rte_hash, a miss", (per_mask, lookup), 0.0);
    shown.ratio = lookup / per_mask;
    report.row(&shown);
    Ok(())
}

/// Adding and removing a million rules that look at every field.
fn changes(reps: usize, report: &mut Report) -> Result<()> {
    const RULES: u32 = 1_000_000;
    let order = stream(RULES);
    let keys: Vec<_> = order.iter().map(|&n| key(n)).collect();
    let bytes = bytes_of(&keys);
    let width = size_of::<FlowKey>();
    let mut peer = PeerHash::new(RULES, width, PEER_MIB)?;
    let mut removals = (Vec::new(), Vec::new());
    let added = in_turn(
        reps.min(5),
        || {
            let mut table = FlowTable::new(0);
            let add = timed(|| {
                for (n, key) in keys.iter().enumerate() {
                    let rule = Rule { matches: Match::exact(*key), ..any(n as u64, Then::Drop) };
                    let _ = black_box(table.insert(rule, 0));
                }
            });
            let remove = timed(|| (0..RULES).for_each(|n| assert!(table.remove(n.into()))));
            removals.0.push(millions(keys.len(), remove));
            millions(keys.len(), add)
        },
        || {
            let add = timed(|| bytes.chunks(width).for_each(|key| assert!(peer.add(key, 1))));
            let remove = timed(|| bytes.chunks(width).for_each(|key| assert!(peer.remove(key))));
            removals.1.push(millions(keys.len(), remove));
            millions(keys.len(), add)
        },
    );
    report.row(&row("adding 1 M exact rules", "M rules/s", "rte_hash add", added, 0.0));
    let removed = (median(&mut removals.0), median(&mut removals.1));
    report.row(&row("removing 1 M exact rules", "M rules/s", "rte_hash del", removed, 0.0));
    Ok(())
}

/// The longest of a million insertions, each timed by itself.
fn longest_insertion(report: &mut Report) -> Result<()> {
    let keys: Vec<_> = (0..1_000_000).map(key).collect();
    let mut table = FlowTable::new(0);
    let mut peer = HashMap::new();
    let mut longest = [0.0_f64; 2];
    for (n, &key) in keys.iter().enumerate() {
        let rule = Rule { matches: Match::exact(key), ..any(n as u64, Then::Drop) };
        longest[0] = longest[0].max(timed(|| _ = black_box(table.insert(rule, 0))));
        longest[1] = longest[1].max(timed(|| _ = black_box(peer.insert(key, rule))));
    }
    let [ours, theirs] = longest.map(|seconds| seconds * 1e6);
    let mut shown = row("longest of 1 M insertions", "us", "std HashMap", (ours, theirs), 0.0);
    shown.ratio = theirs / ours;
    report.row(&shown);
    Ok(())
}

/// Lookups of known flows while rules that concern none of them come and go.
fn while_changing(reps: usize, report: &mut Report) -> Result<()> {
    const PER_CHANGE: usize = 1024;
    let keys: Vec<_> = stream(64_000).iter().map(|&n| key(n)).collect();
    let rules = wildcard_rules(16)?;
    let mut tables = [FlowTable::new(64_000), FlowTable::new(64_000)];
    for table in &mut tables {
        for rule in &rules {
            table.insert(*rule, 0)?;
        }
    }
    let [changing, quiet] = &mut tables;
    let mut turn = 0;
    let values = in_turn(
        reps,
        || {
            millions(
                keys.len(),
                timed(|| {
                    for part in keys.chunks(PER_CHANGE) {
                        classify(changing, part, None, 64);
                        let n = turn % WILDCARDS;
                        // Remove one and put it back, the change after.
                        if (turn / WILDCARDS).is_multiple_of(2) {
                            changing.remove(rules[n].id);
                        } else {
                            let _ = black_box(changing.insert(rules[n], 0));
                        }
                        turn += 1;
                    }
                }),
            )
        },
        || {
            millions(
                keys.len(),
                timed(|| keys.chunks(PER_CHANGE).for_each(|part| classify(quiet, part, None, 64))),
            )
        },
    );
    let per_second = values.0 * 1e6 / PER_CHANGE as f64;
    let work = format!("64 k known flows, {:.0} k rule changes/s", per_second / 1e3);
    report.row(&row(&work, "M lookups/s", "no changes", values, 0.0));
    Ok(())
}
