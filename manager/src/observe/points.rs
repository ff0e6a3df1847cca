//! Where packets can be captured: how people write it, what is tapped for it, and at which of its places
//! an event happened.
//!
//! ```text
//! port:NAME[:in|:out]      at a port
//! nf:WHO[:in|:out]         at NFs; WHO is a service, SERVICE#INSTANCE or an instance
//! ring:FROM:TO             between two of them; each is a WHO or `manager`
//! drop[:SERVICE][:REASON]  where packets are dropped
//! ```
//!
//! A *point* is what was written, and may cover several *places*: `nf:firewall` is all instances of a
//! service, those too that come later. A place is what a capture calls an interface.
//!
//! A ring to the manager is seen from its NF: what was decided about a packet tells whether it goes straight
//! to the next NF. One that should and could not, as its edge was full or is being opened, goes by the
//! manager unseen.
#![forbid(unsafe_code)]

use nflib::control::FilterStep;
use nflib::descriptor::{ActionCode, PortId};
use nflib::observe::{Event, EventKind, NOBODY, TapId, TapPoint, TapSpec};
use thiserror::Error;

use super::directory::{Directory, NfName};
use super::point_text;
use crate::plan::NfNumber;
use crate::stats::DropReason;

/// Whose ring an event came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// A worker's, by its number.
    Worker(u16),
    /// An NF's.
    Nf(NfNumber),
}

/// Who has to be told of a tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Where {
    /// Every worker.
    Workers,
    /// One NF.
    Nf(NfNumber),
}

/// In or out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Into it.
    In,
    /// Out of it.
    Out,
}

/// NFs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// All instances of a service.
    Service(String),
    /// One.
    Instance(u32),
}

/// An end of a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The workers.
    Manager,
    /// NFs.
    Nf(Who),
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Point {
    /// A port.
    Port {
        /// Which.
        port: PortId,
        /// Only on this way.
        way: Option<Way>,
    },
    /// NFs.
    Nf {
        /// Which.
        who: Who,
        /// Only on this way.
        way: Option<Way>,
    },
    /// Rings.
    Ring {
        /// Who writes them.
        from: End,
        /// Who reads them.
        to: End,
    },
    /// Where packets are dropped.
    Drop {
        /// Only at this service.
        service: Option<String>,
        /// Only for this reason.
        reason: Option<DropReason>,
    },
}

/// One place of a point: an interface of a capture. NFs by instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A port.
    Port(PortId),
    /// An NF.
    Nf(u32),
    /// A ring; `None`: the manager's end.
    Ring {
        /// Who writes it.
        from: Option<u32>,
        /// Who reads it.
        to: Option<u32>,
    },
    /// A reason at a service, by its place among the workers' counters; or [`NOBODY`]: between ports.
    Drop {
        /// The reason's number.
        reason: u8,
        /// The service's.
        slot: u16,
    },
}

/// Why a text is no point. One line each.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PointError {
    /// Not a point at all.
    #[error(
        "{0} is no place to capture at: expected port:NAME, nf:SERVICE, ring:FROM:TO or drop, as \
         `millrace capture points` lists them"
    )]
    Unknown(String),
    /// What it names does not exist.
    #[error("{text}: there is no {what} {name}; there {are}")]
    Missing {
        /// The point.
        text: String,
        /// Port, service, instance, reason.
        what: &'static str,
        /// What was named.
        name: String,
        /// What there is.
        are: String,
    },
    /// A ring that cannot be.
    #[error("{0}: a ring has an NF at one end at least; packets from port to port pass none")]
    NoRing(String),
}

impl Point {
    /// What a text means now.
    ///
    /// # Errors
    /// [`PointError`], naming what exists.
    pub fn parse(text: &str, directory: &Directory) -> Result<Self, PointError> {
        point_text::parse(text, directory)
    }

