use proptest::prelude::*;

use super::*;

const STREAM: Stream = Stream { epoch: 0xa5, session: 0x0102 };

fn repair() -> impl Strategy<Value = Repair> {
    let code = prop_oneof![Just(CodeId::Xor), Just(CodeId::ReedSolomon)];
    (any::<u32>(), 1..=64u8, 1..=64u8, 1..=32u8, 0..16u8, 1..=16u8, any::<[u8; 2]>(), code)
        .prop_map(|(first, k, sources, stride, row, m, length, code)| {
            let m = if code == CodeId::Xor { 1 } else { m };
            let stride = usize::from(stride).min(SPAN_MAX_PKTS / usize::from(k)) as u8;
            Repair { first, k, sources: sources.min(k), stride, row: row % m, m, length, code }
        })
}

proptest! {
    #[test]
    fn a_repair_packet_that_was_written_is_read_back(
        repair in repair(), coded in proptest::collection::vec(any::<u8>(), 20..100), keyed: bool,
    ) {
        let key = keyed.then(|| Key::new([9; 16]));
        let mut payload = repair.shim(STREAM, keyed).to_vec();
        payload.extend(&coded);
        if let Some(key) = &key {
            payload.extend(key.mac(&payload));
        }
        let expected = Packet::Repair { stream: STREAM, repair, coded: &coded };
        prop_assert_eq!(parse(&payload, key.as_ref()), Ok(expected));
    }

    #[test]
    fn any_bytes_are_a_packet_in_range_or_an_error(
        mut payload in proptest::collection::vec(any::<u8>(), 0..64), kind in 0x10..=0x14u8,
    ) {
        if let Some(first) = payload.first_mut() {
            *first = kind;
        }
        if let Ok(Packet::Repair { repair, coded, .. }) = parse(&payload, None) {
            prop_assert!((1..=repair.k).contains(&repair.sources) && repair.k <= 64);
            prop_assert!(repair.row < repair.m && repair.m <= 16);
            prop_assert!((1..=32).contains(&repair.stride));
            prop_assert!(usize::from(repair.k) * usize::from(repair.stride) <= SPAN_MAX_PKTS);
            prop_assert!(repair.code == CodeId::ReedSolomon || repair.m == 1);
            prop_assert!(coded.len() >= INNER_MIN_BYTES);
        }
    }
}

fn payload() -> Vec<u8> {
    let repair = Repair {
        first: 0xfffffff0,
        k: 10,
        sources: 7,
        stride: 4,
        row: 1,
        m: 2,
        length: [0x12, 0x34],
        code: CodeId::ReedSolomon,
    };
    let mut payload = repair.shim(STREAM, false).to_vec();
    payload.resize(REPAIR_SHIM_BYTES + 20, 0xee);
    payload
}

#[test]
fn the_bytes_are_those_that_the_format_draws() {
    let expected = [0x12, 0xa5, 1, 2, 0xff, 0xff, 0xff, 0xf0, 10, 7, 4, 0x11, 0x12, 0x34, 1, 0];
    assert_eq!(payload()[..16], expected);
    assert_eq!(source_shim(STREAM, 0x01020304), [0x11, 0xa5, 1, 2, 1, 2, 3, 4]);
}

#[test]
fn every_impossible_field_is_rejected_by_its_name() {
    let cases: [(usize, u8, WireError); 14] = [
        (0, 0x22, WireError::Version),
        (0, 0x10, WireError::Type),
        (0, 0x14, WireError::Type),
        (8, 0, WireError::K),
        (8, 65, WireError::K),
        (9, 0, WireError::K),
        (9, 11, WireError::K),
        (10, 0, WireError::Stride),
        (10, 33, WireError::Stride),
        (11, 0x21, WireError::M),
        (14, 0, WireError::M),
        (14, 2, WireError::Code),
        (15, 2, WireError::Reserved),
        (15, 1, WireError::MacUnexpected),
    ];
    for (at, value, expected) in cases {
        let mut payload = payload();
        payload[at] = value;
        assert_eq!(parse(&payload, None), Err(expected), "byte {at} = {value:#x}");
    }
    let mut wide = payload();
    (wide[8], wide[10]) = (64, 17);
    assert_eq!(parse(&wide, None), Err(WireError::Stride));
}

#[test]
fn packets_that_are_cut_short_are_rejected() {
    let payload = payload();
    for len in 0..payload.len() {
        assert_eq!(parse(&payload[..len], None), Err(WireError::Short), "{len} bytes");
    }
    let mut source = source_shim(STREAM, 1).to_vec();
    source.resize(SOURCE_SHIM_BYTES + INNER_MIN_BYTES - 1, 0);
    assert_eq!(parse(&source, None), Err(WireError::Short));
}

#[test]
fn a_key_at_one_end_only_is_told_apart_from_two_that_differ() {
    let (key, other) = (Key::new([1; 16]), Key::new([2; 16]));
    assert_eq!(parse(&payload(), Some(&key)), Err(WireError::MacMissing));
    let mut signed = payload();
    signed[15] = FLAG_MAC;
    signed.extend(key.mac(&signed));
    assert!(parse(&signed, Some(&key)).is_ok());
    assert_eq!(parse(&signed, Some(&other)), Err(WireError::MacWrong));
    assert_eq!(parse(&signed, None), Err(WireError::MacUnexpected));
    for bit in 0..8 * signed.len() {
        let mut damaged = signed.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(parse(&damaged, Some(&key)) != parse(&signed, Some(&key)), "bit {bit}");
    }
}
