//! The wanted state as a whole: numbers that stay, edits that are all or nothing, differences.
#![forbid(unsafe_code)]

use nflib::control::spec::Value;
use nflib::control::{
    ChainSpec, Edit, ErrorCode, MatchSpec, RuleSpec, ServiceRef, ServiceSpec, ThenSpec,
};

use super::*;

pub(super) fn ports() -> Vec<String> {
    ["lan", "wan"].map(str::to_owned).into()
}

fn build(specs: &ModelSpecs, previous: Option<&Model>) -> Result<Model, ModelError> {
    Ok(Model::build(specs, &ports(), previous)?.0)
}

pub(super) fn chain(name: &str, services: &[&str], end: &str) -> ChainSpec {
    let services = services.iter().map(|s| s.parse().unwrap_or(ServiceRef::Id(0))).collect();
    ChainSpec { name: name.into(), services, end: end.into(), ..ChainSpec::default() }
}

fn service(name: &str, id: Option<u16>) -> ServiceSpec {
    let command = Some(vec!["nf".to_owned(), "a \"b\"\n".to_owned()]);
    ServiceSpec { name: name.into(), id, command, instances: 1, ..ServiceSpec::default() }
}

/// A rule for TCP to a port.
pub(super) fn rule(priority: u16, tp_dst: u64, then: ThenSpec) -> RuleSpec {
    let matches = MatchSpec {
        ip_proto: Some(Value::Text("tcp".into())),
        tp_dst: Some(Value::Int(tp_dst)),
        ..MatchSpec::default()
    };
    RuleSpec { priority, matches, then, ..RuleSpec::default() }
}

pub(super) fn to_chain(name: &str) -> ThenSpec {
    ThenSpec { chain: Some(name.into()), ..ThenSpec::default() }
}

fn add(rule: RuleSpec) -> Edit {
    Edit::AddRule { rule: Box::new(rule) }
}

fn web_and_rest() -> ModelSpecs {
    ModelSpecs {
        services: vec![service("fw", None), service("nat", Some(1)), service("dpi", None)],
        chains: vec![
            chain("default", &["nat"], "egress"),
            chain("web", &["fw", "dpi"], "chain:default"),
        ],
        rules: vec![rule(10, 80, to_chain("web")), rule(10, 443, to_chain("web"))],
    }
}

fn service_ids(model: &Model) -> Vec<(String, u16)> {
    model.services().map(|s| (s.name().to_owned(), s.id)).collect()
}

#[test]
fn ids_are_given_where_free_and_stay_with_their_names() {
    let model = build(&web_and_rest(), None).unwrap();
    let ids = |list: &[(&str, u16)]| -> Vec<(String, u16)> {
        list.iter().map(|(name, id)| ((*name).to_owned(), *id)).collect()
    };
    assert_eq!(service_ids(&model), ids(&[("nat", 1), ("fw", 2), ("dpi", 3)]));

    // "fw" goes, others come: the rest keep theirs, and 2 is not used again at once.
    let mut specs = web_and_rest();
    specs.services[0] = service("new", None);
    specs.services[1].id = None;
    specs.chains[1] = chain("other", &["new"], "drop");
    specs.rules.clear();
    let next = build(&specs, Some(&model)).unwrap();
    assert_eq!(service_ids(&next), ids(&[("nat", 1), ("dpi", 3), ("new", 4)]));
    assert_eq!(next.chain_named("default").unwrap().id, model.chain_named("default").unwrap().id);
    assert_ne!(next.chain_named("other").unwrap().id, model.chain_named("web").unwrap().id);

    // A service cannot change its number while it is wanted.
    specs.services[2].id = Some(9);
    let error = build(&specs, Some(&model)).unwrap_err();
    assert!(error.message.contains("\"dpi\" has id 3 and keeps it"), "{error}");
}

#[test]
fn services_that_nobody_declares_are_those_that_chains_name() {
    let mut specs = ModelSpecs {
        chains: vec![chain("default", &["fw", "2", "1", "fw"], "egress")],
        ..ModelSpecs::default()
    };
    let model = build(&specs, None).unwrap();
    assert_eq!(model.default_chain().unwrap().services, [3, 2, 1, 3]);
    assert_eq!(model.service(2).unwrap().name(), "2");
    assert!(!model.services_are_declared() && model.specs() == specs);
    assert_eq!(model.service(3).unwrap().wanted_instances(), None);
    // Written as a text, a number is still a number.
    specs.chains[0].services[1] = ServiceRef::Name("2".into());
    assert!(build(&specs, None).unwrap() == model);
    // One that has a number keeps it, and the number is then its.
    let more = Edit::SetChain { chain: chain("x", &["nat", "3", "fw"], "drop"), new: true };
    let next = model.edit(&[more]).unwrap().model;
    assert_eq!(next.chain_named("x").unwrap().services, [4, 3, 3]);
}

