//! Messages between NFs, and from commands to NFs.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use nflib::control::{
    self, ErrorCode, MAX_MESSAGE_BYTES, Reply, Request, SendRefusal, ServiceRef, Target,
};
use nflib::{Context, MessageToken, NetworkFunction, NfArgs, NfError, Setup};

use super::raw::RawNf;
use super::running::{Manager, nf_program, until};
use super::tables::{WAITING, by_hand, chain, services, sink};

fn quiet() -> String {
    sink("out") + &by_hand("a") + &by_hand("b") + &chain("default", &["a", "b"])
}

fn named(service: &str) -> Target {
    Target::Service(ServiceRef::Name(service.into()))
}

fn call(manager: &Manager, target: Target, payload: &[u8]) -> Reply {
    manager.ask(&Request::Call { target, payload: payload.to_vec() })
}

#[track_caller]
fn refusal(reply: Reply) -> (ErrorCode, String) {
    match reply {
        Reply::Error(error) => (error.code, error.message),
        other => panic!("{other:?}"),
    }
}

/// An NF of the library, in a thread of this process: it passes on whatever it is told, to the
/// service it is told to, and says what became of it.
struct Postman {
    told: mpsc::Sender<String>,
}

impl NetworkFunction for Postman {
    fn setup(&mut self, setup: &Setup) -> Result<(), NfError> {
        let _ = self.told.send(format!("instance {}", setup.instance));
        Ok(())
    }

    fn message(
        &mut self,
        from: Option<u32>,
        payload: &[u8],
        ctx: &mut Context<'_>,
    ) -> Result<Vec<u8>, String> {
        let text = String::from_utf8_lossy(payload).into_owned();
        let _ = self.told.send(format!("{from:?}: {text}"));
        match text.split_once(' ') {
            Some(("tell", rest)) => {
                let (to, what) = rest.split_once(' ').ok_or("tell whom what?")?;
                let to = to.parse().map_err(|_| "no such name")?;
                ctx.send(Target::Service(to), what.as_bytes()).map_err(|e| e.to_string())?;
                Ok(b"sent".to_vec())
            }
            Some(("shout", bytes)) => {
                let payload = vec![b'!'; bytes.parse().map_err(|_| "how loud?")?];
                let to = Target::Service("a".parse().map_err(|_| "nobody")?);
                ctx.send(to, &payload).map_err(|e| e.to_string())?;
                Ok(Vec::new())
            }
            _ => Err(format!("not understood: {text}")),
        }
    }

    fn sent(&mut self, _: MessageToken, result: Result<u32, SendRefusal>, _: &mut Context<'_>) {
        let _ = self.told.send(format!("sent: {result:?}"));
    }
}

struct Office {
    stop: Arc<AtomicBool>,
    heard: mpsc::Receiver<String>,
    thread: Option<JoinHandle<Result<(), nflib::runtime::RunError>>>,
}

