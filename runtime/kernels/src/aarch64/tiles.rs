//! Reading tiles of the usual formats: 16 rows by 32 columns, binary16 scales, no zero points.
#![allow(unsafe_code)]

use super::floats::Floats;
use crate::codebook::Codebook;
use crate::format::Element;
use crate::weights::Weights;
use std::arch::aarch64::*;
use std::arch::asm;

/// The values of a codebook, by their codes.
#[inline(always)]
pub(super) fn load_codebook(codebook: Codebook) -> int8x16_t {
    // SAFETY: a codebook is 16 bytes; NEON is always there.
    unsafe { vld1q_s8(codebook.values().as_ptr()) }
}

/// Reads tiles from their first byte to their last, one instruction for 64 bytes: the compiler would make two
/// of it, and more where offsets get too large for a pair of registers.
pub(super) struct TileReader(*const u8);

/// Loads the next 64 bytes into four registers in sequence.
macro_rules! load_64 {
    ($reader:expr, $instruction:literal, $a:tt $b:tt $c:tt $d:tt) => {{
        let (a, b, c, d): (int8x16_t, int8x16_t, int8x16_t, int8x16_t);
        asm!($instruction, position = inout(reg) $reader.0,
            out($a) a, out($b) b, out($c) c, out($d) d,
            options(readonly, nostack, preserves_flags));
        [a, b, c, d]
    }};
}

impl TileReader {
    /// A reader of the tiles at `tiles`.
    #[inline(always)]
    pub(super) fn new(tiles: *const u8) -> Self {
        Self(tiles)
    }

    /// The scales of a tile's rows: the first thing in it.
    ///
    /// # Safety
    /// 32 bytes must be readable.
    #[inline(always)]
    pub(super) unsafe fn row_scales(&mut self) -> [float32x4_t; 4] {
        let halves: [uint8x16_t; 2];
        // SAFETY: a load of what the caller promises.
        unsafe {
            let (first, second);
            asm!("ldp {0:q}, {1:q}, [{position}], #32",
                out(vreg) first, out(vreg) second, position = inout(reg) self.0,
                options(readonly, nostack, preserves_flags));
            halves = [first, second];
        }
        Floats::widen_f16(halves).0
    }

    /// The next eight columns of a tile, the first four and the last four: a register has those of four rows.
    /// Int4 weights are `q + 8`.
    ///
    /// # Safety
    /// 64 bytes must be readable, 128 of an int8 tile.
    #[inline(always)]
    pub(super) unsafe fn octet<W: Weights>(
        &mut self,
        codebook: int8x16_t,
        odd: bool,
    ) -> [[int8x16_t; 4]; 2] {
        // SAFETY: passed on.
        unsafe {
            match W::ELEMENT {
                Element::Int8 => [self.next_64(false), self.next_64(true)],
                _ => split::<W>(codebook, self.next_64(odd)),
            }
        }
    }

    /// As [`octet`](Self::octet), but int4 weights are -8 to 7.
    ///
    /// # Safety
    /// As for [`octet`](Self::octet).
    #[inline(always)]
    pub(super) unsafe fn signed_octet<W: Weights>(
        &mut self,
        codebook: int8x16_t,
        odd: bool,
    ) -> [[int8x16_t; 4]; 2] {
        // SAFETY: passed on; NEON is always there.
        unsafe {
            let [[a, b, c, d], [e, f, g, h]] = self.octet::<W>(codebook, odd);
            let signed = |weights| {
                if W::ELEMENT == Element::Int4 {
                    vsubq_s8(weights, vdupq_n_s8(8))
                } else {
                    weights
                }
            };
            [
                [signed(a), signed(b), signed(c), signed(d)],
                [signed(e), signed(f), signed(g), signed(h)],
            ]
        }
    }

    /// The next 64 bytes, in one of two sets of registers: a load need not wait for those who use the other.
    ///
    /// # Safety
    /// They must be readable.
    #[inline(always)]
    pub(super) unsafe fn next_64(&mut self, odd: bool) -> [int8x16_t; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            if odd {
                load_64!(self, "ld1 {{v20.16b, v21.16b, v22.16b, v23.16b}}, [{position}], #64",
                    "v20" "v21" "v22" "v23")
            } else {
                load_64!(self, "ld1 {{v16.16b, v17.16b, v18.16b, v19.16b}}, [{position}], #64",
                    "v16" "v17" "v18" "v19")
            }
        }
    }
}

/// What the lower and the upper four bits of each byte stand for. Int4 weights are `q + 8`.
#[inline(always)]
pub(super) fn split<W: Weights>(codebook: int8x16_t, bytes: [int8x16_t; 4]) -> [[int8x16_t; 4]; 2] {
    let weight = |code| match W::ELEMENT {
        // SAFETY: NEON is always there.
        Element::Codebook4 => unsafe { vqtbl1q_s8(codebook, vreinterpretq_u8_s8(code)) },
        _ => code,
    };
    // Written out: `map` is left as a call, and a loop is unrolled too late to stay in registers.
    let [a, b, c, d] = bytes;
    [
        [
            weight(lower_nibbles(a)),
            weight(lower_nibbles(b)),
            weight(lower_nibbles(c)),
            weight(lower_nibbles(d)),
        ],
        [
            weight(upper_nibbles(a)),
            weight(upper_nibbles(b)),
            weight(upper_nibbles(c)),
            weight(upper_nibbles(d)),
        ],
    ]
}

#[inline(always)]
fn lower_nibbles(bytes: int8x16_t) -> int8x16_t {
    // SAFETY: NEON is always there.
    unsafe { vandq_s8(bytes, vdupq_n_s8(15)) }
}

#[inline(always)]
fn upper_nibbles(bytes: int8x16_t) -> int8x16_t {
    // SAFETY: NEON is always there.
    unsafe { vreinterpretq_s8_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s8(bytes))) }
}

/// Keeps the compiler from making one instruction of two zips and their stores: where what was zipped goes to
/// different places it would store it once, and copy it from there.
#[inline(always)]
pub(super) fn stored_apart(mut zipped: int32x4_t) -> int32x4_t {
    // SAFETY: no instruction.
    unsafe {
        asm!("/* {0:v} */", inout(vreg) zipped, options(pure, nomem, nostack, preserves_flags));
    }
    zipped
}
