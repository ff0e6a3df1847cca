//! What an attached NF may say on the control socket, and refuse to say.

use std::io::Write as _;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nflib::control::{
    self, AttachRequest, ChainSpec, Edit, ErrorCode, MAX_MESSAGE_BYTES, Reply, Request,
    SendRefusal, ServiceRef, Target,
};
use nflib::shm::send_with_fds;

use super::intruder::{Intruder, NAME, SERVICE};
use super::running::until;
use super::stage::{Place, Stage, peak_bytes, set, set_with};

/// Memory that a manager may need more under the attack of an NF than before, bytes.
const ROOM_BYTES: u64 = 16 << 20;

/// What the attack says is counted as the end of the conversation.
fn ends_it(words: &[&str], attack: impl Fn(&mut Intruder)) {
    for place in [Place::Isolated, Place::Trusted] {
        let Some((stage, mut intruder)) = set(place) else { return };
        attack(&mut intruder);
        until("it is removed", || {
            intruder.behave();
            stage.record(&intruder).is_none().then_some(())
        });
        let said = stage.end_with_domain(intruder);
        let is_it = |line: &str| {
            line.contains(NAME) && line.contains(SERVICE) && words.iter().all(|w| line.contains(w))
        };
        assert!(said.lines().any(is_it), "{words:?} in: {said}");
    }
}

/// Sends bytes as they are; whoever hung up meanwhile hears nothing.
fn write(intruder: &Intruder, bytes: &[u8]) {
    let _ = (&intruder.socket).write_all(bytes);
}

fn frame(json: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(json.len()).unwrap().to_le_bytes().to_vec();
    frame.extend(json);
    frame
}

#[test]
fn a_length_that_nobody_has_memory_for() {
    ends_it(&["protocol", "longer"], |intruder| write(intruder, &u32::MAX.to_le_bytes()));
}

#[test]
fn something_that_is_not_json() {
    ends_it(&["protocol"], |intruder| write(intruder, &frame(&[0xff; 100])));
}

