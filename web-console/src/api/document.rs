//! The OpenAPI 3.1 document, made from the table of operations and the types they take and answer.
#![forbid(unsafe_code)]

use std::sync::OnceLock;

use axum::body::Bytes;
use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::error::ErrorBody;
use super::operation::{Answer, Needs, Operation};
use super::operations;
use crate::reading::{StatusEvent, to_json};

/// Largest integer that every JSON reader has exactly (RFC 8259, section 6).
const MAX_EXACT: u64 = (1 << 53) - 1;

/// The document as it is served.
pub fn bytes() -> Bytes {
    static DOCUMENT: OnceLock<Bytes> = OnceLock::new();
    DOCUMENT.get_or_init(|| to_json(&document(&operations()))).clone()
}

/// The document of these operations.
#[must_use]
pub fn document(operations: &[Operation]) -> Value {
    // OpenAPI 3.1's schemas are JSON Schema 2020-12 (OpenAPI 3.1.0, section 4.8.24).
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    generator.subschema_for::<ErrorBody<'_>>();
    generator.subschema_for::<StatusEvent<'_>>();
    let mut paths = Map::new();
    for operation in operations {
        let item = paths.entry(operation.path).or_insert_with(|| json!({}));
        item[operation.method.name()] = described(operation, &mut generator);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Millrace console",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "All that the command `millrace` can do over the manager's control \
                            socket, but for starting and ending a manager.",
            "license": { "name": "BSD-3-Clause", "identifier": "BSD-3-Clause" }
        },
        "servers": [{ "url": "/" }],
        "security": [{}, { "bearer": [] }, { "cookie": [] }],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer" },
                "cookie": { "type": "apiKey", "in": "cookie", "name": crate::access::COOKIE }
            }
        }
    })
}

fn described(operation: &Operation, generator: &mut SchemaGenerator) -> Value {
    let mut out = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "responses": responses(operation, generator),
    });
    let mut parameters: Vec<Value> = operation
        .segments
        .iter()
        .map(|(name, meaning)| {
            let kind = match *name {
                "instance" => json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX }),
                "trace" => json!({ "type": "integer", "minimum": 0, "maximum": MAX_EXACT }),
                _ => json!({ "type": "string", "minLength": 1 }),
            };
            json!({ "name": name, "in": "path", "required": true, "description": meaning,
                    "schema": kind })
        })
        .collect();
    parameters.extend(operation.query.map(|of| query(&of(generator))).unwrap_or_default());
    if !parameters.is_empty() {
        out["parameters"] = parameters.into();
    }
    if let Some(body) = operation.body {
        out["requestBody"] = json!({ "required": true,
            "content": { "application/json": { "schema": body(generator) } } });
    }
    if operation.open {
        out["security"] = json!([]);
    }
    match operation.needs {
        Needs::Nothing => {}
        Needs::Captures => {
            out["description"] =
                "Needs `--allow-captures` or `--allow-changes`; 403 without.".into();
        }
        Needs::Changes => out["description"] = "Needs `--allow-changes`; 403 without.".into(),
    }
    out
}

/// The properties of an object, as parameters.
fn query(schema: &Schema) -> Vec<Value> {
    let required = schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    let properties = schema.get("properties").and_then(Value::as_object).cloned();
    let parameter = |(name, mut of): (String, Value)| {
        let description = of.as_object_mut().and_then(|of| of.remove("description"));
        // What may be absent cannot be written as null behind a question mark.
        if let Some(Value::Array(types)) = of.get("type").cloned() {
            let kind = types.into_iter().find(|kind| kind != "null");
            of["type"] = kind.unwrap_or(Value::Null);
        }
        let is_required = required.iter().any(|required| *required == *name);
        json!({ "name": name, "in": "query", "required": is_required, "schema": of,
                "description": description.unwrap_or(Value::Null) })
    };
    properties.into_iter().flatten().map(parameter).collect()
}

