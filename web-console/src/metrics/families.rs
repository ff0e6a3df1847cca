//! Which figures of a status are metrics, under which names.
#![forbid(unsafe_code)]

use nflib::control::{ChainStatus, NfStatus, PortStatus, ServiceStatus, Status, WorkerStatus};

use super::text::Writer;

/// Driver counters of one port that are shown; drivers have hundreds.
const MAX_DRIVER_COUNTERS: usize = 64;

/// Writes every family.
pub fn write(status: &Status, out: &mut Writer) {
    manager(status, out);
    books(status, out);
    buffers(status, out);
    ports(&status.ports, out);
    drops(status, out);
    nfs(&status.nfs, out);
    nf_packets(&status.nfs, out);
    services(&status.services, out);
    chains(&status.chains, out);
    rules(status, out);
    workers(&status.workers, out);
    deaths_and_plan(status, out);
}

fn manager(status: &Status, out: &mut Writer) {
    out.info("millrace_manager", "The manager's release.")
        .value(&[("version", &status.version)], 1.0);
    out.gauge("millrace_manager_uptime_seconds", "Since the manager started.")
        .value(&[], status.uptime_s);
}

fn books(status: &Status, out: &mut Writer) {
    let books = &status.accounting;
    let sums: [(&str, &str, u64); 4] = [
        ("millrace_received_packets", "Packets that entered by any port.", books.rx_pkts),
        ("millrace_lent_packets", "Empty buffers lent to NFs to make packets in.", books.lent_pkts),
        ("millrace_transmitted_packets", "Packets that left by any port.", books.tx_pkts),
        ("millrace_all_dropped_packets", "Packets dropped, all reasons.", books.dropped_pkts),
    ];
    for (name, help, value) in sums {
        out.counter(name, help).count(&[], value);
    }
    out.gauge("millrace_held_packets", "Packets inside now.").count(&[], books.held_pkts);
    out.gauge("millrace_books_balanced", "Whether received + lent = transmitted + dropped + held.")
        .count(&[], u64::from(books.balanced));
}

fn buffers(status: &Status, out: &mut Writer) {
    let pool = &status.pool;
    out.gauge("millrace_pool_buffers", "All buffers.").count(&[], pool.total);
    let mut places =
        out.gauge("millrace_pool_place_buffers", "Buffers by who has them; lost: nobody.");
    for (place, buffers) in [
        ("free", pool.free),
        ("nfs", pool.at_nfs),
        ("parked", pool.parked),
        ("ports", pool.at_ports),
    ] {
        places.count(&[("place", place)], buffers);
    }
    places.value(&[("place", "lost")], pool.lost as f64);
    out.gauge("millrace_pool_buffer_size_bytes", "Size of a buffer.")
        .count(&[], u64::from(pool.buffer_bytes));
    out.gauge("millrace_pool_hugepages", "Whether the buffers lie on hugepages.")
        .count(&[], u64::from(status.hugepages));
}

fn ports(ports: &[PortStatus], out: &mut Writer) {
    let mut info = out.info("millrace_port", "What a port is.");
    for port in ports {
        let mac = port.mac.as_deref().unwrap_or("");
        info.value(
            &[
                ("port", &port.name),
                ("backend", &port.backend),
                ("device", &port.device),
                ("driver", &port.driver),
                ("mac", mac),
            ],
            1.0,
        );
    }
    type Figure = fn(&PortStatus) -> u64;
    let counters: [(&str, &str, Figure); 4] = [
        ("millrace_port_receive_packets", "Packets received.", |port| port.rx_pkts),
        ("millrace_port_receive_bytes", "Bytes received.", |port| port.rx_bytes),
        ("millrace_port_transmit_packets", "Packets sent.", |port| port.tx_pkts),
        ("millrace_port_transmit_bytes", "Bytes sent.", |port| port.tx_bytes),
    ];
    for (name, help, figure) in counters {
        let mut family = out.counter(name, help);
        for port in ports {
            family.count(&[("port", &port.name)], figure(port));
        }
    }
    let gauges: [(&str, &str, Figure); 4] = [
        ("millrace_port_up", "Whether the link is up.", |port| u64::from(port.link == "up")),
        ("millrace_port_queues", "Queues of the port.", |port| u64::from(port.queues)),
        ("millrace_port_mtu_bytes", "Longest network-layer packet.", |port| {
            u64::from(port.mtu_bytes)
        }),
        ("millrace_port_exhausted", "Whether a finite source has nothing more.", |port| {
            u64::from(port.exhausted)
        }),
    ];
    for (name, help, figure) in gauges {
        let mut family = out.gauge(name, help);
        for port in ports {
            family.count(&[("port", &port.name)], figure(port));
        }
    }
    let help = "The driver's own counters, by its own names, of queues too where it has them.";
    let mut family = out.unknown("millrace_port_driver", help);
    for port in ports {
        for (counter, value) in port.hw_stats.iter().take(MAX_DRIVER_COUNTERS) {
            family.count(&[("port", &port.name), ("counter", counter)], *value);
        }
    }
}

