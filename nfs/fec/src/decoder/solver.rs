//! Brings back a block's missing packets, with their lengths.
#![forbid(unsafe_code)]

use crate::code::{Code, CodeId, K_MAX, M_MAX};
use crate::kernel::Kernel;

/// What is known of a block: its packets, and in the places of the missing ones repair packets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbols<'a> {
    /// Bytes; empty where a short block has no packet.
    pub bytes: [&'a [u8]; K_MAX],
    /// Lengths, and what repair packets say in their length recovery fields.
    pub lengths: [[u8; 2]; K_MAX],
}

/// Memory for what is brought back.
#[derive(Debug)]
pub(super) struct Solver {
    kernel: Kernel,
    packets: Vec<u8>,
    stride_bytes: usize,
}

impl Solver {
    /// For packets of up to `max_bytes`.
    pub fn new(kernel: Kernel, max_bytes: usize) -> Self {
        let stride_bytes = max_bytes.next_multiple_of(64);
        Self { kernel, packets: vec![0; M_MAX * stride_bytes], stride_bytes }
    }

    /// Solves for the packets at the positions `missing`, in whose places are the repair packets
    /// `rows`, all of `coded_bytes`. Gives their lengths; [`Solver::packet`] gives their bytes.
    pub fn solve(
        &mut self,
        (id, k, m): (CodeId, usize, usize),
        symbols: &Symbols<'_>,
        missing: &[usize],
        rows: &[usize],
        coded_bytes: usize,
    ) -> Option<[usize; M_MAX]> {
        let recovery = Code::new(id, k, m).ok()?.solve(missing, rows).ok()?;
        let mut packets: [&mut [u8]; M_MAX] = Default::default();
        let places = self.packets.chunks_exact_mut(self.stride_bytes);
        for (packet, place) in packets.iter_mut().zip(places) {
            *packet = place.get_mut(..coded_bytes)?;
        }
        recovery.run(&self.kernel, &symbols.bytes[..k], &mut packets[..missing.len()]);

        let mut solved = [[0; 2]; M_MAX];
        let mut places: [&mut [u8]; M_MAX] = Default::default();
        for (place, length) in places.iter_mut().zip(&mut solved) {
            *place = length;
        }
        let mut lengths: [&[u8]; K_MAX] = [&[]; K_MAX];
        for (place, length) in lengths.iter_mut().zip(&symbols.lengths) {
            *place = length;
        }
        recovery.run(&self.kernel, &lengths[..k], &mut places[..missing.len()]);
        Some(solved.map(|length| u16::from_be_bytes(length).into()))
    }

    /// The packet that was solved for as the `at`-th, with what follows it up to the coded length:
    /// zeroes, if nothing was forged.
    pub fn packet(&self, at: usize, coded_bytes: usize) -> &[u8] {
        &self.packets[at * self.stride_bytes..][..coded_bytes]
    }
}