fn responses(operation: &Operation, generator: &mut SchemaGenerator) -> Value {
    let mut out = Map::new();
    let (code, good) = match operation.answer {
        Answer::Json(of) => {
            let content = json!({ "application/json": { "schema": of(generator) } });
            ("200", json!({ "description": "Done.", "content": content }))
        }
        Answer::Other(kinds) => {
            let text = json!({ "schema": { "type": "string" } });
            let content: Map<_, _> =
                kinds.iter().map(|kind| ((*kind).to_owned(), text.clone())).collect();
            ("200", json!({ "description": "Done.", "content": content }))
        }
        Answer::Nothing => ("204", json!({ "description": "Done." })),
    };
    out.insert(code.to_owned(), good);
    let error = generator.subschema_for::<ErrorBody<'_>>();
    let content = json!({ "application/json": { "schema": error } });
    for (code, description) in errors(operation) {
        let response = json!({ "description": description, "content": content });
        out.insert(code.to_owned(), response);
    }
    out.into()
}

fn errors(operation: &Operation) -> Vec<(&'static str, &'static str)> {
    let takes_body = operation.body.is_some();
    let all = [
        ("400", "The request makes no sense.", true),
        ("401", "The token is missing or wrong.", true),
        ("403", "Not allowed: read-only, or another origin.", true),
        ("404", "There is nothing by that name.", true),
        ("408", "The body took too long.", takes_body),
        ("409", "It cannot be as was asked; nothing was changed.", operation.asks),
        ("413", "The body is too large.", takes_body),
        ("415", "The body is not JSON.", takes_body),
        ("421", "The name in the Host header is not this console's.", true),
        ("429", "Too much at once; ask again.", operation.asks || operation.id == "logIn"),
        ("503", "The manager is away, hangs, stops, or is of another release.", true),
    ];
    let listed = all.into_iter().filter(|(_, _, when)| *when);
    listed.map(|(code, description, _)| (code, description)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn parsed() -> Value {
        document(&operations())
    }

    #[test]
    fn every_operation_is_in_the_document_under_a_name_of_its_own_and_nothing_else_is() {
        let document = parsed();
        let mut there = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                there.insert((
                    path.clone(),
                    method.clone(),
                    operation["operationId"].clone().to_string(),
                ));
            }
        }
        let wanted: BTreeSet<_> = operations()
            .iter()
            .map(|o| (o.path.to_owned(), o.method.name().to_owned(), format!("\"{}\"", o.id)))
            .collect();
        assert_eq!(there, wanted);
        let ids: BTreeSet<_> = operations().iter().map(|o| o.id).collect();
        assert_eq!(ids.len(), operations().len());
    }

    #[test]
    fn every_segment_in_braces_is_explained() {
        for operation in operations() {
            let in_path: Vec<_> = operation
                .path
                .split('/')
                .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
                .collect();
            let named: Vec<_> = operation.segments.iter().map(|(name, _)| *name).collect();
            assert_eq!(in_path, named, "{}", operation.path);
        }
    }

    fn references<'a>(value: &'a Value, out: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    out.insert(reference);
                }
                map.values().for_each(|value| references(value, out));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, out)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_to_a_schema() {
        let document = parsed();
        let mut all = BTreeSet::new();
        references(&document, &mut all);
        assert!(all.len() > 20, "{all:?}");
        for reference in all {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn what_changes_things_can_be_refused_and_all_can_be_away() {
        let document = parsed();
        for operation in operations() {
            let responses =
                &document["paths"][operation.path][operation.method.name()]["responses"];
            assert!(responses["503"].is_object() && responses["403"].is_object());
            assert_eq!(responses["415"].is_object(), operation.body.is_some());
        }
    }

    #[test]
    fn parameters_are_described_and_never_null() {
        let document = parsed();
        let limit = &document["paths"]["/api/v1/flows"]["get"]["parameters"][0];
        assert_eq!((&limit["name"], &limit["in"]), (&json!("limit"), &json!("query")));
        assert_eq!(limit["schema"]["type"], "integer");
        assert!(limit["description"].as_str().is_some_and(|text| text.contains("absent: 20")));
    }
}
