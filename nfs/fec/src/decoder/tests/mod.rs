use super::*;
use crate::adapt::{Redundancy, Stride};
use crate::encoder::{Encoder, EncoderConfig};
use crate::inner;
use crate::mac::Key;
use crate::report::Report;
use crate::wire::{WireError, source_shim};

mod properties;
mod sessions;

const MS: u64 = 1_000_000;
const FIRST: u32 = 0xffff_fff0;

/// The inner packet that is sent as the `at`-th.
fn packet(at: usize) -> Vec<u8> {
    let mut packet = vec![0; 24 + at * 7 % 40];
    let mut rng = fastrand::Rng::with_seed(at as u64);
    packet[20..].iter_mut().for_each(|byte| *byte = rng.u8(..));
    packet[4..8].copy_from_slice(&(at as u32).to_be_bytes());
    inner::make_ipv4(&mut packet);
    packet
}

fn encoder(k: u8, m: u8, stride: u8, epoch: u8) -> Encoder {
    let config = EncoderConfig {
        k,
        redundancy: Redundancy::Fixed { m },
        stride: Stride::Fixed(stride),
        first_sequence: FIRST,
        ..Default::default()
    };
    Encoder::new(config, Kernel::scalar(), epoch).unwrap()
}

/// The payloads of packets `range`, each group's repair packets behind it, and those of a last flush.
fn payloads(encoder: &mut Encoder, range: std::ops::Range<usize>) -> Vec<Vec<u8>> {
    let mut payloads = Vec::new();
    for at in range {
        let (packet, mut shim) = (packet(at), [[0; 8]]);
        encoder.add(0, &[&packet], &mut shim).unwrap();
        payloads.push([&shim[0][..], &packet].concat());
        while let Some(repair) = encoder.next_repair(0) {
            payloads.push(repair.to_vec());
        }
    }
    encoder.flush();
    while let Some(repair) = encoder.next_repair(0) {
        payloads.push(repair.to_vec());
    }
    payloads
}

fn small() -> DecoderConfig {
    DecoderConfig {
        window_pkts: 256,
        window_bytes: 64 << 10,
        inner_max_bytes: 100,
        blocks_max: 8,
        memory_bytes: 1 << 20,
        ..Default::default()
    }
}

fn decoder(config: DecoderConfig) -> Decoder {
    Decoder::new(config, Kernel::scalar()).unwrap()
}

/// Gives payloads to a decoder, and tells which packets came out, in which order.
fn give(decoder: &mut Decoder, now_ns: u64, payloads: &[Vec<u8>]) -> Vec<usize> {
    let mut out = Vec::new();
    let mut let_out = |bytes: &[u8]| {
        let at = u32::from_be_bytes(bytes[4..8].try_into().unwrap()) as usize;
        assert_eq!(bytes, packet(at));
        out.push(at);
    };
    for payload in payloads {
        if let Verdict::Deliver { inner_offset } = decoder.receive(now_ns, payload) {
            let_out(&payload[inner_offset..]);
        }
        while let Some(recovered) = decoder.next_recovered(now_ns) {
            let_out(recovered);
        }
    }
    while let Some(recovered) = decoder.next_recovered(now_ns) {
        let_out(recovered);
    }
    out
}

/// Lets time pass until there is nothing left to do.
fn settle(decoder: &mut Decoder) {
    while let Some(now_ns) = decoder.deadline_ns() {
        assert_eq!(decoder.next_recovered(now_ns), None);
        while decoder.next_report(now_ns).is_some() {}
    }
}

fn is_source(payload: &[u8]) -> bool {
    payload[0] == 0x11
}

/// Loses the sources at these places; keeps all repair packets.
fn without(payloads: &[Vec<u8>], lost: &[usize]) -> Vec<Vec<u8>> {
    let mut at = 0;
    let mut kept = Vec::new();
    for payload in payloads {
        let is_lost = is_source(payload) && lost.contains(&at);
        at += usize::from(is_source(payload));
        if !is_lost {
            kept.push(payload.clone());
        }
    }
    kept
}

