use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::adapt::Adaptive;
use crate::code::{Code, CodeId};
use crate::gf;
use crate::mac::Key;
use crate::report::REPORT_MAX_BYTES;
use crate::wire::{self, Packet};

const MS: u64 = 1_000_000;

fn packet(sequence: u32, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(sequence.into());
    (0..len).map(|_| rng.u8(..)).collect()
}

fn config(k: u8, m: u8, stride: u8) -> EncoderConfig {
    EncoderConfig {
        k,
        redundancy: Redundancy::Fixed { m },
        stride: Stride::Fixed(stride),
        first_sequence: 0xffff_fff0,
        ..Default::default()
    }
}

/// An encoder with all that went in and came out.
struct Bench {
    encoder: Encoder,
    sent: HashMap<u32, Vec<u8>>,
    repairs: Vec<(Repair, Vec<u8>)>,
    next: u32,
}

impl Bench {
    fn new(config: EncoderConfig) -> Self {
        let next = config.first_sequence;
        let encoder = Encoder::new(config, Kernel::scalar(), 5).unwrap();
        Self { encoder, sent: HashMap::new(), repairs: Vec::new(), next }
    }

    fn burst(&mut self, now_ns: u64, lengths: &[usize]) {
        let packets: Vec<_> =
            (0..).zip(lengths).map(|(at, &len)| packet(self.next.wrapping_add(at), len)).collect();
        let slices: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
        let mut shims = vec![[0; 8]; packets.len()];
        self.encoder.add(now_ns, &slices, &mut shims).unwrap();
        for (packet, shim) in packets.into_iter().zip(shims) {
            let payload = [&shim[..], &packet].concat();
            let stream = Stream { epoch: 5, session: 0 };
            let expected = Packet::Source { stream, sequence: self.next, inner: &packet };
            assert_eq!(wire::parse(&payload, None), Ok(expected));
            self.sent.insert(self.next, packet);
            self.next = self.next.wrapping_add(1);
        }
        self.fetch(now_ns);
    }

    fn fetch(&mut self, now_ns: u64) {
        let key = self.encoder.config.key.clone();
        while let Some(payload) = self.encoder.next_repair(now_ns) {
            let Ok(Packet::Repair { repair, coded, .. }) = wire::parse(payload, key.as_ref())
            else {
                panic!("not a repair packet: {payload:?}");
            };
            self.repairs.push((repair, coded.to_vec()));
        }
    }

