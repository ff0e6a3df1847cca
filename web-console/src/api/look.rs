//! What the console knows without asking anybody: all that the manager's latest status says.
#![forbid(unsafe_code)]

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nflib::control::rates::{DropRate, Rates};
use nflib::control::{
    ChainStatus, DropStatus, NfStatus, PortStatus, RuleStatus, ServiceStatus, Status, WorkerStatus,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::extract::{Parameters, Segments};
use super::operation::Operation;
use crate::reading::to_json;
use crate::routes::Shared;

/// JSON with status 200.
pub fn json(value: &impl Serialize) -> Response {
    answer(StatusCode::OK, "application/json", Body::from(to_json(value)))
}

/// An answer of some media type.
pub fn answer(status: StatusCode, content_type: &'static str, body: Body) -> Response {
    let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static(content_type))];
    (status, content_type, body).into_response()
}

type Answered = Result<Response, ApiError>;

/// The operations.
pub fn operations() -> Vec<Operation> {
    vec![
        Operation::get("/api/v1/status", "status", "Everything at a glance", status)
            .answers::<Status>(),
        Operation::get("/api/v1/rates", "rates", "Rates over the latest interval", rates)
            .answers::<RatesAnswer>(),
        Operation::get("/api/v1/ports", "listPorts", "Ports", ports).answers::<Vec<PortStatus>>(),
        Operation::get("/api/v1/ports/{name}", "showPort", "One port", port)
            .segment("name", "Its name in the configuration")
            .answers::<PortStatus>(),
        Operation::get("/api/v1/nfs", "listNfs", "NFs attached now", nfs)
            .answers::<Vec<NfStatus>>(),
        Operation::get("/api/v1/nfs/{instance}", "showNf", "One NF", nf)
            .segment("instance", "Its instance id")
            .answers::<NfStatus>(),
        Operation::get("/api/v1/services", "listServices", "Services", services)
            .answers::<Vec<ServiceStatus>>(),
        Operation::get("/api/v1/services/{service}", "showService", "One service", service)
            .segment("service", "Its name, or its id")
            .answers::<ServiceStatus>(),
        Operation::get("/api/v1/chains", "listChains", "Service chains", chains)
            .answers::<Vec<ChainStatus>>(),
        Operation::get("/api/v1/chains/{name}", "showChain", "One service chain", chain)
            .segment("name", "Its name")
            .answers::<ChainStatus>(),
        Operation::get("/api/v1/rules", "listRules", "Rules, as packets meet them", rules)
            .query::<RulesQuery>()
            .answers::<RulesAnswer>(),
        Operation::get("/api/v1/rules/{rule}", "showRule", "One rule", rule)
            .segment("rule", "Its number, or its name")
            .answers::<RuleStatus>(),
        Operation::get("/api/v1/drops", "listDrops", "Every drop: place, reason, count", drops)
            .answers::<DropsAnswer>(),
        Operation::get("/api/v1/workers", "listWorkers", "Workers", workers)
            .answers::<Vec<WorkerStatus>>(),
    ]
}

async fn status(State(shared): State<Shared>) -> Answered {
    let body = shared.latest().body()?;
    Ok(answer(StatusCode::OK, "application/json", Body::from(body)))
}

/// Rates, and when they were taken.
#[derive(Serialize, JsonSchema)]
struct RatesAnswer {
    /// When the later of the two statuses was taken, nanoseconds of the manager's CLOCK_MONOTONIC.
    at_ns: u64,
    /// None until two statuses of one manager can be compared.
    rates: Option<Rates>,
}

async fn rates(State(shared): State<Shared>) -> Answered {
    let reading = shared.readings.calm.borrow().clone();
    let at_ns = reading.status()?.at_ns;
    Ok(json(&RatesAnswer { at_ns, rates: reading.rates().cloned() }))
}

async fn ports(State(shared): State<Shared>) -> Answered {
    Ok(json(&shared.latest().status()?.ports))
}

async fn port(State(shared): State<Shared>, Segments(name): Segments<String>) -> Answered {
    one(&shared.latest().status()?.ports, "port", &name, |port| port.name == name)
}

async fn nfs(State(shared): State<Shared>) -> Answered {
    Ok(json(&shared.latest().status()?.nfs))
}

async fn nf(State(shared): State<Shared>, Segments(instance): Segments<u32>) -> Answered {
    let name = instance.to_string();
    one(&shared.latest().status()?.nfs, "NF", &name, |nf| nf.instance == instance)
}

async fn services(State(shared): State<Shared>) -> Answered {
    Ok(json(&shared.latest().status()?.services))
}

async fn service(State(shared): State<Shared>, Segments(name): Segments<String>) -> Answered {
    let id = name.parse().ok();
    one(&shared.latest().status()?.services, "service", &name, |service| {
        service.name == name || Some(service.id) == id
    })
}

async fn chains(State(shared): State<Shared>) -> Answered {
    Ok(json(&shared.latest().status()?.chains))
}

async fn chain(State(shared): State<Shared>, Segments(name): Segments<String>) -> Answered {
    one(&shared.latest().status()?.chains, "chain", &name, |chain| chain.spec.name == name)
}

/// Which rules.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RulesQuery {
    /// Only those of this table.
    table: Option<u8>,
    /// At most so many; absent: all that the manager lists, 1,000.
    limit: Option<u32>,
}

/// Rules, and how many there are.
#[derive(Serialize, JsonSchema)]
struct RulesAnswer {
    /// By table, then by falling priority.
    rules: Vec<RuleStatus>,
    /// How many rules there are in all tables, also those that are not listed.
    total: u64,
}

async fn rules(
    State(shared): State<Shared>,
    Parameters(query): Parameters<RulesQuery>,
) -> Answered {
    let reading = shared.latest();
    let status = reading.status()?;
    let wanted = |rule: &&RuleStatus| query.table.is_none_or(|table| rule.spec.table == table);
    let limit = query.limit.map_or(usize::MAX, |limit| limit as usize);
    let rules = status.rules.iter().filter(wanted).take(limit).cloned().collect();
    Ok(json(&RulesAnswer { rules, total: status.rule_count }))
}

async fn rule(State(shared): State<Shared>, Segments(name): Segments<String>) -> Answered {
    let id = name.parse().ok();
    one(&shared.latest().status()?.rules, "rule", &name, |rule| {
        Some(rule.id) == id || rule.spec.name.as_deref() == Some(&*name)
    })
}

/// The ledger of drops.
#[derive(Serialize, JsonSchema)]
struct DropsAnswer {
    /// Every drop so far, by place and reason; only what is not zero.
    drops: Vec<DropStatus>,
    /// Its lines over the latest interval; absent until two statuses can be compared.
    rates: Option<Vec<DropRate>>,
    /// The sum.
    accounting: nflib::control::Accounting,
}

async fn drops(State(shared): State<Shared>) -> Answered {
    let reading = shared.readings.calm.borrow().clone();
    let status = reading.status()?;
    let rates = reading.rates().map(|rates| rates.drops.clone());
    Ok(json(&DropsAnswer { drops: status.drops.clone(), rates, accounting: status.accounting }))
}

async fn workers(State(shared): State<Shared>) -> Answered {
    Ok(json(&shared.latest().status()?.workers))
}

fn one<T: Serialize>(all: &[T], what: &str, name: &str, is: impl Fn(&T) -> bool) -> Answered {
    let found = all.iter().find(|item| is(item));
    let missing = || ApiError::not_found(format!("there is no {what} {name:?}"));
    Ok(json(found.ok_or_else(missing)?))
}
