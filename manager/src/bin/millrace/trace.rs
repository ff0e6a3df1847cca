//! `millrace trace …`
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::time::Duration;

use clap::{Args, Subcommand};
use nflib::control::{
    ByteChange, MatchSpec, Reply, Request, TraceRequest, TraceStatus, TraceStep, TracedPacket,
};
use serde::Serialize;

use crate::client::{Client, LOOK_LIMIT};
use crate::table::{Table, ago, clean, time_ns};
use crate::{Globals, print, words};

/// Between two looks at a trace that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The same, when it has taken long already.
const LOOK_RARELY: Duration = Duration::from_secs(1);
/// Width of a packet's time from end to end, columns.
const BAR_COLUMNS: usize = 32;

#[derive(Subcommand)]
pub enum Verb {
    /// Follow packets: what they meet from port to port, how long it takes, what is changed of them
    ///
    /// Example: millrace trace add --match ip_proto=udp tp_dst=53 --count 3 --wait
    Add(Spec),
    /// All traces, one line each
    List,
    /// What was seen of a trace's packets
    Show {
        /// Its number
        id: u64,
    },
    /// Mark no more packets for a trace, and forget what was seen
    Forget {
        /// Its number
        id: u64,
    },
}

#[derive(Args)]
pub struct Spec {
    /// Packets to follow, as they come in (none: all): `millrace rule fields` lists the fields
    #[arg(long = "match", value_name = "FIELD=VALUE", num_args = 1..)]
    matches: Vec<String>,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 10)]
    count: u32,
    /// Of the packets that match, only each so manieth
    #[arg(long, value_name = "N", default_value_t = 1)]
    one_in: u32,
    /// First bytes of a packet that are compared from hop to hop [default: 128]
    #[arg(long, value_name = "N")]
    bytes: Option<u16>,
    /// Wait until the packets have come through, and show them
    #[arg(long)]
    wait: bool,
}

impl Spec {
    fn request(&self) -> anyhow::Result<TraceRequest> {
        // In quotes or not.
        let words = self.matches.iter().flat_map(|word| word.split_whitespace());
        let words: Vec<_> = words.map(str::to_owned).collect();
        Ok(TraceRequest {
            matches: words::matches(&words).map_err(print::usage)?,
            count: self.count,
            one_in: self.one_in,
            bytes: self.bytes.unwrap_or(0),
        })
    }
}

#[derive(Serialize)]
struct Added {
    id: u64,
}

pub fn run(globals: &Globals, verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Add(spec) => {
            let request = Request::Trace(spec.request()?);
            let client = globals.connect()?;
            let Reply::Tracing { id } = client.ask(&request, LOOK_LIMIT)? else {
                return Err(client.unexpected("trace").into());
            };
            if spec.wait {
                let trace = wait_for(&client, id)?;
                return print::either(globals.json, &trace, || shown(&trace));
            }
            print::either(globals.json, &Added { id }, || {
                format!("trace {id}: millrace trace show {id}\n")
            })
        }
        Verb::List => {
            let traces = traces(&globals.connect()?, None)?;
            print::either(globals.json, &traces, || table(&traces))
        }
        Verb::Show { id } => {
            let trace = one(&globals.connect()?, id)?;
            print::either(globals.json, &trace, || shown(&trace))
        }
        Verb::Forget { id } => {
            let client = globals.connect()?;
            match client.ask(&Request::ForgetTrace { id }, LOOK_LIMIT)? {
                Reply::Done => print::either(globals.json, &Added { id }, String::new),
                _ => Err(client.unexpected("trace forget").into()),
            }
        }
    }
}

fn traces(client: &Client, id: Option<u64>) -> anyhow::Result<Vec<TraceStatus>> {
    match client.ask(&Request::Traces { id }, LOOK_LIMIT)? {
        Reply::Traces { traces } => Ok(traces),
        _ => Err(client.unexpected("traces").into()),
    }
}

fn one(client: &Client, id: u64) -> anyhow::Result<TraceStatus> {
    let trace = traces(client, Some(id))?.into_iter().find(|trace| trace.id == id);
    trace.ok_or_else(|| client.unexpected("a trace").into())
}

