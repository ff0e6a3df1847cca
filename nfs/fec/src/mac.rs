//! The optional message authentication code of repair and report packets.
//!
//! SipHash-2-4 (Aumasson and Bernstein, 2012) with a 128-bit key gives 64 bits: enough that a forger
//! who does not know the key needs 2⁶³ packets on average, and cheap enough for every packet.
#![forbid(unsafe_code)]

use std::fmt;
use std::hash::Hasher;

use siphasher::sip::SipHasher24;
use thiserror::Error;

/// Bytes of a code, behind all that it covers.
pub const MAC_BYTES: usize = 8;

/// The secret that both ends share.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 16]);

/// A key that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a key is 32 hexadecimal digits (128 bits)")]
pub struct KeyError;

impl Key {
    /// A key of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Reads 32 hexadecimal digits; blanks before and behind do not count.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        let digits = text.trim().as_bytes();
        let (pairs, []) = digits.as_chunks::<2>() else { return Err(KeyError) };
        let pairs: &[[u8; 2]; 16] = pairs.try_into().map_err(|_| KeyError)?;
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|value| value as u8);
        let mut bytes = [0; 16];
        for (byte, [high, low]) in bytes.iter_mut().zip(*pairs) {
            *byte = digit(high).ok_or(KeyError)? << 4 | digit(low).ok_or(KeyError)?;
        }
        Ok(Self(bytes))
    }

    /// The code of `bytes`, big endian as it is sent.
    #[must_use]
    pub fn mac(&self, bytes: &[u8]) -> [u8; MAC_BYTES] {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        hasher.write(bytes);
        hasher.finish().to_be_bytes()
    }

    /// Whether `mac` is the code of `bytes`, in a time that does not tell how much of it is right.
    #[must_use]
    pub fn verify(&self, bytes: &[u8], mac: [u8; MAC_BYTES]) -> bool {
        u64::from_be_bytes(self.mac(bytes)) ^ u64::from_be_bytes(mac) == 0
    }
}

/// A key never shows itself.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_that_of_the_papers_test_vector() {
        // Key 00 01 … 0f, message 00 01 … 0e (appendix A of the SipHash paper).
        let key = Key::new(std::array::from_fn(|at| at as u8));
        let message: Vec<u8> = (0..15).collect();
        assert_eq!(u64::from_be_bytes(key.mac(&message)), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn a_code_with_any_bit_flipped_is_refused() {
        let key = Key::new([7; 16]);
        let mac = key.mac(b"parity");
        assert!(key.verify(b"parity", mac));
        for bit in 0..64 {
            let flipped = (u64::from_be_bytes(mac) ^ 1 << bit).to_be_bytes();
            assert!(!key.verify(b"parity", flipped), "bit {bit}");
        }
    }

    #[test]
    fn a_key_is_32_hexadecimal_digits_and_nothing_else() {
        let key = Key::from_hex(" 000102030405060708090A0b0c0d0e0f\n").unwrap();
        assert_eq!(key, Key::new(std::array::from_fn(|at| at as u8)));
        for wrong in
            ["", "00", "000102030405060708090a0b0c0d0e0g", "+00102030405060708090a0b0c0d0e0f"]
        {
            assert_eq!(Key::from_hex(wrong), Err(KeyError), "{wrong}");
        }
        assert!(Key::from_hex(&"0".repeat(34)).is_err());
    }

    #[test]
    fn a_key_does_not_appear_in_logs() {
        assert!(!format!("{:?}", Key::new([0xab; 16])).contains("ab"));
    }
}
