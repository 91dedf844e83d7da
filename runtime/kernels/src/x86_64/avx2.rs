//! AVX2, FMA and F16C: two registers hold 16 lanes.
#![allow(unsafe_code)]

use crate::codebook::Codebook;
use crate::dispatch::Work;
use crate::lanes::{IntLanes, Lanes, Simd};
use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

/// Proof that the CPU has AVX2, FMA and F16C. Floats and integers come only from it, or from each other,
/// so having one of them is proof, too.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

#[derive(Clone, Copy)]
pub(crate) struct Floats(__m256, __m256);

#[derive(Clone, Copy)]
pub(crate) struct Ints(__m256i, __m256i);

/// Intrinsics on values that prove the CPU's support.
macro_rules! intrinsics {
    ($body:expr) => {
        // SAFETY: `self` proves that the CPU supports these instructions; memory is accessed through
        // references of the accessed size.
        unsafe { $body }
    };
}

/// Whether the CPU has all that these kernels use.
pub(crate) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

/// Runs `work`, compiled for AVX2.
///
/// # Safety
/// [`has_avx2`] must have answered yes.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn run_avx2<W: Work>(work: W) {
    work.run(Avx2(()));
}

/// Sum of 8 lanes by the tree 4, 2, 1.
///
/// # Safety
/// The CPU must support AVX2.
#[inline(always)]
pub(super) unsafe fn sum_8(lanes: __m256) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let four = _mm_add_ps(
            _mm256_castps256_ps128(lanes),
            _mm256_extractf128_ps::<1>(lanes),
        );
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

/// The largest of 8 lanes.
///
/// # Safety
/// The CPU must support AVX2.
#[inline(always)]
pub(super) unsafe fn max_8(lanes: __m256) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let four = _mm_max_ps(
            _mm256_castps256_ps128(lanes),
            _mm256_extractf128_ps::<1>(lanes),
        );
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
    }
}

impl Avx2 {
    /// 32 bytes.
    ///
    /// # Safety
    /// They must be readable.
    #[inline(always)]
    unsafe fn load_bytes(self, bytes: *const u8) -> __m256i {
        // SAFETY: the caller's promise; `self` proves the CPU's support.
        unsafe { _mm256_loadu_si256(bytes.cast()) }
    }

    /// Four activations, in every lane.
    ///
    /// # Safety
    /// `4 * quad + 4` bytes must be readable.
    #[inline(always)]
    unsafe fn broadcast_quad(self, activations: *const i8, quad: usize) -> __m256i {
        // SAFETY: the caller's promise; `self` proves the CPU's support.
        unsafe { _mm256_set1_epi32(activations.cast::<i32>().add(quad).read_unaligned()) }
    }

    /// Adds the products of four columns of 16 signed weights with quad `quad` of each activation block:
    /// magnitudes of the weights times activations with the weights' signs. A pair reaches at most
    /// 2 * 128 * 127 = 32512.
    ///
    /// # Safety
    /// `4 * quad + 4` bytes must be readable at each of `activations`.
    #[inline(always)]
    unsafe fn add_quad<const M: usize>(
        self,
        [first, second]: [__m256i; 2],
        activations: &[*const i8; M],
        quad: usize,
        dots: &mut [Ints; M],
    ) {
        // SAFETY: the caller's promise on the lengths; `self` proves the CPU's support.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let (first_abs, second_abs) = (_mm256_abs_epi8(first), _mm256_abs_epi8(second));
            for m in 0..M {
                let a = self.broadcast_quad(activations[m], quad);
                let a_first = _mm256_sign_epi8(a, first);
                let a_second = _mm256_sign_epi8(a, second);
                let pairs = _mm256_maddubs_epi16(first_abs, a_first);
                dots[m].0 = _mm256_add_epi32(dots[m].0, _mm256_madd_epi16(pairs, ones));
                let pairs = _mm256_maddubs_epi16(second_abs, a_second);
                dots[m].1 = _mm256_add_epi32(dots[m].1, _mm256_madd_epi16(pairs, ones));
            }
        }
    }
}

impl Simd for Avx2 {
    type F = Floats;
    type I = Ints;
    const BATCH: usize = 4;

