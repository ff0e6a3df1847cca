//! Makes packets that circulate, and measures how fast.
#![forbid(unsafe_code)]

mod content;
mod meter;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use nflib::control::ServiceRef;
use nflib::{Action, Burst, Context, NetworkFunction, NfError, Packet, ServiceId, Setup};
use serde::Serialize;

pub use content::ContentError;
use content::MIN_FRAME_BYTES;
use meter::{Figures, Meter};

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;
/// The field that is rewritten: the last four bytes of the source Ethernet address.
const FIELD: std::ops::Range<usize> = 8..12;

/// Options of `speed-test`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Service to send each packet to; its own if not given, so that packets come back at once
    #[arg(long, value_name = "SERVICE")]
    pub to: Option<ServiceRef>,
    /// Packets that circulate
    #[arg(long, value_name = "PACKETS", default_value_t = 512)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub packets_in_flight: u32,
    /// Length of each, without the frame check sequence
    #[arg(long, value_name = "BYTES", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u16).range(i64::from(MIN_FRAME_BYTES)..))]
    pub packet_bytes: u16,
    /// Fill packets with the frames of this capture file, in turn
    #[arg(long, value_name = "FILE", conflicts_with = "packet_bytes")]
    pub pcap: Option<PathBuf>,
    /// What each round reads and writes of a packet
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Touch::None)]
    pub touch: Touch,
    /// One packet alone, each of its rounds timed
    #[arg(long, conflicts_with_all = ["packets_in_flight", "sample"])]
    pub latency: bool,
    /// Time the round of one packet in so many; 0: of none
    #[arg(long, value_name = "PACKETS", default_value_t = 0)]
    pub sample: u64,
    /// Print figures every so many seconds, too, not only at the end
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub print_every: Option<u32>,
    /// Print each figure as a JSON object on a line of its own
    #[arg(long)]
    pub json: bool,
}

/// What is read and written of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Touch {
    /// Nothing: descriptors alone
    None,
    /// Its first cache line is read, one field of it rewritten
    Header,
    /// Every cache line is read and written
    Payload,
}

/// A packet whose round is being timed.
#[derive(Clone, Copy)]
struct Sample {
    buffer: u32,
    sent_ns: u64,
}

/// The NF.
pub struct SpeedTest {
    options: Options,
    own_service: ServiceRef,
    contents: Vec<Vec<u8>>,
    to: ServiceId,
    circulating_pkts: u32,
    meter: Meter,
    sample: Option<Sample>,
    /// Packets until the next is timed.
    until_sample: u64,
    leaving: bool,
}

/// A line of `--json`.
#[derive(Serialize)]
struct Line {
    period: &'static str,
    packets_in_flight: u32,
    touch: Touch,
    #[serde(flatten)]
    figures: Figures,
}

impl SpeedTest {
    /// # Errors
    /// [`ContentError`] when `--pcap` is of no use.
    pub fn new(options: &Options, own_service: ServiceRef) -> Result<Self, ContentError> {
        let mut options = options.clone();
        if options.latency {
            (options.packets_in_flight, options.sample) = (1, 1);
        }
        let contents = match &options.pcap {
            None => vec![content::made_up(options.packet_bytes)],
            Some(path) => content::from_capture(path, options.packets_in_flight as usize)?,
        };
        Ok(Self {
            contents,
            to: 0,
            circulating_pkts: 0,
            meter: Meter::new(),
            sample: None,
            until_sample: options.sample,
            leaving: false,
            options,
            own_service,
        })
    }

    /// Sends a packet on its round; or out of it, at the end.
    #[inline]
    fn action(&self) -> Action {
        if self.leaving { Action::Drop } else { Action::ToService(self.to) }
    }

    /// Looks for the packet that is timed, and chooses the next: the last of a burst, which has been
    /// read at `now_ns` and goes on now.
    fn time(&mut self, burst: &mut Burst<'_>, now_ns: u64) {
        if let Some(Sample { buffer, sent_ns }) = self.sample {
            let is_it = |packet: Packet<'_>| packet.id().buffer() == buffer;
            if (0..burst.len()).any(|at| burst.packet(at).is_some_and(is_it)) {
                self.meter.took(now_ns - sent_ns);
                self.sample = None;
            }
        }
        self.until_sample = self.until_sample.saturating_sub(burst.len() as u64);
        if self.until_sample == 0
            && self.sample.is_none()
            && let Some(last) = burst.len().checked_sub(1).and_then(|last| burst.packet(last))
        {
            self.sample = Some(Sample { buffer: last.id().buffer(), sent_ns: now_ns });
            self.until_sample = self.options.sample;
        }
    }

