//! Rows of measurements: a table for people, or one JSON object a line for programs.
#![allow(clippy::print_stdout)]

use serde_json::{Map, Value, json};

/// One comparison. `ratio` is written so that larger is better for us.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What was done.
    pub work: String,
    /// Our figure.
    pub ours: f64,
    /// Unit of both figures.
    pub unit: &'static str,
    /// Whom we are compared with.
    pub peer: &'static str,
    /// The peer's figure.
    pub peer_value: f64,
    /// Ours to theirs.
    pub ratio: f64,
    /// The ratio aimed at; 0 where none was set.
    pub aim: f64,
}

impl Row {
    /// True when the aim is reached, or none was set.
    #[must_use]
    pub fn met(&self) -> bool {
        self.ratio >= self.aim
    }

    /// As one JSON object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "work": self.work, "ours": rounded(self.ours), "unit": self.unit, "peer": self.peer,
            "peer_value": rounded(self.peer_value), "ratio": rounded(self.ratio), "aim": rounded(self.aim),
            "met": self.met(),
        })
    }
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Prints rows as they are measured.
#[derive(Debug)]
pub struct Report {
    json: bool,
    missed: usize,
}

impl Report {
    /// A table, or JSON lines.
    #[must_use]
    pub fn new(json: bool) -> Self {
        Self { json, missed: 0 }
    }

    /// The machine, in a line of its own; first.
    pub fn environment(&self, environment: &Value) {
        if self.json {
            println!("{environment}");
            return;
        }
        println!("{}\n", environment["environment"]);
        println!(
            "{:<44} {:>9} {:>9} {:<16} {:<16} {:>6}  aim",
            "work", "ours", "peer", "unit", "peer is", "ratio"
        );
    }

    /// One row.
    pub fn row(&mut self, row: &Row) {
        self.row_with(row, Map::new());
    }

    /// One row, and what else there is to know of it, which is shown in JSON only; of the distances
    /// between the cores also the table shows the smallest and the largest.
    pub fn row_with(&mut self, row: &Row, more: Map<String, Value>) {
        self.missed += usize::from(!row.met());
        if self.json {
            let mut object = row.to_json();
            if let Some(object) = object.as_object_mut() {
                object.extend(more);
            }
            println!("{object}");
            return;
        }
        let aim = match (row.aim > 0.0, row.met()) {
            (false, _) => String::new(),
            (true, true) => format!("{:.1} met", row.aim),
            (true, false) => format!("{:.1} MISSED", row.aim),
        };
        println!(
            "{:<44} {:>9.1} {:>9.1} {:<16} {:<16} {:>5.2}x  {aim}",
            row.work, row.ours, row.peer_value, row.unit, row.peer, row.ratio
        );
        let distances = more.get("core_to_core_ns_each").and_then(Value::as_array);
        let distances = distances.into_iter().flatten().filter_map(Value::as_f64);
        if let (Some(least), Some(most)) =
            (distances.clone().reduce(f64::min), distances.reduce(f64::max))
        {
            println!("{:<44} {least:.0} to {most:.0} ns from core to core", "");
        }
    }

    /// A row that could not be measured, and why.
    pub fn no_row(&self, work: &str, unit: &str, peer: &str, aim: f64, why: &str) {
        if self.json {
            let (nothing, met) = (Value::Null, false);
            let row = json!({
                "work": work, "ours": nothing, "unit": unit, "peer": peer, "peer_value": nothing,
                "ratio": nothing, "aim": rounded(aim), "met": met, "not_measured": why,
            });
            println!("{row}");
            return;
        }
        println!("{work:<44} {:>9} {:>9} not measured: {why}", "-", "-");
    }

    /// Last line of a table.
    pub fn finish(&self) {
        if !self.json && self.missed > 0 {
            println!("\n{} of the aims were missed", self.missed);
        }
    }
}

/// The middle value; of an even number, the mean of the two.
///
/// # Panics
/// When there is no value.
#[must_use]
pub fn median(values: &mut [f64]) -> f64 {
    assert!(!values.is_empty(), "a median of nothing");
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert!((median(&mut [3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&mut [4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
    }

    #[test]
    fn a_row_says_whether_its_aim_is_met() {
        let row = Row {
            work: "w".into(),
            ours: 3.0,
            unit: "u",
            peer: "p",
            peer_value: 2.0,
            ratio: 1.5,
            aim: 1.8,
        };
        assert_eq!(row.to_json()["met"], false);
        assert_eq!(Row { aim: 0.0, ..row }.to_json()["met"], true);
    }
}
