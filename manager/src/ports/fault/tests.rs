use std::collections::HashSet;

use nflib::shm::{HugePages, Region, RegionGeometry};

use super::*;
use crate::ports::generator::{self, GeneratorOptions};
use crate::ports::test_frame::{self, Stamp};

const BUFFERS: u32 = 4096;

fn pools() -> Vec<BufferPool> {
    let geometry = RegionGeometry { buffers: BUFFERS, stride_bytes: 1024, headroom_bytes: 128 };
    let region = Arc::new(Region::create(geometry, HugePages::Off).unwrap());
    vec![BufferPool::new(region, 0, BUFFERS)]
}

fn wrapped(toml: &str, count_pkts: u64, pools: &mut [BufferPool]) -> OpenPort {
    let source = GeneratorOptions { count_pkts, flows: 1, ..Default::default() };
    let inner = generator::open("gen0", &source, pools).unwrap();
    wrap("gen0", &toml::from_str(toml).unwrap(), inner).unwrap()
}

/// What came out of a run over `count_pkts` packets.
struct Run {
    /// The stamps in the order of arrival; `None` for a damaged frame.
    stamps: Vec<Option<Stamp>>,
    counters: Arc<QueueCounters>,
    took: Duration,
}

/// Runs to the end, and checks the books after every burst.
fn run(toml: &str, count_pkts: u64) -> Run {
    let mut pools = pools();
    let mut port = wrapped(toml, count_pkts, &mut pools);
    let (pool, queue) = (&mut pools[0], &mut port.queues[0]);
    let counters = Arc::clone(queue.counters());
    let start = Instant::now();
    let (mut stamps, mut out) = (Vec::new(), Vec::new());
    while !queue.exhausted() {
        queue.rx_burst(pool, &mut out);
        assert!(out.len() <= MAX_BURST_PKTS);
        for packet in out.drain(..) {
            let mut frame = vec![0; packet.len_bytes.into()];
            assert!(pool.region().read(packet.buffer, packet.offset_bytes, &mut frame));
            stamps.push(test_frame::parse(&frame).ok());
            pool.give(&[packet.buffer]);
        }
        let accounted = stamps.len() as u64 + counters.drops.total() + queue.held_pkts();
        assert_eq!(counters.rx_pkts.get(), accounted);
        assert_eq!(counters.rx_bytes.get(), 60 * counters.rx_pkts.get());
    }
    let took = start.elapsed();
    queue.close(pool);
    assert_eq!(pool.free_buffers(), BUFFERS as usize);
    Run { stamps, counters, took }
}

fn sequences(run: &Run) -> Vec<u64> {
    run.stamps.iter().flatten().map(|stamp| stamp.sequence).collect()
}

fn share(pkts: usize) -> f64 {
    pkts as f64 / 20_000.0
}

#[test]
fn without_faults_everything_passes_in_order() {
    let run = run("", 20_000);
    assert_eq!(sequences(&run), (0..20_000).collect::<Vec<_>>());
    assert_eq!(run.counters.rx_pkts.get(), 20_000);
}

#[test]
fn the_given_share_is_lost_and_counted_under_its_reason() {
    let run = run("loss = 0.1", 20_000);
    let lost = 20_000 - run.stamps.len();
    assert!((0.08..0.12).contains(&share(lost)), "{lost}");
    assert_eq!(run.counters.drops.get(DropReason::FaultLoss), lost as u64);
    assert!(sequences(&run).is_sorted());
}

#[test]
fn burst_losses_come_in_runs_of_the_given_mean_length() {
    let run = run("burst_loss = { p = 0.02, r = 0.2 }", 20_000);
    let sequences = sequences(&run);
    let lost = 20_000 - sequences.len();
    assert!((0.05..0.14).contains(&share(lost)), "p / (p + r) = 0.09: {lost}");
    let bursts = sequences.windows(2).filter(|pair| pair[1] > pair[0] + 1).count();
    let mean = lost as f64 / bursts as f64;
    assert!((4.0..6.2).contains(&mean), "1 / r = 5: {mean}");
}

#[test]
fn reordered_packets_come_later_and_all_come() {
    let run = run("reorder = 0.1", 20_000);
    let sequences = sequences(&run);
    let behind = sequences.windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert!((0.05..0.15).contains(&share(behind)), "{behind}");
    assert_eq!(sequences.iter().collect::<HashSet<_>>().len(), 20_000);
    assert_eq!(run.counters.rx_pkts.get(), 20_000);
}

#[test]
fn duplicates_are_further_received_packets_with_the_same_bytes() {
    let run = run("duplicate = 0.1", 20_000);
    let sequences = sequences(&run);
    let twice = sequences.windows(2).filter(|pair| pair[1] == pair[0]).count();
    assert!((0.08..0.12).contains(&share(twice)), "{twice}");
    assert_eq!(sequences.len(), 20_000 + twice);
    assert_eq!(run.counters.rx_pkts.get(), sequences.len() as u64);
    assert!(run.stamps.iter().all(Option::is_some), "a copy is intact");
}