#[test]
fn every_pattern_of_up_to_m_losses_comes_back_and_none_of_more() {
    for (k, m, stride) in [(4, 1, 1), (5, 2, 1), (4, 3, 2)] {
        let count = usize::from(k) * usize::from(stride);
        let all = payloads(&mut encoder(k, m, stride, 1), 0..count);
        for pattern in 0..1u32 << count {
            let lost: Vec<usize> = (0..count).filter(|at| pattern >> at & 1 == 1).collect();
            let mut decoder = decoder(small());
            // One packet of before, so that the first of the block can be lost.
            let before = encoder_before(&mut decoder);
            let out = give(&mut decoder, 0, &without(&all, &lost));
            let blocks = (0..stride.into())
                .map(|block| lost.iter().filter(|at| *at % usize::from(stride) == block).count());
            let gone: usize = blocks.filter(|lost| *lost > usize::from(m)).sum();
            assert_eq!(out.len() + gone, count, "{k}+{m} D{stride}, lost {lost:?}");
            assert_eq!(decoder.stats().received as usize, before + count - lost.len());
        }
    }
}

/// Tells a decoder of epoch 1 and a number before the first.
fn encoder_before(decoder: &mut Decoder) -> usize {
    let shim = source_shim(Stream { epoch: 1, session: 0 }, FIRST.wrapping_sub(1));
    assert!(matches!(
        decoder.receive(0, &[&shim[..], &packet(999)].concat()),
        Verdict::Deliver { inner_offset: 8 }
    ));
    1
}

#[test]
fn an_original_that_comes_after_its_recovery_is_dropped_and_counted() {
    let all = payloads(&mut encoder(4, 1, 1, 1), 0..4);
    let mut decoder = decoder(small());
    assert_eq!(give(&mut decoder, 0, &without(&all, &[2])), [0, 1, 3, 2]);
    assert_eq!(decoder.receive(0, &all[2]), Verdict::Late);
    assert_eq!(decoder.receive(0, &all[2]), Verdict::Duplicate);
    assert_eq!(decoder.receive(0, &all[0]), Verdict::Duplicate);
    settle(&mut decoder);
    let stats = decoder.stats();
    assert_eq!((stats.received, stats.recovered, stats.lost, stats.late), (3, 1, 0, 1));
}

#[test]
fn a_packet_given_up_is_late_when_it_comes() {
    let all = payloads(&mut encoder(10, 1, 1, 1), 0..4);
    let mut decoder = decoder(small());
    give(&mut decoder, 0, &[all[0].clone(), all[2].clone()]);
    settle(&mut decoder);
    assert_eq!(decoder.stats().unrecovered, 1);
    assert_eq!(decoder.receive(1000 * MS, &all[1]), Verdict::Late);
    assert_eq!((decoder.stats().late, decoder.stats().received), (1, 2));
}

#[test]
fn what_a_block_lacks_may_come_after_its_repair_packets() {
    let all = payloads(&mut encoder(4, 1, 1, 1), 0..4);
    let mut decoder = decoder(small());
    let line = [&all[0], &all[1], &all[4], &all[3]].map(Clone::clone);
    assert_eq!(give(&mut decoder, 0, &line), [0, 1, 3, 2]);
}

