//! The machine a figure was taken on.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::report::median;

/// Handovers of the latency measurement.
const HANDOVERS: u32 = 100_000;
/// Handovers that are timed together: fewer than fit into the time that another process may take a core.
const TOGETHER: u32 = 1_000;

/// CPU, kernel, hugepages, and what it costs at this moment to pass a cache line between cores 0
/// and 1. The last differs by an order of magnitude with where a virtual machine's cores are.
#[must_use]
pub fn describe() -> Value {
    let cpu = line_of("/proc/cpuinfo", "model name", ':');
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let total = line_of("/proc/meminfo", "HugePages_Total", ':').parse().unwrap_or(0_u64);
    let free = line_of("/proc/meminfo", "HugePages_Free", ':').parse().unwrap_or(0_u64);
    json!({"environment": {
        "cpu": cpu,
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "kernel": kernel.trim(),
        "hugepages_total": total,
        "hugepages_free": free,
        "core_to_core_ns": core_to_core_ns(),
    }})
}

fn line_of(path: &str, key: &str, separator: char) -> String {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix(key)?.split_once(separator))
        .map(|(_, value)| value.trim().to_owned())
        .unwrap_or_default()
}

/// Nanoseconds for a value written on one core to be seen on the other: half a round trip of one
/// cache line, the median of some averages. `None` where there is one core only.
#[must_use]
pub fn core_to_core_ns() -> Option<f64> {
    let before = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let turn = AtomicU32::new(0);
    let round_ns = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            if pin(1).is_err() {
                turn.store(u32::MAX, Ordering::Release);
                return;
            }
            for at in 0..HANDOVERS {
                while turn.load(Ordering::Acquire) != 2 * at + 1 {
                    std::hint::spin_loop();
                }
                turn.store(2 * at + 2, Ordering::Release);
            }
        });
        pin(0).ok();
        let mut begin = Instant::now();
        let mut averages_ns = Vec::new();
        for at in 0..HANDOVERS {
            if turn
                .compare_exchange(2 * at, 2 * at + 1, Ordering::AcqRel, Ordering::Acquire)
                .is_err()
            {
                return None;
            }
            loop {
                match turn.load(Ordering::Acquire) {
                    u32::MAX => return None,
                    value if value == 2 * at + 2 => break,
                    _ => std::hint::spin_loop(),
                }
            }
            if (at + 1).is_multiple_of(TOGETHER) {
                averages_ns.push(begin.elapsed().as_nanos() as f64 / f64::from(TOGETHER));
                begin = Instant::now();
            }
        }
        other.join().ok()?;
        Some(median(&mut averages_ns))
    });
    sched_setaffinity(Pid::from_raw(0), &before).ok()?;
    Some((round_ns? / 2.0 * 10.0).round() / 10.0)
}

fn pin(core: usize) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}
