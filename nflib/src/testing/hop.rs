//! NFs in one thread, joined by their real rings in a circle, to measure what a hop costs.
//!
//! Each NF has all that it has in a process of its own but the process: lanes and edges in shared
//! memory, the route table, the hold map, and the code between them. There is no manager, no clock
//! and no control socket, so that the same run takes the same instructions.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::control::ServiceRef;
use crate::descriptor::{Delivery, NO_PORT, Returned, ServiceId};
use crate::engine::Engine;
use crate::nf::{NetworkFunction, NfError, Setup};
use crate::observe::{Budget, TapPoint, TapSpec};
use crate::runtime::inputs::Inputs;
use crate::runtime::lookout::Lookout;
use crate::runtime::outputs::Outputs;
use crate::runtime::passage::Passage;
use crate::shm::channel::ChannelGeometry;
use crate::shm::{
    BlackBox, Channel, Consumer, Doorbells, EdgeRing, HopEntry, HugePages, MarkTable, Marks,
    Producer, Recorder, RecorderTerms, Region, RegionGeometry, RouteTableWriter, SharedRing,
    TapFile, TapReader,
};

/// Hops of the circle's route; then a packet comes out and is put in again.
const ROUTE_HOPS: usize = 255;
/// How long a packet is.
const PACKET_BYTES: u16 = 60;

/// How the circle is made.
#[derive(Clone, Copy, Debug)]
pub struct HopOptions {
    /// Packets that go round; at most half of a ring. Up to 64 are one burst.
    pub in_flight_pkts: u32,
    /// Slots of every ring, a power of two.
    pub ring_capacity: u32,
    /// How buffers are cut.
    pub region: RegionGeometry,
    /// A tap takes so many bytes of each packet that an NF passes on; `None`: nothing is looked at, and
    /// could be.
    pub tapped_bytes: Option<u16>,
    /// What that may take of each millisecond, nanoseconds; `None`: the usual share.
    pub tap_share_ns: Option<u64>,
    /// What each NF records; `None`: nothing. The clock stands still, so that an NF which does not record
    /// all is beyond its budget from the second burst on.
    pub recorder: Option<RecorderTerms>,
}

impl Default for HopOptions {
    fn default() -> Self {
        let region = RegionGeometry { buffers: 4096, stride_bytes: 2048, headroom_bytes: 256 };
        let (tapped_bytes, tap_share_ns, recorder) = (None, None, None);
        Self {
            in_flight_pkts: 32,
            ring_capacity: 4096,
            region,
            tapped_bytes,
            tap_share_ns,
            recorder,
        }
    }
}

/// NFs in a circle: the n-th passes on to the one after it by a direct edge, the last to the first.
/// The n-th, counted from 0, provides service n + 1.
pub struct Hop<N> {
    nfs: Vec<Passage<N, SharedRing, Arc<Channel>>>,
    /// The worker's ends of each NF's lane.
    lanes: Vec<(Producer<Delivery>, Consumer<Returned>)>,
    options: HopOptions,
    /// Packets that wait to be put in.
    outside: Vec<Delivery>,
    region: Arc<Region>,
    marks: Arc<MarkTable>,
    /// What each NF tells, to be read when it is looked for.
    told: Vec<TapReader<Arc<TapFile>>>,
}

