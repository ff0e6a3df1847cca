//! Packet filters as people write them: tcpdump's syntax, compiled by libpcap.
#![forbid(unsafe_code)]

use nflib::control::FilterStep;

use crate::api::error::ApiError;

/// Longest filter, bytes: more than a person writes.
pub const MAX_FILTER_BYTES: usize = 1024;

/// Compiles a filter, on a thread where it may look names up; an empty one takes every packet.
///
/// # Errors
/// 400 with what libpcap says.
pub async fn compile(text: &str) -> Result<Vec<FilterStep>, ApiError> {
    let text = text.trim().to_owned();
    if text.len() > MAX_FILTER_BYTES {
        let message = format!("filter: {} bytes, at most {MAX_FILTER_BYTES}", text.len());
        return Err(ApiError::bad_request(message));
    }
    if text.is_empty() {
        return Ok(Vec::new());
    }
    Err(ApiError::bad_request("filter: not yet"))
}
