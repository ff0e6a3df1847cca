//! NFs that live and do nothing: packets wait for them, and their loop does not turn.
//!
//! An NF counts the turns of its loop ([`NfCounter::Progress`](nflib::shm::NfCounter)). One with
//! nothing to do sleeps and counts nothing, which is no fault; so only an NF for which packets wait,
//! or which has read some and not passed them on, all the while, is said to stand still. What the
//! kernel says of its process tells why. An NF that gets no CPU time is only told of, never ended:
//! another in its place would fare no better.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// What is known of an NF at one look.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Its instance id.
    pub instance: u32,
    /// Turns of its loop, by its own account.
    pub progress: u64,
    /// Packets stand in its rings that it has not read, or not passed on.
    pub has_packets: bool,
    /// How long it may stand still.
    pub limit: Duration,
}

/// Why an NF stands still, as far as the kernel tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// SIGSTOP, or a debugger.
    Stopped,
    /// Its process runs: its code does not come back to the loop.
    Runs,
    /// Its process could run, and has not for all that time.
    Starved,
    /// Its process sleeps, in a call of its own code.
    Sleeps,
    /// Its process waits for a device or a file system.
    Blocked,
    /// Nothing is known of its process.
    Unknown,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "its process is stopped (SIGSTOP, or a debugger)",
            Self::Runs => "its process runs, but its code does not return to the loop",
            Self::Starved => "its process gets no CPU time",
            Self::Sleeps => "its process sleeps in a call of its own code",
            Self::Blocked => "its process waits for a device or a file system",
            Self::Unknown => "nothing is known of its process",
        })
    }
}

/// A process as the kernel shows it in `/proc/PID/stat` (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// `R`, `S`, `D`, `T`, `t`, `Z`.
    pub state: char,
    /// CPU time of all its threads, clock ticks.
    pub cpu_ticks: u64,
}

impl Process {
    /// The process `pid`, if it is there.
    #[must_use]
    pub fn read(pid: i32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        // The name stands in brackets and may contain anything.
        let mut fields = stat.rsplit_once(") ")?.1.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let mut times = fields.skip(10).map(str::parse::<u64>);
        let (user, system) = (times.next()?.ok()?, times.next()?.ok()?);
        Some(Self { state, cpu_ticks: user.saturating_add(system) })
    }
}

/// An NF that stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// For how long.
    pub since: Duration,
    /// Why.
    pub why: Why,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no progress for {:.1} s: {}", self.since.as_secs_f64(), self.why)
    }
}

struct Seen {
    progress: u64,
    since: Instant,
    cpu_ticks: Option<u64>,
    stuck: Option<Stuck>,
}

/// Who stands still, and since when.
#[derive(Default)]
pub struct Watch {
    seen: BTreeMap<u32, Seen>,
}

impl Watch {
    /// One look at all NFs. Returns those that have stood still for longer than they may, and were
    /// not told of yet, and those that go on again.
    pub fn look(
        &mut self,
        now: Instant,
        readings: &[Reading],
        process: impl Fn(u32) -> Option<Process>,
    ) -> (Vec<(u32, Stuck)>, Vec<u32>) {
        self.seen.retain(|instance, _| readings.iter().any(|r| r.instance == *instance));
        let (mut stuck, mut going) = (Vec::new(), Vec::new());
        for reading in readings {
            let fresh =
                || Seen { progress: reading.progress, since: now, cpu_ticks: None, stuck: None };
            let seen = self.seen.entry(reading.instance).or_insert_with(fresh);
            if seen.progress != reading.progress || !reading.has_packets {
                going.extend(seen.stuck.map(|_| reading.instance));
                *seen = fresh();
                continue;
            }
            let stood = now.saturating_duration_since(seen.since);
            // From the first look at which it stands still.
            let now_process = process(reading.instance);
            let first_ticks = *seen
                .cpu_ticks
                .get_or_insert_with(|| now_process.map_or(0, |process| process.cpu_ticks));
            if stood < reading.limit {
                continue;
            }
            let found = Stuck { since: stood, why: why(now_process, first_ticks) };
            if seen.stuck.replace(found).is_none_or(|before| before.why != found.why) {
                stuck.push((reading.instance, found));
            }
        }
        (stuck, going)
    }

