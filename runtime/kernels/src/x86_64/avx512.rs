//! AVX-512 F, BW, VL and VNNI: one register holds 16 lanes.
#![allow(unsafe_code)]

use super::tiles;
use crate::dispatch::Work;
use crate::lanes::{IntLanes, Lanes, Simd};
use crate::matmul::Outputs;
use crate::quantized::QuantizedRows;
use crate::weights::Weights;
use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Range, Sub};

/// Proof that the CPU has AVX-512 F, BW, VL and VNNI. Floats and integers come only from it, or from
/// each other, so having one of them is proof, too.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

#[derive(Clone, Copy)]
pub(crate) struct Floats(__m512);

#[derive(Clone, Copy)]
pub(crate) struct Ints(__m512i);

/// Intrinsics on values that prove the CPU's support.
macro_rules! intrinsics {
    ($body:expr) => {
        // SAFETY: `self` proves that the CPU supports these instructions; memory is accessed through
        // references of the accessed size.
        unsafe { $body }
    };
}

/// Whether the CPU has all that these kernels use.
pub(crate) fn has_avx512_vnni() -> bool {
    super::has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

/// Runs `work`, compiled for AVX-512.
///
/// # Safety
/// [`has_avx512_vnni`] must have answered yes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn run_avx512_vnni<W: Work>(work: W) {
    work.run(Avx512(()));
}

impl Avx512 {
    /// 64 bytes.
    ///
    /// # Safety
    /// They must be readable.
    #[inline(always)]
    unsafe fn load_bytes(self, bytes: *const u8) -> __m512i {
        // SAFETY: the caller's promise; `self` proves the CPU's support.
        unsafe { _mm512_loadu_si512(bytes.cast()) }
    }

    /// Four activations, in every lane.
    ///
    /// # Safety
    /// `4 * quad + 4` bytes must be readable.
    #[inline(always)]
    unsafe fn broadcast_quad(self, activations: *const i8, quad: usize) -> __m512i {
        // SAFETY: the caller's promise; `self` proves the CPU's support.
        unsafe { _mm512_set1_epi32(activations.cast::<i32>().add(quad).read_unaligned()) }
    }
}

impl Simd for Avx512 {
    type F = Floats;
    type I = Ints;
    const BATCH: usize = 8;

    #[inline(always)]
    fn prefetch(self, start: *const u8, size_bytes: usize) {
        super::prefetch(start, size_bytes);
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Floats {
        intrinsics!(Floats(_mm512_set1_ps(x)))
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Floats {
        intrinsics!(Floats(_mm512_loadu_ps(x.as_ptr())))
    }

    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 64]) -> Floats {
        intrinsics!(Floats(_mm512_loadu_ps(bytes.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 32]) -> Floats {
        intrinsics!(Floats(_mm512_cvtph_ps(_mm256_loadu_si256(
            bytes.as_ptr().cast()
        ))))
    }

    #[inline(always)]
    fn load_i8(self, bytes: &[u8; 16]) -> Ints {
        intrinsics!(Ints(_mm512_cvtepi8_epi32(_mm_loadu_si128(
            bytes.as_ptr().cast()
        ))))
    }

    /// `vpdpbusd` multiplies unsigned by signed bytes: the stored `q + 8` fits, and starting at
    /// `-8 * sum` takes the offset back.
    #[inline(always)]
    unsafe fn dots_int4<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        sums: [i32; M],
    ) -> [Ints; M] {
        // SAFETY: the caller's promise on the lengths; `self` proves the CPU's support.
        unsafe {
            let mask = _mm512_set1_epi8(15);
            let mut low = sums.map(|sum| _mm512_set1_epi32(-8 * sum));
            let mut high = [_mm512_setzero_si512(); M];
            for chunk in 0..QUADS / 2 {
                let bytes = self.load_bytes(quants.add(64 * chunk));
                let low_nibbles = _mm512_and_si512(bytes, mask);
                let high_nibbles = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask);
                for m in 0..M {
                    let first = self.broadcast_quad(activations[m], 2 * chunk);
                    let second = self.broadcast_quad(activations[m], 2 * chunk + 1);
                    low[m] = _mm512_dpbusd_epi32(low[m], low_nibbles, first);
                    if M == 1 {
                        // Two chains hide the latency that other activation rows hide otherwise.
                        high[m] = _mm512_dpbusd_epi32(high[m], high_nibbles, second);
                    } else {
                        low[m] = _mm512_dpbusd_epi32(low[m], high_nibbles, second);
                    }
                }
            }
            if M == 1 {
                low[0] = _mm512_add_epi32(low[0], high[0]);
            }
            low.map(Ints)
        }
    }