#[test]
fn json_that_is_no_message() {
    ends_it(&["protocol"], |intruder| write(intruder, &frame(br#"{"op":"obey","me":1}"#)));
}

#[test]
fn brackets_in_brackets_in_brackets() {
    ends_it(&["protocol"], |intruder| {
        let mut json = br#"{"op":"answer","token":1,"result":{"Ok":"#.to_vec();
        json.extend([b'['; 50_000]);
        write(intruder, &frame(&json));
    });
}

#[test]
fn half_a_message_and_then_nothing() {
    for place in [Place::Isolated, Place::Trusted] {
        let Some((stage, mut intruder)) = set(place) else { return };
        write(&intruder, &frame(br#"{"op":"detach"}"#)[..9]);
        stage.keep_on(Duration::from_millis(300), || {
            intruder.behave();
        });
        stage.assert_unharmed(&intruder);
        stage.end(intruder);
    }
}

#[test]
fn hundreds_of_descriptors_where_none_belong() {
    let Some((stage, mut intruder)) = set(Place::Isolated) else { return };
    let before = stage.manager.open_files();
    let file = tempfile::tempfile().unwrap();
    let fds = [file.as_fd(); 200];
    let request = control::encode(&Request::Synced { token: 0 }).unwrap();
    for _ in 0..50 {
        send_with_fds(&intruder.socket, &request, &fds).unwrap();
        intruder.behave();
    }
    stage.keep_on(Duration::from_millis(200), || {
        intruder.behave();
    });
    assert!(stage.manager.open_files() <= before + 2, "they are closed unseen");
    stage.assert_unharmed(&intruder);
    stage.end(intruder);
}

/// Says `request` often, and behaves otherwise. Returns what it heard.
fn say_often(stage: &Stage, intruder: &mut Intruder, request: &Request) -> Vec<Reply> {
    let mut heard = Vec::new();
    for _ in 0..500 {
        intruder.say(request);
        heard.extend(intruder.listen());
        intruder.behave();
    }
    stage.keep_on(Duration::from_millis(200), || {
        heard.extend(intruder.listen());
        intruder.behave();
    });
    heard
}

#[test]
fn messages_to_services_that_nobody_provides() {
    let Some((stage, mut intruder)) = set(Place::Trusted) else { return };
    for target in [Target::Service(ServiceRef::Name("nobody".into())), Target::Instance(u32::MAX)] {
        let request = Request::Send { target, payload: vec![1; 10], token: 3 };
        let absent = Reply::Sent { token: 3, result: Err(SendRefusal::Absent) };
        let heard = say_often(&stage, &mut intruder, &request);
        assert!(heard.len() > 100 && heard.iter().all(|reply| *reply == absent));
    }
    stage.end(intruder);
}

#[test]
fn messages_that_are_too_long() {
    let Some((stage, mut intruder)) = set(Place::Trusted) else { return };
    let target = Target::Service(ServiceRef::Name("good".into()));
    let payload = vec![9; MAX_MESSAGE_BYTES + 1];
    let heard = say_often(&stage, &mut intruder, &Request::Send { target, payload, token: 3 });
    let too_long = Reply::Sent { token: 3, result: Err(SendRefusal::TooLong) };
    assert!(heard.len() > 10 && heard.iter().all(|reply| *reply == too_long));
    stage.end(intruder);
}

#[test]
fn a_flood_of_messages_to_the_bystander() {
    let Some((stage, mut intruder)) = set(Place::Trusted) else { return };
    let target = Target::Service(ServiceRef::Name("good".into()));
    let payload = vec![9; MAX_MESSAGE_BYTES];
    say_often(&stage, &mut intruder, &Request::Send { target, payload, token: 3 });
    stage.assert_bystander_well();
    stage.end(intruder);
}

#[test]
fn answers_that_nobody_asked_for() {
    let Some((stage, mut intruder)) = set(Place::Trusted) else { return };
    for token in [0, 1, 2, u64::MAX] {
        let request = Request::Answer { token, result: Ok(vec![0; 100]) };
        assert_eq!(say_often(&stage, &mut intruder, &request), []);
        assert_eq!(say_often(&stage, &mut intruder, &Request::Synced { token }), []);
    }
    stage.assert_unharmed(&intruder);
    stage.end(intruder);
}

#[test]
fn it_attaches_once_more_on_the_same_connection() {
    let Some((stage, mut intruder)) = set(Place::Trusted) else { return };
    let request = AttachRequest::new("twin", ServiceRef::Name(SERVICE.into()));
    let heard = say_often(&stage, &mut intruder, &Request::Attach(request));
    let is_refused =
        |reply: &Reply| matches!(reply, Reply::Error(error) if error.code == ErrorCode::Forbidden);
    assert!(heard.len() > 100 && heard.iter().all(is_refused), "{heard:?}");
    stage.end(intruder);
}

#[test]
fn it_asks_for_what_only_commands_may_ask_for() {
    let Some((stage, mut intruder)) = set(Place::Trusted) else { return };
    for request in [
        Request::Shutdown { keep_nfs: false },
        Request::Edit { edits: vec![Edit::RemoveChain { name: "bystander".into() }] },
        Request::StopNf { instance: 1 },
    ] {
        let heard = say_often(&stage, &mut intruder, &request);
        assert!(heard.iter().all(|reply| matches!(reply, Reply::Error(_))), "{heard:?}");
    }
    stage.end(intruder);
}

#[test]
fn it_says_good_bye_again_and_again_and_stays() {
    for place in [Place::Isolated, Place::Trusted] {
        let Some((stage, mut intruder)) = set(place) else { return };
        // It hears on the way: one that answers nothing for long is shut out.
        let mut told = 0;
        let mut listen = |intruder: &mut Intruder| {
            told += intruder.listen().iter().filter(|reply| **reply == Reply::Detached).count();
            intruder.behave();
            told
        };
        for _ in 0..300 {
            intruder.say(&Request::Detach);
            listen(&mut intruder);
        }
        until("it is told so, and stays", || (listen(&mut intruder) > 0).then_some(()));
        stage.keep_on(Duration::from_millis(100), || assert_eq!(listen(&mut intruder), 1, "once"));
        stage.assert_bystander_well();
        stage.end(intruder);
    }
}

#[test]
fn it_never_says_that_it_is_done() {
    for place in [Place::Before, Place::Behind] {
        let Some((stage, mut intruder)) = set(place) else { return };
        intruder.answers = false;
        // Changes go on, in their time.
        for name in ["one", "two"] {
            let began = Instant::now();
            let services = vec![ServiceRef::Name("good".into())];
            let end = "drop".to_owned();
            let chain = ChainSpec { name: name.into(), services, end, ..ChainSpec::default() };
            let applied = std::thread::scope(|scope| {
                let edit = vec![Edit::SetChain { chain, new: true }];
                let change = scope.spawn(|| stage.manager.edit(edit));
                while !change.is_finished() {
                    intruder.behave();
                }
                change.join().unwrap()
            });
            assert!(applied.is_ok(), "{applied:?} after {:?}", began.elapsed());
        }
        stage.assert_bystander_well();
        drop(intruder);
        let mut honest = Intruder::attach(&stage.manager);
        stage.wait_until_all_run(&mut honest);
        stage.end_with_domain(honest);
    }
}

#[test]
fn it_is_silent_for_longer_than_it_may_be() {
    for place in [Place::Before, Place::Behind] {
        let Some((stage, mut intruder)) = set_with(place, "answer_limit_ms = 1500", "") else {
            return;
        };
        intruder.answers = false;
        // Its neighbour goes, and the edge between them is to be closed.
        let victim = ServiceRef::Name("victim".into());
        let edit = vec![Edit::Scale { service: victim, instances: 0 }];
        std::thread::scope(|scope| {
            let change = scope.spawn(|| stage.manager.edit(edit));
            while !change.is_finished() {
                intruder.behave();
            }
        });
        stage.assert_removed(&intruder);
        stage.end_with_domain(intruder);
    }
}

/// Asks for the status as fast as it can and reads no answer; the manager grows by little, and
/// answers others.
#[test]
fn it_asks_and_never_listens() {
    let Some((mut stage, intruder)) = set(Place::Trusted) else { return };
    let pid = stage.manager.process().pid();
    let before = peak_bytes(pid);
    intruder.socket.set_nonblocking(true).unwrap();
    let request = control::encode(&Request::Status).unwrap();
    stage.keep_on(Duration::from_secs(3), || {
        while let Ok(1..) = (&intruder.socket).write(&request) {}
        stage.manager.status();
    });
    let grown = peak_bytes(pid).saturating_sub(before);
    assert!(grown < ROOM_BYTES, "{grown} bytes");
    stage.end(intruder);
}

/// A message that is refused, and then a stream of more by one who never hears the refusal.
#[test]
fn it_goes_on_talking_after_it_was_refused() {
    let Some((mut stage, intruder)) = set(Place::Trusted) else { return };
    let pid = stage.manager.process().pid();
    let before = peak_bytes(pid);
    intruder.socket.set_nonblocking(true).unwrap();
    // Answers that are not read fill the socket, so that the refusal cannot be sent.
    let status = control::encode(&Request::Status).unwrap();
    stage.keep_on(Duration::from_millis(500), || {
        while let Ok(1..) = (&intruder.socket).write(&status) {}
    });
    stage.keep_on(Duration::from_secs(2), || {
        while let Ok(1..) = (&intruder.socket).write(&[0xff; 4096]) {}
        stage.manager.status();
    });
    let grown = peak_bytes(pid).saturating_sub(before);
    assert!(grown < ROOM_BYTES, "{grown} bytes");
    stage.end(intruder);
}

#[test]
fn it_comes_and_goes_as_fast_as_it_can() {
    let Some((mut stage, mut intruder)) = set(Place::Trusted) else { return };
    let pid = stage.manager.process().pid();
    let (files, memory) = (stage.manager.open_files(), peak_bytes(pid));
    for _ in 0..150 {
        drop(intruder);
        intruder = Intruder::attach(&stage.manager);
        intruder.behave();
    }
    stage.wait_until_all_run(&mut intruder);
    until("nothing of the others is left", || {
        intruder.behave();
        (stage.manager.open_files() <= files + 4).then_some(())
    });
    assert!(peak_bytes(pid) < memory + 4 * ROOM_BYTES);
    stage.end(intruder);
}
