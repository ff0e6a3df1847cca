//! `millrace service …`
#![forbid(unsafe_code)]

use clap::Subcommand;
use nflib::control::{Edit, ServiceRef, ServiceStatus};

use crate::table::{Table, list, or_dash};
use crate::{Globals, applied, print};

#[derive(Subcommand)]
pub enum Verb {
    /// One line each
    List,
    /// Keep so many instances of a service running; those that go are drained first
    Scale {
        /// The service, by name or id
        #[arg(value_name = "NAME")]
        service: ServiceRef,
        /// How many; 0 stops all
        #[arg(value_name = "N")]
        instances: u32,
    },
}

pub fn run(globals: &Globals, verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::List => {
            let status = globals.connect()?.status()?;
            print::either(globals.json, &status.services, || table(&status.services))
        }
        Verb::Scale { service, instances } => {
            let edit = Edit::Scale { service, instances };
            applied::report(globals, &globals.connect()?.edit(vec![edit])?)
        }
    }
}

/// One line for each service.
pub fn table(services: &[ServiceStatus]) -> String {
    if services.is_empty() {
        return "no service\n".to_owned();
    }
    let mut table = Table::new(&[
        "ID",
        "SERVICE",
        "WANTED",
        "INSTANCES",
        "DRAINING",
        "RESTARTS",
        "DROPS",
        "CONFINED",
        "NOTE",
    ]);
    for service in services {
        table.row(vec![
            service.id.to_string(),
            service.name.clone(),
            service.wanted.map_or_else(|| "by hand".to_owned(), |wanted| wanted.to_string()),
            list(&service.instances),
            list(&service.draining),
            service.restarts.to_string(),
            service.drops.values().fold(0, |sum: u64, &n| sum.saturating_add(n)).to_string(),
            or_dash(service.confine.clone()),
            or_dash(note(service)),
        ]);
    }
    table.text()
}

fn note(service: &ServiceStatus) -> Option<String> {
    let isolated = match (service.isolated, service.shared_region) {
        (true, true) => Some("isolated, in the shared region".to_owned()),
        (true, false) => Some("isolated".to_owned()),
        (false, _) => None,
    };
    let read_only = service.read_only.then(|| "read-only".to_owned());
    let parts: Vec<_> =
        isolated.into_iter().chain(read_only).chain(service.waiting.clone()).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_one_line_for_each() {
        let services = [
            ServiceStatus {
                id: 1,
                name: "fw".into(),
                wanted: Some(2),
                instances: vec![3, 5],
                draining: vec![1],
                restarts: 4,
                waiting: Some("no free core".into()),
                isolated: true,
                shared_region: false,
                read_only: false,
                confine: Some("strict".into()),
                drops: [("nf_drop".to_owned(), 9)].into(),
            },
            ServiceStatus { id: 2, name: "nat".into(), read_only: true, ..Default::default() },
        ];
        assert_eq!(
            table(&services),
            "ID  SERVICE  WANTED   INSTANCES  DRAINING  RESTARTS  DROPS  CONFINED  NOTE\n\
             \x201  fw       2        3,5               1         4      9  strict    isolated; no free core\n\
             \x202  nat      by hand  -                 -         0      0  -         read-only\n"
        );
        assert_eq!(table(&[]), "no service\n");
    }
}