    fn print(&self, period: &'static str, figures: Option<Figures>) {
        let Some(figures) = figures else { return };
        let (packets_in_flight, touch) = (self.circulating_pkts, self.options.touch);
        let line = Line { period, packets_in_flight, touch, figures };
        let text = if self.options.json {
            serde_json::to_string(&line).unwrap_or_default()
        } else {
            format!("{period}: {figures}, {packets_in_flight} packets in flight")
        };
        // Nobody may listen any more; the measurement goes on for the others.
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}

/// Reads and writes what is to be read and written.
#[inline]
fn touch(what: Touch, bytes: &mut [u8]) {
    if what == Touch::None {
        return;
    }
    let (first, rest) = bytes.split_at_mut(bytes.len().min(LINE_BYTES));
    // Every word of the line, so that none of the reads can be left out.
    let words = first.as_chunks().0.iter();
    let sum = words.fold(0, |sum: u32, word| sum.wrapping_add(u32::from_le_bytes(*word)));
    if let Some(field) = first.get_mut(FIELD) {
        field.copy_from_slice(&sum.to_le_bytes());
    }
    if what == Touch::Payload {
        for byte in rest {
            *byte = byte.wrapping_add(1);
        }
    }
}

impl NetworkFunction for SpeedTest {
    fn setup(&mut self, setup: &Setup) -> Result<(), NfError> {
        let longest = setup.region.max_packet_bytes() as usize;
        if let Some((at, frame)) =
            self.contents.iter().enumerate().find(|(_, frame)| frame.len() > longest)
        {
            let what = match &self.options.pcap {
                None => format!("--packet-bytes {}", frame.len()),
                Some(path) => {
                    format!("--pcap {}: frame {} of {} bytes", path.display(), at + 1, frame.len())
                }
            };
            return Err(NfError::new(format!(
                "{what}: at most {longest} fit into a buffer; make pool.buffer_bytes larger"
            )));
        }
        let to = setup.jump_services.first();
        self.to =
            *to.ok_or_else(|| NfError::new("the manager does not say which service is next"))?;
        (self.circulating_pkts, self.leaving) = (0, false);
        self.meter = Meter::new();
        (self.sample, self.until_sample) = (None, self.options.sample);
        Ok(())
    }

    fn loan_pkts(&self) -> u32 {
        self.options.packets_in_flight
    }

    fn jumps_to(&self) -> Vec<ServiceRef> {
        vec![self.options.to.clone().unwrap_or_else(|| self.own_service.clone())]
    }

    fn fill(&mut self, packet: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
        let content = &self.contents[self.circulating_pkts as usize % self.contents.len()];
        // That it fits was seen when the NF was set up.
        let Ok(bytes) = packet.push_back(content.len()) else { return Action::Drop };
        bytes.copy_from_slice(content);
        self.circulating_pkts += 1;
        self.meter.more_circulate(ctx.now_ns());
        self.action()
    }

    fn process_burst(&mut self, burst: &mut Burst<'_>, ctx: &mut Context<'_>) {
        let now_ns = ctx.now_ns();
        if !self.leaving {
            if self.options.sample > 0 {
                self.time(burst, now_ns);
            }
            self.meter.came_back(burst.len(), now_ns);
        }
        let (what, action) = (self.options.touch, self.action());
        match what {
            Touch::None => burst.decide_all(action, ctx),
            Touch::Header | Touch::Payload => burst.decide_each(ctx, |packet, _| {
                touch(what, packet.bytes_mut());
                action
            }),
        }
    }

    fn tick_interval(&self) -> Option<Duration> {
        self.options.print_every.map(|s| Duration::from_secs(s.into()))
    }

    fn tick(&mut self, ctx: &mut Context<'_>) {
        if !self.leaving {
            let figures = self.meter.end_period(ctx.now_ns());
            self.print("period", figures);
        }
    }

    fn leaving(&mut self, ctx: &mut Context<'_>) {
        self.leaving = true;
        self.meter.end(ctx.now_ns());
    }

