//! The flow table against a list of rules that is searched from its start: any rules, packets,
//! changes and pauses in any order, with and without a cache, must give the same verdicts, counters
//! and timeouts. The universe is small, so that rules overlap and flows collide.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use millrace::flow::{
    Expired, FlowKey, FlowTable, Match, Outcome, Rule, RuleChange, RuleId, RuleTables, Then,
    Timeout, Verdict,
};
use nflib::control::MatchSpec;
use proptest::prelude::*;

const MS: u64 = 1_000_000;
/// How late a timeout may be reported.
const LATE_NS: u64 = 9 * MS;
/// How long a reported rule is left alone.
const AGAIN_NS: u64 = 1000 * MS;

/// A packet of the small universe; each field picks one of a few values.
#[derive(Clone, Copy, Debug)]
struct Packet {
    port: u8,
    tagged: bool,
    src: u8,
    dst: u8,
    tcp: bool,
    tp_dst: u8,
    flags: u8,
    fragment: u8,
}

impl Packet {
    fn frame(self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        if self.tagged {
            frame.extend([0x81, 0, 0, 9]);
        }
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, [0, 0x20, 0][self.fragment as usize]]);
        frame.extend([[0, 0, 5][self.fragment as usize], 64, if self.tcp { 6 } else { 17 }, 0, 0]);
        frame.extend([10, 0, 0, self.src, 10, 0, 1, self.dst]);
        frame.extend([4, 0, 0, 80 + self.tp_dst]);
        if self.tcp {
            frame.extend([
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0x50,
                [2, 16][self.flags as usize],
                0,
                0,
                0,
                0,
                0,
                0,
            ]);
        } else {
            frame.extend([0, 20]);
            frame.extend([0; 14]);
        }
        frame
    }

    fn key(self, metadata: u64) -> FlowKey {
        FlowKey::parse(&self.frame(), self.port, 0, metadata)
    }
}

fn packet() -> impl Strategy<Value = Packet> {
    (0_u8..2, any::<bool>(), 0_u8..4, 0_u8..4, any::<bool>(), 0_u8..3, 0_u8..2, 0_u8..3).prop_map(
        |(port, tagged, src, dst, tcp, tp_dst, flags, fragment)| Packet {
            port,
            tagged,
            src,
            dst,
            tcp,
            tp_dst,
            flags,
            fragment,
        },
    )
}

fn compiled(fields: impl IntoIterator<Item = (&'static str, String)>) -> Match {
    let set: BTreeMap<_, _> = fields.into_iter().filter(|(_, v)| !v.is_empty()).collect();
    let spec: MatchSpec = serde_json::from_value(serde_json::to_value(set).unwrap()).unwrap();
    Match::compile(&spec, &|name| name.parse().ok()).unwrap()
}

/// A match over the same universe, as text; some name one flow, which the table finds by its hash.
fn matching() -> impl Strategy<Value = Match> {
    prop_oneof![2 => wildcard(), 1 => (packet(), any::<bool>()).prop_map(|(p, with_port)| one_flow(p, with_port))]
}

/// The flow of a packet, by its 5-tuple.
fn one_flow(packet: Packet, with_port: bool) -> Match {
    compiled([
        ("in_port", if with_port { packet.port.to_string() } else { String::new() }),
        ("ip_src", format!("10.0.0.{}", packet.src)),
        ("ip_dst", format!("10.0.1.{}", packet.dst)),
        ("ip_proto", if packet.tcp { "tcp" } else { "udp" }.to_owned()),
        ("tp_src", "1024".to_owned()),
        ("tp_dst", (80 + packet.tp_dst).to_string()),
    ])
}

fn wildcard() -> impl Strategy<Value = Match> {
    let pick = |choices: &'static [&'static str]| prop_oneof![3 => Just(""), 2 => prop::sample::select(choices)];
    (
        pick(&["0", "1"]),
        pick(&["none", "any", "9"]),
        pick(&["10.0.0.1", "10.0.0.0/31", "10.0.0.1/255.255.255.253", "10.0.0.0/8"]),
        pick(&["10.0.1.2", "10.0.1.2/31"]),
        prop_oneof![
            3 => Just(("", "", "")),
            1 => Just(("tcp", "", "")),
            2 => prop::sample::select(&[("tcp", "80", ""), ("udp", "81", ""), ("tcp", "0x50/0xfffe", "")][..]),
            1 => Just(("tcp", "", "syn,!ack")),
        ],
        prop_oneof![5 => Just(""), 1 => prop::sample::select(&["no", "any", "first"][..])],
        prop_oneof![2 => Just(""), 1 => prop::sample::select(&["1", "2/2", "0"][..])],
    )
        .prop_map(|(port, vlan, src, dst, (proto, tp_dst, flags), frag, metadata)| {
            let fields = [
                ("in_port", port),
                ("vlan", vlan),
                ("ip_src", src),
                ("ip_dst", dst),
                ("ip_proto", proto),
                ("tp_dst", tp_dst),
                ("tcp_flags", flags),
                ("ip_frag", frag),
                ("metadata", metadata),
            ];
            compiled(fields.map(|(name, value)| (name, value.to_owned())))
        })
}

