//! One capture: what it wants, what it has seen, and the file it writes.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use nflib::control::{CaptureStatus, FilterStep};
use nflib::observe::{Event, EventKind, TapId, TapSpec};
use nix::sys::utsname::uname;
use nix::time::{ClockId, clock_gettime};

use super::comment::comment;
use super::outlet::Outlet;
use super::staged::Stage;
use super::{Point, Source, Where};
use crate::observe::directory::Directory;
use crate::observe::pcapng::{self, Direction};
use crate::observe::points::{End, Place};

/// Most interfaces of a file: NFs that come and go add to them for as long as a capture runs.
const MAX_INTERFACES: usize = 1024;

/// What was asked for, checked.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) at: Vec<String>,
    pub(super) filter: Vec<FilterStep>,
    pub(super) filter_text: String,
    /// Each point, and the number of its taps.
    pub(super) points: Vec<(TapId, Point)>,
    pub(super) snap_bytes: u16,
    pub(super) max_pkts: Option<u64>,
    /// When it is over, nanoseconds of CLOCK_MONOTONIC.
    pub(super) ends_ns: Option<u64>,
}

/// An interface of the file.
#[derive(Debug)]
struct Interface {
    /// Whose ring its packets come by.
    by: Where,
    /// It is the first of that ring: what the ring loses could be of any place it serves, and is told here,
    /// so that it is told once.
    is_first: bool,
    taken_pkts: u64,
    written_pkts: u64,
    /// Of those taken, not written since the reader was slow.
    full_pkts: u64,
    /// Losses that the last packet written has told of.
    told_pkts: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// It has its last block; its taps are to be taken back.
    Ended,
    /// They were; what waits is still to be written.
    Released,
}

#[derive(Debug)]
pub(super) struct Session {
    id: u64,
    wanted: Wanted,
    outlet: Outlet,
    phase: Phase,
    started_ns: u64,
    /// Until then everything has been read from all rings.
    read_until_ns: u64,
    stage: Stage,
    /// Unix time less CLOCK_MONOTONIC, nanoseconds: one for all of a file, so that its times do not jump.
    unix_less_monotonic_ns: i128,
    interfaces: Vec<Interface>,
    by_place: HashMap<Place, u32>,
    pkts: u64,
    full_pkts: u64,
    /// Whose rings its packets have come by.
    rings: BTreeSet<Where>,
    /// What those rings have lost since its begin, whoever wanted it.
    ring_lost_pkts: BTreeMap<Where, u64>,
    comment: String,
    block: Vec<u8>,
}

impl Session {
    pub(super) fn new(id: u64, wanted: Wanted, outlet: Outlet, now_ns: u64) -> Self {
        let mut session = Self {
            id,
            wanted,
            outlet,
            phase: Phase::Running,
            started_ns: now_ns,
            read_until_ns: 0,
            stage: Stage::default(),
            unix_less_monotonic_ns: unix_less_monotonic_ns(),
            interfaces: Vec::new(),
            by_place: HashMap::new(),
            pkts: 0,
            full_pkts: 0,
            rings: BTreeSet::new(),
            ring_lost_pkts: BTreeMap::new(),
            comment: String::new(),
            block: Vec::new(),
        };
        session.begin();
        session
    }

    fn begin(&mut self) {
        let system = uname();
        let field = |of: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
            system.as_ref().map(|s| of(s).to_string_lossy().into_owned()).unwrap_or_default()
        };
        let os = format!("{} {}", field(|s| s.sysname()), field(|s| s.release()));
        let section = pcapng::Section {
            application: concat!("Millrace ", env!("CARGO_PKG_VERSION")),
            hardware: &field(|s| s.machine()),
            os: &os,
            comment: &format!("capture {} at {}", self.id, self.wanted.at.join(", ")),
        };
        let mut block = Vec::new();
        pcapng::section(&mut block, &section);
        self.outlet.put(&block);
        self.outlet.flush();
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The numbers of its taps, a bit each; none when it is over.
    pub(super) fn taps(&self) -> u32 {
        match self.phase {
            Phase::Running => self.all_taps(),
            Phase::Ended | Phase::Released => 0,
        }
    }

    fn all_taps(&self) -> u32 {
        self.wanted.points.iter().fold(0, |taps, (id, _)| taps | 1 << id)
    }

    /// Its taps, if it has ended and they were not taken back yet.
    pub(super) fn take_released(&mut self) -> u32 {
        if self.phase != Phase::Ended {
            return 0;
        }
        self.phase = Phase::Released;
        self.all_taps()
    }

    /// The taps to set for it now.
    pub(super) fn tap_specs(&mut self, directory: &Directory) -> Vec<(Where, TapSpec)> {
        if self.phase != Phase::Running {
            return Vec::new();
        }
        let Wanted { points, filter, snap_bytes, .. } = &self.wanted;
        let specs: Vec<_> = points
            .iter()
            .flat_map(|(id, point)| point.taps(*id, filter, *snap_bytes, directory))
            .collect();
        self.rings.extend(specs.iter().map(|(at, _)| *at));
        specs
    }

