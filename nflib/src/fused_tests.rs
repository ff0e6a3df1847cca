use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::packet::PacketId;
use crate::testing::{BenchOptions, TestBench};

/// Decides by the packet's bytes: byte `at` says what stage `at` does with it.
struct Scripted {
    at: usize,
    held: Vec<PacketId>,
}

impl Scripted {
    /// Byte 0 of a packet is its number; the others are the script.
    fn says(&self, packet: &Packet<'_>) -> Action {
        match packet.bytes().get(1 + self.at) {
            Some(1) => Action::Drop,
            Some(2) => Action::Out(self.at as u8),
            Some(3) => Action::Hold,
            _ => Action::Next,
        }
    }
}

impl NetworkFunction for Scripted {
    fn process(&mut self, packet: &mut Packet<'_>, _: &mut Context<'_>) -> Action {
        let action = self.says(packet);
        if action == Action::Hold {
            self.held.push(packet.id());
        }
        // Shows that it was here.
        if let Some(trail) = packet.bytes_mut().last_mut() {
            *trail = trail.wrapping_mul(3).wrapping_add(self.at as u8 + 1);
        }
        action
    }

    fn tick_interval(&self) -> Option<Duration> {
        Some(Duration::from_millis(1 + self.at as u64))
    }

    fn tick(&mut self, ctx: &mut Context<'_>) {
        for id in self.held.drain(..) {
            ctx.release(id, Action::Next).unwrap();
        }
    }

    fn message(
        &mut self,
        _: Option<u32>,
        payload: &[u8],
        _: &mut Context<'_>,
    ) -> Result<Vec<u8>, String> {
        Ok([&[b'0' + self.at as u8], payload].concat())
    }
}

fn scripted(at: usize) -> Scripted {
    Scripted { at, held: Vec::new() }
}

fn fused(stages: usize) -> TestBench<Fused> {
    let stages = (0..stages).map(|at| {
        let nf: Box<dyn NetworkFunction> = Box::new(scripted(at));
        (format!("nf{at}"), nf)
    });
    TestBench::new(Fused::new(stages.collect()).unwrap())
}

/// What a packet comes to when nothing is held for ever: its action, and its last byte.
fn expected(frame: &[u8], stages: usize) -> (Action, Vec<u8>) {
    let mut bytes = frame.to_vec();
    for at in 0..stages {
        let script = frame[1 + at];
        let last = bytes.len() - 1;
        bytes[last] = bytes[last].wrapping_mul(3).wrapping_add(at as u8 + 1);
        match script {
            1 => return (Action::Drop, bytes),
            2 => return (Action::Out(at as u8), bytes),
            _ => {}
        }
    }
    (Action::Next, bytes)
}

fn frames(scripts: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let numbered = scripts.iter().zip(0_u8..);
    numbered.map(|(script, number)| [&[number], &script[..], &[0]].concat()).collect()
}

const STAGES: usize = 4;

fn scripts() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let step = prop_oneof![12 => Just(0_u8), 1 => Just(1_u8), 1 => Just(2_u8), 1 => Just(3_u8)];
    prop::collection::vec(prop::collection::vec(step, STAGES), 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn each_packet_meets_the_stages_in_order_until_one_of_them_sends_it_elsewhere(scripts in scripts()) {
        let frames = frames(&scripts);
        let mut bench = fused(STAGES);
        let mut out = bench.feed(&frames);
        for _ in 0..30 {
            out.extend(bench.advance(Duration::from_millis(1)));
        }
        prop_assert_eq!(bench.held_pkts(), 0);
        let mut got: Vec<_> = out.into_iter().map(|o| (o.bytes[0], o.action, o.bytes)).collect();
        got.sort_by_key(|(number, ..)| *number);
        let expected: Vec<_> = frames.iter().map(|frame| {
            let (action, bytes) = expected(frame, STAGES);
            (frame[0], action, bytes)
        }).collect();
        prop_assert_eq!(got, expected);
    }

    #[test]
    fn packets_that_nobody_holds_keep_their_order(scripts in scripts()) {
        let scripts: Vec<_> = scripts.into_iter()
            .map(|script| script.into_iter().map(|step| step % 3).collect::<Vec<_>>()).collect();
        let frames = frames(&scripts);
        let out = fused(STAGES).feed(&frames);
        prop_assert_eq!(out.len(), frames.len());
        for action in [Action::Next, Action::Out(0), Action::Out(1), Action::Out(2), Action::Out(3)] {
            let numbers: Vec<_> =
                out.iter().filter(|o| o.action == action).map(|o| o.bytes[0]).collect();
            prop_assert!(numbers.is_sorted(), "{action:?}: {numbers:?}");
        }
    }
}

#[test]
fn a_packet_released_by_one_stage_goes_on_with_the_next_not_with_the_first() {
    let mut bench = fused(3);
    let held_by_the_second = [9, 0, 3, 0, 0];
    assert!(bench.feed(&[held_by_the_second]).is_empty());
    let out = bench.advance(Duration::from_millis(10));
    assert_eq!(out.len(), 1);
    assert_eq!((out[0].action, &out[0].bytes), (Action::Next, &expected(&held_by_the_second, 3).1));
}