fn rule() -> impl Strategy<Value = Rule> {
    // Six tables, so that some packets take more rules than the cache remembers.
    let table = prop_oneof![3 => Just(0_u8), 2 => 1_u8..6];
    let then = prop_oneof![
        (0_u16..4).prop_map(Then::Chain),
        (0_u8..2).prop_map(Then::Out),
        Just(Then::Drop),
    ];
    let goto = proptest::option::weighted(0.5, (1_u8..3, 0_u64..4, 0_u64..4));
    let timeout = || prop_oneof![4 => Just(0_u64), 1 => (1_u64..300).prop_map(|ms| ms * MS)];
    (table, 0_u16..3, matching(), then, goto, timeout(), timeout()).prop_map(
        |(table, priority, matches, then, goto, idle_timeout_ns, hard_timeout_ns)| {
            let then = match goto {
                Some((step, metadata, mask)) => Then::Goto { table: table + step, metadata, mask },
                None => then,
            };
            Rule { id: 0, table, priority, matches, then, idle_timeout_ns, hard_timeout_ns }
        },
    )
}

#[allow(clippy::large_enum_variant, reason = "a few of them, in a test")]
#[derive(Clone, Debug)]
enum Change {
    Add(Rule),
    /// The n-th of those there are, or one that is not there.
    Remove(usize),
}

#[derive(Clone, Debug)]
enum Step {
    Change(Change),
    Transaction(Vec<Change>),
    Burst(Vec<(Packet, u32)>),
    Pause(u64),
    Expire,
    ForgetIdle(u64),
    Explain(Packet),
    /// All rules built anew elsewhere and put in the place of the old ones.
    Rebuild,
}

fn step() -> impl Strategy<Value = Step> {
    let change = || {
        prop_oneof![
            3 => rule().prop_map(Change::Add),
            1 => any::<usize>().prop_map(Change::Remove),
        ]
    };
    prop_oneof![
        8 => change().prop_map(Step::Change),
        2 => proptest::collection::vec(change(), 0..6).prop_map(Step::Transaction),
        8 => proptest::collection::vec((packet(), 60_u32..1500), 1..24).prop_map(Step::Burst),
        1 => proptest::collection::vec((packet(), 60_u32..1500), 60..140).prop_map(Step::Burst),
        4 => (1_u64..150).prop_map(|ms| Step::Pause(ms * MS)),
        2 => Just(Step::Expire),
        1 => (0_u64..200).prop_map(|ms| Step::ForgetIdle(ms * MS)),
        2 => packet().prop_map(Step::Explain),
        1 => Just(Step::Rebuild),
    ]
}

/// A rule of the model with what it has seen.
#[derive(Clone, Debug)]
struct Known {
    rule: Rule,
    pkts: u64,
    bytes: u64,
    last_hit_ns: u64,
    added_ns: u64,
    reported_ns: Option<u64>,
}

impl Known {
    fn due_ns(&self) -> u64 {
        let at = |since: u64, after: u64| if after == 0 { u64::MAX } else { since + after };
        at(self.last_hit_ns, self.rule.idle_timeout_ns)
            .min(at(self.added_ns, self.rule.hard_timeout_ns))
    }
}

