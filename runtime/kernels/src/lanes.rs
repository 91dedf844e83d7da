//! Vectors of 16 numbers: what an instruction set must offer.
//!
//! Every float kernel is written once, generically, over these traits, so it computes the same bits on
//! each instruction set by construction. [`scalar`](crate::scalar) is the readable implementation.

use crate::codebook::Codebook;
use crate::matmul::Outputs;
use crate::quantized::QuantizedRows;
use crate::weights::Weights;
use std::ops::{Add, Div, Mul, Range, Sub};

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

    /// Asks for the cache lines of bytes that are needed soon, which may lie anywhere. Where the hardware sees that by
    /// itself, it does nothing.
    #[inline(always)]
    fn prefetch(self, _start: *const u8, _size_bytes: usize) {}

    /// Whether fma takes a factor from a lane, so that [`add_four_columns`](Self::add_four_columns) saves
    /// spreading each activation over a register.
    const MULTIPLIES_BY_LANE: bool = false;

    /// Adds the products of four columns of 16 weights (binary16 or binary32, one column after the other) and four
    /// activations of each of `M` rows to `sums`, in ascending columns.
    #[inline(always)]
    fn add_four_columns<const F16: bool, const M: usize>(
        self,
        columns: &[u8],
        x: [&[f32; 4]; M],
        sums: &mut [Self::F; M],
    ) {
        for k in 0..4 {
            let weights = if F16 {
                self.load_f16(&columns.as_chunks::<32>().0[k])
            } else {
                self.load_f32(&columns.as_chunks::<64>().0[k])
            };
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = weights.fma(self.splat(x[k]), *sum);
            }
        }
    }

    /// Activation rows that a product of integers handles at once, 2, 4 or 8: as many as the registers
    /// hold.
    const BATCH: usize;

    /// Whether [`batch`](Self::batch) reads activations in fours of rows: quantization then also interleaves.
    const INTERLEAVED: bool = false;

    /// Exact dot products of the 16 rows of an int4 tile (stored as `q + 8`) with each of `M` activation
    /// blocks, whose sums are `sums` and whose elements are -127 to 127.
    ///
    /// # Safety
    /// `32 * QUADS` bytes must be readable at `quants` and `4 * QUADS` at each of `activations`.
    #[allow(unsafe_code)]
    unsafe fn dots_int4<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        sums: [i32; M],
    ) -> [Self::I; M];

    /// The same for an int8 tile.
    ///
    /// # Safety
    /// `64 * QUADS` bytes must be readable at `quants` and `4 * QUADS` at each of `activations`.
    #[allow(unsafe_code)]
    unsafe fn dots_int8<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        sums: [i32; M],
    ) -> [Self::I; M];

    /// The same for a tile of codes of four bits: the values that they stand for, multiplied as int8 weights are.
    ///
    /// # Safety
    /// 256 bytes must be readable at `quants` and 32 at each of `activations`.
    #[allow(unsafe_code)]
    #[inline(always)]
    unsafe fn dots_codebook4<const M: usize>(
        self,
        codebook: Codebook,
        quants: *const u8,
        activations: [*const i8; M],
        sums: [i32; M],
    ) -> [Self::I; M] {
        // SAFETY: the caller's promise.
        let chunks = unsafe { &*quants.cast::<[[u8; 64]; 4]>() };
        // The lower halves of a chunk's bytes are one of int8, the upper halves the next.
        let mut values = [[[0; 64]; 2]; 4];
        for (values, codes) in values.iter_mut().zip(chunks) {
            for (i, byte) in codes.iter().enumerate() {
                [values[0][i], values[1][i]] = codebook.look_up(*byte);
            }
        }
        // SAFETY: 512 bytes are there; the activations are the caller's promise.
        unsafe { self.dots_int8::<M, 8>(values.as_ptr().cast(), activations, sums) }
    }

    /// Outputs of the 16 rows `group` of a matrix in the [usual format](Weights::FORMAT) for the first rows of
    /// `x`, as many as there is a faster way for than the dot products. Hands each to `finish` and returns
    /// their number.
    #[inline(always)]
    fn batch<W: Weights>(
        self,
        _weights: W,
        _group: &[u8],
        _x: &QuantizedRows,
        _finish: impl FnMut(usize, Self::F),
    ) -> usize {
        0
    }

    /// Computes `outputs`, consecutive groups of a matrix in the [usual format](Weights::FORMAT) for the rows
    /// `rows` of `x`, if there is a faster way than one group after the other. Returns whether it did.
    ///
    /// # Safety
    /// `groups` must be the groups of `outputs`, of a matrix in that format with the columns of `x`. No other
    /// thread may access the outputs.
    #[allow(unsafe_code)]
    #[inline(always)]
    unsafe fn products<W: Weights>(
        self,
        _weights: W,
        _groups: &[u8],
        _x: &QuantizedRows,
        _rows: Range<usize>,
        _outputs: &Outputs<'_>,
    ) -> bool {
        false
    }
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
    /// `self < other ? self : other`; of two zeros, whose signs differ, either.
    fn min(self, other: Self) -> Self;
    /// `self > other ? self : other`; of two zeros, whose signs differ, the positive one or `other`.
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
    /// The largest lane; of zeros, either.
    fn max_lane(self) -> f32;
    /// Writes the lanes to memory.
    fn store(self, out: &mut [f32; 16]);
    /// Writes the lanes as little-endian binary16 numbers, rounded to nearest, ties to even.
    fn store_f16(self, out: &mut [u8; 32]);
}

