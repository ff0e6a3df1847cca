//! What changes what runs: refused unless the console was started with `--allow-changes`.
#![forbid(unsafe_code)]

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use nflib::control::{
    Applied, ChainSpec, Edit, MAX_MESSAGE_BYTES, Reply, Request, RuleSpec, ServiceRef, Target,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::extract::{Body, CONFIG_BODY_BYTES, Segments};
use super::look::json;
use super::operation::{Method, Operation};
use super::question::{ConfigBody, unexpected};
use crate::manager::{CHANGE_LIMIT, Cost};
use crate::routes::Shared;

/// How long all but the probation of an upgrade may take.
const UPGRADE_LIMIT: Duration = Duration::from_secs(60);
/// Longest probation, milliseconds: an hour.
const MAX_PROBATION_MS: u64 = 3_600_000;
/// Most edits at once.
const MAX_EDITS: usize = 1000;

type Answered = Result<Response, ApiError>;

/// The operations.
pub fn operations() -> Vec<Operation> {
    use Method::{Delete, Post, Put};
    let all = [
        Operation::new(Post, "/api/v1/edits", "edit", "Make some changes: all, or none", edits)
            .body::<Edits>()
            .answers::<Applied>(),
        Operation::new(
            Post,
            "/api/v1/rules",
            "addRule",
            "Add a rule, or replace the one with its table, priority and match",
            add_rule,
        )
        .body::<RuleSpec>()
        .answers::<Applied>(),
        Operation::new(Delete, "/api/v1/rules/{rule}", "removeRule", "Remove a rule", remove_rule)
            .segment("rule", "Its number, or its name")
            .answers::<Applied>(),
        Operation::new(Post, "/api/v1/chains", "addChain", "Add a service chain", add_chain)
            .body::<ChainSpec>()
            .answers::<Applied>(),
        Operation::new(
            Put,
            "/api/v1/chains/{name}",
            "setChain",
            "Make a service chain be as the body says",
            set_chain,
        )
        .segment("name", "Its name, the same as in the body")
        .body::<ChainSpec>()
        .answers::<Applied>(),
        Operation::new(
            Delete,
            "/api/v1/chains/{name}",
            "removeChain",
            "Remove a service chain that nothing leads to",
            remove_chain,
        )
        .segment("name", "Its name")
        .answers::<Applied>(),
        Operation::new(
            Put,
            "/api/v1/services/{service}/instances",
            "scaleService",
            "Keep so many instances of a service running; 0 stops all",
            scale,
        )
        .segment("service", "Its name, or its id")
        .body::<Instances>()
        .answers::<Applied>(),
        Operation::new(
            Put,
            "/api/v1/services/{service}/command",
            "setServiceCommand",
            "Start the NFs of a service by another command, without trying it out",
            set_command,
        )
        .segment("service", "Its name, or its id")
        .body::<Command>()
        .answers::<Applied>(),
        Operation::new(
            Post,
            "/api/v1/services/{service}/upgrade",
            "upgradeService",
            "Run a service by another command, tried out beside the old one first",
            upgrade,
        )
        .segment("service", "Its name, or its id")
        .body::<Upgrade>()
        .answers::<Applied>(),
        Operation::new(
            Post,
            "/api/v1/services/{service}/call",
            "callService",
            "Hand a message to every instance of a service",
            call_service,
        )
        .segment("service", "Its name, or its id")
        .body::<Message>()
        .answers::<Vec<Called>>(),
        Operation::new(
            Post,
            "/api/v1/nfs/{instance}/call",
            "callNf",
            "Hand a message to an NF",
            call_nf,
        )
        .segment("instance", "Its instance id")
        .body::<Message>()
        .answers::<Vec<Called>>(),
        Operation::new(
            Delete,
            "/api/v1/nfs/{instance}",
            "stopNf",
            "Tell an NF to leave in good order",
            stop_nf,
        )
        .segment("instance", "Its instance id"),
        Operation::new(
            Post,
            "/api/v1/config/apply",
            "applyConfig",
            "Make what runs be what a configuration file says: all of it, or nothing",
            apply,
        )
        .body::<ConfigBody>()
        .answers::<Applied>(),
    ];
    all.into_iter().map(Operation::changes).collect()
}

/// Asks for something that changes what runs; when it is answered, the status has it too.
async fn ask(shared: &Shared, request: Request, limit: Duration) -> Result<Reply, ApiError> {
    let reply = shared.asker.ask(request, Cost::Change, limit).await?;
    shared.renew().await;
    Ok(reply)
}

async fn change(shared: &Shared, request: Request, limit: Duration) -> Answered {
    match ask(shared, request, limit).await? {
        Reply::Applied(applied) => Ok(json(&applied)),
        _ => Err(unexpected("a change")),
    }
}

async fn edit(shared: &Shared, edit: Edit) -> Answered {
    change(shared, Request::Edit { edits: vec![edit] }, CHANGE_LIMIT).await
}

/// A service as the path names it.
fn service(name: &str) -> ServiceRef {
    name.parse().unwrap_or_else(|error| match error {})
}

/// Some changes.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Edits {
    /// In order.
    #[schemars(length(max = 1000))]
    edits: Vec<Edit>,
}

async fn edits(State(shared): State<Shared>, Body(body): Body<Edits>) -> Answered {
    if body.edits.len() > MAX_EDITS {
        return Err(ApiError::bad_request(format!("at most {MAX_EDITS} edits at once")));
    }
    change(&shared, Request::Edit { edits: body.edits }, CHANGE_LIMIT).await
}

