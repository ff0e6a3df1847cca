//! Passes packets on, unchanged or nearly so.
#![forbid(unsafe_code)]

mod crash;
mod work;

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use nflib::control::{ServiceRef, StateSpec};
use nflib::descriptor::PortId;
use nflib::headers::ETHERNET_BYTES;
use nflib::settings::{self, Setting, Settings};
use nflib::{Action, Burst, Context, Inherited, NetworkFunction, NfError, Packet, Setup, State};

/// Options of `forward`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Send out by this port, instead of on along the chain
    #[arg(long, value_name = "PORT")]
    pub to_port: Option<PortId>,
    /// Send to this service, instead of on along the chain
    #[arg(long, value_name = "SERVICE", conflicts_with = "to_port")]
    pub to_service: Option<ServiceRef>,
    /// Exchange source and destination Ethernet address
    #[arg(long)]
    pub swap_macs: bool,
    /// Print packet and bit rate every so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub print_every: Option<u32>,
    /// Work about so many nanoseconds on each packet, for experiments with costly NFs
    #[arg(long, value_name = "NS", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u32).range(..=MAX_BUSY_NS))]
    pub busy_ns: u32,
    /// Keep the counts of packets and bytes for the NF that comes when this one dies
    #[arg(long)]
    pub keep_counts: bool,
    /// Crash at a packet that contains this text, for experiments with NFs that do
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub crash_on: Option<String>,
    /// How to crash
    #[arg(long, value_enum, value_name = "HOW", default_value = "panic", requires = "crash_on")]
    pub crash_by: crash::How,
}

/// What a kept state means.
const STATE: StateSpec = StateSpec { words: 2, version: 1 };

/// Most work on a packet: a millisecond.
const MAX_BUSY_NS: i64 = 1_000_000;

/// How it is to hang at the next packet, for experiments with NFs that do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hang {
    Not,
    /// It computes for ever.
    Run,
    /// It sleeps for ever.
    Sleep,
}

impl Hang {
    fn name(self) -> &'static str {
        match self {
            Self::Not => "off",
            Self::Run => "run",
            Self::Sleep => "sleep",
        }
    }

    fn hang(self) {
        match self {
            Self::Not => {}
            Self::Run => loop {
                std::hint::spin_loop();
            },
            Self::Sleep => loop {
                std::thread::sleep(Duration::from_secs(3600));
            },
        }
    }
}

/// Packets and bytes seen at a moment.
#[derive(Clone, Copy, Default)]
struct Seen {
    pkts: u64,
    bytes: u64,
    at_ns: u64,
}

/// The NF.
pub struct Forward {
    action: Action,
    /// What `--to-service` names.
    to_service: Option<ServiceRef>,
    /// Along the chain, or to that service.
    chain_action: Action,
    swap_macs: bool,
    /// Addresses cannot be exchanged.
    read_only: bool,
    print_every: Option<Duration>,
    /// Measured when there is first work to do.
    pace: Option<work::Pace>,
    busy_ns: u32,
    /// What takes `busy_ns`; not 0 when there is anything to do beside passing packets on.
    busy_steps: u64,
    hang: Hang,
    crash: Option<crash::Crash>,
    seen: Seen,
    keep_counts: bool,
    /// Where packets and bytes are kept.
    kept: Option<State>,
    /// As of the last line printed.
    printed: Option<Seen>,
}

impl Forward {
    pub fn new(options: &Options) -> Self {
        let mut nf = Self {
            action: options.to_port.map_or(Action::Next, Action::Out),
            to_service: options.to_service.clone(),
            chain_action: Action::Next,
            swap_macs: options.swap_macs,
            read_only: false,
            print_every: options.print_every.map(|s| Duration::from_secs(s.into())),
            pace: None,
            busy_ns: 0,
            busy_steps: 0,
            hang: Hang::Not,
            crash: None,
            seen: Seen::default(),
            keep_counts: options.keep_counts,
            kept: None,
            printed: None,
        };
        if let Some(text) = &options.crash_on {
            let on = text.as_bytes().to_vec();
            nf.crash = Some(crash::Crash { on, by: options.crash_by });
        }
        nf.work_on_each(options.busy_ns);
        nf
    }

