//! Packets of a burst that go the same way, moved there as one.
//!
//! Most bursts are of one mind: all packets begin the same chain, or come back from one place of one
//! route with Next. Then plan, route and next hop are looked up once, what is counted is counted
//! once, and each packet costs its entry in the ownership table and its descriptor. Whatever else a
//! packet may be (its flow shared among instances, dropped, sent to a service, parked, malformed) is
//! no run, and takes the way of `worker.rs`, which does the same one by one.
#![forbid(unsafe_code)]

use super::*;
use crate::ports::layout;

/// Where all packets of a run go.
#[derive(Clone, Copy)]
pub(super) enum Way {
    /// To be sent by a port, which exists.
    Port(PortId),
    /// To an NF that takes packets, in this passage.
    Nf(NfNumber, Passage),
}

impl Worker {
    /// The way of packets that begin their path by this verdict, if it is the same for all.
    pub(super) fn way_in(&self, plan: &Plan, ingress: PortId, verdict: Verdict) -> Option<Way> {
        if self.transition.is_some() {
            return None;
        }
        match verdict {
            Verdict::Chain(chain) => {
                let route = plan.route_of(chain)?.id;
                let epoch = self.epoch;
                self.way_on(plan, Passage { route, hop: 0, ingress, visits: 0, epoch })
            }
            Verdict::Egress => self.way_out(self.ports.get(usize::from(ingress))?.egress?),
            Verdict::Out(port) => self.way_out(port),
            Verdict::Drop(_) => None,
        }
    }

    /// The way of packets at `passage.hop` of their route, if it is the same for all.
    fn way_on(&self, plan: &Plan, passage: Passage) -> Option<Way> {
        let route = plan.route(passage.route)?;
        let Some(service) = route.hops.get(usize::from(passage.hop)) else {
            return match route.end {
                End::Egress => self.way_out(self.ports.get(usize::from(passage.ingress))?.egress?),
                End::Ingress => self.way_out(passage.ingress),
                End::Out(port) => self.way_out(port),
                End::Drop | End::Chain(_) => None,
            };
        };
        let Instances::One(nf) = service.instances else { return None };
        let edge = self.nfs.get(usize::from(nf))?.as_ref()?;
        if edge.closed || passage.visits == MAX_VISITS {
            return None;
        }
        // As when it is delivered by itself: what NFs made is not counted.
        let visits = passage.visits + u8::from(passage.ingress != NO_PORT);
        Some(Way::Nf(nf, Passage { visits, ..passage }))
    }

    fn way_out(&self, port: PortId) -> Option<Way> {
        (usize::from(port) < self.ports.len()).then_some(Way::Port(port))
    }

    /// Stages 3 and 4 for packets of a burst that have one verdict and one way.
    pub(super) fn enter_run(&mut self, way: Way, verdict: Verdict, packets: &[PortPacket]) {
        if let Verdict::Chain(chain) = verdict {
            let bytes = packets.iter().map(|packet| u64::from(packet.len_bytes)).sum();
            self.count_entries(chain, packets.len() as u64, bytes);
        }
        self.stage_run(way, packets);
    }

    /// Stage 5 for the descriptors in front that are like the first, if an NF passes them on by Next
    /// and they are as they should be. Returns how many those are; the first after them, if there is
    /// one, is [`accept`](Self::accept)ed by itself.
    pub(super) fn accept_run(
        &mut self,
        plans: &Plans,
        number: usize,
        returned: &[Returned],
    ) -> usize {
        const NEXT: u8 = ActionCode::Next as u8;
        let Some((&first, edge)) = returned.first().zip(self.nfs[number].as_ref()) else {
            return 0;
        };
        let holder = edge.holder;
        let Ok(passage) = self.owners.passage(first.buffer, holder) else { return 0 };
        let plan = plans.of(&passage, self.epoch);
        if first.action != NEXT || !edge.may_be_at(plan, &passage, first.hop) {
            return 0;
        }
        let hop = first.hop.saturating_add(1);
        let Some(way) = self.way_on(plan, Passage { hop, ..passage }) else { return 0 };
        let stride_bytes = self.geometry.stride_bytes;
        // The buffer itself is in the region if it is in the table.
        let is_like_it = |packet: &Returned| {
            let end_bytes = u32::from(packet.offset_bytes) + u32::from(packet.len_bytes);
            let fits = end_bytes <= stride_bytes && packet.len_bytes > 0;
            let same = u16::from_ne_bytes([packet.hop, packet.action])
                == u16::from_ne_bytes([first.hop, NEXT]);
            if same && fits { Some(packet.buffer) } else { None }
        };
        let pkts = self.owners.take_back_run(returned, is_like_it, holder, passage);
        if pkts > 0 {
            edge.counters.tx_pkts.add(pkts as u64);
            self.fresh_pkts -= if passage.epoch == self.epoch { pkts } else { 0 };
            let packets = layout::packets_of(&returned[..pkts]);
            if edge.own_region.is_some() {
                packets.iter().for_each(|packet| edge.copy_in(&self.pool, packet));
            }
            self.stage_run(way, packets);
        }
        pkts
    }

    #[inline]
    fn stage_run(&mut self, way: Way, packets: &[PortPacket]) {
        match way {
            Way::Port(port) => {
                let target = &mut self.ports[usize::from(port)];
                if target.staged.is_empty() {
                    self.dirty_ports.push(port);
                }
                target.staged.extend_from_slice(packets);
            }
            Way::Nf(nf, passage) => {
                let Some(edge) = self.nfs[usize::from(nf)].as_mut() else {
                    unreachable!("a way leads to an NF that is there")
                };
                let left = self.credit.left(&self.owners, edge.holder, passage);
                let (packets, refused) = packets.split_at(left.min(packets.len()));
                if !refused.is_empty() {
                    let pkts = refused.len() as u64;
                    self.counters.drop_at(&edge.drops, DropReason::NoCredit, pkts);
                    if let Some(watch) = watching(&mut self.watch) {
                        watch.dropped(refused, edge.slot, DropReason::NoCredit);
                    }
                    self.dropped.extend(refused.iter().map(|packet| packet.buffer));
                }
                let buffers = packets.iter().map(|packet| packet.buffer);
                self.owners.give_run(buffers, edge.holder, passage);
                self.fresh_pkts += if passage.epoch == self.epoch { packets.len() } else { 0 };
                if edge.own_region.is_some() {
                    packets.iter().for_each(|packet| edge.copy_out(&self.pool, packet));
                }
                if edge.staged.is_empty() {
                    self.dirty_nfs.push(nf);
                }
                let Passage { route, ingress, hop, .. } = passage;
                layout::deliver_to(&mut edge.staged, packets, route, ingress, hop);
            }
        }
    }
}
