//! What is different between two statuses of one manager, in words.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use nflib::control::{NfStatus, RuleStatus, ServiceStatus, Status};

use super::{Kind, Level, News};

/// Rules that are named one by one when they change at once; more are only counted.
const MAX_RULES_NAMED: usize = 3;

/// Everything that happened between two statuses of one manager.
pub fn differences(before: &Status, now: &Status) -> Vec<News> {
    let mut news = Vec::new();
    ports(before, now, &mut news);
    ends(before, now, &mut news);
    nfs(before, now, &mut news);
    services(before, now, &mut news);
    chains(before, now, &mut news);
    rules(before, now, &mut news);
    faults(before, now, &mut news);
    news
}

fn ports(before: &Status, now: &Status, news: &mut Vec<News>) {
    for port in &now.ports {
        let Some(then) = before.ports.iter().find(|then| then.name == port.name) else { continue };
        let subject = format!("port:{}", port.name);
        if then.link != port.link {
            let level = if port.link == "up" { Level::Good } else { Level::Bad };
            let text =
                format!("the link of port {} is {} (was {})", port.name, port.link, then.link);
            news.push(News::new(Kind::Link, level, &subject, text));
        }
        if port.exhausted && !then.exhausted {
            let text = format!("the source of port {} has nothing more", port.name);
            news.push(News::new(Kind::Link, Level::Info, subject, text));
        }
    }
}

/// `forward #3 of service fw`.
fn called(nf: &NfStatus) -> String {
    format!("{} #{} of service {}", nf.name, nf.instance, nf.service_name)
}

/// NFs that are gone: with a death of theirs in the list, or in good order.
fn ends(before: &Status, now: &Status, news: &mut Vec<News>) {
    let here: BTreeSet<u32> = now.nfs.iter().map(|nf| nf.instance).collect();
    let known: BTreeSet<_> =
        before.deaths.last.iter().map(|death| (death.instance, death.noticed_ns)).collect();
    let deaths = now.deaths.last.iter();
    let new: Vec<_> =
        deaths.filter(|death| !known.contains(&(death.instance, death.noticed_ns))).collect();
    for death in &new {
        let took_us = death.reclaimed_ns.saturating_sub(death.noticed_ns) / 1000;
        let text = format!(
            "NF #{} of service {} ended unexpectedly ({}); its buffers were back after {took_us} µs",
            death.instance, death.service, death.why
        );
        news.push(News::new(Kind::Crash, Level::Bad, format!("nf:{}", death.instance), text));
    }
    for nf in before.nfs.iter().filter(|nf| !here.contains(&nf.instance)) {
        if !new.iter().any(|death| death.instance == nf.instance) {
            let text = format!("{} left", called(nf));
            news.push(News::new(Kind::Stop, Level::Info, format!("nf:{}", nf.instance), text));
        }
    }
}

fn nfs(before: &Status, now: &Status, news: &mut Vec<News>) {
    let earlier: BTreeMap<u32, &NfStatus> = before.nfs.iter().map(|nf| (nf.instance, nf)).collect();
    for nf in &now.nfs {
        let subject = format!("nf:{}", nf.instance);
        let Some(then) = earlier.get(&nf.instance) else {
            let core = nf.core.map_or_else(String::new, |core| format!(" on core {core}"));
            let text = format!("{} attached{core} (pid {})", called(nf), nf.pid);
            news.push(News::new(Kind::Start, Level::Good, subject, text));
            continue;
        };
        if then.state != nf.state && nf.state != "running" {
            let text = format!("{} is {}", called(nf), nf.state);
            news.push(News::new(Kind::Stop, Level::Info, &subject, text));
        }
        match (&then.stuck, &nf.stuck) {
            (None, Some(how)) => {
                let text = format!("{} stands still: {how}", called(nf));
                news.push(News::new(Kind::Crash, Level::Bad, &subject, text));
            }
            (Some(_), None) => {
                let text = format!("{} moves again", called(nf));
                news.push(News::new(Kind::Start, Level::Good, &subject, text));
            }
            _ => {}
        }
        if nf.violations > then.violations && then.violations == 0 {
            let text = format!("{} returned descriptors that are not valid", called(nf));
            news.push(News::new(Kind::Fault, Level::Bad, subject, text));
        }
    }
}

fn services(before: &Status, now: &Status, news: &mut Vec<News>) {
    for service in &now.services {
        let then = before.services.iter().find(|then| then.id == service.id);
        let Some(then) = then else { continue };
        let subject = format!("service:{}", service.name);
        if then.wanted != service.wanted {
            let number = |wanted: Option<u32>| {
                wanted.map_or_else(|| "by hand".to_owned(), |wanted| wanted.to_string())
            };
            let text = format!(
                "service {}: {} instances wanted (before: {})",
                service.name,
                number(service.wanted),
                number(then.wanted)
            );
            news.push(News::new(Kind::Scale, Level::Info, &subject, text));
        }
        if let (None, Some(why)) = (&then.waiting, &service.waiting) {
            let text = format!("service {} waits: {why}", service.name);
            news.push(News::new(Kind::Scale, Level::Warning, &subject, text));
        }
        news.extend(
            upgrade(then, service)
                .map(|(level, text)| News::new(Kind::Upgrade, level, &subject, text)),
        );
    }
}

