use clap::Parser;
use millrace_fec::wire;
use nflib::headers::{Fragment, Headers, checksum, tcp_flags};
use nflib::shm::RegionGeometry;
use nflib::testing::{BenchOptions, FrameBuilder, Output, TestBench};

use super::*;
use crate::tunnel::outer;

mod control;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

const OVER_V4: [&str; 4] = ["--local", "192.0.2.1:4950", "--peer", "198.51.100.1:4950"];
const OVER_V6: [&str; 4] = ["--local", "[2001:db8::1]:4950", "--peer", "[2001:db8::2]:4950"];
const MACS: [&str; 4] = ["--mac", "02:00:00:00:00:0a", "--next-hop-mac", "02:00:00:00:00:0b"];

fn options(ends: [&str; 4], more: &[&str]) -> Options {
    let args = ["fec-encode"].iter().chain(&ends).chain(&MACS).chain(more);
    Cli::try_parse_from(args).unwrap().options
}

fn nf(more: &[&str]) -> FecEncode {
    FecEncode::new(&options(OVER_V4, more)).unwrap()
}

/// A bench whose NF has buffers in stock.
fn bench(more: &[&str]) -> TestBench<FecEncode> {
    let mut bench = TestBench::new(nf(more));
    assert!(bench.lend(64).is_empty());
    bench
}

fn ip() -> FrameBuilder {
    FrameBuilder::new().ip([10, 1, 0, 1].into(), [10, 2, 0, 1].into())
}

fn ip6() -> FrameBuilder {
    FrameBuilder::new().ip("2001:db8:1::1".parse().unwrap(), "2001:db8:2::1".parse().unwrap())
}

fn datagram(number: u8) -> Vec<u8> {
    ip().udp(1000, 2000).payload(&[number; 100]).build()
}

fn datagrams(count: u8) -> Vec<Vec<u8>> {
    (0..count).map(datagram).collect()
}

/// What is in a tunnel packet, after its outer headers were looked at.
fn payload(frame: &[u8]) -> &[u8] {
    let headers = Headers::parse(frame);
    assert!(outer::checksums_ok(frame, &headers, false));
    assert_eq!((headers.dst_mac, headers.src_mac), ([2, 0, 0, 0, 0, 0xb], [2, 0, 0, 0, 0, 0xa]));
    &frame[outer::datagram(frame, &headers).unwrap().payload]
}

fn tos(frame: &[u8]) -> u8 {
    outer::datagram(frame, &Headers::parse(frame)).unwrap().tos
}

fn parsed(out: &Output) -> wire::Packet<'_> {
    wire::parse(payload(&out.bytes), None).unwrap()
}

/// Source packets as their numbers, parity packets as -1.
fn order(outputs: &[Output]) -> Vec<i64> {
    let number = |out: &Output| match parsed(out) {
        wire::Packet::Source { sequence, .. } => i64::from(sequence),
        wire::Packet::Repair { .. } => -1,
        wire::Packet::Report => panic!("an encoder sends no reports"),
    };
    outputs.iter().map(number).collect()
}

fn counts(bench: &mut TestBench<FecEncode>) -> String {
    String::from_utf8(bench.message(None, b"get counts").unwrap()).unwrap()
}

#[track_caller]
fn assert_counts(bench: &mut TestBench<FecEncode>, expected: &[&str]) {
    let counts = counts(bench);
    for word in expected {
        assert!(counts.split(' ').any(|count| count == *word), "{word} in {counts}");
    }
}

#[test]
fn a_packet_leaves_with_eight_bytes_more_and_otherwise_untouched() {
    for ends in [OVER_V4, OVER_V6] {
        let mut bench = TestBench::new(FecEncode::new(&options(ends, &[])).unwrap());
        for frame in [
            ip().tos(0xb9).udp(1, 2).payload(b"hello").pad_to(60).build(),
            ip6().tos(0xb9).tcp(1, 2, tcp_flags::ACK).payload(&[7; 1000]).build(),
        ] {
            let out = bench.feed_one(&frame).unwrap();
            assert_eq!(out.action, Action::Next);
            let wire::Packet::Source { inner, .. } = parsed(&out) else { panic!("{out:?}") };
            let headers = Headers::parse(&frame);
            let range = usize::from(headers.l3_offset)..usize::from(headers.payload_end);
            assert_eq!(inner, &frame[range.clone()]);
            assert_eq!(payload(&out.bytes).len(), range.len() + 8);
            assert_eq!(tos(&out.bytes), 0xb9, "code point and congestion field go outwards");
        }
        assert_counts(&mut bench, &["data=2", "parity=0", "malformed=0"]);
    }
}

