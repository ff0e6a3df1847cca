//! `millrace nf …`
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use anyhow::bail;
use clap::Subcommand;
use nflib::control::{NfStatus, Reply, Request, Status, Target};
use serde::Serialize;

use crate::client::LOOK_LIMIT;
use crate::table::{Table, clean, list, or_dash, percent};
use crate::{Globals, chain, print, words};

#[derive(Subcommand)]
pub enum Verb {
    /// One line each
    List,
    /// Tell an NF to leave in good order
    Stop {
        /// Its instance number
        instance: u32,
    },
    /// Hand a message to an NF, or to every instance of a service, and print what each answers
    Call {
        /// An instance's number, or a service's name (service:NAME when the name is a number)
        #[arg(value_parser = words::target)]
        target: Target,
        /// The message; several words are joined by spaces. Behind `--` they may begin with `-`
        #[arg(required = true)]
        payload: Vec<String>,
    },
}

pub fn run(globals: &Globals, verb: Verb) -> anyhow::Result<()> {
    let client = globals.connect()?;
    match verb {
        Verb::List => {
            let status = client.status()?;
            print::either(globals.json, &status.nfs, || table(&status))
        }
        Verb::Stop { instance } => match client.ask(&Request::StopNf { instance }, LOOK_LIMIT)? {
            reply @ Reply::Done => print::either(globals.json, &reply, || {
                format!("instance {instance} was told to leave\n")
            }),
            _ => Err(client.unexpected("stopping an NF").into()),
        },
        Verb::Call { target, payload } => {
            let request = Request::Call { target, payload: payload.join(" ").into_bytes() };
            match client.ask(&request, LOOK_LIMIT)? {
                Reply::Called { answers } => called(globals, answers),
                _ => Err(client.unexpected("a message to an NF").into()),
            }
        }
    }
}

type Answer = (u32, Result<Vec<u8>, String>);

#[derive(Serialize)]
struct Called {
    answers: Vec<Answer>,
}

fn called(globals: &Globals, answers: Vec<Answer>) -> anyhow::Result<()> {
    let called = Called { answers };
    print::either(globals.json, &called, || show_answers(&called.answers))?;
    let refused = called.answers.iter().filter(|(_, result)| result.is_err()).count();
    if refused > 0 {
        bail!("{refused} of {} instances refused or did not answer", called.answers.len());
    }
    Ok(())
}

/// One block for each answer: the lines of a text, or bytes in hex.
fn show_answers(answers: &[Answer]) -> String {
    let mut out = String::new();
    for (instance, result) in answers {
        match result {
            Err(why) => _ = writeln!(out, "{instance}: error: {}", clean(why)),
            Ok(bytes) => match std::str::from_utf8(bytes) {
                Ok("") => _ = writeln!(out, "{instance}: (no text)"),
                Ok(text) => {
                    for line in text.lines() {
                        let _ = writeln!(out, "{instance}: {}", clean(line));
                    }
                }
                Err(_) => {
                    let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                    let _ = writeln!(out, "{instance}: bytes {}", hex.join(" "));
                }
            },
        }
    }
    out
}

/// One line for each NF, or what is waited for.
pub fn table(status: &Status) -> String {
    if status.nfs.is_empty() {
        return nobody(status);
    }
    let mut table = Table::new(&[
        "INSTANCE",
        "SERVICE",
        "NAME",
        "STATE",
        "PID",
        "UID",
        "CORE",
        "SHARE",
        "NS/PKT",
        "DIRECT TO",
        "RX PKTS",
        "TX PKTS",
        "DROPS",
        "HELD",
        "RING FULL",
        "VIOLATIONS",
    ]);
    for nf in &status.nfs {
        table.row(row(nf));
    }
    table.text() + &stuck_lines(status)
}

fn nobody(status: &Status) -> String {
    let mut waiting: Vec<String> = Vec::new();
    for chain in &status.chains {
        for service in &chain.spec.services {
            let name = chain::find(status, service)
                .filter(|known| !known.name.is_empty())
                .map_or_else(|| service.to_string(), |known| known.name.clone());
            if !waiting.contains(&name) {
                waiting.push(name);
            }
        }
    }
    if waiting.is_empty() {
        return "no NF is attached, and no chain asks for one\n".to_owned();
    }
    format!("no NF is attached; chains wait for services {}\n", clean(&waiting.join(", ")))
}