/// The list, and the table that must agree with it.
struct Both {
    table: FlowTable,
    model: Vec<Known>,
    next_id: RuleId,
    now_ns: u64,
    /// What stands for the NIC's hash; 0: none.
    nic_hash: u32,
    packets: u64,
}

impl Both {
    fn numbered(&mut self, change: &Change) -> RuleChange {
        match change {
            Change::Add(rule) => {
                self.next_id += 1;
                RuleChange::Add(Rule { id: self.next_id, ..*rule })
            }
            Change::Remove(n) => RuleChange::Remove(
                self.model.get(n % (self.model.len() + 1)).map_or(0, |k| k.rule.id),
            ),
        }
    }

    fn change_model(&mut self, change: &RuleChange) {
        let now_ns = self.now_ns;
        match change {
            RuleChange::Add(rule) => {
                let place = |r: &Rule| (r.table, r.priority, r.matches);
                self.model.retain(|known| place(&known.rule) != place(rule));
                self.model.push(Known {
                    rule: *rule,
                    pkts: 0,
                    bytes: 0,
                    last_hit_ns: now_ns,
                    added_ns: now_ns,
                    reported_ns: None,
                });
            }
            RuleChange::Remove(id) => self.model.retain(|known| known.rule.id != *id),
        }
    }

    /// The rules of a table that match, the one that is taken first.
    fn matching(&self, table: u8, key: &FlowKey) -> Vec<usize> {
        let mut found: Vec<usize> = (0..self.model.len())
            .filter(|&n| {
                let rule = &self.model[n].rule;
                rule.table == table && rule.matches.matches(key)
            })
            .collect();
        found.sort_by_key(|&n| (u16::MAX - self.model[n].rule.priority, self.model[n].rule.id));
        found
    }

    /// Table, matching rules, for each table passed; and what becomes of the packet.
    fn walk(&self, packet: Packet) -> (Vec<(u8, Vec<usize>)>, Outcome) {
        let (mut table, mut metadata, mut steps) = (0, 0, Vec::new());
        loop {
            let found = self.matching(table, &packet.key(metadata));
            let first = found.first().copied();
            steps.push((table, found));
            let Some(first) = first else { return (steps, Outcome::NoRule) };
            match self.model[first].rule.then {
                Then::Chain(chain) => return (steps, Outcome::Chain(chain)),
                Then::Out(port) => return (steps, Outcome::Out(port)),
                Then::Drop => return (steps, Outcome::Drop),
                Then::Goto { table: to, metadata: value, mask } => {
                    table = to;
                    metadata = metadata & !mask | value & mask;
                }
            }
        }
    }

    fn burst(&mut self, packets: &[(Packet, u32)]) {
        let keys: Vec<_> = packets.iter().map(|(packet, _)| packet.key(0)).collect();
        let bytes: Vec<_> = packets.iter().map(|(_, bytes)| *bytes).collect();
        let mut hashes = vec![self.nic_hash; keys.len()];
        let mut out = vec![Verdict::default(); keys.len()];
        self.table.classify_burst(&keys, &mut hashes, &bytes, self.now_ns, &mut out);
        for ((&(packet, bytes), verdict), (key, hash)) in
            packets.iter().zip(out).zip(keys.iter().zip(hashes))
        {
            let (steps, outcome) = self.walk(packet);
            assert_eq!(verdict.outcome, outcome, "{packet:?}");
            let taken: Vec<usize> = steps.iter().filter_map(|(_, f)| f.first().copied()).collect();
            let last = taken.last().filter(|_| outcome != Outcome::NoRule);
            assert_eq!(self.table.rule_of(verdict), last.map(|&n| self.model[n].rule.id));
            assert_eq!(hash, if self.nic_hash == 0 { key.flow_hash() } else { self.nic_hash });
            for n in taken {
                let known = &mut self.model[n];
                known.pkts += 1;
                known.bytes += u64::from(bytes);
                known.last_hit_ns = self.now_ns;
            }
        }
        self.packets += packets.len() as u64;
    }