#[test]
fn parity_follows_its_block_at_once_also_amid_a_burst() {
    let mut bench = bench(&["-k", "4", "-m", "2"]);
    let out = bench.feed(&datagrams(10));
    assert_eq!(order(&out), [0, 1, 2, 3, -1, -1, 4, 5, 6, 7, -1, -1, 8, 9]);
    assert!(out.iter().all(|out| out.action == Action::Next));
    let hashes = out.iter().map(|out| &out.bytes[14..][12..24]).collect::<Vec<_>>();
    assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "all have the same ends");
    assert_counts(&mut bench, &["data=10", "parity=4", "no-buffer=0"]);
}

#[test]
fn a_plain_sum_is_the_sum_of_the_packets() {
    let mut bench = bench(&["-k", "3", "-m", "1"]);
    let out = bench.feed(&datagrams(3));
    let wire::Packet::Repair { repair, coded, .. } = parsed(&out[3]) else { panic!() };
    assert_eq!((repair.first, repair.k, repair.m, repair.stride), (0, 3, 1, 1));
    let sum = |at: usize| datagrams(3).iter().fold(0, |sum, frame| sum ^ frame[14 + at]);
    assert!(coded.iter().enumerate().all(|(at, byte)| *byte == sum(at)));
}

#[test]
fn a_block_that_does_not_fill_is_closed_by_the_timer() {
    let mut bench = bench(&["-k", "4", "-m", "2", "--flush-ms", "20"]);
    assert_eq!(order(&bench.feed(&datagrams(2))), [0, 1]);
    assert!(bench.advance(Duration::from_millis(19)).is_empty());
    let out = bench.advance(Duration::from_millis(6));
    assert_eq!(order(&out), [-1, -1]);
    let wire::Packet::Repair { repair, .. } = parsed(&out[0]) else { panic!() };
    assert_eq!((repair.sources, repair.k), (2, 4));
    assert!(bench.advance(Duration::from_millis(100)).is_empty());
}

