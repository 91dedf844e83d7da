//! NEON with the 8-bit matrix multiply instructions of ARMv8.6.
#![allow(unsafe_code)]

use super::dotprod::{Dotprod, has_dotprod};
use super::float_methods;
use super::floats::{Floats, Ints};
use crate::dispatch::Work;
use crate::lanes::Simd;
use std::arch::is_aarch64_feature_detected;

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
}