    /// Events that a ring has lost since it was asked last.
    pub(super) fn lost(&mut self, source: Source, more_pkts: u64) {
        let ring = ring_of(source);
        if self.phase == Phase::Running && self.rings.contains(&ring) {
            let lost_pkts = self.ring_lost_pkts.entry(ring).or_default();
            *lost_pkts = lost_pkts.saturating_add(more_pkts);
        }
    }

    /// Takes the packet, once for each of its places here. Returns how often the event bore a tap and could
    /// not be of it.
    pub(super) fn on_event(
        &mut self,
        source: Source,
        event: &Event,
        bytes: &[u8],
        directory: &Directory,
    ) -> u64 {
        let mut strange = 0;
        let mut seen: Vec<Place> = Vec::new();
        for at in 0..self.wanted.points.len() {
            let (id, point) = &self.wanted.points[at];
            if event.taps & 1 << id == 0 || self.phase != Phase::Running {
                continue;
            }
            match point.place_of(source, event, directory) {
                Some(place) if seen.contains(&place) => {}
                Some(place) => {
                    seen.push(place);
                    let kept = &bytes[..bytes.len().min(self.wanted.snap_bytes.into())];
                    if self.stage.is_full_for(kept.len()) {
                        self.write_until(u64::MAX, u64::MAX, directory);
                    }
                    self.stage.push(place, source, *event, kept);
                }
                // The taps of such a ring take all that its NF passes on.
                None if matches!(point, Point::Ring { to: End::Manager, .. }) => {}
                None => strange += 1,
            }
        }
        strange
    }

    /// Writes the packets that are not younger than `until_ns`, in their order.
    fn write_until(&mut self, until_ns: u64, now_ns: u64, directory: &Directory) {
        for (packet, bytes) in self.stage.take_until(until_ns, now_ns).each() {
            if self.wanted.max_pkts.is_some_and(|max_pkts| self.pkts >= max_pkts) {
                return;
            }
            self.packet(packet.place, packet.source, &packet.event, bytes, directory);
        }
    }

    fn packet(
        &mut self,
        place: Place,
        source: Source,
        event: &Event,
        bytes: &[u8],
        directory: &Directory,
    ) {
        self.block.clear();
        let known = self.by_place.get(&place).copied();
        let number = known.unwrap_or(self.interfaces.len() as u32);
        if known.is_none() {
            if self.interfaces.len() >= MAX_INTERFACES {
                self.full_pkts += 1;
                return;
            }
            self.describe(place, source, event, directory);
        }
        let (taken, lost_pkts) = match self.interfaces.get(number as usize) {
            Some(interface) => {
                let lost_pkts = self.lost_at(interface);
                (interface.taken_pkts, lost_pkts.saturating_sub(interface.told_pkts))
            }
            None => (0, 0),
        };
        comment(&mut self.comment, source, event, directory);
        let packet = pcapng::Packet {
            interface: number,
            time_unix_ns: self.unix_ns(event.time_ns),
            bytes,
            original_bytes: event.len_bytes.into(),
            direction: direction(place, event.kind),
            // The first packet at a place has none before it.
            lost_pkts: Some(lost_pkts).filter(|_| taken > 0),
            queue: match (place, source) {
                (Place::Port(_), Source::Worker(worker)) => Some(worker.into()),
                _ => None,
            },
            id: None,
            comment: &self.comment,
        };
        pcapng::packet(&mut self.block, &packet);
        let written = self.outlet.put(&self.block);
        if known.is_none() && written {
            self.by_place.insert(place, number);
            self.interfaces.push(self.interface(ring_of(source)));
        }
        self.count(number, written);
    }

    fn interface(&self, by: Where) -> Interface {
        let is_first = self.interfaces.iter().all(|other| other.by != by);
        let (taken_pkts, written_pkts, full_pkts, told_pkts) = (0, 0, 0, 0);
        let new = Interface { by, is_first, taken_pkts, written_pkts, full_pkts, told_pkts };
        // What was lost before its first packet no packet tells.
        Interface { told_pkts: self.ring_lost_at(&new), ..new }
    }

    fn count(&mut self, number: u32, written: bool) {
        self.pkts += u64::from(written);
        self.full_pkts += u64::from(!written);
        let Some(told_pkts) = self.interfaces.get(number as usize).map(|i| self.lost_at(i)) else {
            return;
        };
        let interface = &mut self.interfaces[number as usize];
        interface.taken_pkts += 1;
        interface.written_pkts += u64::from(written);
        interface.full_pkts += u64::from(!written);
        if written {
            interface.told_pkts = told_pkts;
        }
    }

