//! Indices that no honest end of a ring can have, before, during and after the manager reads them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nflib::shm::Scribble;

use super::intruder::{HEAD, Intruder, SETTLED, SLOTS, TAIL, TAKEN};
use super::running::until;
use super::stage::{Place, Stage, set};

const BOTH: [Place; 2] = [Place::Isolated, Place::Trusted];

/// An attack that nobody can survive; the manager notices when it next looks.
fn ends_the_intruder(attack: impl Fn(&mut Intruder)) {
    for place in BOTH {
        let Some((stage, mut intruder)) = set(place) else { return };
        attack(&mut intruder);
        stage.assert_removed(&intruder);
        stage.end_with_domain(intruder);
    }
}

fn add(intruder: &Intruder, towards_nf: bool, word: usize, by: u32) {
    let at = intruder.word_at(towards_nf, word);
    intruder.words.store(at, intruder.words.load(at).wrapping_add(by));
}

#[test]
fn a_tail_far_ahead() {
    ends_the_intruder(|intruder| add(intruder, false, TAIL, 1 << 31));
}

#[test]
fn a_tail_one_slot_too_far() {
    ends_the_intruder(|intruder| {
        intruder.behave();
        add(intruder, false, TAIL, intruder.terms.channel.ring_capacity + 1);
    });
}

#[test]
fn a_tail_that_goes_backwards() {
    ends_the_intruder(|intruder| {
        until("it returned something", || (intruder.behave() > 0).then_some(()));
        std::thread::sleep(Duration::from_millis(50));
        add(intruder, false, TAIL, 1_u32.wrapping_neg());
    });
}

#[test]
fn a_head_that_goes_backwards() {
    // Noticed when the ring seems full.
    ends_the_intruder(|intruder| {
        let capacity = intruder.terms.channel.ring_capacity;
        let word = |word| intruder.words.load(intruder.word_at(true, word));
        until("the ring is full", || {
            (word(TAIL).wrapping_sub(word(HEAD)) == capacity).then_some(())
        });
        std::thread::sleep(Duration::from_millis(50));
        add(intruder, true, HEAD, 1_u32.wrapping_neg());
    });
}

#[test]
fn a_head_ahead_of_the_tail() {
    ends_the_intruder(|intruder| add(intruder, true, HEAD, 1 << 20));
}

#[test]
fn a_head_that_wraps_around() {
    ends_the_intruder(|intruder| {
        let at = intruder.word_at(true, HEAD);
        intruder.words.store(at, u32::MAX);
    });
}

#[test]
fn a_whole_ring_of_slots_that_were_never_written() {
    for place in BOTH {
        let Some((stage, intruder)) = set(place) else { return };
        for slot in 0..intruder.terms.channel.ring_capacity as usize {
            for word in 0..4 {
                let at = intruder.word_at(false, SLOTS + 16 * slot + 4 * word);
                intruder.words.store(at, u32::MAX);
            }
        }
        add(&intruder, false, TAIL, intruder.terms.channel.ring_capacity);
        until("all of them are counted, or it is out", || {
            stage.record(&intruder).is_none_or(|nf| nf.violations >= 1000).then_some(())
        });
        // It wrote over what it had returned.
        stage.end_with_domain(intruder);
    }
}

#[test]
fn a_ring_that_is_never_released_fills_and_costs_nobody_else() {
    for place in BOTH {
        let Some((stage, intruder)) = set(place) else { return };
        until("its ring is full", || {
            stage.record(&intruder).is_some_and(|nf| nf.ring_full_pkts > 100).then_some(())
        });
        stage.assert_unharmed(&intruder);
        stage.end(intruder);
    }
}

#[test]
fn words_for_the_time_after_its_death() {
    // They are read when it is dead, and then lead nowhere.
    for place in BOTH {
        let Some((stage, mut intruder)) = set(place) else { return };
        for value in [0, 1, 77, 1 << 31, u32::MAX] {
            for towards_nf in [true, false] {
                for word in [SETTLED, TAKEN] {
                    intruder.words.store(intruder.word_at(towards_nf, word), value);
                }
            }
            intruder.behave();
        }
        for word in [SETTLED, TAKEN] {
            intruder.words.store(intruder.word_at(false, word), 0x1234_5678);
            intruder.words.store(intruder.word_at(true, word), 0x1234_5678);
        }
        stage.end_with_domain(intruder);
    }
}

/// A thread that writes while the manager reads, until it is dropped.
pub struct Flipper {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Flipper {
    pub fn new(words: &Arc<Scribble>, mut flip: impl FnMut(&Scribble) + Send + 'static) -> Self {
        let (stop, words) = (Arc::new(AtomicBool::new(false)), Arc::clone(words));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                flip(&words);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Flipper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Every slot of the ring from the NF flips between what it says and what cannot be, while the
/// manager reads it.
fn flip_slots(stage: &Stage, intruder: &mut Intruder, word: usize) {
    let first = intruder.word_at(false, SLOTS);
    let slots = intruder.terms.channel.ring_capacity as usize;
    let mut at = 0;
    let flipper = Flipper::new(&intruder.words, move |words| {
        let place = first + 16 * at + 4 * word;
        let value = words.load(place);
        words.store(place, !value);
        words.store(place, value);
        at = (at + 1) % slots;
    });
    stage.keep_on(Duration::from_millis(500), || {
        intruder.behave();
    });
    drop(flipper);
}

#[test]
fn a_buffer_s_number_that_changes_while_it_is_read() {
    for place in BOTH {
        let Some((stage, mut intruder)) = set(place) else { return };
        flip_slots(&stage, &mut intruder, 0);
        stage.end_with_domain(intruder);
    }
}

#[test]
fn a_range_that_changes_while_it_is_read() {
    for place in BOTH {
        let Some((stage, mut intruder)) = set(place) else { return };
        flip_slots(&stage, &mut intruder, 1);
        stage.end_with_domain(intruder);
    }
}

#[test]
fn an_action_that_changes_while_it_is_read() {
    for place in BOTH {
        let Some((stage, mut intruder)) = set(place) else { return };
        flip_slots(&stage, &mut intruder, 3);
        stage.end_with_domain(intruder);
    }
}

#[test]
fn indices_that_change_while_they_are_read() {
    for place in BOTH {
        let Some((stage, mut intruder)) = set(place) else { return };
        let (tail, head) = (intruder.word_at(false, TAIL), intruder.word_at(true, HEAD));
        let mut random = fastrand::Rng::with_seed(5);
        let flipper = Flipper::new(&intruder.words, move |words| {
            words.store(tail, random.u32(..));
            words.store(head, random.u32(..));
        });
        until("it is out", || {
            intruder.behave();
            stage.record(&intruder).is_none().then_some(())
        });
        stage.assert_removed(&intruder);
        // Removed, and still at it.
        stage.assert_bystander_well();
        drop(flipper);
        stage.end_with_domain(intruder);
    }
}