/// Asks until all packets of a trace are through: at first only whether they are marked, and then ever more
/// rarely for all of them, which is much to tell.
fn wait_for(client: &Client, id: u64) -> anyhow::Result<TraceStatus> {
    while traces(client, None)?.iter().any(|trace| trace.id == id && !trace.done) {
        std::thread::sleep(LOOK_EVERY);
    }
    let mut pause = LOOK_EVERY;
    loop {
        std::thread::sleep(pause);
        let trace = one(client, id)?;
        let is_inside = |packet: &TracedPacket| packet.end == "still inside";
        let ended = trace.packets.iter().filter(|packet| !is_inside(packet)).count() as u64;
        if trace.done && ended + trace.torn_pkts >= trace.marked_pkts {
            return Ok(trace);
        }
        pause = (2 * pause).min(LOOK_RARELY);
    }
}

fn match_text(matches: &MatchSpec) -> String {
    let text = matches.to_string();
    if text.is_empty() { "*".to_owned() } else { text }
}

fn table(traces: &[TraceStatus]) -> String {
    if traces.is_empty() {
        return "no trace\n".to_owned();
    }
    let mut table = Table::new(&["ID", "STATE", "MARKED", "OF", "TORN", "ONE IN", "AGE", "MATCH"]);
    for trace in traces {
        table.row(vec![
            trace.id.to_string(),
            if trace.done { "done" } else { "marking" }.to_owned(),
            trace.marked_pkts.to_string(),
            trace.request.count.to_string(),
            trace.torn_pkts.to_string(),
            trace.request.one_in.max(1).to_string(),
            ago(trace.for_s),
            match_text(&trace.request.matches),
        ]);
    }
    table.text()
}

/// A trace with all its packets, a block each.
fn shown(trace: &TraceStatus) -> String {
    let TraceStatus { id, request, marked_pkts, torn_pkts, .. } = trace;
    let state = if trace.done { "done" } else { "marking" };
    let mut text = format!(
        "trace {id}, {state}: {marked_pkts} of {} packets marked, {torn_pkts} torn; match {}\n",
        request.count,
        clean(&match_text(&request.matches)),
    );
    for (number, packet) in (1..).zip(&trace.packets) {
        text.push('\n');
        text += &block(number, packet);
    }
    text
}

/// A packet: its head, then a line for each place it was at, and one for each thing that was changed there.
fn block(number: usize, packet: &TracedPacket) -> String {
    let chain = packet.chain.as_ref().map(|chain| format!(", chain {chain}")).unwrap_or_default();
    let mut text = String::new();
    let _ = writeln!(
        text,
        "packet {number}  {}  {} bytes{}: {} after {}",
        clock(packet.time_unix_ns),
        packet.len_bytes,
        clean(&chain),
        clean(&packet.end),
        time_ns(packet.total_ns),
    );
    let _ = writeln!(text, "  {}", clean(&packet.key.to_string()));
    let width = packet.steps.iter().map(|step| step.place.chars().count()).max().unwrap_or(0);
    for step in &packet.steps {
        let _ = writeln!(text, "{}", line(step, packet.total_ns, width));
        if step.moved_bytes != 0 {
            let _ = writeln!(text, "{:>48}{:+} bytes in front", "", step.moved_bytes);
        }
        for change in &step.changed {
            let _ = writeln!(text, "{:>48}{}", "", change_text(change));
        }
    }
    text
}

fn line(step: &TraceStep, total_ns: u64, width: usize) -> String {
    let mut line = format!(
        "  +{:<9} {} {:<width$}",
        time_ns(step.at_ns),
        bar(step, total_ns),
        clean(&step.place)
    );
    if step.wait_ns > 0 {
        let _ = write!(line, "  waited {:<8}", time_ns(step.wait_ns));
    }
    if step.service.is_some() && step.place.starts_with("nf:") {
        let _ = write!(line, "  took {:<8}", time_ns(step.took_ns));
    }
    if let Some(action) = &step.action {
        let _ = write!(line, "  → {}", clean(action));
    }
    if let Some(from) = step.from.as_ref().filter(|from| *from != "manager") {
        let _ = write!(line, "  (from {})", clean(from));
    }
    line.truncate(line.trim_end().len());
    line
}

/// When it waited for this place, and was there: dots and blocks on the packet's whole time.
fn bar(step: &TraceStep, total_ns: u64) -> String {
    let column = |at_ns: u64| {
        let columns = u128::from(at_ns) * BAR_COLUMNS as u128 / u128::from(total_ns.max(1));
        usize::try_from(columns).unwrap_or(BAR_COLUMNS).min(BAR_COLUMNS)
    };
    let came = column(step.at_ns);
    let waited = column(step.at_ns.saturating_sub(step.wait_ns));
    // However short, it was there.
    let went = column(step.at_ns.saturating_add(step.took_ns)).max(came + 1);
    let cell = |at: usize| match at {
        at if at < waited => ' ',
        at if at < came => '·',
        at if at < went => '█',
        _ => ' ',
    };
    (0..=BAR_COLUMNS).map(cell).collect()
}