#[test]
fn repair_packets_that_contradict_each_other_or_the_window_are_rejected() {
    let all = payloads(&mut encoder(4, 2, 1, 1), 0..4);
    let mut decoder = decoder(small());
    give(&mut decoder, 0, &all[..1]);
    give(&mut decoder, 0, &all[4..5]);
    let rejected = |decoder: &mut Decoder, at: usize, value: u8| {
        let mut wrong = all[5].clone();
        wrong[at] = value;
        let Verdict::Reject(reason) = decoder.receive(0, &wrong) else {
            panic!("byte {at} = {value} was taken");
        };
        assert!(decoder.stats().rejected.of(reason) > 0);
        reason
    };
    assert_eq!(rejected(&mut decoder, 8, 5), Reject::Inconsistent);
    assert_eq!(rejected(&mut decoder, 9, 3), Reject::Inconsistent);
    assert_eq!(rejected(&mut decoder, 10, 2), Reject::Inconsistent);
    assert_eq!(rejected(&mut decoder, 11, 0x12), Reject::Inconsistent);
    assert_eq!(rejected(&mut decoder, 11, 0x21), Reject::Wire(WireError::M));
    // Of the block, but with another first packet.
    assert_eq!(rejected(&mut decoder, 7, 0xf1), Reject::Inconsistent);
    // Far ahead of all that was heard of, and another session or epoch.
    let mut ahead = all[5].clone();
    ahead[4..8].copy_from_slice(&FIRST.wrapping_add(256).to_be_bytes());
    assert_eq!(decoder.receive(0, &ahead), Verdict::Reject(Reject::Span));
    assert_eq!(rejected(&mut decoder, 3, 5), Reject::Epoch);
    assert_eq!(rejected(&mut decoder, 3, 99), Reject::Session);
    assert_eq!(rejected(&mut decoder, 1, 9), Reject::Epoch);
    // A block longer than the first says.
    let long = [&all[5][..], &[0]].concat();
    assert_eq!(decoder.receive(0, &long), Verdict::Reject(Reject::Inconsistent));
    assert_eq!(decoder.receive(0, &all[4]), Verdict::Duplicate);
    // After all that, the right one still does its work.
    assert_eq!(give(&mut decoder, 0, &all[1..2]), [1]);
    assert_eq!(give(&mut decoder, 0, &all[5..]).len(), 2);
}

#[test]
fn what_is_solved_to_no_packet_is_not_let_out() {
    let all = payloads(&mut encoder(4, 2, 1, 1), 0..4);
    for at in 12..all[4].len() {
        for lost in [&[2][..], &[1, 2]] {
            let mut line = without(&all, lost);
            let forged = line.len() - 2;
            line[forged][at] ^= 0x55;
            let mut decoder = decoder(small());
            let line = &line[..line.len() - usize::from(lost.len() == 1)];
            let out = line.iter().flat_map(|payload| {
                decoder.receive(0, payload);
                std::iter::from_fn(|| decoder.next_recovered(0).map(<[u8]>::to_vec))
                    .collect::<Vec<_>>()
            });
            // What is in an inner packet behind its header, nobody can check without a key.
            for packet in out.collect::<Vec<_>>() {
                assert!(inner::is_ip(&packet) && at >= 16 + 20, "byte {at}: {packet:?}");
            }
        }
    }
}

#[test]
fn with_a_key_forged_repair_packets_and_ones_without_mac_are_rejected() {
    let key = Some(Key::new([6; 16]));
    let config = EncoderConfig { key: key.clone(), k: 4, ..Default::default() };
    let mut encoder = Encoder::new(config, Kernel::scalar(), 1).unwrap();
    let all = payloads(&mut encoder, 0..4);
    let mut keyed = decoder(DecoderConfig { key, ..small() });
    give(&mut keyed, 0, &without(&all[..4], &[2]));
    for at in 0..all[4].len() {
        let mut forged = all[4].clone();
        forged[at] ^= 1;
        let verdict = keyed.receive(0, &forged);
        // The first byte now says that it is a report, which is none of the decoder's business.
        let refused =
            matches!(verdict, Verdict::Reject(_)) || at == 0 && verdict == Verdict::Report;
        assert!(refused, "byte {at}: {verdict:?}");
    }
    let plain = payloads(
        &mut Encoder::new(EncoderConfig { k: 4, ..Default::default() }, Kernel::scalar(), 1)
            .unwrap(),
        0..4,
    );
    let missing = Reject::Wire(WireError::MacMissing);
    assert_eq!(keyed.receive(0, &plain[4]), Verdict::Reject(missing));
    assert_eq!(give(&mut keyed, 0, &all[4..5]), [2]);
    let mut unkeyed = decoder(small());
    give(&mut unkeyed, 0, &all[..1]);
    let unexpected = Reject::Wire(WireError::MacUnexpected);
    assert_eq!(unkeyed.receive(0, &all[4]), Verdict::Reject(unexpected));
}

