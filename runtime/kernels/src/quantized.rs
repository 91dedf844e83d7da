//! Activations as 8-bit integers.

use crate::format::{ACTIVATION_BLOCK, MAX_REFINED};
use crate::lanes::{IntLanes, Lanes, Simd};
use std::marker::PhantomData;
use std::ops::Range;
use std::slice::from_raw_parts_mut;

/// Rows of activations, quantized in blocks of 32 columns: a reusable buffer.
///
/// The last block of a row is padded with zeros. The first blocks, if they are whole, can be *refined*: what their integers leave
/// over is quantized again, by a scale 254 times as small. These second terms lie before all blocks of the row, and
/// products add them up first.
#[derive(Clone, Debug, Default)]
pub struct QuantizedRows {
    rows: usize,
    width: usize,
    /// Blocks of a row, without second terms.
    blocks: usize,
    /// How many of them have a second term.
    refined: usize,
    values: Vec<i8>,
    scales: Vec<f32>,
    /// Sum of the integers of each block of 32.
    sums: Vec<i32>,
    /// Sum of the integers of each half block of 16.
    half_sums: Vec<i32>,
    /// For instruction sets that read several rows at once.
    interleaved: Vec<ActivationTile>,
}

/// One block of four rows, interleaved: kernels that multiply several rows at once read it front to back.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct ActivationTile {
    /// `[octet of columns][row]`
    pub(crate) values: [[[i8; 8]; 4]; 4],
    /// `[pair of rows]`: those of (row 0, row 1, row 0, row 1), which is what products of pairs are multiplied by.
    pub(crate) scales: [[f32; 4]; 2],
}

impl ActivationTile {
    /// Rows in a tile.
    pub(crate) const ROWS: usize = 4;
}

impl QuantizedRows {
    /// Bytes that a block of [`ACTIVATION_BLOCK`] activations takes at most: the integers, a scale, a sum and
    /// two half sums, and on some instruction sets what is interleaved.
    pub const BLOCK_BYTES: usize = ACTIVATION_BLOCK
        + 4
        + 3 * 4
        + if cfg!(target_arch = "aarch64") {
            size_of::<ActivationTile>() / ActivationTile::ROWS
        } else {
            0
        };

    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for `rows x width` activations, whose first `refined` blocks have second terms.
    pub(crate) fn resize(&mut self, rows: usize, width: usize, refined: usize) {
        let blocks = width.div_ceil(ACTIVATION_BLOCK);
        assert!(
            refined <= MAX_REFINED && refined * ACTIVATION_BLOCK <= width,
            "{refined} refined blocks of {width} columns"
        );
        (self.rows, self.width) = (rows, width);
        (self.blocks, self.refined) = (blocks, refined);
        let terms = rows * self.terms();
        self.values.resize(terms * ACTIVATION_BLOCK, 0);
        self.scales.resize(terms, 0.0);
        self.sums.resize(terms, 0);
        self.half_sums.resize(terms * 2, 0);
        self.interleaved.clear();
    }

    /// Blocks of a row, second terms included.
    #[inline(always)]
    fn terms(&self) -> usize {
        self.refined + self.blocks
    }

