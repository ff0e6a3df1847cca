use std::net::IpAddr;

use clap::Parser;
use millrace_fec::report::Report;
use nflib::headers::{checksum, tcp_flags};
use nflib::testing::{BenchOptions, FrameBuilder, Output, TestBench};

use super::*;
use crate::fec_encode::{self, FecEncode};

mod agreement;
mod soup;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

#[derive(Parser)]
struct EncodeCli {
    #[command(flatten)]
    options: fec_encode::Options,
}

/// This end's address, and the far end's.
type Addresses = [&'static str; 2];
const V4: Addresses = ["198.51.100.1:4950", "192.0.2.1:4950"];
const V6: Addresses = ["[2001:db8::2]:4950", "[2001:db8::1]:4950"];
const PORT: u8 = 3;

/// The far end, with buffers in stock.
fn encoder(ends: Addresses, more: &[&str]) -> TestBench<FecEncode> {
    let [local, peer] = [ends[1], ends[0]];
    let fixed = ["fec-encode", "--local", local, "--peer", peer, "--mac", "02:00:00:00:00:0a"];
    let next = ["--next-hop-mac", "02:00:00:00:00:0b"];
    let options = EncodeCli::try_parse_from(fixed.iter().chain(&next).chain(more)).unwrap().options;
    let mut bench = TestBench::new(FecEncode::new(&options).unwrap());
    bench.lend(512);
    bench
}

fn options(ends: Addresses, more: &[&str]) -> Options {
    let [local, peer] = ends;
    let fixed = ["fec-decode", "--local", local, "--peer", peer, "--mac", "02:00:00:00:00:0b"];
    let next = ["--next-hop-mac", "02:00:00:00:00:0d", "--inner-mac", "02:00:00:00:00:0c"];
    Cli::try_parse_from(fixed.iter().chain(&next).chain(more)).unwrap().options
}

/// A decoder without any buffer in stock.
fn decoder(ends: Addresses, more: &[&str]) -> TestBench<FecDecode> {
    let nf = FecDecode::new(&options(ends, more)).unwrap();
    let options = BenchOptions { ingress_port: PORT, ..BenchOptions::default() };
    TestBench::with_options(nf, options).unwrap()
}

fn addresses(v6: bool) -> (IpAddr, IpAddr) {
    if v6 {
        ("2001:db8:1::1".parse().unwrap(), "2001:db8:2::1".parse().unwrap())
    } else {
        ([10, 1, 0, 1].into(), [10, 2, 0, 1].into())
    }
}

fn datagram(number: usize, tos: u8) -> Vec<u8> {
    let (src, dst) = addresses(number % 3 == 1);
    let payload = vec![number as u8; 20 + number * 37 % 900];
    FrameBuilder::new().ip(src, dst).tos(tos).udp(1000, 2000).payload(&payload).build()
}

fn datagrams(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| datagram(number, 0)).collect()
}

/// Frames of the tunnel for these, data and parity in the order in which they are sent.
fn tunnel(bench: &mut TestBench<FecEncode>, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    bench.feed(frames).into_iter().map(|out| out.bytes).collect()
}

/// What was let out, from its IP header.
fn inner(out: &Output) -> &[u8] {
    assert_eq!(out.action, Action::Next);
    let headers = Headers::parse(&out.bytes);
    let macs = ([2, 0, 0, 0, 0, 0xd], [2, 0, 0, 0, 0, 0xc]);
    assert_eq!(((headers.dst_mac, headers.src_mac), headers.problem), (macs, None));
    assert_eq!(usize::from(headers.payload_end), out.bytes.len(), "no padding is left");
    &out.bytes[ETHERNET_BYTES..]
}

fn let_out(outputs: Vec<Output>) -> Vec<Vec<u8>> {
    let kept = outputs.iter().filter(|out| out.action != Action::Drop);
    kept.map(|out| inner(out).to_vec()).collect()
}

