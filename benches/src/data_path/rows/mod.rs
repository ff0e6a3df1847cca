//! The rows: what is compared with what, and how. A row is a function and a line in a table.
#![forbid(unsafe_code)]

mod chains;
mod idle;
mod isolation;
mod loops;
mod ports;
mod sharing;

pub use chains::RING_CAPACITY;

use super::{Bench, Outcome, Trouble};

/// A comparison.
pub struct RowSpec {
    /// Its name, for `--only`.
    pub id: &'static str,
    /// What is done.
    pub work: &'static str,
    /// Unit of both figures.
    pub unit: &'static str,
    /// Whom we are compared with.
    pub peer: &'static str,
    /// The ratio aimed at; 0: none.
    pub aim: f64,
    /// Measures it.
    pub run: fn(&Bench) -> Result<Outcome, Trouble>,
}

/// All rows, in the order in which they are measured.
pub fn all() -> impl Iterator<Item = &'static RowSpec> {
    [loops::ROWS, chains::ROWS, ports::ROWS, sharing::ROWS, isolation::ROWS, idle::ROWS]
        .into_iter()
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_name_of_its_own_that_can_be_typed() {
        let ids: Vec<_> = all().map(|row| row.id).collect();
        let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(ids.len(), distinct.len());
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(ids.iter().all(|id| id.chars().all(plain)), "{ids:?}");
    }
}
