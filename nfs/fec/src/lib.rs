//! Forward error correction for packets: for every k packets m parity packets follow, and of these
//! k + m any k bring back all.
//!
//! Nothing here reads a clock, a socket or shared memory: packets go in as bytes with the time, and
//! come out as bytes. The NFs `fec-encode` and `fec-decode` put it on a link.
//!
//! ```text
//! inner packets ─► Encoder ─┬─ shims of the source packets ─────► Decoder ─┬─ deliver / duplicate / …
//!                     ▲     └─ repair packets (next_repair) ────►    │     └─ recovered packets
//!                     └──────────── reports ◄────────────────────────┘
//! ```
//!
//! The packets of a burst get their shims from the encoder, and leave; repair packets follow. Of what
//! arrives the decoder says what to do with it, and hands out what it brought back:
//!
//! ```
//! use millrace_fec::decoder::{Decoder, DecoderConfig, Verdict};
//! use millrace_fec::encoder::{Encoder, EncoderConfig};
//! use millrace_fec::{inner, kernel::Kernel};
//!
//! let config = EncoderConfig { k: 4, ..Default::default() };
//! let mut encoder = Encoder::new(config, Kernel::best(), 1)?;
//! let mut decoder = Decoder::new(DecoderConfig::default(), Kernel::best())?;
//!
//! let mut packets = [[0; 100]; 4];
//! packets.iter_mut().for_each(|packet| inner::make_ipv4(packet));
//! let mut shims = [[0; 8]; 4];
//! encoder.add(0, &packets.each_ref().map(|packet| &packet[..]), &mut shims)?;
//!
//! // Packet 2 is lost.
//! for at in [0, 1, 3] {
//!     let payload = [&shims[at][..], &packets[at]].concat();
//!     assert_eq!(decoder.receive(0, &payload), Verdict::Deliver { inner_offset: 8 });
//! }
//! let repair = encoder.next_repair(0).expect("the block is full");
//! assert_eq!(decoder.receive(0, repair), Verdict::Repair);
//! assert_eq!(decoder.next_recovered(0), Some(&packets[2][..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod adapt;
pub mod code;
pub mod decoder;
pub mod encoder;
pub mod gf;
pub mod inner;
pub mod kernel;
pub mod mac;
pub mod model;
pub mod report;
pub mod solve;
pub mod wire;
