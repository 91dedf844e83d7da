//! The byte layouts of onnxruntime's operators for quantized weights.
//!
//! Both store unsigned integers, the signed one plus 8 or 128, which is the zero point that they assume when none is
//! given; 4-bit pairs share a byte, the first in the low half.

use super::{BLOCK, Bits};

/// The integer as it is stored.
fn unsigned(integer: i8, bits: Bits) -> u8 {
    match bits {
        Bits::Four => (i16::from(integer) + 8) as u8,
        Bits::Eight => (i16::from(integer) + 128) as u8,
    }
}

fn pack(integers: &[i8], bits: Bits, out: &mut Vec<u8>) {
    match bits {
        Bits::Four => out.extend(integers.chunks(2).map(|pair| {
            let high = pair.get(1).copied().unwrap_or(0);
            unsigned(pair[0], bits) | (unsigned(high, bits) << 4)
        })),
        Bits::Eight => out.extend(integers.iter().map(|&integer| unsigned(integer, bits))),
    }
}

/// One row of `MatMulNBits`'s `B`, [rows, blocks, bytes of a block]: the last block is filled up with zeros.
pub(super) fn pack_matmul_row(integers: &[i8], bits: Bits, out: &mut Vec<u8>) {
    for block in integers.chunks(BLOCK) {
        let mut whole = [0i8; BLOCK];
        whole[..block.len()].copy_from_slice(block);
        pack(&whole, bits, out);
    }
}

/// One row of `GatherBlockQuantized`'s `data`, [rows, columns * bits / 8]. With 4 bits, columns must be even.
pub(super) fn pack_gather_row(integers: &[i8], bits: Bits, out: &mut Vec<u8>) {
    pack(integers, bits, out);
}