    /// As for int4, with the offset 128.
    #[inline(always)]
    unsafe fn dots_int8<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        sums: [i32; M],
    ) -> [Ints; M] {
        // SAFETY: the caller's promise on the lengths; `self` proves the CPU's support.
        unsafe {
            let offset = _mm512_set1_epi8(-128);
            let mut even = sums.map(|sum| _mm512_set1_epi32(-128 * sum));
            let mut odd = [_mm512_setzero_si512(); M];
            for quad in 0..QUADS {
                let bytes = _mm512_xor_si512(self.load_bytes(quants.add(64 * quad)), offset);
                for m in 0..M {
                    let a = self.broadcast_quad(activations[m], quad);
                    let dots = if M == 1 && quad % 2 == 1 {
                        &mut odd[m]
                    } else {
                        &mut even[m]
                    };
                    *dots = _mm512_dpbusd_epi32(*dots, bytes, a);
                }
            }
            if M == 1 {
                even[0] = _mm512_add_epi32(even[0], odd[0]);
            }
            even.map(Ints)
        }
    }

    #[inline(always)]
    unsafe fn products<W: Weights>(
        self,
        weights: W,
        groups: &[u8],
        x: &QuantizedRows,
        rows: Range<usize>,
        outputs: &Outputs<'_>,
    ) -> bool {
        // SAFETY: passed on.
        unsafe { tiles::products(self, weights, groups, x, rows, outputs) };
        true
    }
}

impl Add for Floats {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        intrinsics!(Self(_mm512_add_ps(self.0, other.0)))
    }
}

impl Sub for Floats {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        intrinsics!(Self(_mm512_sub_ps(self.0, other.0)))
    }
}

impl Mul for Floats {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        intrinsics!(Self(_mm512_mul_ps(self.0, other.0)))
    }
}

impl Div for Floats {
    type Output = Self;
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        intrinsics!(Self(_mm512_div_ps(self.0, other.0)))
    }
}

impl Floats {
    /// The halves of the 16 lanes.
    #[inline(always)]
    fn halves(self) -> (__m256, __m256) {
        intrinsics!({
            let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0));
            (_mm512_castps512_ps256(self.0), _mm256_castpd_ps(high))
        })
    }
}

impl Lanes for Floats {
    type I = Ints;

    #[inline(always)]
    fn all(self, x: f32) -> Self {
        intrinsics!(Self(_mm512_set1_ps(x)))
    }

    #[inline(always)]
    fn fma(self, factor: Self, summand: Self) -> Self {
        intrinsics!(Self(_mm512_fmadd_ps(self.0, factor.0, summand.0)))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        intrinsics!(Self(_mm512_min_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        intrinsics!(Self(_mm512_max_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        intrinsics!(Self(_mm512_abs_ps(self.0)))
    }

    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        intrinsics!({
            let sign_bit = _mm512_set1_epi32(i32::MIN);
            let magnitude = _mm512_andnot_si512(sign_bit, _mm512_castps_si512(self.0));
            let sign = _mm512_and_si512(sign_bit, _mm512_castps_si512(sign.0));
            Self(_mm512_castsi512_ps(_mm512_or_si512(magnitude, sign)))
        })
    }

    #[inline(always)]
    fn round(self) -> Self {
        intrinsics!(Self(_mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(
            self.0
        )))
    }

    #[inline(always)]
    fn pow2(self) -> Self {
        intrinsics!({
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent)))
        })
    }

    #[inline(always)]
    fn if_less(self, limit: Self, less: Self, otherwise: Self) -> Self {
        intrinsics!({
            let mask = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, limit.0);
            Self(_mm512_mask_blend_ps(mask, otherwise.0, less.0))
        })
    }

    #[inline(always)]
    fn to_int(self) -> Ints {
        intrinsics!(Ints(_mm512_cvtps_epi32(self.0)))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let (low, high) = self.halves();
        intrinsics!(super::avx2::sum_8(_mm256_add_ps(low, high)))
    }

    #[inline(always)]
    fn max_lane(self) -> f32 {
        let (low, high) = self.halves();
        intrinsics!(super::avx2::max_8(_mm256_max_ps(low, high)))
    }

    #[inline(always)]
    fn store(self, out: &mut [f32; 16]) {
        intrinsics!(_mm512_storeu_ps(out.as_mut_ptr(), self.0));
    }

    #[inline(always)]
    fn store_f16(self, out: &mut [u8; 32]) {
        intrinsics!(_mm256_storeu_si256(
            out.as_mut_ptr().cast(),
            _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)
        ));
    }
}

impl IntLanes for Ints {
    type F = Floats;

    #[inline(always)]
    fn sub_scaled(self, other: Self, factor: i32) -> Self {
        intrinsics!({
            let product = _mm512_mullo_epi32(other.0, _mm512_set1_epi32(factor));
            Self(_mm512_sub_epi32(self.0, product))
        })
    }

    #[inline(always)]
    fn to_float(self) -> Floats {
        intrinsics!(Floats(_mm512_cvtepi32_ps(self.0)))
    }

    #[inline(always)]
    fn store_i8(self, out: &mut [i8; 16]) {
        intrinsics!(_mm_storeu_si128(
            out.as_mut_ptr().cast(),
            _mm512_cvtepi32_epi8(self.0)
        ));
    }

    #[inline(always)]
    fn sum(self) -> i32 {
        intrinsics!(_mm512_reduce_add_epi32(self.0))
    }
}
