//! The supervisor over processes that exist in a table only, with a clock that is set by hand.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// Processes that do what the test says.
#[derive(Default)]
struct Fake {
    last_pid: i32,
    alive: BTreeMap<i32, (ServiceId, Vec<String>)>,
    ended: Vec<(i32, How)>,
    /// Ended and not forgotten: zombies.
    unforgotten: BTreeSet<i32>,
    signals: Vec<(i32, Signal)>,
    refuse: Option<String>,
    /// They end by SIGKILL only.
    deaf: bool,
    earlier: Vec<Found>,
    clean: bool,
}

impl Fake {
    fn end(&mut self, pid: i32, how: How) {
        if self.alive.remove(&pid).is_some() {
            self.ended.push((pid, how));
            self.unforgotten.insert(pid);
        }
    }
}

impl Processes for Fake {
    fn start(&mut self, wanted: &Wanted, _: Option<u32>) -> Result<i32, String> {
        if let Some(why) = &self.refuse {
            return Err(why.clone());
        }
        self.last_pid += 1;
        self.alive.insert(self.last_pid, (wanted.service, wanted.command.clone()));
        Ok(self.last_pid)
    }

    fn adopt(&mut self) -> Vec<Found> {
        for found in &self.earlier {
            let what = (found.wanted.service, found.wanted.command.clone());
            self.alive.insert(found.pid, what);
        }
        std::mem::take(&mut self.earlier)
    }

    fn ended(&mut self) -> Vec<(i32, How)> {
        std::mem::take(&mut self.ended)
    }

    fn signal(&mut self, pid: i32, signal: Signal) {
        self.signals.push((pid, signal));
        if !self.deaf || signal == Signal::SIGKILL {
            self.end(pid, How::Signal(signal));
        }
    }

    fn leader_of(&self, pid: i32) -> i32 {
        pid
    }

    fn output(&mut self, _: i32, _: bool) -> Vec<String> {
        Vec::new()
    }

    fn last_lines(&self, _: i32) -> Vec<String> {
        vec!["a line".into(), "the last line".into(), String::new()]
    }

    fn forget(&mut self, pid: i32) {
        self.unforgotten.remove(&pid);
    }

    fn clean(&mut self) {
        self.clean = true;
    }
}

/// A supervisor and its clock.
struct Bench {
    supervisor: Supervisor<Fake>,
    now: Instant,
}

fn wanted(service: ServiceId, instances: u32) -> Wanted {
    let command = vec!["nf".to_owned()];
    Wanted { service, name: format!("s{service}"), command, instances, ..Wanted::default() }
}

fn bench(cores: &[u32]) -> Bench {
    bench_over(Fake::default(), cores)
}

fn bench_over(fake: Fake, cores: &[u32]) -> Bench {
    let now = Instant::now();
    Bench { supervisor: Supervisor::over(fake, CoreMap::new(cores.to_vec()), now), now }
}

impl Bench {
    fn want(&mut self, services: &[Wanted]) -> Vec<What> {
        self.supervisor.set_wanted(services);
        self.turn()
    }

    fn turn(&mut self) -> Vec<What> {
        self.supervisor.poll(self.now).into_iter().map(|event| event.what).collect()
    }

    fn after(&mut self, time: Duration) -> Vec<What> {
        self.now += time;
        self.turn()
    }

    fn end(&mut self, pid: i32, how: How) -> Vec<What> {
        self.supervisor.processes.end(pid, how);
        self.turn()
    }

    fn pids(&self) -> Vec<i32> {
        self.supervisor.processes.alive.keys().copied().collect()
    }

    fn attach_all(&mut self) {
        for pid in self.pids() {
            assert!(self.supervisor.attached(pid, pid.cast_unsigned() + 100));
        }
    }

    fn waiting(&self) -> String {
        self.supervisor.state(1).unwrap().waiting.unwrap_or_default()
    }
}