    /// How an NF stands still now, if it does.
    #[must_use]
    pub fn stuck(&self, instance: u32) -> Option<Stuck> {
        self.seen.get(&instance)?.stuck
    }
}

fn why(process: Option<Process>, first_ticks: u64) -> Why {
    match process {
        None => Why::Unknown,
        Some(Process { state: 'T' | 't', .. }) => Why::Stopped,
        Some(Process { state: 'D', .. }) => Why::Blocked,
        Some(Process { state: 'R', cpu_ticks }) if cpu_ticks == first_ticks => Why::Starved,
        Some(Process { state: 'R', .. }) => Why::Runs,
        Some(Process { state: 'S', .. }) => Why::Sleeps,
        Some(_) => Why::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(500);

    fn reading(progress: u64, has_packets: bool) -> [Reading; 1] {
        [Reading { instance: 7, progress, has_packets, limit: LIMIT }]
    }

    /// What is told at each look, 200 ms apart.
    fn looks(states: &[(u64, bool, char, u64)]) -> Vec<String> {
        let (mut watch, began) = (Watch::default(), Instant::now());
        let mut told = Vec::new();
        for (at, &(progress, has_packets, state, cpu_ticks)) in (0..).zip(states) {
            let now = began + Duration::from_millis(200) * at;
            let process = |_| Some(Process { state, cpu_ticks });
            let (stuck, going) = watch.look(now, &reading(progress, has_packets), process);
            told.extend(stuck.iter().map(|(_, stuck)| format!("{at}: {:?}", stuck.why)));
            told.extend(going.iter().map(|_| format!("{at}: goes on")));
        }
        told
    }

    #[test]
    fn an_nf_that_has_nothing_to_do_is_not_stuck_however_long_it_sleeps() {
        assert!(looks(&[(5, false, 'S', 1); 20]).is_empty());
        // Packets come and go between the looks.
        let blink: Vec<_> = (0..20).map(|at| (5, at % 2 == 0, 'S', 1)).collect();
        assert!(looks(&blink).is_empty());
    }

    #[test]
    fn a_slow_nf_is_not_stuck() {
        let slow: Vec<_> = (0..20).map(|at| (at / 2, true, 'R', at)).collect();
        assert!(looks(&slow).is_empty());
    }

    #[test]
    fn one_that_stands_still_with_packets_is_told_of_once_and_when_it_goes_on() {
        let mut states = vec![(5, true, 'T', 9); 6];
        states.extend([(6, true, 'S', 9); 2]);
        assert_eq!(looks(&states), ["3: Stopped", "6: goes on"]);
    }

    #[test]
    fn the_kernel_tells_why() {
        let of = |state, ticks: [u64; 2]| {
            looks(&[
                (5, true, state, ticks[0]),
                (5, true, state, ticks[0]),
                (5, true, state, 0),
                (5, true, state, ticks[1]),
            ])
        };
        assert_eq!(of('R', [3, 40]), ["3: Runs"]);
        assert_eq!(of('R', [3, 3]), ["3: Starved"]);
        assert_eq!(of('S', [3, 3]), ["3: Sleeps"]);
        assert_eq!(of('D', [3, 3]), ["3: Blocked"]);
    }

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = "77 (a) R 1) T 1 77 77 0 -1 4194560 1 0 0 0 12 30 0 0 20 0 1 0 1 1 1";
        assert_eq!(Process::parse(stat), Some(Process { state: 'T', cpu_ticks: 42 }));
        for bad in ["", "77", "77 (a) ", "77 (a) R 1 2", "77 (a) R x x x x x x x x x x x x"] {
            assert_eq!(Process::parse(bad), None, "{bad:?}");
        }
        assert!(Process::read(std::process::id().cast_signed()).is_some());
        assert_eq!(Process::read(-1), None);
    }
}
