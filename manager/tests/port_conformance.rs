//! One set of checks, run against every port back end.
//!
//! The checks are in `support/checks.rs`, what each back end needs around it in the labs beside it.

mod support;

use support::plain::{FaultLab, GeneratorLab, PcapLab, SinkLab};

port_conforms!(generator, GeneratorLab);
port_conforms!(sink, SinkLab);
port_conforms!(pcap, PcapLab);
port_conforms!(fault_without_faults_around_pcap, FaultLab<PcapLab, false>);
port_conforms!(fault_with_delay_around_pcap, FaultLab<PcapLab, true>);
port_conforms!(fault_with_delay_around_generator, FaultLab<GeneratorLab, true>);
