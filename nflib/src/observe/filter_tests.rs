//! The filter against libpcap's own interpreter.

use millrace_pcap_filter::{FilterError as NoLibpcap, compile, libpcap_accepts};
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const RETURN_YES: FilterStep = (0x06, 0, 0, 1);

/// Whether libpcap is here; says so if it is not.
#[allow(clippy::print_stdout)] // shown by the test harness
fn has_libpcap() -> bool {
    // Miri loads no libraries.
    if cfg!(miri) {
        return false;
    }
    let Err(NoLibpcap::Missing(reason)) = compile("tcp") else { return true };
    let must_run = std::env::var_os("MILLRACE_MUST_RUN").is_some_and(|value| value == "1");
    assert!(!must_run, "this test must run here, and cannot: {reason}");
    println!("skipped: {reason}");
    false
}

fn refused(steps: &[FilterStep]) -> FilterError {
    let error = Filter::new(steps).unwrap_err();
    assert_eq!(error.to_string().lines().count(), 1);
    error
}

#[test]
fn no_steps_take_every_packet() {
    assert!(Filter::new(&[]).unwrap().accepts(&[], 0));
    assert!(Filter::default().accepts(b"x", 1));
}

#[test]
fn each_mistake_is_named_with_its_step() {
    let yes = RETURN_YES;
    assert_eq!(refused(&vec![yes; MAX_FILTER_STEPS + 1]), FilterError::TooLong(4097));
    assert!(Filter::new(&vec![yes; MAX_FILTER_STEPS]).is_ok());
    assert_eq!(refused(&[yes, (0, 0, 0, 5)]), FilterError::NoReturn);
    for distance in [1, 2, 65_535, u32::MAX - 1, u32::MAX] {
        assert_eq!(refused(&[(0x05, 0, 0, distance), yes]), FilterError::JumpsOut { at: 0 });
    }
    assert_eq!(refused(&[yes, (0x15, 0, 1, 0), yes]), FilterError::JumpsOut { at: 1 });
    assert_eq!(refused(&[yes, (0x15, 255, 0, 0), yes]), FilterError::JumpsOut { at: 1 });
    for code in [0x34, 0x94] {
        assert_eq!(refused(&[(code, 0, 0, 0), yes]), FilterError::DividesByZero { at: 0 });
    }
    for code in [0x64, 0x74] {
        let error = FilterError::ShiftsTooFar { at: 0, bits: 32 };
        assert_eq!(refused(&[(code, 0, 0, 32), yes]), error);
    }
    for code in [0x60, 0x61, 0x02, 0x03] {
        let error = FilterError::NoSuchWord { at: 0, word: 16 };
        assert_eq!(refused(&[(code, 0, 0, 16), yes]), error);
    }
    for code in
        [0x18, 0x38, 0x08, 0x68, 0x88, 0xa0, 0x21, 0xa1, 0x0a, 0xb4, 0x55, 0x0e, 0x17, 0x100]
    {
        assert_eq!(refused(&[(code, 0, 0, 1), yes]), FilterError::UnknownCode { at: 0, code });
    }
}

/// An Ethernet header, perhaps a VLAN tag, IPv4 or IPv6 or neither, and a transport header; sometimes
/// cut short.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let address = select(vec![[10, 0, 0, 1], [10, 0, 0, 2], [192, 168, 1, 1]]);
    let ports = prop::collection::vec(select(vec![53_u16, 80, 443, 1024]), 2);
    let kinds =
        (any::<bool>(), select(vec![0x0800_u16, 0x86dd, 0x0806]), select(vec![1_u8, 6, 17]));
    let tail = prop::collection::vec(any::<u8>(), 0..40);
    let shape = (5_u8..8, select(vec![0_u16, 1, 0x2000]), 0_usize..130);
    (kinds, address.clone(), address, ports, tail, shape).prop_map(
        |((tagged, ether_type, protocol), from, to, ports, tail, (words, fragment, keep))| {
            let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
            if tagged {
                frame.extend([0x81, 0, 0, 7]);
            }
            frame.extend(ether_type.to_be_bytes());
            if ether_type == 0x86dd {
                frame.extend([0x60, 0, 0, 0, 0, 20, protocol, 64]);
                for end in [from, to] {
                    frame.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0]);
                    frame.extend(end);
                }
            } else {
                frame.extend([0x40 | words, 0, 0, 40, 0, 0]);
                frame.extend(fragment.to_be_bytes());
                frame.extend([64, protocol, 0, 0]);
                frame.extend(from);
                frame.extend(to);
                frame.extend(vec![0; 4 * usize::from(words - 5)]);
            }
            frame.extend(ports.into_iter().flat_map(u16::to_be_bytes));
            frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2]);
            frame.extend(tail);
            // Two in three are whole.
            if keep < frame.len() / 2 {
                frame.truncate(keep);
            }
            frame
        },
    )
}

