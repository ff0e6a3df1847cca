//! Service chains: the order in which a packet meets services.
#![forbid(unsafe_code)]

use nflib::descriptor::ServiceId;

/// Most services in a chain: a packet's place is one byte, and the last value means "past the end".
pub const MAX_CHAIN_LEN: usize = 254;

/// One chain, resolved for the packet path: hops are positions in a list of distinct services, so
/// that finding the next NF is two indexings and no search.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceChain {
    /// Distinct services, in order of first appearance.
    services: Vec<ServiceId>,
    /// For each hop, the service's position in `services`.
    hops: Vec<u16>,
}

impl ServiceChain {
    /// The chain that visits `services` in order. A service may stand in it more than once.
    ///
    /// # Panics
    /// Never for a chain of at most [`MAX_CHAIN_LEN`] services, which the configuration checks.
    #[must_use]
    pub fn new(order: &[ServiceId]) -> Self {
        let mut chain = Self::default();
        for &service in order.iter().take(MAX_CHAIN_LEN) {
            let slot = chain.slot_of(service).unwrap_or_else(|| {
                chain.services.push(service);
                chain.services.len() - 1
            });
            chain.hops.push(slot as u16);
        }
        chain
    }

    /// Distinct services; a service's position here is its slot.
    #[must_use]
    pub fn services(&self) -> &[ServiceId] {
        &self.services
    }

    /// Services in the order of the hops.
    pub fn order(&self) -> impl Iterator<Item = ServiceId> + '_ {
        self.hops.iter().map(|&slot| self.services[usize::from(slot)])
    }

    /// The slot of the service at `hop`; `None` past the end.
    #[must_use]
    #[inline]
    pub fn hop(&self, hop: usize) -> Option<usize> {
        self.hops.get(hop).map(|&slot| usize::from(slot))
    }

    /// The slot of a service, if the chain has it.
    #[must_use]
    #[inline]
    pub fn slot_of(&self, service: ServiceId) -> Option<usize> {
        self.services.iter().position(|&s| s == service)
    }

    /// The first hop that visits the service in `slot`.
    #[must_use]
    pub fn first_hop_of(&self, slot: usize) -> u8 {
        let hop = self.hops.iter().position(|&s| usize::from(s) == slot);
        hop.and_then(|h| u8::try_from(h).ok()).unwrap_or(u8::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_stands_twice_has_one_slot_and_two_hops() {
        let chain = ServiceChain::new(&[7, 3, 7]);
        assert_eq!(chain.services(), [7, 3]);
        assert_eq!(
            (chain.hop(0), chain.hop(1), chain.hop(2), chain.hop(3)),
            (Some(0), Some(1), Some(0), None)
        );
        assert_eq!(chain.order().collect::<Vec<_>>(), [7, 3, 7]);
        assert_eq!(chain.first_hop_of(1), 1);
    }

    #[test]
    fn an_empty_chain_is_at_its_end_at_once() {
        let chain = ServiceChain::new(&[]);
        assert_eq!(chain.hop(0), None);
        assert_eq!(chain.slot_of(1), None);
    }
}
