//! Direct edges: rings from NF to NF, by which packets go on without the manager: along their route,
//! or to a service on it that the NF said it would send packets to by name, its own included. An edge
//! may thus begin and end at the same NF, which then is asked twice to say that it is done.
//!
//! An edge is made before the first plan that needs it, and both NFs have said that they have it
//! before a packet follows that plan; so a flow never takes one way first and the other after. A pair
//! whose pushing NF did not say so in time goes through the manager for as long as both live. An edge is
//! closed when no plan needs it and no packet follows an older one: first the pushing NF is told, and
//! when it has said that it pushes no more, the taking one. It is forgotten when that has taken all
//! that was in it: should it die before, what it had must be found.
#![forbid(unsafe_code)]

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;

use nflib::descriptor::{Delivery, Returned, ServiceId};
use nflib::shm::{BufferIndex, Channel, EdgeRing, still_there};

use crate::plan::{Instances, NfNumber, Plan};

/// Most direct edges. Each is a file, a mapping in three processes and a ring; a chain whose services
/// have so many instances that more would be needed passes the manager instead.
pub const MAX_EDGES: usize = 4096;

/// Two NFs, the pushing one first.
pub type Pair = (NfNumber, NfNumber);

/// One edge.
pub struct Edge {
    /// The ring.
    pub ring: EdgeRing,
    /// Slots.
    pub capacity: u32,
    state: EdgeState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EdgeState {
    Open,
    /// Whether the pusher still has to say that it is done, and where the taker stands.
    Closing {
        from: bool,
        to: Taker,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taker {
    /// Not told: something may be pushed yet.
    Untold,
    /// Told, and has to say that it is done.
    Told,
    /// Has said so, or is gone.
    Done,
}

/// Who is to be told now that an edge closes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tell {
    /// The NF that pushes.
    pub from: bool,
    /// The NF that takes.
    pub to: bool,
}

/// All edges.
#[derive(Default)]
pub struct Edges {
    edges: BTreeMap<Pair, Edge>,
}

/// An NF that sends packets to services by name.
#[derive(Clone, Copy, Debug)]
pub struct Jumper<'a> {
    /// Its number.
    pub nf: NfNumber,
    /// The service it provides.
    pub service: ServiceId,
    /// The services it sends packets to.
    pub jumps: &'a [ServiceId],
}

/// The pairs of NFs that hand packets to each other by a plan: neighbours on a route, and those whose
/// services a route contains both and of which the first jumps to the second. Hops and jumps that
/// would need too many are left out; hops come first.
#[must_use]
pub fn wanted_pairs(
    plan: &Plan,
    trusted: impl Fn(NfNumber) -> bool,
    jumpers: &[Jumper<'_>],
) -> BTreeSet<Pair> {
    let mut pairs = BTreeSet::new();
    for route in plan.current_routes() {
        for hop in route.hops.windows(2) {
            let (from, to) = (members(&hop[0].instances), members(&hop[1].instances));
            if pairs.len() + from.len() * to.len() > MAX_EDGES {
                continue;
            }
            for &from in from.iter().filter(|&&nf| trusted(nf)) {
                for &to in to.iter().filter(|&&nf| nf != from && trusted(nf)) {
                    pairs.insert((from, to));
                }
            }
        }
    }
    for jumper in jumpers.iter().filter(|jumper| trusted(jumper.nf)) {
        for route in plan.current_routes() {
            let find = |id: ServiceId| route.hops.iter().find(|hop| hop.id == id);
            let own = find(jumper.service).map(|hop| members(&hop.instances));
            if !own.is_some_and(|own| own.contains(&jumper.nf)) {
                continue;
            }
            for target in jumper.jumps.iter().filter_map(|&id| find(id)) {
                let to = members(&target.instances);
                if pairs.len() + to.len() <= MAX_EDGES {
                    let to = to.into_iter().filter(|&to| trusted(to));
                    pairs.extend(to.map(|to| (jumper.nf, to)));
                }
            }
        }
    }
    pairs
}

fn members(instances: &Instances) -> BTreeSet<NfNumber> {
    match instances {
        Instances::None => BTreeSet::new(),
        Instances::One(nf) => BTreeSet::from([*nf]),
        Instances::Many(buckets) => buckets.owners().iter().copied().collect(),
    }
}

impl Edges {
    /// Makes an edge.
    ///
    /// # Errors
    /// As [`EdgeRing::create`].
    pub fn open(&mut self, pair: Pair, capacity: u32) -> io::Result<&Edge> {
        let edge = Edge { ring: EdgeRing::create(capacity)?, capacity, state: EdgeState::Open };
        Ok(match self.edges.entry(pair) {
            Entry::Occupied(mut old) => {
                old.insert(edge);
                old.into_mut()
            }
            Entry::Vacant(place) => place.insert(edge),
        })
    }

    /// The edge of a pair, open or closing.
    #[must_use]
    pub fn get(&self, pair: Pair) -> Option<&Edge> {
        self.edges.get(&pair)
    }

    /// True when the pair has an edge that is in use.
    #[must_use]
    pub fn is_open(&self, pair: Pair) -> bool {
        self.edges.get(&pair).is_some_and(|edge| edge.state == EdgeState::Open)
    }

    /// Pairs with an open edge that are not wanted any more.
    #[must_use]
    pub fn surplus(&self, wanted: &BTreeSet<Pair>) -> Vec<Pair> {
        let open = self.edges.iter().filter(|(_, edge)| edge.state == EdgeState::Open);
        open.map(|(pair, _)| *pair).filter(|pair| !wanted.contains(pair)).collect()
    }

    /// Closes an edge, and says which end is to be told so at once. An end that is gone need not
    /// answer. May be called again when an end has died meanwhile.
    pub fn close(&mut self, pair: Pair, from_there: bool, to_there: bool) -> Tell {
        let Some(edge) = self.edges.get_mut(&pair) else { return Tell::default() };
        let (was_open, from, to) = match edge.state {
            EdgeState::Open => (true, true, Taker::Untold),
            EdgeState::Closing { from, to } => (false, from, to),
        };
        let from = from && from_there;
        let to = if to_there { to } else { Taker::Done };
        let tell = Tell { from: was_open && from, to: !from && to == Taker::Untold };
        let to = if tell.to { Taker::Told } else { to };
        edge.state = EdgeState::Closing { from, to };
        tell
    }

    /// An NF has acted on everything it was told: it is done with its edges that are closing. Returns
    /// those whose taking NF is to be told now.
    pub fn synced(&mut self, nf: NfNumber) -> Vec<Pair> {
        let mut tell = Vec::new();
        for (&(pushes, takes), edge) in &mut self.edges {
            let EdgeState::Closing { from, to } = &mut edge.state else { continue };
            if pushes == nf && std::mem::take(from) && *to == Taker::Untold {
                *to = Taker::Told;
                tell.push((pushes, takes));
            } else if takes == nf && *to == Taker::Told {
                *to = Taker::Done;
            }
        }
        tell
    }

    /// Forgets edges with which both ends are done and in which nothing is left. To be called when
    /// what was pushed towards the dead has been taken out: such an edge is done with, whatever its
    /// indices say, for one who was removed may live and write there for ever.
    pub fn forget_closed(&mut self, is_gone: impl Fn(NfNumber) -> bool) {
        let done = EdgeState::Closing { from: false, to: Taker::Done };
        self.edges.retain(|&(_, to), edge| {
            edge.state != done || !(is_gone(to) || edge.ring.remains().is_empty())
        });
    }

    /// True while an NF is an end of some edge: its number must not be given to another.
    #[must_use]
    pub fn involve(&self, nf: NfNumber) -> bool {
        self.edges.keys().any(|&(from, to)| from == nf || to == nf)
    }

    /// Pairs that begin or end at an NF.
    #[must_use]
    pub fn of(&self, nf: NfNumber) -> Vec<Pair> {
        self.edges.keys().copied().filter(|&(from, to)| from == nf || to == nf).collect()
    }

    /// The NFs in whose edges packets stand that they have not read, or not passed on.
    #[must_use]
    pub fn nfs_with_packets(&self) -> BTreeSet<NfNumber> {
        let edges = self.edges.iter().filter(|(_, edge)| !edge.ring.remains().is_empty());
        edges.map(|(&(_, to), _)| to).collect()
    }

    /// The NFs that an NF hands packets to directly.
    pub fn out_of(&self, nf: NfNumber) -> impl Iterator<Item = NfNumber> + '_ {
        self.edges
            .range((nf, 0)..=(nf, NfNumber::MAX))
            .filter(|(_, edge)| edge.state == EdgeState::Open)
            .map(|(&(_, to), _)| to)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (Pair, &Edge)> {
        self.edges.iter().map(|(pair, edge)| (*pair, edge))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.edges.len()
    }

    /// True when there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.edges.is_empty()
    }

    /// The buffers that a dead NF had, by the evidence it left: read from its rings and its hold map.
    /// The workers push to it no more. Takes the dead one's place at its input rings, so that what
    /// neighbours push later is found by [`drain_orphans`](Self::drain_orphans).
    #[must_use]
    pub fn remains_of(&self, nf: NfNumber, channel: &Channel) -> Vec<BufferIndex> {
        let (mut unread, mut kept) = (Vec::new(), channel.held_buffers());
        let mut passed_on = HashSet::new();
        let mut note = |(read, waiting): (Vec<Delivery>, Vec<Delivery>)| {
            kept.extend(read.iter().map(|packet| packet.buffer));
            unread.extend(waiting.iter().map(|packet| packet.buffer));
        };
        // A ring with impossible indices tells nothing: its packets come back when the domain's last
        // NF has gone.
        for (towards_nf, from_nf) in
            (0..channel.geometry().workers).filter_map(|worker| channel.remains(worker))
        {
            towards_nf.unreleased().map(&mut note);
            let pushed = from_nf.unsettled::<Returned>().unwrap_or_default();
            passed_on.extend(pushed.iter().map(|packet| packet.buffer));
        }
        for (&(from, to), edge) in &self.edges {
            let remains = edge.ring.remains();
            if to == nf {
                remains.drain().map(&mut note);
            }
            if from == nf {
                let pushed = remains.unsettled::<Delivery>().unwrap_or_default();
                passed_on.extend(pushed.iter().map(|packet| packet.buffer));
            }
        }
        still_there(unread, kept, &passed_on)
    }

    /// What neighbours pushed towards NFs that are gone, since the last look.
    #[must_use]
    pub fn drain_orphans(
        &self,
        is_gone: impl Fn(NfNumber) -> bool,
    ) -> Vec<(NfNumber, BufferIndex)> {
        let mut found = Vec::new();
        for (&(_, to), edge) in &self.edges {
            if is_gone(to)
                && let Some((read, waiting)) = edge.ring.remains().drain::<Delivery>()
            {
                found.extend(read.iter().chain(&waiting).map(|delivery| (to, delivery.buffer)));
            }
        }
        found
    }
}

#[cfg(test)]
#[path = "edges_tests.rs"]
mod tests;
