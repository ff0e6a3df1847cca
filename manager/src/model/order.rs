//! Which of several rules comes first.
//!
//! The flow table takes, of rules with one table and priority that match a packet, the one with the
//! lowest number. So a rule that is written behind one it overlaps must have a higher number. Where
//! rules do not overlap, their order means nothing, and each keeps its number wherever it is written.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use crate::flow::{FlowKey, Match};

/// Matches, each with a number, asked for the highest number of those that overlap another match.
///
/// Two matches overlap when they agree in the bits that both masks look at. So the matches of one
/// mask are hashed by these bits, once for each other mask that asks: `n · m` steps for `n` matches
/// of `m` masks.
#[derive(Default)]
pub(super) struct Overlapped {
    by_mask: HashMap<FlowKey, Vec<(FlowKey, u64)>>,
    /// By a mask and the part of it that the other mask looks at, too: the highest number of each
    /// value.
    highest: HashMap<(FlowKey, FlowKey), HashMap<FlowKey, u64>>,
}

impl Overlapped {
    /// Adds a match.
    pub fn add(&mut self, matches: &Match, number: u64) {
        let (value, mask) = (*matches.value(), *matches.mask());
        self.by_mask.entry(mask).or_default().push((value, number));
        for ((_, common), values) in self.highest.iter_mut().filter(|((m, _), _)| *m == mask) {
            raise(values, common_part(value, *common), number);
        }
    }

    /// The highest number of the matches that overlap this one.
    pub fn highest(&mut self, matches: &Match) -> Option<u64> {
        let mut highest = None;
        for (mask, members) in &self.by_mask {
            let common = common_part(*mask, *matches.mask());
            let values = self.highest.entry((*mask, common)).or_insert_with(|| {
                let mut values = HashMap::with_capacity(members.len());
                for (value, number) in members {
                    raise(&mut values, common_part(*value, common), *number);
                }
                values
            });
            highest = highest.max(values.get(&common_part(*matches.value(), common)).copied());
        }
        highest
    }
}

/// The bits of a key that are set in a mask.
fn common_part(key: FlowKey, mask: FlowKey) -> FlowKey {
    *Match::new(key, mask).value()
}

fn raise(values: &mut HashMap<FlowKey, u64>, value: FlowKey, number: u64) {
    let highest = values.entry(value).or_insert(number);
    *highest = number.max(*highest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::control::MatchSpec;
    use nflib::control::spec::Value::Text;
    use proptest::prelude::*;

    fn small_match() -> impl Strategy<Value = Match> {
        (0_u64..8, 0_u64..8).prop_map(|(value, mask)| {
            let tp_dst = format!("{}/{mask}", value & mask);
            let spec = MatchSpec {
                ip_proto: Some(Text("tcp".into())),
                tp_dst: Some(Text(tp_dst)),
                ..MatchSpec::default()
            };
            Match::compile(&spec, &|_| None).unwrap()
        })
    }

    proptest! {
        #[test]
        fn the_highest_of_those_that_overlap_is_found(
            matches in prop::collection::vec((small_match(), 0_u64..100), 0..30),
        ) {
            let mut overlapped = Overlapped::default();
            for (at, (one, number)) in matches.iter().enumerate() {
                let before = matches[..at].iter();
                let expected =
                    before.filter(|(m, _)| m.overlaps(one)).map(|(_, number)| *number).max();
                prop_assert_eq!(overlapped.highest(one), expected);
                overlapped.add(one, *number);
            }
        }
    }
}
