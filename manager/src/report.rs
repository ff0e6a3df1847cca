//! What the manager prints for people: at start, and at the end.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)] // This is the program's output.

use nflib::control::Status;

use crate::config::Config;
use crate::fabric::Fabric;
use crate::model::Model;

/// What a checked configuration would start, and what to know of it.
pub fn config_summary(config: &Config) {
    let ports: Vec<_> = config.ports.iter().map(|port| port.name.as_str()).collect();
    println!(
        "configuration is good: {} worker(s), ports {}, {}, {} buffers of {} bytes",
        config.manager.workers,
        ports.join(", "),
        model_summary(&config.model),
        config.pool.buffers,
        config.pool.buffer_bytes
    );
    notes(&config.notes);
}

/// What a person should know, a line each.
pub fn notes(notes: &[String]) {
    for note in notes {
        println!("note: {note}");
    }
}

/// `3 services, 2 chains (default, web), 1 rule`.
fn model_summary(model: &Model) -> String {
    const MANY: usize = 8;
    let count = |count: usize, what: &str| {
        let plural = if count == 1 { "" } else { "s" };
        format!("{count} {what}{plural}")
    };
    let mut chains: Vec<_> = model.chains().take(MANY).map(|chain| chain.name()).collect();
    if model.chains().len() > MANY {
        chains.push("…");
    }
    let names = if chains.is_empty() { String::new() } else { format!(" ({})", chains.join(", ")) };
    format!(
        "{}, {}{names}, {}",
        count(model.services().len(), "service"),
        count(model.chains().len(), "chain"),
        count(model.rule_count(), "rule")
    )
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
        "ready: {}, control socket {}",
        model_summary(&config.model),
        config.manager.socket.display()
    );
    notes(&config.notes);
}

/// Where every packet went.
pub fn final_summary(status: &Status) {
    print!("{}", final_books(status));
}

/// Where every packet went: a line of sums, and one for each place and reason of drops.
#[must_use]
pub fn final_books(status: &Status) -> String {
    let books = &status.accounting;
    let verdict = if books.balanced { "balanced" } else { "NOT balanced" };
    let mut text = format!("stopped: {} ({verdict})\n", books.equation());
    for drop in &status.drops {
        text += &format!("  dropped at {}: {} {}\n", drop.place, drop.pkts, drop.reason);
    }
    text
}
