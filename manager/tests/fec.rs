//! Forward error correction from end to end: real managers, real NFs, and captures in place of a link, so
//! that what is lost on it is known to the packet.
//!
//! Each manager ends with the same assertion: the books balance and all buffers are back in the pool.

#[path = "support/running.rs"]
mod running;
#[path = "support/skip.rs"]
mod skip;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use millrace::ports::pcap::Capture;
use nflib::control::{Reply, Request, ServiceRef, Target};
use nflib::headers::Headers;
use nflib::testing::FrameBuilder;
use running::{Manager, nf_program, until};

const K: usize = 10;
const M: usize = 2;
const WAITING: &str = "wait_for_nfs = true";
const SHIM_BYTES: usize = 8;
const TYPE_SOURCE: u8 = 0x11;

/// A capture whose first frame comes long before the others, so that what an NF is lent is there when it
/// counts; the others come at this distance.
fn write_capture(path: &Path, frames: &[Vec<u8>]) {
    let mut file = Vec::new();
    for field in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(field.to_le_bytes());
    }
    for (frame, number) in frames.iter().zip(0u32..) {
        let at_us = if number == 0 { 0 } else { 500_000 + number * 50 };
        let length = frame.len() as u32;
        for field in [1 + at_us / 1_000_000, at_us % 1_000_000, length, length] {
            file.extend(field.to_le_bytes());
        }
        file.extend(frame);
    }
    std::fs::write(path, file).unwrap();
}

fn read_capture(path: &Path) -> Vec<Vec<u8>> {
    let capture = Capture::new(std::fs::read(path).unwrap()).unwrap();
    capture.frames().iter().map(|frame| capture.bytes(frame).to_vec()).collect()
}

/// Numbered packets of many lengths, of both IP versions.
fn site_traffic(count: usize) -> Vec<Vec<u8>> {
    let mut random = fastrand::Rng::with_seed(6);
    let addresses: [[IpAddr; 2]; 2] = [
        [[10, 1, 0, 1].into(), [10, 2, 0, 1].into()],
        ["2001:db8:1::1".parse().unwrap(), "2001:db8:2::1".parse().unwrap()],
    ];
    let frame = |number: usize| {
        let [src, dst] = addresses[random.usize(..2)];
        let mut payload: Vec<u8> = (0..random.usize(8..1300)).map(|_| random.u8(..)).collect();
        payload[..8].copy_from_slice(&(number as u64).to_be_bytes());
        FrameBuilder::new().ip(src, dst).udp(1000, 2000).payload(&payload).build()
    };
    (0..count).map(frame).collect()
}

/// What is inside a site's Ethernet frame.
fn inner(frame: &[u8]) -> &[u8] {
    let headers = Headers::parse(frame);
    &frame[headers.l3_offset.into()..headers.payload_end.into()]
}

/// What is inside the tunnel's UDP.
fn payload(frame: &[u8]) -> &[u8] {
    Headers::parse(frame).payload(frame)
}

/// What is inside a source packet of the tunnel; `None` for a parity packet.
fn carried(frame: &[u8]) -> Option<&[u8]> {
    let payload = payload(frame);
    (payload[0] == TYPE_SOURCE).then(|| &payload[SHIM_BYTES..])
}

fn encoder(local: &str, peer: &str, more: &str) -> String {
    format!(
        "[[service]]\nname = \"enc\"\ncommand = [\"millrace-nf\", \"fec-encode\", \"--log\", \"error\", \
         \"--local\", \"{local}\", \"--peer\", \"{peer}\", \"--mac\", \"02:00:00:00:00:0a\", \
         \"--next-hop-mac\", \"02:00:00:00:00:0b\", \"-k\", \"{K}\"{more}]\n"
    )
}

fn decoder(local: &str, peer: &str, more: &str) -> String {
    format!(
        "[[service]]\nname = \"dec\"\ncommand = [\"millrace-nf\", \"fec-decode\", \"--log\", \"error\", \
         \"--local\", \"{local}\", \"--peer\", \"{peer}\", \"--mac\", \"02:00:00:00:00:0b\", \
         \"--next-hop-mac\", \"02:00:00:00:00:0c\"{more}]\n"
    )
}

