//! How sessions and epochs begin, jump and end.

use super::*;

#[test]
fn a_restarted_encoder_is_followed_once_its_second_packet_confirms_it() {
    let before = payloads(&mut encoder(4, 2, 1, 1), 0..8);
    let after = payloads(&mut encoder(4, 2, 1, 2), 0..8);
    let mut decoder = decoder(small());
    give(&mut decoder, 0, &before[..4]);
    // A stray packet of another epoch changes nothing.
    let mut stray = before[0].clone();
    stray[1] = 77;
    assert_eq!(decoder.receive(0, &stray), Verdict::Reject(Reject::EpochUnconfirmed));
    assert_eq!(give(&mut decoder, 0, &before[6..7]), [4]);
    // The new epoch's first packet is not let out before the second, and comes back by its parity.
    assert_eq!(give(&mut decoder, 0, &after), [1, 2, 3, 0, 4, 5, 6, 7]);
    assert_eq!(decoder.receive(0, &before[7]), Verdict::Reject(Reject::Epoch));
    assert_eq!(decoder.receive(0, &before[11]), Verdict::Reject(Reject::Epoch));
    assert_eq!(decoder.stats().epochs, 1);
    assert_eq!(decoder.stats().rejected.of(Reject::Epoch), 2);
}

#[test]
fn an_encoder_that_was_restarted_in_its_old_epoch_is_followed_after_a_while() {
    let stream = Stream { epoch: 1, session: 0 };
    let source = |sequence| [&source_shim(stream, sequence)[..], &packet(7)].concat();
    let mut decoder = decoder(small());
    decoder.receive(0, &source(100_000));
    // A window's late packets, in order but with gaps, are no restart.
    for sequence in (100_000 - 2000..100_000 - 1000).step_by(2) {
        decoder.receive(0, &source(sequence));
    }
    assert_eq!(decoder.stats().epochs, 0);
    for sequence in 0..200 {
        // Every fifth is lost at first, up to 95, and then none.
        if sequence >= 100 || sequence % 5 != 0 {
            let follows = sequence >= 95 + 64;
            let verdict = decoder.receive(0, &source(sequence));
            assert_eq!(verdict != Verdict::Late, follows, "{sequence}: {verdict:?}");
        }
    }
    assert_eq!(decoder.stats().epochs, 1);
}

#[test]
fn a_far_jump_needs_a_second_packet_and_its_gap_is_lost() {
    let stream = Stream { epoch: 1, session: 0 };
    let source = |sequence| [&source_shim(stream, sequence)[..], &packet(7)].concat();
    let mut decoder = decoder(small());
    assert!(matches!(decoder.receive(0, &source(0)), Verdict::Deliver { .. }));
    assert_eq!(decoder.receive(0, &source(5000)), Verdict::Reject(Reject::Jump));
    assert!(matches!(decoder.receive(0, &source(1)), Verdict::Deliver { .. }));
    assert_eq!(decoder.receive(0, &source(9000)), Verdict::Reject(Reject::Jump));
    assert!(matches!(decoder.receive(0, &source(9001)), Verdict::Deliver { .. }));
    assert_eq!(decoder.receive(0, &source(2)), Verdict::Late);
    settle(&mut decoder);
    let stats = decoder.stats();
    assert_eq!((stats.received, stats.unrecovered, stats.jumps), (3, 8999, 1));
}

#[test]
fn a_hundred_thousand_sessions_stay_within_the_memory_bound() {
    let config = DecoderConfig { sessions: 0..=u16::MAX, ..small() };
    let mut decoder = decoder(config);
    let (most, bytes) = decoder.session_limits();
    assert!(most * bytes <= 1 << 20 && most >= 4);
    let inner = packet(1);
    for flood in 0..100_000u32 {
        let stream = Stream { epoch: (flood >> 16) as u8, session: flood as u16 };
        decoder.receive(u64::from(flood), &[&source_shim(stream, flood)[..], &inner].concat());
    }
    let stats = decoder.stats();
    assert_eq!(stats.sessions, most as u64);
    assert_eq!(stats.sessions_evicted + stats.sessions, 100_000);
    assert_eq!((decoder.sessions.len(), decoder.sessions.capacity()), (most, most));
    assert_eq!(stats.received, 100_000);
}

#[test]
fn the_session_that_was_silent_for_longest_is_given_up() {
    let mut decoder = decoder(small());
    let (most, _) = decoder.session_limits();
    let source = |session| {
        let stream = Stream { epoch: 1, session };
        [&source_shim(stream, 0)[..], &packet(1)].concat()
    };
    for session in 0..most as u16 {
        decoder.receive(session.into(), &source(session));
    }
    // The first speaks again; the second is the one to go.
    assert_eq!(decoder.receive(100, &source(0)), Verdict::Duplicate);
    decoder.receive(101, &source(50));
    assert_eq!(decoder.receive(102, &source(0)), Verdict::Duplicate);
    assert!(matches!(decoder.receive(103, &source(1)), Verdict::Deliver { .. }));
    assert_eq!(decoder.stats().sessions_evicted, 2);
}

#[test]
fn what_nobody_fetched_of_a_session_that_was_given_up_is_counted_and_not_mixed_up() {
    let all = payloads(&mut encoder(4, 1, 1, 1), 0..4);
    let mut decoder = decoder(small());
    for payload in without(&all, &[2]) {
        decoder.receive(0, &payload);
    }
    for session in 1..=decoder.session_limits().0 as u16 {
        let stream = Stream { epoch: 1, session };
        decoder.receive(session.into(), &[&source_shim(stream, 0)[..], &packet(1)].concat());
    }
    assert_eq!((decoder.stats().recovered, decoder.stats().sessions_evicted), (1, 1));
    assert_eq!(decoder.next_recovered(100), None);
    assert_eq!(decoder.stats().undelivered, 1);
}
