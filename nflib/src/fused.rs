//! Several NFs in one process: a burst runs through all of them where it lies, with no ring between
//! and no wake-up. The code of an NF is the same whether it is fused or has a process of its own.
//!
//! ```text
//! burst ─► stage 1 ─► what it lets go on ─► stage 2 ─► … ─► the last stage decides
//!             └► all else (Drop, Out, ToService, Branch) leaves at once, as that stage said
//! ```
//! As long as a stage lets the whole burst go on, the next one gets the same burst, untouched. When it
//! decides otherwise about some packets, the rest moves together. A packet that a stage held goes on
//! with the stage after it when it is released, behind the burst of that moment.
//!
//! To the manager the chain is one NF of one service: it sees what goes in and what comes out.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::Duration;

use crate::burst::{Burst, Decisions};
use crate::context::{Context, Departure};
use crate::control::{SendRefusal, ServiceRef};
use crate::message::MessageToken;
use crate::nf::{Action, NetworkFunction, NfError, Setup};
use crate::packet::{Packet, Slot};

/// One NF of several.
struct Stage {
    name: String,
    nf: Box<dyn NetworkFunction>,
    /// When its next tick is due. `None`: not known yet, or never.
    tick_due_ns: Option<u64>,
    /// Messages it sent of which nothing was heard yet.
    sent: VecDeque<MessageToken>,
}

/// NFs that run as one: every packet meets them in order.
pub struct Fused {
    stages: Vec<Stage>,
    /// What left before the last stage, kept until the burst is through.
    done: Vec<Departure>,
}

impl Fused {
    /// NFs, each with its name, in the order in which packets meet them.
    ///
    /// # Errors
    /// There is none, or one that makes packets of its own is not the last: its packets would have to
    /// meet the NFs behind it, and begin as a single decision.
    pub fn new(stages: Vec<(String, Box<dyn NetworkFunction>)>) -> Result<Self, NfError> {
        if stages.is_empty() {
            return Err(NfError::new("a chain of no NFs; expected one at least"));
        }
        let before_last = &stages[..stages.len() - 1];
        if let Some((name, _)) =
            before_last.iter().find(|(_, nf)| nf.loan_pkts() > 0 || nf.stock_pkts() > 0)
        {
            let what = format!(
                "{name} makes packets of its own, and can only be the last of a chain in one process"
            );
            return Err(NfError::new(what));
        }
        let stages = stages.into_iter().map(|(name, nf)| {
            let sent = VecDeque::new();
            Stage { name, nf, tick_due_ns: None, sent }
        });
        Ok(Self { stages: stages.collect(), done: Vec::new() })
    }