impl Office {
    fn open(socket: &Path, service: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, heard) = mpsc::channel();
        let args = NfArgs::new(service.parse().unwrap(), socket);
        let stopped = Arc::clone(&stop);
        let run = move || nflib::runtime::run_until("postman", Postman { told }, &args, &stopped);
        let office = Self { stop, heard, thread: Some(std::thread::spawn(run)) };
        assert!(office.hears().starts_with("instance "));
        office
    }

    #[track_caller]
    fn hears(&self) -> String {
        self.heard.recv_timeout(super::running::LIMIT).unwrap()
    }

    /// Leaves in good order.
    #[track_caller]
    fn close(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

impl Drop for Office {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[test]
fn nfs_send_each_other_messages_and_commands_are_answered() {
    let manager = Manager::start("", &quiet());
    let first = Office::open(&manager.socket(), "a");
    let second = Office::open(&manager.socket(), "b");
    let status = manager.settled(&[("a", 1), ("b", 1)]);
    let [a, b] = [status.nfs[0].instance, status.nfs[1].instance];

    let reply = call(&manager, named("a"), b"tell b good morning");
    assert_eq!(reply, Reply::Called { answers: vec![(a, Ok(b"sent".to_vec()))] });
    assert_eq!(first.hears(), "None: tell b good morning");
    assert_eq!(second.hears(), format!("Some({a}): good morning"));
    assert_eq!(first.hears(), "sent: Ok(1)");

    // By number, and to a service that nobody provides.
    let reply = call(&manager, Target::Instance(b), b"tell nobody hello");
    assert_eq!(reply, Reply::Called { answers: vec![(b, Ok(b"sent".to_vec()))] });
    assert_eq!(second.hears(), "None: tell nobody hello");
    assert_eq!(second.hears(), "sent: Err(Absent)");

    // The longest message passes; one byte more is refused before it leaves.
    let longest = format!("shout {MAX_MESSAGE_BYTES}");
    call(&manager, named("b"), longest.as_bytes());
    assert_eq!(second.hears(), format!("None: {longest}"));
    assert_eq!(first.hears().len(), format!("Some({b}): ").len() + MAX_MESSAGE_BYTES);
    assert_eq!(second.hears(), "sent: Ok(1)");
    let reply = call(&manager, named("b"), format!("shout {}", MAX_MESSAGE_BYTES + 1).as_bytes());
    let Reply::Called { answers } = reply else { panic!("{reply:?}") };
    assert!(answers[0].1.as_ref().unwrap_err().contains("16385 bytes"), "{answers:?}");

    // What an NF does not understand is its answer, too.
    let reply = call(&manager, named("a"), b"what");
    assert_eq!(reply, Reply::Called { answers: vec![(a, Err("not understood: what".into()))] });
    first.close();
    second.close();
    manager.stop();
}

#[test]
fn a_call_to_nobody_or_too_long_is_refused_and_one_without_answer_ends() {
    let manager = Manager::start("", &quiet());
    let (code, message) = refusal(call(&manager, Target::Instance(77), b"x"));
    assert_eq!(code, ErrorCode::NotFound);
    assert!(message.contains("no instance 77"), "{message}");
    for service in ["a", "nosuch"] {
        let (code, message) = refusal(call(&manager, named(service), b"x"));
        assert_eq!(code, ErrorCode::NotFound, "{service}");
        assert!(message.contains(service), "{message}");
    }
    let silent = RawNf::attach(&manager, "a").unwrap();
    let leaving = RawNf::attach(&manager, "b").unwrap();
    let too_long = vec![0; MAX_MESSAGE_BYTES + 1];
    let (code, message) = refusal(call(&manager, named("a"), &too_long));
    assert_eq!(code, ErrorCode::BadRequest);
    assert!(message.contains("16385") && message.contains("16384"), "{message}");

    // One does not answer, one goes away instead, and answers nobody waits for change nothing.
    let (to_silent, to_leaving) = (manager.connect(), manager.connect());
    let ask = |socket, target| {
        control::send(socket, &Request::Call { target, payload: vec![1] }, &[]).unwrap();
    };
    ask(&to_silent, named("a"));
    ask(&to_leaving, named("b"));
    assert!(matches!(leaving.hear(), Reply::Message { from: None, token: Some(_), .. }));
    silent.say(&Request::Answer { token: 999, result: Ok(vec![]) });
    let gone = leaving.instance();
    drop(leaving);
    let called = |socket| match control::recv(socket, control::MAX_REPLY_BYTES).unwrap().0 {
        Reply::Called { answers } => answers,
        other => panic!("{other:?}"),
    };
    assert_eq!(called(&to_leaving), [(gone, Err("it is gone".to_owned()))]);
    let answers = called(&to_silent);
    assert_eq!(answers[0].0, silent.instance());
    assert!(answers[0].1.as_ref().unwrap_err().contains("no answer within"), "{answers:?}");
    silent.leave();
    manager.stop();
}

#[test]
fn messages_to_one_that_does_not_read_are_bounded_and_the_sender_is_told() {
    let manager = Manager::start("", &quiet());
    let deaf = RawNf::attach(&manager, "a").unwrap();
    let mut sender = RawNf::attach(&manager, "b").unwrap();
    assert_eq!(sender.send(Target::Instance(12_345), vec![]), Err(SendRefusal::Absent));
    let too_long = vec![0; MAX_MESSAGE_BYTES + 1];
    assert_eq!(sender.send(named("a"), too_long), Err(SendRefusal::TooLong));
    let mut taken = 0;
    while sender.send(named("a"), vec![7; 4096]) == Ok(1) {
        taken += 1;
        assert!(taken < 10_000, "messages to a deaf NF are piled up without an end");
    }
    assert_eq!(sender.send(named("a"), vec![]), Err(SendRefusal::Full));
    // The manager serves everybody else, and the deaf one gets every message that was taken.
    assert_eq!(manager.status().nfs.len(), 2);
    for _ in 0..taken {
        let Reply::Message { from, payload, token: None } = deaf.hear() else { panic!() };
        assert_eq!((from, payload.len()), (Some(sender.instance()), 4096));
    }
    assert_eq!(until("there is room again", || sender.send(named("a"), vec![]).ok()), 1);
    deaf.leave();
    sender.leave();
    manager.stop();
}

#[test]
fn a_forward_is_set_while_packets_flow() {
    if nf_program().is_none() {
        return;
    }
    let tables = super::tables::traffic() + &services(&["a"]) + &chain("default", &["a"]);
    let manager = Manager::start(WAITING, &tables);
    manager.settled(&[("a", 1)]);
    let Reply::Called { answers } = call(&manager, named("a"), b"help") else {
        panic!("no answer");
    };
    let help = String::from_utf8(answers[0].1.clone().unwrap()).unwrap();
    assert!(help.contains(" = "), "{help}");
    let Reply::Called { answers } = call(&manager, named("a"), b"set nonsense 1") else {
        panic!("no answer");
    };
    assert!(answers[0].1.is_err(), "{answers:?}");
    manager.stop();
}