    /// Blocks of a row that have a second term: the first ones.
    #[inline(always)]
    pub fn refined(&self) -> usize {
        self.refined
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of a row, without padding.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Heap memory that the buffer holds.
    pub fn capacity_bytes(&self) -> usize {
        self.values.capacity()
            + 4 * (self.scales.capacity() + self.sums.capacity() + self.half_sums.capacity())
            + size_of::<ActivationTile>() * self.interleaved.capacity()
    }

    /// Integers of a row, 32 per block: second terms, then blocks.
    #[inline(always)]
    pub fn values(&self, row: usize) -> &[i8] {
        let len = self.terms() * ACTIVATION_BLOCK;
        &self.values[row * len..][..len]
    }

    /// Scales of a row, one per block: of second terms, then of blocks.
    #[inline(always)]
    pub fn scales(&self, row: usize) -> &[f32] {
        &self.scales[row * self.terms()..][..self.terms()]
    }

    /// Whether [`interleave`](Self::interleave) was called for these rows: another instruction set's
    /// quantization does not.
    #[inline(always)]
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn is_interleaved(&self) -> bool {
        !self.interleaved.is_empty()
    }

    /// The rows `rows` in fours, from the first of a four to the last of one, block by block.
    #[inline(always)]
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn interleaved(&self, rows: std::ops::Range<usize>) -> &[ActivationTile] {
        let per_four = self.terms();
        let fours = rows.start / ActivationTile::ROWS..rows.end / ActivationTile::ROWS;
        &self.interleaved[fours.start * per_four..fours.end * per_four]
    }

    /// Copies all whole fours of rows into the order of [`ActivationTile`].
    pub(crate) fn interleave(&mut self) {
        let fours = self.rows / ActivationTile::ROWS;
        let mut tiles = std::mem::take(&mut self.interleaved);
        tiles.resize(fours * self.terms(), ActivationTile::default());
        for (four, tiles) in tiles.chunks_mut(self.terms().max(1)).enumerate() {
            for m in 0..ActivationTile::ROWS {
                let row = four * ActivationTile::ROWS + m;
                let blocks = self.values(row).as_chunks::<8>().0.as_chunks::<4>().0;
                for ((tile, octets), scale) in tiles.iter_mut().zip(blocks).zip(self.scales(row)) {
                    for (rows, octet) in tile.values.iter_mut().zip(octets) {
                        rows[m] = *octet;
                    }
                    let scales = &mut tile.scales[m / 2];
                    (scales[m % 2], scales[m % 2 + 2]) = (*scale, *scale);
                }
            }
        }
        self.interleaved = tiles;
    }

    /// Integers and scales of rows that follow each other, without a gap between them.
    #[inline(always)]
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn consecutive(&self, rows: std::ops::Range<usize>) -> (&[i8], &[f32]) {
        let blocks = rows.start * self.terms()..rows.end * self.terms();
        let values = blocks.start * ACTIVATION_BLOCK..blocks.end * ACTIVATION_BLOCK;
        (&self.values[values], &self.scales[blocks])
    }

    #[inline(always)]
    pub(crate) fn sums(&self, row: usize) -> &[i32] {
        &self.sums[row * self.terms()..][..self.terms()]
    }

    #[inline(always)]
    pub(crate) fn half_sums(&self, row: usize) -> &[i32] {
        &self.half_sums[row * self.terms() * 2..][..self.terms() * 2]
    }

    /// One row, for writing.
    #[allow(unsafe_code)]
    pub(crate) fn row_mut(&mut self, row: usize) -> QuantizedRow<'_> {
        let blocks = 0..self.blocks;
        // SAFETY: the result borrows all rows, so it is alone.
        unsafe { self.shared().row(row, blocks) }
    }

    /// A handle through which several threads write disjoint parts.
    pub(crate) fn shared(&mut self) -> SharedQuantizedRows<'_> {
        SharedQuantizedRows {
            rows: self.rows,
            blocks: self.blocks,
            refined: self.refined,
            values: self.values.as_mut_ptr().cast(),
            scales: self.scales.as_mut_ptr(),
            sums: self.sums.as_mut_ptr(),
            half_sums: self.half_sums.as_mut_ptr().cast(),
            borrow: PhantomData,
        }
    }
}

/// Rows of a [`QuantizedRows`] that several threads write at once, each its own blocks.
#[derive(Clone, Copy)]
pub(crate) struct SharedQuantizedRows<'a> {
    rows: usize,
    blocks: usize,
    refined: usize,
    values: *mut BlockValues,
    scales: *mut f32,
    sums: *mut i32,
    half_sums: *mut [i32; 2],
    borrow: PhantomData<&'a mut QuantizedRows>,
}

/// Integers of a block.
type BlockValues = [[i8; 16]; 2];

// SAFETY: the pointers are only used by `row`, whose callers write disjoint parts of memory that is
// exclusively borrowed for `'a`; numbers are Send.
#[allow(unsafe_code)]
unsafe impl Send for SharedQuantizedRows<'_> {}
// SAFETY: as for Send.
#[allow(unsafe_code)]
unsafe impl Sync for SharedQuantizedRows<'_> {}

impl<'a> SharedQuantizedRows<'a> {
    /// Blocks `blocks` of row `row`, for writing.
    ///
    /// # Safety
    /// No block may be in two results that are alive at the same time.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn row(&self, row: usize, blocks: Range<usize>) -> QuantizedRow<'a> {
        assert!(row < self.rows && blocks.start <= blocks.end && blocks.end <= self.blocks);
        let first = row * (self.refined + self.blocks);
        let refined = blocks.start.min(self.refined)..blocks.end.min(self.refined);
        // SAFETY: `resize` made room for that many terms of each row in each buffer, the line above says that these
        // are among them; exclusiveness is the caller's promise: a second term belongs to its block.
        unsafe {
            QuantizedRow {
                refinements: self.terms(first + refined.start, refined.len()),
                blocks: self.terms(first + self.refined + blocks.start, blocks.len()),
            }
        }
    }

    /// The `len` terms from `start` on, of all there are.
    ///
    /// # Safety
    /// They must be there, and in no other result that is alive.
    #[allow(unsafe_code)]
    #[inline(always)]
    unsafe fn terms(&self, start: usize, len: usize) -> Terms<'a> {
        // SAFETY: the caller's promise; arrays of numbers are laid out like the numbers.
        unsafe {
            Terms {
                values: from_raw_parts_mut(self.values.add(start), len),
                scales: from_raw_parts_mut(self.scales.add(start), len),
                sums: from_raw_parts_mut(self.sums.add(start), len),
                half_sums: from_raw_parts_mut(self.half_sums.add(start), len),
            }
        }
    }
}