fn inside(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    frames.iter().map(|frame| frame[ETHERNET_BYTES..].to_vec()).collect()
}

fn get(bench: &mut TestBench<FecDecode>, key: &str) -> String {
    String::from_utf8(bench.message(None, format!("get {key}").as_bytes()).unwrap()).unwrap()
}

#[track_caller]
fn assert_counts(bench: &mut TestBench<FecDecode>, expected: &[&str]) {
    let counts = get(bench, "counts") + " " + &get(bench, "peers");
    for word in expected {
        assert!(counts.split([' ', ';']).any(|count| count == *word), "{word} in {counts}");
    }
}

/// The congestion field of an outer header is written anew, as a router does.
fn with_outer_ecn(frame: &[u8], ecn: Ecn) -> Vec<u8> {
    let mut frame = frame.to_vec();
    ecn::set(&mut frame[ETHERNET_BYTES..], ecn);
    frame
}

#[test]
fn what_comes_is_let_out_at_once_in_its_own_buffer_as_it_was() {
    for ends in [V4, V6] {
        let frames = datagrams(20);
        let sent = tunnel(&mut encoder(ends, &["-k", "10", "-m", "2"]), &frames);
        assert_eq!(sent.len(), 24);
        let mut bench = decoder(ends, &[]);
        let data: Vec<_> = sent[..10].iter().chain(&sent[12..22]).cloned().collect();
        let out = bench.feed(&data);
        assert_eq!(let_out(out), inside(&frames));
        assert!(bench.feed(&sent[10..12]).is_empty(), "parity leaves its buffer here");
        assert_eq!(bench.held_pkts(), 2);
        assert_counts(&mut bench, &["delivered=20", "received=20", "recovered=0", "parity=2"]);
    }
}

#[test]
fn what_is_lost_is_brought_back_in_the_buffers_of_the_parity_packets() {
    let frames = datagrams(20);
    let sent = tunnel(&mut encoder(V4, &["-k", "10", "-m", "4"]), &frames);
    let mut bench = decoder(V4, &[]);
    // Lost: 4 of the first block, and of the second one of data, one of parity, two of data.
    let lost = [1, 2, 5, 9, 14, 20, 23, 24];
    let came = (0..sent.len()).filter(|at| !lost.contains(at)).map(|at| sent[at].clone());
    let mut got = let_out(bench.feed(&came.collect::<Vec<_>>()));
    let mut expected = inside(&frames);
    got.sort();
    expected.sort();
    assert_eq!(got, expected);
    let words = ["delivered=13", "recovered=7", "no-buffer=0", "blocks-solved=2"];
    assert_counts(&mut bench, &words);
}

#[test]
fn more_losses_than_parity_stay_lost_and_are_counted_when_they_are_given_up() {
    let frames = datagrams(10);
    let sent = tunnel(&mut encoder(V4, &["-k", "10", "-m", "2"]), &frames);
    let mut bench = decoder(V4, &[]);
    let came: Vec<_> = (0..12).filter(|at| ![3, 4, 5].contains(at)).map(|at| &sent[at]).collect();
    bench.feed(&came);
    bench.advance(Duration::from_secs(2));
    assert_counts(&mut bench, &["delivered=7", "recovered=0", "unrecovered=3", "blocks-failed=1"]);
}

#[test]
fn without_any_buffer_what_is_brought_back_is_lost_and_counted() {
    let options = BenchOptions { hold_limit_pkts: Some(0), ..BenchOptions::default() };
    let nf = FecDecode::new(&self::options(V4, &[])).unwrap();
    let mut bench = TestBench::with_options(nf, options).unwrap();
    let sent = tunnel(&mut encoder(V4, &["-k", "4", "-m", "2"]), &datagrams(4));
    bench.feed(&[&sent[0], &sent[2], &sent[3], &sent[4]]);
    assert_counts(&mut bench, &["delivered=3", "recovered=0", "no-buffer=1"]);
    assert_eq!(bench.hold_overflow_pkts(), 0, "it asks before it holds");
}

