//! What flows do, and why: counters of rules, top flows, explanations, timeouts.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use nflib::control::{ErrorCode, ExplainedHop, ExplainedTable, Explanation, FlowStatus, Reply};
use nflib::descriptor::{ChainId, PortId};

use super::{Server, ServerError, refusal};
use crate::fabric::FabricError;
use crate::flow::{FlowKey, Outcome, TableStep, Timeout};
use crate::model::{End, Model, Rule, Unmatched};
use crate::plan::{Instances, PlannedService};
use crate::status;

/// Most flows that are listed.
const MAX_FLOWS: u32 = 10_000;
/// Other matching rules that an explanation lists.
const MAX_ALSO_MATCHING: usize = 10;
/// Longest frame that is explained, bytes.
const MAX_FRAME_BYTES: usize = 16_384;
/// Chains that an explanation follows.
const MAX_CHAINS: usize = 64;

impl Server {
    /// The flows with most packets.
    pub(super) fn flows(&mut self, id: u64, limit: u32) -> Result<(), ServerError> {
        let (flows, total) = self.fabric.top_flows(limit.min(MAX_FLOWS) as usize)?;
        let model = self.conductor.model();
        let port_name = |port: PortId| model.port_name(port).to_owned();
        let flows = flows
            .into_iter()
            .map(|(flow, idle_ns)| FlowStatus {
                key: flow.key.to_spec(&port_name),
                rule: flow.rule,
                then: outcome_in_words(model, flow.outcome),
                pkts: flow.pkts,
                bytes: flow.bytes,
                idle_s: Duration::from_nanos(idle_ns).as_secs_f64(),
            })
            .collect();
        self.connections.send(id, &Reply::Flows { flows, total });
        Ok(())
    }

    /// What would become of a frame, and why.
    pub(super) fn explain(
        &mut self,
        id: u64,
        in_port: Option<&str>,
        frame: &[u8],
    ) -> Result<(), ServerError> {
        let ports = self.conductor.model().ports();
        let port = match in_port {
            None => Some(0),
            Some(name) => ports.iter().position(|port| port == name),
        };
        let Some(port) = port.and_then(|port| PortId::try_from(port).ok()) else {
            let message = format!(
                "there is no port {:?}; there are {}",
                in_port.unwrap_or_default(),
                ports.join(", ")
            );
            self.connections.send(id, &refusal(ErrorCode::NotFound, message));
            return Ok(());
        };
        if frame.len() > MAX_FRAME_BYTES {
            let message = format!("a frame of {} bytes; at most {MAX_FRAME_BYTES}", frame.len());
            self.connections.send(id, &refusal(ErrorCode::BadRequest, message));
            return Ok(());
        }
        let key = FlowKey::parse(frame, port, 0, 0);
        let (outcome, steps) = self.fabric.explain(&key)?;
        let tables = self.explained_tables(&steps)?;
        let (chain, hops, end) = self.explained_path(outcome, key.flow_hash(), port);
        let model = self.conductor.model();
        let explanation = Explanation {
            key: key.to_spec(&|port| model.port_name(port).to_owned()),
            flow_hash: key.flow_hash(),
            tables,
            chain,
            hops,
            end,
        };
        self.connections.send(id, &Reply::Explained(Box::new(explanation)));
        Ok(())
    }

    fn explained_tables(
        &mut self,
        steps: &[TableStep],
    ) -> Result<Vec<ExplainedTable>, FabricError> {
        let mut tables = Vec::new();
        for step in steps {
            let others = step.also_matching.iter().take(MAX_ALSO_MATCHING);
            let ids: Vec<_> = step.rule.iter().chain(others).copied().collect();
            let mut rules = status::rules(&mut self.fabric, &self.conductor, &ids)?.into_iter();
            let rule = if step.rule.is_some() { rules.next() } else { None };
            tables.push(ExplainedTable { table: step.table, rule, also_matching: rules.collect() });
        }
        Ok(tables)
    }

