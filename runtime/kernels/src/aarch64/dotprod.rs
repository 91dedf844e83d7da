//! NEON with the dot product instructions of ARMv8.2.
#![allow(unsafe_code)]

use super::float_methods;
use super::floats::{Floats, Ints};
use crate::dispatch::Work;
use crate::lanes::Simd;
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

/// Proof that the CPU has the dot product instructions.
#[derive(Clone, Copy)]
pub(crate) struct Dotprod(());

/// Whether the CPU has all that these kernels use.
pub(crate) fn has_dotprod() -> bool {
    is_aarch64_feature_detected!("dotprod")
}

/// Runs `work`, compiled with the dot product instructions.
///
/// # Safety
/// [`has_dotprod`] must have answered yes.
#[target_feature(enable = "neon,dotprod")]
pub(crate) unsafe fn run_dotprod<W: Work>(work: W) {
    work.run(Dotprod(()));
}

impl Dotprod {
    /// # Safety
    /// [`has_dotprod`] must have answered yes.
    #[inline(always)]
    pub(super) unsafe fn assume() -> Self {
        Self(())
    }
}

/// Adds to each lane of `sums` the dot product of four weights with activations `4 * LANE..4 * LANE + 4`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot<const LANE: i32>(sums: int32x4_t, weights: int8x16_t, activations: int8x16_t) -> int32x4_t {
    let mut sums = sums;
    // The intrinsic is not stable.
    // SAFETY: an instruction that this function is compiled for and that only touches its operands.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{lane}]",
            inout(vreg) sums, in(vreg) weights, in(vreg) activations, lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// The weights of quads `2 * CHUNK` and `2 * CHUNK + 1` of an int4 tile.
///
/// # Safety
/// The CPU must have dotprod; `64 * (CHUNK + 1)` bytes must be readable at `quants`.
#[inline(always)]
unsafe fn add_int4_chunk<const M: usize, const CHUNK: usize, const LANE: i32, const NEXT: i32>(
    quants: *const u8,
    activations: &[[int8x16_t; 2]; M],
    dots: &mut [Ints; M],
) {
    for four_rows in 0..4 {
        // SAFETY: the caller's promise.
        unsafe {
            let bytes = vld1q_u8(quants.add(64 * CHUNK + 16 * four_rows));
            let low = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
            let high = vreinterpretq_s8_u8(vshrq_n_u8::<4>(bytes));
            for (dots, activations) in dots.iter_mut().zip(activations) {
                let a = activations[CHUNK / 2];
                let sums = &mut dots.0[four_rows];
                *sums = sdot::<NEXT>(sdot::<LANE>(*sums, low, a), high, a);
            }
        }
    }
}

/// The weights of quad `4 * HALF + LANE` of an int8 tile.
///
/// # Safety
/// The CPU must have dotprod; `64 * (4 * HALF + LANE + 1)` bytes must be readable at `quants`.
#[inline(always)]
unsafe fn add_int8_quad<const M: usize, const HALF: usize, const LANE: i32>(
    quants: *const u8,
    activations: &[[int8x16_t; 2]; M],
    dots: &mut [Ints; M],
) {
    for four_rows in 0..4 {
        // SAFETY: the caller's promise.
        unsafe {
            let quad = 4 * HALF + LANE as usize;
            let weights = vld1q_s8(quants.add(64 * quad + 16 * four_rows).cast());
            for (dots, activations) in dots.iter_mut().zip(activations) {
                let sums = &mut dots.0[four_rows];
                *sums = sdot::<LANE>(*sums, weights, activations[HALF]);
            }
        }
    }
}

/// The activations of a block, 16 in a register; those of a half block twice.
///
/// # Safety
/// `4 * QUADS` bytes must be readable at each pointer.
#[inline(always)]
unsafe fn load_activations<const M: usize, const QUADS: usize>(
    activations: [*const i8; M],
) -> [[int8x16_t; 2]; M] {
    // SAFETY: the caller's promise.
    activations.map(|a| unsafe {
        let first = vld1q_s8(a);
        [
            first,
            if QUADS == 8 {
                vld1q_s8(a.add(16))
            } else {
                first
            },
        ]
    })
}

impl Simd for Dotprod {
    float_methods!();
    const BATCH: usize = 4;

    #[inline(always)]
    unsafe fn dots_int4<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        sums: [i32; M],
    ) -> [Ints; M] {
        let mut dots = sums.map(|sum| Ints::splat(-8 * sum));
        // SAFETY: the caller's promise on the lengths; `self` proves the CPU's support.
        unsafe {
            let activations = load_activations::<M, QUADS>(activations);
            add_int4_chunk::<M, 0, 0, 1>(quants, &activations, &mut dots);
            add_int4_chunk::<M, 1, 2, 3>(quants, &activations, &mut dots);
            if QUADS == 8 {
                add_int4_chunk::<M, 2, 0, 1>(quants, &activations, &mut dots);
                add_int4_chunk::<M, 3, 2, 3>(quants, &activations, &mut dots);
            }
        }
        dots
    }

    #[inline(always)]
    unsafe fn dots_int8<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        _sums: [i32; M],
    ) -> [Ints; M] {
        let mut dots = [Ints::splat(0); M];
        // SAFETY: the caller's promise on the lengths; `self` proves the CPU's support.
        unsafe {
            let activations = load_activations::<M, QUADS>(activations);
            add_int8_quad::<M, 0, 0>(quants, &activations, &mut dots);
            add_int8_quad::<M, 0, 1>(quants, &activations, &mut dots);
            add_int8_quad::<M, 0, 2>(quants, &activations, &mut dots);
            add_int8_quad::<M, 0, 3>(quants, &activations, &mut dots);
            if QUADS == 8 {
                add_int8_quad::<M, 1, 0>(quants, &activations, &mut dots);
                add_int8_quad::<M, 1, 1>(quants, &activations, &mut dots);
                add_int8_quad::<M, 1, 2>(quants, &activations, &mut dots);
                add_int8_quad::<M, 1, 3>(quants, &activations, &mut dots);
            }
        }
        dots
    }
}
