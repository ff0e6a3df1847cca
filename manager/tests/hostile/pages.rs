//! What an NF says of itself in memory: counters, hold map, doorbells, the channel's head; and files
//! that it may not change.

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use nflib::shm::Scribble;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, ftruncate};

use super::intruder::Intruder;
use super::rings::Flipper;
use super::running::{nfs_of, until};
use super::stage::{Place, Stage, set};

const BOTH: [Place; 2] = [Place::Isolated, Place::Trusted];
const PAGE: usize = 4096;
/// Where the NF's page and its hold map begin.
const NF_PAGE: usize = PAGE;
const HOLD_MAP: usize = 2 * PAGE;

fn hold_map_words(intruder: &Intruder) -> impl Iterator<Item = usize> + use<> {
    (HOLD_MAP..HOLD_MAP + intruder.terms.region.buffers as usize / 8).step_by(4)
}

#[test]
fn counters_as_large_as_can_be() {
    for place in BOTH {
        let Some((stage, mut intruder)) = set(place) else { return };
        for value in [u32::MAX, 0, 1 << 31] {
            for at in (NF_PAGE..NF_PAGE + PAGE).step_by(4) {
                intruder.words.store(at, value);
            }
            // Shares are adapted once a second, and look at them.
            stage.keep_on(Duration::from_millis(1200), || {
                intruder.behave();
                stage.manager.status();
            });
        }
        stage.assert_unharmed(&intruder);
        stage.end(intruder);
    }
}

#[test]
fn counters_that_change_while_they_are_shown() {
    let Some((stage, mut intruder)) = set(Place::Trusted) else { return };
    let mut random = fastrand::Rng::with_seed(1);
    let _flipper = Flipper::new(&intruder.words, move |words| {
        words.store(NF_PAGE + 4 * random.usize(..PAGE / 4), random.u32(..));
    });
    stage.keep_on(Duration::from_millis(1500), || {
        intruder.behave();
        stage.manager.status();
    });
    stage.assert_unharmed(&intruder);
    stage.end(intruder);
}

/// The bystander's NF is stopped while the intruder dies, so that many of its packets are with it.
fn dies_while_the_bystander_has_packets(stage: &Stage, intruder: Intruder) {
    let good = nfs_of(&stage.manager.status(), "good").next().unwrap().pid;
    let good = Pid::from_raw(good);
    kill(good, Signal::SIGSTOP).unwrap();
    let held = || stage.manager.status().accounting.held_pkts;
    until("packets wait for the bystander", || (held() > 200).then_some(()));
    let instance = intruder.instance();
    drop(intruder);
    until("the intruder is gone", || {
        stage.manager.status().nfs.iter().all(|nf| nf.instance != instance).then_some(())
    });
    kill(good, Signal::SIGCONT).unwrap();
}

#[test]
fn it_says_at_its_death_that_it_holds_every_packet_there_is() {
    for place in BOTH {
        let Some((stage, intruder)) = set(place) else { return };
        for at in hold_map_words(&intruder) {
            intruder.words.store(at, u32::MAX);
        }
        dies_while_the_bystander_has_packets(&stage, intruder);
        stage.end_without();
    }
}

#[test]
fn it_says_at_its_death_that_every_packet_waits_unread_in_its_ring() {
    use super::intruder::{HEAD, SLOTS, TAIL};
    for place in BOTH {
        let Some((stage, intruder)) = set(place) else { return };
        let word = |word| intruder.words.load(intruder.word_at(true, word));
        let capacity = intruder.terms.channel.ring_capacity;
        until("its ring is full", || {
            (word(TAIL).wrapping_sub(word(HEAD)) == capacity).then_some(())
        });
        // Not those that do, but the ones that are used next.
        let slots: Vec<_> = (0..capacity as usize).map(|slot| SLOTS + 16 * slot).collect();
        let own: HashSet<_> = slots.iter().map(|&slot| word(slot)).collect();
        let others = (0..intruder.terms.region.buffers).filter(|buffer| !own.contains(buffer));
        for (&slot, buffer) in slots.iter().zip(others) {
            intruder.words.store(intruder.word_at(true, slot), buffer);
        }
        dies_while_the_bystander_has_packets(&stage, intruder);
        // It wrote over what waited in its ring.
        stage.end_domain();
    }
}

#[test]
fn it_hides_the_packets_it_holds() {
    for place in BOTH {
        let Some((stage, mut intruder)) = set(place) else { return };
        // Taken, released, held without a word.
        let mut hidden = 0;
        until("it has packets", || {
            hidden += intruder.take().len();
            (hidden > 500).then_some(())
        });
        for at in hold_map_words(&intruder) {
            intruder.words.store(at, 0);
        }
        stage.end_with_domain(intruder);
    }
}

#[test]
fn the_head_of_its_channel_is_another() {
    for place in BOTH {
        let Some((stage, mut intruder)) = set(place) else { return };
        for at in (0..PAGE).step_by(4) {
            intruder.words.store(at, 0xdead_beef);
        }
        stage.keep_on(Duration::from_millis(300), || {
            intruder.behave();
        });
        stage.assert_unharmed(&intruder);
        stage.end(intruder);
    }
}

#[test]
fn doorbells_and_turns_of_the_whole_domain() {
    for place in BOTH {
        let Some((stage, mut intruder)) = set(place) else { return };
        let mut random = fastrand::Rng::with_seed(9);
        let len_bytes = intruder.bells.len_bytes();
        let flipper = Flipper::new(&intruder.bells, move |bells| {
            let value = if random.bool() { random.u32(..4) } else { random.u32(..) };
            bells.store(random.usize(..len_bytes - 3), value);
        });
        stage.keep_on(Duration::from_millis(1500), || {
            intruder.behave();
        });
        stage.assert_bystander_well();
        drop(flipper);
        stage.end(intruder);
    }
}

