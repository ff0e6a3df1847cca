//! What steers an encoder while it runs: reports and settings.

use millrace_fec::report::{REPORT_MAX_BYTES, Report};
use millrace_fec::wire::Stream;

use super::*;

/// A report to this encoder, as its far end would send it.
fn report(epoch: u8, number: u32, highest: u32, from: &str) -> Vec<u8> {
    let report = Report { number, highest, received: highest, lost: 1, ..Report::default() };
    let mut bytes = [0; REPORT_MAX_BYTES];
    let len = report.write(Stream { epoch, session: 0 }, None, &mut bytes);
    let src: std::net::SocketAddr = from.parse().unwrap();
    let frame = FrameBuilder::new().ip(src.ip(), [192, 0, 2, 1].into()).udp(src.port(), 4950);
    frame.payload(&bytes[..len]).build()
}

#[test]
fn reports_of_the_far_end_are_taken_once_and_those_of_others_refused() {
    let mut bench = bench(&["-k", "4", "-m", "2"]);
    let peer = "198.51.100.1:4950";
    let early = bench.feed_one(&report(0, 1, 1, peer)).unwrap();
    assert_eq!(early.action, Action::Drop, "there is no session yet");
    let out = bench.feed(&datagrams(4));
    let epoch = epoch(&out[0]);
    for frame in [
        report(epoch, 1, 3, peer),
        report(epoch, 1, 3, peer),
        report(epoch.wrapping_add(1), 2, 3, peer),
        report(epoch, 2, 3, "198.51.100.2:4950"),
        report(epoch, 2, 3, "198.51.100.1:4951"),
        report(epoch, 2, 100, peer),
    ] {
        assert_eq!(bench.feed_one(&frame).unwrap().action, Action::Drop);
    }
    let mut damaged = report(epoch, 3, 3, peer);
    *damaged.last_mut().unwrap() ^= 1;
    bench.feed_one(&damaged);
    let mut expected = vec!["reports=1", "reports-replayed=1", "reports-stray=2"];
    expected.extend(["reports-refused=3", "reports-malformed=1", "reports-bad-mac=0", "data=4"]);
    assert_counts(&mut bench, &expected);
    let now = String::from_utf8(bench.message(None, b"get now").unwrap()).unwrap();
    assert!(now.contains("far-received=3 far-lost=1") && now.contains("loss=0.25"), "{now}");
}

#[test]
fn k_m_stride_and_the_aim_can_be_changed_while_packets_flow() {
    let mut bench = bench(&["-k", "4", "-m", "2"]);
    assert_eq!(order(&bench.feed(&datagrams(2))), [0, 1]);
    assert_eq!(bench.message(None, b"set k 2"), Ok(b"2".to_vec()));
    let out = bench.take_outputs();
    assert_eq!(order(&out), [-1, -1], "the block that was open ends with its parity");
    assert_eq!(bench.message(None, b"set m 1"), Ok(b"1".to_vec()));
    assert_eq!(bench.message(None, b"set stride 2"), Ok(b"2".to_vec()));
    assert_eq!(order(&bench.feed(&datagrams(5))), [2, 3, 4, 5, -1, -1, 6]);
    let adaptive = b"set adaptive target=0.001,cap=0.5,floor=0.0001";
    assert_eq!(bench.message(None, adaptive), Ok(b"target=0.001,cap=0.5,floor=0.0001".to_vec()));
    assert_eq!(bench.message(None, b"set adaptive off"), Ok(b"off".to_vec()));
    assert_eq!(bench.message(None, b"get m"), Ok(b"1".to_vec()));
    for (message, expected) in [
        ("set k 0", "expected 1 to 64"),
        ("set k 65", "expected 1 to 64"),
        ("set m 17", "expected 1 to 16"),
        ("set m many", "expected 1 to 16"),
        ("set stride 33", "expected 1 to 32"),
        ("set adaptive target=2", "a target above 0"),
        ("set adaptive target=1e-3,cap=0.1", "cap"),
        ("set counts 0", "only be read"),
        ("set now 0", "only be read"),
        ("set mss-clamp maybe", "on or off"),
    ] {
        let error = bench.message(None, message.as_bytes()).unwrap_err();
        assert!(error.contains(expected) && error.lines().count() == 1, "{message}: {error}");
    }
    let before = bench.message(None, b"get k").unwrap();
    assert_eq!(before, b"2");
}
