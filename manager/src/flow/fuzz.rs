//! What must hold for any bytes and any text: the bodies of the fuzz targets, which also run as
//! property tests.
#![forbid(unsafe_code)]

use nflib::control::MatchSpec;
use nflib::control::spec::Value;

use super::{FlowKey, FlowTable, Match, Rule, Then, Verdict};

/// Any bytes as a frame: a key, a hash and a verdict, the same with a cache and without.
///
/// # Panics
/// When a promise is broken.
pub fn fuzz_key(data: &[u8]) {
    let key = FlowKey::parse(data, 1, 2, 0);
    assert_eq!(key, FlowKey::parse(data, 1, 2, 0));
    assert_ne!(key.flow_hash(), 0);
    assert!(key.ports().is_none() || key.ipv4().is_some() || key.ipv6().is_some());
    let spec = key.to_spec(&|port| port.to_string());
    let shown = Match::compile(&spec, &|name| name.parse().ok()).expect("a key shown is a match");
    assert!(shown.matches(&key), "{spec}");

    let mut tables = [FlowTable::new(0), FlowTable::new(8)];
    for table in &mut tables {
        let exact = Rule {
            id: 1,
            priority: 2,
            matches: Match::exact(key),
            then: Then::Chain(1),
            ..Rule::default()
        };
        let cut = FlowKey::parse(&data[..data.len() / 2], 1, 2, 0);
        let half = Rule {
            id: 2,
            priority: 1,
            matches: Match::new(cut, key),
            then: Then::Out(1),
            ..Rule::default()
        };
        table.insert(exact, 0).expect("no goto");
        table.insert(half, 0).expect("no goto");
        for table_change in 0..3 {
            let (keys, mut out) = ([key, cut], [Verdict::default(); 2]);
            table.classify_burst(&keys, &mut [0; 2], &[1; 2], 1, &mut out);
            for (key, verdict) in keys.iter().zip(out) {
                assert_eq!((verdict.outcome, table.rule_of(verdict)), table.rules().lookup(key));
            }
            table.remove(table_change);
        }
    }
}

/// Lines of `field=value` as a match: a match, or an error of one line.
///
/// # Panics
/// When a promise is broken.
pub fn fuzz_match(text: &str) {
    let mut spec = MatchSpec::default();
    for line in text.split('\n') {
        let Some((field, value)) = line.split_once('=') else { continue };
        let number = value.parse().map(Value::Int);
        let _ = spec.set(field, number.unwrap_or_else(|_| Value::Text(value.to_owned())));
    }
    match Match::compile(&spec, &|name| (name == "lan").then_some(0)) {
        Ok(compiled) => {
            assert!(compiled.matches(compiled.value()));
            assert!(compiled.overlaps(&compiled) && compiled.overlaps(&Match::ANY));
            assert!(spec != MatchSpec::default() || compiled == Match::ANY);
        }
        Err(error) => assert!(!error.to_string().contains('\n') && spec != MatchSpec::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_key(data in proptest::collection::vec(any::<u8>(), 0..120)) {
            fuzz_key(&data);
        }

        #[test]
        fn any_text_is_a_match_or_an_error_of_one_line(
            fields in proptest::collection::vec(
                (prop::sample::select(MatchSpec::FIELDS), "([0-9a-fx.:/!,]{0,9}|tcp|none|any|ipv4|lan|\\PC{0,5})"),
                0..5,
            ),
        ) {
            let lines: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
            fuzz_match(&lines.join("\n"));
        }
    }
}