    fn work_on_each(&mut self, busy_ns: u32) {
        self.busy_ns = busy_ns;
        self.busy_steps = match busy_ns {
            0 => u64::from(self.crash.is_some()),
            _ => self.pace.get_or_insert_with(work::Pace::measure).steps(busy_ns),
        };
    }

    /// Goes on from the counts of the NF before, or with its own when there was none.
    fn inherit(&mut self, kept: &State) {
        match kept.inherited() {
            // After another manager's end: the counts are this NF's own.
            Inherited::Nothing => self.keep(kept),
            Inherited::Clean | Inherited::Torn => {
                self.seen.pkts = kept.get(0);
                self.seen.bytes = kept.get(1);
            }
        }
    }

    fn keep(&self, kept: &State) {
        kept.change(|words| {
            words.set(0, self.seen.pkts);
            words.set(1, self.seen.bytes);
        });
    }

    /// The rates since the last line, as a line.
    fn rate_line(&mut self, now_ns: u64) -> String {
        let now = Seen { at_ns: now_ns, ..self.seen };
        let before = self.printed.replace(now).unwrap_or_default();
        let seconds = (now_ns.saturating_sub(before.at_ns)) as f64 / 1e9;
        let mut line = format!("{} packets", now.pkts);
        if seconds > 0.0 {
            let mpps = (now.pkts - before.pkts) as f64 / seconds / 1e6;
            let gbps = (now.bytes - before.bytes) as f64 * 8.0 / seconds / 1e9;
            // Writing to a String cannot fail.
            let _ = write!(line, ", {mpps:.3} Mpps, {gbps:.3} Gbit/s");
        }
        line
    }
}

impl Settings for Forward {
    const KEYS: &'static [Setting] = &[
        Setting {
            key: "to-port",
            help: "number of the port to send out by, or chain: on along it, or to --to-service",
        },
        Setting { key: "swap-macs", help: "exchange Ethernet addresses: on or off" },
        Setting { key: "busy-ns", help: "nanoseconds of work on each packet, 0 to 1000000" },
        Setting { key: "seen-pkts", help: "packets seen, not to be set" },
        Setting { key: "hang", help: "hang for ever at the next packet: off, run or sleep" },
    ];

    fn get(&self, key: &str) -> String {
        match (key, self.action) {
            ("to-port", Action::Out(port)) => port.to_string(),
            ("to-port", _) => "chain".to_owned(),
            ("busy-ns", _) => self.busy_ns.to_string(),
            ("hang", _) => self.hang.name().to_owned(),
            ("seen-pkts", _) => self.seen.pkts.to_string(),
            _ => settings::switch_text(self.swap_macs),
        }
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match (key, value) {
            ("to-port", "chain") => self.action = self.chain_action,
            ("to-port", port) => {
                let port = port.parse().map_err(|_| "expected 0 to 255, or chain")?;
                self.action = Action::Out(port);
            }
            ("busy-ns", ns) => {
                let ns = ns.parse().ok().filter(|&ns| i64::from(ns) <= MAX_BUSY_NS);
                self.work_on_each(ns.ok_or("expected 0 to 1000000")?);
            }
            ("seen-pkts", _) => return Err("it only counts".to_owned()),
            ("hang", how) => {
                let known = [Hang::Not, Hang::Run, Hang::Sleep].into_iter();
                let how = known.into_iter().find(|hang| hang.name() == how);
                self.hang = how.ok_or("expected off, run or sleep")?;
                self.busy_steps = self.busy_steps.max(1);
            }
            _ => {
                let swap_macs = settings::switch(value)?;
                if swap_macs && self.read_only {
                    return Err(
                        "the service's access is \"read-only\": packets cannot be changed".into()
                    );
                }
                self.swap_macs = swap_macs;
            }
        }
        Ok(())
    }
}

