//! Which core has whom: workers, and NFs that are pinned.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use thiserror::Error;

/// Who runs on a core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A worker of the manager, by its number.
    Worker(u16),
    /// An NF.
    Nf {
        /// Its service's name.
        service: String,
        /// Its process.
        pid: i32,
        /// Its instance id, once it is attached.
        instance: Option<u32>,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worker(worker) => write!(f, "worker {worker}"),
            Self::Nf { service, instance: Some(instance), .. } => {
                write!(f, "{service} (instance {instance})")
            }
            Self::Nf { service, pid, .. } => write!(f, "{service} (pid {pid})"),
        }
    }
}

/// Why no core can be given.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoCore {
    /// Others have them all.
    #[error("no core is free: {holders}")]
    Taken {
        /// Each core with those who have it: `0 worker 0, 1 firewall (instance 3)`.
        holders: String,
    },
    /// What was asked for is not this process's to use.
    #[error(
        "no core is free: none of cores {wanted} is among those the manager may use ({usable})"
    )]
    NotUsable {
        /// The cores asked for.
        wanted: String,
        /// The affinity mask (or cpuset) of the manager.
        usable: String,
    },
}

struct Held {
    core: u32,
    /// To the exclusion of NFs.
    own: bool,
    holder: Holder,
}

/// The cores the manager may use, and who was given which.
pub struct CoreMap {
    usable: BTreeSet<u32>,
    held: Vec<Held>,
}

impl CoreMap {
    /// A map over the cores `usable`, all free.
    pub fn new(usable: impl IntoIterator<Item = u32>) -> Self {
        Self { usable: usable.into_iter().collect(), held: Vec::new() }
    }

    /// A map over the cores in the calling thread's affinity mask, which a cpuset bounds. To be
    /// called before the thread is pinned (DPDK's EAL pins the one that starts it).
    #[must_use]
    pub fn of_this_thread() -> Self {
        let mask = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        let is_set = |core: &u32| mask.is_set(*core as usize).unwrap_or(false);
        Self::new((0..CpuSet::count() as u32).filter(is_set))
    }

    /// The cores the manager may use.
    #[must_use]
    pub fn usable(&self) -> &BTreeSet<u32> {
        &self.usable
    }

    /// A core for an NF, which is not taken yet: of `among` (empty: of all), the one with the
    /// fewest NFs, the first of these. With `own`: one that no worker and no NF has. A core that
    /// was taken as somebody's own is never chosen.
    ///
    /// # Errors
    /// [`NoCore`], which says who has which.
    pub fn choose(&self, among: &[u32], own: bool) -> Result<u32, NoCore> {
        let asked: Vec<u32> =
            if among.is_empty() { self.usable.iter().copied().collect() } else { among.to_vec() };
        let candidates: Vec<u32> =
            asked.iter().copied().filter(|core| self.usable.contains(core)).collect();
        if candidates.is_empty() {
            let usable: Vec<u32> = self.usable.iter().copied().collect();
            return Err(NoCore::NotUsable { wanted: list(&asked), usable: list(&usable) });
        }
        let free = |core: &&u32| self.on(**core).all(|held| !held.own && !own);
        let nfs = |core: u32| {
            self.on(core).filter(|held| matches!(held.holder, Holder::Nf { .. })).count()
        };
        match candidates.iter().filter(free).min_by_key(|core| nfs(**core)) {
            Some(core) => Ok(*core),
            None => Err(NoCore::Taken { holders: self.describe(&candidates) }),
        }
    }

    fn on(&self, core: u32) -> impl Iterator<Item = &Held> {
        self.held.iter().filter(move |held| held.core == core)
    }

    fn describe(&self, cores: &[u32]) -> String {
        let mut parts = Vec::new();
        for core in cores.iter().collect::<BTreeSet<_>>() {
            let holders: Vec<_> = self.on(*core).map(|held| held.holder.to_string()).collect();
            parts.push(format!("{core} {}", holders.join(" and ")));
        }
        parts.join(", ")
    }

    /// Notes that somebody has a core; with `own`, no NF is to join it.
    pub fn take(&mut self, core: u32, own: bool, holder: Holder) {
        self.held.push(Held { core, own, holder });
    }

    /// Notes the workers' cores (`manager.cores`), in their order; with `own`, since they never rest,
    /// no NF is to join them.
    pub fn take_for_workers(&mut self, cores: &[u32], own: bool) {
        for (worker, core) in (0..).zip(cores) {
            self.take(*core, own, Holder::Worker(worker));
        }
    }

