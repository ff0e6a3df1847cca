//! `millrace service …`
#![forbid(unsafe_code)]

use std::time::Duration;

use clap::Subcommand;
use nflib::control::{Edit, Request, ServiceRef, ServiceStatus, UpgradeStatus};

use crate::print::usage;
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
    /// Run a service by another command: its new instances are tried out beside the old ones first
    ///
    /// New instances are started, attach, and live for half a second without flows; then they have all
    /// flows, and the old ones stand by. When they have lived for the probation, the old ones go. If
    /// one of them fails before, the old ones have the flows again, the new ones go, and the reason is
    /// told. For a while both run: cores that are given out must suffice for both.
    Upgrade {
        /// The service, by name or id
        #[arg(value_name = "NAME")]
        service: ServiceRef,
        /// Program and arguments of an instance, as a shell would take them apart: quotes keep words
        /// together
        #[arg(long, value_name = "COMMAND")]
        command: String,
        /// How long the new instances must live with the flows, milliseconds
        #[arg(long, value_name = "N", default_value_t = 3000)]
        probation_ms: u64,
    },
}

/// How long all but the probation of an upgrade may take.
const UPGRADE_LIMIT: Duration = Duration::from_secs(60);

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
        Verb::Upgrade { service, command, probation_ms } => {
            let command = words_of(&command).map_err(usage)?;
            let limit = Duration::from_millis(probation_ms).saturating_add(UPGRADE_LIMIT);
            let request = Request::Upgrade { service, command, probation_ms };
            let applied = globals.connect()?.change_within(&request, limit)?;
            applied::report(globals, &applied)
        }
    }
}

/// The words of a command: separated by blanks; quotes of either kind keep blanks, and a backslash
/// takes the next character as it is, but for between single quotes.
fn words_of(command: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = command.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            (' ' | '\t' | '\n', None) => words.extend(word.take()),
            ('\'' | '"', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (letter, Some(open)) if letter == open => quote = None,
            ('\\', None | Some('"')) => match letters.next() {
                Some(next) => word.get_or_insert_default().push(next),
                None => return Err("--command ends with a backslash".to_owned()),
            },
            (letter, _) => word.get_or_insert_default().push(letter),
        }
    }
    if let Some(quote) = quote {
        return Err(format!("--command has a {quote} that is not closed"));
    }
    words.extend(word);
    if words.first().is_none_or(String::is_empty) {
        return Err("--command names no program".to_owned());
    }
    Ok(words)
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
    let upgrade = service.upgrade.as_ref().map(|upgrade| {
        let UpgradeStatus { phase, command, since_s, .. } = upgrade;
        format!("upgrade to {} for {since_s:.1} s: {phase}", command.join(" "))
    });
    let counted = |pkts: u64, what: &str| (pkts > 0).then(|| format!("{pkts} packets {what}"));
    let waiting = counted(service.waiting_pkts, "wait for an instance");
    let bypassed = counted(service.bypassed_pkts, "bypassed it");
    let parts: Vec<_> = isolated
        .into_iter()
        .chain(read_only)
        .chain(upgrade)
        .chain(waiting)
        .chain(bypassed)
        .chain(service.waiting.clone())
        .collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_taken_apart_as_by_a_shell() {
        let words = |text| words_of(text).unwrap();
        assert_eq!(words("nf  --a b\t"), ["nf", "--a", "b"]);
        assert_eq!(words(r#""my nf" 'a "b"' c\ d "" e'f'"#), ["my nf", "a \"b\"", "c d", "", "ef"]);
        for wrong in ["", "  ", "nf 'a", "nf \\", "''"] {
            assert!(words_of(wrong).unwrap_err().starts_with("--command "), "{wrong}");
        }
    }

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
                upgrade: None,
                drops: [("nf_drop".to_owned(), 9)].into(),
                ..Default::default()
            },
            ServiceStatus {
                id: 2,
                name: "nat".into(),
                read_only: true,
                bypassed_pkts: 7,
                ..Default::default()
            },
        ];
        assert_eq!(
            table(&services),
            "ID  SERVICE  WANTED   INSTANCES  DRAINING  RESTARTS  DROPS  CONFINED  NOTE\n\
             \x201  fw       2        3,5               1         4      9  strict    isolated; no free core\n\
             \x202  nat      by hand  -                 -         0      0  -         read-only; 7 packets bypassed it\n"
        );
        assert_eq!(table(&[]), "no service\n");
    }
}