impl<N: NetworkFunction> Hop<N> {
    /// Joins NFs, at least one, in a circle; one alone is a self loop. If the first wants loans it gets
    /// [`HopOptions::in_flight_pkts`] of them, else as many packets of 60 bytes go round.
    ///
    /// # Errors
    /// One line: an NF refused its setup, there is no memory, or the options contradict each other.
    pub fn circle(nfs: Vec<N>, options: HopOptions) -> Result<Self, NfError> {
        let fault = |error: std::io::Error| NfError::new(format!("circle of NFs: {error}"));
        let HopOptions { in_flight_pkts, ring_capacity, region, .. } = options;
        let most = (ring_capacity / 2).min(region.buffers);
        if nfs.is_empty() || nfs.len() > ROUTE_HOPS || in_flight_pkts > most {
            return Err(NfError::new(format!(
                "{} NFs and {in_flight_pkts} packets; expected 1 to {ROUTE_HOPS} NFs and at most {most} \
                 packets",
                nfs.len()
            )));
        }
        let lends = nfs[0].loan_pkts() > 0;
        let geometry = region;
        let region = Region::create(geometry, HugePages::Try);
        let region = Arc::new(region.map_err(|error| NfError::new(error.to_string()))?);
        let routes = RouteTableWriter::create().map_err(fault)?;
        let hops = (0..nfs.len() as u16).map(|n| (n + 1, HopEntry::Nf(n))).cycle();
        routes.write_route(0, 0, &hops.take(ROUTE_HOPS).collect::<Vec<_>>());
        let mut circle = Self {
            lanes: Vec::new(),
            nfs: Vec::new(),
            options,
            outside: Vec::new(),
            region: Arc::clone(&region),
            marks: MarkTable::create(geometry.buffers).map_err(fault)?,
            told: Vec::new(),
        };
        for (nf, number) in nfs.into_iter().zip(0..) {
            circle.add(nf, number, &routes)?;
        }
        let bells = Arc::new(Doorbells::create(circle.nfs.len() as u32).map_err(fault)?);
        for from in 0..circle.nfs.len() {
            let to = (from + 1) % circle.nfs.len();
            let edge = EdgeRing::create(ring_capacity).map_err(fault)?;
            circle.nfs[to].inputs.open_edge(from as u16, edge.consumer(), None);
            let bell = bells.bell(to as u16);
            circle.nfs[from].outputs.open_edge(to as u16, edge.producer(), bell);
        }
        let (port, len_bytes) = if lends { (NO_PORT, 0) } else { (0, PACKET_BYTES) };
        circle.outside = (0..in_flight_pkts)
            .map(|buffer| {
                let offset_bytes = geometry.headroom_bytes;
                let flow_hash = buffer.wrapping_mul(0x9E37_79B1);
                let place = Delivery { buffer, offset_bytes, len_bytes, ..Delivery::default() };
                Delivery { flow_hash, port, ..place }
            })
            .collect();
        Ok(circle)
    }

    fn add(&mut self, nf: N, number: u16, routes: &RouteTableWriter) -> Result<(), NfError> {
        let fault = |what: String| NfError::new(format!("circle of NFs: {what}"));
        let HopOptions { ring_capacity, region, recorder, .. } = self.options;
        let service = number + 1;
        let setup = Setup {
            service,
            instance: u32::from(service),
            region,
            hold_limit_pkts: nf.hold_limit_pkts(),
            jump_services: nf.jumps_to().iter().map(id_of).collect(),
            read_only: false,
            state: super::state_for(&nf)?,
        };
        let geometry = ChannelGeometry { workers: 1, ring_capacity, buffers: region.buffers };
        let channel = Channel::create(geometry).map_err(|error| fault(error.to_string()))?;
        let no_rings = || fault("a channel without rings".into());
        let (taken, returned) = channel.nf_ends(0).ok_or_else(no_rings)?;
        self.lanes.push(channel.manager_ends(0).ok_or_else(no_rings)?);
        let fd = routes.read_only_fd().map_err(|error| fault(error.to_string()))?;
        let table = crate::shm::RouteTable::from_fd(&fd).map_err(|e| fault(e.to_string()))?;
        let mut passage = Passage::new(
            Engine::new(nf, Arc::clone(&self.region), setup, 1, 0)?,
            Inputs::new([taken].into_iter()),
            Outputs::new([returned].into_iter(), region.buffers, service, table),
            Arc::new(channel),
        );
        let lookout = self.lookout().map_err(|error| fault(error.to_string()))?;
        passage.lookout = Some(Box::new(lookout));
        if let Some(terms) = recorder {
            let black_box = Arc::new(BlackBox::create(terms).map_err(|e| fault(e.to_string()))?);
            passage.recorder = Recorder::new(black_box, Arc::clone(&self.region), 0);
        }
        self.nfs.push(passage);
        Ok(())
    }

    /// What an NF tells of its packets, as with a manager.
    fn lookout(&mut self) -> std::io::Result<Lookout> {
        let marks = Marks::from_fd(&self.marks.read_only_fd()?, self.options.region.buffers)?;
        let file = TapFile::create()?;
        let mut lookout = Lookout::new(marks, &file, Arc::clone(&self.region));
        if let Some(snap_bytes) = self.options.tapped_bytes {
            let at = TapPoint::NfOut;
            lookout.set_taps(&[TapSpec { id: 0, at, filter: Vec::new(), snap_bytes }]);
            let share_ns = self.options.tap_share_ns;
            lookout.bound_taps(share_ns.map_or_else(Budget::default, Budget::of));
        }
        self.told.push(file.reader());
        Ok(lookout)
    }

