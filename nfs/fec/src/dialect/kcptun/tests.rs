//! Encoder and decoder against each other, and against what kcptun sent.
#![forbid(unsafe_code)]

use proptest::prelude::*;

use super::*;
use crate::dialect::{LATE_MAX_PKTS, fixture};
use crate::kernel::Kernel;

const THEIRS: &str = include_str!("../fixtures/kcptun.hex");
const LONGEST_BYTES: usize = 1400;

fn encoder(k: usize, m: usize, envelope: Envelope) -> Encoder {
    let config = EncoderConfig { k, m, envelope, longest_bytes: LONGEST_BYTES };
    Encoder::new(config, Kernel::best()).unwrap()
}

fn decoder(k: usize, m: usize, envelope: Envelope) -> Decoder {
    let config = DecoderConfig { k, m, envelope, longest_bytes: LONGEST_BYTES, blocks: 8 };
    Decoder::new(config, Kernel::best()).unwrap()
}

/// A UDP payload with a KCP packet whose bytes come from its number.
fn plain(envelope: Envelope, number: u32, bytes: usize) -> Vec<u8> {
    let mut payload = vec![0; envelope.bytes()];
    payload.extend(7u32.to_le_bytes());
    payload.extend([81, 0, 1, 0]);
    payload.extend((0..bytes.max(16)).map(|at| (at as u32 * 31 + number * 7) as u8));
    envelope.seal(&mut payload).unwrap();
    payload
}

/// What goes out for a packet: itself with the framing, and the parities that it completes.
fn send(encoder: &mut Encoder, envelope: Envelope, payload: &[u8]) -> Vec<Vec<u8>> {
    encoder.check(payload).unwrap();
    let (front, kcp) = payload.split_at(envelope.bytes());
    let mut framed = [front, &[0; OVERHEAD_BYTES], kcp].concat();
    encoder.seal(&mut framed).unwrap();
    let mut out = vec![framed];
    while let Some(parity) = encoder.next_parity() {
        out.push(parity.to_vec());
    }
    out
}

/// What a packet makes come out: itself without the framing, and what was brought back.
fn receive(decoder: &mut Decoder, envelope: Envelope, payload: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    if let Verdict::Deliver { kcp } = decoder.receive(payload) {
        let mut plain = vec![0; envelope.bytes()];
        plain.extend(&payload[kcp]);
        envelope.seal(&mut plain).unwrap();
        out.push(plain);
    }
    while let Some(recovered) = decoder.next_recovered() {
        out.push(recovered.to_vec());
    }
    out
}

/// kcptun's packets, and what they are without the framing.
fn theirs() -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let packets: Vec<_> = fixture(THEIRS).into_iter().map(|(_, packet)| packet).collect();
    let mut whole = decoder(3, 2, Envelope::Checksum);
    let plain = packets.iter().flat_map(|packet| receive(&mut whole, Envelope::Checksum, packet));
    let plain: Vec<_> = plain.collect();
    (packets, plain)
}

#[test]
fn of_kcptuns_blocks_any_two_lost_packets_come_back() {
    let (packets, plain) = theirs();
    assert_eq!((packets.len(), plain.len()), (15, 9));
    for first in 0..5 {
        for second in 0..5 {
            let mut decoder = decoder(3, 2, Envelope::Checksum);
            let left = (0..).zip(&packets).filter(|(at, _)| at % 5 != first && at % 5 != second);
            let mut out: Vec<_> = left
                .flat_map(|(_, packet)| receive(&mut decoder, Envelope::Checksum, packet))
                .collect();
            let mut expected = plain.clone();
            out.sort();
            expected.sort();
            assert_eq!(out, expected, "without packets {first} and {second} of each block");
            let data_lost = [first, second].iter().filter(|&&at| at < 3).count();
            let lost = if first == second { data_lost / 2 } else { data_lost };
            assert_eq!(decoder.stats().recovered_pkts, 3 * lost as u64);
        }
    }
}

#[test]
fn for_kcptuns_data_we_send_kcptuns_parities() {
    let (packets, plain) = theirs();
    let mut encoder = encoder(3, 2, Envelope::Checksum);
    let ours: Vec<_> =
        plain.iter().flat_map(|payload| send(&mut encoder, Envelope::Checksum, payload)).collect();
    assert_eq!(ours.len(), packets.len());
    for (ours, theirs) in ours.iter().zip(&packets) {
        // Their first 16 bytes are random. The checksum covers all behind it.
        assert_eq!(ours[16..], theirs[16..]);
    }
    let stats = encoder.stats();
    assert_eq!((stats.data_pkts, stats.parity_pkts, stats.unprotected_pkts), (9, 6, 0));
}

