//! Encoder and decoder against each other, and against what ffmpeg and GStreamer sent.
#![forbid(unsafe_code)]

use proptest::prelude::*;

use super::*;
use crate::dialect::{LATE_MAX_PKTS, fixture};
use crate::kernel::Kernel;

const FFMPEG: &str = include_str!("../fixtures/ffmpeg.hex");
const GSTREAMER: &str = include_str!("../fixtures/gstreamer.hex");
/// Where media goes in the fixtures.
const PORT: u16 = 5000;
const LONGEST_BYTES: usize = 1400;

fn encoder(columns: u8, rows: u8, row_repair: bool) -> Encoder {
    let matrix = Matrix::new(columns, rows, row_repair).unwrap();
    Encoder::new(EncoderConfig { matrix, longest_bytes: LONGEST_BYTES }, Kernel::best()).unwrap()
}

fn decoder() -> Decoder {
    Decoder::new(DecoderConfig { longest_bytes: LONGEST_BYTES }, Kernel::best()).unwrap()
}

/// An RTP packet whose bytes come from its number.
fn media(sequence: u16, bytes: usize) -> Vec<u8> {
    let mark = if sequence.is_multiple_of(3) { 0x80 } else { 0 };
    let [n0, n1] = sequence.to_be_bytes();
    let mut packet = vec![0x80, mark | 33, n0, n1, 1, 2, n1 ^ 5, n0, 9, 8, 7, 6];
    packet.extend((0..bytes).map(|at| (at * 13 + usize::from(sequence) * 3) as u8));
    packet
}

fn recovered(decoder: &mut Decoder) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| decoder.next_recovered().map(<[u8]>::to_vec)).collect()
}

/// What a packet to a port makes come out: itself if media, and what was brought back.
fn receive(decoder: &mut Decoder, port: u16, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    if port == PORT {
        if decoder.media(packet) == Ok(Verdict::Deliver) {
            out.push(packet.to_vec());
        }
    } else {
        let _ = decoder.repair(packet);
    }
    out.extend(recovered(decoder));
    out
}

/// What goes out for a media packet, with the ports.
fn send(encoder: &mut Encoder, packet: &[u8]) -> Vec<(u16, Vec<u8>)> {
    encoder.add(packet).unwrap();
    let mut out = vec![(PORT, packet.to_vec())];
    while let Some(repair) = encoder.next_repair() {
        out.push((PORT + repair.direction.port_offset(), repair.payload.to_vec()));
    }
    out
}

#[test]
fn of_a_matrix_of_ffmpegs_or_gstreamers_any_three_lost_packets_come_back() {
    for (who, text) in [("ffmpeg", FFMPEG), ("GStreamer", GSTREAMER)] {
        let packets = fixture(text);
        let media: Vec<_> = packets
            .iter()
            .filter(|(port, _)| *port == PORT)
            .map(|(_, packet)| packet.clone())
            .collect();
        assert_eq!((media.len(), packets.len()), (20, 29));
        // All triples but those with the first, before which the decoder does not know the stream.
        for lost in (1..20).flat_map(|a| (a..20).flat_map(move |b| (b..20).map(move |c| [a, b, c])))
        {
            let mut decoder = decoder();
            let lost = lost.map(|at| &media[at]);
            let mut out = Vec::new();
            for (port, packet) in packets.iter().filter(|(_, packet)| !lost.contains(&packet)) {
                out.extend(receive(&mut decoder, *port, packet));
            }
            let mut expected = media.clone();
            out.sort();
            expected.sort();
            assert_eq!(out, expected, "{who}");
            assert_eq!(decoder.stats().implausible_pkts, 0);
        }
    }
}

/// What of a repair packet must be as theirs: all but number, timestamp and SSRC of its RTP header.
fn essence(packet: &[u8]) -> Vec<u8> {
    [&packet[..2], &packet[RTP_BYTES..]].concat()
}

#[test]
fn for_their_media_we_send_their_repair_packets() {
    for (who, text) in [("ffmpeg", FFMPEG), ("GStreamer", GSTREAMER)] {
        let (media, theirs): (Vec<_>, Vec<_>) =
            fixture(text).into_iter().partition(|(port, _)| *port == PORT);
        let mut encoder = encoder(4, 5, true);
        let mut ours: Vec<_> =
            media.iter().flat_map(|(_, packet)| send(&mut encoder, packet)).collect();
        ours.retain(|(port, _)| *port != PORT);
        let comparable = |packets: &[(u16, Vec<u8>)]| {
            let mut all: Vec<_> =
                packets.iter().map(|(port, packet)| (*port, essence(packet))).collect();
            all.sort();
            all
        };
        assert_eq!(comparable(&ours), comparable(&theirs), "{who}");
        assert_eq!((encoder.stats().media_pkts, encoder.stats().repair_pkts), (20, 9));
    }
}

