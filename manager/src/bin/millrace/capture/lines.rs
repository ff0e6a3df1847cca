//! A capture as text: a line for each packet, for people or for programs.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd};

use millrace::flow::FlowKey;
use nflib::control::MatchSpec;
use pcap_parser::Block;
use pcap_parser::pcapng::EnhancedPacketBlock;
use pcap_parser::traits::PcapNGPacketBlock as _;
use serde::Serialize;

use super::blocks::{each, number, option};
use super::pump::Sink;
use crate::explain;
use crate::table::clean;

/// Writes lines to standard output.
pub struct Lines {
    as_json: bool,
    stdout: std::io::Stdout,
    /// The interfaces' names.
    places: Vec<String>,
}

/// A packet, as a line of JSON has it.
#[derive(Debug, Serialize)]
struct Seen<'a> {
    time_unix_ns: u64,
    place: &'a str,
    direction: Option<&'static str>,
    len_bytes: u32,
    kept_bytes: u32,
    key: MatchSpec,
    /// What the comment says: chain, hop, action, reason.
    #[serde(flatten)]
    about: BTreeMap<String, String>,
}

impl Lines {
    /// For people, or as JSON.
    pub fn new(as_json: bool) -> Self {
        Self { as_json, stdout: std::io::stdout(), places: Vec::new() }
    }

    fn line(&self, packet: &EnhancedPacketBlock<'_>) -> String {
        let place = self.places.get(packet.if_id as usize).map_or("unknown", String::as_str);
        let comment = String::from_utf8_lossy(option(&packet.options, 1)).into_owned();
        let frame = packet.packet_data();
        let key = FlowKey::parse_start(frame, packet.origlen as usize, 0, 0, 0);
        let mut key = key.to_spec(&|_| String::new());
        key.in_port = None;
        let direction = match number(&packet.options, 2) & 3 {
            1 => Some("in"),
            2 => Some("out"),
            _ => None,
        };
        let seen = Seen {
            time_unix_ns: u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low),
            place,
            direction,
            len_bytes: packet.origlen,
            kept_bytes: packet.caplen,
            key,
            about: pairs(&comment),
        };
        match self.as_json {
            true => serde_json::to_string(&seen).unwrap_or_default(),
            false => seen.text(),
        }
    }
}

impl Seen<'_> {
    fn text(&self) -> String {
        let way = self.direction.map(|way| format!(" {way}")).unwrap_or_default();
        // What people look for; the rest is for programs.
        let about = self
            .about
            .iter()
            .filter(|(key, _)| !["buffer", "flow", "instance"].contains(&key.as_str()));
        let about: Vec<_> = about.map(|(key, value)| format!("{key}={value}")).collect();
        let text = format!(
            "{} {}{way}  {}  {} bytes  {}",
            clock(self.time_unix_ns),
            self.place,
            explain::flow(&self.key),
            self.len_bytes,
            about.join(" ")
        );
        clean(text.trim_end())
    }
}

impl Sink for Lines {
    fn take(&mut self, blocks: &[u8]) -> std::io::Result<()> {
        let mut text = String::new();
        let read = each(blocks, |block| match block {
            Block::SectionHeader(_) => self.places.clear(),
            Block::InterfaceDescription(place) => {
                let name = String::from_utf8_lossy(option(&place.options, 2)).into_owned();
                self.places.push(name);
            }
            Block::EnhancedPacket(packet) => {
                text.push_str(&self.line(&packet));
                text.push('\n');
            }
            _ => {}
        });
        // They were read once already.
        debug_assert!(read.is_ok());
        let mut out = self.stdout.lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    fn output(&self) -> Option<BorrowedFd<'_>> {
        Some(self.stdout.as_fd())
    }

    fn is_file(&self) -> bool {
        false
    }
}

/// `12:00:00.000000`, of the day in UTC.
fn clock(unix_ns: u64) -> String {
    let (s, us) = (unix_ns / 1_000_000_000 % 86_400, unix_ns / 1000 % 1_000_000);
    format!("{:02}:{:02}:{:02}.{us:06}", s / 3600, s / 60 % 60, s % 60)
}

/// Pairs of key and value with a space between; a value may be a string in quotes.
fn pairs(comment: &str) -> BTreeMap<String, String> {
    let mut pairs = BTreeMap::new();
    let mut rest = comment;
    while let Some((key, behind)) = rest.split_once('=') {
        let (value, behind) = match behind.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let (value, behind) = behind.split_once(' ').unwrap_or((behind, ""));
                (value.to_owned(), behind)
            }
        };
        pairs.insert(key.trim().to_owned(), value);
        rest = behind;
    }
    pairs
}

/// What stands before the closing quotes, and what behind them.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace::observe::pcapng;

    fn text_of(as_json: bool, comment: &str) -> String {
        let frame = nflib::control::frame::from_tuple(
            &["tcp", "10.0.0.1:1234", "10.0.0.2:80"].map(str::to_owned),
        );
        let frame = frame.unwrap();
        let mut file = Vec::new();
        pcapng::section(&mut file, &pcapng::Section::default());
        let place = pcapng::Interface { name: "nf:fw#3", ..pcapng::Interface::default() };
        pcapng::interface(&mut file, &place);
        let packet = pcapng::Packet {
            time_unix_ns: 86_400_000_000_000 + 3_723_000_004_000,
            bytes: &frame,
            original_bytes: 900,
            direction: pcapng::Direction::Outbound,
            comment,
            ..pcapng::Packet::default()
        };
        pcapng::packet(&mut file, &packet);
        let mut lines = Lines::new(as_json);
        let mut found = String::new();
        each(&file, |block| match block {
            Block::InterfaceDescription(place) => {
                lines.places.push(String::from_utf8_lossy(option(&place.options, 2)).into_owned());
            }
            Block::EnhancedPacket(packet) => found = lines.line(&packet),
            _ => {}
        })
        .unwrap();
        found
    }

    #[test]
    fn a_packet_is_a_line() {
        let line = text_of(false, "chain=web hop=0 action=out port=\"my \\\"lan\\\"\" buffer=7");
        assert_eq!(
            line,
            "01:02:03.000004 nf:fw#3 out  tcp 10.0.0.1:1234 → 10.0.0.2:80  900 bytes  action=out \
             chain=web hop=0 port=my \"lan\""
        );
    }

    #[test]
    fn a_packet_is_an_object_for_programs() {
        let line = text_of(true, "chain=web reason=no_rule");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["place"], "nf:fw#3");
        assert_eq!(value["direction"], "out");
        assert_eq!(value["reason"], "no_rule");
        assert_eq!(value["key"]["tp_dst"], 80);
        assert_eq!(value["len_bytes"], 900);
    }

    #[test]
    fn texts_of_others_stay_on_their_line() {
        assert!(!text_of(false, "in=\"a\nb\u{1b}[2J\"").contains(['\n', '\u{1b}']));
        for odd in ["", "=", "x", "a=\"", "a=\"\\", "a= b=c"] {
            let _ = pairs(odd);
        }
        assert_eq!(pairs("a= b=c").get("b").unwrap(), "c");
    }
}
