//! Captures with made events and real pipes.

use std::fs::File;
use std::io::Read as _;

use nflib::descriptor::{ActionCode, NO_PORT};
use nflib::observe::{EventKind, NOBODY, TapPoint};
use pcap_parser::pcapng::{EnhancedPacketBlock, InterfaceDescriptionBlock, parse_block_le};
use pcap_parser::{Block, OptionCode, PcapNGOption};
use proptest::prelude::*;

use super::*;
use crate::observe::directory::{NfName, ServiceName};
use crate::observe::points::tests::directory;
use crate::ports::pcap::Capture;
use crate::stats::DropReason;

const WORKER: Source = Source::Worker(0);
/// `firewall#3` of the tests' directory.
const FIREWALL: Source = Source::Nf(13);

fn request(at: &[&str]) -> CaptureRequest {
    CaptureRequest { at: at.iter().map(|&at| at.to_owned()).collect(), ..CaptureRequest::default() }
}

/// A packet of 60 bytes on the chain, at its first hop.
fn event(kind: EventKind, taps: u32) -> Event {
    Event {
        time_ns: 2_000,
        buffer: 5,
        flow_hash: 0xabc,
        taps,
        len_bytes: 60,
        kept_bytes: 60,
        route: 7,
        hop: 0,
        ingress: 0,
        kind,
        target: 0,
        peer: NOBODY,
        ..Event::default()
    }
}

/// The blocks of a file, owned: kinds, texts and numbers that the tests look at.
#[derive(Debug, Default)]
struct Read {
    interfaces: Vec<String>,
    /// Interface, direction, length, original length, losses before, comment.
    packets: Vec<(u32, u32, usize, u32, u64, String)>,
    /// Interface, dropped, accepted, lost, delivered.
    statistics: Vec<(u32, u64, u64, u64, u64)>,
}

fn option<'a>(options: &'a [PcapNGOption<'_>], code: u16) -> &'a [u8] {
    let found = options.iter().find(|option| option.code == OptionCode(code));
    found.map_or(&[], |option| &option.value[..usize::from(option.len)])
}

fn number(options: &[PcapNGOption<'_>], code: u16) -> u64 {
    option(options, code).iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte))
}