#[test]
fn its_own_bell_says_for_ever_that_it_sleeps() {
    for place in BOTH {
        let Some((stage, mut intruder)) = set(place) else { return };
        let own = 64 * usize::from(intruder.terms.nf);
        let flipper = Flipper::new(&intruder.bells, move |bells| bells.store(own, 1));
        stage.keep_on(Duration::from_millis(500), || {
            intruder.behave();
        });
        drop(flipper);
        stage.end(intruder);
    }
}

#[test]
fn packets_that_change_while_they_are_classified_and_sent() {
    let Some((stage, mut intruder)) = set(Place::Trusted) else { return };
    let stride = intruder.terms.region.stride_bytes as usize;
    stage.keep_on(Duration::from_millis(800), || {
        let packets = intruder.take();
        let returned: Vec<_> = packets.iter().map(super::intruder::next).collect();
        intruder.give(&returned);
        for packet in &packets {
            let at = packet.buffer as usize * stride + usize::from(packet.offset_bytes);
            intruder.region.store(at + 12, packet.flow_hash);
        }
    });
    stage.assert_unharmed(&intruder);
    // It wrote into packets that it had passed on: whoever has the buffer next may be another. What
    // the bystander sees is not asked here.
    drop(intruder);
    stage.finish();
}

#[test]
fn the_route_table_cannot_be_written_however_it_is_opened() {
    let Some((stage, intruder)) = set(Place::Trusted) else { return };
    let fd = &intruder.route_fd;
    assert!(Scribble::over(fd).is_err(), "as it came");
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    // As root, or where it is the same user's, the file can be opened anew.
    if let Ok(file) = std::fs::OpenOptions::new().read(true).write(true).open(path) {
        assert!(Scribble::over(&file).is_err(), "opened anew");
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        assert!(fallocate(file.as_fd(), punch, 0, 4096).is_err(), "no holes");
        assert!(std::io::Write::write(&mut &file, &[1]).is_err(), "no bytes");
    }
    stage.end(intruder);
}

#[test]
fn files_that_the_manager_has_mapped_cannot_be_cut_off() {
    for place in BOTH {
        let Some((stage, mut intruder)) = set(place) else { return };
        let channel = intruder.channel.fd().try_clone_to_owned().unwrap();
        assert!(ftruncate(&channel, 0).is_err() && ftruncate(&channel, 1 << 30).is_err());
        assert!(ftruncate(&intruder.route_fd, 0).is_err());
        stage.keep_on(Duration::from_millis(100), || {
            intruder.behave();
        });
        stage.end(intruder);
    }
}

#[test]
fn holes_are_punched_into_its_channel() {
    for place in BOTH {
        let Some((stage, mut intruder)) = set(place) else { return };
        let channel = intruder.channel.fd().try_clone_to_owned().unwrap();
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let len_bytes = i64::try_from(intruder.words.len_bytes()).unwrap();
        // Before any has come back, indices of 0 are possible, and it would only hoard what it has.
        let mut passed_pkts = 0;
        until("packets have gone by", || {
            passed_pkts += intruder.behave();
            (passed_pkts > 0).then_some(())
        });
        stage.keep_on(Duration::from_millis(100), || {
            intruder.behave();
        });
        until("it is removed", || {
            intruder.behave();
            // Every index is 0 again.
            let _ = fallocate(channel.as_fd(), punch, 0, len_bytes);
            stage.record(&intruder).is_none().then_some(())
        });
        stage.end_with_domain(intruder);
    }
}

/// Where the words stand that say whether workers sleep.
const WORKERS: std::ops::Range<usize> = 1024..2048;

#[test]
fn it_rings_the_worker_without_end_and_says_that_it_sleeps() {
    let Some((stage, mut intruder)) = set(Place::Trusted) else { return };
    assert_eq!(intruder.alarms.len(), 1, "one for each worker");
    let _flipper = Flipper::new(&intruder.words, |words| {
        WORKERS.step_by(4).for_each(|at| words.store(at, u32::MAX));
    });
    stage.keep_on(Duration::from_millis(1000), || {
        // Until the pipe is full, and on.
        for _ in 0..100 {
            let _ = nix::unistd::write(&intruder.alarms[0], &[1; 4096]);
        }
        intruder.behave();
    });
    stage.assert_unharmed(&intruder);
    stage.end(intruder);
}

#[test]
fn it_hears_the_alarms_of_others_away_and_says_that_the_worker_is_awake() {
    let Some((stage, mut intruder)) = set(Place::Trusted) else { return };
    let _flipper = Flipper::new(&intruder.words, |words| {
        WORKERS.step_by(4).for_each(|at| words.store(at, 0));
    });
    let path = format!("/proc/self/fd/{}", intruder.alarms[0].as_raw_fd());
    let mut ear = std::fs::OpenOptions::new();
    let ear = ear.read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).unwrap();
    stage.keep_on(Duration::from_millis(1000), || {
        let _ = nix::unistd::read(&ear, &mut [0; 4096]);
        intruder.behave();
    });
    stage.assert_unharmed(&intruder);
    stage.end(intruder);
}

#[test]
fn an_isolated_nf_has_no_alarm_to_spoil() {
    let Some((stage, intruder)) = set(Place::Isolated) else { return };
    assert!(intruder.alarms.is_empty());
    stage.end(intruder);
}
