//! One operation: what is answered to one method at one path, and all that the document says of it.
#![forbid(unsafe_code)]

use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::error::ApiError;
use crate::routes::Shared;

/// How a schema is made.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// What an operation does, as HTTP names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Shows.
    Get,
    /// Does something.
    Post,
    /// Makes something be as the body says.
    Put,
    /// Removes.
    Delete,
}

impl Method {
    /// As OpenAPI writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
            Self::Put => "put",
            Self::Delete => "delete",
        }
    }
}

/// What comes back when all is well.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// JSON of this schema.
    Json(SchemaOf),
    /// Something else, of these media types.
    Other(&'static [&'static str]),
    /// Nothing but the status 204.
    Nothing,
}

/// What the console must have been started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing special.
    Nothing,
    /// `--allow-captures`: it gives out what packets carry, or has packets followed.
    Captures,
    /// `--allow-changes`: it changes what runs.
    Changes,
}

/// One operation.
pub struct Operation {
    /// Unique, for generated clients.
    pub id: &'static str,
    /// Its method.
    pub method: Method,
    /// Its path; `{name}` stands for one segment.
    pub path: &'static str,
    /// One line.
    pub summary: &'static str,
    /// What it is refused without.
    pub needs: Needs,
    /// It reaches the manager, and may be refused as too much at once (429).
    pub asks: bool,
    /// It is answered without a token.
    pub open: bool,
    /// Names and meanings of the path's segments in braces.
    pub segments: Vec<(&'static str, &'static str)>,
    /// The object whose properties are the query's parameters.
    pub query: Option<SchemaOf>,
    /// The body.
    pub body: Option<SchemaOf>,
    /// What comes back.
    pub answer: Answer,
    /// The handler.
    pub route: MethodRouter<Shared>,
}

fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// The schema itself, not a reference to it.
fn root_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    T::json_schema(generator)
}

impl Operation {
    /// An operation that answers nothing yet.
    pub fn new<H, T>(
        method: Method,
        path: &'static str,
        id: &'static str,
        summary: &'static str,
        handler: H,
    ) -> Self
    where
        H: Handler<T, Shared>,
        T: 'static,
    {
        let route = match method {
            Method::Get => get(handler),
            Method::Post => post(handler),
            Method::Put => put(handler),
            Method::Delete => delete(handler),
        };
        Self {
            id,
            method,
            path,
            summary,
            needs: Needs::Nothing,
            asks: false,
            open: false,
            segments: Vec::new(),
            query: None,
            body: None,
            answer: Answer::Nothing,
            route,
        }
    }

    /// It shows something.
    pub fn get<H, T>(
        path: &'static str,
        id: &'static str,
        summary: &'static str,
        handler: H,
    ) -> Self
    where
        H: Handler<T, Shared>,
        T: 'static,
    {
        Self::new(Method::Get, path, id, summary, handler)
    }

    /// It changes what runs: refused without `--allow-changes`.
    #[must_use]
    pub fn changes(mut self) -> Self {
        (self.needs, self.asks) = (Needs::Changes, true);
        self
    }

    /// It gives out what packets carry: refused without `--allow-captures`.
    #[must_use]
    pub fn captures(mut self) -> Self {
        (self.needs, self.asks) = (Needs::Captures, true);
        self
    }

    /// It reaches the manager.
    #[must_use]
    pub fn asks(mut self) -> Self {
        self.asks = true;
        self
    }

    /// It is answered without a token.
    #[must_use]
    pub fn open(mut self) -> Self {
        self.open = true;
        self
    }

    /// What a segment in braces means.
    #[must_use]
    pub fn segment(mut self, name: &'static str, meaning: &'static str) -> Self {
        self.segments.push((name, meaning));
        self
    }

    /// Parameters behind `?`.
    #[must_use]
    pub fn query<T: JsonSchema>(mut self) -> Self {
        self.query = Some(root_of::<T>);
        self
    }

    /// A body of JSON.
    #[must_use]
    pub fn body<T: JsonSchema>(mut self) -> Self {
        self.body = Some(schema_of::<T>);
        self
    }

    /// JSON comes back.
    #[must_use]
    pub fn answers<T: JsonSchema>(mut self) -> Self {
        self.answer = Answer::Json(schema_of::<T>);
        self
    }

    /// Something other than JSON comes back.
    #[must_use]
    pub fn answers_other(mut self, media_types: &'static [&'static str]) -> Self {
        self.answer = Answer::Other(media_types);
        self
    }

    /// The handler, behind what the operation needs.
    pub fn router(self, shared: &Shared) -> MethodRouter<Shared> {
        let mut route = self.route;
        route = match self.needs {
            Needs::Nothing => route,
            Needs::Captures => route.route_layer(from_fn_with_state(shared.clone(), if_captures)),
            Needs::Changes => route.route_layer(from_fn_with_state(shared.clone(), if_changes)),
        };
        if self.query.is_none() {
            route = route.route_layer(from_fn(no_query));
        }
        route
    }
}

async fn if_captures(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    if shared.allow_captures {
        return next.run(request).await;
    }
    let message = "this console gives no packets out: start millrace-web with --allow-captures for \
                   captures, traces and the files of crashes";
    ApiError::new(axum::http::StatusCode::FORBIDDEN, "no_captures", message).into_response()
}

async fn if_changes(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    if shared.allow_changes {
        return next.run(request).await;
    }
    let message =
        "this console only shows: start millrace-web with --allow-changes to change things";
    ApiError::new(axum::http::StatusCode::FORBIDDEN, "read_only", message).into_response()
}

/// A parameter that would be passed over is a mistake that is better told.
async fn no_query(request: Request, next: Next) -> Response {
    match request.uri().query() {
        None | Some("") => next.run(request).await,
        Some(_) => {
            ApiError::bad_request("this takes no parameters behind a question mark").into_response()
        }
    }
}
