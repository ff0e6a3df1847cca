//! Our descriptor ring against DPDK's `rte_ring`, in one run.
//!
//! Ours carries 16-byte descriptors from one producer to one consumer in a shared mapping; the peer
//! carries 8-byte pointers, with many producers (`MP/SC`, what OpenNetVM uses) or one (`SP/SC`).
//! A consumer of descriptors has in hand what a packet is; a consumer of pointers has yet to fetch
//! it, which the rows "with metadata" include: there the peer's producer writes the first 16 bytes
//! behind the pointer and its consumer reads them.
//!
//! ```text
//! cargo bench -p millrace-benches --bench rings [-- --json] [--reps N]
//! ```
//! Runs of ours and the peer's alternate, so that a machine that slows down slows both; the medians
//! are compared. On one core the thread's CPU time is taken, which other processes do not disturb;
//! on two cores wall time must be, so run it on a quiet machine. The loops of the peer run whole in
//! C, so that it pays for no call from Rust.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use dpdk_sys::ring::{PeerRing, RingKind};
use millrace_benches::environment;
use millrace_benches::report::{Report, Row, median};
use nflib::descriptor::Delivery;
use nflib::shm::{Consumer, Mapping, Producer, SharedRing};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// Slots of each ring, as the manager's default.
const SLOTS: u32 = 4096;
/// Elements that travel; never as many as slots.
const ELEMENTS: u32 = 6144;
/// Descriptors in one measured run.
const RUN_DESCRIPTORS: u64 = 12_000_000;

#[derive(Clone, Copy)]
enum Cores {
    One,
    Two,
}

#[derive(Clone, Copy)]
struct Case {
    cores: Cores,
    burst: u32,
    peer: RingKind,
    /// What a packet is also travels: in our descriptor, behind the peer's pointer.
    metadata: bool,
    /// The ratio aimed at; 0 where none was set.
    aim: f64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let reps = args
        .iter()
        .position(|arg| arg == "--reps")
        .and_then(|at| args.get(at + 1)?.parse().ok())
        .unwrap_or(7)
        .max(5);
    let mut report = Report::new(args.iter().any(|arg| arg == "--json"));
    report.environment(&environment::describe());
    for case in cases() {
        report.row(&measure(case, reps)?);
    }
    report.finish();
    Ok(())
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (cores, mp_aim) in [(Cores::One, 1.8), (Cores::Two, 2.0)] {
        for burst in [32, 64] {
            for (peer, aim) in [(RingKind::MpSc, mp_aim), (RingKind::SpSc, 0.0)] {
                cases.push(Case { cores, burst, peer, metadata: false, aim });
            }
        }
    }
    for cores in [Cores::One, Cores::Two] {
        for burst in [32, 64] {
            cases.push(Case { cores, burst, peer: RingKind::MpSc, metadata: true, aim: 0.0 });
        }
    }
    cases
}

fn measure(case: Case, reps: usize) -> Result<Row, Box<dyn std::error::Error>> {
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    // The first pair of runs warms caches and clocks up and is not counted.
    for rep in 0..=reps {
        let (our_time, their_time) = match case.cores {
            Cores::One => (ours_on_one_core(case)?, peer_on_one_core(case)?),
            Cores::Two => (ours_on_two_cores(case)?, peer_on_two_cores(case)?),
        };
        if rep > 0 {
            ours.push(millions_per_second(our_time));
            theirs.push(millions_per_second(their_time));
        }
    }
    let cores = match case.cores {
        Cores::One => "one core",
        Cores::Two => "two cores",
    };
    let metadata = if case.metadata { ", with metadata" } else { "" };
    let (ours, peer_value) = (median(&mut ours), median(&mut theirs));
    Ok(Row {
        work: format!("ring, {cores}, burst {}{metadata}", case.burst),
        ours,
        unit: "M descriptors/s",
        peer: match case.peer {
            RingKind::MpSc => "rte_ring MP/SC",
            RingKind::SpSc => "rte_ring SP/SC",
        },
        peer_value,
        ratio: ours / peer_value,
        aim: case.aim,
    })
}

fn millions_per_second(time: Duration) -> f64 {
    RUN_DESCRIPTORS as f64 / time.as_secs_f64() / 1e6
}

fn pin(core: usize) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// Time this thread has run.
fn cpu_time() -> nix::Result<Duration> {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from)
}

fn our_ring() -> Result<(Producer<Delivery>, Consumer<Delivery>), Box<dyn std::error::Error>> {
    let bytes = SharedRing::size_bytes(SLOTS).next_multiple_of(4096);
    let file = memfd_create(c"millrace-bench-ring", MFdFlags::MFD_CLOEXEC)?;
    nix::unistd::ftruncate(&file, bytes.try_into()?)?;
    let mapping = Arc::new(Mapping::new(&file, bytes, true)?);
    let ring = SharedRing::at(&mapping, 0, SLOTS).ok_or("the ring does not fit its mapping")?;
    Ok((Producer::new(ring.clone()), Consumer::new(ring)))
}

fn descriptors() -> Vec<Delivery> {
    (0..ELEMENTS)
        .map(|buffer| Delivery {
            buffer,
            offset_bytes: 256,
            len_bytes: 64,
            flow_hash: buffer ^ 0x5a5a,
            route: 1,
            port: 1,
            hop: 0,
        })
        .collect()
}