#[test]
fn duplicates_and_packets_that_come_after_they_were_brought_back_are_dropped() {
    let frames = datagrams(4);
    let sent = tunnel(&mut encoder(V4, &["-k", "4", "-m", "2"]), &frames);
    let mut bench = decoder(V4, &[]);
    assert_eq!(let_out(bench.feed(&sent[..2])).len(), 2);
    assert!(let_out(bench.feed(&sent[..2])).is_empty());
    assert_eq!(let_out(bench.feed(&sent[3..])).len(), 2);
    assert!(let_out(bench.feed(&sent[2..3])).is_empty(), "it was brought back before");
    assert_counts(&mut bench, &["delivered=3", "recovered=1", "duplicate=2", "late=1"]);
}

#[test]
fn packets_of_strangers_and_damaged_ones_are_dropped() {
    let frames = datagrams(4);
    let mut bench = decoder(V4, &[]);
    let stranger = ["198.51.100.1:4950", "203.0.113.9:4950"];
    let sent = tunnel(&mut encoder(stranger, &[]), &frames);
    assert!(bench.feed(&sent).iter().all(|out| out.action == Action::Drop));
    let mut sent = tunnel(&mut encoder(V4, &["--udp-checksum", "on"]), &frames);
    *sent[0].last_mut().unwrap() ^= 1;
    sent[1][ETHERNET_BYTES + 8] ^= 1;
    assert_eq!(let_out(bench.feed(&sent)), inside(&frames[2..]));
    assert_counts(&mut bench, &["stranger=4", "damaged=2", "delivered=2"]);
}

#[test]
fn a_packet_damaged_on_the_way_is_brought_back_where_outer_packets_have_checksums() {
    let frames = datagrams(4);
    let more = ["--udp-checksum", "on", "-k", "4", "-m", "1"];
    let mut sent = tunnel(&mut encoder(V4, &more), &frames);
    sent[2][70] ^= 0x40;
    let mut got = let_out(decoder(V4, &[]).feed(&sent));
    got.swap(2, 3);
    assert_eq!(got, inside(&frames));
}

#[test]
fn over_ipv6_a_datagram_without_a_checksum_is_taken_only_when_that_is_agreed() {
    let frames = datagrams(2);
    let sent = tunnel(&mut encoder(V6, &["--udp-checksum", "off"]), &frames);
    let mut bench = decoder(V6, &[]);
    assert!(let_out(bench.feed(&sent)).is_empty());
    assert_counts(&mut bench, &["damaged=2"]);
    assert_eq!(let_out(decoder(V6, &["--udp-checksum", "off"]).feed(&sent)), inside(&frames));
}

#[test]
fn the_two_congestion_fields_become_one_as_rfc_6040_says() {
    let all = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce];
    let (mut dropped, mut marked, mut alarms) = (0, 0, 0);
    for ends in [V4, V6] {
        let (mut encoder, mut bench) = (encoder(ends, &["-k", "64"]), decoder(ends, &[]));
        for (number, (before, outer)) in
            all.into_iter().flat_map(|before| all.map(|outer| (before, outer))).enumerate()
        {
            let frame = datagram(number, 0xb8 | before as u8);
            let sent = tunnel(&mut encoder, std::slice::from_ref(&frame));
            let tos = outer::datagram(&sent[0], &Headers::parse(&sent[0])).unwrap().tos;
            assert_eq!(Ecn::of(tos), before, "the ingress copies");
            let out = bench.feed_one(&with_outer_ecn(&sent[0], outer)).unwrap();
            let (combined, alarm) = ecn::combine(before, outer);
            alarms += u64::from(alarm);
            match combined {
                Combined::Drop => {
                    assert_eq!(out.action, Action::Drop);
                    dropped += 1;
                }
                Combined::Out(after) => {
                    let tos = ecn::tos_of(inner(&out));
                    assert_eq!((tos >> 2, Ecn::of(tos)), (0xb8 >> 2, after));
                    let headers = Headers::parse(&out.bytes);
                    assert_ne!(checksum::ipv4_ok(&out.bytes, &headers), Some(false));
                    marked += u64::from(after == Ecn::Ce && before != Ecn::Ce);
                }
            }
        }
        assert_eq!((dropped, marked, alarms), (1, 2, 5));
        let words = ["ecn-dropped=1", "ecn-marked=2", "ecn-alarm=5", "delivered=15"];
        assert_counts(&mut bench, &words);
        (dropped, marked, alarms) = (0, 0, 0);
    }
}

