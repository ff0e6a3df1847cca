//! A bench to test an NF without a manager, privilege or hugepages.
//!
//! Frames go in, and what the NF decided about them comes out in the order in which the packets
//! would have left. The clock stands still until [`TestBench::advance`] moves it. After each call
//! the bench checks that every buffer is either free or held by the NF.
#![forbid(unsafe_code)]

mod frames;
mod hop;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::burst::MAX_BURST_PKTS;
use crate::context::Departure;
use crate::control::{SendRefusal, ServiceRef, StateSpec, Target};
use crate::descriptor::{Delivery, NO_PORT};
use crate::engine::Engine;
use crate::message::MessageToken;
use crate::nf::{Action, NetworkFunction, NfError, PortId, ServiceId, Setup};
use crate::packet::PacketId;
use crate::shm::{BufferIndex, HugePages, Region, RegionGeometry, State};

pub use frames::FrameBuilder;
pub use hop::{Hop, HopOptions};

/// What the bench pretends the manager to be.
#[derive(Clone, Copy, Debug)]
pub struct BenchOptions {
    /// The service the NF is started for.
    pub service: ServiceId,
    /// How buffers are cut.
    pub region: RegionGeometry,
    /// The most packets the NF may hold; `None` for what it asks.
    pub hold_limit_pkts: Option<usize>,
    /// The port by which frames come in.
    pub ingress_port: PortId,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            service: 1,
            region: RegionGeometry { buffers: 4096, stride_bytes: 2048, headroom_bytes: 256 },
            hold_limit_pkts: None,
            ingress_port: 0,
        }
    }
}

/// A packet that left the NF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its name while it was in the NF.
    pub id: PacketId,
    /// What the NF decided; never [`Action::Hold`].
    pub action: Action,
    /// The frame as the NF left it.
    pub bytes: Vec<u8>,
}

/// An NF with nothing around it.
pub struct TestBench<N> {
    engine: Engine<N>,
    options: BenchOptions,
    region: Arc<Region>,
    free: VecDeque<BufferIndex>,
    outputs: Vec<Output>,
    now_ns: u64,
}

impl<N: NetworkFunction> TestBench<N> {
    /// Sets up an NF with [`BenchOptions::default`].
    ///
    /// # Panics
    /// When the NF refuses its `setup`; use [`with_options`](Self::with_options) to see the error.
    #[must_use]
    pub fn new(nf: N) -> Self {
        match Self::with_options(nf, BenchOptions::default()) {
            Ok(bench) => bench,
            Err(error) => panic!("the NF refused its setup: {error}"),
        }
    }

    /// Sets up an NF.
    ///
    /// # Errors
    /// What the NF's `setup` returned, or that no memory could be had for the buffers.
    pub fn with_options(nf: N, options: BenchOptions) -> Result<Self, NfError> {
        let region = Region::create(options.region, HugePages::Off)
            .map_err(|error| NfError::new(error.to_string()))?;
        let region = Arc::new(region);
        let setup = Setup {
            service: options.service,
            instance: 1,
            region: options.region,
            hold_limit_pkts: options.hold_limit_pkts.unwrap_or_else(|| nf.hold_limit_pkts()),
            jump_services: nf.jumps_to().iter().map(id_of).collect(),
            read_only: false,
            state: state_for(&nf)?,
        };
        let now_ns = 1_000_000_000;
        let engine = Engine::new(nf, region.clone(), setup, 1, now_ns)?;
        let free = (0..options.region.buffers).collect();
        Ok(Self { engine, options, region, free, outputs: Vec::new(), now_ns })
    }

    /// Gives frames to the NF, in bursts as large as they come, and returns what left it.
    ///
    /// # Panics
    /// When a frame is longer than a buffer after its headroom, or the NF holds every buffer.
    pub fn feed<F: AsRef<[u8]>>(&mut self, frames: &[F]) -> Vec<Output> {
        for burst in frames.chunks(MAX_BURST_PKTS) {
            let arrivals: Vec<_> = burst.iter().map(|frame| self.arrival(frame.as_ref())).collect();
            self.engine.run_burst(&arrivals, self.now_ns);
            self.collect();
        }
        self.take_outputs()
    }