    /// The chain, each hop, and what becomes of the packet in the end.
    fn explained_path(
        &self,
        outcome: Outcome,
        flow_hash: u32,
        ingress: PortId,
    ) -> (Option<String>, Vec<ExplainedHop>, String) {
        let model = self.conductor.model();
        let first = match (outcome, model.unmatched()) {
            (Outcome::Chain(chain), _) | (Outcome::NoRule, Unmatched::Chain(chain)) => chain,
            (Outcome::Out(port), _) => return (None, Vec::new(), out(model, Some(port))),
            (Outcome::Drop, _) => return (None, Vec::new(), "drop (rule_drop)".to_owned()),
            (Outcome::NoRule, Unmatched::NoRule) => {
                return (None, Vec::new(), "drop (no_rule)".to_owned());
            }
            (Outcome::NoRule, Unmatched::Egress) => {
                return (None, Vec::new(), out(model, self.egress_of(ingress)));
            }
        };
        let name = |chain: ChainId| model.chain(chain).map(|chain| chain.name().to_owned());
        let mut hops = Vec::new();
        let mut chain = first;
        for _ in 0..MAX_CHAINS {
            let Some(route) = self.conductor.planner().current().route_of(chain) else { break };
            let mut before = None;
            for (hop, service) in (0u8..).zip(&route.hops) {
                let nf = service.instances.pick(flow_hash);
                let direct =
                    before.zip(nf).is_some_and(|pair| self.conductor.edges().is_open(pair));
                hops.push(ExplainedHop {
                    chain: name(chain).unwrap_or_default(),
                    hop,
                    service: model
                        .service(service.id)
                        .map_or_else(String::new, |s| s.name().to_owned()),
                    instance: nf
                        .and_then(|nf| self.conductor.registry().by_number(nf))
                        .map(|record| record.instance),
                    why: why(service, flow_hash),
                    via: if direct { "direct" } else { "manager" }.to_owned(),
                });
                before = nf;
                if nf.is_none() {
                    return (name(first), hops, "drop (no_instance)".to_owned());
                }
            }
            let end = match route.end {
                End::Chain(next) => {
                    chain = next;
                    continue;
                }
                End::Egress => out(model, self.egress_of(ingress)),
                End::Ingress => out(model, Some(ingress)),
                End::Out(port) => out(model, Some(port)),
                End::Drop => "drop (chain_end)".to_owned(),
            };
            return (name(first), hops, end);
        }
        (name(first), hops, "drop (hop_limit)".to_owned())
    }

    fn egress_of(&self, ingress: PortId) -> Option<PortId> {
        self.fabric.ports().get(usize::from(ingress))?.egress
    }

    /// Forgets rules that have run out at every worker.
    pub(super) fn expire_rules(&mut self) -> Result<(), ServerError> {
        self.expire_restored_rules(Instant::now());
        let expired = self.fabric.take_expired();
        if expired.is_empty() {
            return Ok(());
        }
        let asked: Vec<_> = expired.iter().map(|(_, expired)| expired.id).collect();
        let counts = self.fabric.count_rules(&asked)?;
        let mut ids = Vec::new();
        for ((_, expired), count) in expired.iter().zip(counts) {
            let id = expired.id;
            let Some(rule) = self.conductor.model().rule(id) else { continue };
            // Another worker may have seen a packet of it since.
            let over = match expired.why {
                Timeout::Hard => true,
                Timeout::Idle => count.idle_ns >= rule.entry.idle_timeout_ns,
            };
            if over && !ids.contains(&id) {
                ids.push(id);
            }
        }
        self.conductor.expire_rules(&ids);
        Ok(())
    }
}

impl Server {
    /// Forgets rules of an earlier manager whose hard timeout is over, by the time that passed there.
    fn expire_restored_rules(&mut self, now: Instant) {
        let model = self.conductor.model();
        // The first state may not be in force yet.
        if self.remaining.is_empty() || model.rule_count() == 0 {
            return;
        }
        let is_same = |rule: &Arc<Rule>| {
            model.rule(rule.id()).is_some_and(|current| current.entry == rule.entry)
        };
        let mut over = Vec::new();
        self.remaining.retain(|(end, rule)| {
            // One that was replaced since has a time of its own.
            let counts = is_same(rule);
            if counts && *end <= now {
                over.push(rule.id());
            }
            counts && *end > now
        });
        self.conductor.expire_rules(&over);
    }
}

fn out(model: &Model, port: Option<PortId>) -> String {
    match port {
        Some(port) => format!("out={}", model.port_name(port)),
        None => "drop (no_egress)".to_owned(),
    }
}

fn why(service: &PlannedService, flow_hash: u32) -> String {
    match &service.instances {
        Instances::None => "the service has no instance".to_owned(),
        Instances::One(_) => "the only instance".to_owned(),
        Instances::Many(buckets) => {
            let bucket = nflib::shm::bucket_of(flow_hash, buckets.log2());
            format!("bucket {bucket} of {} by flow hash {flow_hash:#010x}", buckets.owners().len())
        }
    }
}

fn outcome_in_words(model: &Model, outcome: Outcome) -> String {
    let chain =
        |chain| model.chain(chain).map_or_else(String::new, |chain| chain.name().to_owned());
    match outcome {
        Outcome::Chain(id) => format!("chain={}", chain(id)),
        Outcome::Out(port) => out(model, Some(port)),
        Outcome::Drop => "drop".to_owned(),
        Outcome::NoRule => match model.unmatched() {
            Unmatched::Chain(id) => format!("chain={} (no rule)", chain(id)),
            Unmatched::Egress => "egress (no rule)".to_owned(),
            Unmatched::NoRule => "drop (no_rule)".to_owned(),
        },
    }
}