async fn add_rule(State(shared): State<Shared>, Body(rule): Body<RuleSpec>) -> Answered {
    edit(&shared, Edit::AddRule { rule: Box::new(rule) }).await
}

async fn remove_rule(State(shared): State<Shared>, Segments(rule): Segments<String>) -> Answered {
    let removal = match rule.parse() {
        Ok(id) => Edit::RemoveRule { id },
        Err(_) => Edit::RemoveRuleNamed { name: rule },
    };
    edit(&shared, removal).await
}

async fn add_chain(State(shared): State<Shared>, Body(chain): Body<ChainSpec>) -> Answered {
    edit(&shared, Edit::SetChain { chain, new: true }).await
}

async fn set_chain(
    State(shared): State<Shared>,
    Segments(name): Segments<String>,
    Body(chain): Body<ChainSpec>,
) -> Answered {
    if chain.name != name {
        let message = format!("the body's name {:?} is not the path's {name:?}", chain.name);
        return Err(ApiError::bad_request(message));
    }
    edit(&shared, Edit::SetChain { chain, new: false }).await
}

async fn remove_chain(State(shared): State<Shared>, Segments(name): Segments<String>) -> Answered {
    edit(&shared, Edit::RemoveChain { name }).await
}

/// How many instances.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Instances {
    /// 0 stops all.
    instances: u32,
}

async fn scale(
    State(shared): State<Shared>,
    Segments(name): Segments<String>,
    Body(Instances { instances }): Body<Instances>,
) -> Answered {
    edit(&shared, Edit::Scale { service: service(&name), instances }).await
}

/// How an instance is started.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Command {
    /// Program and arguments.
    command: Vec<String>,
}

async fn set_command(
    State(shared): State<Shared>,
    Segments(name): Segments<String>,
    Body(Command { command }): Body<Command>,
) -> Answered {
    edit(&shared, Edit::SetCommand { service: service(&name), command }).await
}

/// Another command, and how long it is tried out.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Upgrade {
    /// Program and arguments of the new instances.
    command: Vec<String>,
    /// How long the new instances must live with the flows, milliseconds.
    #[serde(default = "default_probation_ms")]
    #[schemars(range(max = 3_600_000))]
    probation_ms: u64,
}

fn default_probation_ms() -> u64 {
    3000
}

async fn upgrade(
    State(shared): State<Shared>,
    Segments(name): Segments<String>,
    Body(Upgrade { command, probation_ms }): Body<Upgrade>,
) -> Answered {
    if probation_ms > MAX_PROBATION_MS {
        return Err(ApiError::bad_request(format!("probation_ms: at most {MAX_PROBATION_MS}")));
    }
    let limit = Duration::from_millis(probation_ms) + UPGRADE_LIMIT;
    let request = Request::Upgrade { service: service(&name), command, probation_ms };
    change(&shared, request, limit).await
}

async fn apply(
    State(shared): State<Shared>,
    Body(config): Body<ConfigBody, CONFIG_BODY_BYTES>,
) -> Answered {
    change(&shared, config.request(false), CHANGE_LIMIT).await
}

async fn stop_nf(State(shared): State<Shared>, Segments(instance): Segments<u32>) -> Answered {
    let request = Request::StopNf { instance };
    match ask(&shared, request, CHANGE_LIMIT).await? {
        Reply::Done => Ok(StatusCode::NO_CONTENT.into_response()),
        _ => Err(unexpected("stopping an NF")),
    }
}

/// A message to an NF.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Message {
    /// What, at most 16,384 bytes.
    text: String,
}

/// What one NF answered: either of `text`, `bytes` and `error`.
#[derive(Serialize, JsonSchema)]
struct Called {
    /// Its instance id.
    instance: u32,
    /// Its answer, where that is text.
    text: Option<String>,
    /// Its answer, where that is none.
    bytes: Option<Vec<u8>>,
    /// Why there is no answer.
    error: Option<String>,
}

impl Called {
    fn new(instance: u32, result: Result<Vec<u8>, String>) -> Self {
        let mut called = Self { instance, text: None, bytes: None, error: None };
        match result.map(String::from_utf8) {
            Ok(Ok(text)) => called.text = Some(text),
            Ok(Err(error)) => called.bytes = Some(error.into_bytes()),
            Err(error) => called.error = Some(error),
        }
        called
    }
}

async fn call(shared: &Shared, target: Target, message: Message) -> Answered {
    let payload = message.text.into_bytes();
    if payload.len() > MAX_MESSAGE_BYTES {
        let message = format!("a message of {} bytes: at most {MAX_MESSAGE_BYTES}", payload.len());
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message));
    }
    match ask(shared, Request::Call { target, payload }, CHANGE_LIMIT).await? {
        Reply::Called { answers } => {
            let answers = answers.into_iter().map(|(instance, said)| Called::new(instance, said));
            Ok(json(&answers.collect::<Vec<_>>()))
        }
        _ => Err(unexpected("a message to an NF")),
    }
}

async fn call_service(
    State(shared): State<Shared>,
    Segments(name): Segments<String>,
    Body(message): Body<Message>,
) -> Answered {
    call(&shared, Target::Service(service(&name)), message).await
}

async fn call_nf(
    State(shared): State<Shared>,
    Segments(instance): Segments<u32>,
    Body(message): Body<Message>,
) -> Answered {
    call(&shared, Target::Instance(instance), message).await
}
