//! The event ring against a queue of bounded length, and against a writer that lies.

use proptest::prelude::*;

use super::*;
use crate::observe::EventKind;

fn event(n: u64) -> Event {
    Event { time_ns: n, kind: EventKind::NfOut, marked: true, ..Event::default() }
}

fn drain(reader: &mut TapReader<Arc<TapFile>>, limit_bytes: usize) -> Vec<(u64, Vec<u8>)> {
    let mut seen = Vec::new();
    reader
        .drain(limit_bytes, &mut |event, bytes| seen.push((event.time_ns, bytes.to_vec())))
        .unwrap();
    seen
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    Read(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        9 => (0usize..20_000).prop_map(Step::Write),
        1 => (1usize..300_000).prop_map(Step::Read),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn events_come_out_as_they_went_in_or_are_counted_as_lost(
        steps in proptest::collection::vec(step(), 1..400),
    ) {
        let file = TapFile::create().unwrap();
        let (mut writer, mut reader) = (file.writer(), file.reader());
        let (mut queue, mut words, mut lost) = (std::collections::VecDeque::new(), 0, 0);
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Write(len) => {
                    let needs = Event::WORDS + len.div_ceil(8);
                    let bytes: Vec<u8> = (0..len).map(|at| (at + n) as u8).collect();
                    let fits = words + needs <= TAP_WORDS;
                    prop_assert_eq!(writer.write(event(n as u64), &bytes), fits);
                    if fits {
                        words += needs;
                        queue.push_back((n as u64, bytes));
                    } else {
                        lost += 1;
                    }
                }
                Step::Read(limit_bytes) => {
                    for seen in drain(&mut reader, limit_bytes) {
                        words -= Event::WORDS + seen.1.len().div_ceil(8);
                        prop_assert_eq!(Some(seen), queue.pop_front());
                    }
                }
            }
        }
        prop_assert_eq!(drain(&mut reader, usize::MAX), queue.into_iter().collect::<Vec<_>>());
        prop_assert_eq!((reader.lost_marked(), reader.lost_pkts()), (lost, 0));
    }

    #[test]
    fn a_writer_that_lies_breaks_its_ring_and_nothing_else(
        written: u64, words in proptest::collection::vec(any::<u64>(), 1..100),
    ) {
        let file = TapFile::create().unwrap();
        let mut reader = file.reader();
        for (at, word) in words.iter().enumerate() {
            file.word(RING_WORD + at).store(*word, Ordering::Relaxed);
        }
        // Both near what is possible and anywhere.
        for written in [written % 200, written] {
            file.word(PRODUCER_WORD).store(written, Ordering::Relaxed);
            let mut seen = 0;
            let first = reader.drain(usize::MAX, &mut |_, bytes| seen += bytes.len());
            prop_assert!(seen <= TAP_WORDS * 8);
            if first.is_err() {
                prop_assert_eq!(reader.drain(usize::MAX, &mut |_, _| unreachable!()), first);
            }
        }
    }
}

#[test]
fn a_ring_that_was_never_written_is_empty() {
    let file = TapFile::create().unwrap();
    assert_eq!(file.reader().drain(usize::MAX, &mut |_, _| unreachable!()), Ok(0));
}

#[test]
fn both_sides_map_the_same_ring_and_a_file_of_another_kind_is_refused() {
    let file = TapFile::create().unwrap();
    let theirs = TapFile::from_fd(file.fd().try_clone_to_owned().unwrap()).unwrap();
    assert!(theirs.writer().write(event(5), b"bytes"));
    assert_eq!(drain(&mut file.reader(), usize::MAX), [(5, b"bytes".to_vec())]);
    let other = tempfile::tempfile().unwrap();
    other.set_len(TapFile::LEN_BYTES as u64).unwrap();
    assert!(TapFile::from_fd(other.into()).unwrap_err().to_string().contains("of one release"));
    let short = tempfile::tempfile().unwrap();
    assert!(TapFile::from_fd(short.into()).unwrap_err().to_string().contains("0 bytes"));
}

#[test]
fn captures_leave_room_for_what_is_marked_and_are_counted_by_themselves() {
    let file = TapFile::create().unwrap();
    let (mut writer, mut reader) = (file.writer(), file.reader());
    let tapped = Event { taps: 1, marked: false, ..event(0) };
    let written = (0..).take_while(|_| writer.write(tapped, &[0; 1000])).count();
    assert!(written * 1000 > TAP_WORDS * 8 / 10 * 8, "{written}");
    assert!((0..50).all(|n| writer.write(event(n), &[0; 1000])), "there is room for marked ones");
    writer.skip(7);
    assert_eq!((reader.lost_pkts(), reader.lost_marked()), (8, 0));
    while writer.write(Event { taps: 1, ..event(0) }, &[0; 1000]) {}
    assert_eq!(
        (reader.lost_pkts(), reader.lost_marked()),
        (9, 1),
        "one of both kinds is lost to both"
    );
    assert!(drain(&mut reader, usize::MAX).len() > written + 50);
    assert!(writer.write(tapped, &[]));
}
