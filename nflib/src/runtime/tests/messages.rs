//! Messages to and from an NF, by the control socket.

use std::sync::Mutex;

use super::*;
use crate::MessageToken;
use crate::control::{MAX_MESSAGE_BYTES, SendRefusal, Target};

fn hear(manager: &FakeManager) -> Request {
    control::recv::<Request>(&manager.socket, MAX_REQUEST_BYTES).unwrap().0
}

fn message(from: Option<u32>, payload: &[u8], token: Option<u64>) -> Reply {
    Reply::Message { from, payload: payload.to_vec(), token }
}

/// Holds packets until a message says `release`; answers others as they ask.
#[derive(Default)]
struct Waiter {
    held: Vec<crate::PacketId>,
}

impl NetworkFunction for Waiter {
    fn process(&mut self, packet: &mut Packet<'_>, _: &mut Context<'_>) -> Action {
        self.held.push(packet.id());
        Action::Hold
    }

    fn message(
        &mut self,
        from: Option<u32>,
        payload: &[u8],
        ctx: &mut Context<'_>,
    ) -> Result<Vec<u8>, String> {
        match payload {
            b"release" => {
                for id in self.held.drain(..) {
                    ctx.release(id, Action::Out(9)).unwrap();
                }
                Ok(vec![])
            }
            b"long" => Ok(vec![255; MAX_MESSAGE_BYTES]),
            b"too long" => Ok(vec![0; MAX_MESSAGE_BYTES + 1]),
            b"fail" => Err(format!("told to by {from:?}")),
            _ => Ok([payload, b"!"].concat()),
        }
    }
}

#[test]
fn a_message_is_answered_by_its_number_if_an_answer_is_wanted() {
    let place = place(false);
    let listener = listen(&place.args.socket);
    let (nf, _) = start(Waiter::default(), &place.args);
    let mut manager = accept(&listener);
    manager.say(&message(Some(4), b"no answer wanted", None), &[]);
    manager.say(&message(None, b"hello", Some(17)), &[]);
    manager.say(&message(Some(3), b"fail", Some(18)), &[]);
    manager.say(&message(None, b"long", Some(19)), &[]);
    manager.say(&message(None, b"too long", Some(20)), &[]);
    let answers: Vec<_> = (0..4).map(|_| hear(&manager)).collect();
    let longest = vec![255; MAX_MESSAGE_BYTES];
    let too_long = "the answer of 16385 bytes is longer than 16384".to_owned();
    assert_eq!(
        answers,
        [
            Request::Answer { token: 17, result: Ok(b"hello!".to_vec()) },
            Request::Answer { token: 18, result: Err("told to by Some(3)".into()) },
            Request::Answer { token: 19, result: Ok(longest) },
            Request::Answer { token: 20, result: Err(too_long) },
        ]
    );
    // What a message releases leaves like any packet.
    manager.deliver(0, 0..5);
    let end = Instant::now() + Duration::from_secs(10);
    while manager.channel.held_buffers().len() < 5 {
        assert!(Instant::now() < end, "the packets are held");
        std::thread::yield_now();
    }
    manager.say(&message(None, b"release", None), &[]);
    manager.bell.ring();
    let back = manager.take(0, 5);
    assert!(back.iter().all(|r| (r.action, r.target) == (ActionCode::Out as u8, 9)));
    manager.stop();
    nf.join().unwrap().unwrap();
    assert!(manager.channel.held_buffers().is_empty());
}

type Fates = Arc<Mutex<Vec<(MessageToken, Result<u32, SendRefusal>)>>>;

/// Sends every packet's first byte to instance 5.
struct Sender {
    fates: Fates,
}

impl NetworkFunction for Sender {
    fn process(&mut self, packet: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
        match ctx.send(Target::Instance(5), &packet.bytes()[..1]) {
            Ok(_) => Action::Next,
            Err(_) => Action::Drop,
        }
    }

    fn sent(&mut self, token: MessageToken, result: Result<u32, SendRefusal>, _: &mut Context<'_>) {
        self.fates.lock().unwrap().push((token, result));
    }
}

#[test]
fn what_an_nf_sends_arrives_in_order_and_it_hears_what_became_of_it() {
    let place = place(false);
    let listener = listen(&place.args.socket);
    let fates = Fates::default();
    let (nf, _) = start(Sender { fates: Arc::clone(&fates) }, &place.args);
    let mut manager = accept(&listener);
    manager.deliver(0, 0..50);
    let mut tokens = Vec::new();
    for first in 0..50 {
        let Request::Send { target, payload, token } = hear(&manager) else { panic!("no message") };
        assert_eq!((target, payload), (Target::Instance(5), vec![first]));
        tokens.push(token);
    }
    manager.say(&Reply::Sent { token: tokens[3], result: Err(SendRefusal::Absent) }, &[]);
    manager.say(&Reply::Sent { token: tokens[0], result: Ok(2) }, &[]);
    manager.say(&Reply::Sync { token: 1 }, &[]);
    manager.bell.ring();
    assert_eq!(hear(&manager), Request::Synced { token: 1 });
    let expected =
        [(MessageToken(tokens[3]), Err(SendRefusal::Absent)), (MessageToken(tokens[0]), Ok(2))];
    assert_eq!(*fates.lock().unwrap(), expected);
    manager.stop();
    nf.join().unwrap().unwrap();
}

#[test]
fn a_manager_that_does_not_read_costs_messages_but_no_packets() {
    struct Talker;
    impl NetworkFunction for Talker {
        fn process(&mut self, _: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
            match ctx.send(Target::Instance(5), &[255; MAX_MESSAGE_BYTES]) {
                Ok(_) => Action::Next,
                Err(error) => {
                    assert_eq!(error, crate::SendError::Full);
                    Action::Drop
                }
            }
        }
    }
    let place = place(false);
    let listener = listen(&place.args.socket);
    let (nf, _) = start(Talker, &place.args);
    let mut manager = accept(&listener);
    let mut taken = 0;
    for _ in 0..5 {
        manager.deliver(0, 0..60);
        let back = manager.take(0, 60);
        taken += back.iter().filter(|r| r.action == ActionCode::Next as u8).count();
    }
    assert!(taken < 200, "the queue is bounded: {taken} were taken");
    for _ in 0..taken {
        let Request::Send { payload, .. } = hear(&manager) else { panic!("no message") };
        assert_eq!(payload.len(), MAX_MESSAGE_BYTES);
    }
    manager.stop();
    nf.join().unwrap().unwrap();
}
