//! What FEC leaves of losses on a link, against what the mathematics say; and what it costs.
//!
//! ```text
//! generator ─► fec-encode ─► loop port with faults ─► fec-decode ─► sink, which checks every packet
//! ```
//! All of it is real: a manager, NFs as processes, packets in shared memory. The link's losses come
//! from a seed. What is sent and what arrives whole is counted by the ports, apart from the NFs'
//! own counts, and both must agree.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use millrace_fec::model::{self, Gilbert};
use nflib::control::Status;
use serde::Serialize;
use serde_json::json;

use crate::data_path::lab::Lab;
use crate::data_path::{Bench, Trouble};

/// Distance from the expectation, in standard errors, from which on a measurement is wrong.
const MOST_SE: f64 = 4.0;
/// Services of the two ends.
const ENCODER: u16 = 1;
const DECODER: u16 = 2;
/// The ends, for the NFs' options.
const ENDS: [[&str; 2]; 2] =
    [["192.0.2.1:4950", "02:00:00:00:0a:01"], ["198.51.100.1:4950", "02:00:00:00:0b:01"]];
/// Where reports go, which no rule takes to anybody here.
const REPORTS_TO: &str = "192.0.2.1";
/// Drops that belong to the experiment: the link's losses, packets that end at an NF (parity, spent), and
/// reports.
const EXPECTED_DROPS: [&str; 4] = ["fault_loss", "nf_drop", "loan_returned", "rule_drop"];
/// Time without any arrival after which nothing more comes: several flush timers.
const QUIET: Duration = Duration::from_millis(600);

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Data packets of a block.
    pub k: u32,
    /// Parity packets of a block.
    pub m: u32,
    /// Distance of a block's packets.
    pub stride: u32,
    /// Losses: each on its own at a rate, or in bursts.
    pub losses: Losses,
    /// Data packets, rounded up to whole groups of blocks.
    pub packets: u64,
    /// Packets a second.
    pub rate_pps: u64,
    /// Frame length.
    pub frame_bytes: u32,
    /// Chooses which packets are lost.
    pub seed: u64,
    /// Expect what a code with one parity packet less would leave.
    pub spoil: bool,
}

/// What the link does.
#[derive(Clone, Copy, Debug)]
pub enum Losses {
    /// Each packet is lost with this probability.
    Independent(f64),
    /// Losses in bursts.
    Bursts(Gilbert),
}

/// The last line.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The measurement agrees with the expectation, and every packet is accounted for.
    pub ok: bool,
    /// Data packets sent.
    pub sent: u64,
    /// Of those, lost on the link.
    pub lost: u64,
    /// Of those, brought back.
    pub recovered: u64,
    /// Share of the data packets that did not arrive.
    pub residual: f64,
    /// What the code ought to leave.
    pub expected: f64,
    /// Standard error of `residual`, from blocks.
    pub se: f64,
    /// Distance of the two in standard errors.
    pub distance_se: f64,
    /// Parity packets sent for each data packet.
    pub overhead: f64,
    /// Blocks that the decoder could not bring back.
    pub blocks_failed: u64,
    /// What is wrong, if anything is.
    pub faults: Vec<String>,
    /// As it was asked for.
    pub seed: u64,
}

impl Outcome {
    /// It, as one line of JSON.
    #[must_use]
    pub fn line(&self) -> String {
        let mut fields = vec![
            ("ok", json!(self.ok)),
            ("sent", json!(self.sent)),
            ("lost", json!(self.lost)),
            ("recovered", json!(self.recovered)),
            ("residual", json!(self.residual)),
            ("expected", json!(self.expected)),
            ("se", json!(self.se)),
            ("distance_se", json!(self.distance_se)),
            ("overhead", json!(self.overhead)),
            ("blocks_failed", json!(self.blocks_failed)),
            ("seed", json!(self.seed)),
        ];
        if !self.ok {
            fields.push(("error", json!(self.faults.join("; "))));
        }
        let fields: Vec<_> =
            fields.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
        format!("{{{}}}", fields.join(", "))
    }
}

