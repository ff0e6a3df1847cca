//! `millrace flow …`
#![forbid(unsafe_code)]

use clap::{Args, Subcommand};
use nflib::control::{FlowStatus, Reply, Request};
use serde::Serialize;

use crate::client::LOOK_LIMIT;
use crate::{Globals, explain, frame, print};

#[derive(Subcommand)]
pub enum Verb {
    /// The flows with most packets
    List {
        /// At most so many
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// What would become of a packet, and why
    ///
    /// A frame is built from the five-tuple; what that does not say is made up: Ethernet addresses,
    /// no VLAN, TCP with SYN, ICMP echo request. Give --hex or --pcap where that matters.
    #[command(override_usage = "millrace flow explain [--in <PORT>] PROTO SRC DST\n       \
                                millrace flow explain [--in <PORT>] --hex <BYTES>\n       \
                                millrace flow explain [--in <PORT>] --pcap <FILE[:N]>")]
    Explain(Question),
}

#[derive(Args)]
pub struct Question {
    /// The port it comes in by; the first, when it is not given
    #[arg(long = "in", value_name = "PORT")]
    in_port: Option<String>,
    /// The frame as hex digits, from its Ethernet header on
    #[arg(long, value_name = "BYTES", conflicts_with_all = ["pcap", "tuple"])]
    hex: Option<String>,
    /// The frame in a capture file: its first, or its N-th
    #[arg(long, value_name = "FILE[:N]", conflicts_with = "tuple")]
    pcap: Option<String>,
    /// As in: tcp 10.0.0.1:1234 10.0.0.2:80, udp [2001:db8::1]:53 [2001:db8::2]:53,
    /// icmp 10.0.0.1 10.0.0.2
    #[arg(value_name = "PROTO SRC DST", required_unless_present_any = ["hex", "pcap"])]
    tuple: Vec<String>,
}

impl Question {
    fn request(self) -> anyhow::Result<Request> {
        let frame = match (self.hex, self.pcap) {
            (Some(hex), _) => frame::from_hex(&hex).map_err(print::usage)?,
            (_, Some(file)) => frame::from_capture(&file)?,
            _ => frame::from_tuple(&self.tuple).map_err(print::usage)?,
        };
        Ok(Request::Explain { in_port: self.in_port, frame })
    }
}

#[derive(Serialize)]
struct Flows {
    flows: Vec<FlowStatus>,
    total: u64,
}

pub fn run(globals: &Globals, verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::List { limit } => {
            let client = globals.connect()?;
            match client.ask(&Request::Flows { limit }, LOOK_LIMIT)? {
                Reply::Flows { flows, total } => {
                    let flows = Flows { flows, total };
                    print::either(globals.json, &flows, || explain::flows(&flows.flows, total))
                }
                _ => Err(client.unexpected("flows").into()),
            }
        }
        Verb::Explain(question) => {
            let request = question.request()?;
            let client = globals.connect()?;
            match client.ask(&request, LOOK_LIMIT)? {
                Reply::Explained(explanation) => {
                    print::either(globals.json, &explanation, || explain::show(&explanation))
                }
                _ => Err(client.unexpected("what becomes of a packet").into()),
            }
        }
    }
}
