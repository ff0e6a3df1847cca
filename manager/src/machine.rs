//! What this machine's cores are like: which there are, which may be used, and which memory each is
//! near to.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::OnceLock;

use nflib::runtime::core_list;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// The cores of a machine, as sysfs and the affinity mask tell.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    present: BTreeSet<u32>,
    online: BTreeSet<u32>,
    /// By the affinity mask, which a cpuset bounds.
    allowed: BTreeSet<u32>,
    /// NUMA nodes with their cores.
    nodes: Vec<(u32, BTreeSet<u32>)>,
}

impl Machine {
    /// The one we run on, as it was when first asked: later a driver may pin the thread that asks.
    #[must_use]
    pub fn this() -> &'static Self {
        static THIS: OnceLock<Machine> = OnceLock::new();
        THIS.get_or_init(|| {
            let mask = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
            let is_set = |core: &u32| mask.is_set(*core as usize).unwrap_or(false);
            let allowed = (0..CpuSet::count() as u32).filter(is_set);
            Self::read(Path::new("/sys/devices/system"), allowed)
        })
    }

    /// Reads `cpu/` and `node/` under `root` (`/sys/devices/system`). What cannot be read counts as
    /// what the affinity mask allows, on one node.
    #[must_use]
    pub fn read(root: &Path, allowed: impl IntoIterator<Item = u32>) -> Self {
        let allowed: BTreeSet<u32> = allowed.into_iter().collect();
        let list = |path: &Path| std::fs::read_to_string(path).ok().and_then(|text| cores(&text));
        let cpus = |name: &str| list(&root.join("cpu").join(name));
        let nodes =
            std::fs::read_dir(root.join("node")).into_iter().flatten().filter_map(|entry| {
                let entry = entry.ok()?;
                let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
                Some((number, list(&entry.path().join("cpulist"))?))
            });
        let mut nodes: Vec<_> = nodes.collect();
        nodes.sort_unstable_by_key(|(number, _)| *number);
        Self {
            present: cpus("present").unwrap_or_else(|| allowed.clone()),
            online: cpus("online").unwrap_or_else(|| allowed.clone()),
            allowed,
            nodes,
        }
    }

    /// Whether a core can be had.
    ///
    /// # Errors
    /// Why not, and which can be.
    pub fn check(&self, core: u32) -> Result<(), String> {
        if !self.present.contains(&core) {
            let present = core_list(self.present.iter().copied());
            return Err(format!("there is no core {core}; this machine has cores {present}"));
        }
        if !self.online.contains(&core) {
            let online = core_list(self.online.iter().copied());
            return Err(format!(
                "core {core} is offline; choose one of {online}, or turn it on (chcpu -e {core})"
            ));
        }
        if !self.allowed.contains(&core) {
            let allowed = core_list(self.allowed.iter().copied());
            return Err(format!(
                "core {core} is not this process's to use, by its affinity mask or cpuset; choose \
                 one of {allowed}"
            ));
        }
        Ok(())
    }

    /// The NUMA node of a core.
    #[must_use]
    pub fn node_of(&self, core: u32) -> Option<u32> {
        self.nodes.iter().find(|(_, cores)| cores.contains(&core)).map(|(node, _)| *node)
    }

    /// A sentence for people when not all of these cores, each with who runs there, are on one node:
    /// each hand-over between nodes costs several times as much.
    #[must_use]
    pub fn distance_note(&self, who: &[(String, u32)]) -> Option<String> {
        let mut places = who.iter().filter_map(|(name, core)| {
            self.node_of(*core).map(|node| (node, format!("{name} on core {core} (node {node})")))
        });
        let (node, first) = places.next()?;
        let (_, other) = places.find(|(other, _)| *other != node)?;
        Some(format!(
            "{first} and {other} are on different NUMA nodes, so that one of them is far from the \
             packets, too: keep workers and NFs on one node"
        ))
    }
}

/// Reads a list as the kernel writes it: `0-3,8`.
fn cores(text: &str) -> Option<BTreeSet<u32>> {
    let mut all = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        all.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight cores on two nodes; 6 is offline, 7 is another cpuset's.
    fn two_nodes() -> (tempfile::TempDir, Machine) {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("cpu/present", "0-7\n");
        write("cpu/online", "0-5,7\n");
        write("node/node0/cpulist", "0-3\n");
        write("node/node1/cpulist", "4-7\n");
        write("node/online", "0-1\n");
        let machine = Machine::read(root.path(), [0, 1, 2, 3, 4, 5]);
        (root, machine)
    }

    #[test]
    fn a_core_that_cannot_be_had_is_one_line_that_says_why_and_which_can() {
        let (_root, machine) = two_nodes();
        assert_eq!(machine.check(5), Ok(()));
        for (core, why, which) in [
            (8, "there is no core 8", "0-7"),
            (6, "core 6 is offline", "0-5,7"),
            (7, "core 7 is not this process's", "0-5"),
            (u32::MAX, "there is no core", "0-7"),
        ] {
            let line = machine.check(core).unwrap_err();
            assert!(line.contains(why) && line.contains(which) && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn cores_on_different_nodes_are_noted_and_on_one_are_not() {
        let (_root, machine) = two_nodes();
        assert_eq!(
            (machine.node_of(3), machine.node_of(4), machine.node_of(9)),
            (Some(0), Some(1), None)
        );
        let who = |cores: &[u32]| -> Vec<_> {
            cores.iter().map(|core| (format!("nf{core}"), *core)).collect()
        };
        assert_eq!(machine.distance_note(&who(&[0, 3, 1])), None);
        assert_eq!(machine.distance_note(&who(&[4])), None);
        let note = machine.distance_note(&who(&[0, 3, 5, 4])).unwrap();
        assert!(note.starts_with("nf0 on core 0 (node 0) and nf5 on core 5 (node 1)"), "{note}");
    }

    #[test]
    fn a_machine_that_tells_nothing_has_the_cores_of_the_affinity_mask() {
        let empty = tempfile::tempdir().unwrap();
        let machine = Machine::read(empty.path(), [2, 3]);
        assert_eq!(machine.check(3), Ok(()));
        assert!(machine.check(0).unwrap_err().contains("cores 2-3"));
        assert_eq!(machine.distance_note(&[("a".into(), 2), ("b".into(), 3)]), None);
    }

    #[test]
    fn this_machine_has_a_core_and_not_a_million() {
        let machine = Machine::this();
        assert!(machine.allowed.iter().any(|core| machine.check(*core).is_ok()));
        assert!(machine.check(1_000_000).is_err());
    }

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        for text in ["0", "0-3", "0-1,4,6-9", ""] {
            assert_eq!(core_list(cores(text).unwrap()), text);
        }
        assert_eq!(cores("0-x"), None);
    }
}
