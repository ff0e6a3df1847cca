//! Words of the command line that clap does not know: matches, actions, branches, targets.
#![forbid(unsafe_code)]

use nflib::control::{MatchSpec, Target, ThenSpec, spec::Value};

/// Where the fields of a match are listed.
const FIELDS_HINT: &str = "`millrace rule fields` lists all";
const ACTIONS: &str = "chain=NAME, out=PORT, drop, or goto=TABLE (with set_metadata=VALUE)";

/// `MATCH… then ACTION…`: fields as `name=value`, `*` or nothing for every packet; then what to do.
///
/// # Errors
/// One line: what is wrong, what was expected.
pub fn rule(words: &[String]) -> Result<(MatchSpec, ThenSpec), String> {
    let at = words.iter().position(|word| word == "then").ok_or_else(|| {
        format!("no \"then\": expected MATCH… then ACTION, where ACTION is {ACTIONS}")
    })?;
    Ok((matches(&words[..at])?, then(&words[at + 1..])?))
}

/// `FIELD=VALUE…`; `*` or nothing for every packet.
///
/// # Errors
/// One line.
pub fn matches(words: &[String]) -> Result<MatchSpec, String> {
    let mut spec = MatchSpec::default();
    for word in words.iter().filter(|&word| word != "*") {
        let (field, value) = pair(word).ok_or_else(|| {
            format!("{word:?} is no match: expected FIELD=VALUE, as in tp_dst=80; {FIELDS_HINT}")
        })?;
        if spec.fields().any(|(name, _)| name == field) {
            return Err(format!("{field} is given twice"));
        }
        spec.set(field, number_or_text(value)).map_err(|_| unknown_field(field))?;
    }
    Ok(spec)
}

fn unknown_field(field: &str) -> String {
    match nearest(field, MatchSpec::FIELDS.iter().copied()) {
        Some(near) => {
            format!("there is no field {field:?}; did you mean {near}? {FIELDS_HINT}")
        }
        None => format!("there is no field {field:?}; {FIELDS_HINT}"),
    }
}

fn then(words: &[String]) -> Result<ThenSpec, String> {
    let mut spec = ThenSpec::default();
    for word in words {
        let wrong = || format!("{word:?} is no action: expected {ACTIONS}");
        let given_twice = match (word.as_str(), pair(word)) {
            ("drop", _) => std::mem::replace(&mut spec.drop, true),
            (_, Some(("chain", name))) => spec.chain.replace(name.to_owned()).is_some(),
            (_, Some(("out", port))) => spec.out.replace(port.to_owned()).is_some(),
            (_, Some(("set_metadata", value))) => {
                spec.set_metadata.replace(number_or_text(value)).is_some()
            }
            (_, Some(("goto", table))) => {
                let table = table
                    .parse()
                    .map_err(|_| format!("{word:?}: expected a table's number, 0 to 255"))?;
                spec.goto.replace(table).is_some()
            }
            _ => return Err(wrong()),
        };
        if given_twice {
            return Err(format!("{word:?}: given twice"));
        }
    }
    let ends = [spec.chain.is_some(), spec.out.is_some(), spec.drop, spec.goto.is_some()];
    match ends.iter().filter(|&&given| given).count() {
        0 => Err(format!("no action behind \"then\": expected {ACTIONS}")),
        1 if spec.set_metadata.is_some() && spec.goto.is_none() => {
            Err("set_metadata without goto: only a later table can see the metadata".to_owned())
        }
        1 => Ok(spec),
        _ => Err(format!("several actions behind \"then\": expected one of {ACTIONS}")),
    }
}

/// `name=value`, both not empty.
fn pair(word: &str) -> Option<(&str, &str)> {
    word.split_once('=').filter(|(name, value)| !name.is_empty() && !value.is_empty())
}

fn number_or_text(text: &str) -> Value {
    text.parse().map_or_else(|_| Value::Text(text.to_owned()), Value::Int)
}

/// A branch of a chain: `name=chain`.
///
/// # Errors
/// One line.
pub fn branch(word: &str) -> Result<(String, String), String> {
    let (name, chain) =
        pair(word).ok_or("expected NAME=CHAIN: the branch's name and the chain it leads to")?;
    Ok((name.to_owned(), chain.to_owned()))
}

/// Whom a message is for: an instance's number, `service:NAME`, or a service's name.
///
/// # Errors
/// One line.
pub fn target(word: &str) -> Result<Target, String> {
    let service = |text: &str| text.parse().map(Target::Service).map_err(|error| match error {});
    match word.split_once(':') {
        Some(("service", "")) | None if word.is_empty() || word == "service:" => {
            Err("expected an instance's number, a service's name, or service:NAME".to_owned())
        }
        Some(("service", name)) => service(name),
        _ => match word.parse() {
            Ok(instance) => Ok(Target::Instance(instance)),
            Err(_) => service(word),
        },
    }
}

/// A positive number of seconds.
///
/// # Errors
/// One line.
pub fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() && seconds > 0.0 => Ok(seconds),
        _ => Err("expected a number of seconds above 0".to_owned()),
    }
}

