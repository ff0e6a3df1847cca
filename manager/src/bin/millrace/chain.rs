//! `millrace chain …`
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use anyhow::bail;
use clap::{Args, Subcommand};
use nflib::control::{ChainSpec, ChainStatus, Edit, OnDeath, ServiceRef, ServiceStatus, Status};

use crate::table::{Table, clean, list};
use crate::{Globals, applied, print, rule, words};

#[derive(Subcommand)]
pub enum Verb {
    /// One line each
    List,
    /// One chain: its services and their instances, its end, its branches, who leads to it
    Show {
        /// The chain
        name: String,
    },
    /// Add a chain
    Add(Spec),
    /// Put a chain in the place of the one of that name, or add it
    Set(Spec),
    /// Remove a chain that no rule, branch or end names
    Remove {
        /// The chain
        name: String,
    },
}

#[derive(Args)]
pub struct Spec {
    /// Its name
    name: String,
    /// Its services in order, by name or id, separated by commas; "" for none
    #[arg(long, value_name = "A,B,C")]
    services: String,
    /// What becomes of a packet at the end: egress, ingress, drop, out:PORT or chain:NAME
    #[arg(long, default_value = "egress")]
    end: String,
    /// A branch that NFs may take to the start of another chain; may be repeated
    #[arg(long = "branch", value_name = "NAME=CHAIN", value_parser = words::branch)]
    branches: Vec<(String, String)>,
    /// What becomes of packets at a service whose last NF has died: drop, bypass (they skip it), or
    /// hold (they wait for the next NF)
    #[arg(long, value_name = "POLICY", default_value_t)]
    on_death: OnDeath,
}

impl Spec {
    fn chain(self) -> anyhow::Result<ChainSpec> {
        let services: Vec<_> = match self.services.trim() {
            "" => Vec::new(),
            names => names.split(',').map(service).collect::<anyhow::Result<_>>()?,
        };
        let mut chain =
            ChainSpec { name: self.name, services, end: self.end, ..Default::default() };
        chain.on_death = self.on_death;
        for (name, target) in self.branches {
            if chain.branches.insert(name.clone(), target).is_some() {
                return Err(print::usage(format!("branch {name:?} is given twice")));
            }
        }
        Ok(chain)
    }
}

fn service(name: &str) -> anyhow::Result<ServiceRef> {
    if name.trim().is_empty() {
        return Err(print::usage("--services: a service's name is missing between commas"));
    }
    match name.trim().parse() {
        Ok(service) => Ok(service),
        Err(error) => match error {},
    }
}

pub fn run(globals: &Globals, verb: Verb) -> anyhow::Result<()> {
    let edit = match verb {
        Verb::List => {
            let status = globals.connect()?.status()?;
            return print::either(globals.json, &status.chains, || table(&status.chains));
        }
        Verb::Show { name } => {
            let status = globals.connect()?.status()?;
            let Some(chain) = status.chains.iter().find(|chain| chain.spec.name == name) else {
                let names: Vec<_> = status.chains.iter().map(|c| c.spec.name.as_str()).collect();
                bail!("there is no chain {name:?}; there are: {}", clean(&list(&names)));
            };
            return print::either(globals.json, chain, || show(&status, chain));
        }
        Verb::Add(spec) => Edit::SetChain { chain: spec.chain()?, new: true },
        Verb::Set(spec) => Edit::SetChain { chain: spec.chain()?, new: false },
        Verb::Remove { name } => Edit::RemoveChain { name },
    };
    applied::report(globals, &globals.connect()?.edit(vec![edit])?)
}

/// One line for each chain.
pub fn table(chains: &[ChainStatus]) -> String {
    let mut table = Table::new(&[
        "CHAIN", "SERVICES", "END", "BRANCHES", "ON DEATH", "PKTS", "BYTES", "MISSING",
    ]);
    for chain in chains {
        table.row(vec![
            chain.spec.name.clone(),
            services(&chain.spec),
            chain.spec.end.clone(),
            list(&branches(&chain.spec)),
            chain.spec.on_death.to_string(),
            chain.pkts.to_string(),
            chain.bytes.to_string(),
            list(&chain.missing),
        ]);
    }
    table.text()
}

/// `fw → nat`.
pub fn services(chain: &ChainSpec) -> String {
    if chain.services.is_empty() {
        return "(none)".to_owned();
    }
    chain.services.iter().map(ToString::to_string).collect::<Vec<_>>().join(" → ")
}

fn branches(chain: &ChainSpec) -> Vec<String> {
    chain.branches.iter().map(|(name, target)| format!("{name}={target}")).collect()
}

fn show(status: &Status, chain: &ChainStatus) -> String {
    let spec = &chain.spec;
    let mut out = format!("chain {} (id {})\n", clean(&spec.name), chain.id);
    if spec.services.is_empty() {
        out += "  no services\n";
    }
    let mut hops = Table::new(&["HOP", "SERVICE", "INSTANCES", "NOTE"]);
    for (hop, service) in spec.services.iter().enumerate() {
        let known = find(status, service);
        let note = match known {
            None => "unknown".to_owned(),
            Some(known) if known.instances.is_empty() => {
                let why = known.waiting.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
                let waiting = match known.waiting_pkts {
                    0 => String::new(),
                    pkts => format!(", {pkts} packets wait"),
                };
                format!("NO INSTANCE{waiting}{why}")
            }
            Some(known) if known.isolated => "isolated".to_owned(),
            Some(_) => String::new(),
        };
        let instances = known.map(|known| list(&known.instances)).unwrap_or_else(|| "-".into());
        hops.row(vec![hop.to_string(), service.to_string(), instances, note]);
    }
    if !spec.services.is_empty() {
        for line in hops.lines() {
            let _ = writeln!(out, "  {line}");
        }
    }
    let _ = writeln!(out, "end       {}", clean(&spec.end));
    for (name, target) in &spec.branches {
        let _ = writeln!(out, "branch    {} → chain {}", clean(name), clean(target));
    }
    let _ = writeln!(out, "on death  {}", spec.on_death);
    let _ = writeln!(out, "traffic   {} packets, {} bytes", chain.pkts, chain.bytes);
    for leads in leads_here(status, &spec.name) {
        let _ = writeln!(out, "led to by {}", clean(&leads));
    }
    out
}

