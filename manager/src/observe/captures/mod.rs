//! Captures under way: events of taps, written as pcapng into pipes.
//!
//! Who asks for a capture gets the reading end of a pipe. Nothing here waits for it: a block that does not
//! fit is left out as a whole and counted, so that a reader that is slow, or stops, loses packets of its
//! capture and nobody else loses anything. Memory is bounded by what one capture may have waiting
//! (`staged`, `outlet`), its interfaces, and the number of captures.
//!
//! The observer owns it: [`Captures::on_event`] for each event from a ring, [`Captures::turn`] after each
//! round, and whenever [`Captures::generation`] has changed, the taps to those who serve them.
#![forbid(unsafe_code)]

mod comment;
mod outlet;
mod session;
mod staged;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use nflib::control::{CaptureRequest, CaptureStatus, ErrorCode, ErrorReply};
use nflib::observe::{Event, Filter, MAX_KEPT_BYTES, MAX_TAPS, TapId, TapSpec};

use super::directory::Directory;
use super::points::{Point, Where};
use crate::plan::NfNumber;
use outlet::Outlet;
use session::{Session, Wanted};

pub use super::points::Source;

/// Most captures at a time.
pub const MAX_CAPTURES: usize = 16;
/// Longest name and text of a filter that are kept to be shown, bytes.
const MAX_SHOWN_BYTES: usize = 1024;

/// All captures.
#[derive(Debug, Default)]
pub struct Captures {
    sessions: Vec<Session>,
    last_id: u64,
    /// Counts changes of the taps.
    generation: u64,
    /// The directory that the taps are made from.
    directory_generation: u64,
    taps: BTreeMap<Where, Vec<TapSpec>>,
    /// When a number was last in use, nanoseconds: what is in rings still bears it for a while.
    freed_ns: [u64; MAX_TAPS],
    /// What each ring has lost since its start.
    lost_pkts: BTreeMap<Source, u64>,
    strange_events: u64,
}

impl Captures {
    /// No capture.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a capture: its number, and where it can be read. `now_ns` is of CLOCK_MONOTONIC, as in events.
    ///
    /// # Errors
    /// One line: a point or a filter that is none, too many captures or taps, or what the kernel said.
    pub fn start(
        &mut self,
        request: &CaptureRequest,
        directory: &Directory,
        now_ns: u64,
    ) -> Result<(u64, OwnedFd), ErrorReply> {
        let points = points_of(request, directory)?;
        Filter::new(&request.filter)
            .map_err(|error| refusal(ErrorCode::Invalid, error.to_string()))?;
        if self.sessions.len() >= MAX_CAPTURES {
            return Err(refusal(
                ErrorCode::Exhausted,
                format!("{MAX_CAPTURES} captures are under way, no more can be: end one"),
            ));
        }
        let ids = self.free_taps(points.len())?;
        let (outlet, reader) = Outlet::create()
            .map_err(|error| refusal(ErrorCode::Exhausted, format!("no pipe: {error}")))?;
        self.last_id += 1;
        let wanted = Wanted {
            name: shown(&request.name),
            at: request.at.clone(),
            filter: request.filter.clone(),
            filter_text: shown(&request.filter_text),
            points: ids.into_iter().zip(points).collect(),
            snap_bytes: match request.snap_bytes {
                0 => MAX_KEPT_BYTES,
                some => some.min(MAX_KEPT_BYTES),
            },
            max_pkts: Some(request.max_pkts).filter(|&pkts| pkts > 0),
            ends_ns: Some(request.max_ms)
                .filter(|&ms| ms > 0)
                .map(|ms| now_ns.saturating_add(ms.saturating_mul(1_000_000))),
        };
        self.sessions.push(Session::new(self.last_id, wanted, outlet, now_ns));
        self.set_taps(directory);
        Ok((self.last_id, reader))
    }

    /// Numbers for new taps: those that were free for longest.
    fn free_taps(&self, count: usize) -> Result<Vec<TapId>, ErrorReply> {
        let used = self.used_taps();
        let mut free: Vec<_> = (0..MAX_TAPS).filter(|id| used & 1 << id == 0).collect();
        free.sort_by_key(|&id| self.freed_ns[id]);
        if count > free.len() {
            let message = format!(
                "{count} places to capture at, and {} of {MAX_TAPS} are left: name fewer, or end a \
                 capture",
                free.len()
            );
            return Err(refusal(ErrorCode::Exhausted, message));
        }
        Ok(free.into_iter().take(count).map(|id| id as TapId).collect())
    }

    fn used_taps(&self) -> u32 {
        self.sessions.iter().fold(0, |taps, session| taps | session.taps())
    }

    /// An event that a ring held, and the bytes that were kept. All of it is the word of its source.
    pub fn on_event(
        &mut self,
        source: &Source,
        event: &Event,
        bytes: &[u8],
        directory: &Directory,
    ) {
        // What is left of captures that have ended.
        let taps = event.taps & self.used_taps();
        if taps == 0 {
            return;
        }
        let kept_bytes = bytes.len();
        let possible = kept_bytes == usize::from(event.kept_bytes)
            && kept_bytes <= usize::from(event.len_bytes.min(MAX_KEPT_BYTES));
        if !possible {
            self.strange_events += 1;
            return;
        }
        for session in self.sessions.iter_mut().filter(|session| session.taps() & taps != 0) {
            self.strange_events += session.on_event(*source, event, bytes, directory);
        }
    }