fn row(nf: &NfStatus) -> Vec<String> {
    vec![
        nf.instance.to_string(),
        service(nf),
        nf.name.clone(),
        state(nf),
        nf.pid.to_string(),
        nf.uid.to_string(),
        or_dash(nf.core),
        percent(nf.flow_share),
        if nf.cost_ns > 0.0 { format!("{:.0}", nf.cost_ns) } else { "-".to_owned() },
        list(&nf.direct_to),
        nf.rx_pkts.to_string(),
        nf.tx_pkts.to_string(),
        nf.drop_pkts.to_string(),
        nf.held_pkts.to_string(),
        nf.ring_full_pkts.to_string(),
        nf.violations.to_string(),
    ]
}

fn state(nf: &NfStatus) -> String {
    match (&nf.stuck, nf.state.is_empty()) {
        (Some(_), _) => "stuck".to_owned(),
        (None, true) => "-".to_owned(),
        (None, false) => nf.state.clone(),
    }
}

/// One line for each NF that stands still, and why.
fn stuck_lines(status: &Status) -> String {
    let line = |nf: &NfStatus| {
        let why = clean(nf.stuck.as_ref()?).to_string();
        Some(format!("instance {} ({}) is stuck, {why}\n", nf.instance, clean(&service(nf))))
    };
    status.nfs.iter().filter_map(line).collect()
}

/// The name of the service an NF provides, or its id.
pub fn service(nf: &NfStatus) -> String {
    if nf.service_name.is_empty() { nf.service.to_string() } else { nf.service_name.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::control::{ChainSpec, ChainStatus, ServiceRef, ServiceStatus};

    #[test]
    fn answers_are_text_bytes_or_refusals_and_never_command_the_terminal() {
        let answers = [
            (1, Ok(b"limit 5\nburst 7\n".to_vec())),
            (2, Ok(vec![])),
            (3, Ok(vec![0xff, 0x00])),
            (4, Err("busy\x1b[2J".to_owned())),
        ];
        assert_eq!(
            show_answers(&answers),
            "1: limit 5\n1: burst 7\n2: (no text)\n3: bytes ff 00\n4: error: busy\u{fffd}[2J\n"
        );
    }

    #[test]
    fn a_list_has_one_line_for_each() {
        let nf = NfStatus {
            instance: 3,
            service: 1,
            service_name: "fw".into(),
            state: "running".into(),
            core: Some(2),
            direct_to: vec![4, 5],
            flow_share: 0.5,
            cost_ns: 33.4,
            name: "forward".into(),
            pid: 77,
            uid: 1000,
            rx_pkts: 10,
            tx_pkts: 9,
            ..Default::default()
        };
        let why = Some("no progress for 1.2 s: it sleeps".to_owned());
        let hung = NfStatus { instance: 5, service: 1, stuck: why, ..Default::default() };
        let old = NfStatus { instance: 4, service: 2, name: "x".into(), ..Default::default() };
        let status = Status { nfs: vec![nf, old, hung], ..Default::default() };
        let text = table(&status);
        let lines: Vec<Vec<_>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            lines[1][..9],
            ["3", "fw", "forward", "running", "77", "1000", "2", "50.0", "%"]
        );
        assert_eq!(lines[1][9..], ["33", "4,5", "10", "9", "0", "0", "0", "0"]);
        assert_eq!(lines[2][..4], ["4", "2", "x", "-"]);
        assert!(text.ends_with("instance 5 (1) is stuck, no progress for 1.2 s: it sleeps\n"));
    }

    #[test]
    fn when_nobody_is_there_it_says_who_is_waited_for() {
        let chain = |services: &[u16]| ChainStatus {
            spec: ChainSpec {
                services: services.iter().map(|&id| ServiceRef::Id(id)).collect(),
                ..Default::default()
            },
            ..Default::default()
        };
        let fw = ServiceStatus { id: 1, name: "fw".into(), ..Default::default() };
        let status = Status {
            chains: vec![chain(&[1, 2]), chain(&[1])],
            services: vec![fw],
            ..Default::default()
        };
        assert_eq!(table(&status), "no NF is attached; chains wait for services fw, 2\n");
        let none = "no NF is attached, and no chain asks for one\n";
        assert_eq!(table(&Status::default()), none);
    }
}