    fn expire(&mut self) {
        let now = self.now_ns;
        let reports: Vec<Expired> = self.table.expire(now, usize::MAX);
        for known in &mut self.model {
            let report = reports.iter().filter(|r| r.id == known.rule.id).collect::<Vec<_>>();
            let rested = |late: u64| known.reported_ns.is_none_or(|at| at + AGAIN_NS + late <= now);
            let must = known.due_ns().saturating_add(LATE_NS) <= now && rested(LATE_NS);
            assert!(report.len() <= 1 && (!must || report.len() == 1), "{known:?} at {now}");
            let Some(report) = report.first() else { continue };
            assert!(known.due_ns() <= now && rested(0), "{known:?} at {now}");
            let hard = known.rule.hard_timeout_ns;
            let is_hard = hard > 0 && known.added_ns + hard <= now;
            assert_eq!(report.why, if is_hard { Timeout::Hard } else { Timeout::Idle });
            known.reported_ns = Some(now);
        }
        let here = |id| self.model.iter().any(|known| known.rule.id == id);
        assert!(reports.iter().all(|report| here(report.id)));
    }

    fn explain(&self, packet: Packet) {
        let (steps, outcome) = self.walk(packet);
        let told = self.table.rules().explain(&packet.key(0));
        assert_eq!(told.len(), steps.len());
        for (told, (table, found)) in told.iter().zip(&steps) {
            let ids: Vec<_> = found.iter().map(|&n| self.model[n].rule.id).collect();
            assert_eq!(told.table, *table);
            assert_eq!(told.rule, ids.first().copied());
            assert_eq!(told.also_matching, ids.get(1..).unwrap_or_default());
        }
        assert_eq!(self.table.rules().lookup(&packet.key(0)).0, outcome);
    }

    fn rebuild(&mut self) {
        let mut rules = RuleTables::new();
        for known in &mut self.model {
            rules.insert(known.rule, self.now_ns).unwrap();
            known.reported_ns = None;
        }
        let old = self.table.replace_rules(rules);
        let mut from = Some(0);
        while let Some(at) = from {
            from = self.table.adopt_counters(&old, at, 3);
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Change(change) => {
                let change = self.numbered(change);
                match change {
                    RuleChange::Add(rule) => {
                        let replaced = self.table.insert(rule, self.now_ns).unwrap();
                        let place = |r: &Rule| (r.table, r.priority, r.matches);
                        let known = self.model.iter().find(|k| place(&k.rule) == place(&rule));
                        assert_eq!(replaced, known.map(|known| known.rule.id));
                    }
                    RuleChange::Remove(id) => {
                        let here = self.model.iter().any(|known| known.rule.id == id);
                        assert_eq!(self.table.remove(id), here);
                    }
                }
                self.change_model(&change);
            }
            Step::Transaction(changes) => {
                let changes: Vec<_> = changes.iter().map(|change| self.numbered(change)).collect();
                self.table.apply(&changes, self.now_ns).unwrap();
                changes.iter().for_each(|change| self.change_model(change));
            }
            Step::Burst(packets) => self.burst(packets),
            Step::Pause(ns) => self.now_ns += ns,
            Step::Expire => self.expire(),
            Step::ForgetIdle(ns) => {
                self.table.forget_idle_flows(self.now_ns.saturating_sub(*ns), 1000);
            }
            Step::Explain(packet) => self.explain(*packet),
            Step::Rebuild => self.rebuild(),
        }
    }

    fn check_counters(&self) {
        assert_eq!(self.table.rules().len(), self.model.len());
        for known in &self.model {
            let (rule, counters) = self.table.rules().get(known.rule.id).unwrap();
            assert_eq!(rule, &known.rule);
            assert_eq!((counters.pkts, counters.bytes), (known.pkts, known.bytes));
            assert_eq!(counters.last_hit_ns, known.last_hit_ns);
            assert_eq!(counters.added_ns, known.added_ns);
        }
        let stats = self.table.cache_stats();
        if stats.capacity > 0 {
            assert_eq!(stats.hits + stats.misses, self.packets);
            let flows = self.table.top_flows(usize::MAX);
            assert_eq!(flows.len() as u64, stats.flows);
            assert!(flows.windows(2).all(|pair| pair[0].pkts >= pair[1].pkts));
            let in_cache: u64 = flows.iter().map(|flow| flow.pkts).sum();
            if stats.evicted + stats.aged + stats.too_long == 0 {
                assert_eq!(in_cache, self.packets);
            }
            assert!(in_cache <= self.packets);
        }
    }
}

