//! A packet's events, put in a row.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use nflib::descriptor::{ActionCode, RouteId};
use nflib::observe::{Event, EventKind, NOBODY};

use super::super::Directory;
use super::{End, Journey, Packet, Place, Seen, Step, View};

/// Events of one moment among which the one that comes next is looked for.
const LOOKAHEAD: usize = 16;

/// The way that a packet's events tell, and how many of them are no part of it: of NFs that its route does not
/// visit.
pub fn walk(packet: &Packet, seen: Vec<Seen>, directory: &Directory) -> (Journey, u64) {
    let mut walk = Walk {
        packet,
        directory,
        steps: Vec::new(),
        left_ns: packet.begin.time_ns,
        seen_ns: packet.begin.time_ns,
        torn: false,
        is_inside: false,
        last_route: packet.begin.route,
    };
    let count = seen.len();
    let mut events: Vec<_> = seen.into_iter().filter(|seen| walk.is_possible(seen)).collect();
    let strange = (count - events.len()) as u64;
    // Stable: what an NF wrote in one moment stays in its order.
    events.sort_by_key(|seen| seen.event.time_ns);
    let told: Vec<_> = events
        .iter()
        .map(|s| (s.nf, s.event.kind, s.event.time_ns, s.event.hop, s.event.peer))
        .collect();
    let mut events = VecDeque::from(events);
    while let Some(first) = events.front() {
        let time_ns = first.event.time_ns;
        // Of several at one moment, one that can come next: NFs' rings were read in any order.
        let moment = events.iter().take(LOOKAHEAD).take_while(|seen| seen.event.time_ns == time_ns);
        let next =
            moment.enumerate().find(|(_, seen)| walk.can_follow(seen)).map_or(0, |(at, _)| at);
        if let Some(seen) = events.remove(next) {
            walk.take(seen);
        }
    }
    let journey = walk.finish();
    if journey.torn {
        tracing::debug!(?journey, ?told, suspect = packet.suspect, strange, "a way is torn");
    }
    (journey, strange)
}

struct Walk<'a> {
    packet: &'a Packet,
    directory: &'a Directory,
    steps: Vec<Step>,
    /// When the last place let it go.
    left_ns: u64,
    /// When it was last seen.
    seen_ns: u64,
    torn: bool,
    /// The NF of the last step has it.
    is_inside: bool,
    /// The route that the last event of an NF named.
    last_route: RouteId,
}