#[test]
fn waiting_blocks_are_bounded_and_the_oldest_goes_first() {
    let all = payloads(&mut encoder(4, 1, 1, 1), 0..80);
    let lost: Vec<usize> = (0..20).flat_map(|block| [block * 4 + 1, block * 4 + 2]).collect();
    let mut decoder = decoder(small());
    give(&mut decoder, 0, &without(&all, &lost));
    assert_eq!((decoder.stats().blocks, decoder.stats().blocks_evicted), (20, 12));
    // Of the eight newest one packet each is enough to bring back the other.
    let late: Vec<_> = lost.iter().step_by(2).map(|at| all[at + at / 4].clone()).collect();
    assert_eq!(give(&mut decoder, 0, &late).len(), 20 + 8);
    settle(&mut decoder);
    let stats = decoder.stats();
    assert_eq!((stats.blocks_solved, stats.blocks_failed, stats.unrecovered), (8, 12, 12));
}

#[test]
fn a_window_too_small_for_a_block_is_counted_and_gives_nothing_wrong() {
    let config = DecoderConfig { window_bytes: 32 * 100, ..small() };
    let all = payloads(&mut encoder(12, 1, 20, 1), 0..240);
    let mut decoder = decoder(config);
    let out = give(&mut decoder, 0, &without(&all, &[5]));
    assert_eq!((out.len(), decoder.stats().blocks_overrun), (239, 1));
}

#[test]
fn reports_tell_what_was_settled_and_bursts_by_their_length() {
    let all = payloads(&mut encoder(10, 1, 1, 1), 0..100);
    let lost = [5, 20, 21, 22, 50, 51, 52, 53];
    let mut decoder = decoder(small());
    assert_eq!(decoder.deadline_ns(), None);
    give(&mut decoder, 0, &without(&all, &lost));
    assert_eq!(decoder.next_report(0), None);
    // Until all is settled and reported, and no longer.
    let mut reports = Vec::new();
    for _ in 0..10 {
        let Some(now_ns) = decoder.deadline_ns() else { break };
        give(&mut decoder, now_ns, &[]);
        while let Some(report) = decoder.next_report(now_ns) {
            reports.push(Report::parse(report, None).unwrap());
        }
    }
    assert_eq!(decoder.deadline_ns(), None);
    let (stream, last) = reports[reports.len() - 1];
    assert_eq!(stream, Stream { epoch: 1, session: 0 });
    assert_eq!(last.highest, FIRST.wrapping_add(99));
    assert_eq!((last.received, last.lost, last.recovered, last.unrecovered), (92, 8, 1, 7));
    assert_eq!((last.bursts.0[0], last.bursts.0[2], last.bursts.0[3]), (1, 1, 1));
    assert_eq!(last.bursts.0.iter().sum::<u32>(), 3);
    let numbers: Vec<u32> = reports.iter().map(|(_, report)| report.number).collect();
    assert!(numbers.is_sorted() && reports.len() >= 2);
    assert_eq!(decoder.receive(0, &reports_bytes(&last, stream)), Verdict::Report);
}

fn reports_bytes(report: &Report, stream: Stream) -> Vec<u8> {
    let mut bytes = [0; REPORT_MAX_BYTES];
    let len = report.write(stream, None, &mut bytes);
    bytes[..len].to_vec()
}

