//! What a network function is: a type that decides, for each packet, where it goes.
#![forbid(unsafe_code)]

use std::time::Duration;

use thiserror::Error;

use crate::branch::BranchId;
use crate::burst::Burst;
use crate::context::Context;
use crate::control::{SendRefusal, ServiceRef, StateSpec};
pub use crate::descriptor::{PortId, ServiceId};
use crate::message::MessageToken;
use crate::packet::Packet;
use crate::shm::{RegionGeometry, State};

/// Packets an NF may hold when it does not say otherwise.
pub const DEFAULT_HOLD_LIMIT_PKTS: usize = 1024;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Free it.
    Drop,
    /// Send it to the next service of its chain, or out when this was the last.
    Next,
    /// Send it to a service that the chain need not contain.
    ToService(ServiceId),
    /// Send it out by a port.
    Out(PortId),
    /// Send it to the start of the chain that this branch of its chain names. A chain without such a
    /// branch drops it, with a reason of its own.
    Branch(BranchId),
    /// Keep it until [`Context::release`] is called with its [`Packet::id`].
    ///
    /// A held packet is never sent by itself. When [`Context::hold_room`] is 0 it cannot be kept:
    /// it is dropped, and counted as such. What is still held at shutdown is dropped, too.
    Hold,
}

/// What an NF is told when it is attached, before its first packet.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The service it was started for.
    pub service: ServiceId,
    /// This instance's number, given by the manager.
    pub instance: u32,
    /// How buffers are cut: longest packet, headroom.
    pub region: RegionGeometry,
    /// The most packets it may hold at once.
    pub hold_limit_pkts: usize,
    /// The services of [`NetworkFunction::jumps_to`], in the same order.
    pub jump_services: Vec<ServiceId>,
    /// Packets can be read and not changed: the service's `access` is `read-only`. An NF that has to
    /// change them refuses, by [`Setup::must_change_packets`].
    pub read_only: bool,
    /// The state region that [`NetworkFunction::state`] asked for; `None` in a fused chain.
    pub state: Option<State>,
}

impl Setup {
    /// For an NF that cannot do its work without changing packets.
    ///
    /// # Errors
    /// When it may not.
    pub fn must_change_packets(&self) -> Result<(), NfError> {
        if !self.read_only {
            return Ok(());
        }
        Err(NfError::new(format!(
            "this NF changes packets, and the access of service {} is \"read-only\": remove `access` \
             from the service, or start another NF for it",
            self.service
        )))
    }
}

/// Why an NF refuses to start; one clear line.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct NfError(String);

impl NfError {
    /// An error that says what was wrong, what was expected and what to do.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// A network function.
///
/// Most NFs implement [`process`](Self::process) and nothing else. One that gains from seeing
/// several packets at once (to prefetch, or to look up many keys) implements
/// [`process_burst`](Self::process_burst). An NF that implements neither passes everything on.
///
/// All calls come from one thread, one at a time.
pub trait NetworkFunction: Send {
    /// Called once per attachment, before the first packet. When the manager restarts, the same
    /// value is attached, and set up, again; packets that it held then are held no more.
    ///
    /// # Errors
    /// Whatever makes it impossible to run; the program prints it and exits.
    fn setup(&mut self, setup: &Setup) -> Result<(), NfError> {
        let _ = setup;
        Ok(())
    }

    /// Decides about one packet, which it may change.
    fn process(&mut self, packet: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
        let _ = (packet, ctx);
        Action::Next
    }

    /// Decides about a burst. Packets leave in the order in which they are decided; one that was
    /// not decided leaves after the others, as [`Action::Next`].
    fn process_burst(&mut self, burst: &mut Burst<'_>, ctx: &mut Context<'_>) {
        burst.decide_each(ctx, |packet, ctx| self.process(packet, ctx));
    }

    /// The most packets the NF wants to hold at once ([`Action::Hold`]); asked once per attachment.
    /// It gets at most a quarter of the region's buffers, so that the ports cannot run dry.
    fn hold_limit_pkts(&self) -> usize {
        DEFAULT_HOLD_LIMIT_PKTS
    }

    /// Empty buffers wanted, to make packets of its own; asked once per attachment. Each comes to
    /// [`fill`](Self::fill), once. More than the manager can spare is refused.
    fn loan_pkts(&self) -> u32 {
        0
    }

    /// Makes a packet in an empty buffer that was lent, and decides about it. The packet begins behind
    /// the headroom, without any byte ([`Packet::push_back`] adds some), on the first chain that
    /// contains the NF's service and those it jumps to, at this NF, and its ingress port is
    /// [`NO_PORT`](crate::descriptor::NO_PORT). [`Action::Hold`] keeps the buffer for later;
    /// [`Action::Drop`] gives it back.
    fn fill(&mut self, packet: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
        let _ = (packet, ctx);
        Action::Drop
    }

