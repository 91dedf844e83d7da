//! Vectors of 16 numbers: what an instruction set must offer.
//!
//! Every float kernel is written once, generically, over these traits, so it computes the same bits on
//! each instruction set by construction. [`scalar`](crate::scalar) is the readable implementation.

use std::ops::{Add, Div, Mul, Sub};

/// An instruction set, as a value: having one proves that the CPU supports it.
pub(crate) trait Simd: Copy + Send + Sync {
    /// 16 floats.
    type F: Lanes;
    /// 16 integers.
    type I: IntLanes<F = Self::F>;

    /// `x` in each lane.
    fn splat(self, x: f32) -> Self::F;
    /// 16 floats from memory.
    fn load(self, x: &[f32; 16]) -> Self::F;
    /// 16 little-endian binary32 numbers from bytes.
    fn load_f32(self, bytes: &[u8; 64]) -> Self::F;
    /// 16 little-endian binary16 numbers from bytes.
    fn load_f16(self, bytes: &[u8; 32]) -> Self::F;
    /// 16 signed bytes.
    fn load_i8(self, bytes: &[u8; 16]) -> Self::I;

    /// Exact dot products of the 16 rows of an int4 tile (offset-coded: stored value - 8) with each of
    /// `M` activation blocks of `4 * QUADS` bytes whose sums are `sums`.
    fn dots_int4<const M: usize, const QUADS: usize>(
        self,
        quants: &[u8],
        activations: [&[i8]; M],
        sums: [i32; M],
    ) -> [Self::I; M];

    /// The same for an int8 tile.
    fn dots_int8<const M: usize, const QUADS: usize>(
        self,
        quants: &[u8],
        activations: [&[i8]; M],
        sums: [i32; M],
    ) -> [Self::I; M];
}

/// 16 floats. Every operation is the IEEE one, rounded to nearest even, lane by lane.
pub(crate) trait Lanes:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// 16 integers.
    type I: IntLanes<F = Self>;

    /// `x` in each lane.
    fn all(self, x: f32) -> Self;
    /// `self * factor + summand`, rounded once.
    fn fma(self, factor: Self, summand: Self) -> Self;
    /// `self < other ? self : other`.
    fn min(self, other: Self) -> Self;
    /// `self > other ? self : other`.
    fn max(self, other: Self) -> Self;
    /// Magnitude.
    fn abs(self) -> Self;
    /// The magnitude of `self` with the sign of `sign`.
    fn copysign(self, sign: Self) -> Self;
    /// To the nearest integer, ties to even.
    fn round(self) -> Self;
    /// `2^self` for integral values in -126..=127.
    fn pow2(self) -> Self;
    /// `self < limit ? less : otherwise`.
    fn if_less(self, limit: Self, less: Self, otherwise: Self) -> Self;
    /// To the nearest integer, ties to even; the value must fit into i8.
    fn to_int(self) -> Self::I;
    /// Sum of the lanes by the fixed tree: lane `i` plus lane `i + 8`, then 4, 2, 1.
    fn sum(self) -> f32;
    /// The largest lane.
    fn max_lane(self) -> f32;
    /// Writes the lanes to memory.
    fn store(self, out: &mut [f32; 16]);
}

/// 16 integers of 32 bits. Arithmetic is exact for the values that kernels meet.
pub(crate) trait IntLanes: Copy {
    /// 16 floats.
    type F;

    /// `self - other * factor`.
    fn sub_scaled(self, other: Self, factor: i32) -> Self;
    /// To floats; exact below 2^24, rounded to nearest even above.
    fn to_float(self) -> Self::F;
    /// Writes the lanes, which fit into i8.
    fn store_i8(self, out: &mut [i8; 16]);
    /// Sum of the lanes.
    fn sum(self) -> i32;
}

/// Up to 16 floats; the lanes after them are `fill`.
#[inline(always)]
pub(crate) fn load_part<S: Simd>(simd: S, x: &[f32], fill: f32) -> S::F {
    let mut lanes = [fill; 16];
    lanes[..x.len()].copy_from_slice(x);
    simd.load(&lanes)
}

/// Writes the first lanes, as many as `out` has room for.
#[inline(always)]
pub(crate) fn store_part<V: Lanes>(v: V, out: &mut [f32]) {
    let mut lanes = [0.0; 16];
    v.store(&mut lanes);
    out.copy_from_slice(&lanes[..out.len()]);
}

/// `out[i] = f(x[i])`.
#[inline(always)]
pub(crate) fn map<S: Simd>(simd: S, x: &[f32], out: &mut [f32], f: impl Fn(S::F) -> S::F) {
    let (x, x_rest) = x.as_chunks::<16>();
    let (out, out_rest) = out.as_chunks_mut::<16>();
    for (x, out) in x.iter().zip(out) {
        f(simd.load(x)).store(out);
    }
    if !x_rest.is_empty() {
        store_part(f(load_part(simd, x_rest, 0.0)), out_rest);
    }
}

/// `out[i] = f(a[i], b[i])`.
#[inline(always)]
pub(crate) fn map2<S: Simd>(
    simd: S,
    a: &[f32],
    b: &[f32],
    out: &mut [f32],
    f: impl Fn(S::F, S::F) -> S::F,
) {
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    let (out, out_rest) = out.as_chunks_mut::<16>();
    for ((a, b), out) in a.iter().zip(b).zip(out) {
        f(simd.load(a), simd.load(b)).store(out);
    }
    if !a_rest.is_empty() {
        let (a, b) = (load_part(simd, a_rest, 0.0), load_part(simd, b_rest, 0.0));
        store_part(f(a, b), out_rest);
    }
}

/// Folds `x` into 16 lanes, element `i` into lane `i mod 16`; missing elements count as `fill`.
#[inline(always)]
pub(crate) fn fold<S: Simd>(
    simd: S,
    x: &[f32],
    fill: f32,
    start: S::F,
    f: impl Fn(S::F, S::F) -> S::F,
) -> S::F {
    let (x, rest) = x.as_chunks::<16>();
    let mut lanes = start;
    for x in x {
        lanes = f(lanes, simd.load(x));
    }
    if !rest.is_empty() {
        lanes = f(lanes, load_part(simd, rest, fill));
    }
    lanes
}