impl Walk<'_> {
    /// Routes of a packet were all written before it came in.
    fn place(&self, event: &Event) -> Option<Place> {
        let begin_ns = self.packet.begin.time_ns;
        let (chain, hop) = self.directory.hop(event.route, event.hop, begin_ns)?;
        Some(Place { chain: Arc::clone(chain), hop: event.hop, service: Arc::clone(&hop.name) })
    }

    /// Whether an NF can have met the packet where it says so.
    fn is_possible(&self, seen: &Seen) -> bool {
        let event = &seen.event;
        let Some(name) = self.directory.nf(seen.nf, event.time_ns) else { return false };
        if event.hop == Event::NO_HOP {
            return true;
        }
        let hop = self.directory.hop(event.route, event.hop, self.packet.begin.time_ns);
        hop.is_some_and(|(_, hop)| hop.service == name.service)
    }

    fn can_follow(&self, seen: &Seen) -> bool {
        let last = self.steps.last();
        match seen.event.kind {
            EventKind::NfIn => {
                let from = seen.event.peer;
                !self.is_inside && (from == NOBODY || last.is_some_and(|last| last.nf == from))
            }
            EventKind::NfOut | EventKind::NfHold => {
                self.is_inside && last.is_some_and(|last| last.nf == seen.nf)
            }
            _ => false,
        }
    }

    fn take(&mut self, seen: Seen) {
        self.torn |= !self.can_follow(&seen);
        let event = seen.event;
        self.seen_ns = event.time_ns;
        self.last_route = event.route;
        let view =
            View { offset_bytes: event.offset_bytes, len_bytes: event.len_bytes, kept: seen.kept };
        if event.kind == EventKind::NfIn {
            self.steps.push(Step {
                nf: seen.nf,
                name: self.directory.nf(seen.nf, event.time_ns).cloned(),
                place: self.place(&event),
                from: Some(event.peer).filter(|&peer| peer != NOBODY),
                wait_ns: event.time_ns.saturating_sub(self.left_ns),
                in_ns: event.time_ns,
                out_ns: None,
                held: false,
                action: None,
                before: view,
                after: None,
            });
            self.is_inside = true;
            return;
        }
        let Some(step) = self.steps.last_mut().filter(|step| step.nf == seen.nf) else { return };
        if event.kind == EventKind::NfHold {
            step.held = true;
            return;
        }
        step.out_ns = Some(event.time_ns);
        step.action = Some((event.code, event.target));
        step.after = Some(view);
        self.left_ns = event.time_ns;
        self.is_inside = false;
    }

    fn finish(mut self) -> Journey {
        let packet = self.packet;
        let (end, end_ns, last) = match &packet.end {
            None => (End::Inside, self.seen_ns, None),
            Some((event, kept, _)) => {
                let end = match event.kind {
                    EventKind::Drop => End::Dropped { reason: event.code, slot: event.target },
                    _ => End::Sent { port: event.target },
                };
                let (offset_bytes, len_bytes) = (event.offset_bytes, event.len_bytes);
                let last = View { offset_bytes, len_bytes, kept: kept.clone() };
                (end, event.time_ns, Some(last))
            }
        };
        // One that an NF had when it died is dropped; sent it cannot be.
        self.torn |= self.is_inside && matches!(end, End::Sent { .. });
        self.torn |= packet.suspect && !self.is_whole(end);
        let of_end = packet.end.as_ref().and_then(|(event, ..)| self.place(event));
        let first = self.steps.iter().find_map(|step| step.place.clone());
        let place = first.or_else(|| self.place(&packet.begin)).or(of_end);
        Journey {
            trace: Some(packet.begin.peer).filter(|&slot| slot != NOBODY),
            torn: self.torn,
            begin: packet.begin,
            first: View {
                offset_bytes: packet.begin.offset_bytes,
                len_bytes: packet.begin.len_bytes,
                kept: packet.first.clone(),
            },
            chain: place.map(|place| place.chain),
            steps: self.steps,
            end,
            end_ns,
            last,
        }
    }

    /// Whether nothing can be missing, by the hops: to be asked when events were lost.
    fn is_whole(&self, end: End) -> bool {
        let hop = |step: &Step| step.place.as_ref().map(|place| place.hop);
        let Some((first, last)) = self.steps.first().zip(self.steps.last()) else {
            // All of its NFs may have lost it.
            return matches!(end, End::Dropped { .. });
        };
        let follows = |pair: &[Step]| {
            let action = pair[0].action.and_then(|(code, _)| ActionCode::from_code(code));
            let same_chain = match (&pair[0].place, &pair[1].place) {
                (Some(before), Some(after)) => before.chain == after.chain,
                _ => false,
            };
            match action {
                Some(ActionCode::Next) if same_chain => {
                    hop(&pair[0]).map(|hop| hop + 1) == hop(&pair[1])
                }
                Some(ActionCode::Next | ActionCode::Branch) => hop(&pair[1]) == Some(0),
                Some(ActionCode::ToService) => true,
                _ => false,
            }
        };
        let ends = match end {
            End::Inside | End::Dropped { .. } => true,
            End::Sent { .. } => self.is_last_hop(last),
        };
        hop(first) == Some(0) && self.steps.windows(2).all(follows) && ends
    }

    /// Whether what the last NF decided leads out.
    fn is_last_hop(&self, last: &Step) -> bool {
        match last.action.and_then(|(code, _)| ActionCode::from_code(code)) {
            Some(ActionCode::Out) => true,
            Some(ActionCode::Next) => {
                let route = self.directory.route(self.last_route, self.packet.begin.time_ns);
                let hops = route.map(|route| route.hops.len());
                let next = last.place.as_ref().map(|place| usize::from(place.hop) + 1);
                hops.is_some() && hops == next
            }
            _ => false,
        }
    }
}