#[test]
fn what_matches_no_rule_goes_by_default_out_or_away() {
    let none = ModelSpecs::default();
    let (model, notes) = Model::build(&none, &ports(), None).unwrap();
    assert_eq!((model.unmatched(), notes.len()), (Unmatched::Egress, 0));
    let edited =
        model.edit(&[add(rule(0, 80, ThenSpec { drop: true, ..ThenSpec::default() }))]).unwrap();
    assert_eq!(edited.model.unmatched(), Unmatched::NoRule);
    assert!(
        edited.notes[0].contains("no chain \"default\"") && edited.notes[0].contains("no_rule")
    );
    let again = edited.model.edit(&[add(rule(
        1,
        81,
        ThenSpec { out: Some("wan".into()), ..ThenSpec::default() },
    ))]);
    assert!(again.unwrap().notes.is_empty(), "said once");
    let chained = Edit::SetChain { chain: chain("default", &[], "egress"), new: true };
    let model = edited.model.edit(&[chained]).unwrap().model;
    assert_eq!(model.unmatched(), Unmatched::Chain(model.default_chain().unwrap().id));
}

#[test]
fn a_rule_that_is_replaced_keeps_its_number_and_place() {
    let model = build(&web_and_rest(), None).unwrap();
    let named = RuleSpec { name: Some("tls".into()), ..rule(10, 22, to_chain("web")) };
    let edits = [add(rule(10, 80, to_chain("default"))), add(named), Edit::RemoveRule { id: 2 }];
    let edited = model.edit(&edits).unwrap();
    assert_eq!(edited.rule_ids, [1, 3]);
    let ids: Vec<_> = edited.model.rules().map(|rule| rule.id()).collect();
    assert_eq!(ids, [1, 3]);
    let lines: Vec<_> =
        Model::diff(&model, &edited.model).iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "~ rule 0/10 ip_proto=tcp tp_dst=80: chain=web → chain=default",
            "- rule 0/10 ip_proto=tcp tp_dst=443: chain=web",
            "+ rule tls: 0/10 ip_proto=tcp tp_dst=22: chain=web",
        ]
    );
    let delta = Model::rule_delta(&model, &edited.model);
    let numbers = |rules: &[Arc<Rule>]| rules.iter().map(|rule| rule.id()).collect::<Vec<_>>();
    assert_eq!((numbers(&delta.removed), numbers(&delta.added)), (vec![1, 2], vec![1, 3]));
    // Numbers are not given again.
    let gone = edited.model.edit(&[Edit::RemoveRuleNamed { name: "tls".into() }]).unwrap().model;
    assert_eq!(gone.edit(&[add(rule(1, 1, to_chain("web")))]).unwrap().rule_ids, [4]);
}

#[test]
fn only_the_outcome_of_an_edit_must_be_possible() {
    let model = build(&web_and_rest(), None).unwrap();
    let edits = [
        add(rule(1, 25, to_chain("mail"))),
        Edit::SetChain { chain: chain("mail", &["dpi"], "out:wan"), new: true },
        Edit::RemoveChain { name: "web".into() },
        Edit::RemoveRule { id: 1 },
        add(rule(10, 443, to_chain("mail"))),
    ];
    let edited = model.edit(&edits).unwrap().model;
    let names: Vec<_> = edited.chains().map(|chain| chain.name()).collect();
    assert_eq!(names, ["default", "mail"]);
    let note = model.edit(&edits).unwrap().notes;
    assert!(note[0].contains("service \"fw\" is in no chain"), "{note:?}");
}