#[test]
fn a_burst_that_is_duplicated_as_a_whole_comes_out_in_full() {
    let run = run("duplicate = 1", 1000);
    assert_eq!(run.stamps.len(), 2000);
}

#[test]
fn corrupt_packets_have_one_wrong_bit() {
    let run = run("corrupt = 0.1", 20_000);
    let damaged = run.stamps.iter().filter(|stamp| stamp.is_none()).count();
    // A bit among the 12 address bytes of 60 is under no checksum.
    assert!((0.06..0.1).contains(&share(damaged)), "{damaged}");
    assert_eq!(run.stamps.len(), 20_000);
}

#[test]
fn delayed_packets_are_held_for_the_given_time_and_keep_their_order() {
    let run = run("delay_us = 20000\njitter_us = 5000", 1000);
    assert!(run.took >= Duration::from_millis(20), "{:?}", run.took);
    assert_eq!(sequences(&run), (0..1000).collect::<Vec<_>>());
}

#[test]
fn the_limit_on_held_packets_is_kept_without_losing_any() {
    let mut pools = pools();
    let mut port = wrapped("delay_us = 5000\nheld_max_pkts = 100", 1000, &mut pools);
    let (pool, queue) = (&mut pools[0], &mut port.queues[0]);
    let (mut out, mut most) = (Vec::new(), 0);
    while !queue.exhausted() {
        queue.rx_burst(pool, &mut out);
        most = most.max(queue.held_pkts());
    }
    assert_eq!(out.len(), 1000);
    assert!((100..100 + MAX_BURST_PKTS as u64).contains(&most), "{most}");
}

#[test]
fn the_same_seed_gives_the_same_fate_and_another_seed_another() {
    let faults = "loss = 0.05\nreorder = 0.05\nduplicate = 0.05\ncorrupt = 0.05";
    let first = run(&format!("{faults}\nseed = 7"), 5000).stamps;
    assert_eq!(first, run(&format!("{faults}\nseed = 7"), 5000).stamps);
    assert_ne!(first, run(&format!("{faults}\nseed = 8"), 5000).stamps);
}

#[test]
fn without_a_free_buffer_nothing_is_duplicated() {
    let mut pools = pools();
    let mut port = wrapped("duplicate = 1", 64, &mut pools);
    let mut others = Vec::new();
    pools[0].take(BUFFERS as usize - 64, &mut others);
    let mut out = Vec::new();
    port.queues[0].rx_burst(&mut pools[0], &mut out);
    assert_eq!(out.len(), 64);
    assert_eq!(port.queues[0].counters().rx_pkts.get(), 64);
    assert_eq!(port.queues[0].held_pkts(), 0);
}

#[test]
fn closing_frees_what_is_held_and_counts_it() {
    let mut pools = pools();
    let mut port = wrapped("delay_us = 60000000\nreorder = 0.5", 64, &mut pools);
    let queue = &mut port.queues[0];
    queue.rx_burst(&mut pools[0], &mut Vec::new());
    assert_eq!(queue.held_pkts(), 64);
    queue.close(&mut pools[0]);
    assert_eq!(queue.held_pkts(), 0);
    assert_eq!(queue.counters().drops.get(DropReason::Shutdown), 64);
    assert_eq!(pools[0].free_buffers(), BUFFERS as usize);
}

#[test]
fn what_was_done_is_shown_beside_the_inner_ports_statistics() {
    let mut pools = pools();
    let mut port = wrapped("loss = 1", 64, &mut pools);
    port.queues[0].rx_burst(&mut pools[0], &mut Vec::new());
    assert!(port.port.hw_stats().contains(&("fault_lost_pkts".into(), 64)));
    assert_eq!(port.port.info().driver, "generator with faults");
}

#[test]
fn impossible_options_are_refused_with_the_key_and_the_value() {
    let mut pools = pools();
    for (toml, words) in [
        ("loss = 1.5", "fault: loss = 1.5 is not a probability (0 to 1)"),
        ("corrupt = -0.1", "corrupt = -0.1"),
        ("duplicate = nan", "duplicate = NaN"),
        ("burst_loss = { p = 0.5, r = 2.0 }", "burst_loss.r = 2"),
        ("delay_us = 60000000\njitter_us = 1", "delay_us + jitter_us"),
        ("held_max_pkts = 0", "held_max_pkts = 0"),
    ] {
        let inner = generator::open("gen0", &GeneratorOptions::default(), &mut pools).unwrap();
        let options = toml::from_str(toml).unwrap();
        let error = wrap("gen0", &options, inner).err().expect(toml).to_string();
        assert!(error.starts_with("gen0: ") && error.contains(words), "{error}");
    }
    assert!(toml::from_str::<FaultOptions>("loose = 0.1").is_err());
}
