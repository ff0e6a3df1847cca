use nflib::descriptor::Delivery;
use nflib::shm::{HugePages, Recorder, Region};

use super::super::reading::Bundle;
use super::super::store::{Bounds, Store};
use super::super::tests::scene;
use super::*;

const REGION: RegionGeometry =
    RegionGeometry { buffers: 16, stride_bytes: 2048, headroom_bytes: 256 };

fn delivery(buffer: u32, len_bytes: u16) -> Delivery {
    Delivery { buffer, offset_bytes: 256, len_bytes, route: 3, ..Delivery::default() }
}

/// Packets 1 to 6 were taken, and recorded but for 4; it was at work on 5 to 7 and had changed 5.
fn dead() -> Scene {
    let terms = RecorderTerms { slots: 8, kept_bytes: 64, all: true };
    let black_box = Arc::new(BlackBox::create(terms).unwrap());
    let region = Arc::new(Region::create(REGION, HugePages::Off).unwrap());
    let mut recorder = Recorder::new(Arc::clone(&black_box), Arc::clone(&region), 0);
    for number in [1, 2, 3, 5, 6] {
        assert!(region.write(number, 256, &[number as u8; 100]));
        recorder.record(&[delivery(number, 100)], NOBODY, number.into(), u64::from(number) * 1000);
    }
    let found = |kind, buffer: u32, byte| Found {
        kind,
        delivery: delivery(buffer, 100),
        peer: if buffer == 6 { 9 } else { NOBODY },
        bytes: vec![byte; 100],
    };
    let packets = vec![
        found(PacketKind::InHand, 5, 0xee),
        found(PacketKind::InHand, 6, 6),
        found(PacketKind::InHand, 7, 7),
        // The same buffer as a packet that was done with long ago.
        found(PacketKind::InHand, 2, 8),
        found(PacketKind::Waiting, 9, 9),
    ];
    let names = Names {
        ports: vec!["lan".into()],
        chains: BTreeMap::from([(3, "web".to_owned())]),
        nfs: BTreeMap::from([(9, "nat#4".to_owned())]),
    };
    let evidence = Evidence { packets, in_hand_pkts: 4, held_pkts: 1, waiting_pkts: 70 };
    Scene { black_box, names, evidence, done_pkts: 4, ..scene("fw", 3) }
}

fn written(scene: &Scene) -> (tempfile::TempDir, Bundle) {
    let folder = tempfile::tempdir().unwrap();
    scene.write(folder.path(), "x", Path::new("/final/x")).unwrap();
    let bundle = Bundle::read(folder.path()).unwrap();
    (folder, bundle)
}

#[test]
fn what_is_written_is_read_back() {
    let (folder, bundle) = written(&dead());
    let Report { crash, packets, in_hand_pkts, held_pkts, waiting_pkts, unrecorded_pkts, .. } =
        &bundle.report;
    assert_eq!((&*crash.name, &*crash.path, crash.instance), ("x", "/final/x", 3));
    assert_eq!((*in_hand_pkts, *held_pkts, *waiting_pkts), (4, 1, 70));
    assert_eq!((crash.recorded_pkts, *unrecorded_pkts), (5, 1));
    let files: Vec<_> = crash.files.iter().map(|(file, _)| file.as_str()).collect();
    assert_eq!(files, FILES);
    for (file, bytes) in &crash.files {
        assert_eq!(folder.path().join(file).metadata().unwrap().len(), *bytes, "{file}");
    }
    let numbers: Vec<_> = packets.iter().map(|note| note.number).collect();
    let recorded = [1, 2, 3, 5, 6].map(Some);
    assert_eq!(numbers, [&recorded[..], &[Some(5), Some(6), None, None, None]].concat());
    assert!(packets.iter().all(|note| note.chain.as_deref() == Some("web")));
    assert_eq!(packets[6].peer.as_deref(), Some("nat#4"));
    assert_eq!((packets[0].kept_bytes, packets[5].kept_bytes), (64, 100));
    assert_eq!(bundle.log, "a line\n");
    assert!(bundle.backtrace.contains("It left no last words"), "{}", bundle.backtrace);
}