    /// After a round, begun later than the last call: what has to be written is, captures that are over end, and taps follow the directory.
    /// `lost` are the events that each ring has lost since its start.
    pub fn turn(&mut self, now_ns: u64, lost: &[(Source, u64)], directory: &Directory) {
        for &(source, lost_pkts) in lost {
            let before = self.lost_pkts.insert(source, lost_pkts).unwrap_or(0);
            // A ring that begins anew, or an NF that says anything, takes nothing back.
            let more_pkts = lost_pkts.saturating_sub(before);
            if more_pkts > 0 {
                self.sessions.iter_mut().for_each(|session| session.lost(source, more_pkts));
            }
        }
        for session in &mut self.sessions {
            session.turn(now_ns, directory);
        }
        self.release_ended(now_ns, directory);
        self.sessions.retain(|session| !session.is_closed());
        if directory.generation != self.directory_generation {
            self.set_taps(directory);
            let known = |&source: &Source| match source {
                Source::Worker(_) => true,
                Source::Nf(number) => directory.nfs().any(|nf| nf.nf == number),
            };
            self.lost_pkts.retain(|source, _| known(source));
        }
    }

    /// Ends a capture, as its reader's going away does.
    pub fn end(&mut self, id: u64, now_ns: u64, directory: &Directory) {
        if let Some(session) = self.sessions.iter_mut().find(|session| session.id() == id) {
            session.end(now_ns, directory);
        }
        self.turn(now_ns, &[], directory);
    }

    /// Takes back the taps of captures that have ended just now.
    fn release_ended(&mut self, now_ns: u64, directory: &Directory) {
        let mut released = 0;
        for session in &mut self.sessions {
            released |= session.take_released();
        }
        if released != 0 {
            for (id, freed_ns) in self.freed_ns.iter_mut().enumerate() {
                if released & 1 << id != 0 {
                    *freed_ns = now_ns.max(1);
                }
            }
            self.set_taps(directory);
        }
    }

    fn set_taps(&mut self, directory: &Directory) {
        let mut taps: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for session in &mut self.sessions {
            for (at, spec) in session.tap_specs(directory) {
                taps.entry(at).or_default().push(spec);
            }
        }
        self.directory_generation = directory.generation;
        if taps != self.taps {
            self.taps = taps;
            self.generation += 1;
        }
    }

    /// Counts the changes of what [`taps_for_workers`](Self::taps_for_workers) and
    /// [`taps_for_nf`](Self::taps_for_nf) say.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The taps of every worker.
    #[must_use]
    pub fn taps_for_workers(&self) -> &[TapSpec] {
        self.taps.get(&Where::Workers).map_or(&[], Vec::as_slice)
    }

    /// The taps of an NF.
    #[must_use]
    pub fn taps_for_nf(&self, nf: NfNumber) -> &[TapSpec] {
        self.taps.get(&Where::Nf(nf)).map_or(&[], Vec::as_slice)
    }

    /// True while rings are to be read and [`turn`](Self::turn) to be called, for captures that run or have
    /// something left to write.
    #[must_use]
    pub fn is_active(&self) -> bool {
        !self.sessions.is_empty()
    }

    /// Events that bore a tap and could not be of it.
    #[must_use]
    pub fn strange_events(&self) -> u64 {
        self.strange_events
    }

    /// The captures, by number.
    #[must_use]
    pub fn status(&self, now_ns: u64) -> Vec<CaptureStatus> {
        self.sessions.iter().map(|session| session.status(now_ns)).collect()
    }
}

fn points_of(request: &CaptureRequest, directory: &Directory) -> Result<Vec<Point>, ErrorReply> {
    if request.at.is_empty() {
        let message = "no place to capture at: name one, as `millrace capture points` lists them";
        return Err(refusal(ErrorCode::Invalid, message.to_owned()));
    }
    if request.at.len() > MAX_TAPS {
        let message =
            format!("{} places to capture at, expected at most {MAX_TAPS}", request.at.len());
        return Err(refusal(ErrorCode::Invalid, message));
    }
    let parse = |text: &String| Point::parse(text, directory);
    let points: Result<Vec<_>, _> = request.at.iter().map(parse).collect();
    points.map_err(|error| refusal(ErrorCode::NotFound, error.to_string()))
}

fn refusal(code: ErrorCode, message: String) -> ErrorReply {
    ErrorReply { code, message }
}

/// The beginning of a text of others, on one line.
fn shown(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        if shown.len() + c.len_utf8() > MAX_SHOWN_BYTES {
            break;
        }
        shown.push(if c.is_control() { ' ' } else { c });
    }
    shown
}

#[cfg(test)]
mod tests;
