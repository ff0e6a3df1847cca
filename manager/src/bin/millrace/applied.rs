//! What a change did, for people: the changes, what should be known about them, and what they cost.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use nflib::control::Applied;

use crate::table::{clean, percent};
use crate::{Globals, print};

/// Whether a change was made, or only looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// It was made.
    Done,
    /// It was only asked what it would do.
    Would,
}

/// Prints what an edit did.
pub fn report(globals: &Globals, applied: &Applied) -> anyhow::Result<()> {
    print::either(globals.json, applied, || show(applied, Mood::Done))
}

/// The changes, one a line; notes; and how it went.
pub fn show(applied: &Applied, mood: Mood) -> String {
    let mut out = String::new();
    for change in &applied.changes {
        let _ = writeln!(out, "{}", clean(&change.to_string()));
    }
    for note in &applied.notes {
        let _ = writeln!(out, "note: {}", clean(note));
    }
    let Applied { generation, took_us, .. } = applied;
    let _ = match (mood, applied.changes.is_empty()) {
        (_, true) => writeln!(out, "nothing to change; generation {generation}"),
        (Mood::Would, false) => writeln!(out, "this is what would change; nothing was changed"),
        (Mood::Done, false) => writeln!(
            out,
            "generation {generation}: {} of the flows moved, in force after {}",
            moved(applied),
            took(*took_us)
        ),
    };
    if let [id] = applied.rule_ids[..] {
        let _ = writeln!(out, "rule {id} added");
    }
    out
}

/// `25.0 %`; of a change in several steps, each: `33.3 %, then 25.0 %`.
fn moved(applied: &Applied) -> String {
    let steps: Vec<_> = applied.moves.iter().map(|&share| percent(share)).collect();
    if steps.len() > 1 { steps.join(", then ") } else { percent(applied.moved_share) }
}

fn took(us: u64) -> String {
    match us {
        0..1000 => format!("{us} µs"),
        1000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::control::{Change, ChangeOf};

    fn applied() -> Applied {
        let change = |before: Option<&str>, after: Option<&str>| Change {
            of: ChangeOf::Chain,
            name: "web".into(),
            before: before.map(Into::into),
            after: after.map(Into::into),
        };
        Applied {
            changes: vec![change(Some("fw → egress"), Some("fw → nat → egress"))],
            notes: vec!["no rule\nsends packets into chain web".into()],
            generation: 7,
            moved_share: 0.25,
            took_us: 1234,
            ..Applied::default()
        }
    }

    #[test]
    fn a_change_is_told_with_its_cost() {
        assert_eq!(
            show(&applied(), Mood::Done),
            "~ chain web: fw → egress → fw → nat → egress\n\
             note: no rule\u{fffd}sends packets into chain web\n\
             generation 7: 25.0 % of the flows moved, in force after 1.2 ms\n"
        );
    }

    #[test]
    fn what_was_only_asked_is_not_told_as_done() {
        let text = show(&applied(), Mood::Would);
        assert!(text.ends_with("would change; nothing was changed\n"), "{text}");
        assert!(!text.contains('%'), "{text}");
    }

    #[test]
    fn each_step_of_a_change_is_told_its_share() {
        let steps = Applied { moved_share: 0.33, moves: vec![0.33, 0.25], ..applied() };
        assert!(show(&steps, Mood::Done).contains(": 33.0 %, then 25.0 % of the flows moved"));
        let one = Applied { moves: vec![0.25], ..applied() };
        assert!(show(&one, Mood::Done).contains(" 25.0 % of the flows moved"));
    }

    #[test]
    fn no_change_is_said() {
        let nothing = Applied { generation: 3, ..Applied::default() };
        assert_eq!(show(&nothing, Mood::Would), "nothing to change; generation 3\n");
    }

    #[test]
    fn a_new_rule_is_told_its_number() {
        let one = Applied { rule_ids: vec![12], ..applied() };
        assert!(show(&one, Mood::Done).ends_with("rule 12 added\n"));
    }

    #[test]
    fn times_have_their_unit() {
        assert_eq!([took(999), took(1000), took(2_500_000)], ["999 µs", "1.0 ms", "2.50 s"]);
    }
}