#[test]
fn the_packets_to_replay_are_each_once_and_as_they_came() {
    let (_folder, bundle) = written(&dead());
    let replay = bundle.replay();
    let told: Vec<_> =
        replay.iter().map(|p| (p.bytes[0], p.bytes[99], p.padded, p.in_hand)).collect();
    let padded = |byte| (byte, 0, true, false);
    assert_eq!(
        told,
        [
            padded(1),
            padded(2),
            padded(3),
            // Its first bytes are those that were recorded, the others those that were found.
            (5, 0xee, false, true),
            (6, 6, false, true),
            (7, 7, false, true),
            (8, 8, false, true),
        ]
    );
}

#[test]
fn last_words_are_those_of_the_end() {
    let function = backtrace::Function { name: "nf::f".into(), at: Some("f.rs:7".into()) };
    let signal = |signal, code| {
        Some(nflib::shm::SignalWords { signal, code, address: 16, ..Default::default() })
    };
    let panic = Some(nflib::shm::PanicWords {
        location: "p.rs:1:2".into(),
        message: "no".into(),
        ..Default::default()
    });
    let say = |signal, panic, why| {
        last_words(&LastWords { signal, panic, modules: String::new() }, why, Some(&function))
    };
    let segv = nix::libc::SIGSEGV;
    assert_eq!(
        say(signal(segv, 1), None, "SIGSEGV").unwrap(),
        "SIGSEGV at address 0x10, in nf::f (f.rs:7)"
    );
    // Sent by somebody: the address is no address.
    assert_eq!(say(signal(segv, -6), None, "SIGSEGV").unwrap(), "SIGSEGV in nf::f (f.rs:7)");
    let text = "panic: no at p.rs:1:2, in nf::f (f.rs:7)";
    assert_eq!(say(None, panic.clone(), "exit status 101").unwrap(), text);
    // It was caught, and then somebody killed it.
    assert_eq!(say(None, panic.clone(), "SIGKILL"), None);
    let abort = say(signal(nix::libc::SIGABRT, -6), panic, "SIGABRT").unwrap();
    assert_eq!(abort, "panic: no at p.rs:1:2; SIGABRT in nf::f (f.rs:7)");
    assert_eq!(say(None, None, "SIGKILL"), None);
}

#[test]
fn packets_that_are_not_recorded_are_counted_between_the_first_and_the_last_that_was_taken() {
    let recorded = |numbers: &[u64]| -> Vec<RecordedPacket> {
        numbers.iter().map(|&number| RecordedPacket { number, ..Default::default() }).collect()
    };
    assert_eq!(unrecorded_pkts(&recorded(&[5, 6, 10]), 8), 3);
    assert_eq!(unrecorded_pkts(&recorded(&[5, 6, 10]), 100), 93);
    assert_eq!(unrecorded_pkts(&[], 100), 100);
    // Garbage is no overflow.
    let _ = unrecorded_pkts(&recorded(&[u64::MAX, 0]), u64::MAX);
    let _ = unrecorded_pkts(&recorded(&[0, u64::MAX]), 3);
}

#[test]
fn the_oldest_go_when_there_are_too_many_or_too_long() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("crashes");
    let store = Store::open(path.clone(), Bounds { bundles: 3, bytes: u64::MAX });
    let names = |store: &Store| -> Vec<_> { store.list().into_iter().map(|c| c.name).collect() };
    for instance in 1..=5 {
        store.keep(&Scene { time_unix_ns: instance, ..scene("a/b", instance as u32) }).unwrap();
    }
    assert_eq!(names(&store), [3, 4, 5].map(|n| format!("19700101T000000Z-a_b-{n}")));
    // Of two of one name the second has another.
    store.keep(&Scene { time_unix_ns: 6, ..scene("a/b", 5) }).unwrap();
    assert_eq!(names(&store)[2], "19700101T000000Z-a_b-5-2");
    let (crash, files) = store.files("19700101T000000Z-a_b-5-2").unwrap();
    assert_eq!((crash.files.len(), files.len()), (4, 4));
    assert!(store.files("19700101T000000Z-a_b-1").unwrap_err().contains("crash list"));
    // The next manager has less room; the newest stays in any case.
    let store = Store::open(path, Bounds { bundles: 3, bytes: 1 });
    assert_eq!(names(&store).len(), 3);
    store.keep(&Scene { time_unix_ns: 7, ..scene("c", 6) }).unwrap();
    assert_eq!(names(&store), ["19700101T000000Z-c-6"]);
    assert_eq!(folder.path().join("crashes").read_dir().unwrap().count(), 1);
}
