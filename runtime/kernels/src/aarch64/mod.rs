//! Kernels for aarch64, where NEON is always there.

mod dotprod;
mod floats;
mod i8mm;
mod neon;
mod products;
mod tiles;

pub(crate) use dotprod::{has_dotprod, run_dotprod};
pub(crate) use i8mm::{has_i8mm, run_i8mm};
pub(crate) use neon::run_neon;

/// Asks for a cache line in the second-level cache.
#[allow(unsafe_code)]
pub(crate) fn prefetch(address: usize) {
    // SAFETY: a prefetch accesses nothing and does not fail, whatever the address.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{}]", in(reg) address,
            options(nostack, preserves_flags, readonly));
    }
}

/// The [`Simd`](crate::lanes::Simd) methods that are the same whatever integer instructions there are.
macro_rules! shared_methods {
    () => {
        type F = Floats;
        type I = Ints;

        #[inline(always)]
        fn splat(self, x: f32) -> Floats {
            Floats::splat(x)
        }

        #[inline(always)]
        fn load(self, x: &[f32; 16]) -> Floats {
            Floats::load(x)
        }

        #[inline(always)]
        fn load_f32(self, bytes: &[u8; 64]) -> Floats {
            Floats::load_f32(bytes)
        }

        #[inline(always)]
        fn load_f16(self, bytes: &[u8; 32]) -> Floats {
            Floats::load_f16(bytes)
        }

        const MULTIPLIES_BY_LANE: bool = true;

        #[inline(always)]
        fn add_four_columns<const F16: bool, const M: usize>(
            self,
            columns: &[u8],
            x: [&[f32; 4]; M],
            sums: &mut [Floats; M],
        ) {
            Floats::add_four_columns::<F16, M>(columns, x, sums);
        }

        #[inline(always)]
        fn load_i8(self, bytes: &[u8; 16]) -> Ints {
            Ints::load_i8(bytes)
        }

        #[inline(always)]
        fn batch<W: crate::weights::Weights>(
            self,
            weights: W,
            group: &[u8],
            x: &crate::quantized::QuantizedRows,
            finish: impl FnMut(usize, Floats),
        ) -> usize {
            // SAFETY: `self` proves that the CPU has the instructions.
            unsafe { super::products::multiply::<Self, W>(weights, group, x, finish) }
        }
    };
}
use shared_methods;

/// A loop written out: the compiler unrolls long bodies too late to keep arrays in registers.
macro_rules! unrolled {
    (for $index:ident in [$($value:literal)+] $body:block) => {$(
        {
            let $index = $value;
            $body
        }
    )+};
}
use unrolled;