fn text(options: &[PcapNGOption<'_>], code: u16) -> String {
    String::from_utf8(option(options, code).to_vec()).unwrap()
}

fn read(reader: OwnedFd) -> Read {
    let mut file = Vec::new();
    File::from(reader).read_to_end(&mut file).unwrap();
    Capture::new(file.clone()).expect("a whole file");
    let (mut rest, mut read) = (&file[..], Read::default());
    while !rest.is_empty() {
        let (behind, block) = parse_block_le(rest).unwrap();
        rest = behind;
        match block {
            Block::InterfaceDescription(InterfaceDescriptionBlock { options, .. }) => {
                read.interfaces.push(text(&options, 2));
            }
            Block::EnhancedPacket(packet) => {
                let EnhancedPacketBlock { if_id, caplen, origlen, options, .. } = packet;
                let way = number(&options, 2) as u32;
                let lost = number(&options, 4);
                let comment = text(&options, 1);
                read.packets.push((if_id, way, caplen as usize, origlen, lost, comment));
            }
            Block::InterfaceStatistics(end) => {
                let [dropped, accepted, lost, delivered] =
                    [5, 6, 7, 8].map(|code| number(&end.options, code));
                read.statistics.push((end.if_id, dropped, accepted, lost, delivered));
            }
            _ => {}
        }
    }
    read
}

/// Two rounds without events: what came before is written.
fn settle(captures: &mut Captures, now_ns: u64) {
    for now_ns in [now_ns, now_ns + 1] {
        captures.turn(now_ns, &[], &directory());
    }
}

#[test]
fn packets_are_in_the_order_of_their_times_whichever_ring_was_read_first() {
    let (mut captures, directory) = (Captures::new(), directory());
    let at = request(&["port:lan", "nf:firewall:in"]);
    let (id, reader) = captures.start(&at, &directory, 1).unwrap();
    let mut round = |worker: &[u64], nf: &[u64], now_ns| {
        for &time_ns in worker {
            let event = Event { time_ns, ..event(EventKind::PortIn, 1) };
            captures.on_event(&WORKER, &event, &[0; 60], &directory);
        }
        for &time_ns in nf {
            let event = Event { time_ns, ..event(EventKind::NfIn, 2) };
            captures.on_event(&FIREWALL, &event, &[0; 60], &directory);
        }
        captures.turn(now_ns, &[], &directory);
        captures.status(now_ns)[0].pkts
    };
    // The NF's ring is read after the worker's, and holds what is younger than what that still gets.
    assert_eq!(round(&[100, 200], &[150, 250, 350], 400), 0);
    assert_eq!(round(&[300, 500], &[450], 600), 6);
    assert_eq!(round(&[], &[], 700), 8);
    captures.end(id, 800, &directory);
    let mut file = Vec::new();
    File::from(reader).read_to_end(&mut file).unwrap();
    let times: Vec<_> = Capture::new(file).unwrap().frames().iter().map(|f| f.time_ns).collect();
    let first = times[0];
    let since: Vec<_> = times.into_iter().map(|time_ns| time_ns - first + 100).collect();
    assert_eq!(since, [100, 150, 200, 250, 300, 350, 450, 500]);
}

#[test]
fn a_capture_has_an_interface_for_each_place_and_says_what_became_of_packets() {
    let (mut captures, directory) = (Captures::new(), directory());
    let at = ["port:lan", "nf:firewall", "drop", "ring:manager:firewall"];
    let (id, reader) = captures.start(&request(&at), &directory, 1_000).unwrap();
    let mut tell = |source, event: Event| {
        captures.on_event(&source, &event, &[7; 60], &directory);
    };
    tell(WORKER, Event { hop: Event::NO_HOP, ..event(EventKind::PortIn, 1) });
    // Both the NF's tap and the ring's took it.
    tell(FIREWALL, event(EventKind::NfIn, 2 | 8));
    let code = ActionCode::Out as u8;
    tell(FIREWALL, Event { code, target: 1, ..event(EventKind::NfOut, 2) });
    let code = DropReason::NfDrop as u8;
    let ingress = NO_PORT;
    tell(WORKER, Event { code, ingress, ..event(EventKind::Drop, 4) });
    captures.end(id, 3_000, &directory);
    assert!(!captures.is_active());
    let read = read(reader);
    assert_eq!(
        read.interfaces,
        ["port:lan", "nf:firewall#3", "ring:manager:firewall#3", "drop:firewall:nf_drop"]
    );
    let seen: Vec<_> = read.packets.iter().map(|p| (p.0, p.1, &p.5[..])).collect();
    let expected = [
        (0, 1, "in=lan buffer=5 flow=00000abc"),
        (1, 1, "chain=web hop=0 from=manager instance=3 in=lan buffer=5 flow=00000abc"),
        (2, 0, "chain=web hop=0 from=manager instance=3 in=lan buffer=5 flow=00000abc"),
        (1, 2, "chain=web hop=0 action=out port=wan instance=3 in=lan buffer=5 flow=00000abc"),
        (3, 0, "chain=web action=drop reason=nf_drop service=firewall buffer=5 flow=00000abc"),
    ];
    assert_eq!(seen, expected);
    let counted: Vec<_> = read.statistics.iter().map(|s| (s.0, s.2, s.4)).collect();
    assert_eq!(counted, [(0, 1, 1), (1, 2, 2), (2, 1, 1), (3, 1, 1)]);
}

#[test]
fn taps_are_set_where_the_points_are_and_taken_back_at_the_end() {
    let (mut captures, directory) = (Captures::new(), directory());
    let first = CaptureRequest { snap_bytes: 96, ..request(&["nf:firewall:in", "drop:no_rule"]) };
    let (id, _reader) = captures.start(&first, &directory, 1).unwrap();
    let before = captures.generation();
    let at = TapPoint::NfIn { from: None };
    let spec = TapSpec { id: 0, at, filter: Vec::new(), snap_bytes: 96 };
    assert_eq!(captures.taps_for_nf(13), std::slice::from_ref(&spec));
    assert_eq!(captures.taps_for_nf(14), [spec]);
    assert!(captures.taps_for_nf(15).is_empty());
    assert_eq!(captures.taps_for_workers()[0].id, 1);
    captures.turn(2, &[], &directory);
    assert_eq!(captures.generation(), before);
    captures.end(id, 3, &directory);
    assert!(captures.taps_for_workers().is_empty() && captures.taps_for_nf(13).is_empty());
    assert!(captures.generation() > before);
    // What is still in rings bears the old numbers, so the next capture gets others.
    captures.start(&request(&["drop"]), &directory, 4).unwrap();
    let all = captures.taps_for_workers();
    assert_eq!((all[0].id, all[0].snap_bytes), (2, MAX_KEPT_BYTES));
}

#[test]
fn an_instance_that_comes_later_is_joined() {
    let mut captures = Captures::new();
    let service = ServiceName { service: 1, name: "nat".into() };
    let nf = |instance: u32| NfName {
        nf: instance as u16,
        instance,
        service: 1,
        service_name: "nat".into(),
        slot: 0,
        isolated: false,
    };
    let with = |generation, nfs| {
        let services = vec![service.clone()];
        let mut directory = Directory::of(&["lan"], services, nfs, Vec::new());
        directory.generation = generation;
        directory
    };
    let (id, reader) = captures.start(&request(&["nf:nat:in"]), &with(1, vec![]), 1).unwrap();
    assert!(captures.taps_for_nf(2).is_empty());
    let before = captures.generation();
    let later = with(2, vec![nf(2)]);
    captures.turn(2, &[], &later);
    assert_eq!(captures.taps_for_nf(2).len(), 1);
    assert!(captures.generation() > before);
    captures.on_event(&Source::Nf(2), &event(EventKind::NfIn, 1), &[0; 60], &later);
    captures.end(id, 3, &later);
    assert_eq!(read(reader).interfaces, ["nf:nat#2"]);
}

#[test]
fn limits_of_packets_and_of_time_end_a_capture() {
    let (mut captures, directory) = (Captures::new(), directory());
    let two = CaptureRequest { max_pkts: 2, ..request(&["port:lan"]) };
    let (_, reader) = captures.start(&two, &directory, 1_000).unwrap();
    let short = CaptureRequest { max_ms: 5, ..request(&["port:lan"]) };
    let (_, short_reader) = captures.start(&short, &directory, 1_000).unwrap();
    for _ in 0..4 {
        captures.on_event(&WORKER, &event(EventKind::PortIn, 3), &[0; 60], &directory);
    }
    settle(&mut captures, 3_000);
    assert_eq!(captures.taps_for_workers().len(), 2, "only those of the second capture");
    captures.turn(5_000_999, &[], &directory);
    let left: Vec<_> = captures.status(5_000_999).into_iter().map(|s| (s.id, s.pkts)).collect();
    assert_eq!(left, [(2, 4)]);
    captures.turn(5_001_000, &[], &directory);
    assert!(!captures.is_active());
    assert_eq!(read(reader).packets.len(), 2);
    assert_eq!(read(short_reader).packets.len(), 4);
}

#[test]
fn a_reader_that_goes_away_ends_its_capture_only() {
    let (mut captures, directory) = (Captures::new(), directory());
    let (_, gone) = captures.start(&request(&["port:lan"]), &directory, 1).unwrap();
    let (_, reader) = captures.start(&request(&["port:lan"]), &directory, 1).unwrap();
    drop(gone);
    captures.turn(2, &[], &directory);
    let ids: Vec<_> = captures.status(3).into_iter().map(|s| s.id).collect();
    assert_eq!(ids, [2]);
    assert_eq!(captures.taps_for_workers().len(), 2);
    captures.on_event(&WORKER, &event(EventKind::PortIn, 2), &[0; 60], &directory);
    captures.end(2, 4, &directory);
    assert_eq!(read(reader).packets.len(), 1);
}

#[test]
fn a_reader_that_stops_reading_loses_packets_of_its_capture_and_is_told_how_many() {
    let (mut captures, directory) = (Captures::new(), directory());
    let (id, reader) = captures.start(&request(&["port:lan"]), &directory, 1).unwrap();
    let large = Event { len_bytes: 9_000, kept_bytes: 9_000, ..event(EventKind::PortIn, 1) };
    let sent = 1_000;
    for _ in 0..sent {
        captures.on_event(&WORKER, &large, &[1; 9_000], &directory);
        captures.turn(2, &[], &directory);
    }
    let status = captures.status(3).remove(0);
    assert_eq!(status.pkts + status.lost_pkts, sent);
    assert!(status.lost_pkts > 0 && status.pkts > 20, "{status:?}");
    // It goes on reading: what was written whole is there, and so is what comes now.
    let reading = std::thread::spawn(move || read(reader));
    while captures.status(3)[0].pkts == status.pkts {
        captures.on_event(&WORKER, &large, &[1; 9_000], &directory);
        captures.turn(4, &[], &directory);
    }
    let status = captures.status(5).remove(0);
    captures.end(id, 6, &directory);
    while captures.is_active() {
        captures.turn(7, &[], &directory);
    }
    let read = reading.join().unwrap();
    assert_eq!(read.packets.len() as u64, status.pkts);
    let told: u64 = read.packets.iter().map(|packet| packet.4).sum();
    assert_eq!(told, status.lost_pkts, "told with the packet after");
    let all = status.pkts + status.lost_pkts;
    assert_eq!(read.statistics, [(0, 0, all, status.lost_pkts, status.pkts)]);
}

#[test]
fn what_rings_lost_is_counted_since_the_begin_for_the_places_they_serve() {
    let (mut captures, directory) = (Captures::new(), directory());
    captures.turn(1, &[(WORKER, 100), (FIREWALL, 50)], &directory);
    let (id, reader) = captures.start(&request(&["nf:firewall#3:in"]), &directory, 1).unwrap();
    captures.on_event(&FIREWALL, &event(EventKind::NfIn, 1), &[0; 60], &directory);
    settle(&mut captures, 3_000);
    captures.turn(3_002, &[(WORKER, 900), (FIREWALL, 57), (Source::Nf(14), 9)], &directory);
    captures.turn(3_003, &[(FIREWALL, 3)], &directory);
    captures.on_event(&FIREWALL, &event(EventKind::NfIn, 1), &[0; 60], &directory);
    captures.on_event(&FIREWALL, &event(EventKind::NfIn, 1), &[0; 60], &directory);
    assert_eq!(captures.status(4)[0].lost_pkts, 7);
    captures.end(id, 5, &directory);
    let read = read(reader);
    assert_eq!(read.packets.iter().map(|p| p.4).collect::<Vec<_>>(), [0, 7, 0]);
    assert_eq!(read.statistics, [(0, 7, 10, 0, 3)]);
}

#[test]
fn what_a_ring_lost_is_told_at_one_of_its_places() {
    let (mut captures, directory) = (Captures::new(), directory());
    let (id, reader) = captures.start(&request(&["port:lan", "port:wan"]), &directory, 1).unwrap();
    let both = |captures: &mut Captures| {
        for target in [0, 1] {
            let event = Event { target, ..event(EventKind::PortIn, 3) };
            captures.on_event(&WORKER, &event, &[0; 60], &directory);
        }
    };
    both(&mut captures);
    settle(&mut captures, 3_000);
    captures.turn(3_002, &[(WORKER, 5), (Source::Worker(1), 6)], &directory);
    both(&mut captures);
    assert_eq!(captures.status(3)[0].lost_pkts, 11);
    captures.end(id, 3, &directory);
    let read = read(reader);
    assert_eq!(read.packets.iter().map(|p| p.4).collect::<Vec<_>>(), [0, 0, 11, 0]);
    assert_eq!(read.statistics, [(0, 11, 13, 0, 2), (1, 0, 2, 0, 2)]);
}

#[test]
fn bytes_beyond_what_was_asked_for_are_cut_off() {
    let (mut captures, directory) = (Captures::new(), directory());
    let short = CaptureRequest { snap_bytes: 20, ..request(&["port:lan"]) };
    let (id, reader) = captures.start(&short, &directory, 1).unwrap();
    captures.on_event(&WORKER, &event(EventKind::PortIn, 1), &[0; 60], &directory);
    captures.end(id, 2, &directory);
    let read = read(reader);
    assert_eq!((read.packets[0].2, read.packets[0].3), (20, 60));
}

#[test]
fn events_that_cannot_be_are_counted_and_skipped() {
    let (mut captures, directory) = (Captures::new(), directory());
    let at = request(&["port:lan", "nf:firewall", "ring:firewall:manager"]);
    let (id, reader) = captures.start(&at, &directory, 1).unwrap();
    let mut tell = |source, event: Event, bytes: usize| {
        captures.on_event(&source, &event, &vec![0; bytes], &directory);
    };
    tell(WORKER, event(EventKind::PortIn, 1), 59);
    tell(WORKER, Event { kept_bytes: 61, ..event(EventKind::PortIn, 1) }, 61);
    tell(WORKER, Event { kept_bytes: u16::MAX, ..event(EventKind::PortIn, 1) }, 65_535);
    tell(WORKER, Event { target: 9, ..event(EventKind::PortIn, 1) }, 60);
    tell(FIREWALL, event(EventKind::PortIn, 1), 60);
    tell(Source::Nf(4000), event(EventKind::NfIn, 2), 60);
    // Not strange: no such tap any more, and what goes straight to the next NF.
    tell(WORKER, event(EventKind::PortIn, 1 << 31), 60);
    tell(FIREWALL, Event { code: ActionCode::Next as u8, ..event(EventKind::NfOut, 4) }, 60);
    assert_eq!(captures.strange_events(), 6);
    captures.end(id, 2, &directory);
    assert!(read(reader).packets.is_empty());
}

#[test]
fn what_cannot_be_started_is_refused_in_one_line() {
    let (mut captures, directory) = (Captures::new(), directory());
    let mut refused = |request: &CaptureRequest| {
        let error = captures.start(request, &directory, 1).unwrap_err();
        assert_eq!(error.message.lines().count(), 1, "{error}");
        error
    };
    assert_eq!(refused(&request(&[])).code, ErrorCode::Invalid);
    assert_eq!(refused(&request(&["port:lan", "port:x"])).code, ErrorCode::NotFound);
    assert_eq!(refused(&request(&["drop"; 33])).code, ErrorCode::Invalid);
    let looping = CaptureRequest { filter: vec![(5, 0, 0, u32::MAX)], ..request(&["drop"]) };
    assert_eq!(refused(&looping).code, ErrorCode::Invalid);
    let mut readers = Vec::new();
    readers.push(captures.start(&request(&["drop"; 20]), &directory, 1).unwrap());
    let error = captures.start(&request(&["drop"; 13]), &directory, 1).unwrap_err();
    assert!(error.message.contains("12 of 32 are left"), "{error}");
    for _ in 1..MAX_CAPTURES - 3 {
        readers.push(captures.start(&request(&["drop"]), &directory, 1).unwrap());
    }
    assert_eq!(
        captures.start(&request(&["drop"]), &directory, 1).unwrap_err().code,
        ErrorCode::Exhausted
    );
    let hostile = CaptureRequest { name: "x\n".repeat(4000), ..request(&["drop"]) };
    let mut captures = Captures::new();
    readers.push(captures.start(&hostile, &directory, 1).unwrap());
    let name = captures.status(1).remove(0).name;
    assert!(name.len() <= MAX_SHOWN_BYTES && !name.contains('\n'));
    readers.clear();
    captures.turn(2, &[], &directory);
    assert!(!captures.is_active());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_events_leave_a_file_that_can_be_read(
        events in prop::collection::vec(
            (prop::array::uniform5(any::<u64>()), 1_u64..7, 0_u16..20, any::<bool>(), any::<bool>()), 0..60
        ),
    ) {
        let (mut captures, directory) = (Captures::new(), directory());
        let at = request(&["port:lan", "nf:firewall", "ring:firewall:nat", "ring:nat:manager", "drop"]);
        let (id, reader) = captures.start(&at, &directory, 1).unwrap();
        for (mut words, kind, number, at_nf, plausible) in events {
            words[3] = words[3] & 0xff00_ffff_ffff_ffff | kind << 48;
            let mut event = Event::from_words(words).unwrap();
            if plausible {
                event.taps |= 31;
                event.kept_bytes %= 100;
                event.len_bytes |= 128;
                (event.target, event.peer) = (event.target % 3, 13 + event.peer % 3);
            }
            let source = if at_nf { Source::Nf(number) } else { Source::Worker(number) };
            let bytes = vec![1; usize::from(event.kept_bytes)];
            captures.on_event(&source, &event, &bytes, &directory);
        }
        captures.turn(u64::MAX, &[], &directory);
        captures.turn(u64::MAX, &[], &directory);
        let pkts = captures.status(2)[0].pkts;
        captures.end(id, 3, &directory);
        prop_assert_eq!(read(reader).packets.len() as u64, pkts);
    }
}