#[test]
fn a_chain_that_is_removed_and_set_again_was_never_away() {
    let model = build(&web_and_rest(), None).unwrap();
    let edits = [
        Edit::RemoveChain { name: "web".into() },
        Edit::RemoveChain { name: "default".into() },
        Edit::SetChain { chain: chain("default", &["dpi"], "drop"), new: true },
        Edit::SetChain { chain: chain("web", &["fw"], "chain:default"), new: true },
    ];
    let edited = model.edit(&edits).unwrap().model;
    for name in ["web", "default"] {
        let id = |model: &Model| model.chain_named(name).unwrap().id;
        assert_eq!(id(&edited), id(&model));
    }
    assert_eq!(edited.rule_count(), 2);
}

#[test]
fn each_refused_edit_says_why_and_of_which_kind() {
    use ErrorCode::{Invalid, NotFound};
    let mut specs = web_and_rest();
    specs.services[2].command = None;
    specs.rules[0].name = Some("web".into());
    let model = build(&specs, None).unwrap();
    let set = |chain: ChainSpec, new| Edit::SetChain { chain, new };
    let remove = |name: &str| Edit::RemoveChain { name: name.into() };
    let scale =
        |service: &str, instances| Edit::Scale { service: service.parse().unwrap(), instances };
    let named = RuleSpec { name: Some("web".into()), ..rule(1, 1, to_chain("web")) };
    let branches = [("alarm".to_owned(), "default".to_owned())].into();
    let branched = ChainSpec { branches, ..chain("c", &[], "egress") };
    for (edits, code, expected) in [
        (vec![set(chain("web", &[], "egress"), true)], Invalid, "a chain \"web\" already"),
        (
            vec![set(chain("x", &["fx"], "egress"), true)],
            NotFound,
            "chain \"x\": there is no service \"fx\"; there are nat, fw, dpi",
        ),
        (vec![set(chain("default", &[], "chain:web"), false)], Invalid, "default → web → default"),
        (vec![remove("wbe")], NotFound, "no chain \"wbe\"; there are default, web"),
        (vec![remove("web"), remove("web")], NotFound, "removed twice"),
        (vec![remove("web")], Invalid, "rule web (number 1) sends packets into it"),
        (vec![remove("default")], Invalid, "chain \"web\" leads into it"),
        (
            vec![set(branched, true), set(chain("web", &[], "drop"), false), remove("default")],
            Invalid,
            "chain \"c\" leads into it",
        ),
        (vec![Edit::RemoveRule { id: 7 }], NotFound, "no rule with number 7"),
        (vec![Edit::RemoveRule { id: 1 }, Edit::RemoveRule { id: 1 }], NotFound, "number 1"),
        (vec![Edit::RemoveRuleNamed { name: "x".into() }], NotFound, "no rule named \"x\""),
        (vec![add(named)], Invalid, "two rules are named \"web\""),
        (
            vec![add(rule(1, 1, to_chain("x")))],
            NotFound,
            "rule 0/1 ip_proto=tcp tp_dst=1: there is no chain \"x\"",
        ),
        (vec![scale("fx", 1)], NotFound, "no service \"fx\""),
        (vec![scale("9", 1)], NotFound, "no service with id 9"),
        (vec![scale("fw", 1001)], Invalid, "at most 1000"),
        (vec![scale("dpi", 2)], Invalid, "started by hand"),
    ] {
        let before = model.specs();
        let error = model.edit(&edits).unwrap_err();
        assert!(error.message.contains(expected), "{expected}: {error}");
        assert_eq!((error.code, error.item), (code, None), "{error}");
        assert!(!error.message.contains('\n'));
        assert_eq!(model.specs(), before);
    }
    let scaled = model.edit(&[scale("fw", 3), scale("1", 0)]).unwrap().model;
    let wanted: Vec<_> = scaled.services().map(|s| s.wanted_instances()).collect();
    assert_eq!(wanted, [Some(0), Some(3), None]);
}

/// A rule for everything that comes in by a port.
fn port_rule(priority: u16, in_port: &str) -> RuleSpec {
    let in_port = Some(Value::Text(in_port.into()));
    let then = ThenSpec { drop: true, ..ThenSpec::default() };
    RuleSpec {
        priority,
        matches: MatchSpec { in_port, ..MatchSpec::default() },
        then,
        ..RuleSpec::default()
    }
}