    fn shutdown(&mut self) {
        let total = self.meter.total();
        if total.is_none() {
            eprintln!(
                "speed-test: nothing was measured: {} packets circulated, and not for long enough",
                self.circulating_pkts
            );
        }
        self.print("total", total);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use nflib::testing::{BenchOptions, TestBench};

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    const OWN: ServiceRef = ServiceRef::Id(7);

    /// What is said besides the service, which is 7.
    fn options(more: &[&str]) -> Options {
        let args = ["speed-test"].iter().chain(more);
        Cli::try_parse_from(args).unwrap().options
    }

    fn bench(more: &[&str]) -> TestBench<SpeedTest> {
        TestBench::new(SpeedTest::new(&options(more), OWN).unwrap())
    }

    /// A bench of so many buffers, which come round in turn, with all of them lent and the warm-up
    /// over.
    fn round(buffers: u32, more: &[&str]) -> TestBench<SpeedTest> {
        let mut options = BenchOptions::default();
        options.region.buffers = buffers;
        let nf = SpeedTest::new(&self::options(more), OWN).unwrap();
        let mut bench = TestBench::with_options(nf, options).unwrap();
        bench.lend(buffers as usize);
        bench.advance(Duration::from_nanos(meter::WARM_UP_NS));
        bench
    }

    #[test]
    fn each_loan_becomes_a_packet_that_is_sent_on_its_round() {
        let mut bench = bench(&["--packets-in-flight", "3", "--packet-bytes", "100"]);
        assert_eq!(bench.nf().loan_pkts(), 3);
        for packet in bench.lend(3).into_iter().chain(bench.feed(&[[1; 100]])) {
            assert_eq!(packet.action, Action::ToService(7), "to its own service");
            assert_eq!(packet.bytes.len(), 100);
        }
    }

    #[test]
    fn to_names_another_service() {
        let nf = SpeedTest::new(&options(&["--to", "12"]), OWN).unwrap();
        assert_eq!(nf.jumps_to(), [ServiceRef::Id(12)]);
        let mut bench = TestBench::new(nf);
        assert_eq!(bench.lend(1)[0].action, Action::ToService(12));
        assert_eq!(bench.feed(&[[1; 60]])[0].action, Action::ToService(12));
    }

    #[test]
    fn what_is_touched_is_what_was_asked_for() {
        let frame: Vec<u8> = (0..200).collect();
        let changed = |what: &str| {
            let out = bench(&["--touch", what]).feed(&[&frame]).remove(0).bytes;
            let differs = |at: &usize| out[*at] != frame[*at];
            (0..frame.len()).filter(differs).collect::<Vec<_>>()
        };
        assert!(changed("none").is_empty());
        let header = changed("header");
        assert!(!header.is_empty() && header.iter().all(|at| FIELD.contains(at)), "{header:?}");
        let payload = changed("payload");
        assert_eq!(payload[..header.len()], header);
        assert_eq!(payload[header.len()..], (LINE_BYTES..frame.len()).collect::<Vec<_>>());
        // The new value of the field depends on every word of the line.
        let field = |at: usize| {
            let mut frame = [0; LINE_BYTES];
            frame[at] = 1;
            touch(Touch::Header, &mut frame);
            frame[FIELD].to_vec()
        };
        assert!((0..LINE_BYTES).step_by(4).all(|at| field(at) != [0; 4]));
        touch(Touch::Payload, &mut []);
        touch(Touch::Header, &mut [1; 5]);
    }

    #[test]
    fn one_packet_in_so_many_is_timed_and_only_one_at_a_time() {
        let bursts = |sample: &str| {
            let mut bench = round(64, &["--sample", sample]);
            for _ in 0..101 {
                bench.feed(&[[0; 60]; 32]);
                bench.advance(Duration::from_nanos(50));
            }
            bench.nf().meter.total().unwrap()
        };
        // The first burst begins the count. A packet is back after two.
        let total = bursts("1");
        let latency = total.latency.unwrap();
        assert_eq!((total.rounds, latency.samples), (100 * 32, 50));
        assert_eq!((latency.p50_ns, latency.max_ns), (100, 100));
        // One in ten bursts.
        assert_eq!(bursts("320").latency.unwrap().samples, 9);
        assert_eq!(bursts("0").latency, None);
    }

    #[test]
    fn alone_a_packet_is_timed_at_each_round() {
        let mut bench = round(1, &["--latency"]);
        assert_eq!(bench.nf().loan_pkts(), 1);
        for ns in [0, 100, 200, 300] {
            bench.advance(Duration::from_nanos(ns));
            bench.feed(&[[0; 60]]);
        }
        let latency = bench.nf().meter.total().unwrap().latency.unwrap();
        assert_eq!((latency.samples, latency.p50_ns, latency.max_ns), (3, 200, 300));
    }

    #[test]
    fn one_that_leaves_takes_its_packets_out_of_the_round_and_counts_no_more() {
        let mut bench = bench(&[]);
        bench.lend(64);
        bench.advance(Duration::from_nanos(meter::WARM_UP_NS));
        bench.feed(&[[0; 60]; 2]);
        bench.advance(Duration::from_nanos(1000));
        bench.feed(&[[0; 60]; 3]);
        assert!(bench.leave().is_empty());
        let before = bench.nf().meter.total().unwrap();
        assert_eq!(before.rounds, 3);
        bench.advance(Duration::from_nanos(1000));
        assert!(bench.feed(&[[0; 60]; 9]).iter().all(|out| out.action == Action::Drop));
        assert_eq!(bench.nf().meter.total(), Some(before));
    }

    #[test]
    fn a_frame_that_fits_into_no_buffer_is_refused_with_the_limit() {
        let nf = SpeedTest::new(&options(&["--packet-bytes", "9000"]), OWN).unwrap();
        let error = TestBench::with_options(nf, BenchOptions::default()).err().unwrap().to_string();
        assert!(error.contains("--packet-bytes 9000: at most 1792 fit"), "{error}");
    }

    #[test]
    fn a_line_of_json_has_its_figures_by_their_units() {
        let figures = Figures {
            seconds: 2.0,
            rounds: 4_000_000,
            rounds_per_s: 2e6,
            mpps: 2.0,
            ns_per_round: 500.0,
            latency: None,
        };
        let line = Line { period: "total", packets_in_flight: 5, touch: Touch::Header, figures };
        let line: serde_json::Value = serde_json::to_value(&line).unwrap();
        assert_eq!((&line["period"], &line["touch"]), (&"total".into(), &"header".into()));
        assert_eq!((&line["mpps"], &line["rounds"]), (&2.0.into(), &4_000_000.into()));
        assert!(line["latency"].is_null());
    }
}
