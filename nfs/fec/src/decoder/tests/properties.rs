//! The decoder against a simple model, and against bytes that nobody meant.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::code::CodeId;
use crate::wire::Repair;

/// What ought to come out of any payloads: a reference with all the memory in the world.
#[derive(Default)]
struct Reference {
    here: HashSet<u32>,
    blocks: BTreeMap<u32, (Vec<u32>, HashSet<u8>)>,
}

impl Reference {
    fn take(&mut self, payload: &[u8]) {
        match wire::parse(payload, None).unwrap() {
            Packet::Source { sequence, .. } => {
                self.here.insert(sequence);
            }
            Packet::Repair { repair, .. } => {
                let numbers = (0..u32::from(repair.sources))
                    .map(|at| repair.first.wrapping_add(at * u32::from(repair.stride)));
                let block = self.blocks.entry(repair.first).or_default();
                block.0 = numbers.collect();
                block.1.insert(repair.row);
            }
            Packet::Report => unreachable!(),
        }
        for (numbers, rows) in self.blocks.values() {
            let missing = numbers.iter().filter(|number| !self.here.contains(number)).count();
            if missing <= rows.len() {
                self.here.extend(numbers);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn under_loss_reordering_and_duplication_comes_out_what_a_reference_brings_back(
        k in 1..=12u8, m in 1..=4u8, stride in 1..=4u8, packets in 1..150usize,
        loss in 0.0..0.4f64, duplicate in 0.0..0.3f64, reorder in 0..12usize, seed: u64,
    ) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let all = payloads(&mut encoder(k, m, stride, 1), 0..packets);
        // The first packet is where a decoder begins; it comes at once.
        let mut line: Vec<Vec<u8>> = vec![all[0].clone()];
        for payload in &all[1..] {
            if rng.f64() >= loss {
                let back = rng.usize(0..=reorder).min(line.len() - 1);
                line.insert(line.len() - back, payload.clone());
            }
            if rng.f64() < duplicate {
                line.push(line[rng.usize(0..line.len())].clone());
            }
        }
        let mut reference = Reference::default();
        line.iter().for_each(|payload| reference.take(payload));
        let mut decoder = decoder(DecoderConfig { blocks_max: 150, ..small() });
        let mut out = give(&mut decoder, 0, &line);
        out.sort_unstable();
        let expected: Vec<usize> =
            (0..packets).filter(|at| reference.here.contains(&FIRST.wrapping_add(*at as u32))).collect();
        prop_assert_eq!(&out, &expected);
        // After a while all is settled: every number is one thing.
        settle(&mut decoder);
        let stats = decoder.stats();
        let known = 1 + known(&line);
        prop_assert_eq!(stats.received + stats.recovered, out.len() as u64);
        prop_assert_eq!(stats.received + stats.recovered + stats.unrecovered, known as u64);
        prop_assert_eq!(stats.rejected.total() + stats.blocks_bad, 0);
        prop_assert_eq!(stats.blocks_overrun + stats.blocks_evicted, 0);
    }

    #[test]
    fn in_order_release_lets_packets_out_in_order_and_each_once(
        loss in 0.0..0.3f64, reorder in 0..30usize, bound_pkts in 1..60usize, seed: u64,
    ) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let all = payloads(&mut encoder(5, 2, 2, 1), 0..200);
        let mut line: Vec<Vec<u8>> = vec![all[0].clone()];
        for payload in &all[1..] {
            if rng.f64() >= loss {
                let back = rng.usize(0..=reorder).min(line.len() - 1);
                line.insert(line.len() - back, payload.clone());
            }
        }
        let in_order = Some(InOrder { bound_pkts, bound_ns: 20 * MS });
        let mut decoder = decoder(DecoderConfig { in_order, ..small() });
        let mut out = give(&mut decoder, 0, &line);
        out.extend(give(&mut decoder, 20 * MS, &[]));
        prop_assert!(out.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", out);
        settle(&mut decoder);
        let stats = decoder.stats();
        prop_assert!(stats.received + stats.recovered >= out.len() as u64);
        prop_assert_eq!(stats.received + stats.recovered + stats.unrecovered, 1 + known(&line) as u64);
        prop_assert_eq!(out.len() as u64, stats.received + stats.recovered);
    }

    #[test]
    fn any_bytes_leave_every_promise_kept(
        pieces in proptest::collection::vec(piece(), 0..60),
    ) {
        fuzz::fuzz_one(&pieces.concat());
    }
}

/// The newest number that a decoder of `line` knows of, counted from the first.
fn known(line: &[Vec<u8>]) -> usize {
    let newest = line.iter().map(|payload| match wire::parse(payload, None).unwrap() {
        Packet::Source { sequence, .. } => sequence.wrapping_sub(FIRST),
        Packet::Repair { repair, .. } => {
            let last = u32::from(repair.sources - 1) * u32::from(repair.stride);
            repair.first.wrapping_sub(FIRST) + last
        }
        Packet::Report => 0,
    });
    newest.max().unwrap_or(0) as usize
}

/// A length, a time and a payload that is nearly right.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let source = (0..4u8, any::<u8>(), 20..60usize).prop_map(|(session, low, len)| {
        let mut inner = vec![low; len];
        inner::make_ipv4(&mut inner);
        let stream = Stream { epoch: low / 250, session: session.into() };
        [&source_shim(stream, u32::from(low).wrapping_sub(100))[..], &inner].concat()
    });
    let repair = (0..4u8, any::<u8>(), 1..6u8, 1..4u8, 0..3u8, 20..60usize).prop_map(
        |(session, low, k, stride, row, len)| {
            let stream = Stream { epoch: low / 250, session: session.into() };
            let first = u32::from(low).wrapping_sub(100);
            let length = [0, len as u8];
            let code = CodeId::ReedSolomon;
            let repair = Repair { first, k, sources: k, stride, row, m: 3, length, code };
            [&repair.shim(stream, false)[..], &vec![low; len]].concat()
        },
    );
    let soup = proptest::collection::vec(any::<u8>(), 0..80);
    let payload = prop_oneof![4 => source, 4 => repair, 1 => soup];
    (payload, 0..30u8).prop_map(|(payload, ms)| [&[payload.len() as u8, ms], &payload[..]].concat())
}