    /// Notes that an NF that was started by hand runs on a core. Returns who was there already.
    ///
    /// # Errors
    /// One line, when somebody there has the core alone; then nothing is noted.
    pub fn join(&mut self, core: u32, nf: Holder) -> Result<Vec<String>, String> {
        if let Some(held) = self.on(core).find(|held| held.own) {
            return Err(format!("core {core} is {}'s alone; choose another", held.holder));
        }
        let there = self.on(core).map(|held| held.holder.to_string()).collect();
        self.take(core, false, nf);
        Ok(there)
    }

    /// Gives an NF on a core its instance id, for the messages.
    pub fn name_instance(&mut self, of_pid: i32, id: u32) {
        for held in &mut self.held {
            if let Holder::Nf { pid, instance, .. } = &mut held.holder
                && *pid == of_pid
            {
                *instance = Some(id);
            }
        }
    }

    /// Frees what an NF's process had. Returns whether it had any.
    pub fn release(&mut self, of_pid: i32) -> bool {
        let before = self.held.len();
        self.held.retain(|held| !matches!(held.holder, Holder::Nf { pid, .. } if pid == of_pid));
        self.held.len() < before
    }
}

fn list(cores: &[u32]) -> String {
    cores.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nf(service: &str, pid: i32) -> Holder {
        Holder::Nf { service: service.into(), pid, instance: None }
    }

    #[test]
    fn an_own_core_is_one_that_nobody_has_and_stays_so() {
        let mut map = CoreMap::new([0, 1, 2]);
        map.take_for_workers(&[0], false);
        map.take(2, false, nf("forward", 20));
        assert_eq!(map.choose(&[], true), Ok(1));
        map.take(1, true, nf("firewall", 21));
        map.name_instance(21, 3);
        let said = map.choose(&[], true).unwrap_err().to_string();
        assert_eq!(
            said,
            "no core is free: 0 worker 0, 1 firewall (instance 3), 2 forward (pid 20)"
        );
        assert!(map.choose(&[1], false).is_err(), "nobody joins an own core");
        assert!(map.release(21) && !map.release(21));
        assert_eq!(map.choose(&[], true), Ok(1));
    }

    #[test]
    fn listed_cores_are_taken_in_turn() {
        let mut map = CoreMap::new(0..8);
        map.take_for_workers(&[3], false);
        let chosen: Vec<u32> = (0..5)
            .map(|pid| {
                let core = map.choose(&[5, 3], false).unwrap();
                map.take(core, false, nf("x", pid));
                core
            })
            .collect();
        assert_eq!(chosen, [5, 3, 5, 3, 5]);
        map.release(1);
        assert_eq!(map.choose(&[5, 3], false), Ok(3), "what became free is next");
    }

    #[test]
    fn who_is_started_by_hand_joins_others_but_not_one_who_has_a_core_alone() {
        let mut map = CoreMap::new([0, 1, 2]);
        map.take_for_workers(&[0], true);
        map.take(1, false, nf("firewall", 7));
        assert!(map.join(0, nf("x", 8)).unwrap_err().starts_with("core 0 is worker 0's alone"));
        assert!(!map.release(8), "who was refused has no core");
        assert_eq!(map.join(1, nf("x", 8)), Ok(vec!["firewall (pid 7)".to_owned()]));
        assert!(map.release(8));
        let said = map.choose(&[0], false).unwrap_err().to_string();
        assert_eq!(said, "no core is free: 0 worker 0");
    }

    #[test]
    fn a_core_outside_the_affinity_mask_is_never_given() {
        let map = CoreMap::new([0, 1]);
        assert_eq!(map.choose(&[7, 1], false), Ok(1));
        let said = map.choose(&[7], true).unwrap_err().to_string();
        assert!(said.contains("none of cores 7") && said.contains("(0, 1)"), "{said}");
    }

    #[test]
    fn the_map_of_this_thread_follows_its_affinity_mask() {
        let whole = CoreMap::of_this_thread();
        let first = *whole.usable().first().unwrap();
        std::thread::spawn(move || {
            let mut mask = CpuSet::new();
            mask.set(first as usize).unwrap();
            nix::sched::sched_setaffinity(Pid::from_raw(0), &mask).unwrap();
            let usable: Vec<u32> = CoreMap::of_this_thread().usable().iter().copied().collect();
            assert_eq!(usable, [first]);
        })
        .join()
        .unwrap();
    }
}
