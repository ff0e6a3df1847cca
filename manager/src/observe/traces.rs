//! Traces: which packets to follow, and what was seen of them.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nflib::control::{ErrorCode, ErrorReply, TraceRequest, TraceStatus, TraceStep, TracedPacket};
use nflib::descriptor::{ActionCode, PortId};
use nflib::observe::NOBODY;

use super::Directory;
use super::changes::changes;
use super::journeys::{End, Journey, Journeys, PATIENCE_NS, Step};
use crate::flow::{FlowKey, Match};
use crate::plan::NfNumber;
use crate::worker::Following;

/// Traces at a time, at most.
pub const MAX_TRACES: usize = 16;
/// Packets of one trace, at most.
pub const MAX_TRACED_PKTS: u32 = 1000;
/// Bytes of a packet that are compared, unless the request says otherwise.
pub const DEFAULT_TRACED_BYTES: u16 = 128;
/// Bytes of a packet that are compared, at most.
pub const MAX_TRACED_BYTES: u16 = 1024;
/// What the packets of one trace take, bytes; then it ends.
const MAX_STORED_BYTES: usize = 4 << 20;

/// How much later than a packet is given up its trace may know of it, nanoseconds.
const SLACK_NS: u64 = 1_000_000_000;

/// A trace.
#[derive(Debug)]
struct Trace {
    id: u64,
    /// Under which workers mark its packets.
    slot: u16,
    request: TraceRequest,
    matches: Match,
    left: Arc<AtomicU32>,
    since_ns: u64,
    /// When it was seen that all packets are marked, nanoseconds of CLOCK_MONOTONIC.
    ended_ns: Option<u64>,
    torn_pkts: u64,
    packets: Vec<TracedPacket>,
    stored_bytes: usize,
}

impl Trace {
    fn is_done(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }

    fn marked_pkts(&self) -> u64 {
        self.request.count.saturating_sub(self.left.load(Ordering::Relaxed)).into()
    }

    /// Packets that were marked and not told of yet.
    fn missing_pkts(&self) -> u64 {
        self.marked_pkts().saturating_sub(self.packets.len() as u64 + self.torn_pkts)
    }

    fn status(&self, now_ns: u64) -> TraceStatus {
        TraceStatus {
            id: self.id,
            request: self.request.clone(),
            marked_pkts: self.marked_pkts(),
            torn_pkts: self.torn_pkts,
            done: self.is_done(),
            for_s: std::time::Duration::from_nanos(now_ns.saturating_sub(self.since_ns))
                .as_secs_f64(),
            packets: Vec::new(),
        }
    }
}

/// All traces.
#[derive(Debug, Default)]
pub struct Traces {
    traces: Vec<Trace>,
    last_id: u64,
    /// Slots are given in turn: packets of a forgotten trace are no other one's.
    next_slot: u16,
    generation: u64,
}

/// What is wrong with a request, if anything: bounds that hold whatever runs.
///
/// # Errors
/// One line.
pub fn check(request: &TraceRequest) -> Result<(), ErrorReply> {
    let invalid = |message: String| Err(ErrorReply { code: ErrorCode::Invalid, message });
    if !(1..=MAX_TRACED_PKTS).contains(&request.count) {
        let count = request.count;
        return invalid(format!("count is {count}: expected 1 to {MAX_TRACED_PKTS} packets"));
    }
    if request.bytes > MAX_TRACED_BYTES {
        let bytes = request.bytes;
        return invalid(format!("bytes is {bytes}: expected at most {MAX_TRACED_BYTES}"));
    }
    Ok(())
}

impl Traces {
    /// Starts a trace of packets that `matches` takes; `now_ns` is of CLOCK_MONOTONIC. Where there are as many as
    /// may be, the oldest that marks no more packets is forgotten.
    ///
    /// # Errors
    /// One line.
    pub fn start(
        &mut self,
        mut request: TraceRequest,
        matches: Match,
        now_ns: u64,
    ) -> Result<u64, ErrorReply> {
        check(&request)?;
        if request.bytes == 0 {
            request.bytes = DEFAULT_TRACED_BYTES;
        }
        if self.traces.len() >= MAX_TRACES {
            let Some(at) = self.traces.iter().position(Trace::is_done) else {
                let message = format!(
                    "{MAX_TRACES} traces wait for packets, no more can be: forget one (millrace trace \
                     forget ID)"
                );
                return Err(ErrorReply { code: ErrorCode::Exhausted, message });
            };
            self.traces.remove(at);
        }
        self.last_id += 1;
        let slot = self.free_slot();
        self.traces.push(Trace {
            id: self.last_id,
            slot,
            left: Arc::new(AtomicU32::new(request.count)),
            request,
            matches,
            since_ns: now_ns,
            ended_ns: None,
            torn_pkts: 0,
            packets: Vec::new(),
            stored_bytes: 0,
        });
        self.generation += 1;
        Ok(self.last_id)
    }

