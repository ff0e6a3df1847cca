//! The wanted state: services, chains and rules, checked and resolved.
//!
//! A [`Model`] is a value. [`Model::build`] makes it from what a file says, [`Model::edit`] makes the
//! next one from commands, both or not at all: what was, stays as it is, and what the two have in
//! common is shared. Names get their numbers here (service ids, chain ids, rule numbers), and keep
//! them from one model to the next for as long as they are wanted.
//!
//! What an edit costs does not depend on how many rules there are, but for a logarithm: adding one
//! copies about a dozen nodes of 32 entries. Removing a chain looks at every rule once, a change of a
//! service or chain at every service and chain.
#![forbid(unsafe_code)]

mod chains;
mod diff;
mod edit;
mod error;
mod numbered;
mod order;
#[cfg(test)]
pub(crate) mod properties;
mod rules;
mod services;
#[cfg(test)]
mod tests;
mod text;
mod tree;

use std::collections::BTreeSet;
use std::sync::Arc;

use nflib::control::spec::DEFAULT_CHAIN_NAME;
use nflib::control::{ChainSpec, ChangeOf, MatchSpec, RuleSpec, ServiceRef, ServiceSpec};
use nflib::descriptor::{ChainId, PortId, ServiceId};
use serde::{Deserialize, Serialize};

use crate::flow::{Match, RuleId, find_overlaps};
use chains::Chains;
pub use chains::{Chain, End, MAX_CHAIN_LEN, MAX_CHAINS};
pub use diff::RuleDelta;
pub use edit::Edited;
pub use error::{Item, MAX_NAME_BYTES, ModelError};
pub use numbered::Numbered;
use rules::Rules;
pub use rules::{MIN_TIMEOUT_S, Rule};
use services::Services;
pub use services::{MAX_INSTANCES, MAX_SERVICE_ID, MAX_SERVICES, Service};
pub use text::to_toml;

/// Longest time that can be asked for, seconds: 31 years.
pub const MAX_SECONDS: f64 = 1e9;
/// Most notes about one kind of thing; more are counted.
const MAX_NOTES: usize = 20;

/// What a file says of services, chains and rules, in its order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelSpecs {
    /// Tables `[[service]]`.
    pub services: Vec<ServiceSpec>,
    /// Tables `[[chain]]`.
    pub chains: Vec<ChainSpec>,
    /// Tables `[[rule]]`.
    pub rules: Vec<RuleSpec>,
}

/// What becomes of a packet that no rule takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmatched {
    /// It goes through the chain named `default`.
    Chain(ChainId),
    /// There is no chain and no rule: it goes straight out by the egress port.
    Egress,
    /// There are chains or rules, but no `default`: it is dropped, and counted as `no_rule`.
    NoRule,
}

/// The wanted state. A clone costs a few reference counts.
#[derive(Clone, Debug)]
pub struct Model {
    ports: Arc<[String]>,
    services: Arc<Services>,
    chains: Arc<Chains>,
    rules: Rules,
}

impl Default for Model {
    /// No port, no service, no chain, no rule.
    fn default() -> Self {
        Self {
            ports: Arc::new([]),
            services: Arc::default(),
            chains: Arc::default(),
            rules: Rules::after(None),
        }
    }
}

impl Model {
    /// Checks and resolves what is written. `ports` are the ports' names in the order of their
    /// numbers. From `previous`, services and chains of the same name and rules of the same table,
    /// priority and match keep their numbers; a rule that comes to stand behind one it overlaps gets
    /// a new one.
    ///
    /// Returns notes too: what a person should know, and is no mistake.
    ///
    /// # Errors
    /// [`ModelError`]: the first mistake, and the table it stands in.
    pub fn build(
        specs: &ModelSpecs,
        ports: &[String],
        previous: Option<&Self>,
    ) -> Result<(Self, Vec<String>), ModelError> {
        let old_services = previous.map(|model| &*model.services);
        let services = Services::resolve(&specs.services, &specs.chains, old_services)?;
        let old_chains = previous.map(|model| &*model.chains);
        let chains = Chains::resolve(&specs.chains, &services, ports, old_chains)?;
        let old_rules = previous.map(|model| &model.rules);
        let mut rules = Rules::after(old_rules);
        let in_rule = |(at, error): (usize, ModelError)| error.at(ChangeOf::Rule, at);
        let compiled = (0..)
            .zip(&specs.rules)
            .map(|(at, spec)| rules::compile(spec, &chains, ports).map_err(|error| (at, error)))
            .collect::<Result<_, _>>()
            .map_err(in_rule)?;
        rules.add_all(compiled, old_rules).map_err(in_rule)?;
        let model = Self {
            ports: ports.into(),
            services: Arc::new(services),
            chains: Arc::new(chains),
            rules,
        };
        let mut notes = model.standing_notes();
        notes.extend(model.overlap_notes());
        Ok((model, notes))
    }

    /// Names of the ports, by number.
    #[must_use]
    pub fn ports(&self) -> &[String] {
        &self.ports
    }

    /// The name of a port; empty for one that does not exist.
    #[must_use]
    pub fn port_name(&self, port: PortId) -> &str {
        self.ports.get(usize::from(port)).map_or("", String::as_str)
    }

    /// A match as rules have it.
    ///
    /// # Errors
    /// What a rule with it would be refused for.
    pub fn match_of(&self, spec: &MatchSpec) -> Result<Match, ModelError> {
        rules::compile_match(spec, &self.ports)
    }

