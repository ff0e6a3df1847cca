//! `millrace doctor …`: whether all is as it must be.
#![forbid(unsafe_code)]

use anyhow::ensure;
use clap::Subcommand;
use nflib::control::{BufferPlace, BufferReport, BufferStatus, BufferUse, Reply, Request};

use crate::client::LOOK_LIMIT;
use crate::table::{Table, clean};
use crate::{Globals, print};

#[derive(Subcommand)]
pub enum Verb {
    /// Where every buffer is; fails when one is lost, or with two
    ///
    /// Each worker looks at all buffers of its share, between two of its turns: a pause of about a
    /// millisecond for 100,000 buffers.
    Buffers {
        /// Tell more about this one
        #[arg(long, value_name = "N")]
        buffer: Option<u32>,
    },
}

pub fn run(globals: &Globals, verb: &Verb) -> anyhow::Result<()> {
    let Verb::Buffers { buffer } = *verb;
    let client = globals.connect()?;
    let Reply::Buffers(report) = client.ask(&Request::Buffers { buffer }, LOOK_LIMIT)? else {
        return Err(client.unexpected("where buffers are").into());
    };
    print::either(globals.json, &report, || show(&report))?;
    ensure!(report.balanced, "{}", complaint(&report));
    Ok(())
}

fn complaint(report: &BufferReport) -> String {
    let lost = report.places.iter().filter(|place| place.used_for == BufferUse::Lost);
    let lost: u64 = lost.map(|place| place.buffers).sum();
    format!(
        "of {} buffers {lost} are with nobody and {} with two: a defect of the manager; its log may \
         say more",
        report.total, report.twice
    )
}

fn show(report: &BufferReport) -> String {
    let mut table = Table::new(&["WORKER", "WHERE", "BY", "BUFFERS"]);
    for BufferPlace { worker, used_for, place, buffers } in &report.places {
        let row = [&worker.to_string(), in_words(*used_for), place, &buffers.to_string()];
        table.row(row.iter().map(|cell| (*cell).to_string()).collect());
    }
    let sum: u64 = report.places.iter().map(|place| place.buffers).sum();
    let verdict = if report.balanced { "each has one place" } else { "NOT BALANCED" };
    let one = report.buffer.as_ref().map_or_else(String::new, one);
    format!("{}{sum} of {} buffers: {verdict}\n{one}", table.text(), report.total)
}

fn one(status: &BufferStatus) -> String {
    let BufferStatus { buffer, place, chain, hop, ingress } = status;
    let mut line =
        format!("buffer {buffer}: {} ({})", in_words(place.used_for), clean(&place.place));
    if let Some(chain) = chain {
        line += &format!(", chain {}", clean(chain));
    }
    if let Some(hop) = hop {
        line += &format!(", given out at hop {hop}");
    }
    if let Some(port) = ingress {
        line += &format!(", came in by {}", clean(port));
    }
    line + "\n"
}

fn in_words(used_for: BufferUse) -> &'static str {
    match used_for {
        BufferUse::Free => "free",
        BufferUse::Receiving => "posted for receive",
        BufferUse::Sending => "being sent",
        BufferUse::Delayed => "delayed",
        BufferUse::AtPort => "at a port",
        BufferUse::ToNf => "in the ring to an NF",
        BufferUse::AtNf => "at an NF",
        BufferUse::InEdge => "in a direct edge",
        BufferUse::FromNf => "in the ring from an NF",
        BufferUse::Moving => "moving among NFs",
        BufferUse::Parked => "waiting for a change",
        BufferUse::Lost => "LOST",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(used_for: BufferUse, place: &str, buffers: u64) -> BufferPlace {
        BufferPlace { worker: 0, used_for, place: place.into(), buffers }
    }

    #[test]
    fn each_place_has_a_line_and_the_sum_comes_last() {
        let edge = place(BufferUse::InEdge, "nf:1>nf:2", 4);
        let mut report = BufferReport {
            total: 64,
            places: vec![place(BufferUse::Free, "worker:0", 60), edge.clone()],
            balanced: true,
            ..BufferReport::default()
        };
        assert_eq!(
            show(&report),
            "WORKER  WHERE             BY         BUFFERS\n\
             \x20    0  free              worker:0        60\n\
             \x20    0  in a direct edge  nf:1>nf:2        4\n\
             64 of 64 buffers: each has one place\n"
        );
        report.buffer = Some(BufferStatus {
            buffer: 7,
            place: BufferPlace { buffers: 1, ..edge },
            chain: Some("web".into()),
            hop: Some(0),
            ingress: Some("wan".into()),
        });
        let last = "\nbuffer 7: in a direct edge (nf:1>nf:2), chain web, given out at hop 0, came in \
                    by wan\n";
        assert!(show(&report).ends_with(last), "{}", show(&report));
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        let report = BufferReport {
            total: 64,
            places: vec![place(BufferUse::Lost, "worker:0", 3)],
            twice: 1,
            ..BufferReport::default()
        };
        assert!(complaint(&report).starts_with("of 64 buffers 3 are with nobody and 1 with two"));
        assert!(show(&report).contains("NOT BALANCED"));
    }
}
