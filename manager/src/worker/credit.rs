//! Credit: how many buffers an NF may have at a time, so that one that hoards stops itself and
//! nobody else.
//!
//! Credit is counted for each isolated NF, and inside the trusted domain, where the manager does not
//! know which NF has a packet, for each route. Who has as many buffers as it may gets no more until
//! some come back: its packets are dropped as `no_credit` at its service.
//!
//! How many that is follows what NFs have not got (dynamic thresholds, Choudhury and Hahne 1998, as
//! switches share their memory out): an isolated NF may have as many buffers as are free or at ports,
//! the packets of a route [`ROUTE_SHARE`] times as many. So one that hoards gets half of the pool, or
//! seven eighths; two get less each, and whatever they do some stay for the ports and for everybody
//! else. `pool.credit_pkts` is a bound besides.
#![forbid(unsafe_code)]

use nflib::descriptor::NO_PORT;

use crate::ownership::{Holder, OwnershipTable, Passage, TRUSTED};

/// Buffers that packets of one route may take up in the trusted domain, for each that no NF has.
const ROUTE_SHARE: usize = 7;

/// What there is to give.
#[derive(Clone, Copy, Debug)]
pub(super) struct Credit {
    /// Buffers of the worker.
    buffers: usize,
    /// Most that anybody may have.
    limit_pkts: usize,
}

impl Credit {
    /// Of so many buffers nobody may have more than `limit_pkts`.
    pub(super) fn new(buffers: usize, limit_pkts: usize) -> Self {
        Self { buffers, limit_pkts }
    }

    /// How many more buffers this holder may have, for packets in this passage. What NFs made is no
    /// more than was lent, and not limited here.
    #[inline]
    pub(super) fn left(self, owners: &OwnershipTable, holder: Holder, passage: Passage) -> usize {
        if passage.ingress == NO_PORT {
            return usize::MAX;
        }
        self.most(owners, holder).saturating_sub(owners.held_by(holder, passage.route))
    }

    /// How many this holder may have as things are.
    #[inline]
    pub(super) fn most(self, owners: &OwnershipTable, holder: Holder) -> usize {
        let share = if holder == TRUSTED { ROUTE_SHARE } else { 1 };
        (share * (self.buffers - owners.held_buffers())).min(self.limit_pkts)
    }
}

#[cfg(test)]
mod tests {
    use nflib::descriptor::RouteId;

    use super::*;

    /// Whoever asks takes all that it may, in turn, until nobody may have more; returns what each
    /// has, and what is free.
    fn hoard(pool: u32, holders: &[(Holder, RouteId)], limit_pkts: usize) -> (Vec<usize>, usize) {
        let mut owners = OwnershipTable::new(0, pool);
        let credit = Credit::new(pool as usize, limit_pkts);
        let mut free = 0..pool;
        for _ in 0..pool {
            for &(holder, route) in holders {
                let passage = Passage { route, hop: 0, ingress: 0, visits: 0, epoch: 0 };
                if credit.left(&owners, holder, passage) > 0
                    && let Some(buffer) = free.next()
                {
                    owners.give(buffer, holder, passage);
                }
            }
        }
        (holders.iter().map(|&(h, route)| owners.held_by(h, route)).collect(), free.len())
    }

    #[test]
    fn whoever_hoards_some_buffers_stay_free_and_others_get_the_same() {
        assert_eq!(hoard(1000, &[(1, 0)], 9999), (vec![500], 500));
        assert_eq!(hoard(800, &[(TRUSTED, 3)], 9999), (vec![700], 100));
        let (held, free) = hoard(1000, &[(1, 0), (2, 0), (3, 5)], 9999);
        assert_eq!((held, free), (vec![250; 3], 250));
        let (held, free) = hoard(1500, &[(TRUSTED, 1), (TRUSTED, 2)], 9999);
        assert_eq!((held, free), (vec![700; 2], 100));
    }

    #[test]
    fn nobody_gets_more_than_the_limit() {
        assert_eq!(hoard(1000, &[(1, 0), (TRUSTED, 0)], 64), (vec![64; 2], 872));
    }
}