impl Options {
    fn expectation(&self, sent: u64) -> (f64, f64) {
        let blocks = sent / u64::from(self.k);
        let m = self.m - u32::from(self.spoil);
        match self.losses {
            Losses::Independent(p) => {
                let expected = model::independent(self.k, m, p);
                (expected.residual, expected.se(blocks))
            }
            Losses::Bursts(gilbert) => {
                let expected = model::gilbert(self.k, m, self.stride, gilbert);
                (expected.residual, model::gilbert_se(self.k, m, self.stride, gilbert, sent))
            }
        }
    }

    fn fault(&self) -> String {
        let seed = self.seed;
        match self.losses {
            Losses::Independent(p) => format!("loss = {p:?}\nseed = {seed}"),
            Losses::Bursts(Gilbert { p, r }) => {
                format!("burst_loss = {{ p = {p:?}, r = {r:?} }}\nseed = {seed}")
            }
        }
    }

    fn config(&self, packets: u64) -> String {
        let Self { rate_pps, frame_bytes, seed, .. } = self;
        format!(
            r#"
[[port]]
name = "in"
backend = "generator"
frame_bytes = {frame_bytes}
flows = 1
rate_pps = {rate_pps}
count_pkts = {packets}
seed = {seed}
[[port]]
name = "link"
backend = "loop"
[port.fault]
{}
[[port]]
name = "out"
backend = "sink"
verify = true
[[chain]]
name = "away"
services = [{ENCODER}]
end = "out:link"
[[chain]]
name = "home"
services = [{DECODER}]
end = "out:out"
[[rule]]
match = {{ in_port = "in" }}
then = {{ chain = "away" }}
[[rule]]
match = {{ in_port = "link" }}
then = {{ chain = "home" }}
[[rule]]
priority = 9
match = {{ in_port = "link", eth_type = "ipv4", ip_dst = "{REPORTS_TO}" }}
then = {{ drop = true }}
"#,
            self.fault()
        )
    }

    /// Whole groups, so that no block is a short one.
    fn whole_groups(&self) -> u64 {
        let group = u64::from(self.k * self.stride);
        self.packets.div_ceil(group) * group
    }
}

/// Starts the two ends.
fn start_ends(lab: &mut Lab<'_>, core: u32, options: &Options) -> Result<(), Trouble> {
    let [[here, our_mac], [there, their_mac]] = ENDS;
    let (k, m) = (options.k.to_string(), options.m.to_string());
    let (stride, service) =
        (options.stride.to_string(), [ENCODER.to_string(), DECODER.to_string()]);
    #[rustfmt::skip]
    lab.nf(core, &[
        "fec-decode", "--service", &service[1], "--local", there, "--mac", their_mac,
        "--peer", here, "--next-hop-mac", our_mac, "--report-ms", "1000", "--mtu", "1700",
    ])?;
    #[rustfmt::skip]
    lab.nf(core, &[
        "fec-encode", "--service", &service[0], "--local", here, "--mac", our_mac,
        "--peer", there, "--next-hop-mac", their_mac, "-k", &k, "-m", &m,
        "--stride", &stride, "--flush-ms", "100", "--mtu", "1700",
    ])?;
    Ok(())
}

/// Sends packets over a lossy link, and compares what is left with what ought to be.
///
/// # Errors
/// [`Trouble`] when it could not be run to its end.
pub fn run(bench: &Bench, options: &Options) -> Result<Outcome, Trouble> {
    let packets = options.whole_groups();
    let manager = "wait_for_nfs = true\nring_capacity = 8192";
    let mut lab = Lab::with_manager(bench, manager, &options.config(packets))?;
    let core = bench.cores.second.unwrap_or(bench.cores.manager);
    start_ends(&mut lab, core, options)?;
    let status = until_quiet(bench, &lab, packets)?;
    let decoder = counts(&lab.call(DECODER, "get peers")?);
    let encoder = counts(&lab.call(ENCODER, "get counts")?);
    lab.finish()?;
    Ok(judge(options, packets, &status, &encoder, &decoder))
}

