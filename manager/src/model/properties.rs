//! Properties of wanted states, over random files and random edits of them.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use nflib::control::spec::Value;
use nflib::control::{
    Access, ChainSpec, Confine, Edit, MatchSpec, OnDeath, OnStuck, RuleSpec, ServiceRef,
    ServiceSpec, ThenSpec,
};
use proptest::prelude::*;

use super::*;
use crate::flow::Then;

const CHAINS: [&str; 5] = ["default", "a", "b", "c", "gone"];
const PORTS: [&str; 2] = ["lan", "wan"];
const SERVICES: [&str; 5] = ["fw", "nat", "1", "2", "none"];

pub(crate) fn ports() -> Vec<String> {
    PORTS.map(str::to_owned).into()
}

fn pick(names: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(names).prop_map(str::to_owned)
}

fn service_ref() -> impl Strategy<Value = ServiceRef> {
    // "none" is rare, or hardly any state would be possible.
    prop_oneof![
        12 => prop::sample::select(&SERVICES[..4]),
        1 => Just("none"),
    ]
    .prop_map(|name| name.parse().unwrap_or(ServiceRef::Id(0)))
}

fn chain_spec() -> impl Strategy<Value = ChainSpec> {
    let end = prop_oneof![
        4 => Just("egress".to_owned()),
        1 => Just("ingress".to_owned()),
        1 => Just("drop".to_owned()),
        1 => pick(&PORTS).prop_map(|port| format!("out:{port}")),
        2 => pick(&CHAINS[..4]).prop_map(|chain| format!("chain:{chain}")),
    ];
    let branches = prop::collection::btree_map("[a-c]", pick(&CHAINS[..4]), 0..2);
    let on_death = prop_oneof![
        4 => Just(OnDeath::Drop), 1 => Just(OnDeath::Bypass), 1 => Just(OnDeath::Hold),
    ];
    (pick(&CHAINS[..4]), prop::collection::vec(service_ref(), 0..4), end, branches, on_death)
        .prop_map(|(name, services, end, branches, on_death)| ChainSpec {
            name,
            services,
            end,
            branches,
            on_death,
        })
}

fn then_spec() -> impl Strategy<Value = ThenSpec> {
    let none = ThenSpec::default;
    prop_oneof![
        6 => pick(&CHAINS).prop_map(move |chain| ThenSpec { chain: Some(chain), ..none() }),
        2 => pick(&PORTS).prop_map(move |out| ThenSpec { out: Some(out), ..none() }),
        2 => Just(ThenSpec { drop: true, ..none() }),
        1 => (0_u8..3, prop::option::of(any::<u64>())).prop_map(move |(goto, metadata)| ThenSpec {
            goto: Some(goto),
            set_metadata: metadata.map(Value::Int),
            ..none()
        }),
    ]
}

fn rule_spec() -> impl Strategy<Value = RuleSpec> {
    let matches = (prop::option::of(pick(&PORTS)), prop::option::of(0_u64..3)).prop_map(
        |(in_port, tp_dst)| MatchSpec {
            in_port: in_port.map(Value::Text),
            ip_proto: tp_dst.map(|_| Value::Text("tcp".into())),
            tp_dst: tp_dst.map(Value::Int),
            ..MatchSpec::default()
        },
    );
    let name = prop::option::weighted(0.3, "[r-t]");
    let timeout = || prop::option::weighted(0.2, 0.001..1e9_f64);
    (name, 0_u8..2, 0_u16..2, matches, then_spec(), timeout(), timeout()).prop_map(
        |(name, table, priority, matches, then, idle_timeout_s, hard_timeout_s)| RuleSpec {
            name,
            table,
            priority,
            matches,
            then,
            idle_timeout_s,
            hard_timeout_s,
        },
    )
}

fn service_spec() -> impl Strategy<Value = ServiceSpec> {
    let command = prop::option::weighted(0.7, prop::collection::vec("\\PC{1,5}|\"\n\t'''", 1..3));
    let limits = (prop::option::of(1..=i64::MAX as u64), prop::option::of(0.001..1e9_f64));
    (command, 0_u32..5, any::<bool>(), any::<bool>(), limits, prop::option::of(3_u16..9)).prop_map(
        |(command, instances, own_core, isolated, (packet_limit, time_limit_s), id)| ServiceSpec {
            name: String::new(),
            id,
            command,
            instances,
            cores: if own_core { Vec::new() } else { vec![0] },
            own_core,
            weight: (instances > 2).then_some(instances),
            user: isolated.then(|| "0".to_owned()),
            confine: if own_core { Confine::Strict } else { Confine::Default },
            writable: if isolated { vec!["/tmp".to_owned()] } else { Vec::new() },
            isolated,
            shared_region: isolated && own_core,
            access: if instances > 3 { Access::ReadOnly } else { Access::ReadWrite },
            on_stuck: if packet_limit.is_some() { OnStuck::Kill } else { OnStuck::Report },
            stuck_after_ms: time_limit_s.map(|_| 500),
            recorder_pkts: packet_limit.map(|_| 64),
            recorder_all: own_core,
            packet_limit,
            time_limit_s,
        },
    )
}

