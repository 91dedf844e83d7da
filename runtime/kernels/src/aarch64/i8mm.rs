//! NEON with the 8-bit matrix multiply instructions of ARMv8.6.
//!
//! `smmla` multiplies 2 x 8 weights by 8 x 2 activations. Single rows go through the dot product.
#![allow(unsafe_code)]

use super::dotprod::{Dotprod, has_dotprod};
use super::floats::{Floats, Ints};
use super::products::{Activations, PANEL_ROWS, Products, multiply};
use super::tiles::TileReader;
use super::{float_methods, unrolled};
use crate::dispatch::Work;
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
            options(nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// A tile in the order of `smmla`.
#[derive(Clone, Copy)]
pub(super) struct PairTile {
    /// `[row pair]`: the scales (row 0, row 0, row 1, row 1).
    scales: [float32x4_t; 8],
    /// `[row pair][8 columns]`: 8 weights of a row, then of the next.
    weights: [[int8x16_t; 4]; 8],
}

impl Products for I8mm {
    type Tile = PairTile;
    /// `[row pair][pair of activation rows]`, in the order of `smmla`.
    type Sums = [[float32x4_t; 2]; 8];
    // SAFETY: all bits zero are the number zero.
    const NO_SUMS: Self::Sums = unsafe { std::mem::zeroed() };

    #[inline(always)]
    unsafe fn add_tile<const INT4: bool, const LANE: i32>(
        tiles: &mut TileReader,
        activations: *const i8,
        scales: float32x4_t,
        offsets: int32x4_t,
        sums: &mut Floats,
    ) {
        // SAFETY: passed on: a CPU with i8mm has dotprod.
        unsafe { Dotprod::add_tile::<INT4, LANE>(tiles, activations, scales, offsets, sums) };
    }

    #[inline(always)]
    unsafe fn unpack<const INT4: bool>(tiles: &mut TileReader) -> PairTile {
        // SAFETY: the caller's promise.
        unsafe {
            let row_scales = tiles.row_scales();
            let mut tile = PairTile {
                scales: [vdupq_n_f32(0.0); 8],
                weights: [[vdupq_n_s8(0); 4]; 8],
            };
            for (pairs, four) in tile.scales.as_chunks_mut().0.iter_mut().zip(row_scales) {
                *pairs = [vzip1q_f32(four, four), vzip2q_f32(four, four)];
            }
            unrolled!(for octet in [0 1 2 3] {
                let [first, last] = tiles.signed_octet::<INT4>(octet % 2 == 1);
                for four_rows in 0..4 {
                    let first = vreinterpretq_s32_s8(first[four_rows]);
                    let last = vreinterpretq_s32_s8(last[four_rows]);
                    let pairs = [vzip1q_s32(first, last), vzip2q_s32(first, last)];
                    tile.weights[2 * four_rows][octet] = vreinterpretq_s8_s32(pairs[0]);
                    tile.weights[2 * four_rows + 1][octet] = vreinterpretq_s8_s32(pairs[1]);
                }
            });
            tile
        }
    }

    #[inline(always)]
    unsafe fn add_panel<const INT4: bool>(
        tiles: &[PairTile],
        x: Activations,
        sums: &mut Self::Sums,
    ) {
        // Eight rows at a time: as many as the registers hold.
        for (eight_rows, sums) in sums.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let mut x = x.interleaved;
            let mut running = *sums;
            for tile in tiles {
                let row_scales = &tile.scales.as_chunks::<4>().0[eight_rows];
                let weights = &tile.weights.as_chunks::<4>().0[eight_rows];
                // SAFETY: the caller's promise; the weights of eight rows are 256 bytes.
                unsafe {
                    let mut weights = TileReader::new((&raw const *weights).cast());
                    let values: *const i8 = (&raw const (*x).values).cast();
                    let pairs: [[_; 4]; 2] = from_fn(|pair| {
                        from_fn(|octet| vld1q_s8(values.add(64 * pair + 16 * octet)))
                    });
                    // The scales of a pair, twice.
                    let scales = (*x).scales.as_ptr().cast();
                    let scales = [vld1q_dup_f64(scales), vld1q_dup_f64(scales.add(1))];
                    let scales = scales.map(|pair| vreinterpretq_f32_f64(pair));
                    unrolled!(for row_pair in [0 1 2 3] {
                        let weights = weights.next_64(row_pair % 2 == 1);
                        let mut dots = [vdupq_n_s32(0); 2];
                        for octet in 0..4 {
                            dots = from_fn(|pair| smmla(dots[pair], weights[octet], pairs[pair][octet]));
                        }
                        running[row_pair] = from_fn(|pair| {
                            let scale = vmulq_f32(row_scales[row_pair], scales[pair]);
                            vfmaq_f32(running[row_pair][pair], vcvtq_f32_s32(dots[pair]), scale)
                        });
                    });
                    x = x.add(1);
                }
            }
            *sums = running;
        }
    }

    #[inline(always)]
    fn outputs(sums: &Self::Sums) -> [Floats; PANEL_ROWS] {
        from_fn(|m| {
            Floats(from_fn(|i| {
                let (upper, lower) = (sums[2 * i][m / 2], sums[2 * i + 1][m / 2]);
                // SAFETY: NEON is always there.
                unsafe {
                    if m % 2 == 0 {
                        vuzp1q_f32(upper, lower)
                    } else {
                        vuzp2q_f32(upper, lower)
                    }
                }
            }))
        })
    }
}

impl Simd for I8mm {
    float_methods!();
    const BATCH: usize = 4;
    const INTERLEAVED: bool = true;

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
        finish: impl FnMut(usize, Floats),
    ) -> usize {
        // SAFETY: `self` proves the CPU's support.
        unsafe { multiply::<Self, INT4>(group, x, finish) }
    }
}