/// Waits until all packets were sent and nothing arrives any more.
fn until_quiet(bench: &Bench, lab: &Lab<'_>, packets: u64) -> Result<Status, Trouble> {
    let (mut arrived, mut since) = (0, Instant::now());
    loop {
        bench.pause(Duration::from_millis(50))?;
        let status = lab.status()?;
        let sent = port(&status, "in").map_or(0, |port| port.rx_pkts);
        let now = port(&status, "out").map_or(0, |port| port.tx_pkts) + sent;
        if now != arrived {
            (arrived, since) = (now, Instant::now());
        } else if since.elapsed() > QUIET {
            return match sent == packets {
                true => Ok(status),
                false => {
                    Err(Trouble::Failed(format!("only {sent} of {packets} packets were sent")))
                }
            };
        }
    }
}

fn port<'a>(status: &'a Status, name: &str) -> Option<&'a nflib::control::PortStatus> {
    status.ports.iter().find(|port| port.name == name)
}

/// The numbers of a line of `name=count` words.
fn counts(line: &str) -> BTreeMap<String, u64> {
    let words = line.split_whitespace().filter_map(|word| word.split_once('='));
    words.filter_map(|(name, count)| Some((name.to_owned(), count.parse().ok()?))).collect()
}

fn judge(
    options: &Options,
    sent: u64,
    status: &Status,
    encoder: &BTreeMap<String, u64>,
    decoder: &BTreeMap<String, u64>,
) -> Outcome {
    let of = |counts: &BTreeMap<String, u64>, name: &str| counts.get(name).copied().unwrap_or(0);
    let verified = |name: &str| {
        let out = port(status, "out");
        out.and_then(|out| out.hw_stats.get(&format!("verify_{name}_pkts"))).copied().unwrap_or(0)
    };
    let (good, recovered) = (verified("good"), of(decoder, "recovered"));
    let received = of(decoder, "received");
    let residual = sent.saturating_sub(good) as f64 / sent as f64;
    let (expected, se) = options.expectation(sent);
    let distance_se = (residual - expected).abs() / se.max(f64::MIN_POSITIVE);
    let mut faults = Vec::new();
    if distance_se > MOST_SE {
        faults.push(format!("{distance_se:.1} standard errors from the expectation"));
    }
    if good != received + recovered {
        faults.push(format!(
            "{good} arrived whole, of {received} received and {recovered} recovered"
        ));
    }
    for flaw in ["duplicate", "corrupt", "foreign", "stale"] {
        if verified(flaw) > 0 {
            faults.push(format!("{} {flaw} packets arrived", verified(flaw)));
        }
    }
    if of(encoder, "data") != sent {
        faults.push(format!("{} of {sent} packets were coded", of(encoder, "data")));
    }
    if of(encoder, "no-buffer") + of(decoder, "no-buffer") > 0 {
        faults.push(format!("{} parity packets found no buffer", of(encoder, "no-buffer")));
    }
    for drop in status.drops.iter().filter(|drop| !EXPECTED_DROPS.contains(&&*drop.reason)) {
        if drop.pkts > 0 {
            faults
                .push(format!("{} packets dropped at {}: {}", drop.pkts, drop.place, drop.reason));
        }
    }
    Outcome {
        ok: faults.is_empty(),
        sent,
        lost: sent.saturating_sub(received),
        recovered,
        residual,
        expected,
        se,
        distance_se,
        overhead: of(encoder, "parity") as f64 / sent as f64,
        blocks_failed: of(decoder, "blocks-failed"),
        faults,
        seed: options.seed,
    }
}

/// What the whole way costs, with FEC and without.
#[derive(Clone, Debug, Serialize)]
pub struct WholePath {
    /// What was measured.
    pub work: String,
    /// Data packets that arrived, with FEC, in millions for each second of the two NFs' CPU time: what one
    /// core does for both ends.
    pub ours: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What the peer is.
    pub peer: &'static str,
    /// The same without FEC.
    pub peer_value: f64,
    /// Ours to the peer's.
    pub ratio: f64,
    /// Inner Gbit for each second of that time, with FEC.
    pub gbps: f64,
    /// The same without.
    pub peer_gbps: f64,
}

