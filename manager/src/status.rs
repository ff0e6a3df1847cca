//! What `millrace status` shows, put together from counters that others write.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Instant;

use nflib::control::spec::DEFAULT_CHAIN_NAME;
use nflib::control::{
    Accounting, ChainSpec, ChainStatus, DropStatus, PoolStatus, PortStatus, ServiceRef, Status,
    WorkerStatus,
};
use nix::time::{ClockId, clock_gettime};

use crate::fabric::{Fabric, FabricError, FabricPort};
use crate::ports::LinkState;
use crate::registry::Registry;
use crate::stats::{Counter, DropCounters, DropReason, QueueCounters};

/// Takes a status.
///
/// # Errors
/// [`FabricError::WorkerLost`].
pub fn take(
    fabric: &mut Fabric,
    registry: &Registry,
    started: Instant,
) -> Result<Status, FabricError> {
    let books = fabric.snapshot()?;
    let total = u64::from(fabric.region().geometry().buffers);
    let mut ports: Vec<_> =
        fabric.ports().iter().map(|port| port_status(port, fabric.ports())).collect();
    for &number in &books.exhausted {
        if let Some(port) = ports.get_mut(usize::from(number)) {
            port.exhausted = true;
        }
    }
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: nix::unistd::getpid().as_raw(),
        uptime_s: started.elapsed().as_secs_f64(),
        at_ns: now_ns(),
        ports,
        nfs: registry.nfs().iter().map(crate::registry::NfRecord::status).collect(),
        services: Vec::new(),
        chains: vec![ChainStatus {
            spec: ChainSpec {
                name: DEFAULT_CHAIN_NAME.to_owned(),
                services: fabric.chain().order().map(ServiceRef::Id).collect(),
                end: "egress".to_owned(),
                ..ChainSpec::default()
            },
            ..ChainStatus::default()
        }],
        rules: Vec::new(),
        rule_count: 0,
        plan: nflib::control::PlanStatus::default(),
        drops: drops(fabric),
        accounting: Accounting {
            rx_pkts: books.rx_pkts,
            tx_pkts: books.tx_pkts,
            dropped_pkts: books.dropped_pkts,
            held_pkts: books.held_pkts,
            balanced: books.balanced(),
        },
        pool: PoolStatus {
            total,
            free: books.buffers_free,
            at_nfs: books.buffers_at_nfs,
            at_ports: total.saturating_sub(books.buffers_free + books.buffers_at_nfs),
            buffer_bytes: fabric.region().geometry().stride_bytes,
        },
        workers: fabric
            .workers()
            .map(|worker| WorkerStatus {
                worker: worker.number,
                core: worker.core,
                turns: worker.counters.turns.get(),
                idle_turns: worker.counters.idle_turns.get(),
            })
            .collect(),
        hugepages: fabric.hugepages(),
    })
}

fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|now| std::time::Duration::from(now).as_nanos())
        .ok()
        .and_then(|ns| u64::try_from(ns).ok())
        .unwrap_or(0)
}

fn port_status(port: &FabricPort, all: &[FabricPort]) -> PortStatus {
    let info = port.port.info();
    let sum = |of: fn(&QueueCounters) -> &Counter| {
        port.counters.iter().map(|queue| of(queue).get()).sum::<u64>()
    };
    PortStatus {
        name: port.name.clone(),
        backend: info.backend,
        device: info.device,
        driver: info.driver,
        link: link_name(info.link).to_owned(),
        speed_mbps: info.speed_mbps,
        mac: info.mac,
        mtu_bytes: info.mtu_bytes,
        promiscuous: info.promiscuous,
        queues: info.queues,
        egress: port.egress.and_then(|e| all.get(usize::from(e))).map(|p| p.name.clone()),
        rx_pkts: sum(|c| &c.rx_pkts),
        rx_bytes: sum(|c| &c.rx_bytes),
        tx_pkts: sum(|c| &c.tx_pkts),
        tx_bytes: sum(|c| &c.tx_bytes),
        drops: by_reason(port.counters.iter().map(|queue| &queue.drops)),
        hw_stats: port.port.hw_stats().into_iter().collect(),
        exhausted: false,
    }
}

/// The name of a link state in commands and JSON.
#[must_use]
pub fn link_name(link: LinkState) -> &'static str {
    match link {
        LinkState::Up => "up",
        LinkState::Down => "down",
        LinkState::Gone => "gone",
    }
}

fn by_reason<'a>(counters: impl Iterator<Item = &'a DropCounters>) -> BTreeMap<String, u64> {
    let mut sum = BTreeMap::new();
    for (reason, pkts) in counters.flat_map(DropCounters::nonzero) {
        *sum.entry(reason.name().to_owned()).or_default() += pkts;
    }
    sum
}

/// The drop ledger: place × reason × count.
fn drops(fabric: &Fabric) -> Vec<DropStatus> {
    let mut ledger = Vec::new();
    let mut add = |place: String, drops: BTreeMap<String, u64>| {
        ledger.extend(drops.into_iter().map(|(reason, pkts)| DropStatus {
            place: place.clone(),
            reason,
            pkts,
        }));
    };
    for port in fabric.ports() {
        let drops = by_reason(port.counters.iter().map(|queue| &queue.drops));
        add(format!("port:{}", port.name), drops);
    }
    for (slot, service) in fabric.chain().services().iter().enumerate() {
        let workers: Vec<_> = fabric.workers().collect();
        let drops =
            by_reason(workers.iter().filter_map(|worker| worker.counters.service_drops(slot)));
        add(format!("service:{service}"), drops);
    }
    for worker in fabric.workers() {
        add(
            format!("worker:{}", worker.number),
            by_reason(std::iter::once(&worker.counters.drops)),
        );
    }
    ledger
}

/// Every reason a packet can be dropped for, for documentation and completions.
#[must_use]
pub fn drop_reasons() -> Vec<&'static str> {
    DropReason::ALL.iter().map(|reason| reason.name()).collect()
}