    /// The taps to set for it now, and where.
    #[must_use]
    pub fn taps(
        &self,
        id: TapId,
        filter: &[FilterStep],
        snap_bytes: u16,
        directory: &Directory,
    ) -> Vec<(Where, TapSpec)> {
        let points = self.tap_points(directory);
        let spec = |at| TapSpec { id, at, filter: filter.to_vec(), snap_bytes };
        points.into_iter().map(|(place, at)| (place, spec(at))).collect()
    }

    fn tap_points(&self, directory: &Directory) -> Vec<(Where, TapPoint)> {
        let mut taps = Vec::new();
        match self {
            Self::Port { port, way } => {
                let port = *port;
                if *way != Some(Way::Out) {
                    taps.push((Where::Workers, TapPoint::PortIn { port }));
                }
                if *way != Some(Way::In) {
                    taps.push((Where::Workers, TapPoint::PortOut { port }));
                }
            }
            Self::Nf { who, way } => {
                for nf in who.of(directory) {
                    if *way != Some(Way::Out) {
                        taps.push((Where::Nf(nf.nf), TapPoint::NfIn { from: None }));
                    }
                    if *way != Some(Way::In) {
                        taps.push((Where::Nf(nf.nf), TapPoint::NfOut));
                    }
                }
            }
            Self::Ring { from: End::Nf(from), to: End::Manager } => {
                taps.extend(from.of(directory).map(|nf| (Where::Nf(nf.nf), TapPoint::NfOut)));
            }
            Self::Ring { from, to: End::Nf(to) } => {
                let writers: Vec<_> = match from {
                    End::Manager => vec![NOBODY],
                    End::Nf(from) => from.of(directory).map(|nf| nf.nf).collect(),
                };
                for reader in to.of(directory) {
                    let from_each = writers.iter().map(|&from| TapPoint::NfIn { from: Some(from) });
                    taps.extend(from_each.map(|at| (Where::Nf(reader.nf), at)));
                }
            }
            Self::Ring { .. } => {}
            Self::Drop { service, reason } => {
                let reason = reason.map(|reason| reason as u8);
                let slot = service.as_ref().map(|name| directory.slot_named(name));
                // A service that is gone drops nothing.
                if slot != Some(None) {
                    taps.push((Where::Workers, TapPoint::Drop { reason, slot: slot.flatten() }));
                }
            }
        }
        taps
    }

    /// At which of its places an event happened; `None`: at none. Every number in the event is the word
    /// of its source.
    #[must_use]
    pub fn place_of(&self, source: Source, event: &Event, directory: &Directory) -> Option<Place> {
        let nf = |number| directory.nf(number, event.time_ns);
        match (self, source, event.kind) {
            (
                Self::Port { port, way },
                Source::Worker(_),
                EventKind::PortIn | EventKind::PortOut,
            ) => {
                let this = event.target == u16::from(*port) && is_on(*way, event.kind);
                this.then_some(Place::Port(*port))
            }
            (
                Self::Nf { who, way },
                Source::Nf(number),
                EventKind::NfIn | EventKind::NfOut | EventKind::NfHold,
            ) => {
                let nf = nf(number).filter(|nf| who.is(nf) && is_on(*way, event.kind))?;
                Some(Place::Nf(nf.instance))
            }
            (Self::Ring { from, to: End::Nf(to) }, Source::Nf(number), EventKind::NfIn) => {
                let reader = nf(number).filter(|nf| to.is(nf))?;
                let writer = match from {
                    End::Manager if event.peer == NOBODY => None,
                    End::Manager => return None,
                    End::Nf(from) => Some(nf(event.peer).filter(|nf| from.is(nf))?.instance),
                };
                Some(Place::Ring { from: writer, to: Some(reader.instance) })
            }
            (Self::Ring { from: End::Nf(from), to: End::Manager }, Source::Nf(number), kind) => {
                let writer = nf(number).filter(|nf| from.is(nf))?;
                let this = kind == EventKind::NfOut && !goes_straight_on(writer, event, directory);
                this.then_some(Place::Ring { from: Some(writer.instance), to: None })
            }
            (Self::Drop { service, reason }, Source::Worker(_), EventKind::Drop) => {
                let slot = service.as_ref().map(|name| directory.slot_named(name));
                let this = slot.is_none_or(|slot| slot == Some(event.target))
                    && reason.is_none_or(|reason| reason as u8 == event.code)
                    && Directory::reason(event.code).is_some();
                this.then_some(Place::Drop { reason: event.code, slot: event.target })
            }
            _ => None,
        }
    }
}

