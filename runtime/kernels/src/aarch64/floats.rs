//! 16 lanes in four NEON registers.
#![allow(unsafe_code)]

use crate::lanes::{IntLanes, Lanes};
use std::arch::aarch64::*;
use std::arch::asm;
use std::array::from_fn;
use std::ops::{Add, Div, Mul, Sub};

#[derive(Clone, Copy)]
pub(crate) struct Floats(pub(super) [float32x4_t; 4]);

#[derive(Clone, Copy)]
pub(crate) struct Ints(pub(super) [int32x4_t; 4]);

/// Intrinsics of NEON.
macro_rules! neon {
    ($body:expr) => {
        // SAFETY: every aarch64 CPU this crate is compiled for has NEON; memory is accessed through
        // references of the accessed size.
        unsafe { $body }
    };
}

impl Floats {
    /// [`Simd::add_four_columns`](crate::lanes::Simd::add_four_columns) of all instruction sets.
    #[inline(always)]
    pub(super) fn add_four_columns<const F16: bool, const M: usize>(
        columns: &[u8],
        x: [&[f32; 4]; M],
        sums: &mut [Floats; M],
    ) {
        // SAFETY: NEON is always there; each load is of four numbers.
        let x = unsafe { x.map(|x| vld1q_f32(x.as_ptr())) };
        macro_rules! column {
            ($($k:literal)+) => {$(
                let Floats(weights) = if F16 {
                    Self::load_f16(&columns.as_chunks::<32>().0[$k])
                } else {
                    Self::load_f32(&columns.as_chunks::<64>().0[$k])
                };
                for (Floats(sums), x) in sums.iter_mut().zip(x) {
                    for (sum, weights) in sums.iter_mut().zip(weights) {
                        // SAFETY: NEON is always there.
                        *sum = unsafe { vfmaq_laneq_f32::<$k>(*sum, weights, x) };
                    }
                }
            )+};
        }
        column!(0 1 2 3);
    }

    #[inline(always)]
    pub(super) fn splat(x: f32) -> Self {
        neon!(Self([vdupq_n_f32(x); 4]))
    }

    #[inline(always)]
    pub(super) fn load(x: &[f32; 16]) -> Self {
        neon!(Self(from_fn(|i| vld1q_f32(x.as_ptr().add(4 * i)))))
    }

    #[inline(always)]
    pub(super) fn load_f32(bytes: &[u8; 64]) -> Self {
        neon!(Self(from_fn(|i| {
            vreinterpretq_f32_u8(vld1q_u8(bytes.as_ptr().add(16 * i)))
        })))
    }

    #[inline(always)]
    pub(super) fn load_f16(bytes: &[u8; 32]) -> Self {
        Self::widen_f16(neon!([
            vld1q_u8(bytes.as_ptr()),
            vld1q_u8(bytes.as_ptr().add(16))
        ]))
    }

    /// Widens binary16 numbers.
    #[inline(always)]
    pub(super) fn widen_f16([first, second]: [uint8x16_t; 2]) -> Self {
        /// Four binary16 numbers, the lower or the upper half of a register.
        #[inline(always)]
        fn widen<const UPPER: bool>(halves: uint8x16_t) -> float32x4_t {
            let out: float32x4_t;
            // The intrinsics need the unstable type f16.
            // SAFETY: base NEON instructions that only touch their operands.
            unsafe {
                if UPPER {
                    asm!("fcvtl2 {0:v}.4s, {1:v}.8h", out(vreg) out, in(vreg) halves,
                        options(pure, nomem, nostack, preserves_flags));
                } else {
                    asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) out, in(vreg) halves,
                        options(pure, nomem, nostack, preserves_flags));
                }
            }
            out
        }
        Self([
            widen::<false>(first),
            widen::<true>(first),
            widen::<false>(second),
            widen::<true>(second),
        ])
    }

    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Self {
        Self(from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Ints {
    #[inline(always)]
    pub(super) fn load_i8(bytes: &[u8; 16]) -> Self {
        neon!({
            let bytes = vld1q_s8(bytes.as_ptr().cast());
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            Self([
                vmovl_s16(vget_low_s16(low)),
                vmovl_high_s16(low),
                vmovl_s16(vget_low_s16(high)),
                vmovl_high_s16(high),
            ])
        })
    }

    #[inline(always)]
    pub(super) fn splat(x: i32) -> Self {
        neon!(Self([vdupq_n_s32(x); 4]))
    }
}

impl Add for Floats {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| neon!(vaddq_f32(a, b)))
    }
}

impl Sub for Floats {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| neon!(vsubq_f32(a, b)))
    }
}

