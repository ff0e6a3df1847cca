//! Changes to a wanted state, all of them or none.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Arc;

use nflib::control::{ChainSpec, Edit, RuleSpec, ServiceRef, ServiceSpec};

use super::chains::Chains;
use super::error::{ModelError, shown};
use super::rules;
use super::services::{Services, check_instances};
use super::{Model, Rule, Service, limited, overlap_note};
use crate::flow::{RuleId, Then};

/// An edit looks for overlaps among so many rules of a priority, and no more: it must stay quick.
const MAX_COMPARED: usize = 1024;

/// What [`Model::edit`] made.
#[derive(Clone, Debug)]
pub struct Edited {
    /// The new state.
    pub model: Model,
    /// What a person should know of the change, and is no mistake.
    pub notes: Vec<String>,
    /// Numbers of the rules that were added or replaced, in the order of the edits.
    pub rule_ids: Vec<RuleId>,
}

impl Model {
    /// The state after some changes. They are made in order, and what they name may be made by a
    /// later one: only the outcome counts. On an error nothing is changed, since this is a new state.
    ///
    /// # Errors
    /// [`ModelError`], one line, with [`ErrorCode::NotFound`](nflib::control::ErrorCode::NotFound)
    /// or [`ErrorCode::Invalid`](nflib::control::ErrorCode::Invalid).
    pub fn edit(&self, edits: &[Edit]) -> Result<Edited, ModelError> {
        self.try_edit(edits).map_err(|error| ModelError { item: None, ..error })
    }

    fn try_edit(&self, edits: &[Edit]) -> Result<Edited, ModelError> {
        let mut model = self.clone();
        let removed_chains = model.edit_services_and_chains(edits)?;
        let mut rule_ids = Vec::new();
        let mut added: Vec<Arc<Rule>> = Vec::new();
        for edit in edits {
            match edit {
                Edit::AddRule { rule } => {
                    let rule = model.add_rule(rule)?;
                    rule_ids.push(rule.id());
                    added.push(rule);
                }
                Edit::RemoveRule { id } => {
                    let rule = model.rules.get(*id).cloned().ok_or_else(|| {
                        ModelError::not_found(format!("there is no rule with number {id}"))
                    })?;
                    model.rules.take_out(&rule);
                }
                Edit::RemoveRuleNamed { name } => {
                    let rule = model.rules.named(name).cloned().ok_or_else(|| {
                        ModelError::not_found(format!("there is no rule named {}", shown(name)))
                    })?;
                    model.rules.take_out(&rule);
                }
                Edit::SetChain { .. }
                | Edit::RemoveChain { .. }
                | Edit::Scale { .. }
                | Edit::SetCommand { .. } => {}
            }
        }
        if !removed_chains.is_empty() {
            self.check_no_rule_needs(&model, &removed_chains)?;
        }
        let notes = model.notes_since(self, &added);
        Ok(Edited { model, notes, rule_ids })
    }

    /// Carries out what is about services and chains; returns the names of chains that went.
    fn edit_services_and_chains(&mut self, edits: &[Edit]) -> Result<BTreeSet<String>, ModelError> {
        let mut services: Option<Vec<ServiceSpec>> = None;
        let mut chains: Option<Vec<ChainSpec>> = None;
        let mut removed = BTreeSet::new();
        for edit in edits {
            match edit {
                Edit::SetChain { chain, new } => {
                    let chains = chains.get_or_insert_with(|| self.chains.specs());
                    removed.remove(&chain.name);
                    set_chain(chains, chain, *new)?;
                }
                Edit::RemoveChain { name } => {
                    let chains = chains.get_or_insert_with(|| self.chains.specs());
                    let at = chains.iter().position(|chain| chain.name == *name);
                    // Not there, or not any more.
                    let at = at.ok_or_else(|| {
                        self.chains.find(name).err().unwrap_or_else(|| {
                            ModelError::not_found(format!("chain {name:?} is removed twice"))
                        })
                    })?;
                    chains.remove(at);
                    removed.insert(name.clone());
                }
                Edit::Scale { service, instances } => {
                    let services = services.get_or_insert_with(|| self.services.specs());
                    self.scale(services, service, *instances)?;
                }
                Edit::SetCommand { service, command } => {
                    let services = services.get_or_insert_with(|| self.services.specs());
                    self.set_command(services, service, command)?;
                }
                Edit::AddRule { .. } | Edit::RemoveRule { .. } | Edit::RemoveRuleNamed { .. } => {}
            }
        }
        if services.is_none() && chains.is_none() {
            return Ok(removed);
        }
        let chains = chains.unwrap_or_else(|| self.chains.specs());
        check_no_chain_needs(&chains, &removed)?;
        let services = services.unwrap_or_else(|| self.services.specs());
        self.services = Arc::new(Services::resolve(&services, &chains, Some(&self.services))?);
        self.chains =
            Arc::new(Chains::resolve(&chains, &self.services, &self.ports, Some(&self.chains))?);
        Ok(removed)
    }

