//! The ring against an oracle model, against a lying peer, and under loom.

use super::*;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
struct Pair(u64, u64);

// SAFETY: two words without padding, any bits.
unsafe impl SlotValue for Pair {}

/// A value whose two words must match: a torn or stale slot shows.
fn value(n: u64) -> Pair {
    Pair(n, !n)
}

#[cfg(not(loom))]
mod model {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        Read(usize),
        Release,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0usize..12).prop_map(Step::Push),
            (0usize..12).prop_map(Step::Read),
            Just(Step::Release),
        ];
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        /// The oracle: a queue of what was pushed and not read, and a count of what was read and
        /// not released.
        #[test]
        fn a_ring_behaves_as_a_bounded_queue(
            steps in steps(),
            capacity_log2 in 0u32..5,
            start in prop_oneof![Just(0), Just(u32::MAX - 3), any::<u32>()],
        ) {
            let capacity = 1 << capacity_log2;
            let ring = HeapRing::new(capacity, start);
            let mut producer = Producer::<Pair, _>::starting_at(ring.clone(), start);
            let mut consumer = Consumer::<Pair, _>::starting_at(ring, start);
            let (mut unread, mut unreleased, mut next) = (VecDeque::new(), 0usize, 0u64);
            for step in steps {
                match step {
                    Step::Push(want) => {
                        let values: Vec<_> = (next..).take(want).map(value).collect();
                        let room = capacity as usize - unread.len() - unreleased;
                        let pushed = producer.push_burst(&values).unwrap();
                        prop_assert_eq!(pushed, want.min(room));
                        unread.extend(&values[..pushed]);
                        next += pushed as u64;
                    }
                    Step::Read(want) => {
                        let mut out = vec![Pair::default(); want];
                        let read = consumer.read_burst(&mut out).unwrap();
                        prop_assert_eq!(read, want.min(unread.len()));
                        for got in &out[..read] {
                            prop_assert_eq!(Some(*got), unread.pop_front());
                        }
                        unreleased += read;
                    }
                    Step::Release => {
                        consumer.release();
                        unreleased = 0;
                    }
                }
                prop_assert_eq!(consumer.is_empty(), unread.is_empty());
                prop_assert_eq!(
                    producer.in_flight().unwrap() as usize,
                    unread.len() + unreleased
                );
            }
        }

        /// Whatever indices the peer writes, we get an error or a plausible count, never more
        /// than the ring holds, and no panic.
        #[test]
        fn any_index_a_peer_can_write_is_bounded(words in proptest::collection::vec(any::<u32>(), 1..50)) {
            let ring = HeapRing::new(8, 0);
            let mut producer = Producer::<Pair, _>::new(ring.clone());
            let mut consumer = Consumer::<Pair, _>::new(ring.clone());
            let mut out = [Pair::default(); 32];
            for word in words {
                ring.head().store(word, Ordering::Relaxed);
                if let Ok(n) = producer.push_burst(&[value(1); 20]) {
                    prop_assert!(n <= 8);
                }
                ring.tail().store(word.rotate_left(7), Ordering::Relaxed);
                if let Ok(n) = consumer.pop_burst(&mut out) {
                    prop_assert!(n <= 8);
                }
            }
        }
    }

    #[test]
    fn a_producer_that_moves_its_index_back_or_too_far_is_noticed() {
        for bad in [9, u32::MAX, 1 << 31] {
            let ring = HeapRing::new(8, 0);
            let mut consumer = Consumer::<Pair, _>::new(ring.clone());
            ring.tail().store(bad, Ordering::Relaxed);
            let error = consumer.read_burst(&mut [Pair::default(); 4]).unwrap_err();
            assert_eq!(error, RingError { found: bad, oldest: 0, newest: 8 });
        }
    }

    #[test]
    fn a_consumer_that_releases_what_was_never_pushed_is_noticed() {
        let ring = HeapRing::new(4, 0);
        let mut producer = Producer::<Pair, _>::new(ring.clone());
        assert_eq!(producer.push_burst(&[value(1); 4]), Ok(4));
        ring.head().store(5, Ordering::Relaxed);
        assert!(producer.push_burst(&[value(2)]).is_err());
    }

    #[test]
    fn a_full_ring_takes_what_fits_and_no_more() {
        let ring = HeapRing::new(4, 0);
        let mut producer = Producer::<Pair, _>::new(ring.clone());
        let burst: Vec<_> = (0..6).map(value).collect();
        assert_eq!(producer.push_burst(&burst), Ok(4));
        assert_eq!(producer.push_burst(&burst), Ok(0));
        let mut consumer = Consumer::<Pair, _>::new(ring);
        assert_eq!(consumer.pop_burst(&mut [Pair::default(); 1]), Ok(1));
        assert_eq!(producer.push_burst(&burst), Ok(1));
    }

    #[test]
    fn a_slot_that_was_read_but_not_released_is_not_reused() {
        let ring = HeapRing::new(2, 0);
        let mut producer = Producer::<Pair, _>::new(ring.clone());
        let mut consumer = Consumer::<Pair, _>::new(ring);
        assert_eq!(producer.push_burst(&[value(1), value(2)]), Ok(2));
        let mut out = [Pair::default(); 2];
        assert_eq!(consumer.read_burst(&mut out), Ok(2));
        assert_eq!(producer.push_burst(&[value(3)]), Ok(0));
        consumer.release();
        assert_eq!(producer.push_burst(&[value(3)]), Ok(1));
    }

    #[test]
    fn two_threads_see_every_descriptor_once_and_in_order() {
        const COUNT: u64 = 200_000;
        let ring = HeapRing::new(64, u32::MAX - 1000);
        let mut producer = Producer::<Pair, _>::starting_at(ring.clone(), u32::MAX - 1000);
        let mut consumer = Consumer::<Pair, _>::starting_at(ring, u32::MAX - 1000);
        let sender = std::thread::spawn(move || {
            let mut next = 0;
            while next < COUNT {
                let burst: Vec<_> = (next..COUNT).take(7).map(value).collect();
                next += producer.push_burst(&burst).unwrap() as u64;
                if next % 64 == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let (mut expected, mut out) = (0, [Pair::default(); 16]);
        while expected < COUNT {
            let got = consumer.pop_burst(&mut out).unwrap();
            for seen in &out[..got] {
                assert_eq!(*seen, value(expected));
                expected += 1;
            }
            if got == 0 {
                std::thread::yield_now();
            }
        }
        sender.join().unwrap();
    }

    #[test]
    fn a_ring_outside_its_mapping_is_refused() {
        let fd =
            nix::sys::memfd::memfd_create(c"t", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&fd, 8192).unwrap();
        let mapping = Arc::new(Mapping::new(&fd, 8192, false).unwrap());
        assert!(SharedRing::at(&mapping, 0, 256).is_some());
        assert!(SharedRing::at(&mapping, 4096, 256).is_none(), "reaches past the end");
        assert!(SharedRing::at(&mapping, 64, 16).is_none(), "misaligned");
        assert!(SharedRing::at(&mapping, 0, 24).is_none(), "not a power of two");
        assert!(SharedRing::at(&mapping, usize::MAX - 127, 16).is_none(), "wraps");
    }
}

#[cfg(loom)]
mod loom_models {
    use loom::thread;

    use super::*;

    /// Every interleaving of a producer that fills and refills a two-slot ring and a consumer
    /// that reads ahead before it releases: each value arrives whole, once, in order.
    #[test]
    fn a_consumer_sees_each_value_whole_once_and_in_order() {
        loom::model(|| {
            let ring = HeapRing::new(2, u32::MAX);
            let mut producer = Producer::<Pair, _>::starting_at(ring.clone(), u32::MAX);
            let mut consumer = Consumer::<Pair, _>::starting_at(ring, u32::MAX);
            let sender = thread::spawn(move || {
                let mut sent = 0;
                for _ in 0..2 {
                    let burst: Vec<_> = (sent..3).map(value).collect();
                    sent += producer.push_burst(&burst).unwrap() as u64;
                }
                sent
            });
            let mut seen = 0;
            let mut out = [Pair::default(); 2];
            for _ in 0..2 {
                let got = consumer.read_burst(&mut out).unwrap();
                for pair in &out[..got] {
                    assert_eq!(*pair, value(seen));
                    seen += 1;
                }
                consumer.release();
            }
            let sent = sender.join().unwrap();
            loop {
                let got = consumer.pop_burst(&mut out).unwrap();
                for pair in &out[..got] {
                    assert_eq!(*pair, value(seen));
                    seen += 1;
                }
                if got == 0 {
                    break;
                }
            }
            assert_eq!(seen, sent);
        });
    }

    /// A neighbour pushes on to an NF that is dead while the manager drains the ring: each value is
    /// found once, whole and in order, also the one that the dead had read, and the pusher finds room.
    #[test]
    fn an_orphaned_ring_is_drained_while_its_producer_pushes() {
        loom::model(|| {
            let ring = HeapRing::new(2, u32::MAX);
            let mut producer = Producer::<Pair, _>::starting_at(ring.clone(), u32::MAX);
            assert_eq!(producer.push_burst(&[value(0)]), Ok(1));
            let mut dead = Consumer::<Pair, _>::starting_at(ring.clone(), u32::MAX);
            assert_eq!(dead.read_burst(&mut [Pair::default(); 1]), Ok(1));
            drop(dead);
            let neighbour = thread::spawn(move || {
                let mut sent = 1;
                for _ in 0..2 {
                    let burst: Vec<_> = (sent..4).map(value).collect();
                    sent += producer.push_burst(&burst).unwrap() as u64;
                }
                producer.settle();
                sent
            });
            let remains = Remains::of(ring);
            let mut seen = 0;
            let mut drain = || {
                let (read, waiting) = remains.drain::<Pair>().unwrap();
                for pair in read.iter().chain(&waiting) {
                    assert_eq!(*pair, value(seen));
                    seen += 1;
                }
                seen
            };
            drain();
            drain();
            let sent = neighbour.join().unwrap();
            assert_eq!(drain(), sent);
            assert!(remains.is_empty());
        });
    }

    /// Ownership travels with the descriptor: what the producer wrote into the buffer before the
    /// push is visible behind the read, and what the consumer wrote is visible on the way back.
    #[test]
    fn a_buffer_s_bytes_travel_with_its_descriptor() {
        loom::model(|| {
            let (there, back) = (HeapRing::new(1, 0), HeapRing::new(1, 0));
            let buffer = loom::sync::Arc::new(loom::cell::UnsafeCell::new(0u64));
            let mut give = Producer::<Pair, _>::new(there.clone());
            let mut take = Consumer::<Pair, _>::new(there);
            let mut give_back = Producer::<Pair, _>::new(back.clone());
            let mut take_back = Consumer::<Pair, _>::new(back);
            let theirs = loom::sync::Arc::clone(&buffer);
            let nf = thread::spawn(move || {
                let mut out = [Pair::default(); 1];
                while take.read_burst(&mut out).unwrap() == 0 {
                    thread::yield_now();
                }
                // SAFETY: the descriptor was read, so this thread holds the buffer; loom checks.
                theirs.with_mut(|p| unsafe {
                    assert_eq!(*p, 7);
                    *p = 8;
                });
                assert_eq!(give_back.push_burst(&out), Ok(1));
                take.release();
            });
            // SAFETY: not yet handed over.
            buffer.with_mut(|p| unsafe { *p = 7 });
            assert_eq!(give.push_burst(&[value(1)]), Ok(1));
            let mut out = [Pair::default(); 1];
            while take_back.pop_burst(&mut out).unwrap() == 0 {
                thread::yield_now();
            }
            // SAFETY: handed back.
            buffer.with(|p| assert_eq!(unsafe { *p }, 8));
            nf.join().unwrap();
        });
    }
}