/// Blocks of one row of a [`QuantizedRows`], for writing.
pub(crate) struct QuantizedRow<'a> {
    blocks: Terms<'a>,
    /// The second terms of the first of these blocks.
    refinements: Terms<'a>,
}

/// Terms that follow each other.
struct Terms<'a> {
    values: &'a mut [BlockValues],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
    half_sums: &'a mut [[i32; 2]],
}

/// 32 integers and their scale, for writing.
struct Term<'a> {
    values: &'a mut BlockValues,
    scale: &'a mut f32,
    sum: &'a mut i32,
    half_sums: &'a mut [i32; 2],
}

impl<'a> Terms<'a> {
    #[inline(always)]
    fn each(self) -> impl Iterator<Item = Term<'a>> {
        let integers = self.values.iter_mut().zip(self.scales);
        let sums = self.sums.iter_mut().zip(self.half_sums);
        integers
            .zip(sums)
            .map(|((values, scale), (sum, half_sums))| Term {
                values,
                scale,
                sum,
                half_sums,
            })
    }
}

impl Term<'_> {
    #[inline(always)]
    fn set<I: IntLanes>(self, scale: f32, first: I, second: I) {
        first.store_i8(&mut self.values[0]);
        second.store_i8(&mut self.values[1]);
        *self.half_sums = [first.sum(), second.sum()];
        *self.sum = self.half_sums[0] + self.half_sums[1];
        *self.scale = scale;
    }
}

/// One block of 32 columns, for writing.
pub(crate) struct QuantizedBlock<'a> {
    term: Term<'a>,
    refinement: Option<Term<'a>>,
}

impl<'a> QuantizedRow<'a> {
    /// The blocks in ascending columns.
    #[inline(always)]
    pub(crate) fn blocks(self) -> impl Iterator<Item = QuantizedBlock<'a>> {
        let mut refinements = self.refinements.each();
        self.blocks.each().map(move |term| QuantizedBlock {
            term,
            refinement: refinements.next(),
        })
    }
}

impl QuantizedBlock<'_> {
    /// Quantizes 32 columns: `d = amax / 127`, `q = round(x * (1 / d))`. A second term is what is left,
    /// `r = x - d * q`, rounded once, in steps of `e = d / 254`: `round(r * (1 / e))`.
    ///
    /// Integers whose `d` or `e` is below the smallest normal number become zero, with that scale 0.
    #[inline(always)]
    pub(crate) fn set<S: Simd>(self, simd: S, first: S::F, second: S::F) {
        let (d, inverse) = scale_of(first.abs().max(second.abs()).max_lane());
        let inverse = simd.splat(inverse);
        let integers = [(first * inverse).to_int(), (second * inverse).to_int()];
        if let Some(refinement) = self.refinement {
            // What is left is at most half a step, and what rounding of `inverse` and the product add to it is far
            // from another half of the smaller step: the integers are at most 127.
            let (e, inverse) = scale_and_inverse(d / 254.0);
            let (d, inverse) = (simd.splat(-d), simd.splat(inverse));
            let left = |x: S::F, q: <S::F as Lanes>::I| (q.to_float().fma(d, x) * inverse).to_int();
            let [p, q] = integers;
            refinement.set(e, left(first, p), left(second, q));
        }
        let [first, second] = integers;
        self.term.set(d, first, second);
    }
}

/// The scale of numbers whose largest magnitude is `largest`, and its inverse; both 0 for a scale below the
/// smallest normal number.
#[inline(always)]
pub(crate) fn scale_of(largest: f32) -> (f32, f32) {
    scale_and_inverse(largest / 127.0)
}

#[inline(always)]
fn scale_and_inverse(scale: f32) -> (f32, f32) {
    if scale < f32::MIN_POSITIVE {
        (0.0, 0.0)
    } else {
        (scale, 1.0 / scale)
    }
}