#[test]
fn a_packet_that_was_marked_or_dropped_for_a_mark_still_helps_to_bring_others_back() {
    let frames: Vec<_> = (0..4).map(|number| datagram(number, number as u8 % 3)).collect();
    let sent = tunnel(&mut encoder(V4, &["-k", "4", "-m", "1"]), &frames);
    // The first takes no marks and is dropped; the second is changed; the third is lost.
    let came: Vec<_> = [0, 1, 3, 4].map(|at| with_outer_ecn(&sent[at], Ecn::Ce)).to_vec();
    let got = let_out(decoder(V4, &[]).feed(&came));
    assert_eq!(got.last(), inside(&frames).get(2));
    assert_eq!(got.len(), 2);
}

#[test]
fn in_order_release_waits_for_what_is_brought_back_and_owes_no_mark() {
    let frames: Vec<_> = (0..6).map(|number| datagram(number, 0b10)).collect();
    let sent = tunnel(&mut encoder(V4, &["-k", "6", "-m", "1"]), &frames);
    let mut bench = decoder(V4, &["--in-order", "64,100"]);
    assert_eq!(let_out(bench.feed(&sent[..1])), inside(&frames[..1]));
    // The second is lost; the third comes with a mark, and waits.
    assert!(bench.feed(&[with_outer_ecn(&sent[2], Ecn::Ce)]).is_empty());
    let mut got = let_out(bench.feed(&sent[3..]));
    let marks = got.iter().filter(|packet| Ecn::of(ecn::tos_of(packet)) == Ecn::Ce).count();
    assert_eq!(marks, 1, "one mark came, and one goes on");
    got.iter_mut().for_each(|packet| ecn::set(packet, Ecn::Ect0));
    assert_eq!(got, inside(&frames[1..]));
    assert_counts(&mut bench, &["no-buffer=0", "ecn-marked=1"]);
}

#[test]
fn in_order_release_puts_packets_that_overtook_each_other_back_in_order() {
    let frames = datagrams(8);
    let sent = tunnel(&mut encoder(V4, &["-k", "10"]), &frames);
    for order in [[0, 2, 3, 1, 4, 5, 6, 7], [0, 7, 6, 5, 4, 3, 2, 1], [0, 2, 1, 4, 3, 7, 5, 6]] {
        let came = order.map(|at| &sent[at]);
        let mut bench = decoder(V4, &["--in-order", "64,100"]);
        assert_eq!(let_out(bench.feed(&came)), inside(&frames));
        assert_counts(&mut bench, &["no-buffer=0"]);
    }
}

#[test]
fn in_order_release_goes_on_without_what_does_not_come_in_time() {
    let frames = datagrams(4);
    let sent = tunnel(&mut encoder(V4, &["-k", "10"]), &frames);
    let mut bench = decoder(V4, &["--in-order", "64,20"]);
    assert_eq!(let_out(bench.feed(&sent[..1])).len(), 1);
    assert!(bench.feed(&sent[2..]).is_empty());
    assert!(bench.advance(Duration::from_millis(15)).is_empty());
    assert_eq!(let_out(bench.advance(Duration::from_millis(20))), inside(&frames[2..]));
    assert_counts(&mut bench, &["skipped=1"]);
}

