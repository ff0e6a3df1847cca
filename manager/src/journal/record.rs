//! What stands in a journal, line by line, and what a journal says as a whole.
//!
//! ```text
//! millrace journal, version 1
//! CHECKSUM {"state":{…}}      all that was wanted when this file was begun
//! CHECKSUM {"change":{…}}     one change of it, oldest first
//! …
//! ```
//! The checksum is FNV-1a of the JSON, in 16 hexadecimal digits. A line is written at once and only ever
//! at the end, so whatever a death or a power cut leaves of the last one is no whole line, and what it
//! said was never answered. A line that is wrong before one that is right is damage.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use nflib::control::Edit;
use serde::{Deserialize, Serialize};

use crate::flow::RuleId;
use crate::model::{Model, ModelError, ModelSpecs, Numbered};

/// Version of the format.
const VERSION: u32 = 1;
/// What the first line begins with.
const TITLE: &str = "millrace journal, version ";
/// Digits of a checksum.
const SUM_DIGITS: usize = 16;

/// One step of a change, as it was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Some edits, as one.
    Edits {
        /// They.
        edits: Vec<Edit>,
    },
    /// A whole file.
    Specs {
        /// What it says.
        specs: ModelSpecs,
    },
}

/// What is wanted, and all that belongs to it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// It.
    pub model: Numbered,
    /// When rules with a hard timeout run out, milliseconds of the Unix epoch.
    pub deadlines_ms: Deadlines,
    /// [`digest`]s of the files it follows on: the one the manager was started with, and the one that
    /// was applied last.
    pub files: Vec<u64>,
}

/// When rules run out for good, milliseconds of the Unix epoch.
pub type Deadlines = BTreeMap<RuleId, u64>;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    State(Box<Snapshot>),
    Change {
        /// When, milliseconds of the Unix epoch.
        at_ms: u64,
        steps: Vec<Step>,
    },
}

/// Why a journal cannot be gone by; where, and what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage(pub String);

/// What a journal says.
#[derive(Debug)]
pub struct Restored {
    /// What is wanted.
    pub model: Model,
    /// When rules run out.
    pub deadlines_ms: Deadlines,
    /// See [`Snapshot::files`].
    pub files: Vec<u64>,
    /// Changes since the file was begun.
    pub changes: usize,
    /// Bytes at the end that are no whole line: what was being written when the manager died.
    pub torn_bytes: usize,
}

/// Tells one file's services, chains and rules from another's.
#[must_use]
pub fn digest(specs: &ModelSpecs) -> u64 {
    // Specs are texts, numbers, lists and tables: JSON has them all.
    fnv1a(&serde_json::to_vec(specs).unwrap_or_default())
}

/// FNV-1a, 64 bits (RFC draft eastlake-fnv): every single byte that changes changes it.
fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The beginning of a file.
///
/// # Errors
/// As serde_json, which a state of ours gives no reason for.
pub fn first_lines(snapshot: Snapshot) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = format!("{TITLE}{VERSION}\n").into_bytes();
    bytes.extend(line(&Record::State(Box::new(snapshot)))?);
    Ok(bytes)
}

/// A line to add.
///
/// # Errors
/// As [`first_lines`].
pub fn change_line(at_ms: u64, steps: Vec<Step>) -> Result<Vec<u8>, serde_json::Error> {
    line(&Record::Change { at_ms, steps })
}

fn line(record: &Record) -> Result<Vec<u8>, serde_json::Error> {
    let json = serde_json::to_vec(record)?;
    let mut line = format!("{:0SUM_DIGITS$x} ", fnv1a(&json)).into_bytes();
    line.extend(json);
    line.push(b'\n');
    Ok(line)
}

/// The JSON of a whole line; `None` for anything else.
fn json_of(line: &[u8]) -> Option<&[u8]> {
    let (sum, json) = line.split_at_checked(SUM_DIGITS + 1)?;
    let sum = std::str::from_utf8(sum.strip_suffix(b" ")?).ok()?;
    (u64::from_str_radix(sum, 16).ok()? == fnv1a(json)).then_some(json)
}