const FILTERS: &[&str] = &[
    "tcp port 80 and host 10.0.0.1",
    "udp or icmp or arp",
    "ip6 and tcp dst port 443",
    "vlan 7 and ip and not port 53",
    "net 192.168.0.0/16 or portrange 50-90",
    "len > 60 and len <= 90",
    "greater 64",
    "ip[8] & 0x3f = 0 and ip[0] & 0xf != 5",
    "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn",
    "ether src 02:00:00:00:00:02 and ether multicast",
    "ip[2:2] - ((ip[0]&0xf)<<2) > 10",
    "ether[14 + ether[3]:4] / (ether[5] + 1) > 3 or ether[20] % 3 = len % 3",
    "ip[ip[0] & 0xf : 2] * 7 ^ len > 1000 or -ip[9] = 0xfffffffa",
    "ip and ip[6:2] & 0x1fff = 0 or src net 10.0.0.0/30",
];

/// Any instruction that could stand at a place with `left` more behind it.
fn step(left: u32) -> impl Strategy<Value = FilterStep> {
    const LOADS: &[u16] = &[0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0xb1];
    const CONSTANTS: &[u16] = &[0x00, 0x01, 0x80, 0x81, 0x84, 0x07, 0x87];
    const MEMORY: &[u16] = &[0x60, 0x61, 0x02, 0x03];
    const WITH_INDEX: &[u16] = &[0x0c, 0x1c, 0x2c, 0x3c, 0x4c, 0x5c, 0x6c, 0x7c, 0x9c, 0xac];
    const WITH_CONSTANT: &[u16] = &[0x04, 0x14, 0x24, 0x34, 0x44, 0x54, 0x64, 0x74, 0x94, 0xa4];
    const TESTS: &[u16] = &[0x15, 0x1d, 0x25, 0x2d, 0x35, 0x3d, 0x45, 0x4d];
    let plain = |codes: &'static [u16]| select(codes).prop_map(|code| (code, 0_u8, 0_u8));
    let far = u8::try_from(left.saturating_sub(1)).unwrap_or(u8::MAX);
    let offsets = prop_oneof![9 => 0_u32..80, 1 => any::<u32>()];
    let numbers = prop_oneof![0_u32..70, any::<u32>()];
    prop_oneof![
        4 => (plain(LOADS), offsets).prop_map(|((c, t, f), k)| (c, t, f, k)),
        3 => (plain(CONSTANTS), numbers.clone()).prop_map(|((c, t, f), k)| (c, t, f, k)),
        3 => (plain(MEMORY), 0_u32..16).prop_map(|((c, t, f), k)| (c, t, f, k)),
        3 => (plain(WITH_INDEX), any::<u32>()).prop_map(|((c, t, f), k)| (c, t, f, k)),
        3 => (plain(WITH_CONSTANT), 1_u32..32).prop_map(|((c, t, f), k)| (c, t, f, k)),
        2 => (select(TESTS), 0..=far, 0..=far, numbers),
        1 => (0..=u32::from(far)).prop_map(|k| (0x05, 0, 0, k)),
        1 => select(vec![(0x16, 0, 0, 0), RETURN_YES, (0x06, 0, 0, 0)]),
    ]
}

/// A valid program. libpcap does not clear its scratch memory, so the program does it first.
fn program() -> impl Strategy<Value = Vec<FilterStep>> {
    (0_u32..40).prop_flat_map(|len| (0..len).map(|at| step(len - at)).collect::<Vec<_>>()).prop_map(
        |steps| {
            let clear = (0..16).map(|word| (0x02, 0, 0, word));
            clear.chain(steps).chain([(0x16, 0, 0, 0)]).collect()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn real_filters_take_what_libpcap_takes(text in select(FILTERS), frame in frame(), more in 0_u32..100) {
        if has_libpcap() {
            let steps = compile(text).unwrap();
            let filter = Filter::new(&steps).unwrap();
            let len_bytes = frame.len() as u32 + more;
            let expected = libpcap_accepts(&steps, &frame, len_bytes).unwrap();
            prop_assert_eq!(Some(filter.accepts(&frame, len_bytes)), expected);
        }
    }

    #[test]
    fn random_programs_take_what_libpcap_takes(steps in program(), frame in frame(), more in 0_u32..100) {
        if has_libpcap() {
            let filter = Filter::new(&steps).unwrap();
            let len_bytes = frame.len() as u32 + more;
            let expected = libpcap_accepts(&steps, &frame, len_bytes).unwrap();
            prop_assert!(expected.is_some(), "libpcap finds it invalid");
            prop_assert_eq!(Some(filter.accepts(&frame, len_bytes)), expected);
        }
    }
}

#[test]
fn the_frames_of_these_tests_pass_and_fail_each_filter() {
    if !has_libpcap() {
        return;
    }
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let frames: Vec<_> =
        (0..2000).map(|_| frame().new_tree(&mut runner).unwrap().current()).collect();
    for text in FILTERS {
        let filter = Filter::new(&compile(text).unwrap()).unwrap();
        let taken = frames.iter().filter(|frame| filter.accepts(frame, frame.len() as u32)).count();
        assert!(taken < frames.len(), "{text} takes all");
        let none = text.contains("multicast");
        assert_eq!(taken == 0, none, "{text} takes {taken}");
    }
}
