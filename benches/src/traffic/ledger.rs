//! What came of one flow: each number once, in order, or not.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

/// How a packet came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Its number is higher than all before.
    InOrder,
    /// A higher number came before it.
    Reordered,
    /// It came before.
    Duplicate,
}

/// The numbers of one flow that came.
#[derive(Clone, Debug, Default)]
pub struct FlowLedger {
    /// All numbers below this came.
    complete: u64,
    /// Those above that came: empty while nothing is missing.
    ahead: BTreeSet<u64>,
    highest: Option<u64>,
    /// Packets that came when a higher number had come.
    pub reordered: u64,
    /// Packets that came again.
    pub duplicated: u64,
}

impl FlowLedger {
    /// Notes a packet.
    pub fn note(&mut self, number: u64) -> Arrival {
        if number < self.complete || !self.ahead.insert(number) {
            self.duplicated += 1;
            return Arrival::Duplicate;
        }
        while self.ahead.remove(&self.complete) {
            self.complete += 1;
        }
        if self.highest.is_some_and(|highest| number < highest) {
            self.reordered += 1;
            return Arrival::Reordered;
        }
        self.highest = Some(number);
        Arrival::InOrder
    }

    /// Different numbers that came.
    #[must_use]
    pub fn distinct(&self) -> u64 {
        self.complete + self.ahead.len() as u64
    }

    /// Numbers that did not come, of `sent`; of those up to the highest when it is not known.
    #[must_use]
    pub fn lost(&self, sent: Option<u64>) -> u64 {
        let sent =
            sent.unwrap_or_else(|| self.highest.map_or(0, |highest| highest.saturating_add(1)));
        sent - self.within(sent)
    }

    /// Numbers that came although they were never sent.
    #[must_use]
    pub fn invented(&self, sent: u64) -> u64 {
        self.distinct() - self.within(sent)
    }

    fn within(&self, sent: u64) -> u64 {
        self.complete.min(sent) + self.ahead.range(..sent).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// What the words mean, counted the slow way.
    fn naive(numbers: &[u64], at: usize) -> Arrival {
        let (before, number) = (&numbers[..at], numbers[at]);
        if before.contains(&number) {
            Arrival::Duplicate
        } else if before.iter().any(|&earlier| earlier > number) {
            Arrival::Reordered
        } else {
            Arrival::InOrder
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn every_arrival_is_judged_as_the_naive_model_judges_it(
            numbers in proptest::collection::vec(0u64..40, 0..80), sent in 0u64..50,
        ) {
            let mut ledger = FlowLedger::default();
            let mut counts = [0u64; 3];
            for (at, &number) in numbers.iter().enumerate() {
                let arrival = naive(&numbers, at);
                prop_assert_eq!(ledger.note(number), arrival);
                counts[arrival as usize] += 1;
            }
            prop_assert_eq!([ledger.reordered, ledger.duplicated], [counts[1], counts[2]]);
            let came: HashSet<_> = numbers.iter().copied().collect();
            prop_assert_eq!(ledger.distinct(), came.len() as u64);
            let lost = (0..sent).filter(|number| !came.contains(number)).count() as u64;
            prop_assert_eq!(ledger.lost(Some(sent)), lost);
            let invented = came.iter().filter(|&&number| number >= sent).count() as u64;
            prop_assert_eq!(ledger.invented(sent), invented);
            let highest = numbers.iter().max().map_or(0, |highest| highest + 1);
            prop_assert_eq!(ledger.lost(None), highest - came.len() as u64);
        }
    }

    #[test]
    fn a_flow_in_order_costs_no_memory() {
        let mut ledger = FlowLedger::default();
        assert!((0..10_000).all(|number| ledger.note(number) == Arrival::InOrder));
        assert!(ledger.ahead.is_empty());
        assert_eq!((ledger.distinct(), ledger.lost(Some(10_001))), (10_000, 1));
    }

    #[test]
    fn the_highest_number_there_is_can_come() {
        let mut ledger = FlowLedger::default();
        assert_eq!(ledger.note(u64::MAX), Arrival::InOrder);
        assert_eq!(ledger.lost(None), u64::MAX);
        assert_eq!(ledger.note(0), Arrival::Reordered);
    }
}