    fn free_slot(&mut self) -> u16 {
        loop {
            let slot = self.next_slot;
            self.next_slot = if slot + 1 < NOBODY { slot + 1 } else { 0 };
            if self.traces.iter().all(|trace| trace.slot != slot) {
                return slot;
            }
        }
    }

    /// Forgets a trace; returns its slot. `None` when there is none with this number.
    pub fn forget(&mut self, id: u64) -> Option<u16> {
        let at = self.traces.iter().position(|trace| trace.id == id)?;
        self.generation += 1;
        Some(self.traces.remove(at).slot)
    }

    /// Whether rings are to be read for some trace: its packets are not marked yet, or not all told of.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.traces.iter().any(|trace| !trace.is_done() || trace.missing_pkts() > 0)
    }

    /// Notes which traces have all their packets marked. To be called after each round.
    pub fn turn(&mut self, now_ns: u64) {
        for trace in self.traces.iter_mut().filter(|trace| trace.is_done()) {
            let ended_ns = *trace.ended_ns.get_or_insert_with(|| {
                self.generation += 1;
                now_ns
            });
            // Those whose first event was lost are not heard of any more.
            if now_ns.saturating_sub(ended_ns) > PATIENCE_NS + SLACK_NS {
                trace.torn_pkts += trace.missing_pkts();
            }
        }
    }

    /// Counts the changes of what workers are to mark.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What workers are to mark.
    #[must_use]
    pub fn following(&self) -> Vec<Following> {
        let marking = self.traces.iter().filter(|trace| !trace.is_done());
        let following = |trace: &Trace| Following {
            slot: trace.slot,
            matches: trace.matches,
            one_in: trace.request.one_in,
            left: Arc::clone(&trace.left),
        };
        marking.map(following).collect()
    }

    /// First bytes of marked packets that are to be kept: as many as the most curious trace wants. Packets may be under
    /// way after their trace marks no more.
    #[must_use]
    pub fn kept_bytes(&self) -> u16 {
        self.traces.iter().map(|trace| trace.request.bytes).max().unwrap_or(0)
    }

    /// Takes a way that is complete. `unix_offset_ns` makes of a time of CLOCK_MONOTONIC one since 1970.
    pub fn take(&mut self, journey: &Journey, directory: &Directory, unix_offset_ns: u64) {
        let slot = journey.trace;
        let Some(trace) = self.traces.iter_mut().find(|trace| Some(trace.slot) == slot) else {
            return;
        };
        let is_full = trace.stored_bytes >= MAX_STORED_BYTES;
        if journey.torn || is_full {
            trace.torn_pkts += 1;
            if is_full {
                trace.left.store(0, Ordering::Relaxed);
            }
            return;
        }
        let packet = traced(journey, trace.request.bytes, directory, unix_offset_ns);
        trace.stored_bytes += stored_bytes(&packet);
        // Ways are told when they are known; they are listed by their begin.
        let at = trace.packets.partition_point(|p| p.time_unix_ns <= packet.time_unix_ns);
        trace.packets.insert(at, packet);
    }

    /// One trace with its packets, also those that are still inside; or all, without packets.
    ///
    /// # Errors
    /// One line: there is no such trace.
    pub fn status(
        &self,
        id: Option<u64>,
        journeys: &Journeys,
        directory: &Directory,
        now_ns: u64,
        unix_offset_ns: u64,
    ) -> Result<Vec<TraceStatus>, ErrorReply> {
        let Some(id) = id else {
            return Ok(self.traces.iter().map(|trace| trace.status(now_ns)).collect());
        };
        let trace = self.traces.iter().find(|trace| trace.id == id).ok_or_else(|| absent(id))?;
        let mut status = trace.status(now_ns);
        status.packets.clone_from(&trace.packets);
        let mut room_bytes = MAX_STORED_BYTES;
        journeys.inside(trace.slot, directory, &mut |mut journey| {
            if room_bytes == 0 {
                return;
            }
            // It may be about to come out.
            journey.end_ns = now_ns;
            let packet = traced(&journey, trace.request.bytes, directory, unix_offset_ns);
            room_bytes = room_bytes.saturating_sub(stored_bytes(&packet));
            status.packets.push(packet);
        });
        status.packets.sort_by_key(|packet| packet.time_unix_ns);
        Ok(vec![status])
    }
}

/// There is no trace with this number.
#[must_use]
pub fn absent(id: u64) -> ErrorReply {
    let message = format!("there is no trace {id}; see millrace trace list");
    ErrorReply { code: ErrorCode::NotFound, message }
}

/// About what a packet takes, bytes, here and as a message.
fn stored_bytes(packet: &TracedPacket) -> usize {
    let step = |step: &TraceStep| {
        let change =
            |change: &nflib::control::ByteChange| 100 + change.before.len() + change.after.len();
        300 + step.changed.iter().map(change).sum::<usize>()
    };
    500 + packet.steps.iter().map(step).sum::<usize>()
}