#[test]
fn what_is_held_at_the_end_is_dropped_like_any_nfs() {
    let mut bench = fused(2);
    assert!(bench.feed(&[[1, 3, 0, 0], [2, 0, 3, 0]]).is_empty());
    assert_eq!(bench.held_pkts(), 2);
    let out = bench.shut_down();
    assert_eq!(out.iter().map(|o| o.action).collect::<Vec<_>>(), [Action::Drop; 2]);
}

#[test]
fn a_message_goes_to_the_stage_whose_number_it_begins_with() {
    let mut bench = fused(3);
    assert_eq!(bench.message(None, b"2 get"), Ok(b"1get".to_vec()));
    assert_eq!(bench.message(None, b"3"), Ok(b"2".to_vec()));
    for wrong in [&b"get"[..], b"0 get", b"4 get", b"99999999999999999999 get", b"", b"\xff"] {
        let error = bench.message(None, wrong).unwrap_err();
        assert!(error.contains("1 nf0, 2 nf1, 3 nf2"), "{error}");
    }
    assert_eq!(fused(1).message(None, b"get"), Ok(b"0get".to_vec()));
}

#[test]
fn a_stage_is_told_what_became_of_the_message_it_sent_and_no_other_is() {
    use crate::control::Target;

    /// Sends a message with each packet, and counts what it hears.
    struct Talker(bool);
    impl NetworkFunction for Talker {
        fn process(&mut self, _: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
            if self.0 {
                ctx.send(Target::Instance(1), b"hello").unwrap();
            }
            Action::Next
        }
        fn sent(&mut self, _: MessageToken, result: Result<u32, SendRefusal>, _: &mut Context<'_>) {
            assert!(self.0, "it sent nothing");
            assert_eq!(result, Ok(1));
            self.0 = false;
        }
        fn message(
            &mut self,
            _: Option<u32>,
            _: &[u8],
            _: &mut Context<'_>,
        ) -> Result<Vec<u8>, String> {
            Ok(vec![u8::from(self.0)])
        }
    }

    let talker = |sends| -> (String, Box<dyn NetworkFunction>) {
        ("talker".into(), Box::new(Talker(sends)))
    };
    let nf = Fused::new(vec![talker(false), talker(true), talker(false)]).unwrap();
    let mut bench = TestBench::new(nf);
    bench.feed(&[[0; 60]]);
    let (token, ..) = bench.take_message().unwrap();
    assert_eq!(bench.message(None, b"2"), Ok(vec![1]));
    bench.sent(token, Ok(1));
    assert_eq!(bench.message(None, b"2"), Ok(vec![0]), "it has heard");
}

#[test]
fn each_stage_ticks_at_its_own_interval() {
    struct Counting(u64, u8);
    impl NetworkFunction for Counting {
        fn tick_interval(&self) -> Option<Duration> {
            (self.0 > 0).then(|| Duration::from_millis(self.0))
        }
        fn tick(&mut self, _: &mut Context<'_>) {
            self.1 += 1;
        }
        fn message(
            &mut self,
            _: Option<u32>,
            _: &[u8],
            _: &mut Context<'_>,
        ) -> Result<Vec<u8>, String> {
            Ok(vec![self.1])
        }
    }
    let stage =
        |ms| -> (String, Box<dyn NetworkFunction>) { ("tick".into(), Box::new(Counting(ms, 0))) };
    let mut bench = TestBench::new(Fused::new(vec![stage(10), stage(30), stage(0)]).unwrap());
    for _ in 0..61 {
        bench.advance(Duration::from_millis(1));
    }
    let ticks = [&b"1"[..], b"2", b"3"].map(|number| bench.message(None, number).unwrap()[0]);
    assert_eq!(ticks, [6, 2, 0]);
}

#[test]
fn a_chain_of_none_and_one_that_makes_packets_before_its_end_are_refused() {
    struct Maker;
    impl NetworkFunction for Maker {
        fn loan_pkts(&self) -> u32 {
            1
        }
    }
    assert!(Fused::new(Vec::new()).err().unwrap().to_string().contains("one at least"));
    let maker = || -> (String, Box<dyn NetworkFunction>) { ("maker".to_owned(), Box::new(Maker)) };
    let error = Fused::new(vec![maker(), maker()]).err().unwrap().to_string();
    assert!(error.starts_with("maker makes packets"), "{error}");
    let last: (String, Box<dyn NetworkFunction>) = ("nf0".to_owned(), Box::new(scripted(0)));
    assert_eq!(Fused::new(vec![last, maker()]).unwrap().loan_pkts(), 1);
}

#[test]
fn each_stage_sees_the_jump_services_that_it_asked_for() {
    struct Jumper(Vec<u16>);
    impl NetworkFunction for Jumper {
        fn jumps_to(&self) -> Vec<ServiceRef> {
            self.0.iter().map(|&id| ServiceRef::Id(id)).collect()
        }
        fn setup(&mut self, setup: &Setup) -> Result<(), NfError> {
            assert_eq!(setup.jump_services, self.0);
            Ok(())
        }
    }
    let jumper = |to: &[u16]| -> (String, Box<dyn NetworkFunction>) {
        ("j".into(), Box::new(Jumper(to.to_vec())))
    };
    let nf = Fused::new(vec![jumper(&[1, 2]), jumper(&[]), jumper(&[3])]).unwrap();
    assert_eq!(nf.jumps_to(), [1, 2, 3].map(ServiceRef::Id));
    TestBench::with_options(nf, BenchOptions::default()).unwrap();
}
