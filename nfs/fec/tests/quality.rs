//! Encoder, lossy link and decoder together, in memory and seeded: what is lost for good is what the
//! code's mathematics say.

use std::collections::VecDeque;

use millrace_fec::adapt::{Adaptive, Redundancy, Stride};
use millrace_fec::decoder::{Decoder, DecoderConfig, Verdict};
use millrace_fec::encoder::{Encoder, EncoderConfig};
use millrace_fec::inner;
use millrace_fec::kernel::Kernel;
use millrace_fec::model::{self, Gilbert, Tally};

/// A link that loses packets by Gilbert's model; with r = 1 − p each on its own.
struct Link {
    rng: fastrand::Rng,
    losses: Gilbert,
    bad: bool,
}

impl Link {
    fn loses(&mut self) -> bool {
        let change = if self.bad { self.losses.r } else { self.losses.p };
        self.bad ^= self.rng.f64() < change;
        self.bad
    }
}

fn packet(number: u32) -> Vec<u8> {
    let mut packet = vec![0; 24 + number as usize % 9];
    packet[4..8].copy_from_slice(&number.to_be_bytes());
    packet[20..24].copy_from_slice(&number.wrapping_mul(0x9e37_79b9).to_be_bytes());
    inner::make_ipv4(&mut packet);
    packet
}

/// Sends `groups` groups of k · D packets, and tells for each packet whether it came through.
struct Run {
    encoder: Encoder,
    decoder: Decoder,
    link: Link,
    arrived: Vec<bool>,
    now_ns: u64,
}

impl Run {
    fn new(k: u8, m: u8, stride: u8, losses: Gilbert, seed: u64) -> Self {
        Self::with(k, Redundancy::Fixed { m }, Stride::Fixed(stride), losses, seed)
    }

    fn with(k: u8, redundancy: Redundancy, stride: Stride, losses: Gilbert, seed: u64) -> Self {
        let first_sequence = 0xffff_fff0;
        let config = EncoderConfig { k, redundancy, stride, first_sequence, ..Default::default() };
        let rng = fastrand::Rng::with_seed(seed);
        Self {
            encoder: Encoder::new(config, Kernel::best(), 1).unwrap(),
            decoder: Decoder::new(DecoderConfig::default(), Kernel::best()).unwrap(),
            link: Link { rng, losses, bad: false },
            arrived: Vec::new(),
            now_ns: 0,
        }
    }

    fn send(&mut self, packets: u32) {
        for _ in 0..packets {
            let packet = packet(self.arrived.len() as u32);
            self.arrived.push(false);
            let mut shim = [[0; 8]];
            self.encoder.add(self.now_ns, &[&packet], &mut shim).unwrap();
            let mut line = VecDeque::from([[&shim[0][..], &packet].concat()]);
            while let Some(repair) = self.encoder.next_repair(self.now_ns) {
                line.push_back(repair.to_vec());
            }
            for payload in line {
                if !self.link.loses() {
                    self.take(&payload);
                }
            }
        }
    }

    fn take(&mut self, payload: &[u8]) {
        match self.decoder.receive(self.now_ns, payload) {
            Verdict::Deliver { inner_offset } => {
                deliver(&mut self.arrived, &payload[inner_offset..]);
            }
            Verdict::Repair => {}
            other => panic!("{other:?}"),
        }
        while let Some(packet) = self.decoder.next_recovered(self.now_ns) {
            deliver(&mut self.arrived, packet);
        }
    }

    /// Sends so many packets, 10,000 a second, while reports come back; tells the residual loss of the
    /// second half of them and how many repair packets went with each packet of it.
    fn send_in_time(&mut self, packets: u32, losses: Gilbert) -> (f64, f64) {
        self.link.losses = losses;
        let mut middle = (0, 0);
        for at in 0..packets {
            if at == packets / 2 {
                middle = (self.arrived.len(), self.encoder.stats().repair_pkts);
            }
            self.now_ns += 100_000;
            self.send(1);
            while let Some(report) = self.decoder.next_report(self.now_ns) {
                self.encoder.report(self.now_ns, report).unwrap();
            }
        }
        let half = &self.arrived[middle.0..];
        let lost = half.iter().filter(|came| !**came).count();
        let repairs = self.encoder.stats().repair_pkts - middle.1;
        (lost as f64 / half.len() as f64, repairs as f64 / half.len() as f64)
    }

    /// Lets all windows pass, and checks the books against what came through.
    fn finish(&mut self) {
        let sent = self.arrived.len();
        self.link.losses = Gilbert { p: 0.0, r: 1.0 };
        self.send(8 * 2048);
        self.arrived.truncate(sent);
    }
}