fn port(name: &str, replay: Option<&Path>, record: Option<&Path>) -> String {
    let mut text = format!("[[port]]\nname = \"{name}\"\nbackend = \"pcap\"\n");
    if let Some(path) = replay {
        text += &format!("replay = \"{}\"\npace = \"timestamps\"\n", path.display());
    }
    if let Some(path) = record {
        text += &format!("record = \"{}\"\n", path.display());
    }
    text
}

fn chain(service: &str, end: &str) -> String {
    format!("[[chain]]\nname = \"default\"\nservices = [\"{service}\"]\nend = \"{end}\"\n")
}

/// What an NF counts, by name.
#[track_caller]
fn counts(manager: &Manager, service: &str, setting: &str) -> BTreeMap<String, u64> {
    let target = Target::Service(ServiceRef::Name(service.into()));
    let payload = format!("get {setting}").into_bytes();
    let Reply::Called { answers } = manager.ask(&Request::Call { target, payload }) else {
        return BTreeMap::new();
    };
    let answers =
        answers.into_iter().filter_map(|(_, answer)| String::from_utf8(answer.ok()?).ok());
    let text: String = answers.collect();
    let pair = |word: &str| {
        let (name, count) = word.split_once('=')?;
        Some((name.to_owned(), count.parse().ok()?))
    };
    text.split_whitespace().filter_map(pair).collect()
}

/// Waits until an NF has counted so many, and returns all that it counts.
#[track_caller]
fn counted(manager: &Manager, service: &str, what: &[&str], pkts: u64) -> BTreeMap<String, u64> {
    until(&format!("{service} counts {pkts} {what:?}"), || {
        let counts = counts(manager, service, "counts");
        let sum: u64 = what.iter().filter_map(|name| counts.get(*name)).sum();
        (sum >= pkts).then_some(counts)
    })
}

/// A link between two sites, and the ends of their tunnel.
struct Link {
    folder: tempfile::TempDir,
    a: &'static str,
    b: &'static str,
}

impl Link {
    fn new(a: &'static str, b: &'static str) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), a, b }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What site A sends over the link for this traffic.
    fn encode(&self, traffic: &[Vec<u8>], more: &str) -> Vec<Vec<u8>> {
        write_capture(&self.path("lan-a"), traffic);
        let tables = port("lan", Some(&self.path("lan-a")), None)
            + &port("wan", None, Some(&self.path("wan-a")))
            + &encoder(self.a, self.b, more)
            + &chain("enc", "out:wan");
        let manager = Manager::start(WAITING, &tables);
        let all = traffic.len() as u64;
        // The first packet's block is closed by the timer, the others fill theirs, but for the last.
        let parity = (all - 1).div_ceil(K as u64) * M as u64;
        counted(&manager, "enc", &["data", "parity"], all + parity);
        manager.stop();
        read_capture(&self.path("wan-a"))
    }

    /// What site B's hosts get when this comes over the link; what its decoder counts; and what it sends
    /// back over the link.
    fn decode(&self, arrives: &[Vec<u8>], out: u64, more: &str) -> Decoded {
        write_capture(&self.path("wan-b"), arrives);
        let tables = port("wan", Some(&self.path("wan-b")), Some(&self.path("wan-back")))
            + &port("lan", None, Some(&self.path("lan-b")))
            + &decoder(self.b, self.a, more)
            + &chain("dec", "out:lan");
        let manager = Manager::start(WAITING, &tables);
        counted(&manager, "dec", &["delivered", "recovered"], out);
        let counts = counted(&manager, "dec", &["reports-out"], 2);
        manager.stop();
        let got = read_capture(&self.path("lan-b"));
        Decoded { got, counts, sent_back: read_capture(&self.path("wan-back")) }
    }
}

struct Decoded {
    got: Vec<Vec<u8>>,
    counts: BTreeMap<String, u64>,
    sent_back: Vec<Vec<u8>>,
}

/// Which block a tunnel packet belongs to: the first packet is one by itself.
fn block(frame: &[u8]) -> usize {
    let field = &payload(frame)[4..8];
    let number = u32::from_be_bytes(field.try_into().unwrap()) as usize;
    number.div_ceil(K)
}