#[test]
fn tcp_peers_are_told_to_send_what_fits_through_the_way_back() {
    let mut tcp = vec![0, 9, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, tcp_flags::SYN];
    tcp.extend([0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4]);
    let (src, dst) = addresses(false);
    let mut frame = FrameBuilder::new().ip(src, dst).proto(6).payload(&tcp).build();
    let headers = Headers::parse(&frame);
    checksum::fill_transport(&mut frame, &headers);
    for (more, expected) in [(&[][..], 1416), (&["--mss-clamp", "off"], 1460)] {
        let sent = tunnel(&mut encoder(V4, &["--mss-clamp", "off"]), &[frame.clone()]);
        let out = decoder(V4, more).feed_one(&sent[0]).unwrap();
        assert_eq!(u16::from_be_bytes([inner(&out)[42], inner(&out)[43]]), expected);
        assert_eq!(checksum::transport_ok(&out.bytes, &Headers::parse(&out.bytes)), Some(true));
    }
}

#[test]
fn reports_go_back_where_the_packets_came_from_and_the_encoder_takes_them() {
    for ends in [V4, V6] {
        let mut encoder = encoder(ends, &["-k", "10", "-m", "2"]);
        let sent = tunnel(&mut encoder, &datagrams(20));
        let mut bench = decoder(ends, &["--report-ms", "100"]);
        bench.lend(8);
        let came: Vec<_> =
            (0..24).filter(|at| ![1, 2, 3].contains(at)).map(|at| &sent[at]).collect();
        bench.feed(&came);
        let out = bench.advance(Duration::from_secs(1));
        let reports: Vec<_> = out.iter().filter(|out| out.action == Action::Out(PORT)).collect();
        assert!(reports.len() > 1, "until there is nothing new: {}", reports.len());
        for out in &reports {
            let headers = Headers::parse(&out.bytes);
            let macs = ([2, 0, 0, 0, 0, 0xa], [2, 0, 0, 0, 0, 0xb]);
            assert_eq!((headers.dst_mac, headers.src_mac), macs);
            let outer = outer::datagram(&out.bytes, &headers).unwrap();
            assert_eq!(
                (outer.from, outer.to),
                (ends[0].parse().unwrap(), ends[1].parse().unwrap())
            );
            let (_, report) = Report::parse(&out.bytes[outer.payload], None).unwrap();
            assert!(report.lost <= 3);
            assert_eq!(encoder.feed_one(&out.bytes).unwrap().action, Action::Drop);
        }
        let now = String::from_utf8(encoder.message(None, b"get now").unwrap()).unwrap();
        assert!(now.contains("far-lost=3") && now.contains("far-unrecovered=3"), "{now}");
    }
}

#[test]
fn reports_of_the_far_end_jump_to_the_encoder_of_this_one() {
    // The far end's decoder, and what it reports about this end's encoder.
    let away: Addresses = [V4[1], V4[0]];
    let sent = tunnel(&mut encoder(away, &[]), &datagrams(2));
    let mut far = decoder(away, &[]);
    far.lend(4);
    far.feed(&sent);
    let out = far.advance(Duration::from_millis(500));
    let report = &out.iter().find(|out| out.action == Action::Out(PORT)).unwrap().bytes;
    // In the bench a service has its name's length as its id.
    let mut bench = decoder(V4, &["--reports-to", "fec-encode"]);
    assert_eq!(bench.nf().jumps_to(), [ServiceRef::Name("fec-encode".into())]);
    let out = bench.feed_one(report).unwrap();
    assert_eq!((out.action, &out.bytes), (Action::ToService(10), report));
    let mut bench = decoder(V4, &[]);
    assert_eq!(bench.feed_one(report).unwrap().action, Action::Drop);
    assert_counts(&mut bench, &["reports-unrouted=1"]);
}

