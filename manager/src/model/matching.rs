//! The seam to the flow engine: how a match is compiled, compared and found to overlap.
#![forbid(unsafe_code)]

use nflib::control::MatchSpec;
use nflib::descriptor::PortId;

/// A compiled match: equal when it takes the same packets by the same fields.
pub type Match = MatchSpec;

/// Compiles what was written.
pub(super) fn compile(
    spec: &MatchSpec,
    port: &dyn Fn(&str) -> Option<PortId>,
) -> Result<Match, String> {
    if let Some(value) = &spec.in_port
        && port(&value.to_string()).is_none()
    {
        return Err(format!("in_port: there is no port {:?}", value.to_string()));
    }
    Ok(spec.clone())
}
