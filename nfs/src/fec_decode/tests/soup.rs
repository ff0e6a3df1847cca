//! Bytes that nobody has sense in.

use proptest::prelude::*;

use super::*;

proptest! {
    // Each has the memory of some sessions.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_from_a_peer_are_survived_and_every_buffer_is_accounted_for(
        payloads in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..200), 1..40
        ),
        starts in proptest::collection::vec(prop::sample::select(vec![0x11, 0x12, 0x13]), 40),
        in_order: bool,
    ) {
        let more: &[&str] = if in_order { &["--in-order", "16,20"] } else { &[] };
        let mut bench = decoder(V4, more);
        let frames: Vec<_> = payloads
            .iter()
            .zip(starts)
            .map(|(payload, start)| {
                let mut payload = payload.clone();
                // So that more than the first byte is looked at.
                for (place, byte) in payload.iter_mut().zip([start, 0, 0, 0]) {
                    *place = byte;
                }
                FrameBuilder::new()
                    .ip([192, 0, 2, 1].into(), [198, 51, 100, 1].into())
                    .udp(4950, 4950)
                    .payload(&payload)
                    .build()
            })
            .collect();
        for out in bench.feed(&frames) {
            prop_assert!(matches!(out.action, Action::Next | Action::Drop));
        }
        bench.advance(Duration::from_secs(1));
        bench.leave();
        prop_assert_eq!(bench.held_pkts(), 0);
    }
}