    /// Packets that were lost at an interface: its reader was slow, or the ring was full.
    fn lost_at(&self, interface: &Interface) -> u64 {
        interface.full_pkts.saturating_add(self.ring_lost_at(interface))
    }

    fn ring_lost_at(&self, interface: &Interface) -> u64 {
        let lost_pkts = self.ring_lost_pkts.get(&interface.by).copied();
        lost_pkts.filter(|_| interface.is_first).unwrap_or(0)
    }

    fn describe(&mut self, place: Place, source: Source, event: &Event, directory: &Directory) {
        let interface = pcapng::Interface {
            name: &place.name(source, event, directory),
            description: place.description(),
            filter: &self.wanted.filter_text,
            snap_bytes: self.wanted.snap_bytes.into(),
        };
        pcapng::interface(&mut self.block, &interface);
    }

    /// After a round of events.
    pub(super) fn turn(&mut self, now_ns: u64, directory: &Directory) {
        if self.phase == Phase::Running {
            self.write_until(self.read_until_ns, now_ns, directory);
            // What is as old as this will have been read after the next round.
            self.read_until_ns = now_ns;
        }
        self.outlet.flush();
        let late = self.wanted.ends_ns.is_some_and(|ends_ns| now_ns >= ends_ns);
        let enough = self.wanted.max_pkts.is_some_and(|max_pkts| self.pkts >= max_pkts);
        if late || enough || self.outlet.is_closed() {
            self.end(now_ns, directory);
        }
    }

    /// Writes what there is and what was counted; nothing more comes.
    pub(super) fn end(&mut self, now_ns: u64, directory: &Directory) {
        if self.phase != Phase::Running {
            return;
        }
        self.write_until(u64::MAX, now_ns, directory);
        self.phase = Phase::Ended;
        let time_unix_ns = self.unix_ns(now_ns);
        let mut block = Vec::new();
        for (number, interface) in (0..).zip(&self.interfaces) {
            let ring_lost_pkts = self.ring_lost_at(interface);
            let accepted_pkts = interface.taken_pkts.saturating_add(ring_lost_pkts);
            let counted = pcapng::Statistics {
                interface: number,
                time_unix_ns,
                start_unix_ns: Some(self.unix_ns(self.started_ns)),
                end_unix_ns: Some(time_unix_ns),
                // What the filter refused nobody counts.
                received_pkts: Some(accepted_pkts).filter(|_| self.wanted.filter.is_empty()),
                dropped_pkts: Some(ring_lost_pkts),
                accepted_pkts: Some(accepted_pkts),
                lost_pkts: Some(interface.full_pkts),
                delivered_pkts: Some(interface.written_pkts),
            };
            pcapng::statistics(&mut block, &counted);
        }
        self.outlet.put_last(&block);
        self.outlet.flush();
    }

    /// Over, and everything written or nobody there to read it.
    pub(super) fn is_closed(&self) -> bool {
        self.phase == Phase::Released && self.outlet.is_empty()
    }

    pub(super) fn status(&self, now_ns: u64) -> CaptureStatus {
        let ring_lost_pkts =
            self.ring_lost_pkts.values().fold(0, |sum: u64, n| sum.saturating_add(*n));
        CaptureStatus {
            id: self.id,
            name: self.wanted.name.clone(),
            at: self.wanted.at.clone(),
            filter: self.wanted.filter_text.clone(),
            pkts: self.pkts,
            lost_pkts: self.full_pkts.saturating_add(ring_lost_pkts),
            for_s: now_ns.saturating_sub(self.started_ns) as f64 / 1e9,
        }
    }

    fn unix_ns(&self, monotonic_ns: u64) -> u64 {
        let unix_ns = i128::from(monotonic_ns) + self.unix_less_monotonic_ns;
        u64::try_from(unix_ns.max(0)).unwrap_or(u64::MAX)
    }
}

fn ring_of(source: Source) -> Where {
    match source {
        Source::Worker(_) => Where::Workers,
        Source::Nf(nf) => Where::Nf(nf),
    }
}

/// A ring and a drop have no in and out.
fn direction(place: Place, kind: EventKind) -> Direction {
    match (place, kind) {
        (Place::Port(_), EventKind::PortIn) | (Place::Nf(_), EventKind::NfIn) => Direction::Inbound,
        (Place::Port(_), EventKind::PortOut) | (Place::Nf(_), EventKind::NfOut) => {
            Direction::Outbound
        }
        _ => Direction::Unknown,
    }
}

fn unix_less_monotonic_ns() -> i128 {
    clock_ns(ClockId::CLOCK_REALTIME) - clock_ns(ClockId::CLOCK_MONOTONIC)
}

fn clock_ns(clock: ClockId) -> i128 {
    clock_gettime(clock)
        .map_or(0, |time| i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec()))
}
