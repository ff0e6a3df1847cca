//! Drops packets to odd TCP, UDP and SCTP ports. Run: `drop_odd --service 1`
use nflib::{Action, Context, NetworkFunction, Packet, headers::Headers};

/// Keeps no state.
pub struct DropOdd;

impl NetworkFunction for DropOdd {
    fn process(&mut self, packet: &mut Packet<'_>, _: &mut Context<'_>) -> Action {
        match Headers::parse(packet.bytes()).ports() {
            Some((_, port)) if port % 2 == 1 => Action::Drop,
            _ => Action::Next,
        }
    }
}

fn main() -> std::process::ExitCode {
    nflib::run(DropOdd)
}
