//! Loans: empty buffers for NFs that make packets of their own.
//!
//! A loan is a delivery like any other, without a byte and without an ingress port, at the hop of the
//! NF on the route of the chain that the conductor chose. It is written down like any packet, counted as
//! `lent`, and comes back like any packet. It is lent once.
//!
//! An NF that keeps a stock gets it in the turn in which packets may come to it, and before them. It is
//! lent another for each that it used, as it says by a word of its channel;
//! one that lies gets no more than leaves an eighth of the pool, an
//! isolated one half of it. What lies in stock would be waited for when
//! chains change. So it is recalled then, and lent anew for the route that is in force; a loan says by
//! its flow hash after how many recalls it was lent.
#![forbid(unsafe_code)]

use nflib::descriptor::{NO_PORT, RouteId};

use super::*;
use crate::plan::Route;

/// Buffers lent in one turn: as many as a port may bring, so that nobody waits for long.
const LEND_PKTS: usize = 4 * MAX_BURST_PKTS;

/// Empty buffers that an NF was promised and has not been lent yet.
pub(super) struct Loan {
    pub(super) nf: NfNumber,
    pkts: usize,
    /// Most that are owed at a time.
    limit_pkts: usize,
    chain: ChainId,
}

/// What a worker knows of an NF's stock.
pub(super) struct Stock {
    channel: Arc<Channel>,
    worker: u16,
    /// What the NF had asked for when it was last looked at.
    asked_pkts: u64,
    recalls: u32,
}

impl Stock {
    pub(super) fn new(channel: &Arc<Channel>, worker: u16) -> Self {
        Self { channel: Arc::clone(channel), worker, asked_pkts: 0, recalls: 0 }
    }

    /// What the NF has asked for since the last look: any number, it is untrusted.
    fn wishes(&mut self) -> u64 {
        let asked_pkts = self.channel.asked_pkts(self.worker);
        let more = asked_pkts.wrapping_sub(self.asked_pkts);
        self.asked_pkts = asked_pkts;
        more
    }

    fn recall(&mut self) {
        self.recalls = self.recalls.wrapping_add(1);
        self.channel.set_recalls(self.worker, self.recalls);
    }
}

impl Worker {
    /// Lends an NF so many empty buffers, to make packets of a chain in, as soon as they are there and
    /// fit into its ring.
    pub fn owe(&mut self, nf: NfNumber, pkts: u32, chain: ChainId) {
        self.loans.push(Loan { nf, pkts: pkts as usize, limit_pkts: pkts as usize, chain });
    }

    /// Hands out what is owed and possible now. Returns how many buffers went.
    #[cold]
    pub(super) fn lend(&mut self) -> usize {
        let mut loans = std::mem::take(&mut self.loans);
        let mut lent = 0;
        for loan in &mut loans {
            self.hear_wishes(loan);
            if loan.pkts > 0 {
                let pkts = self.lend_to(loan);
                loan.pkts -= pkts;
                lent += pkts;
            }
        }
        loans.retain(|loan| match self.edge_of(loan.nf) {
            Some(edge) => loan.pkts > 0 || edge.stock.is_some(),
            None => false,
        });
        self.loans = loans;
        lent
    }

    fn hear_wishes(&mut self, loan: &mut Loan) {
        if let Some(stock) = self.edge_of(loan.nf).and_then(|edge| edge.stock.as_mut()) {
            let wishes = usize::try_from(stock.wishes()).unwrap_or(usize::MAX);
            loan.pkts = loan.pkts.saturating_add(wishes).min(loan.limit_pkts);
        }
    }

    /// Has every NF give back what it has in stock.
    pub(super) fn recall_stock(&mut self) {
        for edge in self.nfs.iter_mut().flatten() {
            if let Some(stock) = &mut edge.stock {
                stock.recall();
                edge.bell.ring();
            }
        }
    }

    /// An NF that can be lent something.
    fn edge_of(&mut self, nf: NfNumber) -> Option<&mut NfEdge> {
        self.nfs.get_mut(usize::from(nf)).and_then(Option::as_mut).filter(|edge| !edge.closed)
    }

    fn lend_to(&mut self, loan: &Loan) -> usize {
        let nf = self.nfs.get_mut(usize::from(loan.nf)).and_then(Option::as_mut);
        let Some(edge) = nf.filter(|edge| !edge.closed) else { return 0 };
        let user = edge.stock.is_some().then_some(loan.nf);
        let place = place_on(&self.plan, loan.chain, edge.service, user);
        let Some((route, hop)) = place else { return 0 };
        // Half of the ring at most: the other is for packets of ports.
        let waiting = edge.to_nf.in_flight().unwrap_or(u32::MAX) as usize + edge.staged.len();
        let room = (edge.to_nf.capacity() as usize / 2).saturating_sub(waiting);
        // What an isolated NF asks for without end leaves half of the pool, as with credit.
        let keeps = if edge.stock.is_some() && edge.holder != TRUSTED { 2 } else { 8 };
        let spare = self.pool.free_buffers().saturating_sub(self.pool.count() as usize / keeps);
        let want = loan.pkts.min(room).min(spare).min(LEND_PKTS);
        let mut buffers = std::mem::take(&mut self.lent);
        let got = self.pool.take(want, &mut buffers);
        if edge.staged.is_empty() && got > 0 {
            self.dirty_nfs.push(loan.nf);
        }
        let recalls = edge.stock.as_ref().map(|stock| stock.recalls);
        let passage = Passage { route, hop, ingress: NO_PORT, visits: 0, epoch: self.epoch };
        for buffer in buffers.drain(..) {
            self.owners.give(buffer, edge.holder, passage);
            edge.staged.push(Delivery {
                buffer,
                offset_bytes: self.geometry.headroom_bytes,
                len_bytes: 0,
                // Each a flow of its own, so that they spread over the instances they will meet.
                flow_hash: recalls.unwrap_or_else(|| buffer.wrapping_mul(0x9e37_79b1)),
                route,
                port: NO_PORT,
                hop,
            });
        }
        self.lent = buffers;
        self.fresh_pkts += got;
        self.counters.lent_pkts.add(got as u64);
        got
    }
}

/// Where a packet that an NF of this service makes begins: on this chain, or on any when that does not
/// have the service any more. `user`: only once packets come to this NF.
fn place_on(
    plan: &Plan,
    chain: ChainId,
    service: ServiceId,
    user: Option<NfNumber>,
) -> Option<(RouteId, u8)> {
    let of = |route: &Arc<Route>| {
        let hop = route.hops.iter().position(|hop| hop.id == service)?;
        let is_there = user.is_none_or(|nf| route.hops[hop].instances.has(nf));
        Some((route.id, u8::try_from(hop).ok()?)).filter(|_| is_there)
    };
    plan.route_of(chain).and_then(of).or_else(|| plan.current_routes().find_map(of))
}
