//! What the fake manager shows.

use nflib::control::spec::Value;
use nflib::control::{
    Accounting, Applied, ChainSpec, ChainStatus, Change, ChangeOf, DropStatus, ExplainedHop,
    ExplainedTable, Explanation, FlowStatus, MatchSpec, NfStatus, PortStatus, Reply, Request,
    RuleSpec, RuleStatus, ServiceRef, ServiceStatus, Status, ThenSpec, WorkerStatus,
};

/// A manager with something of everything, `s` seconds old; its counters grow by the second.
pub fn status(s: u64) -> Status {
    Status {
        version: "9.9.9".into(),
        pid: 4711,
        uptime_s: s as f64,
        at_ns: s * 1_000_000_000,
        ports: vec![PortStatus {
            name: "left".into(),
            backend: "pcap".into(),
            link: "up".into(),
            rx_pkts: 1000 * s,
            rx_bytes: 100_000 * s,
            ..Default::default()
        }],
        nfs: vec![NfStatus {
            instance: 3,
            service: 1,
            service_name: "fw".into(),
            name: "forward".into(),
            state: "running".into(),
            rx_pkts: 1000 * s,
            ..Default::default()
        }],
        services: vec![ServiceStatus {
            id: 1,
            name: "fw".into(),
            wanted: Some(1),
            instances: vec![3],
            ..Default::default()
        }],
        chains: vec![ChainStatus {
            id: 2,
            spec: chain("web"),
            pkts: 1000 * s,
            bytes: 100_000 * s,
            missing: vec![],
            ..Default::default()
        }],
        rules: vec![rule(7), RuleStatus { id: 8, ..in_table(rule(8), 1) }],
        rule_count: 2,
        drops: vec![DropStatus {
            place: "service:1".into(),
            reason: "nf_drop".into(),
            pkts: 10 * s,
        }],
        accounting: Accounting { balanced: true, ..Default::default() },
        workers: vec![WorkerStatus { turns: 100 * s, idle_turns: 75 * s, ..Default::default() }],
        ..Default::default()
    }
}

pub fn chain(name: &str) -> ChainSpec {
    ChainSpec {
        name: name.into(),
        services: vec![ServiceRef::Name("fw".into())],
        end: "egress".into(),
        ..Default::default()
    }
}

pub fn rule(id: u64) -> RuleStatus {
    let spec = RuleSpec {
        priority: 100,
        matches: MatchSpec { tp_dst: Some(Value::Int(80)), ..Default::default() },
        then: ThenSpec { chain: Some("web".into()), ..Default::default() },
        ..Default::default()
    };
    RuleStatus { id, spec, ..Default::default() }
}

fn in_table(mut rule: RuleStatus, table: u8) -> RuleStatus {
    rule.spec.table = table;
    rule
}

pub fn applied() -> Applied {
    Applied {
        changes: vec![Change {
            of: ChangeOf::Chain,
            name: "web".into(),
            before: None,
            after: Some("fw; end egress".into()),
        }],
        notes: vec!["no rule leads into chain web".into()],
        generation: 5,
        moved_share: 0.25,
        took_us: 1500,
        ..Default::default()
    }
}

pub fn flow() -> FlowStatus {
    FlowStatus {
        key: MatchSpec { tp_dst: Some(Value::Int(80)), ..Default::default() },
        rule: Some(7),
        then: "chain=web".into(),
        pkts: 5,
        bytes: 500,
        idle_s: 0.5,
    }
}

pub fn explanation() -> Explanation {
    Explanation {
        key: MatchSpec { tp_dst: Some(Value::Int(80)), ..Default::default() },
        flow_hash: 0x1234,
        tables: vec![ExplainedTable { table: 0, rule: Some(rule(7)), also_matching: vec![] }],
        chain: Some("web".into()),
        hops: vec![ExplainedHop {
            chain: "web".into(),
            hop: 0,
            service: "fw".into(),
            instance: Some(3),
            why: "the only instance".into(),
            via: "direct".into(),
        }],
        end: "out=right".into(),
    }
}

/// The answers of a manager that does whatever it is asked; each status is a second older.
pub fn willing() -> impl Fn(&Request) -> Option<Reply> + Send + Sync {
    let age_s = std::sync::atomic::AtomicU64::new(1);
    move |request| {
        Some(match request {
            Request::Status => {
                let s = age_s.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Reply::Status(Box::new(status(s)))
            }
            Request::Apply { .. } | Request::Edit { .. } => Reply::Applied(applied()),
            Request::Flows { .. } => Reply::Flows { flows: vec![flow()], total: 90 },
            Request::Explain { .. } => Reply::Explained(Box::new(explanation())),
            Request::Call { payload, .. } => {
                Reply::Called { answers: vec![(3, Ok(payload.clone()))] }
            }
            _ => Reply::Done,
        })
    }
}