    #[inline(always)]
    fn prefetch(self, start: *const u8, size_bytes: usize) {
        super::prefetch(start, size_bytes);
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Floats {
        intrinsics!(Floats(_mm256_set1_ps(x), _mm256_set1_ps(x)))
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Floats {
        intrinsics!(Floats(
            _mm256_loadu_ps(x.as_ptr()),
            _mm256_loadu_ps(x.as_ptr().add(8))
        ))
    }

    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 64]) -> Floats {
        let x = bytes.as_ptr().cast::<f32>();
        intrinsics!(Floats(_mm256_loadu_ps(x), _mm256_loadu_ps(x.add(8))))
    }

    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 32]) -> Floats {
        let x = bytes.as_ptr().cast::<__m128i>();
        intrinsics!(Floats(
            _mm256_cvtph_ps(_mm_loadu_si128(x)),
            _mm256_cvtph_ps(_mm_loadu_si128(x.add(1)))
        ))
    }

    #[inline(always)]
    fn load_i8(self, bytes: &[u8; 16]) -> Ints {
        intrinsics!({
            let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
            Ints(
                _mm256_cvtepi8_epi32(bytes),
                _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)),
            )
        })
    }

    /// `vpmaddubsw` multiplies unsigned by signed bytes and adds pairs in 16 bits. The eight pairs of a
    /// block reach at most 8 * 2 * 15 * 127 = 30480, so they are added in 16 bits, too.
    #[inline(always)]
    unsafe fn dots_int4<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        sums: [i32; M],
    ) -> [Ints; M] {
        // SAFETY: the caller's promise on the lengths; `self` proves the CPU's support.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            let zero = _mm256_setzero_si256();
            let mut pairs = [(zero, zero); M];
            for chunk in 0..QUADS / 2 {
                let first = self.load_bytes(quants.add(64 * chunk));
                let second = self.load_bytes(quants.add(64 * chunk + 32));
                for (half, shifted) in [(0, false), (1, true)] {
                    let nibbles = |bytes| {
                        let bytes = if shifted {
                            _mm256_srli_epi16::<4>(bytes)
                        } else {
                            bytes
                        };
                        _mm256_and_si256(bytes, mask)
                    };
                    let (first, second) = (nibbles(first), nibbles(second));
                    for m in 0..M {
                        let a = self.broadcast_quad(activations[m], 2 * chunk + half);
                        let (first, second) = (
                            _mm256_maddubs_epi16(first, a),
                            _mm256_maddubs_epi16(second, a),
                        );
                        pairs[m].0 = _mm256_add_epi16(pairs[m].0, first);
                        pairs[m].1 = _mm256_add_epi16(pairs[m].1, second);
                    }
                }
            }
            let ones = _mm256_set1_epi16(1);
            std::array::from_fn(|m| {
                let offset = _mm256_set1_epi32(-8 * sums[m]);
                Ints(
                    _mm256_add_epi32(_mm256_madd_epi16(pairs[m].0, ones), offset),
                    _mm256_add_epi32(_mm256_madd_epi16(pairs[m].1, ones), offset),
                )
            })
        }
    }

    #[inline(always)]
    unsafe fn dots_int8<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        _sums: [i32; M],
    ) -> [Ints; M] {
        // SAFETY: the caller's promise on the lengths; `self` proves the CPU's support.
        unsafe {
            let zero = _mm256_setzero_si256();
            let mut dots = [Ints(zero, zero); M];
            for quad in 0..QUADS {
                let first = self.load_bytes(quants.add(64 * quad));
                let second = self.load_bytes(quants.add(64 * quad + 32));
                self.add_quad([first, second], &activations, quad, &mut dots);
            }
            dots
        }
    }

    /// `vpshufb` looks the codes up.
    #[inline(always)]
    unsafe fn dots_codebook4<const M: usize>(
        self,
        codebook: Codebook,
        quants: *const u8,
        activations: [*const i8; M],
        _sums: [i32; M],
    ) -> [Ints; M] {
        // SAFETY: the caller's promise on the lengths, and a codebook is 16 bytes; `self` proves the CPU's support.
        unsafe {
            let codebook = _mm_loadu_si128(codebook.values().as_ptr().cast());
            let codebook = _mm256_broadcastsi128_si256(codebook);
            let mask = _mm256_set1_epi8(15);
            let look_up = |codes| _mm256_shuffle_epi8(codebook, _mm256_and_si256(codes, mask));
            let zero = _mm256_setzero_si256();
            let mut dots = [Ints(zero, zero); M];
            for chunk in 0..4 {
                let first = self.load_bytes(quants.add(64 * chunk));
                let second = self.load_bytes(quants.add(64 * chunk + 32));
                let low = [look_up(first), look_up(second)];
                self.add_quad(low, &activations, 2 * chunk, &mut dots);
                let first = look_up(_mm256_srli_epi16::<4>(first));
                let second = look_up(_mm256_srli_epi16::<4>(second));
                self.add_quad([first, second], &activations, 2 * chunk + 1, &mut dots);
            }
            dots
        }
    }
}

impl Add for Floats {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        intrinsics!(Self(
            _mm256_add_ps(self.0, other.0),
            _mm256_add_ps(self.1, other.1)
        ))
    }
}

impl Sub for Floats {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        intrinsics!(Self(
            _mm256_sub_ps(self.0, other.0),
            _mm256_sub_ps(self.1, other.1)
        ))
    }
}

