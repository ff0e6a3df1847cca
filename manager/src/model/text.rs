//! A wanted state as the text of a configuration file.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use nflib::control::RuleSpec;
use nflib::control::spec::Value;
use serde::Serialize;
use toml::Value as Toml;

use super::Model;

/// Keys in the order in which people write them; what is not listed comes behind.
const KEY_ORDER: &[&str] =
    &["name", "id", "table", "priority", "match", "then", "services", "command", "instances"];

/// Services, chains and rules as tables `[[service]]`, `[[chain]]` and `[[rule]]`, a key a line.
/// Reading the text again gives an equal state; services that are only implied by chains stay so.
#[must_use]
pub fn to_toml(model: &Model) -> String {
    let mut text = String::new();
    let specs = model.specs();
    for service in &specs.services {
        table(&mut text, "service", as_table(service));
    }
    for chain in &specs.chains {
        table(&mut text, "chain", as_table(chain));
    }
    for rule in specs.rules {
        table(&mut text, "rule", rule_table(rule));
    }
    text
}

fn rule_table(mut rule: RuleSpec) -> toml::Table {
    for (name, value) in rule.matches.clone().fields() {
        let _ = rule.matches.set(name, writable(value));
    }
    rule.then.set_metadata = rule.then.set_metadata.as_ref().map(writable);
    let mut table = as_table(&rule);
    // What is so anyhow is not written.
    table.retain(|key, value| !(matches!(key, "table" | "priority") && *value == Toml::Integer(0)));
    table.retain(|key, value| {
        !(key == "match" && value.as_table().is_some_and(toml::Table::is_empty))
    });
    table
}

/// TOML's numbers have a sign; larger ones are written as text, which means the same.
fn writable(value: &Value) -> Value {
    match value {
        Value::Int(number) if i64::try_from(*number).is_err() => {
            Value::Text(format!("{number:#x}"))
        }
        other => other.clone(),
    }
}

fn as_table<T: Serialize>(spec: &T) -> toml::Table {
    // Specs are made of texts, small numbers, lists and tables: TOML has them all.
    toml::Table::try_from(spec).unwrap_or_default()
}

fn table(text: &mut String, kind: &str, table: toml::Table) {
    let gap = if text.is_empty() { "" } else { "\n" };
    let _ = writeln!(text, "{gap}[[{kind}]]");
    let rank = |key: &str| KEY_ORDER.iter().position(|k| *k == key).unwrap_or(KEY_ORDER.len());
    let mut entries: Vec<_> = table.into_iter().collect();
    entries.sort_by_key(|(key, _)| rank(key));
    for (key, value) in entries {
        // Values print themselves on one line, tables as inline tables.
        let _ = writeln!(text, "{key} = {value}");
    }
}