/// A link that loses up to M packets of each block, parity among them, but none of the first, which came
/// while the encoder had no buffers yet. How many data packets it loses comes with what it leaves.
fn lose(frames: &[Vec<u8>]) -> (Vec<Vec<u8>>, u64) {
    let mut random = fastrand::Rng::with_seed(7);
    let mut left: BTreeMap<usize, usize> = BTreeMap::new();
    let (mut kept, mut lost) = (Vec::new(), 0);
    for frame in frames {
        let block = block(frame);
        let left = left.entry(block).or_insert_with(|| random.usize(..=M));
        if block > 0 && *left > 0 && random.u8(..6) == 0 {
            *left -= 1;
            lost += u64::from(carried(frame).is_some());
        } else {
            kept.push(frame.clone());
        }
    }
    (kept, lost)
}

const PLAIN: &str = ", \"-m\", \"2\", \"--flush-ms\", \"100\"";

#[test]
fn what_a_link_loses_is_brought_back_byte_for_byte_and_reports_find_their_encoder() {
    if nf_program().is_none() {
        return;
    }
    let link = Link::new("192.0.2.1:4950", "198.51.100.1:4950");
    let traffic = site_traffic(401);
    let sent = link.encode(&traffic, PLAIN);
    let data: Vec<_> = sent.iter().filter_map(|frame| carried(frame)).collect();
    let inside: Vec<_> = traffic.iter().map(|frame| inner(frame)).collect();
    assert_eq!(data, inside, "data packets are untouched and in order");
    let (arrives, lost) = lose(&sent);
    assert!(lost > 30, "{lost}");
    let Decoded { got, counts, sent_back } = link.decode(&arrives, traffic.len() as u64, "");
    assert_eq!(counts["recovered"], lost);
    let mut came: Vec<_> = got.iter().map(|frame| inner(frame)).collect();
    came.sort_unstable();
    let mut all = inside.clone();
    all.sort_unstable();
    assert!(came == all, "each packet came once, byte for byte");
    for frame in &got {
        let headers = Headers::parse(frame);
        assert_eq!(headers.dst_mac, [2, 0, 0, 0, 0, 0xc]);
        assert_eq!((headers.src_mac, headers.problem), ([2, 0, 0, 0, 0, 0xb], None));
    }
    jump(&link, &sent_back);
}

/// Reports, which went back to where the packets came from, jump to the encoder of that end.
fn jump(link: &Link, sent_back: &[Vec<u8>]) {
    let report = Headers::parse(&sent_back[0]);
    assert_eq!(report.addresses(), Some(([198, 51, 100, 1].into(), [192, 0, 2, 1].into())));
    assert_eq!(report.dst_mac, [2, 0, 0, 0, 0, 0xa]);
    write_capture(&link.path("reports"), sent_back);
    let tables = port("wan", Some(&link.path("reports")), None)
        + &port("lan", None, Some(&link.path("none")))
        + &encoder(link.a, link.b, "")
        + &decoder(link.a, link.b, ", \"--reports-to\", \"enc\"")
        + &chain("dec", "out:lan")
        + "[[chain]]\nname = \"up\"\nservices = [\"enc\"]\nend = \"out:wan\"\n";
    let manager = Manager::start(WAITING, &tables);
    let reports = sent_back.len() as u64;
    assert_eq!(counted(&manager, "dec", &["reports-in"], reports)["reports-in"], reports);
    // It is another run of the encoder, so it takes none of them.
    assert_eq!(counted(&manager, "enc", &["reports-stray"], reports)["reports-stray"], reports);
    manager.stop();
    assert!(read_capture(&link.path("none")).is_empty(), "a site sees nothing of the tunnel");
}

#[test]
fn over_ipv6_with_a_key_and_in_order_nothing_is_missing_and_nothing_out_of_turn() {
    if nf_program().is_none() {
        return;
    }
    let link = Link::new("[2001:db8::a]:4950", "[2001:db8::b]:4950");
    std::fs::write(link.path("key"), "000102030405060708090a0b0c0d0e0f").unwrap();
    let key = format!(", \"--key-file\", \"{}\"", link.path("key").display());
    let traffic = site_traffic(301);
    let sent = link.encode(&traffic, &(PLAIN.to_owned() + &key));
    let (arrives, lost) = lose(&sent);
    assert!(lost > 20, "{lost}");
    let more = ", \"--in-order\", \"256,200\"".to_owned() + &key;
    let Decoded { got, .. } = link.decode(&arrives, traffic.len() as u64, &more);
    let came: Vec<_> = got.iter().map(|frame| inner(frame)).collect();
    let all: Vec<_> = traffic.iter().map(|frame| inner(frame)).collect();
    assert!(came == all, "each packet came in its turn, byte for byte");
}
