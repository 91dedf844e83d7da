//! Plain NEON: widening multiplications to 16 bits.
#![allow(unsafe_code)]

use super::floats::{Floats, Ints};
use super::{float_methods, unrolled};
use crate::dispatch::Work;
use crate::lanes::Simd;
use std::arch::aarch64::*;
use std::arch::asm;

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

/// `sums + weights * activations` for the upper eight bytes.
///
/// Not the intrinsic: the compiler sees that the upper activations equal the lower ones, takes those, and
/// then has to move the weights down with an instruction of its own.
#[inline(always)]
fn add_upper_products(sums: int16x8_t, weights: int8x16_t, activations: int8x16_t) -> int16x8_t {
    let mut sums = sums;
    // SAFETY: a base NEON instruction that only touches its operands.
    unsafe {
        asm!(
            "smlal2 {0:v}.8h, {1:v}.16b, {2:v}.16b",
            inout(vreg) sums, in(vreg) weights, in(vreg) activations,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// `weights * activations` for the upper eight bytes; see [`add_upper_products`].
#[inline(always)]
fn upper_products(weights: int8x16_t, activations: int8x16_t) -> int16x8_t {
    let products;
    // SAFETY: a base NEON instruction that only touches its operands.
    unsafe {
        asm!(
            "smull2 {0:v}.8h, {1:v}.16b, {2:v}.16b",
            out(vreg) products, in(vreg) weights, in(vreg) activations,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    products
}

impl Simd for Neon {
    float_methods!();
    const BATCH: usize = 2;

    /// The products of a row are added in 16 bits: 16 of them per lane, at most 15 * 127 each.
    #[inline(always)]
    unsafe fn dots_int4<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        sums: [i32; M],
    ) -> [Ints; M] {
        let mut dots = sums.map(|sum| Ints::splat(-8 * sum));
        // SAFETY: the caller's promise on the lengths.
        unsafe {
            unrolled!(for four_rows in [0 1 2 3] {
                let mut first = [vdupq_n_s16(0); M];
                let mut second = [vdupq_n_s16(0); M];
                unrolled!(for chunk in [0 1 2 3] {
                    if chunk < QUADS / 2 {
                        let bytes = vld1q_u8(quants.add(64 * chunk + 16 * four_rows));
                        let low = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
                        let high = vreinterpretq_s8_u8(vshrq_n_u8::<4>(bytes));
                        for m in 0..M {
                            let a = broadcast_quad(activations[m], 2 * chunk);
                            first[m] = vmlal_s8(first[m], vget_low_s8(low), vget_low_s8(a));
                            second[m] = add_upper_products(second[m], low, a);
                            let a = broadcast_quad(activations[m], 2 * chunk + 1);
                            first[m] = vmlal_s8(first[m], vget_low_s8(high), vget_low_s8(a));
                            second[m] = add_upper_products(second[m], high, a);
                        }
                    }
                });
                for m in 0..M {
                    let rows = vpaddq_s32(vpaddlq_s16(first[m]), vpaddlq_s16(second[m]));
                    dots[m].0[four_rows] = vaddq_s32(dots[m].0[four_rows], rows);
                }
            });
        }
        dots
    }

    /// Two products fit into 16 bits: at most 2 * 128 * 127.
    #[inline(always)]
    unsafe fn dots_int8<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        _sums: [i32; M],
    ) -> [Ints; M] {
        let mut dots = [Ints::splat(0); M];
        // SAFETY: the caller's promise on the lengths.
        unsafe {
            unrolled!(for four_rows in [0 1 2 3] {
                let mut first = [vdupq_n_s32(0); M];
                let mut second = [vdupq_n_s32(0); M];
                unrolled!(for pair in [0 1 2 3] {
                    if pair < QUADS / 2 {
                        let quads = quants.add(128 * pair + 16 * four_rows).cast();
                        let (even, odd) = (vld1q_s8(quads), vld1q_s8(quads.add(64)));
                        for m in 0..M {
                            let a_even = broadcast_quad(activations[m], 2 * pair);
                            let a_odd = broadcast_quad(activations[m], 2 * pair + 1);
                            let products = vmull_s8(vget_low_s8(even), vget_low_s8(a_even));
                            let products =
                                vmlal_s8(products, vget_low_s8(odd), vget_low_s8(a_odd));
                            first[m] = vpadalq_s16(first[m], products);
                            let products = upper_products(even, a_even);
                            let products = add_upper_products(products, odd, a_odd);
                            second[m] = vpadalq_s16(second[m], products);
                        }
                    }
                });
                for m in 0..M {
                    dots[m].0[four_rows] = vpaddq_s32(first[m], second[m]);
                }
            });
        }
        dots
    }
}
