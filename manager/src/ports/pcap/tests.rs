use std::time::Duration;

use nflib::shm::{HugePages, Region, RegionGeometry};

use super::*;

const HEADROOM_BYTES: u16 = 128;

fn pools() -> Vec<BufferPool> {
    let geometry =
        RegionGeometry { buffers: 128, stride_bytes: 2048, headroom_bytes: HEADROOM_BYTES };
    let region = Arc::new(Region::create(geometry, HugePages::Off).unwrap());
    vec![BufferPool::new(region, 0, 128)]
}

/// A capture with frames of these lengths, each 1 ms after the one before.
fn capture_file(dir: &Path, lengths: &[usize]) -> PathBuf {
    let mut file = Vec::new();
    for field in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(field.to_le_bytes());
    }
    for (i, &len) in lengths.iter().enumerate() {
        for field in [100, i as u32 * 1000, len as u32, len as u32] {
            file.extend(field.to_le_bytes());
        }
        file.extend(std::iter::repeat_n(i as u8, len));
    }
    let path = dir.join("in.pcap");
    std::fs::write(&path, file).unwrap();
    path
}

fn replay(path: PathBuf) -> PcapOptions {
    PcapOptions { replay: Some(path), ..Default::default() }
}

fn record(path: PathBuf) -> PcapOptions {
    PcapOptions { record: Some(path), ..Default::default() }
}

fn error(options: &PcapOptions) -> String {
    open("pcap0", options, &mut pools()).err().expect("an error").to_string()
}

#[test]
fn a_truncated_file_is_refused_at_open_with_its_name_the_record_and_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = capture_file(dir.path(), &[60, 60, 60]);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(24 + 2 * 76 + 30).unwrap();
    let text = error(&replay(path.clone()));
    let expected = format!(
        "{}: truncated: record 3 at byte 176 needs 76 bytes and 30 are left; ",
        path.display()
    );
    assert!(text.starts_with(&expected), "{text}");
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn files_that_cannot_be_used_are_named_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    assert!(error(&replay(path("none"))).contains("none: no such file or directory"));
    assert!(error(&record(path("no/dir"))).contains("no/dir: no such file or directory"));
    assert!(error(&replay(dir.path().into())).contains("not a regular file"));
    assert!(error(&record(dir.path().into())).contains("cannot write it"));
    assert!(error(&PcapOptions::default()).contains("name a file to replay"));
    let both = PcapOptions {
        record: Some(dir.path().join("./in.pcap")),
        ..replay(capture_file(dir.path(), &[60]))
    };
    assert!(error(&both).contains("the same file"));
    nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(error(&replay(path("pipe"))).contains("not a regular file"));
    assert!(error(&record(path("pipe"))).contains("a pipe or socket would stall"));
    std::fs::write(path("text"), "hello").unwrap();
    assert!(error(&replay(path("text"))).contains("not a capture file: it begins with 68 65"));
}

#[test]
fn what_is_recorded_can_be_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let mut pools = pools();
    let options = PcapOptions {
        record: Some(dir.path().join("out.pcap")),
        loops: 3,
        ..replay(capture_file(dir.path(), &[60, 1514, 90]))
    };
    let mut port = open("pcap0", &options, &mut pools).unwrap();
    let queue = &mut port.queues[0];
    while !queue.exhausted() {
        let mut packets = Vec::new();
        queue.rx_burst(&mut pools[0], &mut packets);
        assert_eq!(queue.tx_burst(&mut pools[0], &packets), packets.len());
    }
    assert_eq!((queue.held_pkts(), queue.counters().tx_pkts.get()), (9, 0));
    queue.maintain(&mut pools[0]);
    assert_eq!(queue.held_pkts(), 9, "not in the turn in which packets came");
    queue.maintain(&mut pools[0]);
    assert_eq!((queue.held_pkts(), queue.counters().tx_pkts.get()), (0, 9));
    assert_eq!(queue.counters().tx_bytes.get(), 3 * (60 + 1514 + 90));
    assert_eq!(pools[0].free_buffers(), 128);

    let recorded = load(&dir.path().join("out.pcap")).unwrap();
    let lengths: Vec<_> = recorded.frames().iter().map(|frame| frame.len_bytes).collect();
    assert_eq!(lengths, [60, 1514, 90, 60, 1514, 90, 60, 1514, 90]);
    assert_eq!(recorded.bytes(&recorded.frames()[4]), [1; 1514]);
    assert!(recorded.frames()[0].time_ns > 1_600_000_000 * 1_000_000_000);
}