/// Reads a journal over the ports there are now.
///
/// # Errors
/// [`Damage`].
pub fn read(bytes: &[u8], ports: &[String]) -> Result<Restored, Damage> {
    let (mut lines, torn_bytes) = whole_lines(bytes)?;
    let mut next = |number: usize| -> Result<Option<Record>, Damage> {
        let Some(json) = lines.next() else { return Ok(None) };
        serde_json::from_slice(json).map(Some).map_err(|error| {
            Damage(format!("line {number} is whole and says what is not known here: {error}"))
        })
    };
    let Some(Record::State(first)) = next(2)? else {
        return Err(Damage("it does not begin with a state: line 2 is damaged".into()));
    };
    let refused = |number: usize| {
        move |error: ModelError| Damage(format!("line {number} cannot be so here: {error}"))
    };
    let model = Model::from_numbered(&first.model, ports).map_err(refused(2))?;
    let Snapshot { deadlines_ms, files, .. } = *first;
    let mut restored = Restored { model, deadlines_ms, files, changes: 0, torn_bytes };
    for number in 3.. {
        match next(number)? {
            None => break,
            Some(Record::State(_)) => {
                return Err(Damage(format!("line {number} is a second state")));
            }
            Some(Record::Change { at_ms, steps }) => {
                restored.follow(at_ms, &steps).map_err(refused(number))?;
            }
        }
    }
    Ok(restored)
}

/// The JSON of each line behind the title, and how many bytes at the end are no whole line.
fn whole_lines(bytes: &[u8]) -> Result<(impl Iterator<Item = &[u8]>, usize), Damage> {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let (title, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
    let version = title.strip_prefix(TITLE.as_bytes()).and_then(|v| v.strip_suffix(b"\n"));
    match version.map(|version| version == VERSION.to_string().as_bytes()) {
        Some(true) => {}
        Some(false) => {
            let version = String::from_utf8_lossy(version.unwrap_or_default()).into_owned();
            return Err(Damage(format!(
                "it is of version {version:.20?}, and this release reads version {VERSION}"
            )));
        }
        None => return Err(Damage(format!("it does not begin with \"{TITLE}{VERSION}\""))),
    }
    let mut good = Vec::new();
    let mut bad = None;
    let mut whole_bytes = 0;
    let mut at = 0;
    for (number, line) in (2..).zip(rest.split_inclusive(|byte| *byte == b'\n')) {
        at += line.len();
        match line.strip_suffix(b"\n").and_then(json_of) {
            Some(_) if bad.is_some() => {
                let bad = bad.unwrap_or_default();
                return Err(Damage(format!(
                    "line {bad} is damaged, and whole ones stand behind it"
                )));
            }
            Some(json) => {
                good.push(json);
                whole_bytes = at;
            }
            None => bad = bad.or(Some(number)),
        }
    }
    Ok((good.into_iter(), rest.len() - whole_bytes))
}

impl Restored {
    fn follow(&mut self, at_ms: u64, steps: &[Step]) -> Result<(), ModelError> {
        let mut model = self.model.clone();
        for step in steps {
            model = match step {
                Step::Edits { edits } => model.edit(edits)?.model,
                Step::Specs { specs } => {
                    note_file(&mut self.files, specs);
                    Model::build(specs, model.ports(), Some(&model))?.0
                }
            };
        }
        note_deadlines(&mut self.deadlines_ms, &self.model, &model, at_ms);
        self.model = model;
        self.changes += 1;
        Ok(())
    }
}

/// Notes the file that was applied last.
pub fn note_file(files: &mut Vec<u64>, specs: &ModelSpecs) {
    files.truncate(1);
    files.push(digest(specs));
}

/// Notes when the rules run out that a change brought, and forgets those that it took away.
pub fn note_deadlines(deadlines_ms: &mut Deadlines, old: &Model, new: &Model, at_ms: u64) {
    let delta = Model::rule_delta(old, new);
    for rule in &delta.removed {
        deadlines_ms.remove(&rule.id());
    }
    for rule in delta.added.iter().filter(|rule| rule.entry.hard_timeout_ns > 0) {
        let end_ms = at_ms.saturating_add(rule.entry.hard_timeout_ns / 1_000_000);
        deadlines_ms.insert(rule.id(), end_ms);
    }
}
