//! What must hold for any payloads at all: the body of the fuzz target and of a property test.
#![forbid(unsafe_code)]

use super::{Decoder, DecoderConfig, InOrder, Verdict};
use crate::inner;
use crate::kernel::Kernel;
use crate::mac::Key;
use crate::report::Report;

/// Cuts any bytes into payloads and gives them to decoders of three kinds: plain, in order, with a
/// key. What comes out of them is an IP packet within bounds, and the books are right.
///
/// # Panics
/// When a promise is broken.
pub fn fuzz_one(data: &[u8]) {
    let plain = DecoderConfig {
        sessions: 0..=3,
        inner_max_bytes: 200,
        window_pkts: 64,
        window_bytes: 32 * 200,
        blocks_max: 2,
        memory_bytes: 64 << 10,
        ..Default::default()
    };
    let in_order = Some(InOrder { bound_pkts: 8, bound_ns: 20_000_000 });
    drive(data, DecoderConfig { in_order, ..plain.clone() });
    drive(data, DecoderConfig { key: Some(Key::new([1; 16])), ..plain.clone() });
    drive(data, plain);
}

/// The first byte of each piece is its length, the second the time since the last, ms.
fn drive(data: &[u8], config: DecoderConfig) {
    let Ok(mut decoder) = Decoder::new(config, Kernel::scalar()) else { return };
    let (mut now_ns, mut rest) = (0, data);
    let mut received = 0;
    while let [len, ms, more @ ..] = rest {
        let (payload, later) = more.split_at(more.len().min(usize::from(*len)));
        now_ns += u64::from(*ms) * 1_000_000;
        rest = later;
        match decoder.receive(now_ns, payload) {
            Verdict::Deliver { inner_offset } => {
                let inner = &payload[inner_offset..];
                assert!(inner.len() >= 20 && matches!(inner[0] >> 4, 4 | 6));
                received += 1;
            }
            Verdict::Held => received += 1,
            _ => {}
        }
        fetch(&mut decoder, now_ns);
    }
    // Whatever came, time alone brings everything to an end.
    for _ in 0..1000 {
        let Some(deadline_ns) = decoder.deadline_ns() else { break };
        now_ns = now_ns.max(deadline_ns);
        fetch(&mut decoder, now_ns);
    }
    assert_eq!(decoder.deadline_ns(), None);
    let stats = decoder.stats();
    assert_eq!(stats.received, received);
    let gone = stats.recovered + stats.unrecovered;
    assert!((stats.lost..=stats.lost + stats.late).contains(&gone), "{stats:?}");
    assert!(stats.sessions <= decoder.session_limits().0 as u64);
}

fn fetch(decoder: &mut Decoder, now_ns: u64) {
    let in_order = decoder.config().in_order.is_some();
    while let Some(packet) = decoder.next_recovered(now_ns) {
        assert!((20..=200).contains(&packet.len()));
        assert!(in_order || inner::is_ip(packet));
    }
    let key = decoder.config().key.clone();
    while let Some(report) = decoder.next_report(now_ns) {
        assert!(Report::parse(report, key.as_ref()).is_ok());
    }
}