fn change_text(change: &ByteChange) -> String {
    let field = change.field.clone().unwrap_or_else(|| format!("byte {}", change.at_bytes));
    let field = clean(&field);
    match (change.before.as_str(), change.after.as_str()) {
        ("", after) => format!("{field} added: {}", clean(after)),
        (before, "") => format!("{field} removed: {}", clean(before)),
        (before, after) => format!("{field} {} → {}", clean(before), clean(after)),
    }
}

/// The time of day of a moment since 1970, UTC, to the nanosecond.
fn clock(unix_ns: u64) -> String {
    let (seconds, ns) = (unix_ns / 1_000_000_000 % 86_400, unix_ns % 1_000_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{hour:02}:{minute:02}:{second:02}.{ns:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::control::spec::Value;

    fn packet() -> TracedPacket {
        let step = |place: &str, at_ns, wait_ns, took_ns| TraceStep {
            place: place.to_owned(),
            at_ns,
            wait_ns,
            took_ns,
            ..TraceStep::default()
        };
        let ttl = ByteChange {
            at_bytes: 22,
            before: "40".into(),
            after: "3f".into(),
            field: Some("ipv4.ttl".into()),
        };
        TracedPacket {
            time_unix_ns: 1_700_000_000_000_000_005,
            key: MatchSpec { tp_dst: Some(Value::Int(53)), ..MatchSpec::default() },
            len_bytes: 60,
            chain: Some("web".into()),
            total_ns: 3200,
            end: "sent by wan".into(),
            steps: vec![
                step("port:lan", 0, 0, 0),
                TraceStep {
                    service: Some("router".into()),
                    action: Some("next".into()),
                    from: Some("manager".into()),
                    changed: vec![ttl],
                    ..step("nf:router#1", 1000, 1000, 500)
                },
                step("port:wan", 3200, 1700, 0),
            ],
        }
    }

    #[test]
    fn a_packet_is_a_block_with_a_line_for_each_place() {
        assert_eq!(
            block(1, &packet()),
            "packet 1  22:13:20.000000005Z  60 bytes, chain web: sent by wan after 3.20 µs\n\
             \x20 tp_dst=53\n\
             \x20 +0 ns      █                                 port:lan\n\
             \x20 +1.00 µs   ··········█████                   nf:router#1  waited 1.00 µs   took 500 ns    → next\n\
             \x20                                              ipv4.ttl 40 → 3f\n\
             \x20 +3.20 µs                  ·················█ port:wan     waited 1.70 µs\n"
                .replace("\x20                                              ipv4", &format!("{:>48}ipv4", ""))
        );
    }

    #[test]
    fn a_list_has_one_line_for_each() {
        let request = TraceRequest { count: 10, ..TraceRequest::default() };
        let trace =
            TraceStatus { id: 3, request, marked_pkts: 2, for_s: 1.5, ..Default::default() };
        assert_eq!(
            table(&[trace]),
            "ID  STATE    MARKED  OF  TORN  ONE IN     AGE  MATCH\n \
             3  marking       2  10     0       1  1.50 s  *\n"
        );
        assert_eq!(table(&[]), "no trace\n");
    }

    #[test]
    fn bytes_added_removed_and_changed_read_as_such() {
        let change = |before: &str, after: &str, field: Option<&str>| {
            let (before, after) = (before.to_owned(), after.to_owned());
            change_text(&ByteChange { at_bytes: 7, before, after, field: field.map(Into::into) })
        };
        assert_eq!(change("", "8100", Some("vlan")), "vlan added: 8100");
        assert_eq!(change("8100", "", Some("vlan")), "vlan removed: 8100");
        assert_eq!(change("00", "01", None), "byte 7 00 → 01");
    }

    #[test]
    fn names_of_others_cannot_command_the_terminal() {
        let mut packet = packet();
        packet.steps[1].place = "nf:\x1b[2J#1".into();
        packet.end = "sent by \x1b".into();
        assert!(!block(1, &packet).contains('\x1b'));
    }
}
