//! Which NUMA node cores, devices and the packet region are on, and whether they suit each other.
//!
//! A device that writes into memory of another node, or a worker that reads there, pays the way
//! between the sockets for each packet. Nothing is moved here: what does not suit is said once, with
//! what to do.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

/// A node's number, as the kernel counts.
pub type Node = u32;

/// The node of a core; `None` where the kernel does not tell.
#[must_use]
pub fn node_of_core(core: u32) -> Option<Node> {
    node_in(Path::new(&format!("/sys/devices/system/cpu/cpu{core}")))
}

/// The node whose directory a core's directory links to.
fn node_in(core: &Path) -> Option<Node> {
    let entries = fs::read_dir(core).ok()?;
    entries
        .filter_map(Result::ok)
        .find_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
}

/// The node that has most pages of the mapping which begins at `address`.
#[must_use]
pub fn node_of_mapping(address: usize) -> Option<Node> {
    node_in_maps(&fs::read_to_string("/proc/self/numa_maps").ok()?, address)
}

/// The same, from a text as in numa(7).
fn node_in_maps(maps: &str, address: usize) -> Option<Node> {
    let start = format!("{address:x}");
    let line = maps.lines().find(|line| line.split(' ').next() == Some(&start))?;
    let pages = |word: &str| {
        let (node, pages) = word.strip_prefix('N')?.split_once('=')?;
        Some((pages.parse::<u64>().ok()?, node.parse().ok()?))
    };
    line.split(' ').filter_map(pages).max_by_key(|&(pages, _)| pages).map(|(_, node)| node)
}

/// A worker's place: its number, its core, and the core's node.
pub type WorkerPlace = (u16, u32, Node);

/// What lies far from a worker, a line each, with what to do. `ports` are names and nodes.
#[must_use]
pub fn mismatches(
    workers: &[WorkerPlace],
    region: Option<Node>,
    ports: &[(&str, Node)],
) -> Vec<String> {
    let mut lines = Vec::new();
    for &(worker, core, node) in workers {
        if let Some(other) = region.filter(|&other| other != node) {
            lines.push(format!(
                "worker {worker} runs on core {core} of NUMA node {node} and the packet region is on \
                 node {other}: start the manager under `numactl --preferred={node}`, or put cores of \
                 node {other} into manager.cores (/sys/devices/system/node/node{other}/cpulist)"
            ));
        }
        for (port, other) in ports.iter().filter(|(_, other)| *other != node) {
            lines.push(format!(
                "worker {worker} runs on core {core} of NUMA node {node} and port {port:?} is on node \
                 {other}: put cores of node {other} into manager.cores \
                 (/sys/devices/system/node/node{other}/cpulist)"
            ));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_is_where_most_of_its_pages_are() {
        let maps = "7f00 default anon=1 N0=1 kernelpagesize_kB=4\n\
                    7f0000200000 default file=/memfd:region dirty=16 N0=3 N1=13 kernelpagesize_kB=2048\n\
                    7f0000400000 default file=/memfd:other\n";
        assert_eq!(node_in_maps(maps, 0x7f00_0020_0000), Some(1));
        assert_eq!(node_in_maps(maps, 0x7f00_0040_0000), None, "no page of it was touched");
        assert_eq!(node_in_maps(maps, 0x7f00_0020_0001), None);
    }

    #[test]
    fn a_core_s_node_is_the_one_its_directory_names() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["cache", "nodes", "node3", "online"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert_eq!(node_in(dir.path()), Some(3));
        assert_eq!(node_in(&dir.path().join("cache")), None);
        assert_eq!(node_in(&dir.path().join("absent")), None);
    }

    #[test]
    fn only_what_is_far_is_said_with_what_to_do() {
        let near = mismatches(&[(0, 2, 0), (1, 3, 0)], Some(0), &[("lan", 0)]);
        assert!(near.is_empty(), "{near:?}");
        assert!(mismatches(&[(0, 2, 0)], None, &[]).is_empty(), "nothing is known");
        let far = mismatches(&[(0, 2, 0), (1, 9, 1)], Some(1), &[("lan", 0), ("wan", 1)]);
        let said = |worker: &str, what: &str| {
            far.iter().any(|line| line.contains(worker) && line.contains(what))
        };
        assert_eq!(far.len(), 3, "{far:?}");
        assert!(said("worker 0", "packet region is on node 1"));
        assert!(said("worker 0", "port \"wan\" is on node 1"));
        assert!(said("worker 1 runs on core 9", "port \"lan\" is on node 0"));
        assert!(far.iter().all(|line| line.contains("manager.cores")));
    }
}
