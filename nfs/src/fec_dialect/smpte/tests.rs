//! The NF on frames: what it makes of them, and in which buffers.
#![forbid(unsafe_code)]

use clap::Parser;
use nflib::headers::{Headers, checksum};
use nflib::testing::{FrameBuilder, Output, TestBench};

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

fn nf(words: &str) -> Result<Smpte, NfError> {
    let words = std::iter::once("fec-smpte").chain(words.split_whitespace());
    Smpte::new(&Cli::try_parse_from(words).unwrap().options)
}

fn bench(words: &str) -> TestBench<Smpte> {
    TestBench::new(nf(words).unwrap())
}

/// A frame with an RTP packet.
fn media(number: u8, v6: bool) -> Vec<u8> {
    let mut payload = vec![0x80, 33, 9, number, 0, 0, 1, number, 5, 5, 5, 5];
    payload.extend((0..188 + usize::from(number)).map(|at| at as u8 ^ number));
    let (src, dst) = if v6 { ("fd00::1", "fd00::2") } else { ("10.0.0.1", "10.0.0.2") };
    let frame = FrameBuilder::new().ip(src.parse().unwrap(), dst.parse().unwrap());
    frame.udp(40_000, 5000).payload(&payload).build()
}

fn sent(outputs: Vec<Output>) -> Vec<Vec<u8>> {
    outputs.into_iter().filter(|out| out.action == Action::Next).map(|out| out.bytes).collect()
}

fn port(frame: &[u8]) -> u16 {
    Headers::parse(frame).ports().unwrap().1
}

fn assert_sound(frame: &[u8]) {
    let headers = Headers::parse(frame);
    assert_eq!(headers.problem, None);
    assert_eq!(usize::from(headers.payload_end), frame.len());
    assert_ne!(checksum::ipv4_ok(frame, &headers), Some(false));
    assert_eq!(checksum::transport_ok(frame, &headers), Some(true));
}

fn payloads(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut all: Vec<_> =
        frames.iter().map(|frame| Headers::parse(frame).payload(frame).to_vec()).collect();
    all.sort();
    all
}

#[test]
fn what_one_protects_the_other_repairs_in_the_buffers_of_the_repair_packets() {
    for v6 in [false, true] {
        let mut protect = bench("--mode protect --columns 4 --rows 5");
        let mut repair = bench("--mode repair");
        assert!(protect.lend(9).is_empty());
        let frames: Vec<_> = (0..20).map(|number| media(number, v6)).collect();
        let out = sent(protect.feed(&frames));
        out.iter().for_each(|frame| assert_sound(frame));
        let to = |wanted: u16| out.iter().filter(|frame| port(frame) == wanted).count();
        assert_eq!((to(5000), to(5002), to(5004)), (20, 4, 5));
        let lost = [&frames[2], &frames[3], &frames[7], &frames[19]];
        let left: Vec<_> = out.iter().filter(|frame| !lost.contains(frame)).collect();
        let back = sent(repair.feed(&left));
        assert_eq!(payloads(&back), payloads(&frames));
        for frame in &back {
            assert_sound(frame);
            assert_eq!(Headers::parse(frame).ports(), Some((40_000, 5000)));
        }
        let counts = String::from_utf8(repair.message(None, b"get counts").unwrap()).unwrap();
        let expected = "media=16 column_repair=4 row_repair=5 recovered=4 unrecovered=0";
        assert!(counts.starts_with(expected), "{counts}");
        assert!(counts.contains("no_buffer_pkts=0"), "{counts}");
    }
}

#[test]
fn repair_packets_go_on_when_they_are_to_be_kept_and_others_are_not_touched() {
    let mut protect = bench("--mode protect --columns 4 --rows 4 --columns-only");
    protect.lend(4);
    let frames: Vec<_> = (0..16).map(|number| media(number, false)).collect();
    let out = sent(protect.feed(&frames));
    assert_eq!(out.len(), 20);
    let mut repair = bench("--mode repair --keep-repair");
    repair.lend(4);
    assert_eq!(sent(repair.feed(&out)), out);
    // Of somebody else's protection nothing is protected once more.
    let repairs: Vec<_> = out.iter().filter(|frame| port(frame) != 5000).collect();
    assert_eq!(sent(bench("--mode protect").feed(&repairs)).len(), 4);
}

#[test]
fn what_is_no_rtp_and_repair_packets_of_no_stream_pass_unchanged() {
    let udp = FrameBuilder::new().ip("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    let frames = [
        udp.clone().udp(1, 5000).payload(b"no RTP").build(),
        udp.clone().udp(1, 5002).payload(&[0x80; 40]).build(),
        udp.clone().udp(1, 53).payload(&[0x80; 40]).build(),
        udp.tcp(1, 5000, 0).payload(&[0x80; 40]).build(),
        vec![0; 60],
        vec![],
    ];
    for mode in ["--mode protect", "--mode repair"] {
        assert_eq!(sent(bench(mode).feed(&frames)), frames);
    }
}

#[test]
fn without_empty_buffers_media_still_go_on_and_what_is_missing_is_counted() {
    let mut protect = bench("--mode protect --columns 4 --rows 4");
    let frames: Vec<_> = (0..16).map(|number| media(number, false)).collect();
    assert_eq!(sent(protect.feed(&frames)), frames);
    let counts = String::from_utf8(protect.message(None, b"get counts").unwrap()).unwrap();
    assert!(counts.contains("no_buffer_pkts=8"), "{counts}");
}

#[test]
fn a_matrix_out_of_range_is_refused_in_one_line() {
    let error = nf("--mode protect --columns 20 --rows 20").err().unwrap().to_string();
    assert_eq!(error, "fec-smpte: L · D = 400 packets; expected 100 at most");
}