impl NetworkFunction for Forward {
    fn setup(&mut self, setup: &Setup) -> Result<(), NfError> {
        if self.swap_macs {
            setup.must_change_packets()?;
        }
        self.read_only = setup.read_only;
        self.printed = None;
        if let Some(kept) = &setup.state {
            self.inherit(kept);
        }
        self.kept = setup.state.clone();
        let service = setup.jump_services.first();
        let chain_action = service.map_or(Action::Next, |&id| Action::ToService(id));
        if self.action == self.chain_action {
            self.action = chain_action;
        }
        self.chain_action = chain_action;
        Ok(())
    }

    fn state(&self) -> Option<StateSpec> {
        self.keep_counts.then_some(STATE)
    }

    fn jumps_to(&self) -> Vec<ServiceRef> {
        self.to_service.iter().cloned().collect()
    }

    fn process(&mut self, packet: &mut Packet<'_>, _: &mut Context<'_>) -> Action {
        if self.swap_macs && packet.len() >= ETHERNET_BYTES {
            let (dst, src) = packet.bytes_mut()[..12].split_at_mut(6);
            dst.swap_with_slice(src);
        }
        if self.busy_steps > 0 {
            self.hang.hang();
            if let Some(crash) = &self.crash {
                crash.look(packet.bytes());
            }
            work::run(self.busy_steps);
        }
        self.action
    }

    fn process_burst(&mut self, burst: &mut Burst<'_>, ctx: &mut Context<'_>) {
        self.seen.pkts += burst.len() as u64;
        if self.kept.is_some() || self.print_every.is_some() {
            self.seen.bytes += burst.total_bytes();
        }
        // What does not depend on the packet is decided for all at once.
        if self.swap_macs || self.busy_steps > 0 {
            burst.decide_each(ctx, |packet, ctx| self.process(packet, ctx));
        } else {
            burst.decide_all(self.action, ctx);
        }
        if let Some(kept) = &self.kept {
            self.keep(kept);
        }
    }

    fn message(
        &mut self,
        _: Option<u32>,
        payload: &[u8],
        _: &mut Context<'_>,
    ) -> Result<Vec<u8>, String> {
        settings::answer(self, payload)
    }

    fn tick_interval(&self) -> Option<Duration> {
        self.print_every
    }

