use std::sync::Arc;

use nflib::control::ServiceSpec;
use nflib::shm::{BlackBox, RecorderTerms, Scribble};

use super::bundle::{ManagerNote, Names};
use super::evidence::Evidence;
use super::*;

const TERMS: RecorderTerms = RecorderTerms { slots: 8, kept_bytes: 64, all: false };

pub(super) fn scene(name: &str, instance: u32) -> Scene {
    let mut counters = nflib::control::NfStatus { instance, ..Default::default() };
    counters.name = "nf".into();
    Scene {
        time_unix_ns: 1_796_045_101_000_000_000,
        clock_offset_ns: 1_796_045_000_000_000_000,
        why: "SIGSEGV".into(),
        process: ProcessNote { pid: 77, ..ProcessNote::default() },
        attached_unix_s: i64::MAX,
        service: ServiceSpec { name: name.into(), ..ServiceSpec::default() },
        counters,
        done_pkts: 0,
        evidence: Evidence::default(),
        black_box: Arc::new(BlackBox::create(TERMS).unwrap()),
        names: Names::default(),
        log: vec!["a line".into()],
        manager: ManagerNote::default(),
    }
}

/// Crashes that are looked for, and written nowhere.
fn crashes() -> (tempfile::TempDir, Crashes) {
    let folder = tempfile::tempdir().unwrap();
    let mut crashes = Crashes::new(&ManagerConfig {
        socket: folder.path().join("m.sock"),
        ..ManagerConfig::default()
    });
    crashes.writer = None;
    (folder, crashes)
}

fn suspect(lost: Lost, leader: Option<i32>, told_to_go: bool) -> Suspect {
    let scene = scene("fw", 1);
    Suspect { lost, leader, pidfd: None, told_to_go, since: Instant::now(), scene }
}

fn event(what: What) -> Event {
    Event { service: 1, name: "fw".into(), what }
}

fn exited(pid: i32, how: How) -> Event {
    event(What::Exited { pid, how, will_restart_in: None, said: None })
}

fn verdict(events: &[Event], suspect: &Suspect, waited: Duration) -> Verdict {
    let (_folder, mut crashes) = crashes();
    events.iter().for_each(|event| crashes.hear(event));
    crashes.verdict(suspect, suspect.since + waited)
}

fn crashed(why: &str) -> Verdict {
    Verdict::Crashed(why.to_owned())
}

#[test]
fn how_a_process_ended_says_whether_it_crashed() {
    let gone = suspect(Lost::Gone, Some(77), false);
    let at_once = Duration::ZERO;
    assert_eq!(verdict(&[], &gone, at_once), Verdict::NotKnownYet);
    assert_eq!(verdict(&[exited(78, How::Code(1))], &gone, at_once), Verdict::NotKnownYet);
    for (how, expected) in [
        (How::Code(0), Verdict::Innocent),
        (How::Code(101), crashed("exit status 101")),
        (How::Signal(Signal::SIGSEGV), crashed("SIGSEGV")),
        (How::Signal(Signal::SIGKILL), crashed("SIGKILL")),
        (How::Signal(Signal::SIGTERM), Verdict::Innocent),
        (How::Unknown, crashed("ended, how is not known")),
    ] {
        assert_eq!(verdict(&[exited(77, how)], &gone, at_once), expected, "{how:?}");
    }
    // The supervisor never says: it is not waited for for ever.
    assert_eq!(verdict(&[], &gone, SUPERVISED_LIMIT), crashed("ended, how is not known"));
}

#[test]
fn one_that_had_to_be_pressed_to_go_has_not_crashed_and_one_that_was_stuck_has() {
    let gone = suspect(Lost::Gone, Some(77), true);
    let pressed = event(What::Pressed { pid: 77, signal: "SIGKILL" });
    let killed = exited(77, How::Signal(Signal::SIGKILL));
    let events = [pressed.clone(), killed.clone()];
    assert_eq!(verdict(&events, &gone, Duration::ZERO), Verdict::Innocent);
    let (_folder, mut crashes) = crashes();
    crashes.kills_stuck(77, "no progress");
    events.iter().for_each(|event| crashes.hear(event));
    let found = crashes.verdict(&gone, gone.since);
    assert_eq!(found, crashed("killed, because it was stuck: no progress"));
    // Another process with the same number is another.
    crashes.hear(&event(What::Started { pid: 77, core: None }));
    assert_eq!(crashes.verdict(&gone, gone.since), Verdict::NotKnownYet);
}

#[test]
fn of_those_started_by_hand_who_was_asked_to_go_needs_last_words_to_have_crashed() {
    let asked = suspect(Lost::Gone, None, true);
    assert_eq!(verdict(&[], &asked, Duration::ZERO), Verdict::Innocent);
    // As a panic leaves it.
    Scribble::over(asked.scene.black_box.fd()).unwrap().store(1024, 2);
    let expected = crashed("ended, how is not known");
    assert_eq!(verdict(&[], &asked, Duration::ZERO), expected);
    let living = nflib::shm::pidfd_open(std::process::id().cast_signed()).unwrap();
    let lives = Suspect { pidfd: Some(living), ..suspect(Lost::Gone, None, false) };
    assert_eq!(verdict(&[], &lives, Duration::ZERO), Verdict::NotKnownYet);
    assert_eq!(verdict(&[], &lives, HUNG_UP_LIMIT), Verdict::Innocent);
    let removed = suspect(Lost::Removed("it broke its ring".into()), None, true);
    assert_eq!(verdict(&[], &removed, Duration::ZERO), crashed("removed: it broke its ring"));
}

#[test]
fn the_last_lines_are_those_of_the_process_and_few_enough() {
    let (_folder, mut crashes) = crashes();
    for number in 0..300 {
        crashes.hear(&event(What::Said { pid: 77, line: format!("line {number}") }));
        crashes.hear(&event(What::Said { pid: 78, line: "of somebody else".into() }));
    }
    crashes.hear(&exited(77, How::Code(1)));
    let log = crashes.forget(&suspect(Lost::Gone, Some(77), false));
    assert_eq!((log.len(), &*log[0], &*log[199]), (200, "line 100", "line 299"));
    assert!(!crashes.has_just_ended(77) && crashes.lines.contains_key(&78));
}

#[test]
fn a_process_is_described_as_it_was_started() {
    let own = ProcessNote::of(std::process::id().cast_signed(), 5);
    assert_eq!(own.command, std::env::args().collect::<Vec<_>>());
    assert_eq!(own.folder, std::env::current_dir().ok().map(|f| f.display().to_string()));
    let nobody = ProcessNote::of(-1, 5);
    assert_eq!((nobody.command.len(), nobody.folder), (0, None));
}