#[test]
fn what_is_not_for_this_end_is_passed_on_or_dropped_and_its_address_is_answered_for() {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 0xa, 192, 0, 2, 1];
    arp.extend([0, 0, 0, 0, 0, 0, 198, 51, 100, 1]);
    let arp = FrameBuilder::new().ethertype(0x0806).payload(&arp).pad_to(60).build();
    let other = datagram(1, 0);
    let mut bench = decoder(V4, &[]);
    let out = bench.feed_one(&arp).unwrap();
    assert_eq!((out.action, &out.bytes[6..12]), (Action::Out(PORT), &[2, 0, 0, 0, 0, 0xb][..]));
    let out = bench.feed_one(&other).unwrap();
    assert_eq!((out.action, out.bytes), (Action::Next, other.clone()));
    assert_counts(&mut bench, &["neighbour=1", "other=1"]);
    let mut bench = decoder(V4, &["--drop-others"]);
    assert_eq!(bench.feed_one(&other).unwrap().action, Action::Drop);
    assert!(matches!(bench.feed_one(&arp).unwrap().action, Action::Out(_)));
}

#[test]
fn each_peer_has_a_decoder_and_reports_of_its_own() {
    let second: Addresses = ["198.51.100.1:4950", "192.0.2.7:4950"];
    let mut bench = decoder(V4, &["--peer", second[1], "--reports-to", "a", "--reports-to", "bb"]);
    bench.lend(8);
    for ends in [V4, second] {
        let sent = tunnel(&mut encoder(ends, &["-k", "4", "-m", "1"]), &datagrams(4));
        assert_eq!(let_out(bench.feed(&sent[1..])).len(), 4);
    }
    let text = get(&mut bench, "peers");
    let parts: Vec<_> = text.split("; ").collect();
    assert!(parts[0].starts_with("peer=192.0.2.1:4950 received=3"), "{text}");
    assert!(parts[1].starts_with("peer=192.0.2.7:4950 received=3"), "{text}");
    assert_eq!(bench.nf_mut().peers.get_mut(1).reports_to, Some(2));
    let out = bench.advance(Duration::from_millis(300));
    let to: std::collections::HashSet<_> = out
        .iter()
        .filter(|out| out.action == Action::Out(PORT))
        .map(|out| outer::datagram(&out.bytes, &Headers::parse(&out.bytes)).unwrap().to)
        .collect();
    assert_eq!(to.len(), 2);
}

#[test]
fn who_leaves_gives_all_buffers_back() {
    let sent = tunnel(&mut encoder(V4, &["-k", "4", "-m", "2"]), &datagrams(4));
    let mut bench = decoder(V4, &[]);
    bench.lend(5);
    bench.feed(&sent);
    assert_eq!(bench.held_pkts(), 7);
    assert_eq!(bench.leave().len(), 7);
    assert_eq!(bench.held_pkts(), 0);
}

#[test]
fn peers_and_services_that_do_not_fit_are_refused_in_one_line() {
    let refusal = |more: &[&str]| FecDecode::new(&options(V4, more)).err().unwrap().to_string();
    for (more, expected) in [
        (&["--peer", "192.0.2.1:4950"][..], "--peer 192.0.2.1:4950 is given twice"),
        (&["--peer", "[2001:db8::1]:4950"], "one IP version"),
        (&["--reports-to", "a", "--reports-to", "b"], "--reports-to 2 times"),
        (&["--memory-mib", "1"], "--memory-mib 1: "),
        (&["--memory-mib", "2", "--peer", "192.0.2.9:1"], "for each of 2 peers"),
        (&["--memory-mib", "4", "--window-kib", "5000"], "--memory-mib 4: "),
        (&["--mtu", "1280"], "expected at least 1324"),
    ] {
        let error = refusal(more);
        assert!(error.contains(expected) && error.lines().count() == 1, "{more:?}: {error}");
    }
}