    /// Calls one stage, outside of a burst, and sends on what it lets go.
    fn call<R>(
        &mut self,
        at: usize,
        ctx: &mut Context<'_>,
        call: impl FnOnce(&mut dyn NetworkFunction, &mut Context<'_>) -> R,
    ) -> R {
        let Self { stages, done } = self;
        let (before, rest) = stages.split_at_mut(at + 1);
        let result = before[at].call(ctx, call);
        let late = part_late(ctx, done);
        for slot in late {
            pass_one(rest, slot, ctx, done);
        }
        ctx.out.append(done);
        result
    }

    /// Calls every stage in order, outside of a burst.
    fn call_each(
        &mut self,
        ctx: &mut Context<'_>,
        mut call: impl FnMut(&mut dyn NetworkFunction, &mut Context<'_>),
    ) {
        for at in 0..self.stages.len() {
            self.call_quietly(at, ctx, &mut call);
        }
    }

    /// As [`call`](Self::call), after which other stages are to be called: what left is set aside, so
    /// that each call begins with nothing that left.
    fn call_quietly(
        &mut self,
        at: usize,
        ctx: &mut Context<'_>,
        call: impl FnOnce(&mut dyn NetworkFunction, &mut Context<'_>),
    ) {
        let mut left = std::mem::take(ctx.out);
        self.call(at, ctx, call);
        left.append(ctx.out);
        *ctx.out = left;
    }

    /// The stage that a message is for, and the message.
    fn addressee<'m>(&self, message: &'m [u8]) -> Result<(usize, &'m [u8]), String> {
        if let [stage] = &self.stages[..]
            && !message.first().is_some_and(u8::is_ascii_digit)
        {
            let _ = stage;
            return Ok((0, message));
        }
        let digits = message.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number = std::str::from_utf8(&message[..digits]).ok().and_then(|n| n.parse().ok());
        match number {
            Some(number) if (1..=self.stages.len()).contains(&number) => {
                Ok((number - 1, message[digits..].trim_ascii_start()))
            }
            _ => {
                let names = self.stages.iter().zip(1..);
                let names: Vec<_> =
                    names.map(|(stage, number)| format!("{number} {}", stage.name)).collect();
                Err(format!(
                    "several NFs run here; begin with the number of one: {}",
                    names.join(", ")
                ))
            }
        }
    }
}

impl Stage {
    /// Calls the NF, and notes the messages that it sends.
    #[inline]
    fn call<R>(
        &mut self,
        ctx: &mut Context<'_>,
        call: impl FnOnce(&mut dyn NetworkFunction, &mut Context<'_>) -> R,
    ) -> R {
        let before = ctx.outbox.len();
        let result = call(self.nf.as_mut(), ctx);
        if ctx.outbox.len() > before {
            self.sent.extend(ctx.outbox.tokens_from(before));
        }
        result
    }
}

/// A burst through stages. Nothing has left yet, and nothing is decided. Afterwards the burst holds what
/// the last stage decided; what leaves besides, and behind it, is in `done`, and nothing in `ctx`.
fn pass(
    stages: &mut [Stage],
    burst: &mut Burst<'_>,
    ctx: &mut Context<'_>,
    done: &mut Vec<Departure>,
) {
    let Some((stage, rest)) = stages.split_first_mut() else { return };
    if burst.is_empty() {
        return;
    }
    stage.call(ctx, |nf, ctx| nf.process_burst(burst, ctx));
    burst.conclude(ctx);
    if rest.is_empty() {
        return done.append(ctx.out);
    }
    let late = if ctx.out.is_empty() { Vec::new() } else { part_late(ctx, done) };
    burst.keep_what_goes_on(done);
    pass(rest, burst, ctx, done);
    for slot in late {
        pass_one(rest, slot, ctx, done);
    }
}

/// Of what a stage let go beside its burst, the packets that go on to the next stage; all else is done.
fn part_late(ctx: &mut Context<'_>, done: &mut Vec<Departure>) -> Vec<Slot> {
    let mut late = Vec::new();
    for departure in ctx.out.drain(..) {
        match departure.action {
            Action::Next => late.push(departure.slot),
            _ => done.push(departure),
        }
    }
    late
}

/// A single packet through stages; what becomes of it is in `done`.
fn pass_one(stages: &mut [Stage], slot: Slot, ctx: &mut Context<'_>, done: &mut Vec<Departure>) {
    let (mut lease, mut decisions) = ([slot.lease], Decisions::new());
    let mut burst = Burst::new(ctx.memory, &mut lease, &mut decisions, slot.arrival);
    let mut behind = Vec::new();
    pass(stages, &mut burst, ctx, &mut behind);
    burst.conclude(ctx);
    burst.take_all(done);
    done.append(&mut behind);
}

impl NetworkFunction for Fused {
    fn setup(&mut self, setup: &Setup) -> Result<(), NfError> {
        let mut jumps = setup.jump_services.iter();
        for stage in &mut self.stages {
            // Each sees its own targets, in its own order.
            let count = stage.nf.jumps_to().len();
            let jump_services = jumps.by_ref().take(count).copied().collect();
            stage.tick_due_ns = None;
            stage.sent.clear();
            stage.nf.setup(&Setup { jump_services, state: None, ..setup.clone() })?;
        }
        Ok(())
    }

    fn process_burst(&mut self, burst: &mut Burst<'_>, ctx: &mut Context<'_>) {
        let Self { stages, done } = self;
        // A loan that was refused, or an impossible descriptor, may have left already.
        let mut left = std::mem::take(ctx.out);
        pass(stages, burst, ctx, done);
        left.append(done);
        *ctx.out = left;
    }

    fn hold_limit_pkts(&self) -> usize {
        self.stages.iter().map(|stage| stage.nf.hold_limit_pkts()).sum()
    }

    fn loan_pkts(&self) -> u32 {
        self.stages.last().map_or(0, |last| last.nf.loan_pkts())
    }

    fn stock_pkts(&self) -> u32 {
        self.stages.last().map_or(0, |last| last.nf.stock_pkts())
    }

    fn fill(&mut self, packet: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
        self.stages.last_mut().map_or(Action::Drop, |last| last.nf.fill(packet, ctx))
    }

    fn jumps_to(&self) -> Vec<ServiceRef> {
        self.stages.iter().flat_map(|stage| stage.nf.jumps_to()).collect()
    }

    fn tick_interval(&self) -> Option<Duration> {
        self.stages.iter().filter_map(|stage| stage.nf.tick_interval()).min()
    }

    fn tick(&mut self, ctx: &mut Context<'_>) {
        let now_ns = ctx.now_ns();
        let shortest_ns = self.tick_interval().map_or(0, ns);
        for at in 0..self.stages.len() {
            let Some(interval_ns) = self.stages[at].nf.tick_interval().map(ns) else { continue };
            // The first tick of all comes after the shortest interval; each other waits for its own.
            let due_ns = *self.stages[at]
                .tick_due_ns
                .get_or_insert(now_ns.saturating_add(interval_ns - shortest_ns.min(interval_ns)));
            if now_ns >= due_ns {
                self.stages[at].tick_due_ns = Some(now_ns.saturating_add(interval_ns));
                self.call_quietly(at, ctx, |nf, ctx| nf.tick(ctx));
            }
        }
    }

    fn message(
        &mut self,
        from: Option<u32>,
        payload: &[u8],
        ctx: &mut Context<'_>,
    ) -> Result<Vec<u8>, String> {
        let (at, payload) = self.addressee(payload)?;
        self.call(at, ctx, |nf, ctx| nf.message(from, payload, ctx))
    }

    fn sent(
        &mut self,
        token: MessageToken,
        result: Result<u32, SendRefusal>,
        ctx: &mut Context<'_>,
    ) {
        let sender = self.stages.iter().position(|stage| stage.sent.contains(&token));
        let Some(at) = sender else { return };
        self.stages[at].sent.retain(|&waiting| waiting != token);
        self.call(at, ctx, |nf, ctx| nf.sent(token, result, ctx));
    }

    fn leaving(&mut self, ctx: &mut Context<'_>) {
        self.call_each(ctx, |nf, ctx| nf.leaving(ctx));
    }

    fn shutdown(&mut self) {
        for stage in &mut self.stages {
            stage.nf.shutdown();
        }
    }
}

fn ns(interval: Duration) -> u64 {
    u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "fused_tests.rs"]
mod tests;
