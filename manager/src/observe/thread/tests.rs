//! The observer by itself: rings are written here, as workers and NFs write them.

use super::*;
use crate::observe::{HopName, NfName, RouteName, ServiceName};
use nflib::control::MatchSpec;
use nflib::observe::{Event, EventKind, NOBODY};
use nflib::shm::{Scribble, TapWriter};

struct Bench {
    observer: Observer,
    worker: TapWriter<Arc<TapFile>>,
    nf: TapWriter<Arc<TapFile>>,
    said: Vec<Message>,
}

const LIMIT: Duration = Duration::from_secs(30);

impl Bench {
    fn new(latency_interval_us: u32) -> Self {
        let files = [TapFile::create().unwrap(), TapFile::create().unwrap()];
        let observer = Observer::start(vec![Arc::clone(&files[0])], latency_interval_us).unwrap();
        let [worker, nf] = files.each_ref().map(TapFile::writer);
        observer.tell(Command::NfCame(3, 9, Arc::clone(&files[1])));
        observer.tell(Command::Directory(Arc::new(directory())));
        Self { observer, worker, nf, said: Vec::new() }
    }

    /// Waits for a message that `wanted` takes.
    fn wait<T>(&mut self, mut wanted: impl FnMut(&Message) -> Option<T>) -> T {
        let end = Instant::now() + LIMIT;
        loop {
            let found = self.said.iter().enumerate().find_map(|(at, m)| Some((at, wanted(m)?)));
            if let Some((at, found)) = found {
                self.said.remove(at);
                return found;
            }
            assert!(Instant::now() < end, "the observer has not said it");
            self.said.extend(self.observer.take());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn ask(&mut self, question: Question) -> Reply {
        self.observer.tell(Command::Ask { connection: 77, question });
        self.wait(|message| match message {
            Message::Answer { connection: 77, reply, .. } => Some(Reply::clone(reply)),
            _ => None,
        })
    }

    /// A packet through the NF, marked for a trace or as a sample.
    fn packet(&mut self, slot: u16) {
        let event = |kind, hop, peer| Event {
            kind,
            hop,
            peer,
            time_ns: now_ns(),
            buffer: 5,
            len_bytes: 60,
            route: 2,
            marked: true,
            ..Event::default()
        };
        self.worker.write(event(EventKind::PortIn, Event::NO_HOP, slot), &[]);
        self.nf.write(event(EventKind::NfIn, 0, NOBODY), &[]);
        self.nf.write(Event { code: 1, ..event(EventKind::NfOut, 0, NOBODY) }, &[]);
        self.worker.write(event(EventKind::PortOut, Event::NO_HOP, NOBODY), &[]);
    }
}

fn directory() -> Directory {
    let hop = HopName { service: 1, name: "firewall".into() };
    let nf = NfName {
        nf: 3,
        instance: 9,
        service: 1,
        service_name: "firewall".into(),
        slot: 0,
        isolated: false,
    };
    let services = vec![ServiceName { service: 1, name: "firewall".into() }];
    let routes = vec![(2, RouteName { chain: "web".into(), hops: vec![hop] })];
    Directory::of(&["lan"], services, vec![nf], routes)
}

fn slot_of(message: &Message) -> Option<u16> {
    match message {
        Message::Observe(observation, _) => Some(observation.traces.first()?.slot),
        _ => None,
    }
}

#[test]
fn samples_are_asked_for_from_the_begin_and_counted() {
    let mut bench = Bench::new(1000);
    let interval_ns = bench.wait(|message| match message {
        Message::Observe(observation, _) => Some(observation.latency_interval_ns),
        _ => None,
    });
    assert_eq!(interval_ns, 1_000_000);
    (0..3).for_each(|_| bench.packet(NOBODY));
    let end = Instant::now() + LIMIT;
    let report = loop {
        let Reply::Latency(report) = bench.ask(Question::Latency) else { panic!() };
        if report.sampled_pkts == 3 {
            break report;
        }
        assert!(Instant::now() < end, "{report:?}");
    };
    assert_eq!((report.interval_us, report.torn_pkts), (1000, 0));
    assert_eq!((&*report.hops[0].chain, report.hops[0].took.count), ("web", 3));
    assert_eq!(report.chains[0].total.count, 3);
}

#[test]
fn a_trace_is_ordered_told_and_forgotten() {
    let mut bench = Bench::new(0);
    let request = TraceRequest { count: 2, ..TraceRequest::default() };
    let matches = Match::compile(&MatchSpec::default(), &|_| None).unwrap();
    let reply = bench.ask(Question::Trace(Box::new((request, matches))));
    assert_eq!(reply, Reply::Tracing { id: 1 });
    let slot = bench.wait(slot_of);
    bench.packet(slot);
    bench.packet(slot);
    let end = Instant::now() + LIMIT;
    let packets = loop {
        let Reply::Traces { traces } = bench.ask(Question::Traces(Some(1))) else { panic!() };
        if traces[0].packets.iter().filter(|packet| packet.end == "sent by lan").count() == 2 {
            break traces[0].packets.clone();
        }
        assert!(Instant::now() < end, "{traces:?}");
    };
    let places: Vec<_> = packets[0].steps.iter().map(|step| step.place.as_str()).collect();
    assert_eq!(places, ["port:lan", "nf:firewall#9", "port:lan"]);
    assert_eq!(bench.ask(Question::ForgetTrace(1)), Reply::Done);
    assert!(matches!(bench.ask(Question::ForgetTrace(1)), Reply::Error(_)));
    bench.wait(|message| match message {
        Message::Observe(observation, _) => observation.traces.is_empty().then_some(()),
        _ => None,
    });
}

#[test]
fn a_capture_has_its_taps_set_at_the_nf_and_taken_back_when_its_reader_goes() {
    let mut bench = Bench::new(0);
    let at = vec!["nf:firewall:in".to_owned()];
    let request = CaptureRequest { at, ..CaptureRequest::default() };
    bench.observer.tell(Command::Ask { connection: 1, question: Question::Capture(request) });
    let taps = |message: &Message| match message {
        Message::Taps(9, taps) => Some(taps.len()),
        _ => None,
    };
    assert_eq!(bench.wait(taps), 1);
    // With the answer the only reader of its pipe goes.
    bench.said.clear();
    assert_eq!(bench.wait(taps), 0);
}

#[test]
fn a_ring_that_holds_rubbish_is_given_up_and_the_others_are_read() {
    let mut bench = Bench::new(1000);
    let file = TapFile::create().unwrap();
    bench.observer.tell(Command::NfCame(4, 10, Arc::clone(&file)));
    // It says that five words are written, and there is nothing but zeros.
    Scribble::over(file.fd()).unwrap().store(1024, 5);
    bench.packet(NOBODY);
    let end = Instant::now() + LIMIT;
    loop {
        let Reply::Latency(report) = bench.ask(Question::Latency) else { panic!() };
        if report.sampled_pkts == 1 {
            break;
        }
        assert!(Instant::now() < end, "{report:?}");
    }
}

#[test]
fn what_an_nf_told_before_it_went_is_read_once_more() {
    let mut bench = Bench::new(1000);
    bench.packet(NOBODY);
    bench.observer.tell(Command::NfGone(3));
    let end = Instant::now() + LIMIT;
    loop {
        let Reply::Latency(report) = bench.ask(Question::Latency) else { panic!() };
        if report.sampled_pkts == 1 {
            assert_eq!(report.hops.len(), 1);
            break;
        }
        assert!(Instant::now() < end, "{report:?}");
    }
}

#[test]
fn where_time_is_short_each_nf_has_its_turn() {
    let mut watcher = Watcher::new(Vec::new(), 0);
    let mut rings: Vec<_> = (0..4u16)
        .map(|nf| {
            let file = TapFile::create().unwrap();
            watcher.obey(Command::NfCame(nf, nf.into(), Arc::clone(&file)));
            file.writer()
        })
        .collect();
    // A ring that is full takes another event once it was read.
    let event = Event { kind: EventKind::NfIn, marked: true, ..Event::default() };
    let fill = |ring: &mut TapWriter<_>| while ring.write(event, &[0; 4096]) {};
    rings.iter_mut().for_each(fill);
    for round in 1..=9 {
        let mut lost = Vec::new();
        assert!(!watcher.read_nfs(Duration::ZERO, &mut lost).0);
        assert_eq!(lost.len(), 1, "one in any case");
        let read = (round - 1) % 4;
        for (nf, ring) in rings.iter_mut().enumerate() {
            assert_eq!(ring.write(event, &[0; 4096]), nf == read, "NF {nf} in round {round}");
        }
        fill(&mut rings[read]);
    }
    let mut lost = Vec::new();
    assert!(watcher.read_nfs(LIMIT, &mut lost).0, "with time enough it comes to all");
    assert_eq!(lost.len(), 4);
}