/// The service a chain names.
pub fn find<'a>(status: &'a Status, service: &ServiceRef) -> Option<&'a ServiceStatus> {
    status.services.iter().find(|known| match service {
        ServiceRef::Id(id) => known.id == *id,
        ServiceRef::Name(name) => known.name == *name,
    })
}

fn leads_here(status: &Status, name: &str) -> Vec<String> {
    let rules = status.rules.iter().filter(|rule| rule.spec.then.chain.as_deref() == Some(name));
    let mut leads: Vec<_> = rules.map(|rule| format!("rule {}", rule::one_line(rule))).collect();
    for chain in &status.chains {
        let other = &chain.spec.name;
        if chain.spec.end.strip_prefix("chain:") == Some(name) {
            leads.push(format!("the end of chain {other}"));
        }
        let branches = chain.spec.branches.iter().filter(|(_, target)| *target == name);
        leads.extend(branches.map(|(branch, _)| format!("branch {branch} of chain {other}")));
    }
    leads
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::control::{MatchSpec, RuleSpec, RuleStatus, ThenSpec};

    fn status() -> Status {
        let chain = |name: &str, services: &[&str], end: &str| ChainStatus {
            id: 1,
            spec: ChainSpec {
                name: name.into(),
                services: services.iter().map(|s| ServiceRef::Name((*s).into())).collect(),
                end: end.into(),
                branches: [("bad".to_owned(), "scrub".to_owned())].into(),
                on_death: OnDeath::Hold,
            },
            pkts: 10,
            bytes: 1000,
            missing: vec!["nat".into()],
            ..ChainStatus::default()
        };
        let service = |id, name: &str, instances: &[u32]| ServiceStatus {
            id,
            name: name.into(),
            instances: instances.to_vec(),
            ..Default::default()
        };
        let mut nat = service(2, "nat", &[]);
        nat.waiting = Some("starts again in 2 s".into());
        let rule = RuleStatus {
            id: 4,
            spec: RuleSpec {
                priority: 10,
                matches: MatchSpec::default(),
                then: ThenSpec { chain: Some("scrub".into()), ..Default::default() },
                ..Default::default()
            },
            ..Default::default()
        };
        Status {
            chains: vec![chain("web", &["fw", "nat", "ghost"], "chain:scrub"), {
                let mut scrub = chain("scrub", &[], "drop");
                scrub.spec.branches.clear();
                scrub.spec.on_death = OnDeath::Drop;
                scrub.missing.clear();
                scrub
            }],
            services: vec![service(1, "fw", &[3, 5]), nat],
            rules: vec![rule],
            ..Default::default()
        }
    }

    #[test]
    fn a_list_has_one_line_for_each() {
        assert_eq!(
            table(&status().chains),
            "CHAIN  SERVICES          END          BRANCHES   ON DEATH  PKTS  BYTES  MISSING\n\
             web    fw → nat → ghost  chain:scrub  bad=scrub  hold        10   1000  nat\n\
             scrub  (none)            drop         -          drop        10   1000  -\n"
        );
    }

    #[test]
    fn a_chain_is_shown_with_its_instances_and_what_is_missing() {
        let status = status();
        assert_eq!(
            show(&status, &status.chains[0]),
            "chain web (id 1)\n\
             \x20 HOP  SERVICE  INSTANCES  NOTE\n\
             \x20   0  fw       3,5\n\
             \x20   1  nat      -          NO INSTANCE: starts again in 2 s\n\
             \x20   2  ghost    -          unknown\n\
             end       chain:scrub\n\
             branch    bad → chain scrub\n\
             on death  hold\n\
             traffic   10 packets, 1000 bytes\n"
        );
    }

    #[test]
    fn a_chain_is_shown_with_all_that_leads_to_it() {
        let status = status();
        assert_eq!(
            show(&status, &status.chains[1]),
            "chain scrub (id 1)\n\
             \x20 no services\n\
             end       drop\n\
             on death  drop\n\
             traffic   10 packets, 1000 bytes\n\
             led to by rule 4 (priority 10): * → chain=scrub\n\
             led to by the end of chain web\n\
             led to by branch bad of chain web\n"
        );
    }

    fn spec(services: &[&str], branches: &[(&str, &str)]) -> Spec {
        Spec {
            name: "web".into(),
            services: services.join(","),
            end: "egress".into(),
            branches: branches.iter().map(|&(n, c)| (n.into(), c.into())).collect(),
            on_death: OnDeath::Hold,
        }
    }

    #[test]
    fn a_chain_is_read_from_its_words() {
        let chain = spec(&["fw", "7"], &[("bad", "scrub")]).chain().unwrap();
        assert_eq!(chain.services, [ServiceRef::Name("fw".into()), ServiceRef::Id(7)]);
        assert_eq!(chain.branches["bad"], "scrub");
        assert!(spec(&[""], &[]).chain().unwrap().services.is_empty());
    }

    #[test]
    fn a_hole_between_commas_and_a_branch_given_twice_are_bad_usage() {
        for spec in [spec(&["fw", ""], &[]), spec(&["fw"], &[("b", "x"), ("b", "y")])] {
            assert!(spec.chain().unwrap_err().is::<print::Usage>());
        }
    }
}