/// Measures the way from port to port with FEC, and with two NFs that only forward, in turn.
///
/// # Errors
/// [`Trouble`].
pub fn whole_path(bench: &Bench, options: &Options) -> Result<WholePath, Trouble> {
    let endless = Options { packets: 0, rate_pps: 0, ..*options };
    let once = |with_fec: bool| -> Result<f64, Trouble> {
        let mut lab = Lab::with_manager(bench, "wait_for_nfs = true", &endless.config(0))?;
        let core = bench.cores.second.unwrap_or(bench.cores.manager);
        if with_fec {
            start_ends(&mut lab, core, &endless)?;
        } else {
            for service in [DECODER, ENCODER] {
                lab.nf(core, &["forward", "--service", &service.to_string()])?;
            }
        }
        bench.pause(bench.warm_up)?;
        let arrived = |lab: &Lab<'_>| -> Result<u64, Trouble> {
            Ok(port(&lab.status()?, "out").map_or(0, |port| port.tx_pkts))
        };
        let before = arrived(&lab)?;
        let window = lab.measure_for(bench.window)?;
        let pkts = arrived(&lab)? - before;
        lab.finish()?;
        Ok(pkts as f64 / window.nfs_cpu_s().max(1e-9) / 1e6)
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..bench.reps {
        ours.push(once(true)?);
        theirs.push(once(false)?);
    }
    let (ours, peer_value) = (median(&mut ours), median(&mut theirs));
    let inner_bits = f64::from(options.frame_bytes.saturating_sub(14)) * 8.0;
    Ok(WholePath {
        work: format!("port to port, {}+{}, {} bytes", options.k, options.m, options.frame_bytes),
        ours,
        unit: "M data packets/s CPU of both NFs",
        peer: "the same way without FEC",
        peer_value,
        ratio: ours / peer_value,
        gbps: ours * inner_bits / 1e3,
        peer_gbps: peer_value * inner_bits / 1e3,
    })
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            k: 10,
            m: 2,
            stride: 1,
            losses: Losses::Independent(0.02),
            packets: 1_000_001,
            rate_pps: 1,
            frame_bytes: 60,
            seed: 1,
            spoil: false,
        }
    }

    fn judged(good: u64, received: u64, recovered: u64) -> Outcome {
        let mut status = Status::default();
        let mut out = nflib::control::PortStatus { name: "out".into(), ..Default::default() };
        out.hw_stats.insert("verify_good_pkts".into(), good);
        status.ports.push(out);
        let encoder = counts("data=1000000 parity=200000 no-buffer=0");
        let decoder = counts(&format!("peer=1.2.3.4:5 received={received} recovered={recovered}"));
        judge(&options(), 1_000_000, &status, &encoder, &decoder)
    }

    #[test]
    fn a_measurement_is_held_against_the_expectation_and_against_the_other_count() {
        let expected = model::independent(10, 2, 0.02).residual;
        let lost = (expected * 1e6) as u64;
        let good = judged(1_000_000 - lost, 980_000, 20_000 - lost);
        assert!(good.ok, "{:?}", good.faults);
        assert_eq!((good.lost, good.recovered), (20_000, 20_000 - lost));
        assert!((good.overhead - 0.2).abs() < 1e-9);
        assert!(good.line().starts_with("{\"ok\": true, \"sent\": 1000000, \"lost\": 20000, "));
        let far = judged(1_000_000 - 2 * lost, 980_000, 20_000 - 2 * lost);
        assert!(!far.ok && far.faults[0].contains("standard errors"), "{:?}", far.faults);
        assert!(far.line().starts_with("{\"ok\": false") && far.line().contains("standard errors"));
        let unequal = judged(1_000_000 - lost, 980_000, 19_999 - lost);
        assert!(!unequal.ok && unequal.faults[0].contains("arrived whole"), "{:?}", unequal.faults);
    }

    #[test]
    fn packets_are_whole_groups_of_blocks() {
        assert_eq!(options().whole_groups(), 1_000_010);
        assert_eq!(Options { stride: 4, packets: 1, ..options() }.whole_groups(), 40);
    }
}
