//! Where every buffer is: what the workers know, and inside the domain of NFs what their rings tell.
//!
//! The workers' word is exact, each between two of its turns. Which of the NFs that trust each other has
//! a buffer, only their rings say, and NFs do not stop while one looks: what is just then on its way from
//! one ring to another is `moving`. Rings are other processes' memory, so what stands in them counts only
//! for buffers that the ownership table says are with just those NFs.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};

use nflib::control::{BufferPlace, BufferReport, BufferStatus, BufferUse, ErrorCode, Reply};
use nflib::descriptor::{Delivery, NO_PORT, Returned};
use nflib::shm::BufferIndex;

use super::{Server, ServerError, refusal};
use crate::conductor::Conductor;
use crate::ownership::{Holder, Passage, TRUSTED};
use crate::plan::NfNumber;
use crate::registry::NfRecord;
use crate::worker::{Census, Whereabouts};

/// Where the rings say that a buffer is, and whose rings those are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Spot {
    holder: Holder,
    used_for: BufferUse,
    nf: NfNumber,
    to: NfNumber,
}

impl Server {
    /// Where each buffer is, and more about one.
    pub(super) fn buffers(&mut self, id: u64, asked: Option<u32>) -> Result<(), ServerError> {
        let total = self.fabric.region().geometry().buffers;
        if let Some(buffer) = asked.filter(|buffer| *buffer >= total) {
            let message = format!("there is no buffer {buffer}: they are 0 to {}", total - 1);
            self.connections.send(id, &refusal(ErrorCode::NotFound, message));
            return Ok(());
        }
        let census = self.fabric.census()?;
        let spots = spots(&self.conductor);
        let report = self.buffer_report(&census, &spots, asked);
        self.connections.send(id, &Reply::Buffers(Box::new(report)));
        Ok(())
    }

    fn buffer_report(
        &self,
        census: &[Census],
        spots: &HashMap<BufferIndex, Spot>,
        asked: Option<u32>,
    ) -> BufferReport {
        let mut report = BufferReport::default();
        for (census, worker) in census.iter().zip(0..) {
            let mut counts: BTreeMap<(BufferUse, String), u64> = BTreeMap::new();
            let mut free_unnamed = census.free_unnamed;
            for (place, buffer) in census.places.iter().zip(census.first..) {
                let (used_for, name) = match place {
                    Whereabouts::Unknown if free_unnamed > 0 => {
                        free_unnamed -= 1;
                        (BufferUse::Free, format!("worker:{worker}"))
                    }
                    place => self.place(census, worker, buffer, *place, spots),
                };
                if asked == Some(buffer) {
                    let place = BufferPlace { worker, used_for, place: name.clone(), buffers: 1 };
                    report.buffer = Some(self.buffer_status(buffer, place, census));
                }
                *counts.entry((used_for, name)).or_default() += 1;
            }
            report.total += census.places.len() as u64;
            report.twice += census.twice;
            report.places.extend(counts.into_iter().map(|((used_for, place), buffers)| {
                BufferPlace { worker, used_for, place, buffers }
            }));
        }
        let lost = report.places.iter().any(|place| place.used_for == BufferUse::Lost);
        report.balanced = report.twice == 0 && !lost;
        report
    }

    /// What is done with a buffer, and by whom.
    fn place(
        &self,
        census: &Census,
        worker: u16,
        buffer: BufferIndex,
        place: Whereabouts,
        spots: &HashMap<BufferIndex, Spot>,
    ) -> (BufferUse, String) {
        let port = |port| {
            let ports = self.fabric.ports();
            ports.get(usize::from(port)).map_or_else(String::new, |p| format!("port:{}", p.name))
        };
        match place {
            Whereabouts::Free => (BufferUse::Free, format!("worker:{worker}")),
            Whereabouts::Parked => (BufferUse::Parked, format!("worker:{worker}")),
            Whereabouts::Port(number, used_for) => (used_for, port(number)),
            Whereabouts::Nf(holder, _) => match spots.get(&buffer) {
                Some(spot) if spot.holder == holder => (spot.used_for, self.spot_name(spot)),
                _ if holder == TRUSTED => (BufferUse::Moving, "nfs".to_owned()),
                _ => (BufferUse::AtNf, self.nf_name(holder)),
            },
            Whereabouts::Unknown => match census.untold_by {
                Some(number) => (BufferUse::AtPort, port(number)),
                None => (BufferUse::Lost, format!("worker:{worker}")),
            },
        }
    }

