//! What a packet says of itself, behind its trail.
//!
//! ```text
//! byte 0  magic "MRLABTR1"
//!      8  run id
//!      16 flow (4 bytes), phase (2), kind (1), 0 (1)
//!      24 number within the flow, from 0
//!      32 when it was sent, nanoseconds of CLOCK_MONOTONIC
//!      40 digest of the fields above
//!      48 filler that follows from the digest
//! ```
//! Big endian. With digest and filler no altered byte goes unnoticed, wherever a checksum was
//! "corrected" afterwards.
#![forbid(unsafe_code)]

use thiserror::Error;

/// What a label begins with.
const MAGIC: [u8; 8] = *b"MRLABTR1";
/// Length of a label without filler.
pub const LABEL_BYTES: usize = 48;

/// The kinds of flow that a chain may tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// TCP to port 80.
    Http,
    /// UDP to another port.
    Udp,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Http, Self::Udp];

    /// As it stands in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Udp => "udp",
        }
    }
}

/// One packet's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Tells one run's packets from another's.
    pub run_id: u64,
    /// The flow.
    pub flow: u32,
    /// The sender's phase: it goes up when somebody says so, before each change of the chains.
    pub phase: u16,
    /// The flow's kind.
    pub kind: Kind,
    /// Number within the flow, from 0.
    pub number: u64,
    /// When it was sent, nanoseconds of CLOCK_MONOTONIC.
    pub sent_ns: u64,
}

/// Why a payload is no packet of this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NoLabel {
    /// Somebody else's packet.
    #[error("not of this run")]
    Foreign,
    /// Ours, and not as it was sent.
    #[error("altered on its way")]
    Altered,
}

impl Label {
    /// Appends the label and so much filler.
    pub fn write(&self, payload: &mut Vec<u8>, filler_bytes: usize) {
        let start = payload.len();
        payload.extend(MAGIC);
        payload.extend(self.run_id.to_be_bytes());
        payload.extend(self.flow.to_be_bytes());
        payload.extend(self.phase.to_be_bytes());
        payload.extend([self.kind as u8, 0]);
        payload.extend(self.number.to_be_bytes());
        payload.extend(self.sent_ns.to_be_bytes());
        let digest = digest(&payload[start..]);
        payload.extend(digest.to_be_bytes());
        payload.extend(filler(digest).take(filler_bytes));
    }

    /// Reads the label of a packet of this run, and checks every byte behind it.
    ///
    /// # Errors
    /// See [`NoLabel`].
    pub fn read(payload: &[u8], run_id: u64) -> Result<Self, NoLabel> {
        let (fields, rest) = payload.split_first_chunk::<40>().ok_or(NoLabel::Foreign)?;
        let word = |at| u64::from_be_bytes(array(fields, at));
        if fields[..8] != MAGIC || word(8) != run_id {
            return Err(NoLabel::Foreign);
        }
        let (&stored, rest) = rest.split_first_chunk::<8>().ok_or(NoLabel::Altered)?;
        let digest = digest(fields);
        let kind = match fields[22] {
            0 => Kind::Http,
            1 => Kind::Udp,
            _ => return Err(NoLabel::Altered),
        };
        if u64::from_be_bytes(stored) != digest
            || !rest.iter().copied().eq(filler(digest).take(rest.len()))
        {
            return Err(NoLabel::Altered);
        }
        Ok(Self {
            run_id,
            flow: u32::from_be_bytes(array(fields, 16)),
            phase: u16::from_be_bytes(array(fields, 20)),
            kind,
            number: word(24),
            sent_ns: word(32),
        })
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// The finalizer of SplitMix64: every bit of the word reaches every bit of the result.
fn mixed(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

fn digest(fields: &[u8]) -> u64 {
    let (words, _) = fields.as_chunks::<8>();
    words.iter().fold(0, |digest: u64, &word| {
        mixed(digest.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ u64::from_be_bytes(word))
    })
}

/// Bytes without end that follow from the digest.
fn filler(digest: u64) -> impl Iterator<Item = u8> {
    (1u64..).flat_map(move |n| mixed(digest.wrapping_add(n)).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_label() -> impl Strategy<Value = Label> {
        (any::<u64>(), any::<u32>(), any::<u16>(), any::<bool>(), any::<u64>(), any::<u64>())
            .prop_map(|(run_id, flow, phase, http, number, sent_ns)| {
                let kind = if http { Kind::Http } else { Kind::Udp };
                Label { run_id, flow, phase, kind, number, sent_ns }
            })
    }

    proptest! {
        #[test]
        fn a_label_is_read_as_it_was_written(label in any_label(), filler_bytes in 0usize..300) {
            let mut payload = Vec::new();
            label.write(&mut payload, filler_bytes);
            prop_assert_eq!(payload.len(), LABEL_BYTES + filler_bytes);
            prop_assert_eq!(Label::read(&payload, label.run_id), Ok(label));
            prop_assert_eq!(Label::read(&payload, !label.run_id), Err(NoLabel::Foreign));
        }

        #[test]
        fn every_altered_byte_is_noticed(
            label in any_label(), filler_bytes in 0usize..100, at: prop::sample::Index, by in 1u8..,
        ) {
            let mut payload = Vec::new();
            label.write(&mut payload, filler_bytes);
            let at = at.index(payload.len());
            payload[at] ^= by;
            let expected = if at < 16 { NoLabel::Foreign } else { NoLabel::Altered };
            prop_assert_eq!(Label::read(&payload, label.run_id), Err(expected));
        }

        #[test]
        fn any_bytes_can_be_read(payload: Vec<u8>) {
            prop_assert_eq!(Label::read(&payload, 1), Err(NoLabel::Foreign));
        }
    }

    #[test]
    fn a_label_cut_short_was_altered() {
        let label = Label { run_id: 1, flow: 2, phase: 0, kind: Kind::Udp, number: 3, sent_ns: 4 };
        let mut payload = Vec::new();
        label.write(&mut payload, 0);
        assert_eq!(Label::read(&payload[..47], 1), Err(NoLabel::Altered));
    }
}