    /// The services, by id.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> + '_ {
        self.services.by_id.values()
    }

    /// The service with an id.
    #[must_use]
    pub fn service(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.services.by_id.get(&id)
    }

    /// The service that is meant by a name or an id.
    ///
    /// # Errors
    /// [`ModelError`] that lists the services there are.
    pub fn find_service(&self, service: &ServiceRef) -> Result<&Arc<Service>, ModelError> {
        self.services.find(service)
    }

    /// Whether services are declared; else they are those that chains name.
    #[must_use]
    pub fn services_are_declared(&self) -> bool {
        self.services.declared
    }

    /// The services that some chain names: those that `wait_for_nfs` waits for.
    #[must_use]
    pub fn services_in_chains(&self) -> BTreeSet<ServiceId> {
        self.chains().flat_map(|chain| chain.services.iter().copied()).collect()
    }

    /// The chains, by id.
    pub fn chains(&self) -> impl ExactSizeIterator<Item = &Arc<Chain>> + '_ {
        self.chains.by_id.values()
    }

    /// The chain with an id.
    #[must_use]
    pub fn chain(&self, id: ChainId) -> Option<&Arc<Chain>> {
        self.chains.by_id.get(&id)
    }

    /// The chain with a name.
    #[must_use]
    pub fn chain_named(&self, name: &str) -> Option<&Arc<Chain>> {
        self.chains.named(name)
    }

    /// The chain that takes what no rule sends elsewhere.
    #[must_use]
    pub fn default_chain(&self) -> Option<&Arc<Chain>> {
        self.chain_named(DEFAULT_CHAIN_NAME)
    }

    /// What becomes of a packet that no rule takes.
    #[must_use]
    pub fn unmatched(&self) -> Unmatched {
        match self.default_chain() {
            Some(chain) => Unmatched::Chain(chain.id),
            None if self.chains().len() == 0 && self.rules.is_empty() => Unmatched::Egress,
            None => Unmatched::NoRule,
        }
    }

    /// The rules in the order in which packets meet them: by table, by falling priority, and among
    /// equals by number. Of two that overlap, the one written first has the lower number.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> + '_ {
        self.rules.iter()
    }

    /// How many rules there are.
    #[must_use]
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// The rule with a number.
    #[must_use]
    pub fn rule(&self, id: RuleId) -> Option<&Arc<Rule>> {
        self.rules.get(id)
    }

    /// The rule with a name.
    #[must_use]
    pub fn rule_named(&self, name: &str) -> Option<&Arc<Rule>> {
        self.rules.named(name)
    }

    /// What would have to be written for this state: services by id, chains by id, rules in their
    /// order.
    #[must_use]
    pub fn specs(&self) -> ModelSpecs {
        ModelSpecs {
            services: self.services.specs(),
            chains: self.chains.specs(),
            rules: self.rules().map(|rule| rule.spec()).collect(),
        }
    }

    /// What is true of the state as a whole and a person should know.
    fn standing_notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.unmatched() == Unmatched::NoRule {
            notes.push(format!(
                "there is no chain {DEFAULT_CHAIN_NAME:?}: packets that no rule takes are dropped \
                 (no_rule)"
            ));
        }
        let used = self.services_in_chains();
        let unused = self.services().filter(|service| !used.contains(&service.id));
        limited(
            &mut notes,
            unused.map(|service| {
                format!(
                    "service {:?} is in no chain: only what NFs send to it by its name gets there",
                    service.name()
                )
            }),
        );
        let ignored = self.services().filter_map(|service| {
            let keys = service.keys_without_command();
            (!keys.is_empty()).then(|| {
                format!(
                    "service {:?} has no command, so its NFs are started by hand; {} is for those \
                     that the manager starts",
                    service.name(),
                    keys.join(", ")
                )
            })
        });
        limited(&mut notes, ignored);
        notes
    }

    /// Rules of which the order of writing decides.
    fn overlap_notes(&self) -> Vec<String> {
        let entries: Vec<_> = self.rules().map(|rule| rule.entry).collect();
        let pairs = find_overlaps(&entries, MAX_NOTES + 1);
        let mut notes: Vec<_> = pairs
            .iter()
            .take(MAX_NOTES)
            .filter_map(|(first, other)| Some(overlap_note(self.rule(*first)?, self.rule(*other)?)))
            .collect();
        if pairs.len() > MAX_NOTES {
            notes.push("… and more rules that overlap".into());
        }
        notes
    }
}

/// Says of two rules of one priority which is taken for packets that match both.
fn overlap_note(first: &Rule, other: &Rule) -> String {
    format!(
        "rules {} and {} overlap and have the same priority: the first is taken where both match",
        first.label(),
        other.label()
    )
}

/// Adds notes, the first [`MAX_NOTES`] in words.
fn limited(notes: &mut Vec<String>, more: impl Iterator<Item = String>) {
    let mut more = more.peekable();
    notes.extend(more.by_ref().take(MAX_NOTES));
    if more.peek().is_some() {
        notes.push(format!("… and {} more like that", more.count()));
    }
}

/// The same services, chains and rules, in the same order where order counts; whatever their numbers
/// are, but for service ids, which people write down.
impl PartialEq for Model {
    fn eq(&self, other: &Self) -> bool {
        Self::diff(self, other).is_empty()
    }
}
