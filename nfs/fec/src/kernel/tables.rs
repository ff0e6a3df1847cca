//! What the vector kernels look products up in.
#![forbid(unsafe_code)]

use crate::gf;

/// For each coefficient the 8 × 8 bit matrix that multiplies by it, as GF2P8AFFINEQB takes it: byte
/// 7 − i has the bits of the factor whose sum is bit i of the product (Intel's manual, volume 2,
/// GF2P8AFFINEQB). The instruction GF2P8MULB does not serve: its field is another, 0x11B.
pub static MATRICES: [u64; 256] = {
    let mut matrices = [0; 256];
    let mut coefficient = 0;
    while coefficient < 256 {
        let mut from = 0;
        while from < 8 {
            let product = gf::mul(coefficient as u8, 1 << from);
            let mut to = 0;
            while to < 8 {
                if product >> to & 1 == 1 {
                    matrices[coefficient] |= 1 << ((7 - to) * 8 + from);
                }
                to += 1;
            }
            from += 1;
        }
        coefficient += 1;
    }
    matrices
};

/// For each coefficient its products with 0, 1, … 15 and with 0x00, 0x10, … 0xF0.
pub static NIBBLES: [[[u8; 16]; 2]; 256] = {
    let mut products = [[[0; 16]; 2]; 256];
    let mut coefficient = 0;
    while coefficient < 256 {
        let mut nibble = 0;
        while nibble < 16 {
            products[coefficient][0][nibble] = gf::mul(coefficient as u8, nibble as u8);
            products[coefficient][1][nibble] = gf::mul(coefficient as u8, (nibble as u8) << 4);
            nibble += 1;
        }
        coefficient += 1;
    }
    products
};
