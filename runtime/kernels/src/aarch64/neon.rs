//! Plain NEON: widening multiplications to 16 bits.
#![allow(unsafe_code)]

use super::float_methods;
use super::floats::{Floats, Ints};
use crate::dispatch::Work;
use crate::lanes::Simd;
use std::arch::aarch64::*;
use std::array::from_fn;

#[derive(Clone, Copy)]
pub(crate) struct Neon;

/// Runs `work` with plain NEON.
pub(crate) fn run_neon<W: Work>(work: W) {
    work.run(Neon);
}

/// Four activations, four times.
///
/// # Safety
/// `4 * quad + 4` bytes must be readable.
#[inline(always)]
unsafe fn broadcast_quad(activations: *const i8, quad: usize) -> int8x16_t {
    // SAFETY: the caller's promise.
    unsafe { vreinterpretq_s8_s32(vld1q_dup_s32(activations.cast::<i32>().add(quad))) }
}

impl Simd for Neon {
    float_methods!();
    const BATCH: usize = 4;

    /// The products of a row are added in 16 bits: 16 of them per lane, at most 15 * 127 each.
    #[inline(always)]
    unsafe fn dots_int4<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        sums: [i32; M],
    ) -> [Ints; M] {
        // SAFETY: the caller's promise on the lengths.
        unsafe {
            let mut dots = sums.map(|sum| Ints::splat(-8 * sum));
            for four_rows in 0..4 {
                let mut first = [vdupq_n_s16(0); M];
                let mut second = [vdupq_n_s16(0); M];
                for chunk in 0..QUADS / 2 {
                    let bytes = vld1q_u8(quants.add(64 * chunk + 16 * four_rows));
                    let low = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
                    let high = vreinterpretq_s8_u8(vshrq_n_u8::<4>(bytes));
                    for m in 0..M {
                        for (half, weights) in [low, high].into_iter().enumerate() {
                            let a = broadcast_quad(activations[m], 2 * chunk + half);
                            first[m] = vmlal_s8(first[m], vget_low_s8(weights), vget_low_s8(a));
                            second[m] = vmlal_high_s8(second[m], weights, a);
                        }
                    }
                }
                for m in 0..M {
                    let rows = vpaddq_s32(vpaddlq_s16(first[m]), vpaddlq_s16(second[m]));
                    dots[m].0[four_rows] = vaddq_s32(dots[m].0[four_rows], rows);
                }
            }
            dots
        }
    }

    /// Two products fit into 16 bits: at most 2 * 128 * 127.
    #[inline(always)]
    unsafe fn dots_int8<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        _sums: [i32; M],
    ) -> [Ints; M] {
        // SAFETY: the caller's promise on the lengths.
        unsafe {
            let mut dots = [Ints::splat(0); M];
            for four_rows in 0..4 {
                let mut first = [vdupq_n_s32(0); M];
                let mut second = [vdupq_n_s32(0); M];
                for pair in 0..QUADS / 2 {
                    let weights: [int8x16_t; 2] = from_fn(|i| {
                        vld1q_s8(quants.add(64 * (2 * pair + i) + 16 * four_rows).cast())
                    });
                    for m in 0..M {
                        let a: [int8x16_t; 2] =
                            from_fn(|i| broadcast_quad(activations[m], 2 * pair + i));
                        let products = vmull_s8(vget_low_s8(weights[0]), vget_low_s8(a[0]));
                        let products =
                            vmlal_s8(products, vget_low_s8(weights[1]), vget_low_s8(a[1]));
                        first[m] = vpadalq_s16(first[m], products);
                        let products = vmull_high_s8(weights[0], a[0]);
                        let products = vmlal_high_s8(products, weights[1], a[1]);
                        second[m] = vpadalq_s16(second[m], products);
                    }
                }
                for m in 0..M {
                    dots[m].0[four_rows] = vpaddq_s32(first[m], second[m]);
                }
            }
            dots
        }
    }
}
