use std::cell::{Cell, RefCell};

use proptest::prelude::*;

use super::*;
use crate::observe::NOBODY;
use crate::shm::{HugePages, RegionGeometry, Scribble};

const TERMS: RecorderTerms = RecorderTerms { slots: 4, kept_bytes: 24, all: true };

/// Slots whose writer dies after so many writes: those that come later do not happen.
struct Mortal {
    words: RefCell<Vec<u64>>,
    steps_left: Cell<usize>,
}

impl Words for Mortal {
    fn set(&self, word: usize, value: u64, _: Ordering) {
        let left = self.steps_left.get();
        if left > 0 {
            self.steps_left.set(left - 1);
            self.words.borrow_mut()[word] = value;
        }
    }

    fn get(&self, word: usize, _: Ordering) -> u64 {
        self.words.borrow()[word]
    }
}

/// What is written as packet `n`, of so many bytes.
fn packet(n: u64, len: u8) -> RecordedPacket {
    let bytes: Vec<u8> = (0..len).map(|at| (n as u8).wrapping_mul(31).wrapping_add(at)).collect();
    RecordedPacket {
        number: n * 3 + 1,
        time_ns: n * 1000,
        buffer: n as u32 + 7,
        flow_hash: u32::MAX - n as u32,
        offset_bytes: 256,
        len_bytes: u16::from(len) + 100,
        route: n as u16,
        hop: 2,
        ingress: 5,
        peer: NOBODY - 1,
        bytes,
    }
}

fn write(words: &impl Words, n: u64, len: u8) {
    let RecordedPacket {
        number,
        time_ns,
        buffer,
        flow_hash,
        offset_bytes,
        len_bytes,
        route,
        hop,
        ingress,
        peer,
        bytes,
    } = packet(n, len);
    let range = u64::from(offset_bytes)
        | u64::from(len_bytes) << 16
        | u64::from(len) << 32
        | u64::from(peer) << 48;
    let place = u64::from(buffer) | u64::from(flow_hash) << 32;
    let way = u64::from(route) | u64::from(hop) << 16 | u64::from(ingress) << 24;
    let from = NonNull::from(bytes.as_slice()).cast();
    let source = Bytes { from, len: bytes.len() };
    // SAFETY: a vector of our own.
    unsafe { write_slot(words, TERMS, n, [number, time_ns, place, range, way], source) };
}

proptest! {
    /// Of what a writer wrote until it died, after any number of writes, the last packets are found,
    /// each as it was, and at most the one that it was about to write over is missing.
    #[test]
    fn wherever_the_writer_dies_what_is_found_is_whole_and_the_newest(
        lens in proptest::collection::vec(0u8..=24, 0..12),
        steps in 0usize..200,
    ) {
        let words = Mortal {
            words: RefCell::new(vec![0; 4 * TERMS.slot_words()]),
            steps_left: Cell::new(steps),
        };
        // How many packets are whole: those after whose last write the writer was alive.
        let mut whole = 0;
        for (n, len) in (0..).zip(&lens) {
            let before = words.steps_left.get();
            write(&words, n, *len);
            let takes = 1 + 5 + usize::from(*len).div_ceil(8) + 1;
            whole += u64::from(before >= takes);
        }
        let found = read_slots(&words, TERMS);
        let expected = |n: u64| packet(n, lens[n as usize]);
        let torn = words.steps_left.get() == 0 && whole < lens.len() as u64;
        // The death may be before the first write of a packet, which then has cost no older one.
        let oldest = whole.saturating_sub(4);
        let all: Vec<_> = (oldest..whole).map(expected).collect();
        let but_one: Vec<_> = (oldest + 1..whole).map(expected).collect();
        prop_assert!(found == all || (torn && whole >= 4 && found == but_one), "{found:?}");
    }

    #[test]
    fn any_bytes_are_packets_or_none(
        words in proptest::collection::vec((0..4 * 16usize, any::<u64>()), 0..64),
        marks in proptest::collection::vec(0u64..40, 4),
    ) {
        let memory = Mortal {
            words: RefCell::new(vec![0; 4 * TERMS.slot_words()]),
            steps_left: Cell::new(usize::MAX),
        };
        for (word, value) in words {
            let room = memory.words.borrow().len();
            memory.set(word % room, value, Ordering::Relaxed);
        }
        for (place, mark) in marks.into_iter().enumerate() {
            memory.set(place * TERMS.slot_words(), mark, Ordering::Relaxed);
        }
        for packet in read_slots(&memory, TERMS) {
            prop_assert!(packet.bytes.len() <= 24);
            prop_assert!(packet.bytes.len() <= usize::from(packet.len_bytes));
        }
    }
}