#[test]
fn what_is_no_kcp_packet_or_has_the_framing_already_is_not_protected() {
    let (packets, _) = theirs();
    let mut encoder = encoder(3, 2, Envelope::Checksum);
    for framed in &packets {
        assert_eq!(encoder.check(framed), Err(SealError::NotKcp));
    }
    let mut damaged = plain(Envelope::Checksum, 1, 100);
    damaged[40] ^= 1;
    assert_eq!(encoder.check(&damaged), Err(FrameError::Checksum.into()));
    assert_eq!(encoder.check(&damaged[..19]), Err(FrameError::Short.into()));
    let long = plain(Envelope::Checksum, 1, LONGEST_BYTES);
    assert_eq!(encoder.check(&long), Err(FrameError::Long.into()));
    assert_eq!(encoder.stats().unprotected_pkts, 18);
}

#[test]
fn a_packet_without_the_framing_passes_and_a_damaged_one_does_not() {
    let mut decoder = decoder(3, 2, Envelope::Checksum);
    assert_eq!(decoder.receive(&plain(Envelope::Checksum, 1, 50)), Verdict::Plain);
    let (mut packets, _) = theirs();
    packets[0][30] ^= 4;
    assert_eq!(decoder.receive(&packets[0]), Verdict::Reject(FrameError::Checksum));
    packets[1][26] ^= 1;
    Envelope::Checksum.seal(&mut packets[1]).unwrap();
    assert_eq!(decoder.receive(&packets[1]), Verdict::Reject(FrameError::Size));
    assert_eq!(decoder.receive(&packets[2][..23]), Verdict::Reject(FrameError::Checksum));
    assert_eq!((decoder.stats().plain_pkts, decoder.stats().rejected_pkts), (1, 3));
}

#[test]
fn a_packet_that_comes_twice_or_after_it_was_brought_back_is_a_duplicate() {
    let (packets, _) = theirs();
    let mut decoder = decoder(3, 2, Envelope::Checksum);
    for at in [0, 0, 1, 3, 2] {
        receive(&mut decoder, Envelope::Checksum, &packets[at]);
    }
    let stats = decoder.stats();
    assert_eq!((stats.data_pkts, stats.duplicate_pkts, stats.recovered_pkts), (2, 2, 1));
}

#[test]
fn a_parity_that_does_not_fit_brings_nothing_back() {
    // What it decodes to is then no KCP packet, by its command, or has bytes behind its end.
    for byte in [32, 139] {
        let (mut packets, _) = theirs();
        packets[3][byte] ^= 0xff;
        Envelope::Checksum.seal(&mut packets[3]).unwrap();
        let mut decoder = decoder(3, 2, Envelope::Checksum);
        let left = [0, 2, 3].iter();
        let out = left.flat_map(|&at| receive(&mut decoder, Envelope::Checksum, &packets[at]));
        assert_eq!(out.count(), 2);
        assert_eq!((decoder.stats().implausible_pkts, decoder.stats().recovered_pkts), (1, 0));
        // The original may still come.
        assert_eq!(receive(&mut decoder, Envelope::Checksum, &packets[1]).len(), 1);
    }
}

#[test]
fn with_another_k_all_data_still_comes_out_and_nothing_wrong_is_brought_back() {
    let (packets, plain) = theirs();
    let mut decoder = decoder(5, 2, Envelope::Checksum);
    let out: Vec<_> = packets
        .iter()
        .flat_map(|packet| receive(&mut decoder, Envelope::Checksum, packet))
        .collect();
    assert_eq!(out, plain);
    assert!(decoder.stats().out_of_step_pkts > 0);
}

#[test]
fn a_sender_that_starts_anew_is_followed_after_some_late_packets() {
    let envelope = Envelope::Bare;
    let mut decoder = decoder(2, 1, envelope);
    let mut old = encoder(2, 1, envelope);
    for number in 0..100 {
        for packet in send(&mut old, envelope, &plain(envelope, number, 40)) {
            receive(&mut decoder, envelope, &packet);
        }
    }
    let mut new = encoder(2, 1, envelope);
    for number in 0..100 {
        // The first data packet of each block is lost, the second and the parity are not.
        for packet in send(&mut new, envelope, &plain(envelope, number, 40)) {
            if number % 2 == 1 {
                receive(&mut decoder, envelope, &packet);
            }
        }
    }
    let stats = decoder.stats();
    assert_eq!(stats.data_pkts, 150, "late or not, data comes out");
    assert_eq!(stats.late_pkts, u64::from(LATE_MAX_PKTS) - 1);
    assert_eq!(stats.recovered_pkts, 50 - u64::from(LATE_MAX_PKTS) / 2);
}

