//! One chunk of keys and values: scores, softmax, weighted values.

use super::AttentionOptions;
use crate::format::ROWS;
use crate::functions::{exp, softcap};
use crate::kv::PAGE_TOKENS;
use crate::lanes::{Lanes, Simd};
use std::ops::Range;

/// Largest scores and sums of the weights of `M` queries.
pub(super) struct Statistics<const M: usize> {
    pub(super) largest: [f32; M],
    pub(super) sum: [f32; M],
}

/// The two matrix products of a chunk, for one kind of stored numbers. Each asks memory for the parts of `next`, what
/// the next chunk has instead of its keys or values, while it computes with about the same parts: all at once, they
/// would be waited for.
pub(super) trait Products {
    /// Dot products of the queries from `first` on with the keys of the visible slots, at least.
    fn scores<S: Simd, const M: usize>(
        &self,
        simd: S,
        keys_and_next: (&[u8], &[u8]),
        first: usize,
        visible: &Range<usize>,
        scores: &mut [[f32; PAGE_TOKENS]; M],
    );

    /// Sums of the visible values times their weights, for all columns; weights of other slots are 0.
    fn weigh<S: Simd, const M: usize>(
        &self,
        simd: S,
        values_and_next: (&[u8], &[u8]),
        visible: &Range<usize>,
        weights: &[[f32; PAGE_TOKENS]; M],
        out: &mut [&mut [[f32; ROWS]]; M],
    );
}

/// Keys and values of a head in a page.
pub(super) type Head<'a> = (&'a [u8], &'a [u8]);

/// What `M` queries from `first` on that see the same slots make of one head's keys and values; the second are
/// those of the next chunk, or empty.
#[inline(always)]
pub(super) fn attend<S: Simd, const M: usize>(
    simd: S,
    options: &AttentionOptions,
    products: &impl Products,
    [(keys, values), (next_keys, next_values)]: [Head<'_>; 2],
    first: usize,
    visible: &Range<usize>,
    out: &mut [&mut [[f32; ROWS]]; M],
) -> Statistics<M> {
    let mut scores = [[0.0; PAGE_TOKENS]; M];
    products.scores(simd, (keys, next_keys), first, visible, &mut scores);
    let mut statistics = Statistics {
        largest: [0.0; M],
        sum: [0.0; M],
    };
    for (m, scores) in scores.iter_mut().enumerate() {
        (statistics.largest[m], statistics.sum[m]) = softmax(simd, options, visible, scores);
    }
    products.weigh(simd, (values, next_values), visible, &scores, out);
    statistics
}

/// Turns scores into `e^(score - largest)`; returns the largest score and the sum of the results.
#[inline(always)]
fn softmax<S: Simd>(
    simd: S,
    options: &AttentionOptions,
    visible: &Range<usize>,
    scores: &mut [f32; PAGE_TOKENS],
) -> (f32, f32) {
    let scale = simd.splat(options.scale);
    for quarter in scores.as_chunks_mut::<16>().0 {
        let mut score = simd.load(quarter) * scale;
        if let Some(cap) = options.softcap {
            score = softcap(score, cap);
        }
        score.store(quarter);
    }
    if visible.len() < PAGE_TOKENS {
        // What is not visible must not count, whatever scale and softcap made of it.
        scores[..visible.start].fill(f32::NEG_INFINITY);
        scores[visible.end..].fill(f32::NEG_INFINITY);
    }
    let quarters = scores.as_chunks_mut::<16>().0;
    let mut largest = simd.splat(f32::NEG_INFINITY);
    for quarter in &*quarters {
        largest = largest.max(simd.load(quarter));
    }
    let largest = largest.max_lane();
    let mut sum = simd.splat(0.0);
    for quarter in quarters {
        let weight = exp(simd.load(quarter) - simd.splat(largest));
        weight.store(quarter);
        sum = sum + weight;
    }
    (largest, sum.sum())
}
