//! What happened, read off the differences between one status and the next.
#![forbid(unsafe_code)]

mod differences;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use nflib::control::Status;
use schemars::JsonSchema;
use serde::Serialize;

use differences::differences;

/// Entries that are kept; the oldest go first.
const MAX_ENTRIES: usize = 1000;
/// Drops of one reason at one place that have stopped for so long begin anew, milliseconds.
const DROPS_QUIET_MS: u64 = 60_000;
/// Longest text of an entry, characters: names come from NFs and people.
const MAX_TEXT_CHARS: usize = 400;

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The manager came, went, or is another.
    Manager,
    /// An NF attached.
    Start,
    /// An NF left in good order.
    Stop,
    /// An NF ended without having been told to, or stands still.
    Crash,
    /// A service has another number of instances, or waits with starting one.
    Scale,
    /// A service's NFs are exchanged for those of another command.
    Upgrade,
    /// Chains or rules changed.
    Apply,
    /// A port's link changed.
    Link,
    /// Packets are dropped that were not before.
    Drop,
    /// Something is not as it must be: the books, a buffer, an NF's descriptors.
    Fault,
}

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As somebody wanted it.
    Info,
    /// Something is well again.
    Good,
    /// Look at it.
    Warning,
    /// Something is broken.
    Bad,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Entry {
    /// Counts up from 1 while the console runs.
    pub seq: u64,
    /// When the console saw it, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// What kind.
    pub kind: Kind,
    /// How much it matters.
    pub level: Level,
    /// Whom it is about: `manager`, `port:NAME`, `nf:INSTANCE`, `service:NAME`, `chain:NAME`, `rules`.
    pub subject: String,
    /// For people, one line.
    pub text: String,
}

/// Something that happened, before it has a number.
#[derive(Clone, Debug, PartialEq, Eq)]
struct News {
    kind: Kind,
    level: Level,
    subject: String,
    text: String,
}

impl News {
    fn new(kind: Kind, level: Level, subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { kind, level, subject: subject.into(), text: text.into() }
    }
}

/// The entries so far, and what the next status is compared with.
#[derive(Debug, Default)]
pub struct Timeline {
    entries: VecDeque<Entry>,
    seq: u64,
    before: Option<Arc<Status>>,
    away: Option<String>,
    /// When packets were last seen to be dropped, by place and reason.
    dropped_at: HashMap<(String, String), u64>,
}

impl Timeline {
    /// The manager answered; returns the number of the latest entry.
    pub fn up(&mut self, status: &Arc<Status>, at_unix_ms: u64) -> u64 {
        let back = self.away.take().is_some();
        let before = self.before.replace(Arc::clone(status));
        match before {
            Some(before) if is_same_manager(&before, status) => {
                if back {
                    let text = "the manager answers again; what happened meanwhile follows";
                    self.add(at_unix_ms, News::new(Kind::Manager, Level::Good, "manager", text));
                }
                for news in differences(&before, status) {
                    self.add(at_unix_ms, news);
                }
                self.drops(&before, status, at_unix_ms);
            }
            before => {
                let verb = if before.is_some() {
                    "another manager answers"
                } else {
                    "the manager answers"
                };
                let text = format!(
                    "{verb}: release {}, pid {}, {} ports, {} NFs",
                    status.version,
                    status.pid,
                    status.ports.len(),
                    status.nfs.len()
                );
                let level = if back || before.is_some() { Level::Good } else { Level::Info };
                self.add(at_unix_ms, News::new(Kind::Manager, level, "manager", text));
                self.dropped_at.clear();
            }
        }
        self.seq
    }

    /// The manager did not answer; returns the number of the latest entry.
    pub fn away(&mut self, message: &str, at_unix_ms: u64) -> u64 {
        if self.away.is_none() && self.before.is_some() {
            let text = format!("the manager is away: {message}");
            self.add(at_unix_ms, News::new(Kind::Manager, Level::Bad, "manager", text));
        }
        self.away = Some(message.to_owned());
        self.seq
    }

    /// Entries behind number `after`, the oldest first.
    pub fn after(&self, after: u64) -> Vec<Entry> {
        self.entries.iter().filter(|entry| entry.seq > after).cloned().collect()
    }

    fn add(&mut self, at_unix_ms: u64, news: News) {
        if self.entries.len() == MAX_ENTRIES {
            self.entries.pop_front();
        }
        self.seq += 1;
        let News { kind, level, subject, text } = news;
        let text = text.chars().take(MAX_TEXT_CHARS).collect();
        self.entries.push_back(Entry { seq: self.seq, at_unix_ms, kind, level, subject, text });
    }

    /// Lines of the ledger that move after they stood still, or are new.
    fn drops(&mut self, before: &Status, now: &Status, at_unix_ms: u64) {
        let mut last: HashMap<_, _> = std::mem::take(&mut self.dropped_at);
        for line in &now.drops {
            let same = |then: &&nflib::control::DropStatus| {
                then.place == line.place && then.reason == line.reason
            };
            let then_pkts = before.drops.iter().find(same).map_or(0, |then| then.pkts);
            let key = (line.place.clone(), line.reason.clone());
            let at = last.remove(&key);
            if line.pkts <= then_pkts {
                self.dropped_at.extend(at.map(|at| (key, at)));
                continue;
            }
            if at.is_none_or(|at| at_unix_ms.saturating_sub(at) > DROPS_QUIET_MS) {
                let text = format!("packets are dropped at {}: {}", line.place, line.reason);
                self.add(at_unix_ms, News::new(Kind::Drop, Level::Warning, &line.place, text));
            }
            self.dropped_at.insert(key, at_unix_ms);
        }
    }
}

fn is_same_manager(before: &Status, now: &Status) -> bool {
    before.pid == now.pid && before.uptime_s <= now.uptime_s
}

#[cfg(test)]
mod tests;