impl Mul for Floats {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        intrinsics!(Self(
            _mm256_mul_ps(self.0, other.0),
            _mm256_mul_ps(self.1, other.1)
        ))
    }
}

impl Div for Floats {
    type Output = Self;
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        intrinsics!(Self(
            _mm256_div_ps(self.0, other.0),
            _mm256_div_ps(self.1, other.1)
        ))
    }
}

impl Lanes for Floats {
    type I = Ints;

    #[inline(always)]
    fn all(self, x: f32) -> Self {
        intrinsics!(Self(_mm256_set1_ps(x), _mm256_set1_ps(x)))
    }

    #[inline(always)]
    fn fma(self, factor: Self, summand: Self) -> Self {
        intrinsics!(Self(
            _mm256_fmadd_ps(self.0, factor.0, summand.0),
            _mm256_fmadd_ps(self.1, factor.1, summand.1)
        ))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        intrinsics!(Self(
            _mm256_min_ps(self.0, other.0),
            _mm256_min_ps(self.1, other.1)
        ))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        intrinsics!(Self(
            _mm256_max_ps(self.0, other.0),
            _mm256_max_ps(self.1, other.1)
        ))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        intrinsics!({
            let sign = _mm256_set1_ps(-0.0);
            Self(
                _mm256_andnot_ps(sign, self.0),
                _mm256_andnot_ps(sign, self.1),
            )
        })
    }

    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        intrinsics!({
            let bit = _mm256_set1_ps(-0.0);
            let copy = |magnitude, sign| {
                _mm256_or_ps(_mm256_andnot_ps(bit, magnitude), _mm256_and_ps(bit, sign))
            };
            Self(copy(self.0, sign.0), copy(self.1, sign.1))
        })
    }

    #[inline(always)]
    fn round(self) -> Self {
        const MODE: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        intrinsics!(Self(
            _mm256_round_ps::<MODE>(self.0),
            _mm256_round_ps::<MODE>(self.1)
        ))
    }

    #[inline(always)]
    fn pow2(self) -> Self {
        intrinsics!({
            let power = |x| {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
            };
            Self(power(self.0), power(self.1))
        })
    }

    #[inline(always)]
    fn if_less(self, limit: Self, less: Self, otherwise: Self) -> Self {
        intrinsics!({
            let first = _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, limit.0);
            let second = _mm256_cmp_ps::<_CMP_LT_OQ>(self.1, limit.1);
            Self(
                _mm256_blendv_ps(otherwise.0, less.0, first),
                _mm256_blendv_ps(otherwise.1, less.1, second),
            )
        })
    }

    #[inline(always)]
    fn to_int(self) -> Ints {
        intrinsics!(Ints(_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1)))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        intrinsics!(sum_8(_mm256_add_ps(self.0, self.1)))
    }

    #[inline(always)]
    fn max_lane(self) -> f32 {
        intrinsics!(max_8(_mm256_max_ps(self.0, self.1)))
    }

    #[inline(always)]
    fn store(self, out: &mut [f32; 16]) {
        intrinsics!({
            _mm256_storeu_ps(out.as_mut_ptr(), self.0);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), self.1);
        });
    }

    #[inline(always)]
    fn store_f16(self, out: &mut [u8; 32]) {
        intrinsics!({
            let out = out.as_mut_ptr().cast::<__m128i>();
            _mm_storeu_si128(out, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
            _mm_storeu_si128(
                out.add(1),
                _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1),
            );
        });
    }
}

impl IntLanes for Ints {
    type F = Floats;

    #[inline(always)]
    fn sub_scaled(self, other: Self, factor: i32) -> Self {
        intrinsics!({
            let factor = _mm256_set1_epi32(factor);
            Self(
                _mm256_sub_epi32(self.0, _mm256_mullo_epi32(other.0, factor)),
                _mm256_sub_epi32(self.1, _mm256_mullo_epi32(other.1, factor)),
            )
        })
    }

    #[inline(always)]
    fn to_float(self) -> Floats {
        intrinsics!(Floats(
            _mm256_cvtepi32_ps(self.0),
            _mm256_cvtepi32_ps(self.1)
        ))
    }

    #[inline(always)]
    fn store_i8(self, out: &mut [i8; 16]) {
        intrinsics!({
            let words =
                |x| _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            let bytes = _mm_packs_epi16(words(self.0), words(self.1));
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        });
    }

    #[inline(always)]
    fn sum(self) -> i32 {
        intrinsics!({
            let eight = _mm256_add_epi32(self.0, self.1);
            let low = _mm256_castsi256_si128(eight);
            let four = _mm_add_epi32(low, _mm256_extracti128_si256::<1>(eight));
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b1110>(four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
        })
    }
}
