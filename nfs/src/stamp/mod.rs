//! Writes into each packet's trail that it was here.
#![forbid(unsafe_code)]

use clap::Args;
use nflib::trail::{self, Step};
use nflib::{Action, Context, NetworkFunction, NfError, Packet, Setup};

/// Options of `stamp`.
#[derive(Args, Clone, Debug)]
pub struct Options {}

/// The NF.
#[derive(Default)]
pub struct Stamp {
    /// Who we are; the route is each packet's own.
    here: Step,
}

impl NetworkFunction for Stamp {
    fn setup(&mut self, setup: &Setup) -> Result<(), NfError> {
        setup.must_change_packets()?;
        self.here = Step { service: setup.service, route: 0, instance: setup.instance };
        Ok(())
    }

    fn process(&mut self, packet: &mut Packet<'_>, _: &mut Context<'_>) -> Action {
        let step = Step { route: packet.route(), ..self.here };
        trail::stamp(packet.bytes_mut(), step);
        Action::Next
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use nflib::headers::{Headers, checksum};
    use nflib::testing::{BenchOptions, FrameBuilder, TestBench};
    use nflib::trail::Trail;

    use super::*;

    fn bench(service: u16) -> TestBench<Stamp> {
        let options = BenchOptions { service, ..BenchOptions::default() };
        TestBench::with_options(Stamp::default(), options).unwrap()
    }

    fn datagram(payload: &[u8]) -> Vec<u8> {
        let addresses = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let ip = FrameBuilder::new().ip(addresses.0.into(), addresses.1.into());
        ip.udp(1000, 2000).payload(payload).build()
    }

    #[test]
    fn two_of_them_leave_two_steps_in_the_order_of_the_chain() {
        let mut payload = Vec::new();
        trail::begin(&mut payload, 4);
        payload.extend(b"data");
        let mut frame = datagram(&payload);
        for service in [5, 3] {
            let out = bench(service).feed_one(&frame).unwrap();
            assert_eq!(out.action, Action::Next);
            frame = out.bytes;
        }
        let headers = Headers::parse(&frame);
        assert_eq!(checksum::transport_ok(&frame, &headers), Some(true));
        let steps: Vec<_> = Trail::read(headers.payload(&frame)).unwrap().steps().collect();
        let seen: Vec<_> = steps.iter().map(|step| (step.service, step.instance)).collect();
        assert_eq!(seen, [(5, 1), (3, 1)]);
    }

    #[test]
    fn what_carries_no_trail_passes_unchanged() {
        let frames = [vec![], vec![7; 13], datagram(b""), datagram(b"MRTRAIL1"), vec![0; 1500]];
        let out = bench(1).feed(&frames);
        assert!(out.iter().all(|out| out.action == Action::Next));
        assert_eq!(out.into_iter().map(|out| out.bytes).collect::<Vec<_>>(), frames);
    }
}
