//! What a block is made by: fixed when it begins, so that changes take effect between blocks.
#![forbid(unsafe_code)]

use super::config::{EncoderConfig, ShortBlocks};
use crate::adapt::{ASSUMED_LOSS, Choice};
use crate::code::{Code, CodeError, CodeId, K_MAX};
use crate::model;

/// The shape of the blocks to come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// 0 when no parity is made.
    pub m: u8,
    pub stride: u8,
    pub code: CodeId,
    /// Repair packets of a block of n packets, by n.
    rows: [u8; K_MAX + 1],
}

impl Plan {
    pub fn new(config: &EncoderConfig, choice: Choice) -> Self {
        let Choice { m, stride } = choice;
        // One sum needs no multiplication.
        let code = if m == 1 { CodeId::Xor } else { CodeId::ReedSolomon };
        let mut rows = [0; K_MAX + 1];
        for (sources, rows) in rows.iter_mut().enumerate().skip(1).take(config.k.into()) {
            *rows = short_rows(config, m, sources as u8);
        }
        Self { m, stride, code, rows }
    }

    /// Repair packets of a block of `sources` packets.
    pub fn rows(&self, sources: usize) -> u8 {
        self.rows[sources]
    }
}

fn short_rows(config: &EncoderConfig, m: u8, sources: u8) -> u8 {
    let k = config.k;
    if sources == k || m == 0 {
        return m;
    }
    match config.short_blocks {
        ShortBlocks::Proportional => (u32::from(m) * u32::from(sources)).div_ceil(k.into()) as u8,
        ShortBlocks::SameStrength => {
            let full = model::residual(k.into(), m.into(), ASSUMED_LOSS);
            model::smallest_m(sources.into(), ASSUMED_LOSS, full, m.into()).map_or(m, |m| m as u8)
        }
    }
}

/// The codes that blocks of k may use; both are made before the first packet.
#[derive(Debug)]
pub(super) struct Codes {
    xor: Code,
    reed_solomon: Code,
}

impl Codes {
    pub fn new(k: usize, m_max: usize) -> Result<Self, CodeError> {
        Ok(Self {
            xor: Code::new(CodeId::Xor, k, 1)?,
            reed_solomon: Code::new(CodeId::ReedSolomon, k, m_max)?,
        })
    }

    pub fn get(&self, id: CodeId) -> &Code {
        match id {
            CodeId::Xor => &self.xor,
            CodeId::ReedSolomon => &self.reed_solomon,
        }
    }
}
