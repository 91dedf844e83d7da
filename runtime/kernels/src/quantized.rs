//! Activations as 8-bit integers.

use crate::format::ACTIVATION_BLOCK;
use crate::lanes::{IntLanes, Lanes, Simd};
use std::marker::PhantomData;
use std::ops::Range;
use std::slice::from_raw_parts_mut;

/// Rows of activations, quantized in blocks of 32 columns: a reusable buffer.
///
/// The last block of a row is padded with zeros.
#[derive(Clone, Debug, Default)]
pub struct QuantizedRows {
    rows: usize,
    width: usize,
    blocks: usize,
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

    /// Makes room for `rows x width` activations.
    pub(crate) fn resize(&mut self, rows: usize, width: usize) {
        let blocks = width.div_ceil(ACTIVATION_BLOCK);
        (self.rows, self.width, self.blocks) = (rows, width, blocks);
        self.values.resize(rows * blocks * ACTIVATION_BLOCK, 0);
        self.scales.resize(rows * blocks, 0.0);
        self.sums.resize(rows * blocks, 0);
        self.half_sums.resize(rows * blocks * 2, 0);
        self.interleaved.clear();
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

    /// Integers of a row, 32 per block.
    #[inline(always)]
    pub fn values(&self, row: usize) -> &[i8] {
        let len = self.blocks * ACTIVATION_BLOCK;
        &self.values[row * len..][..len]
    }

    /// Scales of a row, one per block.
    #[inline(always)]
    pub fn scales(&self, row: usize) -> &[f32] {
        &self.scales[row * self.blocks..][..self.blocks]
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
        let per_four = self.blocks;
        let fours = rows.start / ActivationTile::ROWS..rows.end / ActivationTile::ROWS;
        &self.interleaved[fours.start * per_four..fours.end * per_four]
    }

    /// Copies all whole fours of rows into the order of [`ActivationTile`].
    pub(crate) fn interleave(&mut self) {
        let fours = self.rows / ActivationTile::ROWS;
        let mut tiles = std::mem::take(&mut self.interleaved);
        tiles.resize(fours * self.blocks, ActivationTile::default());
        for (four, tiles) in tiles.chunks_mut(self.blocks.max(1)).enumerate() {
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
        let blocks = rows.start * self.blocks..rows.end * self.blocks;
        let values = blocks.start * ACTIVATION_BLOCK..blocks.end * ACTIVATION_BLOCK;
        (&self.values[values], &self.scales[blocks])
    }

    #[inline(always)]
    pub(crate) fn sums(&self, row: usize) -> &[i32] {
        &self.sums[row * self.blocks..][..self.blocks]
    }

    #[inline(always)]
    pub(crate) fn half_sums(&self, row: usize) -> &[i32] {
        &self.half_sums[row * self.blocks * 2..][..self.blocks * 2]
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
        let (start, len) = (row * self.blocks + blocks.start, blocks.len());
        // SAFETY: `resize` made room for `rows * blocks` blocks in each buffer, the line above says that these
        // are among them; arrays of numbers are laid out like the numbers; exclusiveness is the caller's promise.
        unsafe {
            QuantizedRow {
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
    values: &'a mut [BlockValues],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
    half_sums: &'a mut [[i32; 2]],
}

/// One block of 32 columns, for writing.
pub(crate) struct QuantizedBlock<'a> {
    values: &'a mut BlockValues,
    scale: &'a mut f32,
    sum: &'a mut i32,
    half_sums: &'a mut [i32; 2],
}

impl<'a> QuantizedRow<'a> {
    /// The blocks in ascending columns.
    #[inline(always)]
    pub(crate) fn blocks(self) -> impl Iterator<Item = QuantizedBlock<'a>> {
        let integers = self.values.iter_mut().zip(self.scales);
        let sums = self.sums.iter_mut().zip(self.half_sums);
        integers
            .zip(sums)
            .map(|((values, scale), (sum, half_sums))| QuantizedBlock {
                values,
                scale,
                sum,
                half_sums,
            })
    }
}

impl QuantizedBlock<'_> {
    /// Quantizes 32 columns: `d = amax / 127`, `q = round(x * (1 / d))`.
    ///
    /// A block whose `d` is below the smallest normal number becomes zero, with `d = 0`.
    #[inline(always)]
    pub(crate) fn set<S: Simd>(self, simd: S, first: S::F, second: S::F) {
        let (d, inverse) = scale_of(first.abs().max(second.abs()).max_lane());
        let inverse = simd.splat(inverse);
        let (first, second) = ((first * inverse).to_int(), (second * inverse).to_int());
        first.store_i8(&mut self.values[0]);
        second.store_i8(&mut self.values[1]);
        *self.half_sums = [first.sum(), second.sum()];
        *self.sum = self.half_sums[0] + self.half_sums[1];
        *self.scale = d;
    }
}

/// The scale of numbers whose largest magnitude is `largest`, and its inverse; both 0 for a scale below the
/// smallest normal number.
#[inline(always)]
pub(crate) fn scale_of(largest: f32) -> (f32, f32) {
    let scale = largest / 127.0;
    if scale < f32::MIN_POSITIVE {
        (0.0, 0.0)
    } else {
        (scale, 1.0 / scale)
    }
}
