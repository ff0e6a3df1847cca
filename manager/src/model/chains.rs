//! Chains: which services, in which order, and what becomes of a packet at the end.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use nflib::branch::BranchId;
use nflib::control::{ChainSpec, ChangeOf};
use nflib::descriptor::{ChainId, PortId, ServiceId};

use super::error::{ModelError, check_name, shown, there_are};
use super::services::Services;

/// Most services in a chain: a packet's place is one byte, and the last value means "off its route".
pub const MAX_CHAIN_LEN: usize = 254;
/// Most chains; chain ids are below.
pub const MAX_CHAINS: usize = 16_384;

/// What becomes of a packet at the end of its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Out by the egress port of the port it came in by.
    Egress,
    /// Back out by the port it came in by.
    Ingress,
    /// Away with it.
    Drop,
    /// Out by this port.
    Out(PortId),
    /// On into this chain.
    Chain(ChainId),
}

/// A chain, its names resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    /// Its id; stays while a chain of this name is wanted.
    pub id: ChainId,
    /// Its services in order, at most [`MAX_CHAIN_LEN`]; one may stand in it more than once.
    pub services: Vec<ServiceId>,
    /// Its end.
    pub end: End,
    /// Where its branches lead: the start of another chain, by [`BranchId`].
    pub branches: BTreeMap<u16, ChainId>,
    /// What was written.
    pub spec: ChainSpec,
}

impl Chain {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }
}

/// All chains.
#[derive(Clone, Debug, Default)]
pub(super) struct Chains {
    pub by_id: BTreeMap<ChainId, Arc<Chain>>,
    by_name: HashMap<String, ChainId>,
}

impl Chains {
    /// Chains of which nothing is known but their ids, for others to take them over.
    pub fn of_ids(ids: &BTreeMap<String, ChainId>) -> Self {
        let stub = |(name, &id): (&String, &ChainId)| {
            let spec = ChainSpec { name: name.clone(), ..ChainSpec::default() };
            let (services, branches) = (Vec::new(), BTreeMap::new());
            (id, Arc::new(Chain { id, services, end: End::Drop, branches, spec }))
        };
        let by_name = ids.iter().map(|(name, &id)| (name.clone(), id)).collect();
        Self { by_id: ids.iter().map(stub).collect(), by_name }
    }

    /// Gives chains their ids and looks up what they name.
    pub fn resolve(
        specs: &[ChainSpec],
        services: &Services,
        ports: &[String],
        previous: Option<&Self>,
    ) -> Result<Self, ModelError> {
        if specs.len() > MAX_CHAINS {
            return Err(ModelError::invalid(format!(
                "{} chains, at most {MAX_CHAINS} are possible",
                specs.len()
            )));
        }
        let by_name = give_ids(specs, previous)?;
        let mut chains = Self { by_id: BTreeMap::new(), by_name };
        for (at, spec) in specs.iter().enumerate() {
            let chain = chains
                .resolve_one(spec, services, ports)
                .map_err(|error| error.at(ChangeOf::Chain, at))?;
            let before = previous.and_then(|p| p.by_id.get(&chain.id));
            let chain = match before {
                Some(before) if **before == chain => Arc::clone(before),
                _ => Arc::new(chain),
            };
            chains.by_id.insert(chain.id, chain);
        }
        chains.check_loops().map_err(|(name, error)| {
            let at = specs.iter().position(|spec| spec.name == name).unwrap_or_default();
            error.at(ChangeOf::Chain, at)
        })?;
        Ok(chains)
    }

    fn resolve_one(
        &self,
        spec: &ChainSpec,
        services: &Services,
        ports: &[String],
    ) -> Result<Chain, ModelError> {
        let name = &spec.name;
        let within = |error: ModelError| ModelError {
            message: format!("chain {name:?}: {}", error.message),
            ..error
        };
        let len = spec.services.len();
        if len > MAX_CHAIN_LEN {
            return Err(within(ModelError::invalid(format!(
                "services has {len} entries, at most {MAX_CHAIN_LEN} are possible"
            ))));
        }
        let order = spec.services.iter().map(|service| Ok(services.find(service)?.id));
        Ok(Chain {
            id: self.find(name).map_err(within)?,
            services: order.collect::<Result<_, _>>().map_err(within)?,
            end: self.end(&spec.end, ports).map_err(within)?,
            branches: self.branches(&spec.branches).map_err(within)?,
            spec: spec.clone(),
        })
    }

    fn end(&self, text: &str, ports: &[String]) -> Result<End, ModelError> {
        Ok(match text.split_once(':') {
            None if text == "egress" => End::Egress,
            None if text == "ingress" => End::Ingress,
            None if text == "drop" => End::Drop,
            Some(("out", port)) => End::Out(find_port(port, ports)?),
            Some(("chain", chain)) => End::Chain(self.find(chain)?),
            _ => {
                return Err(ModelError::invalid(format!(
                    "end is {}: expected egress, ingress, drop, out:PORT or chain:NAME",
                    shown(text)
                )));
            }
        })
    }