/// 16 integers of 32 bits. Arithmetic is exact for the values that kernels meet.
pub(crate) trait IntLanes: Copy {
    /// 16 floats.
    type F;

    /// `self - other * factor`.
    fn sub_scaled(self, other: Self, factor: i32) -> Self;
    /// To floats, exactly: dot products of a block are below 2^24.
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

/// 16 floats from column `start` of `x` on; the lanes after its end are `fill`.
#[inline(always)]
pub(crate) fn load_at<S: Simd>(simd: S, x: &[f32], start: usize, fill: f32) -> S::F {
    let rest = x.get(start..).unwrap_or_default();
    match rest.first_chunk() {
        Some(full) => simd.load(full),
        None => load_part(simd, rest, fill),
    }
}

/// Writes the first lanes, as many as `out` has room for.
#[inline(always)]
pub(crate) fn store_part<V: Lanes>(v: V, out: &mut [f32]) {
    let mut lanes = [0.0; 16];
    v.store(&mut lanes);
    out.copy_from_slice(&lanes[..out.len()]);
}

/// `out[i] = body` for `x = x[i]`, 16 at a time.
///
/// A macro, as are the next ones, because a closure of some size would not be inlined, and then not be
/// compiled for the instruction set.
macro_rules! map {
    ($simd:expr, $out:expr, |$x:ident| $body:expr) => {{
        let (chunks, rest) = $x.as_chunks::<16>();
        let (out_chunks, out_rest) = $out.as_chunks_mut::<16>();
        for (x, out) in chunks.iter().zip(out_chunks) {
            let $x = $simd.load(x);
            $body.store(out);
        }
        if !rest.is_empty() {
            let $x = $crate::lanes::load_part($simd, rest, 0.0);
            $crate::lanes::store_part($body, out_rest);
        }
    }};
}

/// `out[i] = body` for `a = a[i]` and `b = b[i]`, 16 at a time.
macro_rules! map2 {
    ($simd:expr, $out:expr, |$a:ident, $b:ident| $body:expr) => {{
        let (a_chunks, a_rest) = $a.as_chunks::<16>();
        let (b_chunks, b_rest) = $b.as_chunks::<16>();
        let (out_chunks, out_rest) = $out.as_chunks_mut::<16>();
        for ((a, b), out) in a_chunks.iter().zip(b_chunks).zip(out_chunks) {
            let ($a, $b) = ($simd.load(a), $simd.load(b));
            $body.store(out);
        }
        if !a_rest.is_empty() {
            let $a = $crate::lanes::load_part($simd, a_rest, 0.0);
            let $b = $crate::lanes::load_part($simd, b_rest, 0.0);
            $crate::lanes::store_part($body, out_rest);
        }
    }};
}

/// `out[i] = body` for `value = out[i]` and `x = x[i]`, 16 at a time.
macro_rules! update {
    ($simd:expr, $out:expr, |$value:ident, $x:ident| $body:expr) => {{
        let (chunks, rest) = $x.as_chunks::<16>();
        let (out_chunks, out_rest) = $out.as_chunks_mut::<16>();
        for (x, out) in chunks.iter().zip(out_chunks) {
            let ($value, $x) = ($simd.load(out), $simd.load(x));
            $body.store(out);
        }
        if !rest.is_empty() {
            let $value = $crate::lanes::load_part($simd, out_rest, 0.0);
            let $x = $crate::lanes::load_part($simd, rest, 0.0);
            $crate::lanes::store_part($body, out_rest);
        }
    }};
}

/// Sum of `body` over `x = x[i]`, where `body` adds to the lanes `sum`: element `i` counts into lane
/// `i mod 16`, elements missing at the end are `fill`, then the lanes are summed by the tree.
macro_rules! sum {
    ($simd:expr, $fill:expr, |$sum:ident, $x:ident| $body:expr) => {{
        let (chunks, rest) = $x.as_chunks::<16>();
        let mut lanes = $simd.splat(0.0);
        for x in chunks {
            let ($sum, $x) = (lanes, $simd.load(x));
            lanes = $body;
        }
        if !rest.is_empty() {
            let ($sum, $x) = (lanes, $crate::lanes::load_part($simd, rest, $fill));
            lanes = $body;
        }
        lanes.sum()
    }};
}

pub(crate) use {map, map2, sum, update};
