//! NEON with the 8-bit matrix multiply instructions of ARMv8.6.
//!
//! `smmla` multiplies 2 x 8 weights by 8 x 2 activations. Weights are brought into its order once per
//! panel of columns and used for all activation rows; single rows go through the dot product.
#![allow(unsafe_code)]

use super::dotprod::{Dotprod, has_dotprod};
use super::floats::{Floats, Ints};
use super::{float_methods, unrolled};
use crate::dispatch::Work;
use crate::format::ACTIVATION_BLOCK;
use crate::lanes::Simd;
use crate::quantized::QuantizedRows;
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::array::from_fn;

/// Proof that the CPU has the dot product and the matrix multiply instructions.
#[derive(Clone, Copy)]
pub(crate) struct I8mm(Dotprod);

/// Whether the CPU has all that these kernels use.
pub(crate) fn has_i8mm() -> bool {
    has_dotprod() && is_aarch64_feature_detected!("i8mm")
}

/// Runs `work`, compiled with the matrix multiply instructions.
///
/// # Safety
/// [`has_i8mm`] must have answered yes.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(crate) unsafe fn run_i8mm<W: Work>(work: W) {
    // SAFETY: the caller's promise.
    work.run(I8mm(unsafe { Dotprod::assume() }));
}

/// Adds to `sums` = (row 0 x column 0, row 0 x column 1, row 1 x column 0, row 1 x column 1) the products
/// of two rows of 8 weights with two columns of 8 activations.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn smmla(sums: int32x4_t, weights: int8x16_t, activations: int8x16_t) -> int32x4_t {
    let mut sums = sums;
    // The intrinsic is not stable.
    // SAFETY: an instruction that this function is compiled for and that only touches its operands.
    unsafe {
        asm!(
            "smmla {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) sums, in(vreg) weights, in(vreg) activations,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Blocks that are unpacked at once: 8 KiB of weights, which stay in the first-level cache.
const PANEL_BLOCKS: usize = 16;

/// One block of 16 rows in the order of `smmla`.
#[derive(Clone, Copy)]
struct UnpackedTile {
    /// `[row pair][8 columns]`: 8 weights of a row, then of the next.
    weights: [[int8x16_t; 4]; 8],
    /// `[row pair]`: the scales (row 0, row 0, row 1, row 1).
    scales: [float32x4_t; 8],
}

/// Sums of 16 rows for 4 activation rows: `[activation pair][row pair]`, in the order of `smmla`.
type Sums = [[float32x4_t; 8]; 2];

impl UnpackedTile {
    /// # Safety
    /// `bytes` must point to a tile with binary16 scales and blocks of 32.
    #[inline(always)]
    unsafe fn unpack<const INT4: bool>(&mut self, simd: I8mm, bytes: *const u8) {
        // SAFETY: the caller's promise: 32 bytes of scales, then 256 or 512 bytes of weights.
        unsafe {
            let quants = bytes.add(32);
            unrolled!(for octet in [0 1 2 3] {
                unrolled!(for four_rows in [0 1 2 3] {
                    let (low, high) = if INT4 {
                        let bytes = vld1q_u8(quants.add(64 * octet + 16 * four_rows));
                        let (low, high) = (vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes));
                        let eight = vdupq_n_u8(8);
                        (vsubq_u8(low, eight), vsubq_u8(high, eight))
                    } else {
                        let quad = quants.add(128 * octet + 16 * four_rows);
                        (vld1q_u8(quad), vld1q_u8(quad.add(64)))
                    };
                    let (low, high) = (vreinterpretq_s32_u8(low), vreinterpretq_s32_u8(high));
                    let (first, second) = (vzip1q_s32(low, high), vzip2q_s32(low, high));
                    self.weights[2 * four_rows][octet] = vreinterpretq_s8_s32(first);
                    self.weights[2 * four_rows + 1][octet] = vreinterpretq_s8_s32(second);
                });
            });
            let row_scales = simd.load_f16(&*bytes.cast()).0;
            for (pairs, four) in self.scales.as_chunks_mut().0.iter_mut().zip(row_scales) {
                *pairs = [vzip1q_f32(four, four), vzip2q_f32(four, four)];
            }
        }
    }
}

/// Two activation rows of a block in the order of `smmla`, and their scales.
///
/// # Safety
/// 32 bytes must be readable at each of `values`.
#[inline(always)]
unsafe fn pair_activations(
    values: [*const i8; 2],
    scales: [f32; 2],
) -> ([int8x16_t; 4], float32x4_t) {
    // SAFETY: the caller's promise.
    unsafe {
        let load = |x: *const i8| vreinterpretq_s64_s8(vld1q_s8(x));
        let first = [load(values[0]), load(values[0].add(16))];
        let second = [load(values[1]), load(values[1].add(16))];
        let octets = [
            vreinterpretq_s8_s64(vzip1q_s64(first[0], second[0])),
            vreinterpretq_s8_s64(vzip2q_s64(first[0], second[0])),
            vreinterpretq_s8_s64(vzip1q_s64(first[1], second[1])),
            vreinterpretq_s8_s64(vzip2q_s64(first[1], second[1])),
        ];
        let scales = vzip1q_f32(vdupq_n_f32(scales[0]), vdupq_n_f32(scales[1]));
        (octets, scales)
    }
}

/// Adds the products of a block for 4 activation rows.
///
/// # Safety
/// The CPU must have i8mm; 32 bytes must be readable at each of `values`.
#[inline(always)]
unsafe fn add_block(
    tile: &UnpackedTile,
    values: [*const i8; 4],
    scales: [f32; 4],
    sums: &mut Sums,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let pairs = [
            pair_activations([values[0], values[1]], [scales[0], scales[1]]),
            pair_activations([values[2], values[3]], [scales[2], scales[3]]),
        ];
        unrolled!(for row_pair in [0 1 2 3 4 5 6 7] {
            let weights = &tile.weights[row_pair];
            for (sums, (activations, scales)) in sums.iter_mut().zip(&pairs) {
                let dots = smmla(vdupq_n_s32(0), weights[0], activations[0]);
                let dots = smmla(dots, weights[1], activations[1]);
                let dots = smmla(dots, weights[2], activations[2]);
                let dots = smmla(dots, weights[3], activations[3]);
                let scale = vmulq_f32(tile.scales[row_pair], *scales);
                sums[row_pair] = vfmaq_f32(sums[row_pair], vcvtq_f32_s32(dots), scale);
            }
        });
    }
}