    fn scale(
        &self,
        services: &mut [ServiceSpec],
        service: &ServiceRef,
        instances: u32,
    ) -> Result<(), ModelError> {
        let found = self.startable(service)?;
        check_instances(&found.spec, instances)?;
        if let Some(spec) = services.iter_mut().find(|spec| spec.name == found.spec.name) {
            spec.instances = instances;
        }
        Ok(())
    }

    fn set_command(
        &self,
        services: &mut [ServiceSpec],
        service: &ServiceRef,
        command: &[String],
    ) -> Result<(), ModelError> {
        let found = self.startable(service)?;
        if let Some(spec) = services.iter_mut().find(|spec| spec.name == found.spec.name) {
            spec.command = Some(command.to_vec());
        }
        Ok(())
    }

    /// A service whose NFs the manager starts.
    ///
    /// # Errors
    /// [`ModelError`]: there is none, or its NFs are started by hand.
    pub fn startable(&self, service: &ServiceRef) -> Result<&Arc<Service>, ModelError> {
        let found = self.services.find(service)?;
        if found.spec.command.is_none() {
            return Err(ModelError::invalid(format!(
                "service {:?} has no command, so its NFs are started by hand: start or stop one, \
                 or give it a command in [[service]]",
                found.name()
            )));
        }
        Ok(found)
    }

    fn add_rule(&mut self, spec: &RuleSpec) -> Result<Arc<Rule>, ModelError> {
        let rule = rules::compile(spec, &self.chains, &self.ports)?;
        self.rules.add(rule)
    }

    /// Chains that are gone from `after` must not be the target of a rule there.
    fn check_no_rule_needs(
        &self,
        after: &Self,
        removed: &BTreeSet<String>,
    ) -> Result<(), ModelError> {
        let gone: BTreeSet<_> = removed
            .iter()
            .filter_map(|name| self.chains.named(name))
            .map(|chain| chain.id)
            .collect();
        let needs = |rule: &Rule| match rule.entry.then {
            Then::Chain(id) if gone.contains(&id) => Some(id),
            _ => None,
        };
        match after.rules().find_map(|rule| Some((rule, needs(rule)?))) {
            None => Ok(()),
            Some((rule, id)) => Err(ModelError::invalid(format!(
                "chain {:?} cannot be removed: rule {} (number {}) sends packets into it; remove \
                 that rule first",
                self.chains.by_id[&id].name(),
                rule.label(),
                rule.id()
            ))),
        }
    }

    /// Notes that were not true before, and rules that overlap with the ones added.
    fn notes_since(&self, before: &Self, added: &[Arc<Rule>]) -> Vec<String> {
        let mut notes = Vec::new();
        let unmatched_changed = self.unmatched() != before.unmatched();
        if unmatched_changed
            || !Arc::ptr_eq(&self.services, &before.services)
            || !Arc::ptr_eq(&self.chains, &before.chains)
        {
            let known = before.standing_notes();
            notes.extend(self.standing_notes().into_iter().filter(|note| !known.contains(note)));
        }
        let mut overlaps = Vec::new();
        for rule in added {
            self.note_overlaps(rule, &mut overlaps);
        }
        limited(&mut notes, overlaps.into_iter());
        notes
    }

    /// Notes the rules that overlap one that was added.
    fn note_overlaps(&self, rule: &Rule, notes: &mut Vec<String>) {
        // It may have been removed or replaced by a later edit.
        if self.rules.get(rule.id()).is_none_or(|now| !std::ptr::eq(&raw const **now, rule)) {
            return;
        }
        let (table, priority) = rule.group();
        if self.rules.group_is_larger(table, priority, MAX_COMPARED) {
            notes.push(format!(
                "rule {}: more than {MAX_COMPARED} rules have its priority, so overlaps were not \
                 looked for; millrace check does",
                rule.label()
            ));
            return;
        }
        for other in self.rules.group(table, priority) {
            if other.id() != rule.id() && other.entry.matches.overlaps(&rule.entry.matches) {
                let (first, last) =
                    if other.id() < rule.id() { (&**other, rule) } else { (rule, &**other) };
                notes.push(overlap_note(first, last));
            }
        }
    }
}

fn set_chain(chains: &mut Vec<ChainSpec>, chain: &ChainSpec, new: bool) -> Result<(), ModelError> {
    match chains.iter_mut().find(|other| other.name == chain.name) {
        Some(_) if new => {
            return Err(ModelError::invalid(format!(
                "there is a chain {:?} already: remove it first, or choose another name",
                chain.name
            )));
        }
        Some(other) => *other = chain.clone(),
        None => chains.push(chain.clone()),
    }
    Ok(())
}

/// Chains that are gone must not be the end or branch of another one.
fn check_no_chain_needs(
    chains: &[ChainSpec],
    removed: &BTreeSet<String>,
) -> Result<(), ModelError> {
    if removed.is_empty() {
        return Ok(());
    }
    for chain in chains {
        let end = chain.end.strip_prefix("chain:");
        let targets = end.into_iter().chain(chain.branches.values().map(String::as_str));
        if let Some(target) = targets.into_iter().find(|target| removed.contains(*target)) {
            return Err(ModelError::invalid(format!(
                "chain {target:?} cannot be removed: chain {:?} leads into it; change that one first",
                chain.name
            )));
        }
    }
    Ok(())
}