/// Declares services 1, 2, "fw" and "nat", or none.
fn services() -> impl Strategy<Value = Vec<ServiceSpec>> {
    let four = prop::collection::vec(service_spec(), 4).prop_map(|mut specs| {
        for (spec, name) in specs.iter_mut().zip(SERVICES) {
            spec.name = name.to_owned();
            // A name of digits is its own number.
            spec.id = name.parse().ok().or(spec.id);
        }
        specs
    });
    prop_oneof![Just(Vec::new()), four]
}

/// Specs of which many make a possible state: the parts that cannot stay are left out.
pub(crate) fn specs() -> impl Strategy<Value = ModelSpecs> {
    let chains = prop::collection::vec(chain_spec(), 0..5);
    let rules = prop::collection::vec(rule_spec(), 0..12);
    (services(), chains, rules).prop_map(|(services, chains, rules)| {
        let mut specs = ModelSpecs { services, ..ModelSpecs::default() };
        if Model::build(&specs, &ports(), None).is_err() {
            specs.services.iter_mut().for_each(|spec| spec.id = spec.name.parse().ok());
        }
        for chain in chains {
            specs.chains.push(chain);
            if Model::build(&specs, &ports(), None).is_err() {
                specs.chains.pop();
            }
        }
        for rule in rules {
            specs.rules.push(rule);
            if Model::build(&specs, &ports(), None).is_err() {
                specs.rules.pop();
            }
        }
        specs
    })
}

pub(crate) fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        3 => (chain_spec(), prop::bool::weighted(0.3))
            .prop_map(|(chain, new)| Edit::SetChain { chain, new }),
        1 => pick(&CHAINS).prop_map(|name| Edit::RemoveChain { name }),
        5 => rule_spec().prop_map(|rule| Edit::AddRule { rule: Box::new(rule) }),
        2 => (1_u64..16).prop_map(|id| Edit::RemoveRule { id }),
        1 => "[r-t]".prop_map(|name| Edit::RemoveRuleNamed { name }),
        1 => (service_ref(), 0_u32..4)
            .prop_map(|(service, instances)| Edit::Scale { service, instances }),
        1 => (service_ref(), prop::collection::vec("[a-c]?", 0..3))
            .prop_map(|(service, command)| Edit::SetCommand { service, command }),
    ]
}

/// Files with numbered rules, edited the plain way: what [`Model::edit`] must come to.
struct Naive {
    specs: ModelSpecs,
    rule_ids: Vec<u64>,
    next_id: u64,
}

impl Naive {
    fn of(model: &Model, next_id: u64) -> Self {
        let rule_ids = model.rules().map(|rule| rule.id()).collect();
        Self { specs: model.specs(), rule_ids, next_id }
    }

    /// The edited file and its model; `None` if a step or the outcome is impossible.
    fn edit(mut self, edits: &[Edit], before: &Model) -> Option<(Self, Model)> {
        let mut added = Vec::new();
        for edit in edits {
            match edit {
                Edit::SetChain { chain, new } => {
                    let chains = &mut self.specs.chains;
                    match chains.iter().position(|c| c.name == chain.name) {
                        Some(_) if *new => return None,
                        Some(at) => chains[at] = chain.clone(),
                        None => chains.push(chain.clone()),
                    }
                }
                Edit::RemoveChain { name } => {
                    let at = self.specs.chains.iter().position(|c| c.name == *name)?;
                    self.specs.chains.remove(at);
                }
                Edit::AddRule { rule } => {
                    self.add(rule)?;
                    added.push((**rule).clone());
                }
                Edit::RemoveRule { id } => {
                    let at = self.rule_ids.iter().position(|other| other == id)?;
                    self.remove(at);
                }
                Edit::RemoveRuleNamed { name } => {
                    let named = |r: &RuleSpec| r.name.as_ref() == Some(name);
                    let at = self.specs.rules.iter().position(named)?;
                    self.remove(at);
                }
                Edit::Scale { service, instances } => {
                    let name = before.find_service(service).ok()?.name().to_owned();
                    let spec = self.specs.services.iter_mut().find(|spec| spec.name == name)?;
                    spec.command.as_ref()?;
                    spec.instances = *instances;
                }
                Edit::SetCommand { service, command } => {
                    let name = before.find_service(service).ok()?.name().to_owned();
                    let spec = self.specs.services.iter_mut().find(|spec| spec.name == name)?;
                    spec.command = Some(command.clone()).filter(|_| spec.command.is_some());
                    spec.command.as_ref()?;
                }
            }
        }
        // A rule that is gone again must have been possible, too.
        for rule in added {
            let alone = ModelSpecs { rules: vec![rule], ..self.specs.clone() };
            Model::build(&alone, &ports(), Some(before)).ok()?;
        }
        let model = Model::build(&self.specs, &ports(), Some(before)).ok()?.0;
        Some((self, model))
    }