impl Who {
    /// The NFs that are attached now.
    fn of<'a>(&'a self, directory: &'a Directory) -> impl Iterator<Item = &'a NfName> {
        directory.nfs().map(|nf| &**nf).filter(|nf| self.is(nf))
    }

    fn is(&self, nf: &NfName) -> bool {
        match self {
            Self::Service(name) => *nf.service_name == **name,
            Self::Instance(instance) => nf.instance == *instance,
        }
    }
}

impl Place {
    /// Its name, as a point is written that covers nothing else.
    #[must_use]
    pub fn name(self, source: Source, event: &Event, directory: &Directory) -> String {
        let here = || match source {
            Source::Nf(nf) => nf_name(nf, event, directory),
            Source::Worker(_) => "manager".to_owned(),
        };
        match self {
            Self::Port(port) => match directory.port(port) {
                Some(name) => format!("port:{name}"),
                None => format!("port:{port}"),
            },
            Self::Nf(_) => format!("nf:{}", here()),
            Self::Ring { to: None, .. } => format!("ring:{}:manager", here()),
            Self::Ring { from: None, .. } => format!("ring:manager:{}", here()),
            Self::Ring { .. } => {
                format!("ring:{}:{}", nf_name(event.peer, event, directory), here())
            }
            Self::Drop { reason, slot } => {
                let reason = Directory::reason(reason).unwrap_or("unknown");
                match directory.service(slot) {
                    Some(service) => format!("drop:{}:{reason}", service.name),
                    None => format!("drop:{reason}"),
                }
            }
        }
    }

    /// What it is, for people.
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::Port(_) => "Millrace port",
            Self::Nf(_) => "Millrace network function",
            Self::Ring { .. } => "Millrace ring",
            Self::Drop { .. } => "Millrace drops",
        }
    }
}

fn nf_name(nf: NfNumber, event: &Event, directory: &Directory) -> String {
    match directory.nf(nf, event.time_ns) {
        Some(nf) => format!("{}#{}", nf.service_name, nf.instance),
        None => format!("unknown#{nf}"),
    }
}

/// Whether an event is one of a way; what an NF keeps is on none.
fn is_on(way: Option<Way>, kind: EventKind) -> bool {
    match way {
        None => true,
        Some(Way::In) => matches!(kind, EventKind::PortIn | EventKind::NfIn),
        Some(Way::Out) => matches!(kind, EventKind::PortOut | EventKind::NfOut),
    }
}

/// Whether a packet goes to the next NF without the manager, by what was decided about it.
fn goes_straight_on(from: &NfName, event: &Event, directory: &Directory) -> bool {
    let Some(route) = directory.route(event.route, event.time_ns) else { return false };
    let next = match ActionCode::from_code(event.code) {
        Some(ActionCode::Next) if event.hop != Event::NO_HOP => {
            route.hops.get(usize::from(event.hop) + 1)
        }
        Some(ActionCode::ToService) => route.hops.iter().find(|hop| hop.service == event.target),
        _ => None,
    };
    let trusted = |service| directory.nfs().any(|nf| nf.service == service && !nf.isolated);
    !from.isolated && next.is_some_and(|next| trusted(next.service))
}

#[cfg(test)]
#[path = "points_tests.rs"]
pub(crate) mod tests;
