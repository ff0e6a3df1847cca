//! What `millrace status` shows, put together from counters that others write.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Instant;

use nflib::control::{
    Accounting, ChainStatus, DropStatus, MAX_RULES_SHOWN, NfStatus, PoolStatus, PortStatus,
    RuleStatus, ServiceStatus, Status, WorkerStatus,
};
use nix::time::{ClockId, clock_gettime};

use crate::conductor::Conductor;
use crate::fabric::{Fabric, FabricError, FabricPort};
use crate::plan::Instances;
use crate::poll_loop::Snapshot;
use crate::ports::LinkState;
use crate::registry::NfState;
use crate::stats::{Counter, DropCounters, DropReason, QueueCounters};
use crate::supervisor;

/// Takes a status.
///
/// # Errors
/// [`FabricError::WorkerLost`].
pub fn take(
    fabric: &mut Fabric,
    conductor: &Conductor,
    started: Instant,
) -> Result<Status, FabricError> {
    let books = fabric.snapshot()?;
    let model = conductor.model();
    let ids: Vec<_> = model.rules().take(MAX_RULES_SHOWN).map(|rule| rule.id()).collect();
    let rules = rules(fabric, conductor, &ids)?;
    let total = books.buffers_total;
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
        nfs: nfs(&books, conductor),
        services: services(fabric, conductor),
        chains: chains(&books, conductor),
        rules,
        rule_count: model.rule_count() as u64,
        deaths: Default::default(),
        plan: conductor.history(),
        drops: drops(fabric, conductor),
        accounting: Accounting {
            rx_pkts: books.rx_pkts,
            lent_pkts: books.lent_pkts,
            tx_pkts: books.tx_pkts,
            dropped_pkts: books.dropped_pkts,
            held_pkts: books.held_pkts,
            balanced: books.balanced(),
        },
        pool: PoolStatus {
            total,
            free: books.buffers_free,
            at_nfs: books.buffers_at_nfs,
            parked: books.parked_pkts,
            at_ports: match books.ports_untold {
                false => books.buffers_at_ports,
                true => total
                    .saturating_sub(books.buffers_free + books.buffers_at_nfs + books.parked_pkts),
            },
            lost: books.buffers_lost(),
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

/// The time, nanoseconds of CLOCK_MONOTONIC.
#[must_use]
pub fn now_ns() -> u64 {
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

fn nfs(books: &Snapshot, conductor: &Conductor) -> Vec<NfStatus> {
    let registry = conductor.registry();
    let status = |record: &crate::registry::NfRecord| {
        let service = conductor.model().service(record.service);
        let neighbours = conductor.edges().out_of(record.nf);
        NfStatus {
            direct_to: neighbours.filter_map(|nf| Some(registry.by_number(nf)?.instance)).collect(),
            flow_share: conductor.flow_share(record),
            credit_pkts: record.isolated.then_some(books.credits.0),
            state_generation: conductor.states().of(record.instance).map_or(0, |s| s.generation),
            ..record.status(service.map_or("", |service| service.name()))
        }
    };
    registry.nfs().map(status).collect()
}

/// Rules with what they have seen, by their numbers.
///
/// # Errors
/// [`FabricError::WorkerLost`].
pub fn rules(
    fabric: &mut Fabric,
    conductor: &Conductor,
    ids: &[u64],
) -> Result<Vec<RuleStatus>, FabricError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let counts = fabric.count_rules(ids)?;
    let seconds = |ns| std::time::Duration::from_nanos(ns).as_secs_f64();
    let status = |(&id, count): (&u64, crate::classify::RuleCount)| {
        let rule = conductor.model().rule(id)?;
        Some(RuleStatus {
            id,
            spec: rule.spec(),
            pkts: count.pkts,
            bytes: count.bytes,
            age_s: seconds(count.age_ns),
            idle_s: seconds(count.idle_ns),
        })
    };
    Ok(ids.iter().zip(counts).filter_map(status).collect())
}

fn services(fabric: &Fabric, conductor: &Conductor) -> Vec<ServiceStatus> {
    let slots = conductor.planner().services_by_slot();
    let of = |service, draining| {
        let is_draining =
            |state: &NfState| matches!(state, NfState::Draining(_) | NfState::Leaving);
        let nfs = conductor.registry().nfs().filter(move |nf| nf.service == service);
        let serving = nfs.filter(|nf| nf.state != NfState::Standby);
        serving.filter(move |nf| is_draining(&nf.state) == draining).map(|nf| nf.instance).collect()
    };
    let at_service = |service: &crate::model::Service, of: fn(&DropCounters) -> &Counter| -> u64 {
        let slot = slots.iter().position(|&id| id == service.id);
        let counters = fabric.workers().filter_map(|worker| worker.service_drops.get(slot?));
        counters.map(|drops| of(drops).get()).sum()
    };
    let status = |service: &crate::model::Service| ServiceStatus {
        id: service.id,
        name: service.name().to_owned(),
        wanted: service.wanted_instances(),
        instances: of(service.id, false),
        draining: of(service.id, true),
        restarts: 0,
        waiting: None,
        isolated: service.spec.isolated,
        shared_region: service.spec.shared_region,
        read_only: service.spec.access.is_read_only(),
        confine: service.wanted_instances().map(|_| supervisor::confinement(service.spec.confine)),
        upgrade: None,
        drops: slots
            .iter()
            .position(|&id| id == service.id)
            .map(|slot| service_drops(fabric, slot))
            .unwrap_or_default(),
        bypassed_pkts: at_service(service, |drops| &drops.bypassed_pkts),
        waiting_pkts: at_service(service, |drops| &drops.waiting_pkts),
    };
    conductor.model().services().map(|service| status(service)).collect()
}

fn chains(books: &Snapshot, conductor: &Conductor) -> Vec<ChainStatus> {
    let plan = conductor.planner().current();
    let missing = |chain: &crate::model::Chain| -> Vec<String> {
        let absent = |id| plan.service(id).is_none_or(|s| s.instances == Instances::None);
        let mut names: Vec<_> = chain
            .services
            .iter()
            .filter(|&&id| absent(id))
            .filter_map(|&id| Some(conductor.model().service(id)?.name().to_owned()))
            .collect();
        names.dedup();
        names
    };
    let status = |chain: &crate::model::Chain| {
        let (pkts, bytes) = books.chains.get(usize::from(chain.id)).copied().unwrap_or_default();
        ChainStatus {
            id: chain.id,
            spec: chain.spec.clone(),
            pkts,
            bytes,
            missing: missing(chain),
            held_pkts: books.held_by_chain.get(usize::from(chain.id)).copied().unwrap_or(0),
            credit_pkts: books.credits.1,
        }
    };
    conductor.model().chains().map(|chain| status(chain)).collect()
}

fn service_drops(fabric: &Fabric, slot: usize) -> BTreeMap<String, u64> {
    let workers: Vec<_> = fabric.workers().collect();
    by_reason(workers.iter().filter_map(|worker| Some(worker.service_drops.get(slot)?.as_ref())))
}

/// The drop ledger: place × reason × count.
fn drops(fabric: &Fabric, conductor: &Conductor) -> Vec<DropStatus> {
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
    for (slot, &service) in conductor.planner().services_by_slot().iter().enumerate() {
        let name = conductor.model().service(service).map(|service| service.name().to_owned());
        let drops = service_drops(fabric, slot);
        add(format!("service:{}", name.unwrap_or_else(|| service.to_string())), drops);
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