#[test]
fn without_a_buffer_parity_is_lost_and_counted_and_data_is_not() {
    let mut bench = TestBench::new(nf(&["-k", "4", "-m", "2"]));
    assert_eq!(order(&bench.feed(&datagrams(8))), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_counts(&mut bench, &["data=8", "parity=0", "no-buffer=4"]);
}

#[test]
fn what_is_no_untagged_ip_packet_is_passed_on_or_dropped() {
    let others = [
        FrameBuilder::new().ethertype(0x0806).payload(&[0; 28]).build(),
        ip().vlan(7).udp(1, 2).build(),
        vec![0; 10],
    ];
    let mut bench = bench(&[]);
    let out = bench.feed(&others);
    assert!(out.iter().all(|out| out.action == Action::Next));
    assert_eq!(out.into_iter().map(|out| out.bytes).collect::<Vec<_>>(), others);
    assert_counts(&mut bench, &["passed=3", "data=0"]);
    let mut bench = self::bench(&["--drop-non-ip"]);
    assert!(bench.feed(&others).iter().all(|out| out.action == Action::Drop));
    assert_counts(&mut bench, &["non-ip-dropped=3"]);
}

#[test]
fn impossible_ip_headers_are_dropped_and_odd_transport_headers_are_carried() {
    let mut bench = bench(&[]);
    let mut frame = datagram(1);
    frame.truncate(60);
    assert_eq!(bench.feed_one(&frame).unwrap().action, Action::Drop);
    let odd = ip().proto(6).payload(&[0xff; 7]).build();
    let out = bench.feed_one(&odd).unwrap();
    let wire::Packet::Source { inner, .. } = parsed(&out) else { panic!() };
    assert_eq!(inner, &odd[14..]);
    assert_counts(&mut bench, &["malformed=1", "data=1"]);
}

#[test]
fn what_is_in_the_tunnel_already_is_not_put_into_it_again() {
    let mut bench = bench(&[]);
    let inside = bench.feed_one(&datagram(1)).unwrap().bytes;
    let out = bench.feed_one(&inside).unwrap();
    assert_eq!((out.action, out.bytes), (Action::Next, inside));
    assert_counts(&mut bench, &["passed=1", "data=1"]);
}

/// An IP packet of so many bytes, with "don't fragment" set in IPv4.
fn sized(v6: bool, bytes: usize) -> Vec<u8> {
    let headers = if v6 { 48 } else { 28 };
    let frame = if v6 { ip6() } else { ip() }.udp(1, 2).payload(&vec![7; bytes - headers]);
    let mut frame = frame.build();
    if !v6 {
        frame[20] = 0x40;
        frame[24..26].fill(0);
        let sum = checksum::internet(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

#[test]
fn the_longest_packet_fits_with_its_parity_and_the_sender_of_a_longer_one_is_told() {
    for (ends, more, longest) in [
        (OVER_V4, &["-k", "1", "-m", "1"][..], 1456),
        (OVER_V6, &["-k", "1", "-m", "1"], 1436),
        (OVER_V4, &["-k", "1", "-m", "1", "--mtu", "1400"], 1356),
    ] {
        let mut bench = TestBench::new(FecEncode::new(&options(ends, more)).unwrap());
        bench.lend(8);
        let mtu = if more.len() > 4 { 1400 } else { 1500 };
        for v6 in [false, true] {
            let out = bench.feed(&[sized(v6, longest)]);
            assert_eq!(out.len(), 2);
            assert_eq!(out[1].bytes.len(), ETHERNET_BYTES + mtu, "parity fills the link's MTU");
            let frame = sized(v6, longest + 1);
            let out = bench.feed_one(&frame).unwrap();
            assert_eq!(out.action, Action::Out(0), "back by the port it came in by");
            assert_eq!((&out.bytes[..6], &out.bytes[6..12]), (&frame[6..12], &frame[..6]));
            let icmp = if v6 { 54 } else { 34 };
            let said = u16::from_be_bytes([out.bytes[icmp + 6], out.bytes[icmp + 7]]);
            assert_eq!(usize::from(said), longest);
        }
        assert_counts(&mut bench, &["data=2", "parity=2", "too-big-answered=2"]);
    }
}

#[test]
fn nobody_is_told_more_often_than_the_limit_allows_or_about_an_error() {
    let mut bench = bench(&[]);
    let out = bench.feed(&vec![sized(false, 1500); 60]);
    let answered = out.iter().filter(|out| out.action == Action::Out(0)).count();
    assert_eq!(answered, 50);
    let group = FrameBuilder::new().ip("2001:db8::1".parse().unwrap(), "ff0e::1".parse().unwrap());
    let group = group.udp(1, 2).payload(&[0; 1450]).build();
    assert_eq!(bench.feed_one(&group).unwrap().action, Action::Drop);
    let expected = ["too-big-answered=50", "too-big-limited=10", "too-big-silent=1", "data=0"];
    assert_counts(&mut bench, &expected);
}

#[test]
fn a_long_packet_that_may_be_cut_is_cut_into_pieces_that_are_protected_like_any() {
    let mut bench = bench(&["-k", "3", "-m", "1"]);
    let long = ip().udp(1, 2).payload(&(0..=255).cycle().take(1472).collect::<Vec<_>>()).build();
    let out = bench.feed(&[datagram(1), long.clone()]);
    assert_eq!(order(&out), [0, 1, 2, -1]);
    let mut data: Vec<u8> = Vec::new();
    for (out, expected) in out[1..3].iter().zip([Fragment::First, Fragment::Later]) {
        let wire::Packet::Source { inner, .. } = parsed(out) else { panic!() };
        assert!(inner.len() <= 1456);
        let mut frame = vec![0; 12];
        frame.extend([8, 0]);
        frame.extend(inner);
        let headers = Headers::parse(&frame);
        assert_eq!(headers.fragment(), expected);
        assert_eq!(checksum::ipv4_ok(&frame, &headers), Some(true));
        data.extend(&inner[20..]);
    }
    assert_eq!(data, long[34..]);
    assert_counts(&mut bench, &["cut=1", "data=3", "parity=1"]);
}

#[test]
fn a_long_packet_is_cut_only_when_there_are_buffers_for_all_its_pieces() {
    let options = BenchOptions {
        region: RegionGeometry { buffers: 256, stride_bytes: 12_288, headroom_bytes: 256 },
        ..BenchOptions::default()
    };
    let mut bench = TestBench::with_options(nf(&[]), options).unwrap();
    bench.lend(6);
    // 8,972 bytes become seven pieces.
    let long = ip().udp(1, 2).payload(&[9; 8972]).build();
    assert_eq!(order(&bench.feed(&[&long])), [0, 1, 2, 3, 4, 5, 6]);
    bench.lend(5);
    let out = bench.feed(&[&long]);
    assert!(out.iter().all(|out| out.action == Action::Drop));
    assert_eq!(bench.held_pkts(), 0);
    assert_counts(&mut bench, &["cut=1", "cut-failed=1", "data=7"]);
}

#[test]
fn tcp_peers_are_told_to_send_what_fits_unless_that_is_off() {
    let mut tcp = vec![0, 9, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, tcp_flags::SYN];
    tcp.extend([0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4]);
    let mut frame = ip().proto(6).payload(&tcp).build();
    let headers = Headers::parse(&frame);
    checksum::fill_transport(&mut frame, &headers);
    for (more, expected) in [(&[][..], 1416), (&["--mss-clamp", "off"], 1460)] {
        let mut bench = bench(more);
        let out = bench.feed_one(&frame).unwrap();
        let wire::Packet::Source { inner, .. } = parsed(&out) else { panic!() };
        assert_eq!(u16::from_be_bytes([inner[42], inner[43]]), expected);
    }
}

#[test]
fn code_points_are_sessions_of_their_own_when_that_is_asked_for() {
    let frame = |tos: u8| ip().tos(tos).udp(1, 2).payload(b"x").build();
    let frames = [frame(0xb9), frame(0), frame(0xb8), frame(1), frame(0)];
    let mut bench = bench(&["-k", "2", "-m", "1", "--session-by", "dscp"]);
    let out = bench.feed(&frames);
    let streams: Vec<_> = out
        .iter()
        .map(|out| match parsed(out) {
            wire::Packet::Source { stream, sequence, .. } => (stream.session, Some(sequence)),
            wire::Packet::Repair { stream, .. } => (stream.session, None),
            wire::Packet::Report => panic!(),
        })
        .collect();
    let expected = [
        (46, Some(0)),
        (0, Some(0)),
        (46, Some(1)),
        (46, None),
        (0, Some(1)),
        (0, None),
        (0, Some(2)),
    ];
    assert_eq!(streams, expected);
    assert_eq!((tos(&out[3].bytes), tos(&out[5].bytes)), (0xb8, 0), "parity takes no marks");
    let now = bench.message(None, b"get now").unwrap();
    let now = String::from_utf8(now).unwrap();
    assert!(now.contains("session=0 ") && now.contains("; session=46 k=2 m=1 stride=1"), "{now}");
}

#[test]
fn with_a_key_parity_has_a_mac_and_leaves_less_room() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, b"000102030405060708090a0b0c0d0e0f\n").unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let mut bench = bench(&["-k", "1", "-m", "1", "--key-file", &path]);
    let out = bench.feed(&[sized(false, 1448)]);
    assert_eq!(out[1].bytes.len(), ETHERNET_BYTES + 1500);
    let key = millrace_fec::mac::Key::new(std::array::from_fn(|at| at as u8));
    let parity = payload(&out[1].bytes);
    assert!(matches!(wire::parse(parity, Some(&key)), Ok(wire::Packet::Repair { .. })));
    assert_eq!(wire::parse(parity, None), Err(wire::WireError::MacUnexpected));
    assert_eq!(bench.feed_one(&sized(false, 1449)).unwrap().action, Action::Out(0));
}

fn epoch(out: &Output) -> u8 {
    match parsed(out) {
        wire::Packet::Source { stream, .. } => stream.epoch,
        _ => panic!("{out:?}"),
    }
}

#[test]
fn who_leaves_sends_the_parity_of_open_blocks_and_gives_its_buffers_back() {
    let mut bench = bench(&["-k", "4", "-m", "2"]);
    bench.feed(&datagrams(3));
    let out = bench.leave();
    let (parity, rest): (Vec<_>, Vec<_>) = out.iter().partition(|o| o.action == Action::Next);
    assert!(!parity.is_empty() && rest.iter().all(|out| out.bytes.is_empty()));
    assert_eq!(bench.held_pkts(), 0);
    assert_eq!(bench.lend(1)[0].action, Action::Drop);
    assert_eq!(bench.feed(&datagrams(1)).len(), 1);
}

#[test]
fn to_port_sends_data_and_parity_out_by_that_port() {
    let mut bench = bench(&["-k", "2", "-m", "1", "--to-port", "5"]);
    let out = bench.feed(&datagrams(2));
    assert_eq!(out.len(), 3);
    assert!(out.iter().all(|out| out.action == Action::Out(5)));
}

#[test]
fn what_is_attached_again_goes_on_in_its_epoch() {
    let mut bench = bench(&[]);
    let first = epoch(&bench.feed_one(&datagram(0)).unwrap());
    let mut nf = nf(&[]);
    nf.coders.begin(first.wrapping_add(7));
    nf.began = true;
    let out = TestBench::new(nf).feed_one(&datagram(0)).unwrap();
    assert_eq!(epoch(&out), first.wrapping_add(7), "the bench has set it up once more");
}

#[test]
fn buffers_that_are_too_small_are_refused_with_the_limit() {
    let refusal = |stride_bytes, headroom_bytes, more: &[&str]| {
        let region = RegionGeometry { buffers: 64, stride_bytes, headroom_bytes };
        let options = BenchOptions { region, ..BenchOptions::default() };
        TestBench::with_options(nf(more), options).err().unwrap().to_string()
    };
    let error = refusal(2048, 256, &["--mtu", "9000"]);
    assert!(error.contains("--mtu 9000: at most 1778 fit"), "{error}");
    let error = refusal(2048, 32, &[]);
    assert!(error.contains("pool.headroom_bytes = 32: the outer headers need 36"), "{error}");
}

#[test]
fn a_burst_of_any_sizes_and_sessions_keeps_its_order_in_each_session() {
    let mut bench = bench(&["-k", "5", "-m", "1", "--session-by", "dscp", "--stride", "3"]);
    let mut next = [0; 64];
    for round in 0..20_u8 {
        let frames: Vec<_> = (0..64)
            .map(|at| {
                ip().tos((usize::from(round) * 7 + usize::from(at) * 5) as u8 % 12 * 4)
                    .udp(1, 2)
                    .payload(&[at; 20])
                    .build()
            })
            .collect();
        bench.lend(64);
        for out in bench.feed(&frames).iter().filter(|out| out.action == Action::Next) {
            if let wire::Packet::Source { stream, sequence, .. } = parsed(out) {
                assert_eq!(sequence, next[usize::from(stream.session)]);
                next[usize::from(stream.session)] += 1;
            }
        }
    }
    assert_eq!(next.iter().sum::<u32>(), 20 * 64);
}

#[test]
fn behind_other_nfs_of_one_process_it_does_the_same() {
    struct First;
    impl NetworkFunction for First {}
    let stages: Vec<(String, Box<dyn NetworkFunction>)> = vec![
        ("first".into(), Box::new(First)),
        ("fec-encode".into(), Box::new(nf(&["-k", "4", "-m", "2"]))),
    ];
    let mut bench = TestBench::new(nflib::Fused::new(stages).unwrap());
    assert!(bench.lend(64).is_empty());
    let out = bench.feed(&datagrams(10));
    assert_eq!(order(&out), [0, 1, 2, 3, -1, -1, 4, 5, 6, 7, -1, -1, 8, 9]);
    let counts = String::from_utf8(bench.message(None, b"2 get counts").unwrap()).unwrap();
    assert!(counts.contains("data=10 ") && counts.contains("parity=4 "), "{counts}");
    assert_eq!(bench.leave().iter().filter(|out| out.action == Action::Next).count(), 2);
    assert_eq!(bench.held_pkts(), 0);
}