#[test]
fn rows_and_columns_help_each_other_until_nothing_more_comes_of_it() {
    // A staircase: no column can be solved before a row has been, and so on.
    let (mut encoder, mut decoder) = (encoder(4, 4, true), decoder());
    let lost = [5, 6, 10, 11, 15];
    let mut out = Vec::new();
    for sequence in 0..16 {
        for (port, packet) in send(&mut encoder, &media(sequence, 100)) {
            if port != PORT || !lost.contains(&sequence) {
                out.extend(receive(&mut decoder, port, &packet));
            }
        }
    }
    out.sort_by_key(|packet| packet[3]);
    assert_eq!(out, (0..16).map(|sequence| media(sequence, 100)).collect::<Vec<_>>());
    assert_eq!(decoder.stats().recovered_pkts, 5);
}

#[test]
fn two_lost_of_one_row_and_of_one_column_each_stay_lost_and_are_counted() {
    let (mut encoder, mut decoder) = (encoder(4, 4, true), decoder());
    for sequence in 0..1000 {
        for (port, packet) in send(&mut encoder, &media(sequence, 100)) {
            if port != PORT || ![1, 2, 5, 6].contains(&sequence) {
                receive(&mut decoder, port, &packet);
            }
        }
    }
    let stats = decoder.stats();
    assert_eq!((stats.recovered_pkts, stats.unrecovered_pkts), (0, 4));
    assert_eq!((stats.media_pkts, stats.implausible_pkts, stats.rejected_pkts), (996, 0, 0));
}

#[test]
fn the_last_packets_of_a_stream_come_back_though_nothing_follows_them() {
    let (mut encoder, mut decoder) = (encoder(5, 4, true), decoder());
    let mut out = Vec::new();
    for sequence in 0..20 {
        for (port, packet) in send(&mut encoder, &media(sequence, 50)) {
            if port != PORT || sequence != 19 {
                out.extend(receive(&mut decoder, port, &packet));
            }
        }
    }
    assert!(out.contains(&media(19, 50)));
}

#[test]
fn columns_alone_bring_back_a_burst_as_long_as_a_row() {
    let (mut encoder, mut decoder) = (encoder(10, 5, false), decoder());
    let mut out = Vec::new();
    for sequence in (65_500..=u16::MAX).chain(0..64) {
        for (port, packet) in send(&mut encoder, &media(sequence, 50)) {
            assert_ne!(port, PORT + ROW_PORT_OFFSET);
            if port != PORT || !(5..15).contains(&sequence) {
                out.extend(receive(&mut decoder, port, &packet));
            }
        }
    }
    assert_eq!((out.len(), decoder.stats().recovered_pkts), (100, 10));
}

#[test]
fn a_packet_that_comes_twice_or_after_it_was_brought_back_is_a_duplicate() {
    let (mut encoder, mut decoder) = (encoder(4, 4, true), decoder());
    for sequence in 0..4 {
        for (port, packet) in send(&mut encoder, &media(sequence, 50)) {
            if port != PORT || sequence != 2 {
                receive(&mut decoder, port, &packet);
            }
        }
    }
    for sequence in [2, 3] {
        assert_eq!(decoder.media(&media(sequence, 50)), Ok(Verdict::Duplicate));
    }
    assert_eq!((decoder.stats().recovered_pkts, decoder.stats().duplicate_pkts), (1, 2));
}

#[test]
fn a_forged_repair_packet_brings_nothing_back() {
    let forge = |at: usize, value: u8| {
        let (mut encoder, mut decoder) = (encoder(4, 4, true), decoder());
        for sequence in 0..4 {
            for (port, mut packet) in send(&mut encoder, &media(sequence, 50)) {
                if port != PORT {
                    packet[at] ^= value;
                }
                if port != PORT || sequence != 2 {
                    receive(&mut decoder, port, &packet);
                }
            }
        }
        (
            decoder.stats().recovered_pkts,
            decoder.stats().implausible_pkts,
            decoder.stats().rejected_pkts,
        )
    };
    assert_eq!(forge(77, 0), (1, 0, 0), "as it was sent");
    assert_eq!(forge(15, 2), (0, 1, 0), "a length with which two bytes are left over");
    assert_eq!(forge(14, 1), (0, 1, 0), "a length beyond the sum");
    assert_eq!(forge(16, 1), (0, 1, 0), "a payload type that none of the others has");
    assert_eq!(forge(0, 0xc0), (0, 0, 1), "no RTP");
    assert_eq!(forge(16, 0x80), (0, 0, 1), "the shorter header of RFC 2733");
    assert_eq!(forge(19, 1), (0, 0, 1), "a mask");
    assert_eq!(forge(24, 8), (0, 0, 1), "another code");
    assert_eq!(forge(25, 3), (0, 0, 1), "a row with gaps");
    assert_eq!(forge(26, 4), (0, 0, 1), "a row without packets");
    assert_eq!(forge(26, 64), (0, 0, 1), "a row too long");
    assert_eq!(forge(12, 0x40), (0, 0, 1), "media far away");
}