    /// Gives one frame to the NF and returns what became of that frame; `None` when it is held.
    /// Other packets that were released meanwhile are left for [`take_outputs`](Self::take_outputs).
    ///
    /// # Panics
    /// As [`feed`](Self::feed).
    pub fn feed_one(&mut self, frame: &[u8]) -> Option<Output> {
        let arrival = self.arrival(frame);
        self.engine.run_burst(&[arrival], self.now_ns);
        let newest = self.engine.newest_arrival();
        self.collect();
        let at = self.outputs.iter().position(|output| output.id.arrival == newest)?;
        Some(self.outputs.remove(at))
    }

    /// Lends empty buffers to the NF, in bursts as large as they come, and returns what left it: packets
    /// that it made, and buffers that it gave back as [`Action::Drop`].
    ///
    /// # Panics
    /// When the NF holds every buffer.
    pub fn lend(&mut self, buffers: usize) -> Vec<Output> {
        let mut left = buffers;
        while left > 0 {
            let count = left.min(MAX_BURST_PKTS);
            let loan = |bench: &mut Self| Delivery { port: NO_PORT, ..bench.arrival(&[]) };
            let arrivals: Vec<_> = (0..count).map(|_| loan(self)).collect();
            self.engine.run_burst(&arrivals, self.now_ns);
            self.collect();
            left -= count;
        }
        self.take_outputs()
    }

    /// Moves the clock, with every tick that falls due on the way, and returns what left the NF.
    pub fn advance(&mut self, by: Duration) -> Vec<Output> {
        let end_ns = self.now_ns + u64::try_from(by.as_nanos()).unwrap_or(u64::MAX / 2);
        while let Some(due_ns) = self.engine.next_tick_ns().filter(|&due_ns| due_ns <= end_ns) {
            self.now_ns = due_ns;
            self.engine.tick_if_due(due_ns);
            self.collect();
        }
        self.now_ns = end_ns;
        self.take_outputs()
    }

    /// Tells the NF that it leaves, and returns what left it.
    pub fn leave(&mut self) -> Vec<Output> {
        self.engine.leaving(self.now_ns);
        self.collect();
        self.take_outputs()
    }

    /// Shuts the NF down and returns what left it: packets it still held come back as dropped.
    pub fn shut_down(&mut self) -> Vec<Output> {
        self.engine.nf_mut().shutdown();
        self.engine.drop_held();
        self.collect();
        self.take_outputs()
    }

    /// What left the NF and was not returned yet.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Gives a message to the NF, from another NF or (`None`) from a command, and returns its answer.
    /// Packets that it released are left for [`take_outputs`](Self::take_outputs).
    ///
    /// # Errors
    /// What the NF says against it.
    pub fn message(&mut self, from: Option<u32>, payload: &[u8]) -> Result<Vec<u8>, String> {
        let answer = self.engine.message(from, payload, self.now_ns);
        self.collect();
        answer
    }

    /// The oldest message that the NF has sent and that was not taken yet.
    pub fn take_message(&mut self) -> Option<(MessageToken, Target, Vec<u8>)> {
        let message = self.engine.outbox.take()?;
        Some((message.token, message.target, message.payload))
    }

    /// Tells the NF what became of a message it sent.
    pub fn sent(&mut self, token: MessageToken, result: Result<u32, SendRefusal>) {
        self.engine.sent(token, result, self.now_ns);
        self.collect();
    }

    /// How many packets the NF holds.
    #[must_use]
    pub fn held_pkts(&self) -> usize {
        self.engine.held_pkts()
    }

    /// Packets that were to be held and were dropped for want of room.
    #[must_use]
    pub fn hold_overflow_pkts(&self) -> u64 {
        self.engine.hold_overflow_pkts
    }

    /// Whether the NF asked to end.
    #[must_use]
    pub fn stop_requested(&self) -> bool {
        self.engine.stop
    }

    /// The NF.
    #[must_use]
    pub fn nf(&self) -> &N {
        self.engine.nf()
    }

    /// The NF, to change.
    pub fn nf_mut(&mut self) -> &mut N {
        self.engine.nf_mut()
    }

    fn arrival(&mut self, frame: &[u8]) -> Delivery {
        let geometry = self.options.region;
        let longest = geometry.max_packet_bytes();
        let len = u16::try_from(frame.len()).ok().filter(|&len| u32::from(len) <= longest);
        let Some(len) = len else {
            panic!("a frame of {} bytes is longer than {longest}", frame.len())
        };
        let Some(buffer) = self.free.pop_front() else {
            panic!("the NF holds all {} buffers of the bench", geometry.buffers)
        };
        assert!(self.region.write(buffer, geometry.headroom_bytes, frame), "inside the buffer");
        Delivery {
            buffer,
            offset_bytes: geometry.headroom_bytes,
            len_bytes: len,
            port: self.options.ingress_port,
            ..Delivery::default()
        }
    }