impl Mul for Floats {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| neon!(vmulq_f32(a, b)))
    }
}

impl Div for Floats {
    type Output = Self;
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| neon!(vdivq_f32(a, b)))
    }
}

impl Lanes for Floats {
    type I = Ints;

    #[inline(always)]
    fn all(self, x: f32) -> Self {
        Self::splat(x)
    }

    #[inline(always)]
    fn fma(self, factor: Self, summand: Self) -> Self {
        neon!(Self(from_fn(|i| vfmaq_f32(
            summand.0[i],
            self.0[i],
            factor.0[i]
        ))))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| neon!(vminq_f32(a, b)))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| neon!(vmaxq_f32(a, b)))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        neon!(Self(self.0.map(|x| vabsq_f32(x))))
    }

    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        self.zip(sign, |magnitude, sign| {
            neon!(vbslq_f32(vdupq_n_u32(1 << 31), sign, magnitude))
        })
    }

    #[inline(always)]
    fn round(self) -> Self {
        neon!(Self(self.0.map(|x| vrndnq_f32(x))))
    }

    #[inline(always)]
    fn pow2(self) -> Self {
        neon!(Self(self.0.map(|x| {
            let exponent = vaddq_s32(vcvtnq_s32_f32(x), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
        })))
    }

    #[inline(always)]
    fn if_less(self, limit: Self, less: Self, otherwise: Self) -> Self {
        neon!(Self(from_fn(|i| {
            vbslq_f32(vcltq_f32(self.0[i], limit.0[i]), less.0[i], otherwise.0[i])
        })))
    }

    #[inline(always)]
    fn to_int(self) -> Ints {
        neon!(Ints(self.0.map(|x| vcvtnq_s32_f32(x))))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        neon!({
            let eight = (
                vaddq_f32(self.0[0], self.0[2]),
                vaddq_f32(self.0[1], self.0[3]),
            );
            let four = vaddq_f32(eight.0, eight.1);
            vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        })
    }

    #[inline(always)]
    fn max_lane(self) -> f32 {
        neon!({
            let eight = (
                vmaxq_f32(self.0[0], self.0[2]),
                vmaxq_f32(self.0[1], self.0[3]),
            );
            vmaxvq_f32(vmaxq_f32(eight.0, eight.1))
        })
    }

    #[inline(always)]
    fn store(self, out: &mut [f32; 16]) {
        for (x, out) in self.0.into_iter().zip(out.as_chunks_mut::<4>().0) {
            neon!(vst1q_f32(out.as_mut_ptr(), x));
        }
    }

    #[inline(always)]
    fn store_f16(self, out: &mut [u8; 32]) {
        /// Eight binary16 numbers.
        #[inline(always)]
        fn narrow(low: float32x4_t, high: float32x4_t) -> uint8x16_t {
            let out: uint8x16_t;
            // The intrinsics need the unstable type f16.
            // SAFETY: base NEON instructions that only touch their operands.
            unsafe {
                asm!(
                    "fcvtn {0:v}.4h, {1:v}.4s",
                    "fcvtn2 {0:v}.8h, {2:v}.4s",
                    out(vreg) out, in(vreg) low, in(vreg) high,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            out
        }
        neon!({
            vst1q_u8(out.as_mut_ptr(), narrow(self.0[0], self.0[1]));
            vst1q_u8(out.as_mut_ptr().add(16), narrow(self.0[2], self.0[3]));
        });
    }
}

impl IntLanes for Ints {
    type F = Floats;

    #[inline(always)]
    fn sub_scaled(self, other: Self, factor: i32) -> Self {
        neon!(Self(from_fn(|i| vmlsq_n_s32(
            self.0[i], other.0[i], factor
        ))))
    }

    #[inline(always)]
    fn to_float(self) -> Floats {
        neon!(Floats(self.0.map(|x| vcvtq_f32_s32(x))))
    }

    #[inline(always)]
    fn store_i8(self, out: &mut [i8; 16]) {
        neon!({
            let low = vcombine_s16(vmovn_s32(self.0[0]), vmovn_s32(self.0[1]));
            let high = vcombine_s16(vmovn_s32(self.0[2]), vmovn_s32(self.0[3]));
            vst1q_s8(
                out.as_mut_ptr(),
                vcombine_s8(vmovn_s16(low), vmovn_s16(high)),
            );
        });
    }

    #[inline(always)]
    fn sum(self) -> i32 {
        neon!(vaddvq_s32(vaddq_s32(
            vaddq_s32(self.0[0], self.0[1]),
            vaddq_s32(self.0[2], self.0[3])
        )))
    }
}