#[test]
fn a_gap_before_the_encoder_begins_a_new_matrix_and_a_late_packet_none() {
    let (mut encoder, mut decoder) = (encoder(4, 4, true), decoder());
    for sequence in [0, 1, 2, 3, 4, 5, 9, 8, 10, 11, 12] {
        for (port, packet) in send(&mut encoder, &media(sequence, 50)) {
            if port != PORT || sequence != 11 {
                receive(&mut decoder, port, &packet);
            }
        }
    }
    let stats = encoder.stats();
    assert_eq!((stats.broken_matrices, stats.unprotected_pkts, stats.repair_pkts), (1, 1, 2));
    assert_eq!(decoder.stats().recovered_pkts, 1);
}

#[test]
fn a_sender_that_starts_anew_is_followed_after_some_late_packets() {
    let (mut encoder, mut decoder) = (encoder(4, 4, true), decoder());
    for sequence in (20_000..20_100).chain(0..200) {
        for (port, packet) in send(&mut encoder, &media(sequence, 50)) {
            if port != PORT || sequence != 150 {
                receive(&mut decoder, port, &packet);
            }
        }
    }
    let late = u64::from(LATE_MAX_PKTS) - 1;
    assert_eq!(encoder.stats().unprotected_pkts, late);
    assert_eq!((decoder.stats().late_pkts, decoder.stats().recovered_pkts), (late, 1));
}

#[test]
fn matrices_out_of_range_are_refused() {
    assert_eq!(Matrix::new(0, 5, false), Err(MatrixError::Columns(0)));
    assert_eq!(Matrix::new(21, 4, true), Err(MatrixError::Columns(21)));
    assert_eq!(Matrix::new(5, 3, true), Err(MatrixError::Rows(3)));
    assert_eq!(Matrix::new(11, 10, true), Err(MatrixError::Packets(110)));
    assert_eq!(Matrix::new(3, 5, true), Err(MatrixError::RowRepair(3)));
    assert_eq!(Matrix::new(3, 5, false).map(|matrix| matrix.repair_pkts()), Ok(3));
    assert_eq!(Matrix::new(5, 20, true).map(|matrix| matrix.repair_pkts()), Ok(25));
}

/// Which packets of a matrix rows and columns can bring back, by hand: the model.
fn solvable(columns: usize, rows: usize, row_repair: bool, mut lost: Vec<bool>) -> Vec<bool> {
    loop {
        let before = lost.clone();
        let groups = (0..columns).map(|column| (column..columns * rows).step_by(columns));
        let mut groups: Vec<Vec<usize>> = groups.map(Iterator::collect).collect();
        if row_repair {
            groups.extend((0..rows).map(|row| (row * columns..(row + 1) * columns).collect()));
        }
        for group in groups {
            if group.iter().filter(|&&at| lost[at]).count() == 1 {
                group.iter().for_each(|&at| lost[at] = false);
            }
        }
        if lost == before {
            return lost;
        }
    }
}

proptest! {
    #[test]
    fn exactly_what_can_be_solved_comes_back_wherever_numbers_begin(
        first: u16,
        columns in 4u8..10,
        rows in 4u8..10,
        row_repair: bool,
        lengths in proptest::collection::vec(0usize..200, 100),
        mut lost in proptest::collection::vec(proptest::bool::weighted(0.3), 100),
        repairs_last: bool,
    ) {
        let packets = usize::from(columns) * usize::from(rows);
        // Without the first the decoder does not know where the stream begins.
        lost[0] = false;
        lost.truncate(packets);
        let (mut encoder, mut decoder) = (encoder(columns, rows, row_repair), decoder());
        let (mut through, mut expected) = (Vec::new(), Vec::new());
        let stay_lost = solvable(columns.into(), rows.into(), row_repair, lost.clone());
        for at in 0..packets {
            let packet = media(first.wrapping_add(at as u16), lengths[at]);
            for (port, packet) in send(&mut encoder, &packet) {
                if port != PORT || !lost[at] {
                    through.push((port, packet));
                }
            }
            if !stay_lost[at] {
                expected.push(packet);
            }
        }
        if repairs_last {
            through.sort_by_key(|(port, _)| *port);
        }
        let mut out = Vec::new();
        for (port, packet) in &through {
            out.extend(receive(&mut decoder, *port, packet));
        }
        out.sort();
expected.sort();
        prop_assert_eq!(out, expected);
        prop_assert_eq!(decoder.stats().implausible_pkts, 0);
    }

    #[test]
    fn any_bytes_are_survived(data in proptest::collection::vec(any::<u8>(), 0..3000)) {
        fuzz(&data);
    }

    #[test]
    fn damaged_packets_are_survived(
        damage in proptest::collection::vec((0usize..29, 0usize..216, any::<u8>()), 0..30),
        order in proptest::collection::vec(0usize..29, 0..100),
    ) {
        let mut packets = fixture(GSTREAMER);
        for (at, byte, xor) in damage {
            let last = packets[at].1.len() - 1;
            packets[at].1[byte.min(last)] ^= xor;
        }
        let (mut decoder, mut encoder) = (decoder(), encoder(4, 5, true));
        for at in order {
            let (port, packet) = &packets[at];
            receive(&mut decoder, *port, packet);
            let _ = encoder.add(packet);
            while encoder.next_repair().is_some() {}
        }
    }
}
