//! Reads how people write a point, against the names there are.
#![forbid(unsafe_code)]

use super::directory::{Directory, NfName};
use super::points::{End, Point, PointError, Way, Who};
use crate::stats::DropReason;

/// Names that an error lists at most.
const MAX_NAMES_TOLD: usize = 12;
/// Longest text of a point that is read, bytes: room for two names and what joins them.
const MAX_TEXT_BYTES: usize = 512;

/// What a text means now.
///
/// # Errors
/// [`PointError`], naming what exists.
pub(super) fn parse(text: &str, directory: &Directory) -> Result<Point, PointError> {
    let reading = Reading { text, directory };
    let unknown = || PointError::Unknown(shown(text));
    if text.len() > MAX_TEXT_BYTES {
        return Err(unknown());
    }
    match text.split_once(':') {
        None if text == "drop" => Ok(Point::Drop { service: None, reason: None }),
        Some(("drop", rest)) => reading.drop(rest),
        Some(("port", rest)) => reading.port(rest),
        Some(("nf", rest)) => {
            let (who, way) = split_way(rest);
            Ok(Point::Nf { who: reading.who(who)?, way })
        }
        Some(("ring", rest)) => {
            let (from, to) = rest.split_once(':').ok_or_else(unknown)?;
            match (reading.end(from)?, reading.end(to)?) {
                (End::Manager, End::Manager) => Err(PointError::NoRing(shown(text))),
                (from, to) => Ok(Point::Ring { from, to }),
            }
        }
        _ => Err(unknown()),
    }
}

/// A text that is being read.
struct Reading<'a> {
    text: &'a str,
    directory: &'a Directory,
}

impl Reading<'_> {
    fn port(&self, rest: &str) -> Result<Point, PointError> {
        let named = |name| self.directory.port_named(name);
        // A port may be called `lan:in`: a name that is one goes before its reading.
        if let Some(port) = named(rest) {
            return Ok(Point::Port { port, way: None });
        }
        let (name, way) = split_way(rest);
        let port = named(name).ok_or_else(|| {
            self.missing("port", name, self.directory.ports().iter().map(ToString::to_string))
        })?;
        Ok(Point::Port { port, way })
    }

    fn drop(&self, rest: &str) -> Result<Point, PointError> {
        let reason = |name: &str| DropReason::ALL.iter().copied().find(|r| r.name() == name);
        if let Some(reason) = reason(rest) {
            return Ok(Point::Drop { service: None, reason: Some(reason) });
        }
        let (service, name) = match rest.split_once(':') {
            Some((service, name)) => (service, Some(name)),
            None => (rest, None),
        };
        if self.directory.slot_named(service).is_none() {
            let reasons = DropReason::ALL.iter().map(|reason| reason.name().to_owned());
            let all = self.services().chain(reasons);
            return Err(self.missing("service or reason", service, all));
        }
        let known = |name| {
            let all = DropReason::ALL.iter().map(|reason| reason.name().to_owned());
            reason(name).ok_or_else(|| self.missing("reason", name, all))
        };
        let reason = name.map(known).transpose()?;
        Ok(Point::Drop { service: Some(service.to_owned()), reason })
    }

    fn end(&self, name: &str) -> Result<End, PointError> {
        if name == "manager" {
            return Ok(End::Manager);
        }
        self.who(name).map(End::Nf)
    }

    fn who(&self, name: &str) -> Result<Who, PointError> {
        let (service, instance) = match name.split_once('#') {
            Some((service, instance)) => (Some(service), instance.parse().ok()),
            None => (None, name.parse().ok()),
        };
        if let Some(instance) = instance {
            let this = |nf: &&std::sync::Arc<NfName>| {
                nf.instance == instance && service.is_none_or(|name| *nf.service_name == *name)
            };
            if self.directory.nfs().any(|nf| this(&nf)) {
                return Ok(Who::Instance(instance));
            }
        } else if service.is_none() && self.directory.slot_named(name).is_some() {
            return Ok(Who::Service(name.to_owned()));
        }
        let instances =
            self.directory.nfs().map(|nf| format!("{}#{}", nf.service_name, nf.instance));
        match (service, instance) {
            (None, None) => Err(self.missing("service", name, self.services())),
            _ => Err(self.missing("instance", name, instances)),
        }
    }

    fn services(&self) -> impl Iterator<Item = String> + '_ {
        self.directory.services().iter().map(|service| service.name.to_string())
    }

    fn missing(
        &self,
        what: &'static str,
        name: &str,
        all: impl Iterator<Item = String>,
    ) -> PointError {
        let mut names: Vec<_> = all.take(MAX_NAMES_TOLD + 1).collect();
        let more = if names.len() > MAX_NAMES_TOLD { ", …" } else { "" };
        names.truncate(MAX_NAMES_TOLD);
        let are = match names.len() {
            0 => "is none".to_owned(),
            1 => format!("is {}", names[0]),
            _ => format!("are {}{more}", names.join(", ")),
        };
        PointError::Missing { text: shown(self.text), what, name: shown(name), are }
    }
}

/// What stands before `:in` or `:out`, and which.
fn split_way(text: &str) -> (&str, Option<Way>) {
    match text.rsplit_once(':') {
        Some((name, "in")) => (name, Some(Way::In)),
        Some((name, "out")) => (name, Some(Way::Out)),
        _ => (text, None),
    }
}

/// A text of others, on one line and not endless.
fn shown(text: &str) -> String {
    let mut chars = text.chars().flat_map(char::escape_debug);
    let shown: String = chars.by_ref().take(80).collect();
    if chars.next().is_some() { format!("\"{shown}…\"") } else { format!("\"{shown}\"") }
}
