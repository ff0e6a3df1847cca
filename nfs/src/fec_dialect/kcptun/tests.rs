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

fn nf(words: &str) -> Result<Kcptun, NfError> {
    let words = std::iter::once("fec-kcptun").chain(words.split_whitespace());
    Kcptun::new(&Cli::try_parse_from(words).unwrap().options)
}

fn bench(words: &str) -> TestBench<Kcptun> {
    TestBench::new(nf(words).unwrap())
}

/// A frame with a plain KCP packet, as `--crypt none` has it.
fn plain(number: u8, bytes: usize, v6: bool) -> Vec<u8> {
    let mut payload = vec![number; 20];
    payload.extend([7, 0, 0, 0, 81, 0, 1, 0]);
    payload.extend((0..bytes).map(|at| at as u8 ^ number));
    Envelope::Checksum.seal(&mut payload).unwrap();
    let (src, dst) = if v6 { ("fd00::1", "fd00::2") } else { ("10.0.0.1", "10.0.0.2") };
    let frame = FrameBuilder::new().ip(src.parse().unwrap(), dst.parse().unwrap());
    frame.udp(40_000, 29_900).payload(&payload).build()
}

fn sent(outputs: Vec<Output>) -> Vec<Vec<u8>> {
    outputs.into_iter().filter(|out| out.action == Action::Next).map(|out| out.bytes).collect()
}

fn assert_sound(frame: &[u8]) {
    let headers = Headers::parse(frame);
    assert_eq!(headers.problem, None);
    assert_eq!(usize::from(headers.payload_end), frame.len());
    assert_ne!(checksum::ipv4_ok(frame, &headers), Some(false));
    assert_eq!(checksum::transport_ok(frame, &headers), Some(true));
}

/// A frame without what differs in one that was brought back: identification and its checksum, and the 16
/// bytes of the envelope that mean nothing, and with them the UDP checksum.
fn essence(frame: &[u8]) -> Vec<u8> {
    let headers = Headers::parse(frame);
    [&frame[..usize::from(headers.l3_offset)], &headers.payload(frame)[16..]].concat()
}

#[test]
fn what_one_adds_the_other_takes_off_and_three_of_ten_lost_come_back_in_their_buffers() {
    for v6 in [false, true] {
        let (mut add, mut strip) = (bench("--mode add"), bench("--mode strip"));
        assert!(add.lend(20).is_empty());
        let frames: Vec<_> =
            (1..21).map(|number| plain(number, 30 + 40 * usize::from(number), v6)).collect();
        let out = sent(add.feed(&frames));
        assert_eq!(out.len(), 26);
        out.iter().for_each(|frame| assert_sound(frame));
        // Of each block three data packets are lost, and the parities come behind the tenth.
        let lost = [0, 5, 9, 14, 15, 21];
        let left = (0..).zip(&out).filter(|(at, _)| !lost.contains(at));
        let left: Vec<_> = left.map(|(_, frame)| frame.clone()).collect();
        let back = sent(strip.feed(&left));
        assert_eq!(back.len(), 20);
        for frame in &frames {
            assert!(back.iter().any(|back| essence(back) == essence(frame)));
        }
        assert_eq!(back.iter().filter(|back| frames.contains(back)).count(), 14, "byte for byte");
        back.iter().for_each(|frame| assert_sound(frame));
        let counts = strip.message(None, b"get counts").unwrap();
        let counts = String::from_utf8(counts).unwrap();
        assert!(
            counts.starts_with("data=14 parity=6 plain=0 recovered=6 unrecovered=0"),
            "{counts}"
        );
        assert!(counts.ends_with("sessions=1 no_session_pkts=0 no_buffer_pkts=0"), "{counts}");
    }
}

#[test]
fn parities_follow_their_block_at_once() {
    let mut add = bench("--mode add --datashard 2 --parityshard 1");
    add.lend(4);
    let ports = |frame: &[u8]| Headers::parse(frame).ports();
    let out = sent(add.feed(&[plain(1, 50, false), plain(2, 60, false), plain(3, 50, false)]));
    assert_eq!(out.len(), 4);
    assert!(out.iter().all(|frame| ports(frame) == Some((40_000, 29_900))));
    // The parity is as long as the longest of its block.
    assert_eq!(out.iter().map(Vec::len).collect::<Vec<_>>(), [128, 138, 138, 128]);
}

#[test]
fn without_empty_buffers_data_still_goes_on_and_what_is_missing_is_counted() {
    let mut add = bench("--mode add --datashard 2 --parityshard 1");
    let out = sent(add.feed(&[plain(1, 50, false), plain(2, 60, false)]));
    assert_eq!(out.len(), 2);
    let counts = String::from_utf8(add.message(None, b"get counts").unwrap()).unwrap();
    assert!(counts.contains("no_buffer_pkts=1"), "{counts}");
}

#[test]
fn other_ports_damaged_datagrams_and_other_payloads_pass_unchanged() {
    let mut add = bench("--mode add");
    let mut damaged = plain(1, 50, false);
    *damaged.last_mut().unwrap() ^= 1;
    let udp = FrameBuilder::new().ip("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    let frames = [
        damaged,
        udp.clone().udp(1, 53).payload(&[0; 60]).build(),
        udp.clone().udp(1, 29_900).payload(&[0; 60]).build(),
        udp.tcp(1, 29_900, 0).payload(&[0; 60]).build(),
        vec![0; 60],
        vec![],
    ];
    assert_eq!(sent(add.feed(&frames)), frames);
    assert_eq!(sent(bench("--mode strip").feed(&frames[..2])), frames[..2]);
}

#[test]
fn sessions_of_several_clients_and_both_directions_do_not_mix() {
    let mut add = bench("--mode add --datashard 2 --parityshard 1");
    add.lend(8);
    let session = |src: u16, dst: u16| {
        let frame = plain(1, 50, false);
        let mut headers = Headers::parse(&frame);
        let mut frame = frame.clone();
        headers.edit(&mut frame).set_src_port(src).unwrap();
        headers.edit(&mut frame).set_dst_port(dst).unwrap();
        frame
    };
    let frames = [session(1, 29_900), session(2, 29_900), session(29_900, 1)];
    assert_eq!(sent(add.feed(&frames)).len(), 3);
    assert_eq!(sent(add.feed(&frames)).len(), 6);
    let counts = String::from_utf8(add.message(None, b"get counts").unwrap()).unwrap();
    assert!(counts.contains("sessions=3"), "{counts}");
}

#[test]
fn whatever_it_held_is_given_back_when_it_leaves() {
    let (mut add, mut strip) = (bench("--mode add"), bench("--mode strip"));
    add.lend(20);
    strip.lend(10);
    let frames: Vec<_> = (0..10).map(|number| plain(number, 100, false)).collect();
    strip.feed(&sent(add.feed(&frames)));
    assert!(add.held_pkts() > 0 && strip.held_pkts() > 0);
    add.leave();
    strip.leave();
    assert_eq!((add.held_pkts(), strip.held_pkts()), (0, 0));
}

#[test]
fn options_out_of_range_are_refused_in_one_line() {
    for (words, part) in [
        ("--mode add --datashard 65", "k = 65 source packets a block; expected 1 to 64"),
        ("--mode add --parityshard 0", "m = 0 repair packets a block; expected 1 to 16"),
        ("--mode strip --blocks 1", "1 blocks kept; expected 2 to 1024"),
    ] {
        let error = nf(words).err().unwrap().to_string();
        assert!(error.starts_with("fec-kcptun: ") && error.contains(part), "{error}");
    }
}
