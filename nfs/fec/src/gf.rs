//! Arithmetic in GF(2⁸) modulo x⁸ + x⁴ + x³ + x² + 1 (0x11D).
#![forbid(unsafe_code)]

/// The field's polynomial.
pub const POLYNOMIAL: u16 = 0x11D;

/// Powers of the generator 2 (twice over, so that sums of two logarithms need no reduction), and
/// logarithms to it.
const TABLES: ([u8; 512], [u8; 256]) = {
    let (mut exp, mut log) = ([0; 512], [0; 256]);
    let mut power: u16 = 1;
    let mut at = 0;
    while at < 255 {
        exp[at] = power as u8;
        exp[at + 255] = power as u8;
        log[power as usize] = at as u8;
        power <<= 1;
        if power & 0x100 != 0 {
            power ^= POLYNOMIAL;
        }
        at += 1;
    }
    (exp, log)
};

/// The product.
#[must_use]
pub const fn mul(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    TABLES.0[TABLES.1[a as usize] as usize + TABLES.1[b as usize] as usize]
}

/// The inverse; 0 for 0, which has none.
#[must_use]
pub const fn inv(a: u8) -> u8 {
    if a == 0 { 0 } else { TABLES.0[255 - TABLES.1[a as usize] as usize] }
}

/// The logarithm to the base 2.
///
/// # Panics
/// There is none of 0.
#[must_use]
pub(crate) const fn log(a: u8) -> u32 {
    assert!(a != 0, "0 has no logarithm");
    TABLES.1[a as usize] as u32
}

/// 2 to the power of `exponent`.
#[must_use]
pub(crate) const fn exp(exponent: u32) -> u8 {
    TABLES.0[(exponent % 255) as usize]
}

/// `base` to the power of `exponent`; 0⁰ is 1.
#[must_use]
pub const fn pow(base: u8, exponent: usize) -> u8 {
    if exponent == 0 {
        return 1;
    }
    if base == 0 {
        return 0;
    }
    TABLES.0[TABLES.1[base as usize] as usize * exponent % 255]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_times_its_inverse_is_one() {
        for a in 1..=255 {
            assert_eq!(mul(a, inv(a)), 1, "{a}");
        }
    }

    #[test]
    fn products_are_those_of_polynomials() {
        let slow = |a: u8, b: u8| {
            let mut product = 0u16;
            for bit in 0..8 {
                if b >> bit & 1 == 1 {
                    product ^= u16::from(a) << bit;
                }
            }
            for bit in (8..16).rev() {
                if product >> bit & 1 == 1 {
                    product ^= POLYNOMIAL << (bit - 8);
                }
            }
            product as u8
        };
        for a in 0..=255 {
            for b in 0..=255 {
                assert_eq!(mul(a, b), slow(a, b), "{a} times {b}");
            }
        }
    }

    #[test]
    fn a_logarithm_undoes_a_power_of_two_and_powers_repeat_after_255() {
        for a in 1..=255 {
            assert_eq!(exp(log(a)), a);
            assert_eq!(exp(log(a) + 255 * 7), a);
        }
    }

    #[test]
    fn powers_are_repeated_products() {
        for base in 0..=255 {
            let mut product = 1;
            for exponent in 0..300 {
                assert_eq!(pow(base, exponent), product, "{base} to the {exponent}");
                product = mul(product, base);
            }
        }
    }
}
