//! Loans: empty buffers for NFs that make packets of their own.
//!
//! A loan is a delivery like any other, without a byte and without an ingress port, at the hop of the
//! NF on the route of the chain that the conductor chose. It is written down like any packet, counted as
//! `lent`, and comes back like any packet. It is lent once.
#![forbid(unsafe_code)]

use nflib::descriptor::{NO_PORT, RouteId};

use super::*;

/// Buffers lent in one turn: as many as a port may bring, so that nobody waits for long.
const LEND_PKTS: usize = 4 * MAX_BURST_PKTS;

/// Empty buffers that an NF was promised and has not been lent yet.
pub(super) struct Loan {
    nf: NfNumber,
    pkts: usize,
    chain: ChainId,
}

impl Worker {
    /// Lends an NF so many empty buffers, to make packets of a chain in, as soon as they are there and
    /// fit into its ring.
    pub fn owe(&mut self, nf: NfNumber, pkts: u32, chain: ChainId) {
        self.loans.push(Loan { nf, pkts: pkts as usize, chain });
    }

    /// Hands out what is owed and possible now. Returns how many buffers went.
    #[cold]
    pub(super) fn lend(&mut self) -> usize {
        let mut loans = std::mem::take(&mut self.loans);
        let mut lent = 0;
        for loan in &mut loans {
            let pkts = self.lend_to(loan);
            loan.pkts -= pkts;
            lent += pkts;
        }
        loans.retain(|loan| loan.pkts > 0 && self.takes_loans(loan.nf));
        self.loans = loans;
        lent
    }

    fn takes_loans(&self, nf: NfNumber) -> bool {
        self.nfs.get(usize::from(nf)).and_then(Option::as_ref).is_some_and(|edge| !edge.closed)
    }

    fn lend_to(&mut self, loan: &Loan) -> usize {
        let nf = self.nfs.get_mut(usize::from(loan.nf)).and_then(Option::as_mut);
        let Some(edge) = nf.filter(|edge| !edge.closed) else { return 0 };
        let Some((route, hop)) = place_on(&self.plan, loan.chain, edge.service) else { return 0 };
        // Half of the ring at most: the other is for packets of ports.
        let waiting = edge.to_nf.in_flight().unwrap_or(u32::MAX) as usize + edge.staged.len();
        let room = (edge.to_nf.capacity() as usize / 2).saturating_sub(waiting);
        let spare = self.pool.free_buffers().saturating_sub(self.pool.count() as usize / 8);
        let mut buffers = Vec::new();
        let want = loan.pkts.min(room).min(spare).min(LEND_PKTS);
        let got = self.pool.take(want, &mut buffers);
        if edge.staged.is_empty() && got > 0 {
            self.dirty_nfs.push(loan.nf);
        }
        let passage = Passage { route, hop, ingress: NO_PORT, visits: 0, epoch: self.epoch };
        for buffer in buffers {
            self.owners.give(buffer, edge.holder, passage);
            edge.staged.push(Delivery {
                buffer,
                offset_bytes: self.geometry.headroom_bytes,
                len_bytes: 0,
                // Each a flow of its own, so that they spread over the instances they will meet.
                flow_hash: buffer.wrapping_mul(0x9e37_79b1),
                route,
                port: NO_PORT,
                hop,
            });
        }
        self.fresh_pkts += got;
        self.counters.lent_pkts.add(got as u64);
        got
    }
}

/// Where a packet that an NF of this service makes begins.
fn place_on(plan: &Plan, chain: ChainId, service: ServiceId) -> Option<(RouteId, u8)> {
    let route = plan.route_of(chain)?;
    let hop = route.hops.iter().position(|hop| hop.id == service)?;
    Some((route.id, u8::try_from(hop).ok()?))
}