    fn nf_name(&self, nf: NfNumber) -> String {
        let record = self.conductor.registry().by_number(nf);
        record.map_or_else(|| "nf:gone".to_owned(), |record| format!("nf:{}", record.instance))
    }

    fn spot_name(&self, spot: &Spot) -> String {
        let from = self.nf_name(spot.nf);
        match spot.used_for {
            BufferUse::InEdge => format!("{from}>{}", self.nf_name(spot.to)),
            _ => from,
        }
    }

    fn buffer_status(
        &self,
        buffer: BufferIndex,
        place: BufferPlace,
        census: &Census,
    ) -> BufferStatus {
        let known = census.places.get(buffer.wrapping_sub(census.first) as usize);
        let Some(&Whereabouts::Nf(_, passage)) = known else {
            return BufferStatus { buffer, place, chain: None, hop: None, ingress: None };
        };
        let Passage { route, hop, ingress, .. } = passage;
        let model = self.conductor.model();
        let route = self.conductor.planner().current().route(route);
        let chain = route.and_then(|route| model.chain(route.chain));
        let ports = self.fabric.ports();
        let port = (ingress != NO_PORT).then(|| ports.get(usize::from(ingress))).flatten();
        BufferStatus {
            buffer,
            place,
            chain: chain.map(|chain| chain.name().to_owned()),
            hop: Some(hop),
            ingress: port.map(|port| port.name.clone()),
        }
    }
}

/// What all rings and hold maps say of where buffers are now. A ring with impossible indices says
/// nothing.
fn spots(conductor: &Conductor) -> HashMap<BufferIndex, Spot> {
    let mut spots = HashMap::new();
    let registry = conductor.registry();
    for record in registry.nfs() {
        let spot = spot_of(record, BufferUse::AtNf);
        spots.extend(record.channel.held_buffers().into_iter().map(|buffer| (buffer, spot)));
    }
    // What waits to be read is surely there; what was read may be in the next ring already.
    let mut waiting = Vec::new();
    let mut note = |spots: &mut HashMap<_, _>, at: Spot, read_by: Spot, found: TwoParts| {
        let (read, unread) = found;
        spots.extend(read.into_iter().map(|buffer| (buffer, read_by)));
        waiting.extend(unread.into_iter().map(|buffer| (buffer, at)));
    };
    for record in registry.nfs() {
        let at_nf = spot_of(record, BufferUse::AtNf);
        let workers = 0..record.channel.geometry().workers;
        for (towards, back) in workers.filter_map(|worker| record.channel.remains(worker)) {
            if let Some(found) = towards.unreleased::<Delivery>() {
                note(
                    &mut spots,
                    spot_of(record, BufferUse::ToNf),
                    at_nf,
                    buffers(found, |p| p.buffer),
                );
            }
            if let Some(found) = back.unreleased::<Returned>() {
                let spot = spot_of(record, BufferUse::FromNf);
                // The worker is between two turns, or was when it told what it has.
                note(&mut spots, spot, spot, buffers(found, |p| p.buffer));
            }
        }
    }
    for ((from, to), edge) in conductor.edges().iter() {
        let in_edge = Spot { holder: TRUSTED, used_for: BufferUse::InEdge, nf: from, to };
        let read_by = Spot { used_for: BufferUse::AtNf, nf: to, ..in_edge };
        if let Some(found) = edge.ring.remains().unreleased::<Delivery>() {
            note(&mut spots, in_edge, read_by, buffers(found, |p| p.buffer));
        }
    }
    spots.extend(waiting);
    spots
}

type TwoParts = (Vec<BufferIndex>, Vec<BufferIndex>);

fn buffers<T>((read, unread): (Vec<T>, Vec<T>), of: impl Fn(&T) -> BufferIndex) -> TwoParts {
    (read.iter().map(&of).collect(), unread.iter().map(&of).collect())
}

fn spot_of(record: &NfRecord, used_for: BufferUse) -> Spot {
    let holder = if record.isolated { record.nf } else { TRUSTED };
    Spot { holder, used_for, nf: record.nf, to: record.nf }
}