fn drops(status: &Status, out: &mut Writer) {
    let mut family = out.counter(
        "millrace_dropped_packets",
        "Packets dropped, by place (port:NAME, service:NAME, nf:INSTANCE, worker:N) and reason.",
    );
    for drop in &status.drops {
        family.count(&[("place", &drop.place), ("reason", &drop.reason)], drop.pkts);
    }
}

fn nfs(nfs: &[NfStatus], out: &mut Writer) {
    let mut info = out.info("millrace_nf", "What an NF is. Its name is its own word.");
    for nf in nfs {
        let core = nf.core.map_or_else(String::new, |core| core.to_string());
        info.value(
            &[
                ("nf", &nf.instance.to_string()),
                ("service", &nf.service_name),
                ("name", &nf.name),
                ("state", &nf.state),
                ("core", &core),
            ],
            1.0,
        );
    }
    type Figure = fn(&NfStatus) -> f64;
    let gauges: [(&str, &str, Figure); 6] = [
        ("millrace_nf_held_packets", "Packets it has now, or that wait for it.", |nf| {
            nf.held_pkts as f64
        }),
        ("millrace_nf_flow_share_ratio", "Share of its service's flows that it gets.", |nf| {
            nf.flow_share
        }),
        ("millrace_nf_packet_cost_seconds", "CPU time a packet costs, by its account.", |nf| {
            nf.cost_ns / 1e9
        }),
        ("millrace_nf_stuck", "Whether it stands still though packets wait for it.", |nf| {
            f64::from(u8::from(nf.stuck.is_some()))
        }),
        ("millrace_nf_running", "Whether it gets flows: state running.", |nf| {
            f64::from(u8::from(nf.state == "running"))
        }),
        ("millrace_nf_uptime_seconds", "Since it attached.", |nf| nf.uptime_s),
    ];
    for (name, help, figure) in gauges {
        let mut family = out.gauge(name, help);
        for nf in nfs {
            let instance = nf.instance.to_string();
            family.value(&[("nf", &instance), ("service", &nf.service_name)], figure(nf));
        }
    }
}

fn nf_packets(nfs: &[NfStatus], out: &mut Writer) {
    type Figure = fn(&NfStatus) -> u64;
    let counters: [(&str, &str, Figure); 7] = [
        ("millrace_nf_receive_packets", "Packets delivered to it.", |nf| nf.rx_pkts),
        ("millrace_nf_transmit_packets", "Packets it returned.", |nf| nf.tx_pkts),
        ("millrace_nf_drop_packets", "Packets it returned with action Drop.", |nf| nf.drop_pkts),
        ("millrace_nf_ring_full_packets", "Packets dropped because its ring was full.", |nf| {
            nf.ring_full_pkts
        }),
        ("millrace_nf_from_manager_packets", "Packets that the manager handed over.", |nf| {
            nf.from_manager_pkts
        }),
        ("millrace_nf_to_manager_packets", "Packets returned to the manager.", |nf| {
            nf.to_manager_pkts
        }),
        ("millrace_nf_violations", "Invalid descriptors or indices it returned.", |nf| {
            nf.violations
        }),
    ];
    for (name, help, figure) in counters {
        let mut family = out.counter(name, help);
        for nf in nfs {
            let instance = nf.instance.to_string();
            family.count(&[("nf", &instance), ("service", &nf.service_name)], figure(nf));
        }
    }
}