    /// Empty buffers to have in stock, for packets of its own at any time ([`Context::new_packet`]); asked
    /// once per attachment. Unlike those of [`loan_pkts`](Self::loan_pkts), which are then not asked for,
    /// they never come to [`fill`](Self::fill), and for each that is used another is lent, as soon as
    /// there is one. They do not count as held packets.
    fn stock_pkts(&self) -> u32 {
        0
    }

    /// The services that [`Action::ToService`] will name, so that the manager can open direct edges
    /// to their instances, itself included, for packets whose route visits both; asked once per
    /// attachment. The NF is told their ids at [`setup`](Self::setup). Other services can be named,
    /// too: their packets go through the manager.
    fn jumps_to(&self) -> Vec<ServiceRef> {
        Vec::new()
    }

    /// A few words that outlive this NF: when it dies, the next NF of its service in its place finds them
    /// in [`Setup::state`]; asked once per attachment. After a manager's end they are 0 again. What a
    /// process may do with them, and how it tells whether they belong together, says [`State`].
    fn state(&self) -> Option<StateSpec> {
        None
    }

    /// How often [`tick`](Self::tick) is wanted; `None` for never. Asked again after each tick.
    fn tick_interval(&self) -> Option<Duration> {
        None
    }

    /// Called at about every [`tick_interval`](Self::tick_interval), with or without traffic. Ticks
    /// that were missed are not made up for.
    fn tick(&mut self, ctx: &mut Context<'_>) {
        let _ = ctx;
    }

    /// Acts on a message from another NF (`from` is its instance id), or from a command
    /// (`millrace nf call`; `from` is `None`), and answers it; who sent from an NF gets no answer.
    /// [`settings::answer`](crate::settings::answer) does it for settings.
    ///
    /// # Errors
    /// One line that says why not.
    fn message(
        &mut self,
        from: Option<u32>,
        payload: &[u8],
        ctx: &mut Context<'_>,
    ) -> Result<Vec<u8>, String> {
        let _ = (from, payload, ctx);
        Err("this NF takes no messages".to_owned())
    }

    /// Tells what became of a message sent by [`Context::send`]: how many NFs got it, or why none
    /// did. Nothing is told of messages under way when the manager vanishes.
    fn sent(
        &mut self,
        token: MessageToken,
        result: Result<u32, SendRefusal>,
        ctx: &mut Context<'_>,
    ) {
        let _ = (token, result, ctx);
    }

    /// Called when the NF begins to leave: it was told to, or a limit is reached. Packets still come,
    /// until the last that was on its way is there. An NF that sends packets in a circle, or makes them,
    /// drops them from now on, lest it is waited for in vain.
    fn leaving(&mut self, ctx: &mut Context<'_>) {
        let _ = ctx;
    }

    /// Called once, after the last packet.
    fn shutdown(&mut self) {}
}

/// What stands for an NF is one: `&mut nf`, `Box<dyn NetworkFunction>`.
macro_rules! delegate {
    ($($holder:ty),+) => {$(
        impl<N: NetworkFunction + ?Sized> NetworkFunction for $holder {
            fn setup(&mut self, setup: &Setup) -> Result<(), NfError> {
                (**self).setup(setup)
            }

            fn process(&mut self, packet: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
                (**self).process(packet, ctx)
            }

            fn process_burst(&mut self, burst: &mut Burst<'_>, ctx: &mut Context<'_>) {
                (**self).process_burst(burst, ctx);
            }

            fn hold_limit_pkts(&self) -> usize {
                (**self).hold_limit_pkts()
            }

            fn loan_pkts(&self) -> u32 {
                (**self).loan_pkts()
            }

            fn stock_pkts(&self) -> u32 {
                (**self).stock_pkts()
            }

            fn fill(&mut self, packet: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
                (**self).fill(packet, ctx)
            }

            fn jumps_to(&self) -> Vec<ServiceRef> {
                (**self).jumps_to()
            }

            fn state(&self) -> Option<StateSpec> {
                (**self).state()
            }

            fn tick_interval(&self) -> Option<Duration> {
                (**self).tick_interval()
            }

            fn tick(&mut self, ctx: &mut Context<'_>) {
                (**self).tick(ctx);
            }

            fn message(
                &mut self,
                from: Option<u32>,
                payload: &[u8],
                ctx: &mut Context<'_>,
            ) -> Result<Vec<u8>, String> {
                (**self).message(from, payload, ctx)
            }

            fn sent(
                &mut self,
                token: MessageToken,
                result: Result<u32, SendRefusal>,
                ctx: &mut Context<'_>,
            ) {
                (**self).sent(token, result, ctx);
            }

            fn leaving(&mut self, ctx: &mut Context<'_>) {
                (**self).leaving(ctx);
            }

            fn shutdown(&mut self) {
                (**self).shutdown();
            }
        }
    )+};
}

delegate!(&mut N, Box<N>);