    /// Computes every repair packet afresh, and the packets that are protected.
    fn check(&self) -> Vec<u32> {
        let mut protected = Vec::new();
        for (repair, coded) in &self.repairs {
            let (k, m) = (repair.k.into(), repair.m.into());
            let code = Code::new(repair.code, k, m).unwrap();
            let numbers = (0..u32::from(repair.sources))
                .map(|at| repair.first.wrapping_add(at * u32::from(repair.stride)));
            let sources: Vec<_> = numbers.clone().map(|number| &self.sent[&number]).collect();
            assert_eq!(coded.len(), sources.iter().map(|source| source.len()).max().unwrap());
            let sum = |byte: &dyn Fn(&[u8]) -> u8| {
                let row = code.row(repair.row.into());
                row.iter().zip(&sources).fold(0, |sum, (&c, source)| sum ^ gf::mul(c, byte(source)))
            };
            for (at, &byte) in coded.iter().enumerate() {
                assert_eq!(byte, sum(&|source| source.get(at).copied().unwrap_or(0)), "byte {at}");
            }
            let length = |at| sum(&|source: &[u8]| (source.len() as u16).to_be_bytes()[at]);
            assert_eq!(repair.length, [length(0), length(1)]);
            if repair.row == 0 {
                protected.extend(numbers);
            }
        }
        protected
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_repair_packet_is_the_sum_it_says_and_every_packet_is_in_one_block(
        k in 1..=12u8, m in 1..=4u8, stride in 1..=5u8, keyed: bool,
        bursts in proptest::collection::vec(proptest::collection::vec(20..90usize, 0..=BURST_MAX_PKTS), 0..8),
        gaps_ms in proptest::collection::vec(0..5u64, 8),
    ) {
        let key = keyed.then(|| Key::new([3; 16]));
        let mut bench = Bench::new(EncoderConfig { key, ..config(k, m, stride) });
        let mut now_ns = 0;
        for (burst, gap_ms) in bursts.iter().zip(gaps_ms) {
            now_ns += gap_ms * MS;
            bench.burst(now_ns, burst);
        }
        bench.fetch(now_ns + 8 * MS);
        let mut protected = bench.check();
        protected.sort_unstable_by_key(|number| number.wrapping_sub(0xffff_fff0));
        let sent: Vec<u32> = (0..bench.sent.len() as u32).map(|at| at.wrapping_add(0xffff_fff0)).collect();
        prop_assert_eq!(protected, sent);
        let stats = bench.encoder.stats();
        prop_assert_eq!(stats.repair_dropped_pkts, 0);
        prop_assert_eq!(stats.repair_pkts, bench.repairs.len() as u64);
        prop_assert_eq!(bench.encoder.pool.free(), 64usize.div_ceil(k.into()) + 3 * usize::from(stride));
    }

    #[test]
    fn how_packets_are_cut_into_bursts_changes_no_repair_packet(
        cuts in proptest::collection::vec(1..30usize, 1..20),
    ) {
        let mut one_by_one = Bench::new(config(5, 2, 3));
        let mut in_bursts = Bench::new(config(5, 2, 3));
        for (burst, count) in cuts.iter().enumerate() {
            let lengths: Vec<usize> = (0..*count).map(|at| 20 + (burst * 7 + at * 13) % 60).collect();
            in_bursts.burst(0, &lengths);
            for len in lengths {
                one_by_one.burst(0, &[len]);
            }
        }
        prop_assert_eq!(one_by_one.repairs, in_bursts.repairs);
    }
}

#[test]
fn repair_packets_follow_a_group_row_by_row_so_that_a_block_is_spread_evenly() {
    let mut bench = Bench::new(config(3, 2, 2));
    bench.burst(0, &[40; 5]);
    assert!(bench.repairs.is_empty(), "the group is not full");
    assert_eq!(bench.encoder.packets_to_boundary(), 1);
    bench.burst(0, &[40]);
    let order: Vec<_> = bench.repairs.iter().map(|(r, _)| (r.first, r.row)).collect();
    let first = 0xffff_fff0;
    assert_eq!(order, [(first, 0), (first + 1, 0), (first, 1), (first + 1, 1)]);
}

#[test]
fn the_flush_timer_closes_open_blocks_as_they_are() {
    let mut bench = Bench::new(config(10, 2, 4));
    assert_eq!(bench.encoder.deadline_ns(), None);
    bench.burst(MS, &[50, 60, 70]);
    assert_eq!(bench.encoder.deadline_ns(), Some(9 * MS));
    bench.fetch(9 * MS - 1);
    assert!(bench.repairs.is_empty());
    bench.fetch(9 * MS);
    // Three blocks of one packet: the fourth never began.
    let blocks: Vec<_> = bench.repairs.iter().filter(|(r, _)| r.row == 0).collect();
    assert_eq!(blocks.len(), 3);
    assert!(blocks.iter().all(|(r, _)| r.sources == 1 && r.k == 10));
    assert_eq!((bench.encoder.stats().blocks, bench.encoder.stats().blocks_short), (3, 3));
    assert_eq!(bench.encoder.deadline_ns(), None);
    // A packet that comes after the timer's end begins a group of its own.
    bench.burst(20 * MS, &[50]);
    bench.burst(40 * MS, &[50]);
    assert_eq!(bench.check().len(), 4);
}

#[test]
fn short_blocks_get_what_makes_them_as_strong_or_what_is_in_proportion() {
    let rows = |short_blocks, packets: usize| {
        let mut bench = Bench::new(EncoderConfig { short_blocks, ..config(20, 5, 1) });
        bench.burst(0, &vec![50; packets]);
        bench.fetch(8 * MS);
        bench.repairs.len() as u32
    };
    for packets in 1..20 {
        let m = rows(ShortBlocks::SameStrength, packets);
        let full = crate::model::residual(20, 5, 0.01);
        let left = |m| crate::model::residual(packets as u32, m, 0.01);
        assert!(left(m) <= full && (m == 1 || left(m - 1) > full), "{packets} packets: {m}");
        assert_eq!(rows(ShortBlocks::Proportional, packets), (packets as u32 * 5).div_ceil(20));
    }
    assert_eq!(rows(ShortBlocks::SameStrength, 20), 5);
}

#[test]
fn one_repair_packet_is_a_plain_sum() {
    let mut bench = Bench::new(config(4, 1, 1));
    bench.burst(0, &[30; 4]);
    assert_eq!(bench.repairs[0].0.code, CodeId::Xor);
    bench.check();
}

#[test]
fn a_packet_that_cannot_be_protected_is_refused_and_takes_no_number() {
    let mut encoder = Encoder::new(config(4, 1, 1), Kernel::scalar(), 0).unwrap();
    for len_bytes in [0, 19, 1501] {
        let packets: [&[u8]; 2] = [&[0; 40], &vec![0; len_bytes]];
        let refused = encoder.add(0, &packets, &mut [[0; 8]; 2]);
        assert_eq!(refused, Err(AddError::Length { len_bytes, max_bytes: 1500 }));
    }
    assert_eq!(encoder.add(0, &[&[0; 40]], &mut []), Err(AddError::Shims));
    assert_eq!((encoder.next, encoder.stats().source_pkts), (0xffff_fff0, 0));
}

#[test]
fn repair_packets_that_nobody_fetches_are_dropped_oldest_first_and_counted() {
    let mut bench = Bench::new(config(2, 2, 2));
    let packet = packet(0, 40);
    for _ in 0..1000 {
        bench.encoder.add(0, &[&packet[..]; 4], &mut [[0; 8]; 4]).unwrap();
        bench.sent.extend((0..4).map(|at| (bench.next.wrapping_add(at), packet.clone())));
        bench.next = bench.next.wrapping_add(4);
    }
    bench.fetch(0);
    let stats = bench.encoder.stats();
    assert_eq!(stats.repair_pkts + stats.repair_dropped_pkts, 4000);
    assert!(stats.repair_dropped_pkts > 0);
    assert_eq!(bench.check().last(), Some(&bench.next.wrapping_sub(1)));
}

#[test]
fn new_settings_take_effect_with_the_next_group() {
    let mut bench = Bench::new(config(10, 2, 1));
    bench.burst(0, &[40; 7]);
    bench.fetch(0);
    bench.encoder.reconfigure(4, Redundancy::Fixed { m: 3 }, Stride::Fixed(2)).unwrap();
    let dropped = bench.encoder.stats().repair_dropped_pkts;
    assert!(dropped > 0, "the short block was closed");
    bench.burst(0, &[40; 8]);
    assert_eq!(bench.check().len(), 8);
    assert_eq!(bench.repairs.len(), 6);
    let wrong = bench.encoder.reconfigure(0, Redundancy::Fixed { m: 3 }, Stride::Fixed(2));
    assert_eq!(wrong, Err(ConfigError::K(0)));
    assert_eq!(bench.encoder.stats().k, 4);
}

fn report(number: u32, received: u32, lost: u32, highest: u32) -> Vec<u8> {
    let mut bytes = [0; REPORT_MAX_BYTES];
    let report = Report { number, highest, received, lost, ..Default::default() };
    let len = report.write(Stream { epoch: 5, session: 0 }, None, &mut bytes);
    bytes[..len].to_vec()
}

#[test]
fn redundancy_follows_the_reports_and_goes_off_without_loss() {
    let aim = Adaptive { target: 1e-4, overhead_max: 0.5, floor: 1e-3 };
    let redundancy = Redundancy::Adaptive(aim);
    let mut bench = Bench::new(EncoderConfig { redundancy, ..config(10, 1, 1) });
    bench.burst(0, &[40; 10]);
    let before = bench.repairs.len();
    assert!(before > 0);
    bench.encoder.report(0, &report(0, 950, 50, 0xffff_fff0)).unwrap();
    bench.burst(0, &[40; 10]);
    assert!(bench.repairs.len() - before > before, "five percent need more");
    for number in 1..100 {
        bench.encoder.report(0, &report(number, 950 + 100_000 * number, 50, 0xffff_fff0)).unwrap();
    }
    let before = bench.repairs.len();
    bench.burst(0, &[40; 30]);
    assert_eq!((bench.repairs.len(), bench.encoder.stats().m), (before, 0));
    bench.encoder.report(0, &report(100, 10_000_000, 1_000_000, 0xffff_fff0)).unwrap();
    bench.burst(0, &[40; 10]);
    assert!(bench.repairs.len() > before);
    bench.check();
}

#[test]
fn reports_that_cannot_be_are_refused_and_counted() {
    let mut bench = Bench::new(config(10, 1, 1));
    bench.burst(0, &[40; 3]);
    let newest = 0xffff_fff2;
    bench.encoder.report(0, &report(7, 3, 0, newest)).unwrap();
    for (bytes, error) in [
        (report(7, 3, 0, newest), WireError::Replayed),
        (report(6, 3, 0, newest), WireError::Replayed),
        (report(8, 3, 0, newest + 1), WireError::Impossible),
        (
            [&report(8, 3, 0, newest)[..3], &[1], &report(8, 3, 0, newest)[4..]].concat(),
            WireError::Session,
        ),
        ([&[0x13, 6], &report(8, 3, 0, newest)[2..]].concat(), WireError::Epoch),
        (vec![], WireError::Short),
    ] {
        assert_eq!(bench.encoder.report(0, &bytes), Err(error));
    }
    assert_eq!((bench.encoder.stats().reports, bench.encoder.stats().reports_rejected), (1, 6));
    // A decoder that was restarted counts from one again.
    let mut restarted = report(1, 2, 0, newest);
    restarted[29] = 1;
    assert_eq!(bench.encoder.report(0, &restarted), Ok(()));
    assert_eq!(bench.encoder.report(0, &restarted), Err(WireError::Replayed));
}

#[test]
fn impossible_settings_are_refused_in_one_clear_line() {
    let aim = Adaptive::default();
    let cases = [
        (config(0, 1, 1), ConfigError::K(0)),
        (config(65, 1, 1), ConfigError::K(65)),
        (config(10, 0, 1), ConfigError::M(0)),
        (config(10, 17, 1), ConfigError::M(17)),
        (config(10, 2, 0), ConfigError::Stride { k: 10, stride: 0 }),
        (config(10, 2, 33), ConfigError::Stride { k: 10, stride: 33 }),
        (config(64, 2, 17), ConfigError::Stride { k: 64, stride: 17 }),
        (EncoderConfig { flush_ns: 999_999, ..config(10, 2, 1) }, ConfigError::Flush(999_999)),
        (EncoderConfig { inner_max_bytes: 19, ..config(10, 2, 1) }, ConfigError::InnerMax(19)),
        (
            EncoderConfig {
                redundancy: Redundancy::Adaptive(Adaptive { overhead_max: 0.05, ..aim }),
                ..config(10, 2, 1)
            },
            ConfigError::Overhead { overhead_max: 0.05, k: 10 },
        ),
        (
            EncoderConfig {
                redundancy: Redundancy::Adaptive(Adaptive { target: 2.0, ..aim }),
                ..config(10, 2, 1)
            },
            ConfigError::Share { name: "target", value: 2.0 },
        ),
    ];
    for (config, error) in cases {
        assert!(!error.to_string().contains('\n'));
        assert_eq!(Encoder::new(config, Kernel::scalar(), 0).err(), Some(error));
    }
}
