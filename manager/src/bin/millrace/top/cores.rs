//! How busy each core of this machine is, and which worker and NFs are pinned to it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use nflib::control::Status;
use nflib::control::rates::Rates;
use serde::Serialize;

use crate::nf;

/// One core.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CoreLoad {
    /// Its number.
    pub core: u32,
    /// Share of the time in which it did anything, 0 to 1; `None` until measured. A polling worker
    /// or NF keeps its core busy whether there is traffic or not.
    pub busy_share: Option<f64>,
    /// Who is pinned to it.
    pub pinned: Vec<String>,
}

/// Time a core has spent since the machine started, in clock ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticks {
    busy: u64,
    all: u64,
}

/// Ticks by core; empty when the system does not tell.
pub type AllTicks = BTreeMap<u32, Ticks>;

/// Asks the system.
pub fn read() -> AllTicks {
    parse(&std::fs::read_to_string("/proc/stat").unwrap_or_default())
}

/// Lines `cpuN user nice system idle iowait irq softirq steal …` of proc_stat(5). The two fields
/// behind `steal` are part of `user` and `nice`.
fn parse(text: &str) -> AllTicks {
    let line = |line: &str| {
        let mut words = line.strip_prefix("cpu")?.split_ascii_whitespace();
        let core = words.next()?.parse().ok()?;
        let ticks: Vec<u64> = words.take(8).map_while(|word| word.parse().ok()).collect();
        let all = ticks.iter().sum();
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        (ticks.len() >= 5).then_some((core, Ticks { busy: all - idle, all }))
    };
    // `cpu ` without a number is the sum, and its first word is a number of ticks, not of a core.
    text.lines().filter(|line| !line.starts_with("cpu ")).filter_map(line).collect()
}

/// What happened on each core from `before` to `after`.
pub fn loads(before: &AllTicks, after: &AllTicks, status: &Status) -> Vec<CoreLoad> {
    let mut pinned: BTreeMap<u32, Vec<String>> =
        after.keys().map(|&core| (core, Vec::new())).collect();
    for worker in &status.workers {
        if let Some(core) = worker.core {
            pinned.entry(core).or_default().push(format!("worker {}", worker.worker));
        }
    }
    for nf in &status.nfs {
        if let Some(core) = nf.core {
            let name = format!("NF {} ({})", nf.instance, nf::service(nf));
            pinned.entry(core).or_default().push(name);
        }
    }
    let busy_share = |core| {
        let (then, now) = (before.get(&core)?, after.get(&core)?);
        let all = now.all.checked_sub(then.all).filter(|&all| all > 0)?;
        Some(now.busy.checked_sub(then.busy)? as f64 / all as f64)
    };
    pinned
        .into_iter()
        .map(|(core, pinned)| CoreLoad { core, busy_share: busy_share(core), pinned })
        .collect()
}

/// Share of its turns in which a worker moved packets, where it is known.
pub fn worker_share(rates: Option<&Rates>, worker: u16) -> Option<f64> {
    rates?.workers.iter().find(|rate| rate.worker == worker)?.busy_share
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::control::{NfStatus, WorkerStatus};

    const BEFORE: &str = "cpu  1 1 1 1 1 1 1 1 1 1\n\
                          cpu0 100 0 100 700 100 0 0 0 50 0\n\
                          cpu1 0 0 0 1000 0 0 0 0 0 0\n\
                          intr 5 5\n";
    const AFTER: &str = "cpu0 130 5 110 740 110 5 0 0 60 0\ncpu1 0 0 0 1100 0 0 0 0 0 0\ncpux\n";

    #[test]
    fn a_core_is_busy_when_it_neither_idles_nor_waits() {
        let status = Status {
            workers: vec![WorkerStatus { worker: 0, core: Some(0), ..Default::default() }],
            nfs: vec![
                NfStatus { instance: 3, service: 9, core: Some(7), ..Default::default() },
                NfStatus { instance: 4, core: None, ..Default::default() },
            ],
            ..Default::default()
        };
        let loads = loads(&parse(BEFORE), &parse(AFTER), &status);
        assert_eq!(loads.iter().map(|load| load.core).collect::<Vec<_>>(), [0, 1, 7]);
        assert_eq!(
            loads.iter().map(|load| load.busy_share).collect::<Vec<_>>(),
            [Some(0.5), Some(0.0), None]
        );
        assert_eq!(loads[0].pinned, ["worker 0"]);
        assert_eq!(loads[2].pinned, ["NF 3 (9)"]);
    }

    #[test]
    fn what_the_system_does_not_tell_is_not_known() {
        assert!(
            parse("").is_empty() && parse("cpu0 1 2\ncpu 1 2 3 4 5 6\ncpuA 1 2 3 4 5").is_empty()
        );
        let same = parse(BEFORE);
        let loads = loads(&same, &same, &Status::default());
        assert_eq!(loads[0].busy_share, None, "no time has passed");
    }

    #[test]
    fn this_machine_has_cores() {
        assert!(!read().is_empty());
    }
}