    fn tick(&mut self, ctx: &mut Context<'_>) {
        let line = self.rate_line(ctx.now_ns());
        #[allow(clippy::print_stdout)] // asked for by --print-every
        {
            println!("{line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use nflib::testing::{FrameBuilder, TestBench};

    use super::*;

    fn options() -> Options {
        Options {
            to_port: None,
            to_service: None,
            swap_macs: false,
            print_every: Some(2),
            busy_ns: 0,
            keep_counts: false,
            crash_on: None,
            crash_by: crash::How::Panic,
        }
    }

    fn forward(swap_macs: bool, to_port: Option<PortId>) -> TestBench<Forward> {
        TestBench::new(Forward::new(&Options { to_port, swap_macs, ..options() }))
    }

    #[test]
    fn to_service_sends_every_packet_there_also_after_a_while_at_a_port() {
        let to_service = Some(ServiceRef::Id(40));
        let mut bench = TestBench::new(Forward::new(&Options { to_service, ..options() }));
        assert_eq!(bench.feed_one(&[0; 60]).unwrap().action, Action::ToService(40));
        bench.message(None, b"set to-port 3").unwrap();
        assert_eq!(bench.feed_one(&[0; 60]).unwrap().action, Action::Out(3));
        bench.message(None, b"set to-port chain").unwrap();
        assert_eq!(bench.feed_one(&[0; 60]).unwrap().action, Action::ToService(40));
    }

    #[test]
    fn every_packet_goes_on_in_order_and_unchanged() {
        let frames: Vec<_> = (0..100u8).map(|i| vec![i; usize::from(i) * 10]).collect();
        let out = forward(false, None).feed(&frames);
        assert!(out.iter().all(|o| o.action == Action::Next));
        assert_eq!(out.into_iter().map(|o| o.bytes).collect::<Vec<_>>(), frames);
    }

    #[test]
    fn to_port_sends_every_packet_out_by_that_port() {
        let out = forward(false, Some(2)).feed(&[[0; 60]; 3]);
        assert_eq!(out.iter().map(|o| o.action).collect::<Vec<_>>(), [Action::Out(2); 3]);
    }

    #[test]
    fn swap_macs_exchanges_the_addresses_and_leaves_short_frames_alone() {
        let mut bench = forward(true, None);
        let frame = FrameBuilder::new().macs([1; 6], [2; 6]).payload(b"x").build();
        let swapped = FrameBuilder::new().macs([2; 6], [1; 6]).payload(b"x").build();
        assert_eq!(bench.feed_one(&frame).unwrap().bytes, swapped);
        assert_eq!(bench.feed_one(&[7; 13]).unwrap().bytes, [7; 13]);
    }

    #[test]
    fn settings_change_what_becomes_of_the_next_packet() {
        let mut bench = forward(false, None);
        let frame = FrameBuilder::new().macs([1; 6], [2; 6]).payload(b"x").build();
        assert_eq!(
            bench.message(None, b"get"),
            Ok(b"to-port = chain\nswap-macs = off\nbusy-ns = 0\nseen-pkts = 0\nhang = off"
                .to_vec())
        );
        assert_eq!(bench.message(None, b"set to-port 7"), Ok(b"7".to_vec()));
        assert_eq!(bench.message(None, b"set swap-macs on"), Ok(b"on".to_vec()));
        let out = bench.feed_one(&frame).unwrap();
        let swapped = FrameBuilder::new().macs([2; 6], [1; 6]).payload(b"x").build();
        assert_eq!((out.action, out.bytes), (Action::Out(7), swapped));
        assert_eq!(bench.message(None, b"set busy-ns 200"), Ok(b"200".to_vec()));
        assert!(bench.nf_mut().busy_steps > 0, "work was asked for");
        assert_eq!(bench.message(None, b"set busy-ns 0"), Ok(b"0".to_vec()));
        assert_eq!(bench.nf_mut().busy_steps, 0);
        for wrong in [
            "set busy-ns 1000001",
            "set busy-ns -1",
            "set to-port 256",
            "set to-port",
            "set swap-macs yes",
            "set colour red",
        ] {
            assert!(bench.message(None, wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert_eq!(bench.message(Some(1), b"set to-port chain"), Ok(b"chain".to_vec()));
        assert_eq!(bench.feed_one(&frame).unwrap().action, Action::Next);
    }

    #[test]
    fn packets_and_bytes_are_counted_whether_packets_are_looked_at_or_not() {
        for swap_macs in [false, true] {
            let print_every = Some(60);
            let options = Options { swap_macs, print_every, ..options() };
            let mut bench = TestBench::new(Forward::new(&options));
            bench.feed(&[vec![0; 60], vec![0; 1000], vec![0; 9]]);
            bench.feed(&vec![[0; 100]; 100]);
            let Seen { pkts, bytes, .. } = bench.nf().seen;
            assert_eq!((pkts, bytes), (103, 11_069), "swap_macs = {swap_macs}");
        }
    }

    #[test]
    fn rates_are_those_since_the_last_line() {
        let mut bench = forward(false, None);
        bench.feed(&[[0; 1000]; 500]);
        let nf = bench.nf_mut();
        nf.rate_line(1_000_000_000);
        nf.seen.pkts += 2_000_000;
        nf.seen.bytes += 250_000_000;
        assert_eq!(nf.rate_line(2_000_000_000), "2000500 packets, 2.000 Mpps, 2.000 Gbit/s");
    }
}