impl Simd for I8mm {
    float_methods!();
    const BATCH: usize = 4;

    #[inline(always)]
    unsafe fn dots_int4<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        sums: [i32; M],
    ) -> [Ints; M] {
        // SAFETY: passed on.
        unsafe { self.0.dots_int4::<M, QUADS>(quants, activations, sums) }
    }

    #[inline(always)]
    unsafe fn dots_int8<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        sums: [i32; M],
    ) -> [Ints; M] {
        // SAFETY: passed on.
        unsafe { self.0.dots_int8::<M, QUADS>(quants, activations, sums) }
    }

    #[inline(always)]
    fn batch<const INT4: bool>(
        self,
        group: &[u8],
        x: &QuantizedRows,
        mut finish: impl FnMut(usize, Floats),
    ) -> usize {
        if x.rows() < 4 {
            return 0;
        }
        let tile_bytes = if INT4 { 32 + 256 } else { 32 + 512 };
        // SAFETY: zeros; NEON is always there.
        let zero = unsafe { vdupq_n_f32(0.0) };
        // SAFETY: as above.
        let zeros = unsafe { vdupq_n_s8(0) };
        let empty = UnpackedTile {
            weights: [[zeros; 4]; 8],
            scales: [zero; 8],
        };
        let mut tiles = [empty; PANEL_BLOCKS];
        let mut sums: Vec<Sums> = vec![[[zero; 8]; 2]; x.rows() / 4];
        for (panel_index, panel) in group.chunks(PANEL_BLOCKS * tile_bytes).enumerate() {
            let first_block = panel_index * PANEL_BLOCKS;
            let blocks = panel.len() / tile_bytes;
            for (tile, bytes) in tiles.iter_mut().zip(panel.chunks_exact(tile_bytes)) {
                // SAFETY: `bytes` is a tile; `self` proves the CPU's support.
                unsafe { tile.unpack::<INT4>(self, bytes.as_ptr()) };
            }
            for (index, sums) in sums.iter_mut().enumerate() {
                let values: [_; 4] = from_fn(|m| {
                    let start = first_block * ACTIVATION_BLOCK;
                    x.values(4 * index + m)[start..][..blocks * ACTIVATION_BLOCK].as_ptr()
                });
                let scales: [_; 4] = from_fn(|m| &x.scales(4 * index + m)[first_block..][..blocks]);
                let mut running = *sums;
                for (block, tile) in tiles[..blocks].iter().enumerate() {
                    // SAFETY: `values` are `blocks` blocks long; `self` proves the CPU's support.
                    unsafe {
                        let values = values.map(|values| values.add(block * ACTIVATION_BLOCK));
                        add_block(
                            tile,
                            values,
                            scales.map(|scales| scales[block]),
                            &mut running,
                        );
                    }
                }
                *sums = running;
            }
        }
        for (index, sums) in sums.iter().enumerate() {
            for (pair, sums) in sums.iter().enumerate() {
                // SAFETY: NEON is always there.
                let (even, odd) = unsafe {
                    let even = from_fn(|i| vuzp1q_f32(sums[2 * i], sums[2 * i + 1]));
                    (even, from_fn(|i| vuzp2q_f32(sums[2 * i], sums[2 * i + 1])))
                };
                finish(4 * index + 2 * pair, Floats(even));
                finish(4 * index + 2 * pair + 1, Floats(odd));
            }
        }
        4 * sums.len()
    }
}
