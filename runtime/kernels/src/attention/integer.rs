//! Products with keys and values stored as integers of 8 bits: exact dot products of integers.

use super::chunk::Products;
use crate::format::{ACTIVATION_BLOCK, ROWS};
use crate::kv::{KEY_TILE_BYTES, PAGE_TOKENS, VALUE_GROUP_BYTES, VALUE_SCALES_BYTES};
use crate::lanes::{IntLanes, Lanes, Simd};
use crate::quantized::{QuantizedRows, scale_of};
use std::array::from_fn;
use std::ops::Range;

/// A quarter of a block: dot products of four integers that one block takes.
const QUADS: usize = ACTIVATION_BLOCK / 4;

/// Queries quantized as activations are, one per row.
pub(super) struct Integer<'a> {
    pub(super) queries: &'a QuantizedRows,
}

impl Products for Integer<'_> {
    #[allow(unsafe_code)]
    #[inline(always)]
    fn scores<S: Simd, const M: usize>(
        &self,
        simd: S,
        (keys, next): (&[u8], &[u8]),
        first: usize,
        visible: &Range<usize>,
        scores: &mut [[f32; PAGE_TOKENS]; M],
    ) {
        let queries = self.queries;
        let blocks = queries.scales(first).len();
        let group_bytes = blocks * KEY_TILE_BYTES;
        for group in visible.start / ROWS..visible.end.div_ceil(ROWS) {
            let tiles = keys[group * group_bytes..][..group_bytes]
                .as_chunks::<KEY_TILE_BYTES>()
                .0;
            let mut sums = [simd.splat(0.0); M];
            for (block, tile) in tiles.iter().enumerate() {
                let start = group * group_bytes + block * KEY_TILE_BYTES;
                if let Some(next) = next.get(start..start + KEY_TILE_BYTES) {
                    simd.prefetch(next.as_ptr(), KEY_TILE_BYTES);
                }
                let (key_scales, quants) = tile.split_at(KEY_TILE_BYTES - ROWS * ACTIVATION_BLOCK);
                let key_scales = simd.load_f32(&key_scales.as_chunks().0[0]);
                let query_sums = from_fn(|m| queries.sums(first + m)[block]);
                let activations = from_fn(|m| {
                    let block = &queries.values(first + m)[block * ACTIVATION_BLOCK..];
                    block[..ACTIVATION_BLOCK].as_ptr()
                });
                // SAFETY: `quants` is 16 rows by 32 long, each of the activations 32.
                let dots =
                    unsafe { simd.dots_int8::<M, QUADS>(quants.as_ptr(), activations, query_sums) };
                for m in 0..M {
                    let scale = simd.splat(queries.scales(first + m)[block]);
                    sums[m] = dots[m].to_float().fma(key_scales * scale, sums[m]);
                }
            }
            for (sum, scores) in sums.into_iter().zip(&mut *scores) {
                sum.store(&mut scores.as_chunks_mut().0[group]);
            }
        }
    }

    #[allow(unsafe_code)]
    #[inline(always)]
    fn weigh<S: Simd, const M: usize>(
        &self,
        simd: S,
        (values, next): (&[u8], &[u8]),
        visible: &Range<usize>,
        weights: &[[f32; PAGE_TOKENS]; M],
        out: &mut [&mut [[f32; ROWS]]; M],
    ) {
        let (values, value_scales) = values.split_at(values.len() - VALUE_SCALES_BYTES);
        // What the next chunk reads first.
        let end = values.len()..values.len() + VALUE_SCALES_BYTES;
        if let Some(next) = next.get(end) {
            simd.prefetch(next.as_ptr(), VALUE_SCALES_BYTES);
        }
        let mut quants = [[[0; ROWS]; PAGE_TOKENS / ROWS]; M];
        let mut sums = [[0; M]; 2];
        let mut scales = [0.0; M];
        for m in 0..M {
            let halves;
            (scales[m], halves) =
                quantize_weights(simd, &weights[m], value_scales, visible, &mut quants[m]);
            [sums[0][m], sums[1][m]] = halves;
        }
        for (group, bytes) in values.as_chunks::<VALUE_GROUP_BYTES>().0.iter().enumerate() {
            let start = group * VALUE_GROUP_BYTES;
            if let Some(next) = next.get(start..start + VALUE_GROUP_BYTES) {
                simd.prefetch(next.as_ptr(), VALUE_GROUP_BYTES);
            }
            // SAFETY: a group is 16 rows by 64 long, the quantized weights of each query 64.
            let (first, second) = unsafe {
                let (first, second) = bytes.split_at(VALUE_GROUP_BYTES / 2);
                (
                    simd.dots_int8::<M, QUADS>(
                        first.as_ptr(),
                        quants
                            .each_ref()
                            .map(|quants| quants[..2].as_flattened().as_ptr()),
                        sums[0],
                    ),
                    simd.dots_int8::<M, QUADS>(
                        second.as_ptr(),
                        quants
                            .each_ref()
                            .map(|quants| quants[2..].as_flattened().as_ptr()),
                        sums[1],
                    ),
                )
            };
            for m in 0..M {
                let dot = first[m].to_float() + second[m].to_float();
                (dot * simd.splat(scales[m])).store(&mut out[m][group]);
            }
        }
    }
}

/// Quantizes weights times the scales of their values. Returns the scale, and the sums of the integers of
/// each half.
#[inline(always)]
fn quantize_weights<S: Simd>(
    simd: S,
    weights: &[f32; PAGE_TOKENS],
    value_scales: &[u8],
    visible: &Range<usize>,
    quants: &mut [[i8; ROWS]; PAGE_TOKENS / ROWS],
) -> (f32, [i32; 2]) {
    let mut scaled = [0.0; PAGE_TOKENS];
    let quarters = scaled.as_chunks_mut::<ROWS>().0;
    let scales = value_scales.as_chunks::<{ 4 * ROWS }>().0;
    for ((scaled, weights), scales) in quarters
        .iter_mut()
        .zip(weights.as_chunks::<ROWS>().0)
        .zip(scales)
    {
        (simd.load(weights) * simd.load_f32(scales)).store(scaled);
    }
    if visible.len() < PAGE_TOKENS {
        // A slot that was never written has no scale.
        scaled[..visible.start].fill(0.0);
        scaled[visible.end..].fill(0.0);
    }
    let quarters = scaled.as_chunks::<ROWS>().0;
    let mut largest = simd.splat(0.0);
    for quarter in quarters {
        largest = largest.max(simd.load(quarter));
    }
    let (scale, inverse) = scale_of(largest.max_lane());
    let mut sums = [simd.splat(0.0); 2];
    for (index, (quarter, quants)) in quarters.iter().zip(quants).enumerate() {
        let rounded = (simd.load(quarter) * simd.splat(inverse)).round();
        rounded.to_int().store_i8(quants);
        sums[index / 2] = sums[index / 2] + rounded;
    }
    // Exact: whole numbers below 2^12.
    (scale, [sums[0].sum() as i32, sums[1].sum() as i32])
}
