//! Which instance of a service gets which flows: a table of buckets, moved as little as possible.
//!
//! A flow's hash names a bucket, a bucket names an instance ("table hashing"). When the n-th
//! instance joins, it takes an equal part of its buckets from each of the others: 1/n of the hash
//! space moves, exactly, and all of that to the newcomer. When one leaves, its buckets are spread
//! evenly over the rest and nothing else moves. Rendezvous hashing (Thaler and Ravishankar, 1998)
//! would move 1/n on average and leave the shares uneven; the table costs two bytes a bucket.
//!
//! A bucket is chosen by the *upper* bits of the mixed hash ([`nflib::shm::bucket_of`]), so a table
//! can be doubled by writing each entry twice, and no flow moves.
#![forbid(unsafe_code)]

/// Fewest buckets of a service with several instances, as a power of two.
const MIN_LOG2: u32 = 10;
/// Most buckets, as a power of two.
const MAX_LOG2: u32 = 16;
/// Buckets there should be for each instance, so that shares differ by little.
const BUCKETS_PER_INSTANCE: usize = 16;

/// A service's buckets. Instances are named by their NF numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    log2: u32,
    owners: Vec<u16>,
}

impl Buckets {
    /// The table for a first set of instances; `None` when there is none.
    #[must_use]
    pub fn new(nfs: &[u16]) -> Option<Self> {
        let first = *nfs.first()?;
        let start = Self { log2: MIN_LOG2, owners: vec![first; 1 << MIN_LOG2] };
        Some(start.shared_among(nfs).unwrap_or(start))
    }

    /// Binary logarithm of the number of buckets.
    #[must_use]
    pub fn log2(&self) -> u32 {
        self.log2
    }

    /// The instance of each bucket.
    #[must_use]
    pub fn owners(&self) -> &[u16] {
        &self.owners
    }

    /// Share of the flows that an instance gets, 0 to 1.
    #[must_use]
    pub fn share_of(&self, nf: u16) -> f64 {
        let own = self.owners.iter().filter(|&&owner| owner == nf).count();
        own as f64 / self.owners.len() as f64
    }

    /// The same table after instances came or went, with the fewest moves that make the shares
    /// equal (to within one bucket). `None` when no instance is left.
    #[must_use]
    pub fn shared_among(&self, nfs: &[u16]) -> Option<Self> {
        if nfs.is_empty() {
            return None;
        }
        let mut table = self.doubled_for(nfs.len());
        let mut owned: Vec<(u16, Vec<u32>)> = nfs.iter().map(|&nf| (nf, Vec::new())).collect();
        owned.sort_unstable_by_key(|(nf, _)| *nf);
        owned.dedup_by_key(|(nf, _)| *nf);
        let mut free = Vec::new();
        for (bucket, owner) in (0..).zip(&table.owners) {
            match owned.binary_search_by_key(owner, |(nf, _)| *nf) {
                Ok(at) => owned[at].1.push(bucket),
                Err(_) => free.push(bucket),
            }
        }
        for (quota, (_, buckets)) in quotas(table.owners.len(), &owned).into_iter().zip(&mut owned)
        {
            // Spread what is given away over the hash space: neighbouring buckets are alike.
            buckets.sort_unstable_by_key(|&bucket| bucket.wrapping_mul(0x85EB_CA6B));
            free.extend(buckets.drain(quota.min(buckets.len())..));
        }
        free.sort_unstable_by_key(|&bucket| bucket.wrapping_mul(0xC2B2_AE35));
        let mut free = free.into_iter();
        for (quota, (nf, buckets)) in quotas(table.owners.len(), &owned).into_iter().zip(&owned) {
            for bucket in free.by_ref().take(quota.saturating_sub(buckets.len())) {
                table.owners[bucket as usize] = *nf;
            }
        }
        Some(table)
    }

    fn doubled_for(&self, instances: usize) -> Self {
        let mut table = self.clone();
        while table.owners.len() < instances * BUCKETS_PER_INSTANCE && table.log2 < MAX_LOG2 {
            table.owners = table.owners.iter().flat_map(|&owner| [owner, owner]).collect();
            table.log2 += 1;
        }
        table
    }
}

/// How many buckets each instance should have: all the same, and what cannot be divided goes to those
/// who have most now, so that it need not move.
fn quotas(buckets: usize, owned: &[(u16, Vec<u32>)]) -> Vec<usize> {
    let (each, rest) = (buckets / owned.len(), buckets % owned.len());
    let mut by_size: Vec<usize> = (0..owned.len()).collect();
    by_size.sort_by_key(|&at| std::cmp::Reverse(owned[at].1.len()));
    let mut quotas = vec![each; owned.len()];
    for &at in by_size.iter().take(rest) {
        quotas[at] += 1;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::shm::bucket_of;
    use proptest::prelude::*;

    fn moved(before: &Buckets, after: &Buckets) -> usize {
        let log2 = before.log2.max(after.log2);
        let owner = |table: &Buckets, bucket: usize| table.owners[bucket >> (log2 - table.log2)];
        (0..1 << log2).filter(|&b| owner(before, b) != owner(after, b)).count()
    }

    #[test]
    fn the_nth_instance_takes_one_nth_and_nobody_else_moves() {
        let mut table = Buckets::new(&[0]).unwrap();
        for n in 2..40u16 {
            let nfs: Vec<_> = (0..n).collect();
            let next = table.shared_among(&nfs).unwrap();
            let buckets = next.owners.len();
            let taken = moved(&table, &next);
            assert!(taken <= buckets / usize::from(n) + 1, "{n}: {taken} of {buckets}");
            assert!((next.share_of(n - 1) - 1.0 / f64::from(n)).abs() < 2.0 / buckets as f64);
            table = next;
        }
    }

    #[test]
    fn doubling_moves_no_flow() {
        let few = Buckets::new(&[0, 1, 2]).unwrap();
        let many = few.doubled_for(1000);
        assert!(many.log2 > few.log2);
        for hash in (0..10_000u32).map(|n| n.wrapping_mul(0x1234_5677)) {
            let owner = |t: &Buckets| t.owners[bucket_of(hash, t.log2) as usize];
            assert_eq!(owner(&few), owner(&many));
        }
    }

    #[test]
    fn a_thousand_instances_have_nearly_equal_shares() {
        let nfs: Vec<_> = (0..1000).collect();
        let table = Buckets::new(&nfs).unwrap();
        for nf in nfs {
            assert!((table.share_of(nf) - 0.001).abs() < 0.000_1);
        }
        assert!(table.shared_among(&[]).is_none());
    }

    proptest! {
        /// After any comings and goings: every bucket belongs to one who is there, shares are equal
        /// to within one bucket, and no more moved than had to.
        #[test]
        fn shares_stay_equal_with_the_fewest_moves(steps in proptest::collection::vec(0u16..12, 1..30)) {
            let mut present = vec![0u16];
            let mut table = Buckets::new(&present).unwrap();
            for nf in steps {
                let before = present.clone();
                match present.iter().position(|&p| p == nf) {
                    Some(at) if present.len() > 1 => { present.remove(at); }
                    Some(_) => {}
                    None => present.push(nf),
                }
                let next = table.shared_among(&present).unwrap();
                let counts: Vec<_> = present.iter()
                    .map(|&p| next.owners.iter().filter(|&&o| o == p).count()).collect();
                prop_assert_eq!(counts.iter().sum::<usize>(), next.owners.len());
                prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
                let largest = before.len().max(present.len());
                prop_assert!(moved(&table, &next) <= next.owners.len() / largest + largest);
                table = next;
            }
        }
    }
}
