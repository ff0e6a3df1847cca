//! What the manager prints for people: at start, and at the end.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)] // This is the program's output.

use nflib::control::Status;

use crate::config::Config;
use crate::fabric::Fabric;

/// What a checked configuration would start.
pub fn config_summary(config: &Config) {
    let ports: Vec<_> = config.ports.iter().map(|port| port.name.as_str()).collect();
    println!(
        "configuration is good: {} worker(s), ports {}, chain {:?}, {} buffers of {} bytes",
        config.manager.workers,
        ports.join(", "),
        config.chain.services,
        config.pool.buffers,
        config.pool.buffer_bytes
    );
}

/// What was started, and what was got instead of what was asked for.
pub fn started(config: &Config, fabric: &Fabric) {
    let geometry = fabric.region().geometry();
    let pages = if fabric.hugepages() { "2 MiB hugepages" } else { "ordinary pages" };
    println!(
        "region: {} buffers of {} bytes, {} MiB on {pages}",
        geometry.buffers,
        geometry.stride_bytes,
        geometry.len_bytes() >> 20
    );
    if !fabric.hugepages() && config.pool.hugepages != nflib::shm::HugePages::Off {
        println!(
            "notice: too few free hugepages, so ordinary pages are used; for speed: \
             sysctl vm.nr_hugepages={}",
            geometry.len_bytes().div_ceil(2 << 20)
        );
    }
    for port in fabric.ports() {
        let info = port.port.info();
        println!(
            "port {}: {} {} ({}), {} queue(s), link {}, mtu {}",
            port.name,
            info.backend,
            info.device,
            info.driver,
            info.queues,
            crate::status::link_name(info.link),
            info.mtu_bytes
        );
    }
    println!(
        "ready: chain {:?}, control socket {}",
        config.chain.services,
        config.manager.socket.display()
    );
}

/// Where every packet went.
pub fn final_summary(status: &Status) {
    let books = &status.accounting;
    println!(
        "stopped: rx {} = tx {} + dropped {} + held {} ({})",
        books.rx_pkts,
        books.tx_pkts,
        books.dropped_pkts,
        books.held_pkts,
        if books.balanced { "balanced" } else { "NOT balanced" }
    );
    for drop in &status.drops {
        println!("  dropped at {}: {} {}", drop.place, drop.pkts, drop.reason);
    }
}