/// The next burst of the elements, round and round.
fn next_burst<'a>(
    elements: &'a mut [Delivery],
    at: &mut usize,
    burst: usize,
) -> &'a mut [Delivery] {
    if *at + burst > elements.len() {
        *at = 0;
    }
    *at += burst;
    &mut elements[*at - burst..*at]
}

/// Writes into each descriptor what the peer writes behind each pointer.
fn write_metadata(values: &mut [Delivery], round: u64, case: Case) {
    if case.metadata {
        for (value, at) in values.iter_mut().zip(round..) {
            value.len_bytes = at as u16;
            value.flow_hash = at as u32;
        }
    }
}

fn ours_on_one_core(case: Case) -> Result<Duration, Box<dyn std::error::Error>> {
    pin(0)?;
    let (mut producer, mut consumer) = our_ring()?;
    let (mut elements, burst) = (descriptors(), case.burst as usize);
    let mut out: [Delivery; 64] = std::array::from_fn(|n| elements[n]);
    let (mut at, mut sum) = (0, 0_u64);
    let begin = cpu_time()?;
    for round in 0..RUN_DESCRIPTORS / u64::from(case.burst) {
        if case.metadata {
            let values = next_burst(&mut elements, &mut at, burst);
            write_metadata(values, round, case);
            producer.push_burst(values)?;
        } else {
            // What was popped is pushed, as an NF does that passes packets on.
            producer.push_burst(&out[..burst])?;
        }
        let count = consumer.pop_burst(&mut out[..burst])?;
        sum = out[..count].iter().fold(sum, |sum, d| sum.wrapping_add(work_on(d, case)));
    }
    black_box(sum);
    Ok(cpu_time()?.saturating_sub(begin))
}

fn peer_on_one_core(case: Case) -> Result<Duration, Box<dyn std::error::Error>> {
    pin(0)?;
    let mut ring = PeerRing::new(SLOTS, ELEMENTS, case.peer)?;
    let rounds = RUN_DESCRIPTORS / u64::from(case.burst);
    let begin = cpu_time()?;
    black_box(ring.pingpong(case.burst, rounds, case.metadata));
    Ok(cpu_time()?.saturating_sub(begin))
}

/// Runs a producer on core 1 and a consumer on core 0, from a common start to the consumer's end.
fn on_two_cores<P, C>(produce: P, consume: C) -> Result<Duration, Box<dyn std::error::Error>>
where
    P: FnOnce() + Send,
    C: FnOnce(),
{
    let start = Barrier::new(2);
    std::thread::scope(|scope| {
        let producer = scope.spawn(|| {
            let pinned = pin(1);
            start.wait();
            if pinned.is_ok() {
                produce();
            }
            pinned
        });
        let pinned = pin(0);
        start.wait();
        let begin = Instant::now();
        if pinned.is_ok() {
            consume();
        }
        let time = begin.elapsed();
        producer.join().map_err(|_| "the producer panicked")??;
        pinned?;
        Ok(time)
    })
}

fn ours_on_two_cores(case: Case) -> Result<Duration, Box<dyn std::error::Error>> {
    let (mut producer, mut consumer) = our_ring()?;
    let (mut elements, burst) = (descriptors(), case.burst as usize);
    let produce = move || {
        let (mut at, mut sent) = (0, 0);
        while sent < RUN_DESCRIPTORS {
            let values = next_burst(&mut elements, &mut at, burst);
            write_metadata(values, sent, case);
            let mut rest = &*values;
            while !rest.is_empty() {
                let count = producer.push_burst(rest).expect("the consumer is ours");
                if count == 0 {
                    std::hint::spin_loop();
                }
                rest = &rest[count..];
            }
            sent += burst as u64;
        }
    };
    let consume = move || {
        let mut out = [Delivery::default(); 64];
        let (mut seen, mut sum) = (0, 0_u64);
        while seen < RUN_DESCRIPTORS {
            let count = consumer.pop_burst(&mut out[..burst]).expect("the producer is ours");
            if count == 0 {
                std::hint::spin_loop();
            }
            sum = out[..count].iter().fold(sum, |sum, d| sum.wrapping_add(work_on(d, case)));
            seen += count as u64;
        }
        black_box(sum);
    };
    on_two_cores(produce, consume)
}

/// What the consumer reads of a packet: its number alone, or all that the descriptor says.
#[inline]
fn work_on(d: &Delivery, case: Case) -> u64 {
    if !case.metadata {
        return u64::from(d.buffer);
    }
    u64::from(d.buffer) + u64::from(d.len_bytes) + u64::from(d.flow_hash) + u64::from(d.route)
}

fn peer_on_two_cores(case: Case) -> Result<Duration, Box<dyn std::error::Error>> {
    let ring = PeerRing::new(SLOTS, ELEMENTS, case.peer)?;
    let total = RUN_DESCRIPTORS / u64::from(case.burst) * u64::from(case.burst);
    on_two_cores(
        || ring.produce(case.burst, total, case.metadata),
        || {
            black_box(ring.consume(case.burst, total, case.metadata));
        },
    )
}
