//! Questions that only the manager can answer, and that change nothing.
#![forbid(unsafe_code)]

use axum::extract::State;
use axum::response::Response;
use nflib::control::frame::{from_hex, from_tuple};
use nflib::control::{Applied, BufferReport, Explanation, FlowStatus, Reply, Request};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::extract::{Body, CONFIG_BODY_BYTES, Parameters};
use super::look::json;
use super::operation::{Method, Operation};
use crate::manager::{Cost, LOOK_LIMIT};
use crate::routes::Shared;

type Answered = Result<Response, ApiError>;

/// The operations.
pub fn operations() -> Vec<Operation> {
    vec![
        Operation::get("/api/v1/flows", "listFlows", "The flows with most packets", flows)
            .query::<FlowsQuery>()
            .answers::<FlowsAnswer>()
            .asks(),
        Operation::get(
            "/api/v1/flows/explain",
            "explainFlow",
            "What would become of a packet, and why",
            explain,
        )
        .query::<ExplainQuery>()
        .answers::<Explanation>()
        .asks(),
        Operation::get("/api/v1/buffers", "showBuffers", "Where every buffer is", buffers)
            .query::<BuffersQuery>()
            .answers::<BufferReport>()
            .asks(),
        Operation::new(
            Method::Post,
            "/api/v1/config/diff",
            "diffConfig",
            "What a configuration file would change",
            diff,
        )
        .body::<ConfigBody>()
        .answers::<Applied>()
        .asks(),
        Operation::new(
            Method::Post,
            "/api/v1/config/check",
            "checkConfig",
            "Whether this manager could run a configuration file",
            check,
        )
        .body::<ConfigBody>()
        .answers::<Checked>()
        .asks(),
    ]
}

/// An answer that does not fit the question.
pub fn unexpected(question: &str) -> ApiError {
    let message = format!("the manager's answer to {question} is none: is it of another release?");
    ApiError::away("manager_version", message)
}

/// Which flows.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FlowsQuery {
    /// How many at most; absent: 20.
    #[schemars(range(max = 1000))]
    limit: Option<u32>,
}

/// Most flows that are told at once.
const MAX_FLOWS: u32 = 1000;

/// Flows.
#[derive(Serialize, JsonSchema)]
struct FlowsAnswer {
    /// By falling number of packets.
    flows: Vec<FlowStatus>,
    /// Flows known now.
    total: u64,
}

async fn flows(
    State(shared): State<Shared>,
    Parameters(query): Parameters<FlowsQuery>,
) -> Answered {
    let limit = query.limit.unwrap_or(20);
    if limit > MAX_FLOWS {
        return Err(ApiError::bad_request(format!("limit: at most {MAX_FLOWS} flows")));
    }
    match shared.asker.ask(Request::Flows { limit }, Cost::Look, LOOK_LIMIT).await? {
        Reply::Flows { flows, total } => Ok(json(&FlowsAnswer { flows, total })),
        _ => Err(unexpected("flows")),
    }
}

/// Which packet: one of `packet` and `frame`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ExplainQuery {
    /// The port it comes in by; absent: the first.
    in_port: Option<String>,
    /// `tcp 10.0.0.1:1234 10.0.0.2:80`, `udp [2001:db8::1]:53 [2001:db8::2]:53`, `icmp 10.0.0.1 10.0.0.2`.
    packet: Option<String>,
    /// The frame as hex digits, from its Ethernet header on.
    frame: Option<String>,
}

async fn explain(
    State(shared): State<Shared>,
    Parameters(query): Parameters<ExplainQuery>,
) -> Answered {
    let frame = match (query.packet, query.frame) {
        (Some(packet), None) => from_tuple(&[packet]),
        (None, Some(frame)) => from_hex(&frame),
        _ => Err("expected one of packet and frame".to_owned()),
    };
    let frame = frame.map_err(ApiError::bad_request)?;
    let request = Request::Explain { in_port: query.in_port, frame };
    match shared.asker.ask(request, Cost::Look, LOOK_LIMIT).await? {
        Reply::Explained(explanation) => Ok(json(&explanation)),
        _ => Err(unexpected("what becomes of a packet")),
    }
}

/// Which buffer.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct BuffersQuery {
    /// Tell more about this one.
    buffer: Option<u32>,
}

async fn buffers(
    State(shared): State<Shared>,
    Parameters(query): Parameters<BuffersQuery>,
) -> Answered {
    let request = Request::Buffers { buffer: query.buffer };
    match shared.asker.ask(request, Cost::Census, LOOK_LIMIT).await? {
        Reply::Buffers(report) => Ok(json(&report)),
        _ => Err(unexpected("where buffers are")),
    }
}

/// A configuration file.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigBody {
    /// Its name, for messages.
    #[serde(default = "default_path")]
    pub path: String,
    /// Its text: TOML.
    pub text: String,
}

fn default_path() -> String {
    "the posted configuration".to_owned()
}

impl ConfigBody {
    /// The request for it.
    #[must_use]
    pub fn request(self, dry_run: bool) -> Request {
        Request::Apply { path: self.path, text: self.text, dry_run }
    }
}

async fn dry_run(shared: &Shared, config: ConfigBody) -> Result<Applied, ApiError> {
    match shared.asker.ask(config.request(true), Cost::Look, LOOK_LIMIT).await? {
        Reply::Applied(applied) => Ok(applied),
        _ => Err(unexpected("a configuration")),
    }
}

async fn diff(
    State(shared): State<Shared>,
    Body(config): Body<ConfigBody, CONFIG_BODY_BYTES>,
) -> Answered {
    Ok(json(&dry_run(&shared, config).await?))
}

/// Whether a configuration file can be run.
#[derive(Serialize, JsonSchema)]
struct Checked {
    /// It can.
    good: bool,
    /// Why it cannot, one line: also that it needs another start of the manager.
    problem: Option<String>,
    /// What a person should know and is no error.
    notes: Vec<String>,
}

async fn check(
    State(shared): State<Shared>,
    Body(config): Body<ConfigBody, CONFIG_BODY_BYTES>,
) -> Answered {
    match dry_run(&shared, config).await {
        Ok(applied) => Ok(json(&Checked { good: true, problem: None, notes: applied.notes })),
        Err(error) if error.code == "invalid" => {
            let notes = Vec::new();
            Ok(json(&Checked { good: false, problem: Some(error.message), notes }))
        }
        Err(error) => Err(error),
    }
}