/// Sixty steps a run, about 250 packets: 10⁵ packets in 400 runs.
fn runs() -> ProptestConfig {
    ProptestConfig { cases: ProptestConfig::default().cases * 3, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(runs())]

    #[test]
    fn a_table_does_what_a_list_of_rules_does(
        steps in proptest::collection::vec(step(), 1..90),
        cached_flows in prop::sample::select(vec![0_u32, 1, 40, 2000]),
        nic_hash in prop::sample::select(vec![0_u32, 0, 7]),
    ) {
        let table = FlowTable::new(cached_flows);
        let mut both =
            Both { table, model: Vec::new(), next_id: 0, now_ns: 5_000 * MS, nic_hash, packets: 0 };
        for step in &steps {
            both.take(step);
        }
        both.check_counters();
    }
}

#[test]
fn rules_that_would_send_a_packet_back_are_refused_and_change_nothing() {
    let mut table = FlowTable::new(16);
    let good = Rule { id: 1, then: Then::Chain(1), ..Rule::default() };
    let bad = Rule {
        id: 2,
        table: 3,
        then: Then::Goto { table: 3, metadata: 0, mask: 0 },
        ..Rule::default()
    };
    let error = table.apply(&[RuleChange::Add(good), RuleChange::Add(bad)], 0).unwrap_err();
    assert_eq!(error.to_string(), "goto 3 from table 3: a rule may only send to a later table");
    assert!(table.rules().is_empty());
    assert!(table.insert(bad, 0).is_err());
}

#[test]
fn the_top_flows_are_those_with_most_packets() {
    let mut table = FlowTable::new(1000);
    table.insert(Rule { id: 9, then: Then::Chain(4), ..Rule::default() }, 0).unwrap();
    let packet = |src| Packet {
        port: 0,
        tagged: false,
        src,
        dst: 1,
        tcp: true,
        tp_dst: 0,
        flags: 1,
        fragment: 0,
    };
    for src in 0..100_u8 {
        let keys = vec![packet(src).key(0); usize::from(src) + 1];
        let (mut hashes, bytes) = (vec![0; keys.len()], vec![100; keys.len()]);
        let mut out = vec![Verdict::default(); keys.len()];
        table.classify_burst(&keys, &mut hashes, &bytes, u64::from(src), &mut out);
    }
    let top = table.top_flows(3);
    assert_eq!(top.iter().map(|flow| flow.pkts).collect::<Vec<_>>(), [100, 99, 98]);
    assert_eq!((top[0].bytes, top[0].last_ns, top[0].rule), (10_000, 99, Some(9)));
    assert_eq!(top[0].outcome, Outcome::Chain(4));
    assert_eq!(table.cache_stats().flows, 100);
    // After a change the flow is shown with the verdict of now.
    table.insert(Rule { id: 10, priority: 1, then: Then::Drop, ..Rule::default() }, 0).unwrap();
    assert_eq!(
        (table.top_flows(1)[0].outcome, table.top_flows(1)[0].rule),
        (Outcome::Drop, Some(10))
    );
}

