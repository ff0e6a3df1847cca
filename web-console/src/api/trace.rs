//! Traces: packets that are followed from port to port.
#![forbid(unsafe_code)]

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use nflib::control::{Reply, Request, TraceRequest, TraceStatus};
use schemars::JsonSchema;
use serde::Serialize;

use super::error::ApiError;
use super::extract::{Body, Segments};
use super::look::json;
use super::operation::{Method, Operation};
use super::question::unexpected;
use crate::manager::{Cost, LOOK_LIMIT};
use crate::routes::Shared;

type Answered = Result<Response, ApiError>;

/// The operations.
pub fn operations() -> Vec<Operation> {
    vec![
        Operation::get("/api/v1/traces", "listTraces", "Traces, without their packets", traces)
            .answers::<Vec<TraceStatus>>(),
        Operation::new(
            Method::Post,
            "/api/v1/traces",
            "addTrace",
            "Follow some packets from where they come in",
            add,
        )
        .body::<TraceRequest>()
        .answers::<Tracing>()
        .captures(),
        Operation::get(
            "/api/v1/traces/{trace}",
            "showTrace",
            "One trace, with its packets; without --allow-captures the changed bytes are left out",
            show,
        )
        .segment("trace", "Its number")
        .answers::<TraceStatus>()
        .asks(),
        Operation::new(
            Method::Delete,
            "/api/v1/traces/{trace}",
            "forgetTrace",
            "Mark no more packets for a trace, and forget it",
            forget,
        )
        .segment("trace", "Its number")
        .captures(),
    ]
}

async fn traces(State(shared): State<Shared>) -> Answered {
    let reading = shared.latest();
    reading.status()?;
    Ok(json(&reading.seen().traces))
}

/// A trace that was begun.
#[derive(Serialize, JsonSchema)]
struct Tracing {
    /// Its number.
    id: u64,
}

async fn add(State(shared): State<Shared>, Body(request): Body<TraceRequest>) -> Answered {
    match shared.asker.ask(Request::Trace(request), Cost::Look, LOOK_LIMIT).await? {
        Reply::Tracing { id } => {
            shared.renew().await;
            Ok(json(&Tracing { id }))
        }
        _ => Err(unexpected("a trace")),
    }
}

async fn show(State(shared): State<Shared>, Segments(id): Segments<u64>) -> Answered {
    let request = Request::Traces { id: Some(id) };
    let mut traces = match shared.asker.ask(request, Cost::Look, LOOK_LIMIT).await? {
        Reply::Traces { traces } => traces,
        _ => return Err(unexpected("a trace")),
    };
    let at = traces.iter().position(|trace| trace.id == id);
    let at = at.ok_or_else(|| ApiError::not_found(format!("there is no trace {id}")))?;
    let mut trace = traces.swap_remove(at);
    if !shared.allow_captures {
        without_bytes(&mut trace);
    }
    Ok(json(&trace))
}

/// That bytes changed, and which, but not what they were and are.
fn without_bytes(trace: &mut TraceStatus) {
    let steps = trace.packets.iter_mut().flat_map(|packet| &mut packet.steps);
    for change in steps.flat_map(|step| &mut step.changed) {
        change.before.clear();
        change.after.clear();
    }
}

async fn forget(State(shared): State<Shared>, Segments(id): Segments<u64>) -> Answered {
    match shared.asker.ask(Request::ForgetTrace { id }, Cost::Look, LOOK_LIMIT).await? {
        Reply::Done => {
            shared.renew().await;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        _ => Err(unexpected("forgetting a trace")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::control::{ByteChange, TraceStep, TracedPacket};

    #[test]
    fn where_bytes_changed_may_be_told_without_the_bytes() {
        let field = Some("ipv4.ttl".to_owned());
        let change = ByteChange { at_bytes: 22, before: "40".into(), after: "3f".into(), field };
        let step = TraceStep { changed: vec![change.clone()], ..TraceStep::default() };
        let packet = TracedPacket { steps: vec![step], ..TracedPacket::default() };
        let mut trace = TraceStatus { packets: vec![packet], ..TraceStatus::default() };
        without_bytes(&mut trace);
        let expected = ByteChange { before: String::new(), after: String::new(), ..change };
        assert_eq!(trace.packets[0].steps[0].changed, [expected]);
    }
}