#[test]
fn a_full_disk_ends_the_recording_and_every_later_packet_is_a_counted_drop() {
    let dir = tempfile::tempdir().unwrap();
    let mut pools = pools();
    let options = replay(capture_file(dir.path(), &[60, 60]));
    let mut source = open("pcap0", &options, &mut pools).unwrap();
    let mut packets = Vec::new();
    source.queues[0].rx_burst(&mut pools[0], &mut packets);

    let mut queue = full_queue(dir.path());
    assert_eq!(queue.tx_burst(&mut pools[0], &packets[..1]), 1);
    queue.close(&mut pools[0]);
    assert_eq!(queue.tx_burst(&mut pools[0], &packets[1..]), 1);
    assert_eq!(queue.counters().tx_pkts.get(), 0);
    assert_eq!(queue.counters().drops.get(DropReason::TxPortDown), 2);
    assert_eq!(pools[0].free_buffers(), 128);
}

#[test]
fn a_disk_that_is_full_already_is_reported_at_open() {
    let text = error(&record("/dev/full".into()));
    assert!(text.contains("/dev/full: writing the file header: No space left"), "{text}");
}

/// A queue whose recording meets a full disk behind the file header.
fn full_queue(dir: &Path) -> PcapQueue {
    let mut recorder = Recorder::create(&dir.join("out.pcap")).unwrap();
    recorder.replace_file(File::options().write(true).open("/dev/full").unwrap());
    PcapQueue {
        replay: None,
        recorder: Some(recorder),
        counters: Arc::default(),
        discard: Discard::default(),
        buffers: Vec::new(),
    }
}

#[test]
fn frames_that_no_buffer_holds_and_stumps_are_counted_and_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let mut pools = pools();
    let largest = 2048 - usize::from(HEADROOM_BYTES);
    let path = capture_file(dir.path(), &[13, largest + 1, largest, 14]);
    let mut port = open("pcap0", &replay(path), &mut pools).unwrap();
    let queue = &mut port.queues[0];
    let mut packets = Vec::new();
    queue.rx_burst(&mut pools[0], &mut packets);
    let lengths: Vec<_> = packets.iter().map(|packet| usize::from(packet.len_bytes)).collect();
    assert_eq!(lengths, [largest, 14]);
    let counters = queue.counters();
    assert_eq!(counters.rx_pkts.get(), 4);
    assert_eq!(counters.drops.get(DropReason::RxMalformed), 1);
    assert_eq!(counters.drops.get(DropReason::RxTooLarge), 1);
    assert!(queue.exhausted());
}

#[test]
fn timestamps_pace_the_replay_through_every_loop() {
    let dir = tempfile::tempdir().unwrap();
    let mut pools = pools();
    let options = PcapOptions {
        pace: Pace::Timestamps,
        loops: 2,
        ..replay(capture_file(dir.path(), &[60; 10]))
    };
    let mut port = open("pcap0", &options, &mut pools).unwrap();
    let start = Instant::now();
    let mut packets = Vec::new();
    port.queues[0].rx_burst(&mut pools[0], &mut packets);
    assert!(!packets.is_empty(), "the first frame comes at once");
    while !port.queues[0].exhausted() {
        port.queues[0].rx_burst(&mut pools[0], &mut packets);
        let due = start.elapsed().as_millis() as usize + 1;
        assert!(packets.len() <= due, "{} packets after {due} ms", packets.len());
    }
    assert_eq!(packets.len(), 20);
    assert!(start.elapsed() >= Duration::from_millis(19));
}