const CRASH: How = How::Signal(Signal::SIGSEGV);

fn restart_in(events: &[What]) -> Option<Duration> {
    events.iter().find_map(|what| match what {
        What::Exited { will_restart_in, .. } => *will_restart_in,
        _ => None,
    })
}

fn started(events: &[What]) -> usize {
    events.iter().filter(|what| matches!(what, What::Started { .. })).count()
}

#[test]
fn a_crash_is_followed_by_a_start_after_a_pause_that_grows_and_is_forgotten_in_health() {
    let mut b = bench(&[]);
    assert_eq!(started(&b.want(&[wanted(1, 1)])), 1);
    for (crash, pause_ms) in
        [3, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000].iter().enumerate()
    {
        let pause = Duration::from_millis(*pause_ms);
        let events = b.end(b.pids()[0], CRASH);
        assert_eq!(restart_in(&events), Some(pause));
        let when = if crash == 0 { "at once".to_owned() } else { format!("after {pause:?}") };
        let waiting = b.waiting();
        assert!(
            waiting.ends_with(&format!("SIGSEGV: the last line; next try {when}")),
            "{waiting}"
        );
        assert_eq!(b.supervisor.next_deadline(), Some(b.now + pause));
        assert_eq!(started(&b.after(pause - Duration::from_nanos(1))), 0);
        assert_eq!(started(&b.after(Duration::from_nanos(1))), 1);
        assert_eq!(b.supervisor.state(1).unwrap().restarts, crash as u64 + 1);
    }
    b.after(slot::HEALTHY_AFTER);
    assert_eq!(restart_in(&b.end(b.pids()[0], CRASH)), Some(slot::SETTLING));
}

#[test]
fn one_that_leaves_by_its_own_will_is_done_until_something_changes() {
    let mut b = bench(&[]);
    b.want(&[wanted(1, 2)]);
    let events = b.end(b.pids()[0], How::Code(0));
    assert_eq!((restart_in(&events), started(&events)), (None, 0));
    assert_eq!(started(&b.after(Duration::from_secs(3600))), 0);
    let state = b.supervisor.state(1).unwrap();
    assert_eq!((state.running, state.done, state.waiting), (1, 1, None));
    assert_eq!(started(&b.want(&[wanted(1, 2)])), 0, "the same again changes nothing");
    assert_eq!(started(&b.want(&[wanted(1, 3)])), 2, "scaling does");
    b.end(b.pids()[0], How::Code(0));
    b.supervisor.start_again(1);
    assert_eq!(started(&b.turn()), 1);
}