    fn branches(
        &self,
        spec: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<u16, ChainId>, ModelError> {
        let mut branches = BTreeMap::new();
        let mut names = HashMap::new();
        for (name, target) in spec {
            if !BranchId::is_name(name) {
                return Err(ModelError::invalid(format!(
                    "branch {}: a branch's name is 1 to {} of A-Z a-z 0-9 _ -",
                    shown(name),
                    BranchId::MAX_NAME_BYTES
                )));
            }
            let target = self.find(target).map_err(|error| ModelError {
                message: format!("branch {name:?}: {}", error.message),
                ..error
            })?;
            let id = BranchId::new(name).0;
            branches.insert(id, target);
            if let Some(other) = names.insert(id, name) {
                return Err(ModelError::invalid(format!(
                    "branches {other:?} and {name:?} have the same number {id}: rename one of them"
                )));
            }
        }
        Ok(branches)
    }

    /// The id of the chain with this name.
    pub fn find(&self, name: &str) -> Result<ChainId, ModelError> {
        self.by_name.get(name).copied().ok_or_else(|| {
            let mut names: Vec<_> = self.by_name.keys().map(String::as_str).collect();
            names.sort_unstable();
            let known = there_are(names.into_iter(), "there is none at all");
            ModelError::not_found(format!("there is no chain {}; {known}", shown(name)))
        })
    }

    pub fn named(&self, name: &str) -> Option<&Arc<Chain>> {
        self.by_id.get(self.by_name.get(name)?)
    }

    /// Follows the ends: each chain has one, so a walk that meets itself again is a loop that no
    /// packet leaves. O(n).
    fn check_loops(&self) -> Result<(), (String, ModelError)> {
        let mut done = HashSet::new();
        for &start in self.by_id.keys() {
            let (mut walk, mut on_walk) = (Vec::new(), HashSet::new());
            let mut next = Some(start);
            while let Some(id) = next.filter(|id| !done.contains(id)) {
                if !on_walk.insert(id) {
                    return Err(self.loop_error(walk.into_iter().skip_while(|&c| c != id)));
                }
                walk.push(id);
                next = match self.by_id[&id].end {
                    End::Chain(next) => Some(next),
                    _ => None,
                };
            }
            done.extend(walk);
        }
        Ok(())
    }

    fn loop_error(&self, ids: impl Iterator<Item = ChainId>) -> (String, ModelError) {
        const MANY: usize = 20;
        let mut names: Vec<_> = ids.map(|id| self.by_id[&id].name()).collect();
        let first = names[0].to_owned();
        let more = if names.len() > MANY { " → …" } else { "" };
        names.truncate(MANY);
        let walk = names.join(" → ");
        let message = format!(
            "chain {first:?}: its end leads back to it and packets never leave: \
             {walk}{more} → {first}; give one of them another end"
        );
        (first, ModelError::invalid(message))
    }

    /// Specs as written, by id.
    pub fn specs(&self) -> Vec<ChainSpec> {
        self.by_id.values().map(|chain| chain.spec.clone()).collect()
    }
}

/// Names to ids: a name that `previous` knows keeps its id; others get the lowest that is free, and
/// one that a chain just had only when no other is left, since packets may still carry it.
fn give_ids(
    specs: &[ChainSpec],
    previous: Option<&Chains>,
) -> Result<HashMap<String, ChainId>, ModelError> {
    let mut ids = HashMap::new();
    let mut names = HashSet::new();
    for (at, spec) in specs.iter().enumerate() {
        let name = &spec.name;
        check_name("chain", name).map_err(|error| error.at(ChangeOf::Chain, at))?;
        if !names.insert(name) {
            let message = format!("two chains are named {name:?}: names must differ");
            return Err(ModelError::invalid(message).at(ChangeOf::Chain, at));
        }
        if let Some(chain) = previous.and_then(|p| p.named(name)) {
            ids.insert(name.clone(), chain.id);
        }
    }
    let taken: HashSet<_> = ids.values().copied().collect();
    let leaving = |id: &ChainId| previous.is_some_and(|p| p.by_id.contains_key(id));
    let all = 0..MAX_CHAINS as ChainId;
    let fresh = all.clone().filter(|id| !taken.contains(id) && !leaving(id));
    let again = all.filter(|id| !taken.contains(id) && leaving(id));
    let mut free = fresh.chain(again);
    for spec in specs {
        if !ids.contains_key(&spec.name)
            && let Some(id) = free.next()
        {
            ids.insert(spec.name.clone(), id);
        }
    }
    Ok(ids)
}

/// The number of the port with this name.
pub(super) fn find_port(name: &str, ports: &[String]) -> Result<PortId, ModelError> {
    let at = ports.iter().position(|port| port == name);
    at.and_then(|at| PortId::try_from(at).ok()).ok_or_else(|| {
        let known = there_are(ports.iter().map(String::as_str), "there is none at all");
        ModelError::not_found(format!("there is no port {}; {known}", shown(name)))
    })
}