fn services(services: &[ServiceStatus], out: &mut Writer) {
    type Figure = fn(&ServiceStatus) -> Option<u64>;
    let gauges: [(&str, &str, Figure); 5] = [
        ("millrace_service_instances", "Instances that get flows now.", |service| {
            Some(service.instances.len() as u64)
        }),
        ("millrace_service_wanted_instances", "Instances wanted; none by hand.", |service| {
            service.wanted.map(u64::from)
        }),
        ("millrace_service_draining_instances", "Instances that drain.", |service| {
            Some(service.draining.len() as u64)
        }),
        ("millrace_service_waiting_packets", "Packets that wait for an instance.", |service| {
            Some(service.waiting_pkts)
        }),
        ("millrace_service_upgrading", "Whether its NFs are being exchanged.", |service| {
            Some(u64::from(service.upgrade.is_some()))
        }),
    ];
    for (name, help, figure) in gauges {
        let mut family = out.gauge(name, help);
        for service in services {
            if let Some(value) = figure(service) {
                family.count(&[("service", &service.name)], value);
            }
        }
    }
    let counters: [(&str, &str, Figure); 2] = [
        ("millrace_service_restarts", "NFs started again after their death.", |service| {
            Some(service.restarts)
        }),
        (
            "millrace_service_bypassed_packets",
            "Packets that skipped it for want of an instance.",
            |service| Some(service.bypassed_pkts),
        ),
    ];
    for (name, help, figure) in counters {
        let mut family = out.counter(name, help);
        for service in services {
            if let Some(value) = figure(service) {
                family.count(&[("service", &service.name)], value);
            }
        }
    }
}

fn chains(chains: &[ChainStatus], out: &mut Writer) {
    type Figure = fn(&ChainStatus) -> u64;
    let counters: [(&str, &str, Figure); 2] = [
        ("millrace_chain_packets", "Packets sent into the chain.", |chain| chain.pkts),
        ("millrace_chain_bytes", "Bytes sent into the chain.", |chain| chain.bytes),
    ];
    for (name, help, figure) in counters {
        let mut family = out.counter(name, help);
        for chain in chains {
            family.count(&[("chain", &chain.spec.name)], figure(chain));
        }
    }
    let gauges: [(&str, &str, Figure); 3] = [
        ("millrace_chain_held_packets", "Its packets with NFs of the trusted domain.", |chain| {
            chain.held_pkts
        }),
        ("millrace_chain_credit_packets", "Packets that these may have.", |chain| {
            chain.credit_pkts
        }),
        ("millrace_chain_missing_services", "Its services without an instance.", |chain| {
            chain.missing.len() as u64
        }),
    ];
    for (name, help, figure) in gauges {
        let mut family = out.gauge(name, help);
        for chain in chains {
            family.count(&[("chain", &chain.spec.name)], figure(chain));
        }
    }
}

fn rules(status: &Status, out: &mut Writer) {
    out.gauge("millrace_rules", "Rules of the flow table.").count(&[], status.rule_count);
    let help = "Packets that a rule with a name matched.";
    let mut family = out.counter("millrace_rule_packets", help);
    for rule in &status.rules {
        if let Some(name) = &rule.spec.name {
            family.count(&[("rule", name)], rule.pkts);
        }
    }
}

fn workers(workers: &[WorkerStatus], out: &mut Writer) {
    type Figure = fn(&WorkerStatus) -> u64;
    let counters: [(&str, &str, Figure); 2] = [
        ("millrace_worker_turns", "Turns of a worker's loop.", |worker| worker.turns),
        ("millrace_worker_idle_turns", "Turns that found no packet.", |worker| worker.idle_turns),
    ];
    for (name, help, figure) in counters {
        let mut family = out.counter(name, help);
        for worker in workers {
            let core = worker.core.map_or_else(String::new, |core| core.to_string());
            family
                .count(&[("worker", &worker.worker.to_string()), ("core", &core)], figure(worker));
        }
    }
}

fn deaths_and_plan(status: &Status, out: &mut Writer) {
    let (deaths, plan) = (&status.deaths, &status.plan);
    out.counter("millrace_nf_deaths", "NFs that ended without having been told to.")
        .count(&[], deaths.count);
    out.gauge(
        "millrace_longest_reclaim_seconds",
        "Longest time from a death until its last buffer was back.",
    )
    .value(&[], deaths.longest_reclaim_us as f64 / 1e6);
    let last = deaths.last.last();
    let last_s =
        last.map_or(0.0, |last| last.reclaimed_ns.saturating_sub(last.noticed_ns) as f64 / 1e9);
    out.gauge("millrace_last_reclaim_seconds", "That time at the latest death; 0: none so far.")
        .value(&[], last_s);
    out.gauge("millrace_plan_generation", "Counts the changes of plan.")
        .count(&[], plan.generation);
    out.gauge("millrace_plan_changing", "Whether a change is under way.")
        .count(&[], u64::from(plan.changing));
    out.counter("millrace_plan_parked_packets", "Packets that waited for a change.")
        .count(&[], plan.parked_pkts);
    out.counter("millrace_plan_unordered_changes", "Changes that may have cost order.")
        .count(&[], plan.unordered_changes);
    out.gauge("millrace_plan_longest_wait_seconds", "Longest wait of packets for a change.")
        .value(&[], plan.longest_wait_us as f64 / 1e6);
}
