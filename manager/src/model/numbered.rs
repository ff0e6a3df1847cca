//! A wanted state with every number in it, as it is written down and read again.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use nflib::control::ChangeOf;
use nflib::descriptor::{ChainId, ServiceId};
use serde::{Deserialize, Serialize};

use super::chains::Chains;
use super::error::ModelError;
use super::rules::{self, Rules};
use super::services::Services;
use super::{Model, ModelSpecs};
use crate::flow::RuleId;

/// What is wanted, and the numbers it has: those of rules are written down by people and programs,
/// those of services by NFs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Numbered {
    /// What is wanted.
    pub specs: ModelSpecs,
    /// Ids of all services, also of those that only chains name.
    pub service_ids: BTreeMap<String, ServiceId>,
    /// Ids of the chains.
    pub chain_ids: BTreeMap<String, ChainId>,
    /// Numbers of the rules, in the order of `specs.rules`.
    pub rule_ids: Vec<RuleId>,
    /// The number of the rule that comes next.
    pub next_rule_id: RuleId,
}

impl Model {
    /// All that is needed to have this state again, numbers and all.
    #[must_use]
    pub fn numbered(&self) -> Numbered {
        Numbered {
            specs: self.specs(),
            service_ids: self.services().map(|s| (s.name().to_owned(), s.id)).collect(),
            chain_ids: self.chains().map(|c| (c.name().to_owned(), c.id)).collect(),
            rule_ids: self.rules().map(|rule| rule.id()).collect(),
            next_rule_id: self.rules.next_id(),
        }
    }

    /// The state that was written down, over the ports there are now.
    ///
    /// # Errors
    /// [`ModelError`]: something in it is possible no more, such as a port or a user that has gone.
    pub fn from_numbered(numbered: &Numbered, ports: &[String]) -> Result<Self, ModelError> {
        let Numbered { specs, service_ids, chain_ids, rule_ids, next_rule_id } = numbered;
        let ids = Services::of_ids(service_ids);
        let services = Services::resolve(&specs.services, &specs.chains, Some(&ids))?;
        let ids = Chains::of_ids(chain_ids);
        let chains = Chains::resolve(&specs.chains, &services, ports, Some(&ids))?;
        if rule_ids.len() != specs.rules.len() {
            return Err(ModelError::invalid(format!(
                "{} numbers for {} rules",
                rule_ids.len(),
                specs.rules.len()
            )));
        }
        let mut rules = Rules::after(None);
        for (at, (spec, id)) in specs.rules.iter().zip(rule_ids).enumerate() {
            let rule = rules::compile(spec, &chains, ports);
            let added = rule.and_then(|rule| rules.add_numbered(rule, *id));
            added.map_err(|error| error.at(ChangeOf::Rule, at))?;
        }
        rules.number_on_from(*next_rule_id);
        let (services, chains) = (Arc::new(services), Arc::new(chains));
        Ok(Self { ports: ports.into(), services, chains, rules })
    }
}