#[test]
fn numbers_wrap_at_a_whole_block() {
    let envelope = Envelope::Bare;
    let (mut encoder, mut decoder) = (encoder(3, 2, envelope), decoder(3, 2, envelope));
    encoder.sequence = encoder.end - 10;
    for number in 0..12 {
        for packet in send(&mut encoder, envelope, &plain(envelope, number, 40)) {
            let frame = Frame::parse(&packet).unwrap().unwrap();
            // Of each block its first packet is lost.
            if !frame.sequence.is_multiple_of(5) {
                receive(&mut decoder, envelope, &packet);
            }
        }
    }
    assert_eq!(encoder.sequence, 10);
    let stats = decoder.stats();
    assert_eq!((stats.data_pkts, stats.recovered_pkts, stats.late_pkts), (8, 4, 0));
    assert_eq!(stats.out_of_step_pkts, 0);
}

#[test]
fn what_a_given_up_block_lacked_is_counted() {
    let envelope = Envelope::Bare;
    let (mut encoder, mut decoder) = (encoder(4, 1, envelope), decoder(4, 1, envelope));
    for number in 0..4 * 20 {
        for packet in send(&mut encoder, envelope, &plain(envelope, number, 40)) {
            // Two of the four of the first block and its parity are lost, and all of the third block.
            if !(2..4).contains(&number) && !(8..12).contains(&number) {
                receive(&mut decoder, envelope, &packet);
            }
        }
    }
    assert_eq!((decoder.stats().unrecovered_pkts, decoder.stats().recovered_pkts), (6, 0));
}

#[test]
fn options_out_of_range_are_refused() {
    let config =
        DecoderConfig { k: 10, m: 3, envelope: Envelope::Bare, longest_bytes: 1400, blocks: 8 };
    for wrong in [
        DecoderConfig { k: 0, ..config },
        DecoderConfig { k: 65, ..config },
        DecoderConfig { m: 17, ..config },
        DecoderConfig { longest_bytes: 65_508, ..config },
        DecoderConfig { blocks: 1, ..config },
    ] {
        assert!(Decoder::new(wrong, Kernel::scalar()).is_err(), "{wrong:?}");
    }
}

proptest! {
    #[test]
    fn every_loss_of_at_most_m_packets_a_block_comes_back_in_any_order(
        k in 1usize..12,
        m in 1usize..5,
        checksum: bool,
        lengths in proptest::collection::vec(20usize..300, 1..40),
        losses in proptest::collection::vec(any::<u64>(), 40),
        swap: bool,
    ) {
        let envelope = if checksum { Envelope::Checksum } else { Envelope::Bare };
        let (mut encoder, mut decoder) = (encoder(k, m, envelope), decoder(k, m, envelope));
        let (mut expected, mut sent) = (Vec::new(), Vec::new());
        for (number, &bytes) in (0..).zip(&lengths) {
            let payload = plain(envelope, number, bytes);
            let kcp = payload[envelope.bytes()..].to_vec();
            sent.extend(send(&mut encoder, envelope, &payload));
            expected.push(kcp);
        }
        let whole = lengths.len() / k * (k + m);
        let mut through = Vec::new();
        for (block, packets) in sent.chunks(k + m).enumerate() {
            // Blocks that are not full have no parity: of these nothing is lost.
            let mut lost = 0;
            let mut kept: Vec<_> = packets.iter().enumerate().filter(|(at, _)| {
                let lose = block * (k + m) < whole && lost < m && losses[block] >> at & 1 == 1;
                lost += usize::from(lose);
                !lose
            }).map(|(_, packet)| packet.clone()).collect();
            if swap {
                kept.reverse();
            }
            through.extend(kept);
        }
        let mut out: Vec<_> = through
            .iter()
            .flat_map(|packet| receive(&mut decoder, envelope, packet))
            .map(|payload| payload[envelope.bytes()..].to_vec())
            .collect();
        out.sort();
expected.sort();
        prop_assert_eq!(out, expected);
        prop_assert_eq!(decoder.stats().implausible_pkts, 0);
    }

    #[test]
    fn any_bytes_are_survived(data in proptest::collection::vec(any::<u8>(), 0..2000)) {
        fuzz(&data);
    }

    #[test]
    fn damaged_packets_are_survived(
        damage in proptest::collection::vec((0usize..15, 0usize..140, any::<u8>()), 0..20),
        order in proptest::collection::vec(0usize..15, 0..60),
    ) {
        let (mut packets, _) = theirs();
        for (at, byte, xor) in damage {
            let last = packets[at].len() - 1;
            packets[at][byte.min(last)] ^= xor;
            Envelope::Checksum.seal(&mut packets[at]).unwrap();
        }
        let mut decoder = decoder(3, 2, Envelope::Checksum);
        for at in order {
            receive(&mut decoder, Envelope::Checksum, &packets[at]);
        }
    }
}