    fn add(&mut self, rule: &RuleSpec) -> Option<()> {
        let same = |r: &RuleSpec| {
            (r.table, r.priority, &r.matches) == (rule.table, rule.priority, &rule.matches)
        };
        let at = self.specs.rules.iter().position(same);
        let clash = |(n, r): (usize, &RuleSpec)| r.name == rule.name && Some(n) != at;
        if rule.name.is_some() && self.specs.rules.iter().enumerate().any(clash) {
            return None;
        }
        match at {
            Some(at) => self.specs.rules[at] = rule.clone(),
            None => {
                self.specs.rules.push(rule.clone());
                self.rule_ids.push(self.next_id);
                self.next_id += 1;
            }
        }
        Some(())
    }

    fn remove(&mut self, at: usize) {
        self.specs.rules.remove(at);
        self.rule_ids.remove(at);
    }

    /// Rules with their numbers, in the order in which packets meet them.
    fn rules(&self) -> Vec<(u64, RuleSpec)> {
        let mut rules: Vec<_> =
            self.rule_ids.iter().copied().zip(self.specs.rules.iter().cloned()).collect();
        rules.sort_by_key(|(_, rule)| (rule.table, std::cmp::Reverse(rule.priority)));
        rules
    }
}

fn numbered(model: &Model) -> Vec<(u64, RuleSpec)> {
    model.rules().map(|rule| (rule.id(), rule.spec())).collect()
}

fn ids(model: &Model) -> (BTreeMap<&str, ServiceId>, BTreeMap<&str, ChainId>) {
    (
        model.services().map(|service| (service.name(), service.id)).collect(),
        model.chains().map(|chain| (chain.name(), chain.id)).collect(),
    )
}

/// Whatever the way it was made, a state is whole.
fn assert_sound(model: &Model) {
    for chain in model.chains() {
        assert!(chain.services.iter().all(|id| model.service(*id).is_some()));
        assert!(chain.branches.values().all(|id| model.chain(*id).is_some()));
        assert_eq!(chain.branches.len(), chain.spec.branches.len());
        assert_eq!(model.chain_named(chain.name()).map(|c| c.id), Some(chain.id));
        let (mut at, mut steps) = (chain, 0);
        while let End::Chain(next) = at.end {
            at = model.chain(next).unwrap();
            steps += 1;
            assert!(steps <= model.chains().len(), "a loop of ends");
        }
    }
    let mut last = None;
    let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
    for rule in model.rules() {
        assert!(last < Some(rule.order()));
        last = Some(rule.order());
        assert!(numbers.insert(rule.id()) && rule.id() > 0);
        assert_eq!(model.rule(rule.id()).map(|r| r.order()), last);
        assert_eq!(model.rules.same_as(rule).map(|r| r.id()), Some(rule.id()));
        if let Some(name) = &rule.name {
            assert!(names.insert(name.clone()));
            assert_eq!(model.rule_named(name).map(|r| r.id()), Some(rule.id()));
        }
        match rule.entry.then {
            Then::Chain(id) => {
                assert_eq!(
                    Some(model.chain(id).unwrap().name()),
                    rule.spec().then.chain.as_deref()
                );
            }
            Then::Out(port) => {
                assert_eq!(Some(model.port_name(port)), rule.spec().then.out.as_deref());
            }
            Then::Goto { table, .. } => assert!(table > rule.entry.table),
            Then::Drop => {}
        }
    }
    assert_eq!(numbers.len(), model.rule_count());
}

