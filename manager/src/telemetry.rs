//! Spans of the control plane for OpenTelemetry: which request was asked when, and how long it took until
//! it was in force.
//!
//! Sent as OTLP/HTTP in JSON (<https://opentelemetry.io/docs/specs/otlp/>) by a thread of its own, in
//! batches; a collector that is away costs the spans, and nothing waits for it.
#![forbid(unsafe_code)]

use std::time::Duration;

use nflib::log::Listener;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use thiserror::Error;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;

/// How long the collector may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// The endpoint is none.
#[derive(Debug, Error)]
#[error(
    "--otlp-endpoint {endpoint:?}: expected the address of a collector, as http://127.0.0.1:4318 ({why})"
)]
pub struct TelemetryError {
    endpoint: String,
    why: String,
}

/// Keeps spans being sent; those that wait are sent when it ends.
#[derive(Debug)]
pub struct Telemetry(SdkTracerProvider);

impl Drop for Telemetry {
    fn drop(&mut self) {
        let _ = self.0.shutdown_with_timeout(ANSWER_LIMIT);
    }
}

/// Begins to send spans of this crate to a collector; the listener is to be given to the log.
///
/// # Errors
/// [`TelemetryError`] when the address cannot be one. Whether anybody listens there is not asked.
pub fn start(endpoint: &str) -> Result<(Telemetry, Listener), TelemetryError> {
    let fault = |why: String| TelemetryError { endpoint: endpoint.to_owned(), why };
    let base = endpoint.trim_end_matches('/');
    if !base.starts_with("http://") || base.len() == "http://".len() {
        return Err(fault("it must begin with http://".to_owned()));
    }
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpJson)
        .with_endpoint(format!("{base}/v1/traces"))
        .with_timeout(ANSWER_LIMIT)
        .build()
        .map_err(|error| fault(error.to_string()))?;
    let resource = Resource::builder().with_service_name("millrace-manager").build();
    let provider =
        SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    let tracer = provider.tracer("millrace");
    let ours = Targets::new().with_target("millrace", tracing::Level::DEBUG);
    let layer = tracing_opentelemetry::layer().with_tracer(tracer).with_filter(ours);
    Ok((Telemetry(provider), layer.boxed()))
}
