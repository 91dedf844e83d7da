//! Activations as 8-bit integers.

use crate::format::ACTIVATION_BLOCK;
use crate::lanes::{IntLanes, Lanes, Simd, load_part};

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
}

impl QuantizedRows {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for `rows x width` activations and returns the parts of each row.
    pub(crate) fn resize(&mut self, rows: usize, width: usize) -> usize {
        let blocks = width.div_ceil(ACTIVATION_BLOCK);
        (self.rows, self.width, self.blocks) = (rows, width, blocks);
        self.values.resize(rows * blocks * ACTIVATION_BLOCK, 0);
        self.scales.resize(rows * blocks, 0.0);
        self.sums.resize(rows * blocks, 0);
        self.half_sums.resize(rows * blocks * 2, 0);
        blocks
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

    #[inline(always)]
    pub(crate) fn sums(&self, row: usize) -> &[i32] {
        &self.sums[row * self.blocks..][..self.blocks]
    }

    #[inline(always)]
    pub(crate) fn half_sums(&self, row: usize) -> &[i32] {
        &self.half_sums[row * self.blocks * 2..][..self.blocks * 2]
    }

    /// The rows, each with its own part of the buffers, for writing.
    pub(crate) fn rows_mut(&mut self) -> impl Iterator<Item = QuantizedRow<'_>> {
        let blocks = self.blocks.max(1);
        self.values
            .chunks_mut(blocks * ACTIVATION_BLOCK)
            .zip(self.scales.chunks_mut(blocks))
            .zip(self.sums.chunks_mut(blocks))
            .zip(self.half_sums.chunks_mut(blocks * 2))
            .map(|(((values, scales), sums), half_sums)| QuantizedRow {
                values,
                scales,
                sums,
                half_sums,
            })
    }
}

/// One row of a [`QuantizedRows`], for writing.
pub(crate) struct QuantizedRow<'a> {
    values: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
    half_sums: &'a mut [i32],
}

/// Quantizes one row: per block of 32, `d = amax / 127`, `q = round(x * (1 / d))`.
///
/// A block whose `d` is below the smallest normal number becomes zero, with `d = 0`.
#[inline(always)]
pub(crate) fn quantize_row<S: Simd>(simd: S, x: &[f32], out: &mut QuantizedRow<'_>) {
    let values = out.values.as_chunks_mut::<16>().0.as_chunks_mut::<2>().0;
    let half_sums = out.half_sums.as_chunks_mut::<2>().0;
    let outs = values
        .iter_mut()
        .zip(&mut *out.scales)
        .zip(&mut *out.sums)
        .zip(half_sums);
    for (x, (((values, scale), sum), half_sums)) in x.chunks(ACTIVATION_BLOCK).zip(outs) {
        let (first, second) = match x.as_chunks::<16>().0 {
            [first, second] => (simd.load(first), simd.load(second)),
            _ => {
                let (first, second) = x.split_at(x.len().min(16));
                (load_part(simd, first, 0.0), load_part(simd, second, 0.0))
            }
        };
        let d = first.abs().max(second.abs()).max_lane() / 127.0;
        let (d, inverse) = if d < f32::MIN_POSITIVE {
            (0.0, 0.0)
        } else {
            (d, 1.0 / d)
        };
        let inverse = simd.splat(inverse);
        let (first, second) = ((first * inverse).to_int(), (second * inverse).to_int());
        first.store_i8(&mut values[0]);
        second.store_i8(&mut values[1]);
        *half_sums = [first.sum(), second.sum()];
        *sum = half_sums[0] + half_sums[1];
        *scale = d;
    }
}