fn upgrade(then: &ServiceStatus, now: &ServiceStatus) -> Option<(Level, String)> {
    let name = &now.name;
    match (&then.upgrade, &now.upgrade) {
        (None, Some(upgrade)) => {
            Some((Level::Info, format!("service {name}: upgrade to {}", upgrade.command.join(" "))))
        }
        (Some(_), None) => Some((Level::Info, format!("service {name}: the upgrade has ended"))),
        (Some(then), Some(now)) if then.phase != now.phase => {
            let level = if now.phase == "rolling back" { Level::Warning } else { Level::Info };
            Some((level, format!("service {name}: upgrade: {}", now.phase)))
        }
        _ => None,
    }
}

fn chains(before: &Status, now: &Status, news: &mut Vec<News>) {
    let line = |chain: &nflib::control::ChainSpec| {
        let services: Vec<_> = chain.services.iter().map(ToString::to_string).collect();
        format!("{} → {}", services.join(" → "), chain.end)
    };
    let mut add = |name: &str, level, text| {
        news.push(News::new(Kind::Apply, level, format!("chain:{name}"), text));
    };
    for chain in &now.chains {
        let name = &chain.spec.name;
        match before.chains.iter().find(|then| then.spec.name == *name) {
            None => add(name, Level::Info, format!("chain {name} is new: {}", line(&chain.spec))),
            Some(then) => {
                if then.spec != chain.spec {
                    let text = format!("chain {name} is now {}", line(&chain.spec));
                    add(name, Level::Info, text);
                }
                if then.missing.is_empty() && !chain.missing.is_empty() {
                    let missing = chain.missing.join(", ");
                    let text = format!("chain {name} is incomplete: no instance of {missing}");
                    add(name, Level::Bad, text);
                }
                if !then.missing.is_empty() && chain.missing.is_empty() {
                    add(name, Level::Good, format!("chain {name} is complete again"));
                }
            }
        }
    }
    for then in &before.chains {
        let name = &then.spec.name;
        if !now.chains.iter().any(|chain| chain.spec.name == *name) {
            add(name, Level::Info, format!("chain {name} is gone"));
        }
    }
}

/// As far as rules are listed; of more, only the number is known.
fn rules(before: &Status, now: &Status, news: &mut Vec<News>) {
    let ids = |status: &Status| status.rules.iter().map(|rule| rule.id).collect::<BTreeSet<_>>();
    let (then, here) = (ids(before), ids(now));
    let is_whole = |status: &Status| status.rule_count == status.rules.len() as u64;
    if !is_whole(before) || !is_whole(now) {
        if before.rule_count != now.rule_count {
            let text = format!("{} rules (before: {})", now.rule_count, before.rule_count);
            news.push(News::new(Kind::Apply, Level::Info, "rules", text));
        }
        return;
    }
    let changes = [
        ("added", now.rules.iter().filter(|rule| !then.contains(&rule.id)).collect::<Vec<_>>()),
        ("removed", before.rules.iter().filter(|rule| !here.contains(&rule.id)).collect()),
    ];
    for (verb, rules) in changes {
        if rules.is_empty() {
            continue;
        }
        let named: Vec<_> = rules.iter().take(MAX_RULES_NAMED).map(|rule| one_line(rule)).collect();
        let more = rules.len() - named.len();
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        let text = format!("rule {verb}: {}{more}", named.join("; "));
        news.push(News::new(Kind::Apply, Level::Info, "rules", text));
    }
}

fn one_line(rule: &RuleStatus) -> String {
    let RuleStatus { id, spec, .. } = rule;
    let name = spec.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    format!("{id}{name} (priority {}): {} → {}", spec.priority, spec.matches, spec.then)
}

fn faults(before: &Status, now: &Status, news: &mut Vec<News>) {
    let mut add = |text: String| news.push(News::new(Kind::Fault, Level::Bad, "manager", text));
    if before.accounting.balanced && !now.accounting.balanced {
        add(format!("the books do not balance: {}", now.accounting.equation()));
    }
    if before.pool.lost != now.pool.lost && now.pool.lost != 0 {
        add(format!("{} buffers are with nobody", now.pool.lost));
    }
    if now.plan.unordered_changes > before.plan.unordered_changes {
        let text =
            "a change did not wait for the last packets of the older plan: order may be lost";
        news.push(News::new(Kind::Apply, Level::Warning, "manager", text));
    }
}