/// An interval to measure over: 0.01 to 3600 seconds.
///
/// # Errors
/// One line.
pub fn interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected 0.01 to 3600 seconds".to_owned()),
    }
}

/// The candidate that was probably meant: at most a third of its letters, and at least one, differ.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = candidates.map(|candidate| (distance(word, candidate), candidate)).min()?;
    let allowed = (near.1.chars().count() / 3).max(1);
    Some(near.1).filter(|_| near.0 <= allowed)
}

/// Levenshtein's distance: insertions, removals and replacements from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replace = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::control::ServiceRef;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(ToOwned::to_owned).collect()
    }

    #[track_caller]
    fn refused(text: &str) -> String {
        let error = rule(&words(text)).unwrap_err();
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    }

    #[test]
    fn a_rule_is_read_and_shown_again() {
        for text in [
            "ip_proto=tcp tp_dst=80 then chain=web",
            "eth_src=02:00:00:00:00:01/ff:ff:00:00:00:00 tcp_flags=syn,!ack then drop",
            "in_port=left ip_dst=2001:db8::/32 then out=wan",
            "vlan=none then set_metadata=0x10/0xf0 goto=1",
            "* then chain=default",
        ] {
            let (matches, then) = rule(&words(text)).unwrap();
            assert_eq!(format!("{matches} then {then}"), text);
        }
        assert_eq!(rule(&words("then drop")).unwrap().0, MatchSpec::default());
    }

    #[test]
    fn numbers_are_numbers_and_all_else_is_text() {
        let (matches, _) = rule(&words("tp_dst=80 tp_src=0x50 then drop")).unwrap();
        assert_eq!(matches.tp_dst, Some(Value::Int(80)));
        assert_eq!(matches.tp_src, Some(Value::Text("0x50".into())));
    }

    #[test]
    fn every_field_can_be_written() {
        for field in MatchSpec::FIELDS {
            let (matches, _) = rule(&words(&format!("{field}=1 then drop"))).unwrap();
            assert_eq!(matches.fields().map(|(name, _)| name).collect::<Vec<_>>(), [*field]);
        }
    }

    #[test]
    fn an_unknown_field_is_told_the_nearest_and_the_list() {
        let error = refused("tp_dest=80 then drop");
        assert_eq!(
            error,
            "there is no field \"tp_dest\"; did you mean tp_dst? `millrace rule fields` lists all"
        );
        let error = refused("colour=red then drop");
        assert!(!error.contains("did you mean") && error.contains("rule fields"), "{error}");
    }

    #[test]
    fn each_mistake_says_what_was_expected() {
        for (text, expected) in [
            ("tp_dst=80 drop", "no \"then\""),
            ("tp_dst then drop", "expected FIELD=VALUE"),
            ("tp_dst= then drop", "expected FIELD=VALUE"),
            ("=80 then drop", "expected FIELD=VALUE"),
            ("tp_dst=80 tp_dst=81 then drop", "given twice"),
            ("tp_dst=80 then", "no action"),
            ("then chain=web drop", "several actions"),
            ("then chain=web chain=mail", "given twice"),
            ("then drop drop", "given twice"),
            ("then send=wan", "expected chain=NAME, out=PORT"),
            ("then chain=", "expected chain=NAME, out=PORT"),
            ("then goto=256", "0 to 255"),
            ("then goto=next", "0 to 255"),
            ("then drop set_metadata=1", "without goto"),
            ("then set_metadata=1", "no action"),
            ("then drop then drop", "\"then\" is no action"),
        ] {
            let error = refused(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_target_is_an_instance_or_a_service() {
        assert_eq!(target("7"), Ok(Target::Instance(7)));
        let nat = Target::Service(ServiceRef::Name("nat".into()));
        assert_eq!(target("nat"), Ok(nat.clone()));
        assert_eq!(target("service:nat"), Ok(nat));
        assert_eq!(target("service:7"), Ok(Target::Service(ServiceRef::Id(7))));
        assert!(target("").is_err() && target("service:").is_err());
    }

    #[test]
    fn a_branch_has_a_name_and_a_chain() {
        assert_eq!(branch("bad=scrub"), Ok(("bad".into(), "scrub".into())));
        assert!(branch("bad").is_err() && branch("=x").is_err() && branch("x=").is_err());
    }

    #[test]
    fn times_are_finite_and_positive() {
        assert_eq!(seconds("0.5"), Ok(0.5));
        for text in ["0", "-1", "inf", "nan", "x", ""] {
            assert!(seconds(text).is_err() && interval(text).is_err(), "{text}");
        }
        assert!(interval("0.001").is_err() && interval("3601").is_err());
    }

    #[test]
    fn the_distance_of_words_counts_their_differences() {
        for (a, b, expected) in
            [("", "", 0), ("abc", "abc", 0), ("abc", "", 3), ("kitten", "sitting", 3)]
        {
            assert_eq!((distance(a, b), distance(b, a)), (expected, expected));
        }
    }
}