#[test]
fn one_that_refuses_its_arguments_is_given_up_with_its_last_lines() {
    let mut b = bench(&[]);
    b.want(&[wanted(1, 1)]);
    let events = b.end(b.pids()[0], How::Code(2));
    let Some(What::GaveUp { why, said, .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!(why, "exit code 2: the last line");
    assert_eq!(said.len(), 3);
    assert_eq!(b.waiting(), format!("given up: {why}"));
    assert_eq!(started(&b.after(Duration::from_secs(3600))), 0);
    let mended = Wanted { command: vec!["nf".into(), "--good".into()], ..wanted(1, 1) };
    assert_eq!(started(&b.want(&[mended])), 1);
}

#[test]
fn surplus_is_named_newest_first_and_pressed_only_after_its_grace() {
    let mut b = bench(&[]);
    b.want(&[wanted(1, 4)]);
    b.attach_all();
    b.want(&[wanted(1, 2)]);
    assert_eq!(b.supervisor.surplus(), [4, 3]);
    b.after(Duration::from_secs(60));
    assert_eq!(b.supervisor.surplus(), [4, 3], "draining may take its time");
    b.supervisor.released(4, b.now);
    assert_eq!(b.supervisor.surplus(), [3]);
    b.after(GRACE - Duration::from_millis(1));
    assert!(b.supervisor.processes.signals.is_empty());
    b.after(Duration::from_millis(1));
    assert_eq!(b.supervisor.processes.signals, [(4, Signal::SIGTERM)]);
    let events = b.turn();
    assert!(!events.iter().any(|e| matches!(e, What::Started { .. })), "{events:?}");
    // One that is scaled up again is a new one: the surplus is being drained already.
    assert_eq!(started(&b.want(&[wanted(1, 3)])), 1);
    assert_eq!(b.supervisor.surplus(), [3]);
    assert_eq!(b.supervisor.state(1).unwrap().leaving, 1);
}

#[test]
fn one_that_ignores_sigterm_is_killed() {
    let mut b = bench(&[]);
    b.want(&[wanted(1, 1)]);
    b.attach_all();
    b.want(&[]);
    b.supervisor.released(1, b.now);
    b.supervisor.released(1, b.now + GRACE); // a second word gives no second grace
    b.supervisor.processes.deaf = true;
    b.after(GRACE);
    assert_eq!(b.supervisor.processes.signals, [(1, Signal::SIGTERM)]);
    assert_eq!(b.supervisor.next_deadline().map(|at| at <= b.now + GRACE), Some(true));
    b.after(GRACE);
    assert_eq!(b.supervisor.processes.signals.last(), Some(&(1, Signal::SIGKILL)));
}

#[test]
fn one_that_never_attached_is_ended_at_once() {
    let mut b = bench(&[]);
    b.want(&[wanted(1, 1)]);
    b.want(&[]);
    b.supervisor.released(1, b.now);
    b.turn();
    assert_eq!(b.supervisor.processes.signals, [(1, Signal::SIGTERM)]);
}

#[test]
fn scaling_down_takes_those_that_do_not_run_first() {
    let mut b = bench(&[]);
    b.want(&[wanted(1, 3)]);
    b.end(1, CRASH);
    b.after(slot::SETTLING);
    let events = b.end(4, CRASH);
    assert!(restart_in(&events).is_some_and(|pause| pause > slot::SETTLING));
    b.want(&[wanted(1, 2)]);
    assert!(b.supervisor.surplus().is_empty());
    assert_eq!(b.pids(), [2, 3]);
}

#[test]
fn a_changed_command_replaces_nfs_only_once_the_new_ones_are_attached() {
    let mut b = bench(&[]);
    b.want(&[wanted(1, 2)]);
    b.attach_all();
    let changed = Wanted { packet_limit: Some(9), ..wanted(1, 2) };
    assert_eq!(started(&b.want(std::slice::from_ref(&changed))), 2);
    assert!(b.supervisor.surplus().is_empty(), "the old ones serve on");
    b.supervisor.attached(3, 3);
    b.turn();
    assert!(b.supervisor.surplus().is_empty());
    b.supervisor.attached(4, 4);
    b.turn();
    assert_eq!(b.supervisor.surplus(), [2, 1]);
}

#[test]
fn a_changed_command_that_fails_leaves_the_old_nfs_serving_and_can_be_taken_back() {
    let mut b = bench(&[]);
    b.want(&[wanted(1, 2)]);
    b.attach_all();
    let bad = Wanted { command: vec!["bad".into()], ..wanted(1, 2) };
    b.want(&[bad]);
    b.end(3, How::Code(2));
    b.end(4, How::Code(1));
    b.after(Duration::from_secs(1));
    assert!(b.supervisor.surplus().is_empty());
    assert_eq!(started(&b.want(&[wanted(1, 2)])), 0, "the old ones are what is wanted again");
    let state = b.supervisor.state(1).unwrap();
    assert_eq!((state.running, state.leaving), (2, 1));
    b.turn();
    assert_eq!(b.supervisor.surplus(), [5], "the bad one's second try");
}

#[test]
fn one_on_trial_is_not_started_again_and_stands_in_for_its_entry_when_that_is_wanted() {
    let mut b = bench(&[]);
    b.want(&[wanted(1, 1)]);
    b.attach_all();
    let next = Wanted { command: vec!["next".into()], ..wanted(1, 1) };
    b.supervisor.processes.refuse = Some("not today".into());
    assert_eq!(b.supervisor.try_out(&next), Err("not today".into()));
    b.supervisor.processes.refuse = None;
    let pid = b.supervisor.try_out(&next).unwrap();
    assert_eq!(started(&b.turn()), 1);
    let events = b.end(pid, CRASH);
    let said = events.iter().find_map(|what| match what {
        What::Exited { pid: of, will_restart_in: None, said, .. } if *of == pid => said.as_deref(),
        _ => None,
    });
    assert_eq!((said, started(&events)), (Some("the last line"), 0));
    let failing = b.supervisor.try_out(&next).unwrap();
    b.attach_all();
    b.supervisor.end_trial(failing);
    assert_eq!(b.supervisor.surplus(), [failing]);
    b.end(failing, How::Code(0));

    let pid = b.supervisor.try_out(&next).unwrap();
    b.turn();
    b.attach_all();
    let state = b.supervisor.state(1).unwrap();
    assert_eq!((state.running, state.leaving), (1, 0));
    assert_eq!(started(&b.want(&[next])), 0, "it is there already");
    b.turn();
    assert_eq!(b.supervisor.surplus(), [1], "the old one goes");
    b.supervisor.end_trial(pid);
    assert_eq!(b.supervisor.surplus(), [1], "it is on trial no more");
    assert_eq!(restart_in(&b.end(pid, CRASH)), Some(slot::SETTLING));
}

#[test]
fn where_cores_are_short_a_changed_command_is_rolled_out_one_by_one() {
    let mut b = bench(&[0, 1]);
    let old = Wanted { own_core: true, ..wanted(1, 2) };
    b.want(std::slice::from_ref(&old));
    b.attach_all();
    b.want(&[Wanted { command: vec!["new".into()], ..old }]);
    b.turn();
    assert_eq!(b.supervisor.surplus(), [1], "one goes");
    assert!(b.waiting().contains("0 s1 (instance 101), 1 s1 (instance 102)"), "{}", b.waiting());
    b.turn();
    assert_eq!(b.supervisor.surplus(), [1], "and one only");
    b.supervisor.released(1, b.now);
    assert_eq!(started(&b.end(1, How::Code(0))), 1, "its core is taken at once");
    b.turn();
    assert_eq!(b.supervisor.surplus(), [2]);
}

#[test]
fn without_a_free_core_an_nf_waits_and_says_who_has_which() {
    let mut b = bench(&[0, 1]);
    b.supervisor.cores().take_for_workers(&[0], false);
    let events = b.want(&[Wanted { own_core: true, ..wanted(1, 2) }]);
    assert_eq!(started(&events), 1);
    let why = "no core is free: 0 worker 0, 1 s1 (pid 1)";
    assert!(events.contains(&What::Waiting { why: why.into() }), "{events:?}");
    assert_eq!(b.waiting(), why);
    let later = b.after(Duration::from_secs(2));
    assert!(!later.iter().any(|what| matches!(what, What::Waiting { .. })), "told once");
    b.end(1, CRASH);
    assert_eq!(b.pids(), [2], "the core is given on, and only one can have it");
}

#[test]
fn one_that_cannot_be_started_is_told_once_and_tried_ever_more_rarely() {
    let mut b = bench(&[]);
    b.supervisor.processes.refuse = Some("there is no program \"nf\"".into());
    let mut told = b.want(&[wanted(1, 1)]);
    let mut tries = 0;
    while tries < 20 {
        let at = b.supervisor.next_deadline().unwrap();
        assert!(at > b.now, "never a tight loop");
        b.now = at;
        told.extend(b.turn());
        tries += 1;
    }
    assert_eq!(told, [What::Waiting { why: "there is no program \"nf\"".into() }]);
    assert_eq!(b.supervisor.next_deadline(), Some(b.now + Duration::from_secs(10)));
    b.supervisor.processes.refuse = None;
    assert_eq!(started(&b.after(Duration::from_secs(10))), 1);
}

#[test]
fn many_are_started_over_several_turns() {
    let mut b = bench(&[]);
    let first = started(&b.want(&[wanted(1, 1000)]));
    assert_eq!(first, MAX_STARTS);
    assert!(b.supervisor.next_deadline().unwrap() <= b.now, "the next turn shall come at once");
    let mut turns = 1;
    while b.pids().len() < 1000 {
        b.turn();
        turns += 1;
    }
    assert_eq!(turns, 1000 / MAX_STARTS);
}

#[test]
fn nfs_of_an_earlier_manager_are_taken_on_if_they_are_what_is_wanted() {
    let found = |pid, wanted| Found { pid, core: Some(0), wanted };
    let other = Wanted { command: vec!["other".into()], ..wanted(1, 1) };
    let earlier = vec![
        found(51, wanted(1, 1)),
        found(52, other),
        found(53, wanted(2, 1)),
        found(54, wanted(1, 1)),
    ];
    let mut b = bench_over(Fake { earlier, ..Fake::default() }, &[0, 1]);
    b.turn();
    assert!(b.supervisor.surplus().is_empty(), "nobody has said yet what is wanted");
    let events = b.want(&[wanted(1, 2), wanted(3, 1)]);
    assert_eq!(started(&events), 1, "only for service 3");
    for (pid, is) in [(51, true), (52, false), (53, false), (54, true)] {
        assert!(events.contains(&What::Adopted { pid, wanted: is }), "{pid}: {events:?}");
    }
    assert_eq!(b.supervisor.surplus(), [53], "52 serves until the others are attached");
    b.attach_all();
    b.turn();
    assert_eq!(b.supervisor.surplus(), [53, 52]);
    let own = b.supervisor.cores().choose(&[], true);
    assert_eq!(own, Ok(1), "their cores are known");
    assert_eq!(restart_in(&b.end(51, How::Unknown)), Some(slot::SETTLING));
}

#[test]
fn the_end_ends_all_and_leaves_nothing_behind() {
    let mut b = bench(&[]);
    b.want(&[wanted(1, 3)]);
    b.supervisor.attached(1, 1);
    b.supervisor.end_all(b.now);
    b.turn();
    assert_eq!(b.supervisor.processes.signals.len(), 2, "those that nobody could tell");
    b.turn();
    assert!(!b.supervisor.is_empty() && !b.supervisor.processes.clean);
    b.supervisor.set_wanted(&[wanted(1, 3)]);
    assert_eq!(started(&b.end(1, CRASH)), 0);
    assert!(b.supervisor.is_empty() && b.supervisor.processes.clean);
    assert_eq!(b.supervisor.next_deadline(), None);
    assert!(b.supervisor.processes.unforgotten.is_empty(), "all are reaped");
}

#[derive(Clone, Debug)]
enum Step {
    Want(Vec<(ServiceId, u32, u8)>),
    End(usize, i32),
    Attach(usize),
    Release,
    Refuse(bool),
    Time(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let service = (0..3_u16, 0..5_u32, 0..3_u8);
    prop_oneof![
        prop::collection::vec(service, 0..4).prop_map(Step::Want),
        (any::<usize>(), prop_oneof![Just(0), Just(1), Just(2), Just(-1)])
            .prop_map(|(who, code)| Step::End(who, code)),
        any::<usize>().prop_map(Step::Attach),
        Just(Step::Release),
        any::<bool>().prop_map(Step::Refuse),
        (0..12_000_u64).prop_map(Step::Time),
    ]
}

/// What must hold between any two turns.
fn check(b: &Bench, asked: &BTreeMap<ServiceId, Wanted>) -> Result<(), TestCaseError> {
    let supervisor = &b.supervisor;
    let known: Vec<i32> = supervisor.nfs().map(|nf| nf.pid).collect();
    prop_assert_eq!(&known, &b.pids(), "the supervisor knows every process and no other");
    prop_assert!(supervisor.processes.unforgotten.is_empty(), "every process is reaped");
    for service in 0..3 {
        let alive = supervisor.processes.alive.values().filter(|(of, _)| *of == service).count();
        let Some(wanted) = asked.get(&service) else {
            let kept = supervisor.nfs().any(|nf| nf.service == service && !nf.leaving);
            prop_assert!(!kept, "nothing is kept of what is not wanted");
            continue;
        };
        let state = supervisor.state(service).unwrap();
        let slots = &supervisor.services[&service].slots;
        prop_assert_eq!(state.wanted, wanted.instances);
        prop_assert_eq!(slots.len(), wanted.instances as usize);
        prop_assert!(alive as u32 <= state.wanted + state.leaving, "{:?}", state);
        prop_assert_eq!(alive as u32, state.running + state.leaving);
        for slot in slots {
            match &slot.state {
                State::Running(pid) => {
                    let (_, command) = &supervisor.processes.alive[pid];
                    prop_assert_eq!(command, &wanted.command, "it is what is wanted now");
                }
                State::Due { why, at, .. } => {
                    prop_assert!(!why.is_empty());
                    prop_assert!(at.is_some_and(|at| at > b.now), "it waits for a time to come");
                }
                State::Done(why) | State::GivenUp(why) => prop_assert!(!why.is_empty()),
            }
        }
        let idle = state.wanted - state.running - state.done;
        prop_assert_eq!(idle > 0, state.waiting.is_some(), "who does not run has a reason");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_happens_nothing_is_doubled_lost_or_without_a_reason(
        steps in prop::collection::vec(step(), 1..60)
    ) {
        let mut b = bench(&[0, 1]);
        let mut asked = BTreeMap::new();
        b.want(&[]);
        for step in steps {
            match step {
                Step::Want(services) => {
                    asked = services.into_iter().map(|(id, count, kind)| {
                        let command = vec![format!("nf{kind}")];
                        (id, Wanted { command, own_core: kind == 2, ..wanted(id, count) })
                    }).collect();
                    b.supervisor.set_wanted(&asked.values().cloned().collect::<Vec<_>>());
                }
                Step::End(who, code) => {
                    let how = if code < 0 { CRASH } else { How::Code(code) };
                    if let Some(pid) = b.pids().get(who % b.pids().len().max(1)) {
                        b.supervisor.processes.end(*pid, how);
                    }
                }
                Step::Attach(who) => {
                    if let Some(pid) = b.pids().get(who % b.pids().len().max(1)) {
                        b.supervisor.attached(*pid, 1);
                    }
                }
                Step::Release => {
                    for pid in b.supervisor.surplus() {
                        b.supervisor.released(pid, b.now);
                    }
                }
                Step::Refuse(refuse) => {
                    b.supervisor.processes.refuse = refuse.then(|| "not today".to_owned());
                }
                Step::Time(ms) => b.now += Duration::from_millis(ms),
            }
            // Until nothing more is due, as a server does: bounded, or it would be a tight loop.
            let mut turns = 0;
            loop {
                b.turn();
                let more = b.supervisor.next_deadline().is_some_and(|at| at <= b.now);
                if !more && b.supervisor.processes.ended.is_empty() {
                    break;
                }
                turns += 1;
                prop_assert!(turns < 20, "it does not come to rest");
            }
            check(&b, &asked)?;
        }
        b.supervisor.end_all(b.now);
        for _ in 0..3 {
            b.now += 2 * GRACE;
            b.turn();
        }
        prop_assert!(b.supervisor.is_empty() && b.pids().is_empty());
        prop_assert!(b.supervisor.processes.unforgotten.is_empty());
    }
}