fn deliver(arrived: &mut [bool], bytes: &[u8]) {
    let number = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
    assert_eq!(bytes, packet(number), "what comes through is what was sent");
    let slot = &mut arrived[number as usize];
    assert!(!*slot, "packet {number} was let out twice");
    *slot = true;
}

/// Losses of each block, or of each run of `blocks` blocks together.
fn tally(arrived: &[bool], packets: usize) -> Tally {
    let mut tally = Tally::default();
    for block in arrived.chunks_exact(packets) {
        let lost = block.iter().filter(|came| !**came).count();
        tally.block(packets as u32, lost as u32);
    }
    tally
}

#[test]
fn independent_losses_leave_what_the_formula_says() {
    for (case, (k, m)) in [(4, 1), (10, 1), (10, 2), (20, 4), (20, 5), (64, 16)].iter().enumerate()
    {
        for (at, p) in [0.01, 0.02, 0.05].into_iter().enumerate() {
            let losses = Gilbert { p, r: 1.0 - p };
            let mut run = Run::new(*k, *m, 1, losses, 100 + (case * 3 + at) as u64);
            let blocks = 100_000 / u32::from(*k) + 1000;
            run.send(blocks * u32::from(*k));
            let expected = model::independent((*k).into(), (*m).into(), p);
            let measured = tally(&run.arrived, (*k).into());
            let off = (measured.residual() - expected.residual).abs();
            let se = expected.se(blocks.into());
            assert!(off <= 4.0 * se, "{k}+{m} at {p}: {} of {expected:?}", measured.residual());
        }
    }
}

#[test]
fn bursts_leave_what_the_chain_says_and_interleaving_helps() {
    let losses = Gilbert::of_loss(0.01, 3.0);
    for (k, m, stride) in [(10, 2, 1), (10, 2, 4), (10, 2, 8), (20, 4, 4)] {
        let mut run = Run::new(k, m, stride, losses, 7);
        run.send(640_000);
        let expected = model::gilbert(k.into(), m.into(), stride.into(), losses).residual;
        // Neighbouring blocks share bursts: the error is that of long stretches.
        let measured = tally(&run.arrived, 1600);
        assert!((measured.residual() - expected).abs() <= 4.0 * measured.se(), "{k}+{m} D{stride}");
    }
}

#[test]
fn every_number_is_received_recovered_or_unrecovered_and_nothing_else() {
    let mut run = Run::new(10, 2, 4, Gilbert { p: 0.04, r: 0.5 }, 3);
    run.send(20_000);
    run.finish();
    let stats = run.decoder.stats();
    let lost = run.arrived.iter().filter(|came| !**came).count() as u64;
    assert_eq!(stats.received + stats.recovered + stats.unrecovered, 20_000 + 8 * 2048);
    assert_eq!((stats.unrecovered, stats.lost), (lost, lost + stats.recovered));
    assert!(stats.recovered > 500 && stats.unrecovered > 100, "{stats:?}");
    assert_eq!((stats.duplicate, stats.late, stats.rejected.total()), (0, 0, 0));
    // Repair packets of every block came, and every one that was not whole was solved or given up.
    let hurt = stats.blocks_solved + stats.blocks_failed;
    assert!(hurt > 0 && hurt < stats.blocks && stats.blocks <= (20_000 + 8 * 2048) / 10 + 4);
}

#[test]
fn adaptive_redundancy_goes_off_without_loss_and_keeps_the_target_with_it() {
    let aim = Adaptive { target: 1e-3, overhead_max: 0.6, floor: 1e-3 };
    let (redundancy, stride) = (Redundancy::Adaptive(aim), Stride::Adaptive { max: 16 });
    let mut run = Run::with(10, redundancy, stride, Gilbert { p: 0.0, r: 1.0 }, 5);
    assert_eq!(run.send_in_time(60_000, Gilbert { p: 0.0, r: 1.0 }), (0.0, 0.0));
    let (residual, overhead) = run.send_in_time(120_000, Gilbert { p: 0.03, r: 0.97 });
    assert!(residual < aim.target && (0.2..0.45).contains(&overhead), "{residual} {overhead}");
    // The same loss in bursts of 4: the stride grows.
    let (residual, overhead) = run.send_in_time(120_000, Gilbert::of_loss(0.03, 4.0));
    let stats = run.encoder.stats();
    assert!(stats.stride >= 4, "{stats:?}");
    assert!(residual < 4.0 * aim.target && overhead < 0.6, "{residual} {overhead}");
    // Eight seconds after the last loss its memory is below half the floor, two later parity is off.
    assert_eq!(run.send_in_time(240_000, Gilbert { p: 0.0, r: 1.0 }), (0.0, 0.0));
}