    fn collect(&mut self) {
        // Nobody has to be told here what is held.
        drop(self.engine.take_newly_held());
        for Departure { slot, action } in self.engine.take_departures() {
            self.free.push_back(slot.lease.buffer());
            let bytes = self.engine.bytes(&slot).to_vec();
            self.outputs.push(Output { id: slot.id(), action, bytes });
        }
        assert_eq!(
            self.free.len() + self.engine.held_pkts(),
            self.options.region.buffers as usize,
            "every buffer is free or held"
        );
    }
}

/// The id that the bench takes a service to have: one of a name has the name's length.
/// A state as the manager would give it, with nothing in it.
fn state_for(nf: &impl NetworkFunction) -> Result<Option<State>, NfError> {
    let private = |of: StateSpec| State::private(of.words);
    nf.state().map(private).transpose().map_err(|error| NfError::new(error.to_string()))
}

fn id_of(service: &ServiceRef) -> ServiceId {
    match service {
        ServiceRef::Id(id) => *id,
        ServiceRef::Name(name) => name.len() as ServiceId,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Burst, Context, HoldError, Packet};

    /// Holds packets and releases the oldest when `depth` are held, or at a tick.
    struct Delay {
        waiting: VecDeque<PacketId>,
        depth: usize,
        down: bool,
    }

    fn delay(depth: usize) -> Delay {
        Delay { waiting: VecDeque::new(), depth, down: false }
    }

    impl NetworkFunction for Delay {
        fn process(&mut self, packet: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
            assert_eq!(
                ctx.release(packet.id(), Action::Next),
                Err(HoldError::NotHeld(packet.id()))
            );
            if self.waiting.len() == self.depth {
                let oldest = self.waiting.pop_front().unwrap();
                assert!(ctx.held_bytes(oldest).is_ok());
                ctx.held(oldest).unwrap().bytes_mut()[0] |= 0x80;
                ctx.release(oldest, Action::Next).unwrap();
                assert_eq!(ctx.release(oldest, Action::Drop), Err(HoldError::NotHeld(oldest)));
                assert!(ctx.held_bytes(oldest).is_err());
            }
            self.waiting.push_back(packet.id());
            Action::Hold
        }

        fn tick_interval(&self) -> Option<Duration> {
            Some(Duration::from_millis(10))
        }

        fn tick(&mut self, ctx: &mut Context<'_>) {
            if let Some(oldest) = self.waiting.pop_front() {
                ctx.release(oldest, Action::Out(3)).unwrap();
            }
        }

        fn shutdown(&mut self) {
            self.down = true;
        }
    }

    fn frames(n: u8) -> Vec<Vec<u8>> {
        (0..n).map(|i| vec![i; 60]).collect()
    }

    #[test]
    fn a_held_packet_leaves_only_when_it_is_released_and_once() {
        let mut bench = TestBench::new(delay(3));
        assert_eq!(bench.feed(&frames(3)), []);
        assert_eq!(bench.held_pkts(), 3);
        let out = bench.feed(&frames(2));
        assert_eq!(out.iter().map(|o| o.bytes[0]).collect::<Vec<_>>(), [0x80, 0x81]);
        assert!(out.iter().all(|o| o.action == Action::Next));
        assert_eq!(bench.held_pkts(), 3);
    }

    #[test]
    fn a_held_packet_can_be_released_by_a_tick() {
        let mut bench = TestBench::new(delay(8));
        bench.feed(&frames(3));
        assert_eq!(bench.advance(Duration::from_millis(9)), []);
        let out = bench.advance(Duration::from_millis(11));
        assert_eq!(out.iter().map(|o| o.bytes[0]).collect::<Vec<_>>(), [0, 1]);
        assert!(out.iter().all(|o| o.action == Action::Out(3)));
        assert_eq!(bench.held_pkts(), 1);
    }

    #[test]
    fn held_packets_are_returned_as_dropped_at_shutdown() {
        let mut bench = TestBench::new(delay(8));
        bench.feed(&frames(5));
        let out = bench.shut_down();
        assert_eq!(out.iter().map(|o| o.bytes[0]).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert!(out.iter().all(|o| o.action == Action::Drop));
        assert!(bench.nf().down);
        assert_eq!(bench.held_pkts(), 0);
    }

    #[test]
    fn a_packet_that_cannot_be_held_for_want_of_room_is_dropped_and_counted() {
        let options = BenchOptions { hold_limit_pkts: Some(4), ..BenchOptions::default() };
        let mut bench = TestBench::with_options(delay(100), options).unwrap();
        let out = bench.feed(&frames(6));
        assert_eq!(
            out.iter().map(|o| (o.bytes[0], o.action)).collect::<Vec<_>>(),
            [(4, Action::Drop), (5, Action::Drop)]
        );
        assert_eq!(bench.hold_overflow_pkts(), 2);
    }

    /// Decides odd packets last first, twice, and forgets the even ones.
    struct Forgetful;

    impl NetworkFunction for Forgetful {
        fn process_burst(&mut self, burst: &mut Burst<'_>, ctx: &mut Context<'_>) {
            for at in (0..burst.len()).rev() {
                if burst.packet(at).is_some_and(|packet| packet.bytes()[0] % 2 == 1) {
                    assert!(burst.decide(at, Action::Drop, ctx));
                    assert!(!burst.decide(at, Action::Next, ctx));
                    assert!(burst.packet(at).is_none());
                }
            }
        }
    }

    #[test]
    fn packets_leave_in_the_order_decided_and_forgotten_ones_go_next() {
        let mut bench = TestBench::new(Forgetful);
        let out = bench.feed(&frames(5));
        assert_eq!(
            out.iter().map(|o| (o.bytes[0], o.action)).collect::<Vec<_>>(),
            [
                (3, Action::Drop),
                (1, Action::Drop),
                (0, Action::Next),
                (2, Action::Next),
                (4, Action::Next)
            ]
        );
    }

    /// Looks at all packets of a burst at once, and drops those whose bytes another one has, too.
    struct Unique;

    impl NetworkFunction for Unique {
        fn process_burst(&mut self, burst: &mut Burst<'_>, ctx: &mut Context<'_>) {
            let mut actions = Vec::new();
            {
                let all: Vec<_> = (0..burst.len()).map(|at| burst.bytes(at).unwrap()).collect();
                for bytes in &all {
                    let twice = all.iter().filter(|other| *other == bytes).count() > 1;
                    actions.push(if twice { Action::Drop } else { Action::Next });
                }
            }
            assert_eq!(burst.bytes(burst.len()), None);
            for (at, action) in actions.into_iter().enumerate() {
                assert!(burst.decide(at, action, ctx));
                assert_eq!(burst.bytes(at), None, "what was decided is here no more");
            }
        }
    }

    #[test]
    fn the_bytes_of_several_packets_of_a_burst_can_be_read_at_once() {
        let out = TestBench::new(Unique).feed(&[[1; 60], [2; 60], [1; 60], [3; 60]]);
        let next = out.iter().filter(|o| o.action == Action::Next).map(|o| o.bytes[0]);
        assert_eq!(next.collect::<Vec<_>>(), [2, 3]);
    }

    /// Sends each frame's first byte to service 7, holds the frame, and lets it go when told how the
    /// message fared.
    #[derive(Default)]
    struct Teller {
        waiting: Vec<(MessageToken, PacketId)>,
    }

    impl NetworkFunction for Teller {
        fn process(&mut self, packet: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
            let service = Target::Service(crate::control::ServiceRef::Id(7));
            match ctx.send(service, &packet.bytes()[..1]) {
                Ok(token) => {
                    self.waiting.push((token, packet.id()));
                    Action::Hold
                }
                Err(_) => Action::Drop,
            }
        }

        fn sent(
            &mut self,
            token: MessageToken,
            result: Result<u32, SendRefusal>,
            ctx: &mut Context<'_>,
        ) {
            let at = self.waiting.iter().position(|&(of, _)| of == token).unwrap();
            let action = if result.is_ok() { Action::Next } else { Action::Drop };
            ctx.release(self.waiting.remove(at).1, action).unwrap();
        }

        fn message(
            &mut self,
            from: Option<u32>,
            payload: &[u8],
            _: &mut Context<'_>,
        ) -> Result<Vec<u8>, String> {
            from.map(|_| payload.to_vec()).ok_or_else(|| "not for commands".to_owned())
        }
    }

    #[test]
    fn an_nf_sends_messages_and_hears_how_they_fared() {
        let mut bench = TestBench::new(Teller::default());
        assert_eq!(bench.feed(&frames(66)).len(), 2, "two found the queue full");
        let sent: Vec<_> = std::iter::from_fn(|| bench.take_message()).collect();
        assert_eq!(sent.len(), crate::message::MAX_UNSENT_MESSAGES);
        assert_eq!(sent[5].2, [5]);
        bench.sent(sent[5].0, Ok(1));
        bench.sent(sent[9].0, Err(SendRefusal::Absent));
        let out = bench.take_outputs();
        let out: Vec<_> = out.iter().map(|o| (o.bytes[0], o.action)).collect();
        assert_eq!(out, [(5, Action::Next), (9, Action::Drop)]);
        assert_eq!(bench.message(Some(3), b"echo"), Ok(b"echo".to_vec()));
        assert_eq!(bench.message(None, b"echo"), Err("not for commands".to_owned()));
        assert!(TestBench::new(Nothing).message(None, b"x").unwrap_err().contains("no messages"));
    }

    /// Makes a packet of every second loan, keeps every fourth, and sends what comes to itself.
    #[derive(Default)]
    struct Maker {
        loans: usize,
        kept: Vec<PacketId>,
        own: Vec<ServiceId>,
    }

    impl NetworkFunction for Maker {
        fn setup(&mut self, setup: &Setup) -> Result<(), NfError> {
            self.own.clone_from(&setup.jump_services);
            Ok(())
        }

        fn jumps_to(&self) -> Vec<ServiceRef> {
            vec![ServiceRef::Id(1), ServiceRef::Name("four".into())]
        }

        fn fill(&mut self, packet: &mut Packet<'_>, _: &mut Context<'_>) -> Action {
            assert!(packet.is_empty() && packet.ingress_port() == NO_PORT);
            assert_eq!(packet.headroom_bytes(), 256);
            self.loans += 1;
            match self.loans % 4 {
                0 => {
                    self.kept.push(packet.id());
                    return Action::Hold;
                }
                2 => packet.push_back(60).unwrap().fill(self.loans as u8),
                _ => return Action::Drop,
            }
            Action::ToService(self.own[0])
        }

        fn process(&mut self, packet: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
            if let Some(id) = self.kept.pop() {
                let len = packet.len();
                ctx.held(id).unwrap().push_back(len).unwrap().copy_from_slice(packet.bytes());
                ctx.release(id, Action::Next).unwrap();
            }
            Action::Drop
        }
    }

    #[test]
    fn a_loan_is_filled_once_or_kept_or_given_back() {
        let mut bench = TestBench::new(Maker::default());
        assert_eq!(bench.nf().own, [1, 4]);
        let out = bench.lend(130);
        assert_eq!((out.len(), bench.held_pkts(), bench.nf().loans), (98, 32, 130));
        let made = out.iter().filter(|o| o.action == Action::ToService(1));
        assert!(made.clone().all(|o| o.bytes.len() == 60) && made.count() == 33);
        assert_eq!(
            out.iter().filter(|o| o.action == Action::Drop && o.bytes.is_empty()).count(),
            65
        );
        let out = bench.feed(&[[7; 61]]);
        assert_eq!(
            out.iter().map(|o| (o.action, o.bytes.as_slice())).collect::<Vec<_>>(),
            [(Action::Next, &[7; 61][..]), (Action::Drop, &[7; 61][..])]
        );
    }

    #[test]
    fn an_nf_that_makes_nothing_gives_every_loan_back() {
        let out = TestBench::new(Nothing).lend(3);
        assert!(out.len() == 3 && out.iter().all(|o| o.action == Action::Drop));
    }

    /// Implements nothing.
    struct Nothing;
    impl NetworkFunction for Nothing {}

    #[test]
    fn an_nf_that_implements_nothing_passes_every_packet_on_unchanged() {
        let mut bench = TestBench::new(Nothing);
        let fed: Vec<_> = (0..200).map(|i| vec![i as u8; 60 + i]).collect();
        let out = bench.feed(&fed);
        assert!(out.iter().all(|o| o.action == Action::Next));
        assert_eq!(out.into_iter().map(|o| o.bytes).collect::<Vec<_>>(), fed);
    }

    #[test]
    fn a_boxed_nf_behaves_as_the_nf_itself() {
        let mut bench = TestBench::new(Box::new(delay(1)) as Box<dyn NetworkFunction>);
        assert_eq!(bench.feed(&frames(4)).len(), 3);
        assert_eq!(bench.advance(Duration::from_secs(1)).len(), 1);
    }
}