/// What two states have in common when they are equal, told without [`Model::diff`].
fn meaning(model: &Model) -> impl PartialEq + use<> {
    let chains: BTreeMap<_, _> = model
        .chains()
        .map(|c| {
            let spec = &c.spec;
            let parts =
                (c.services.clone(), spec.end.clone(), spec.branches.clone(), spec.on_death);
            (c.name().to_owned(), parts)
        })
        .collect();
    let services: Vec<_> = model.services().map(|s| s.spec.clone()).collect();
    let text = |rule: &Rule| format!("{:?}", rule.spec());
    let rules: BTreeSet<_> = model.rules().map(|rule| text(rule)).collect();
    let mut orders = BTreeSet::new();
    for a in model.rules() {
        let after = model.rules().skip_while(|b| b.id() != a.id()).skip(1);
        for b in after.filter(|b| a.group() == b.group()) {
            if a.entry.matches.overlaps(&b.entry.matches) {
                orders.insert((text(a), text(b)));
            }
        }
    }
    (services, chains, rules, orders)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn an_edit_comes_to_what_the_edited_file_says_and_all_stays_sound(
        specs in specs(),
        batches in prop::collection::vec(prop::collection::vec(edit(), 1..5), 1..8),
    ) {
        let mut model = Model::build(&specs, &ports(), None).unwrap().0;
        assert_sound(&model);
        let mut next_id = 1 + model.rule_count() as u64;
        for edits in batches {
            let was = (meaning(&model), numbered(&model));
            let naive = Naive::of(&model, next_id).edit(&edits, &model);
            let edited = model.edit(&edits);
            prop_assert!(was == (meaning(&model), numbered(&model)), "an edit touched what was");
            match (edited, naive) {
                (Ok(edited), Some((naive, built))) => {
                    assert_sound(&edited.model);
                    prop_assert_eq!(numbered(&edited.model), naive.rules());
                    prop_assert_eq!(ids(&edited.model), ids(&built));
                    prop_assert!(meaning(&edited.model) == meaning(&built));
                    prop_assert!(edited.model == built);
                    let mut entries: BTreeMap<_, _> =
                        model.rules().map(|rule| (rule.id(), rule.entry)).collect();
                    let delta = Model::rule_delta(&model, &edited.model);
                    for rule in &delta.removed {
                        prop_assert_eq!(entries.remove(&rule.id()), Some(rule.entry));
                    }
                    for rule in &delta.added {
                        prop_assert_eq!(entries.insert(rule.id(), rule.entry), None);
                    }
                    let after = edited.model.rules().map(|rule| (rule.id(), rule.entry));
                    prop_assert!(after.eq(edited.model.rules().map(|r| (r.id(), entries[&r.id()]))));
                    prop_assert_eq!(entries.len(), edited.model.rule_count());
                    next_id = naive.next_id;
                    model = edited.model;
                }
                (Err(error), None) => {
                    prop_assert!(!error.message.contains('\n'), "{}", error);
                }
                (edited, naive) => prop_assert!(
                    false,
                    "edit: {:?}; the edited file is {}",
                    edited.map(|_| "possible").map_err(|e| e.message),
                    if naive.is_some() { "possible" } else { "impossible" }
                ),
            }
        }
    }

    #[test]
    fn two_states_have_no_difference_exactly_when_they_are_equal(
        a in specs(),
        b in specs(),
        edits in prop::collection::vec(edit(), 0..3),
        shuffle in prop::option::of(0_usize..12),
    ) {
        let old = Model::build(&a, &ports(), None).unwrap().0;
        let mut close = old.edit(&edits).map_or_else(|_| old.clone(), |edited| edited.model);
        if let Some(by) = shuffle {
            let mut specs = close.specs();
            let by = by.min(specs.rules.len());
            specs.rules.rotate_left(by);
            close = Model::build(&specs, &ports(), Some(&close)).unwrap().0;
        }
        let far = Model::build(&b, &ports(), None).unwrap().0;
        for new in [close, far] {
            let equal = meaning(&old) == meaning(&new);
            let diff = Model::diff(&old, &new);
            prop_assert_eq!(equal, diff.is_empty(), "{:?}", diff);
            prop_assert!(diff.iter().all(|change| change.before != change.after));
            // The other way round: the same lines, before and after exchanged.
            prop_assert_eq!(Model::diff(&new, &old).is_empty(), equal);
        }
        prop_assert!(Model::diff(&old, &old.clone()).is_empty());
    }

    #[test]
    fn what_is_written_reads_back_as_the_same_state(specs in specs()) {
        let model = Model::build(&specs, &ports(), None).unwrap().0;
        let ports: String = PORTS
            .map(|name| format!("[[port]]\nname = \"{name}\"\nbackend = \"sink\"\n"))
            .concat();
        let text = format!("{ports}{}", to_toml(&model));
        let again = crate::config::Config::parse(&text, std::path::Path::new("m.toml"));
        let again = again.map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?.model;
        prop_assert!(again == model, "{text}");
        prop_assert_eq!(again.specs().services, model.specs().services);
        prop_assert_eq!(again.specs().chains.len(), model.specs().chains.len());
        prop_assert_eq!(to_toml(&again), to_toml(&model));
    }
}
