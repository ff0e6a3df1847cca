//! Packet filters as people write them, in tcpdump's syntax: compiled by libpcap, off the thread that
//! serves.
#![forbid(unsafe_code)]

use millrace_pcap_filter::FilterError;
use nflib::control::FilterStep;

use crate::api::error::ApiError;

/// Longest filter, bytes: more than a person writes.
pub const MAX_FILTER_BYTES: usize = 1024;

/// Compiles a filter; a blank one takes every packet.
///
/// # Errors
/// 400 with what libpcap says; 503 where libpcap is not installed.
pub async fn compile(text: &str) -> Result<Vec<FilterStep>, ApiError> {
    let text = text.trim().to_owned();
    if text.len() > MAX_FILTER_BYTES {
        let message = format!("filter: {} bytes, at most {MAX_FILTER_BYTES}", text.len());
        return Err(ApiError::bad_request(message));
    }
    if text.is_empty() {
        return Ok(Vec::new());
    }
    // A name of a host in it is looked up, which may take seconds.
    let compiled = tokio::task::spawn_blocking(move || millrace_pcap_filter::compile(&text));
    match compiled.await {
        Ok(Ok(steps)) => Ok(steps),
        Ok(Err(error @ FilterError::Missing(_))) => {
            Err(ApiError::away("no_libpcap", error.to_string()))
        }
        Ok(Err(error)) => Err(ApiError::bad_request(error.to_string())),
        Err(error) => Err(ApiError::away("console_fault", format!("filter: {error}"))),
    }
}