    /// Gives every NF in turn a look at its inputs, `rounds` times; returns how many packets they took,
    /// which are the hops.
    ///
    /// # Errors
    /// One line: an NF broke a ring, which none can.
    pub fn run(&mut self, rounds: usize) -> Result<u64, NfError> {
        let before = self.taken_pkts();
        for _ in 0..rounds {
            let mut moved_pkts = 0;
            for nf in &mut self.nfs {
                moved_pkts += nf.turn(0).map_err(|error| NfError::new(error.to_string()))?;
            }
            if self.options.tapped_bytes.is_some() {
                for told in &mut self.told {
                    let read = told.drain(usize::MAX, &mut |_, _| ());
                    read.map_err(|error| NfError::new(error.to_string()))?;
                }
            }
            if moved_pkts == 0 {
                self.put_in().map_err(|error| NfError::new(error.to_string()))?;
            }
        }
        Ok(self.taken_pkts() - before)
    }

    fn taken_pkts(&self) -> u64 {
        self.nfs.iter().map(|nf| nf.rx_pkts).sum()
    }

    /// Puts what has come out in again.
    fn put_in(&mut self) -> Result<(), crate::shm::RingError> {
        let mut back = [Returned::default(); 64];
        for (_, returns) in &mut self.lanes {
            loop {
                let count = returns.pop_burst(&mut back)?;
                self.outside.extend(back[..count].iter().map(again));
                if count == 0 {
                    break;
                }
            }
        }
        let taken = self.lanes[0].0.push_burst(&self.outside)?;
        self.outside.drain(..taken);
        Ok(())
    }

    /// The NFs, in order.
    pub fn nfs(&self) -> impl Iterator<Item = &N> {
        self.nfs.iter().map(|passage| passage.engine.nf())
    }
}

fn again(returned: &Returned) -> Delivery {
    let Returned { buffer, offset_bytes, len_bytes, flow_hash, .. } = *returned;
    Delivery { buffer, offset_bytes, len_bytes, flow_hash, ..Delivery::default() }
}

/// In a circle services have numbers and no names.
fn id_of(service: &ServiceRef) -> ServiceId {
    match service {
        ServiceRef::Id(id) => *id,
        ServiceRef::Name(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::burst::MAX_BURST_PKTS;
    use crate::{Action, Context, Packet};

    /// Counts, and passes on or jumps to its own service.
    struct Count {
        pkts: u64,
        jumps: bool,
    }

    impl NetworkFunction for Count {
        fn process(&mut self, packet: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
            self.pkts += 1;
            assert_eq!(packet.len(), 60);
            if self.jumps { Action::ToService(ctx.setup().service) } else { Action::Next }
        }
    }

    fn circle(nfs: usize, jumps: bool, in_flight_pkts: u32) -> Hop<Count> {
        let nfs = (0..nfs).map(|_| Count { pkts: 0, jumps }).collect();
        Hop::circle(nfs, HopOptions { in_flight_pkts, ..HopOptions::default() }).unwrap()
    }

    #[test]
    fn packets_go_round_come_out_at_the_routes_end_and_go_in_again() {
        let burst_pkts = u32::try_from(MAX_BURST_PKTS).unwrap();
        for (nfs, in_flight_pkts) in [(1, 32), (1, burst_pkts), (3, 32), (1, burst_pkts + 36)] {
            let mut hop = circle(nfs, false, in_flight_pkts);
            // The first round finds nothing and puts the packets in.
            assert_eq!(hop.run(1).unwrap(), 0);
            let hops = hop.run(1000).unwrap();
            // An NF takes a burst a round by its edge, and one by its lane when packets go in.
            let most = 1000 * u64::from(in_flight_pkts.min(burst_pkts)) * nfs as u64;
            assert!(hops > most / 4 / nfs as u64 && hops < most + most / 100, "{hops} of {most}");
            assert_eq!(hop.nfs().map(|nf| nf.pkts).sum::<u64>(), hops);
        }
    }

    #[test]
    fn a_jump_to_its_own_service_never_comes_out() {
        let mut hop = circle(1, true, 48);
        hop.run(2).unwrap();
        assert_eq!(hop.run(1000).unwrap(), 48_000);
    }

    #[test]
    fn more_packets_than_half_a_ring_are_refused() {
        let options = HopOptions { in_flight_pkts: 2049, ..HopOptions::default() };
        let nfs = vec![Count { pkts: 0, jumps: false }];
        let error = Hop::circle(nfs, options).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("2048"), "{error}");
    }
}
