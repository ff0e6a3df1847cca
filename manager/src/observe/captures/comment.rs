//! What a capture says of a packet beside its bytes: `chain=web hop=1 action=drop reason=nf_drop`.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use nflib::descriptor::{ActionCode, NO_PORT, PortId};
use nflib::observe::{Event, EventKind, NOBODY};

use super::Source;
use crate::observe::directory::Directory;

/// Writes it over what is in `out`: pairs of key and value with a space between. What is not known is left
/// out.
pub(super) fn comment(out: &mut String, source: Source, event: &Event, directory: &Directory) {
    out.clear();
    let mut pair = |key: &str, value: &str| {
        let space = if out.is_empty() { "" } else { " " };
        let plain = |c: char| c.is_alphanumeric() || "_-.#:/".contains(c);
        let _ = match value.chars().all(plain) {
            true => write!(out, "{space}{key}={value}"),
            // A port's name may be anything.
            false => write!(out, "{space}{key}={value:?}"),
        };
    };
    let nf = |number| directory.nf(number, event.time_ns);
    let port = |number: u16| {
        let name = PortId::try_from(number).ok().and_then(|port| directory.port(port));
        name.map_or_else(|| number.to_string(), ToString::to_string)
    };
    if event.hop != Event::NO_HOP
        && let Some(route) = directory.route(event.route, event.time_ns)
    {
        pair("chain", &route.chain);
        // A worker does not know how far a packet has come.
        if matches!(source, Source::Nf(_)) {
            pair("hop", &event.hop.to_string());
        }
    }
    match event.kind {
        EventKind::PortIn => {}
        EventKind::PortOut => pair("action", "sent"),
        EventKind::NfIn => match nf(event.peer) {
            _ if event.peer == NOBODY => pair("from", "manager"),
            Some(nf) => pair("from", &format!("{}#{}", nf.service_name, nf.instance)),
            None => pair("from", "unknown"),
        },
        EventKind::NfHold => pair("action", "hold"),
        EventKind::NfOut => match ActionCode::from_code(event.code) {
            Some(ActionCode::Drop) => pair("action", "drop"),
            Some(ActionCode::Next) => pair("action", "next"),
            Some(ActionCode::Refused) => pair("action", "refused"),
            Some(ActionCode::Out) => {
                pair("action", "out");
                pair("port", &port(event.target));
            }
            Some(ActionCode::ToService) => {
                pair("action", "to_service");
                let services = directory.services();
                let named = services.iter().find(|service| service.service == event.target);
                pair("to", &named.map_or_else(|| event.target.to_string(), |s| s.name.to_string()));
            }
            Some(ActionCode::Branch) => {
                pair("action", "branch");
                pair("branch", &event.target.to_string());
            }
            None => pair("action", "unknown"),
        },
        EventKind::Drop => {
            pair("action", "drop");
            pair("reason", Directory::reason(event.code).unwrap_or("unknown"));
            if let Some(service) = directory.service(event.target) {
                pair("service", &service.name);
            }
        }
    }
    if let Source::Nf(number) = source
        && let Some(nf) = nf(number)
    {
        pair("instance", &nf.instance.to_string());
    }
    if event.ingress != NO_PORT {
        pair("in", &port(event.ingress.into()));
    }
    pair("buffer", &event.buffer.to_string());
    pair("flow", &format!("{:08x}", event.flow_hash));
}