#[test]
fn in_order_release_waits_for_a_gap_until_it_is_filled_or_a_bound_is_reached() {
    let in_order = Some(InOrder { bound_pkts: 8, bound_ns: 5 * MS });
    let all = payloads(&mut encoder(4, 1, 1, 1), 0..40);
    let by_number = |at: usize| all[at + at / 4].clone();
    let mut decoder = decoder(DecoderConfig { in_order, ..small() });
    assert_eq!(give(&mut decoder, 0, &[by_number(0), by_number(1)]), [0, 1]);
    // Filled by the original.
    assert_eq!(decoder.receive(0, &by_number(3)), Verdict::Held);
    assert_eq!(give(&mut decoder, 0, &[by_number(2)]), [2, 3]);
    // Filled by parity.
    assert_eq!(give(&mut decoder, 0, &[by_number(4), by_number(6), by_number(7)]), [4]);
    assert_eq!(give(&mut decoder, 0, &all[9..10]), [5, 6, 7]);
    // Not filled in time.
    assert_eq!(give(&mut decoder, MS, &[by_number(9)]), []);
    assert!(decoder.deadline_ns() <= Some(6 * MS));
    assert_eq!(give(&mut decoder, 6 * MS - 1, &[]), []);
    assert_eq!(give(&mut decoder, 6 * MS, &[]), [9]);
    assert_eq!(decoder.receive(6 * MS, &by_number(8)), Verdict::Late);
    // Too many packets wait.
    let behind: Vec<_> = (11..18).map(by_number).collect();
    assert_eq!(give(&mut decoder, 7 * MS, &behind), []);
    assert_eq!(give(&mut decoder, 7 * MS, &[by_number(18)]), [11, 12, 13, 14, 15, 16, 17, 18]);
    assert_eq!(decoder.stats().skipped, 2);
}

#[test]
fn packets_that_are_no_ip_or_too_long_are_rejected() {
    let stream = Stream { epoch: 1, session: 0 };
    let mut decoder = decoder(small());
    let mut source = [&source_shim(stream, 0)[..], &[0x45; 101]].concat();
    assert_eq!(decoder.receive(0, &source), Verdict::Reject(Reject::TooLong));
    source.truncate(50);
    source[8] = 0x55;
    assert_eq!(decoder.receive(0, &source), Verdict::Reject(Reject::NotIp));
    assert_eq!(decoder.stats().sessions, 0);
    let names: Vec<_> =
        decoder.stats().rejected.by_name().filter(|(_, count)| *count > 0).collect();
    assert_eq!(names, [("too_long", 1), ("not_ip", 1)]);
}

#[test]
fn impossible_settings_are_refused_in_one_clear_line() {
    let cases: [(DecoderConfig, &str); 9] = [
        #[allow(clippy::reversed_empty_ranges, reason = "that is the mistake")]
        (DecoderConfig { sessions: 3..=2, ..small() }, "no session"),
        (DecoderConfig { inner_max_bytes: 19, ..small() }, "inner packets of up to 19"),
        (DecoderConfig { window_pkts: 63, ..small() }, "a window of 63 packets; expected 64 to"),
        (DecoderConfig { window_bytes: 100, ..small() }, "expected 3200 or more"),
        (DecoderConfig { blocks_max: 0, ..small() }, "0 waiting blocks"),
        (
            DecoderConfig { memory_bytes: 1000, ..small() },
            "1000 bytes of memory; one session takes",
        ),
        (DecoderConfig { report_ns: 99 * MS, ..small() }, "a report every 99 ms"),
        (DecoderConfig { settle_ns: MS, ..small() }, "given up after 1 ms"),
        (
            DecoderConfig { in_order: Some(InOrder { bound_pkts: 129, bound_ns: 0 }), ..small() },
            "may wait for 1 to 128 packets and at most 200 ms",
        ),
    ];
    for (config, expected) in cases {
        let error = Decoder::new(config, Kernel::scalar()).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{error}");
    }
}