#[test]
fn flags_make_one_entry_a_flow_unless_a_rule_asks_for_them() {
    let mut table = FlowTable::new(1000);
    let packet = |flags| Packet {
        port: 0,
        tagged: false,
        src: 1,
        dst: 1,
        tcp: true,
        tp_dst: 0,
        flags,
        fragment: 0,
    };
    let send = |table: &mut FlowTable| {
        let keys = [packet(0).key(0), packet(1).key(0)];
        let mut out = [Verdict::default(); 2];
        table.classify_burst(&keys, &mut [0; 2], &[60; 2], 0, &mut out);
        out.map(|verdict| verdict.outcome)
    };
    assert_eq!(send(&mut table), [Outcome::NoRule; 2]);
    assert_eq!(table.cache_stats().flows, 1);
    let spec = serde_json::from_str::<MatchSpec>(r#"{"tcp_flags":"syn,!ack"}"#).unwrap();
    let matches = Match::compile(&spec, &|_| None).unwrap();
    table.insert(Rule { id: 1, matches, then: Then::Drop, ..Rule::default() }, 0).unwrap();
    assert_eq!(send(&mut table), [Outcome::Drop, Outcome::NoRule]);
    assert!(table.cache_stats().flows >= 2);
    table.remove(1);
    assert_eq!(send(&mut table), [Outcome::NoRule; 2]);
}

/// A rule that names one flow is found by the flow's hash: no other flow is looked up again, or even
/// asked about.
#[test]
fn a_rule_for_one_flow_disturbs_no_other() {
    let mut table = FlowTable::new(1000);
    let packet = |src| Packet {
        port: 0,
        tagged: false,
        src,
        dst: 1,
        tcp: true,
        tp_dst: 0,
        flags: 1,
        fragment: 0,
    };
    let keys: Vec<_> = (0..100).map(|src| packet(src).key(0)).collect();
    let send = |table: &mut FlowTable| {
        let mut out = vec![Verdict::default(); keys.len()];
        table.classify_burst(&keys, &mut vec![0; keys.len()], &vec![60; keys.len()], 0, &mut out);
        out.iter().map(|verdict| verdict.outcome).collect::<Vec<_>>()
    };
    assert!(send(&mut table).iter().all(|outcome| *outcome == Outcome::NoRule));
    let rule = |id, src| Rule {
        id,
        matches: one_flow(packet(src), false),
        then: Then::Chain(9),
        ..Rule::default()
    };
    table.apply(&[RuleChange::Add(rule(1, 40)), RuleChange::Add(rule(2, 41))], 0).unwrap();
    let expected = |chained: &[usize]| {
        let outcome = |n| if chained.contains(&n) { Outcome::Chain(9) } else { Outcome::NoRule };
        (0..100).map(outcome).collect::<Vec<_>>()
    };
    assert_eq!(send(&mut table), expected(&[40, 41]));
    table.apply(&[RuleChange::Remove(1)], 0).unwrap();
    assert_eq!(send(&mut table), expected(&[41]));
    assert_eq!((table.cache_stats().refreshed, table.cache_stats().misses), (0, 100));
}

#[test]
fn a_change_lets_flows_alone_that_it_does_not_concern() {
    let mut table = FlowTable::new(1000);
    table.insert(Rule { id: 1, then: Then::Chain(1), ..Rule::default() }, 0).unwrap();
    let packet = |src| Packet {
        port: 0,
        tagged: false,
        src,
        dst: 1,
        tcp: true,
        tp_dst: 0,
        flags: 1,
        fragment: 0,
    };
    let keys: Vec<_> = (0..4).map(|src| packet(src).key(0)).collect();
    let send = |table: &mut FlowTable| {
        let mut out = [Verdict::default(); 4];
        table.classify_burst(&keys, &mut [0; 4], &[60; 4], 0, &mut out);
        out.map(|verdict| verdict.outcome)
    };
    send(&mut table);
    let exact = Rule { id: 2, priority: 5, matches: Match::exact(keys[2]), ..Rule::default() };
    table.insert(exact, 0).unwrap();
    let chain = Outcome::Chain(1);
    assert_eq!(send(&mut table), [chain, chain, Outcome::Drop, chain]);
    let stats = table.cache_stats();
    // The exact rule looks at every field, so the flows are told apart anew; its own is one of them.
    assert!(stats.refreshed <= 1, "{stats:?}");
    let spec = serde_json::from_str::<MatchSpec>(r#"{"ip_src":"10.0.0.0/31"}"#).unwrap();
    let matches = Match::compile(&spec, &|_| None).unwrap();
    send(&mut table);
    let before = table.cache_stats();
    table
        .insert(Rule { id: 3, priority: 6, matches, then: Then::Drop, ..Rule::default() }, 0)
        .unwrap();
    assert_eq!(send(&mut table), [Outcome::Drop, Outcome::Drop, Outcome::Drop, chain]);
    let after = table.cache_stats();
    assert_eq!((after.refreshed - before.refreshed, after.misses - before.misses), (2, 0));
}
