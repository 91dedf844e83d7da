//! The byte layouts of onnxruntime's operators for quantized weights.
//!
//! Both store unsigned integers, the signed one plus 8 or 128, which is the zero point that they assume when none is
//! given; 4-bit pairs share a byte, the first in the low half.

use super::{BLOCK, Code};

/// The integer as it is stored.
fn unsigned(integer: i8, code: Code) -> u8 {
    match code {
        Code::Int4 | Code::Codebook4 => (i16::from(integer) + 8) as u8,
        Code::Int8 => (i16::from(integer) + 128) as u8,
    }
}

fn pack(integers: &[i8], code: Code, out: &mut Vec<u8>) {
    match code {
        Code::Int4 | Code::Codebook4 => out.extend(integers.chunks(2).map(|pair| {
            let high = pair.get(1).copied().unwrap_or(0);
            unsigned(pair[0], code) | (unsigned(high, code) << 4)
        })),
        Code::Int8 => out.extend(integers.iter().map(|&integer| unsigned(integer, code))),
    }
}

/// One row of `MatMulNBits`'s `B`, [rows, blocks, bytes of a block]: the last block is filled up with zeros.
pub(super) fn pack_matmul_row(integers: &[i8], code: Code, out: &mut Vec<u8>) {
    for block in integers.chunks(BLOCK) {
        let mut whole = [0i8; BLOCK];
        whole[..block.len()].copy_from_slice(block);
        pack(&whole, code, out);
    }
}

/// One row of `GatherBlockQuantized`'s `data`, [rows, columns * bits / 8]. With 4 code, columns must be even.
pub(super) fn pack_gather_row(integers: &[i8], code: Code, out: &mut Vec<u8>) {
    pack(integers, code, out);
}