fn region() -> Arc<Region> {
    let geometry = RegionGeometry { buffers: 8, stride_bytes: 2048, headroom_bytes: 256 };
    let region = Region::create(geometry, HugePages::Off).unwrap();
    for buffer in 0..8 {
        assert!(region.write(buffer, 256, &[buffer as u8; 40]));
    }
    Arc::new(region)
}

fn delivery(buffer: u32) -> Delivery {
    Delivery { buffer, offset_bytes: 256, len_bytes: 40, port: 1, hop: 2, ..Delivery::default() }
}

/// The manager's box, and an NF's recorder that writes into it.
fn recorder(terms: RecorderTerms) -> (BlackBox, Recorder) {
    let managers = BlackBox::create(terms).unwrap();
    let fd = managers.fd().try_clone_to_owned().unwrap();
    let nfs = Arc::new(BlackBox::from_fd(fd, terms).unwrap());
    (managers, Recorder::new(nfs, region(), 1_000))
}

#[test]
fn the_last_packets_are_found_in_the_managers_mapping_in_order() {
    let (found_by, mut recorder) = recorder(TERMS);
    for turn in 0..3 {
        assert!(recorder.is_due(turn));
        recorder.record(&[delivery(1), delivery(2)], 9, 1 + 10 * turn, turn);
    }
    let found = found_by.packets();
    let told: Vec<_> = found.iter().map(|p| (p.number, p.buffer, p.time_ns, p.peer)).collect();
    assert_eq!(told, [(11, 1, 1001, 9), (12, 2, 1001, 9), (21, 1, 1002, 9), (22, 2, 1002, 9)]);
    assert_eq!((found[1].len_bytes, &*found[1].bytes), (40, &[2; 24][..]));
    assert_eq!((found[1].ingress, found[1].hop), (1, 2));
}

#[test]
fn of_a_millisecond_32_packets_are_recorded_and_the_next_begins_anew() {
    let terms = RecorderTerms { slots: 256, kept_bytes: 8, all: false };
    let (found_by, mut recorder) = recorder(terms);
    let burst = [delivery(1); 20];
    let mut taken = 0;
    let mut take = |recorder: &mut Recorder, now_ns| {
        if recorder.is_due(now_ns) {
            recorder.record(&burst, NOBODY, 1 + taken, now_ns);
        }
        taken += 20;
    };
    for now_ns in [0, 10, 20, 999_999] {
        take(&mut recorder, now_ns);
    }
    assert!(!recorder.is_due(999_999) && recorder.is_due(1_000_000));
    take(&mut recorder, 1_000_000);
    let numbers: Vec<_> = found_by.packets().iter().map(|packet| packet.number).collect();
    assert_eq!(numbers, (1..=32).chain(81..=100).collect::<Vec<_>>());
}

#[test]
fn loans_and_ranges_beyond_the_buffer_are_not_recorded_and_one_that_is_off_records_nothing() {
    let (found_by, mut recorder) = recorder(TERMS);
    let loan = Delivery { len_bytes: 0, port: crate::descriptor::NO_PORT, ..delivery(1) };
    let beyond = Delivery { len_bytes: 1793, ..delivery(1) };
    recorder.record(&[loan, beyond, delivery(8), delivery(3)], NOBODY, 1, 0);
    assert_eq!(found_by.packets().iter().map(|p| p.number).collect::<Vec<_>>(), [4]);
    let off = Recorder::new(
        Arc::new(BlackBox::create(RecorderTerms { slots: 0, ..TERMS }).unwrap()),
        region(),
        0,
    );
    assert!(!off.is_due(u64::MAX - 1));
}

#[test]
fn another_size_is_refused_and_nobody_can_change_it() {
    let made = BlackBox::create(TERMS).unwrap();
    assert!(nix::unistd::ftruncate(made.fd(), 8).is_err());
    let again = |terms| BlackBox::from_fd(made.fd().try_clone_to_owned().unwrap(), terms);
    assert!(again(TERMS).is_ok());
    assert!(again(RecorderTerms { slots: 5, ..TERMS }).is_err());
    assert!(again(RecorderTerms { kept_bytes: 23, ..TERMS }).is_err());
    assert!(BlackBox::create(RecorderTerms { slots: u32::MAX, ..TERMS }).is_err());
}

#[test]
fn a_box_full_of_garbage_is_read_without_harm() {
    let made = BlackBox::create(RecorderTerms { slots: 64, ..TERMS }).unwrap();
    let scribble = Scribble::over(made.fd()).unwrap();
    let mut random = 1u32;
    for at in (0..scribble.len_bytes()).step_by(4) {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        scribble.store(at, random);
    }
    let _ = (made.packets(), made.last_words());
}