/// A way as it is told.
fn traced(
    journey: &Journey,
    bytes: u16,
    directory: &Directory,
    unix_offset_ns: u64,
) -> TracedPacket {
    let begin = &journey.begin;
    let name = |port: PortId| port_name(port.into(), directory);
    let ingress = PortId::try_from(begin.target).unwrap_or(begin.ingress);
    let key = FlowKey::parse_start(&journey.first.kept, begin.len_bytes.into(), ingress, 0, 0);
    let mut steps = vec![TraceStep {
        place: format!("port:{}", name(ingress)),
        len_bytes: begin.len_bytes,
        ..TraceStep::default()
    }];
    let mut left_ns = begin.time_ns;
    for step in &journey.steps {
        steps.push(stay(step, journey, bytes, directory));
        left_ns = step.out_ns.unwrap_or(step.in_ns);
    }
    let (end, last) = ending(journey, left_ns, directory);
    steps.extend(last);
    TracedPacket {
        time_unix_ns: begin.time_ns.saturating_add(unix_offset_ns),
        key: key.to_spec(&name),
        len_bytes: begin.len_bytes,
        chain: journey.chain.as_ref().map(ToString::to_string),
        total_ns: journey.end_ns.saturating_sub(begin.time_ns),
        end,
        steps,
    }
}

fn stay(step: &Step, journey: &Journey, bytes: u16, directory: &Directory) -> TraceStep {
    let out_ns = step.out_ns.unwrap_or(journey.end_ns);
    let cut = |view: &super::journeys::View| super::journeys::View {
        kept: view.kept[..view.kept.len().min(bytes.into())].into(),
        ..view.clone()
    };
    let after = step.after.as_ref();
    let (moved_bytes, changed) =
        after.map_or_else(Default::default, |after| changes(&cut(&step.before), &cut(after)));
    let from = match step.from {
        None => "manager".to_owned(),
        Some(nf) => nf_place(nf, step.in_ns, directory),
    };
    TraceStep {
        place: nf_place(step.nf, step.in_ns, directory),
        service: step.name.as_ref().map(|name| name.service_name.to_string()),
        at_ns: step.in_ns.saturating_sub(journey.begin.time_ns),
        wait_ns: step.wait_ns,
        took_ns: out_ns.saturating_sub(step.in_ns),
        from: Some(from),
        action: action(step, directory),
        len_bytes: after.map_or(step.before.len_bytes, |after| after.len_bytes),
        moved_bytes,
        changed,
    }
}

/// What was decided, in words: `next`, `drop`, `out wan`, `to firewall`, `hold`; `hold, next` for one that was
/// let go later.
fn action(step: &Step, directory: &Directory) -> Option<String> {
    let decided = step.action.map(|(code, target)| match ActionCode::from_code(code) {
        Some(ActionCode::Drop) => "drop".to_owned(),
        Some(ActionCode::Next) => "next".to_owned(),
        Some(ActionCode::Out) => format!("out {}", port_name(target, directory)),
        Some(ActionCode::ToService) => {
            let name = directory.service_by_id(target).map(|service| service.name.to_string());
            format!("to {}", name.unwrap_or_else(|| target.to_string()))
        }
        Some(ActionCode::Branch) => format!("branch {target:#06x}"),
        Some(ActionCode::Refused) => "refused by the next ring".to_owned(),
        None => format!("unknown ({code})"),
    });
    match (step.held, decided) {
        (true, Some(decided)) => Some(format!("hold, {decided}")),
        (true, None) => Some("hold".to_owned()),
        (false, decided) => decided,
    }
}

/// What became of it, and the last place it was seen at.
fn ending(journey: &Journey, left_ns: u64, directory: &Directory) -> (String, Option<TraceStep>) {
    let step = |place: String, service: Option<String>| TraceStep {
        place,
        service,
        at_ns: journey.end_ns.saturating_sub(journey.begin.time_ns),
        wait_ns: journey.end_ns.saturating_sub(left_ns),
        len_bytes: journey.last.as_ref().map_or(0, |last| last.len_bytes),
        ..TraceStep::default()
    };
    match journey.end {
        End::Sent { port } => {
            let name = port_name(port, directory);
            (format!("sent by {name}"), Some(step(format!("port:{name}"), None)))
        }
        End::Dropped { reason, slot } => {
            let why = Directory::reason(reason).unwrap_or("unknown");
            let at = directory.service(slot).filter(|_| slot != NOBODY);
            let service = at.map(|service| service.name.to_string());
            let end = match &service {
                Some(service) => format!("dropped at {service} ({why})"),
                None => format!("dropped ({why})"),
            };
            (end, Some(step(Directory::drop_place(reason), service)))
        }
        End::Inside => ("still inside".to_owned(), None),
    }
}

fn nf_place(nf: NfNumber, time_ns: u64, directory: &Directory) -> String {
    directory.nf(nf, time_ns).map_or_else(|| format!("nf:{nf}"), |name| name.place())
}

fn port_name(port: u16, directory: &Directory) -> String {
    let known = PortId::try_from(port).ok().and_then(|port| directory.port(port));
    known.map_or_else(|| port.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests;