#[test]
fn the_order_of_writing_counts_where_rules_overlap_and_nowhere_else() {
    let mut specs = web_and_rest();
    specs.rules.push(rule(10, 22, to_chain("web")));
    specs.rules.push(port_rule(10, "lan"));
    let (old, notes) = Model::build(&specs, &ports(), None).unwrap();
    assert_eq!(notes.len(), 3, "{notes:?}");
    let expected = "rules 0/10 ip_proto=tcp tp_dst=80 and 0/10 in_port=lan overlap and have the \
                    same priority: the first is taken where both match";
    assert_eq!(notes[0], expected);

    // 22 to the front: nothing that it overlaps is passed, so nothing differs.
    specs.rules[..3].rotate_right(1);
    let new = build(&specs, Some(&old)).unwrap();
    assert!(new == old);
    assert_eq!(new.rules().map(|rule| rule.id()).collect::<Vec<_>>(), [1, 2, 3, 4]);

    // The last one to the front: those it overlaps come behind it, and get new numbers for that.
    specs.rules.rotate_right(1);
    let new = build(&specs, Some(&old)).unwrap();
    assert_eq!(new.rules().map(|rule| rule.id()).collect::<Vec<_>>(), [4, 5, 6, 7]);
    let lines: Vec<_> = Model::diff(&old, &new).iter().map(ToString::to_string).collect();
    assert_eq!(
        lines[0],
        "~ rule 0/10 ip_proto=tcp tp_dst=22: before rule 0/10 in_port=lan → after rule 0/10 \
         in_port=lan"
    );
    assert_eq!(lines.len(), 3);
    let delta = Model::rule_delta(&old, &new);
    assert_eq!((delta.removed.len(), delta.added.len()), (3, 3));

    // Between priorities the order of writing does not count.
    specs.rules[0].priority = 5;
    let a = build(&specs, None).unwrap();
    specs.rules.rotate_left(1);
    assert!(a == build(&specs, None).unwrap());
}

#[test]
fn a_match_is_the_same_however_it_is_spelled() {
    let model = build(&web_and_rest(), None).unwrap();
    let mut specs = web_and_rest();
    specs.rules[0].matches.tp_dst = Some(Value::Text("0x50".into()));
    specs.rules[0].matches.ip_proto = Some(Value::Int(6));
    let next = build(&specs, Some(&model)).unwrap();
    assert!(next == model);
    let delta = Model::rule_delta(&model, &next);
    assert!(delta.removed.is_empty() && delta.added.is_empty());
    assert_eq!(next.rule(1).unwrap().spec().matches.to_string(), "ip_proto=6 tp_dst=0x50");
    specs.rules.push(rule(10, 80, to_chain("default")));
    let error = build(&specs, None).unwrap_err();
    assert!(error.message.contains("stand there already"), "{error}");
    assert_eq!(error.item, Some(Item { of: ChangeOf::Rule, at: 2 }));
}

#[test]
fn an_edit_tells_of_the_rules_it_overlaps_unless_they_are_very_many() {
    let model = build(&web_and_rest(), None).unwrap();
    let edited = model.edit(&[add(port_rule(10, "lan")), add(port_rule(10, "wan"))]).unwrap();
    assert_eq!(edited.notes.len(), 4, "{:?}", edited.notes);
    let gone = [add(port_rule(10, "lan")), Edit::RemoveRule { id: 3 }];
    assert!(model.edit(&gone).unwrap().notes.is_empty());
    let mut specs = web_and_rest();
    specs.rules = (0..1024).map(|port| rule(10, port, to_chain("web"))).collect();
    let model = build(&specs, None).unwrap();
    let notes = model.edit(&[add(port_rule(10, "lan"))]).unwrap().notes;
    assert_eq!(notes.len(), 1);
    assert!(notes[0].contains("millrace check does"), "{notes:?}");
    let notes = model.edit(&[add(port_rule(11, "lan"))]).unwrap().notes;
    assert!(notes.is_empty(), "another priority: {notes:?}");
}

#[test]
fn a_hundred_thousand_rules_are_not_copied_for_one_more() {
    let mut specs = web_and_rest();
    specs.rules =
        (0..100_000).map(|n| rule((n >> 16) as u16, n & 0xffff, to_chain("web"))).collect();
    let model = build(&specs, None).unwrap();
    assert_eq!(model.rule_count(), 100_000);
    let next = model.edit(&[add(rule(7, 7, to_chain("default")))]).unwrap().model;
    let shared = model.rules().zip(next.rules().skip(1)).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
    assert_eq!(shared, 100_000, "the rules themselves are shared");
    let delta = Model::rule_delta(&model, &next);
    assert_eq!((delta.removed.len(), delta.added.len()), (0, 1));
}
