//! Causal grouped-query attention over pages of the KV cache.
//!
//! Keys are walked in chunks of 64 absolute positions, which are the pages. A chunk gives the largest
//! score, the sum of `e^(score - largest)` and the values weighted by it; chunks are combined in
//! ascending order (the online softmax of Milakov & Gimelshein, 2018). What a query computes depends on
//! nothing but its own position, so tokens may come one by one or in batches.

use crate::functions::{exp, softcap};
use crate::kv::{KvElement, KvFormat, PAGE_TOKENS};
use crate::lanes::{Lanes, Simd};
use std::ops::Range;

/// What attention of one layer needs besides queries and pages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionOptions {
    /// Shape of the pages.
    pub kv: KvFormat,
    /// Number of query heads: a multiple of the key/value heads.
    pub heads: usize,
    /// Absolute position of the first query row; row `i` is at `first_position + i`.
    pub first_position: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Scores become `softcap * tanh(score / softcap)`.
    pub softcap: Option<f32>,
    /// A query at position `p` sees positions `p - window + 1 ..= p`; all of `..= p` when absent.
    pub window: Option<usize>,
}

/// Sixteen numbers of a page.
#[inline(always)]
fn load<S: Simd, const F16: bool>(simd: S, row: &[u8], index: usize) -> S::F {
    if F16 {
        simd.load_f16(&row.as_chunks::<32>().0[index])
    } else {
        simd.load_f32(&row.as_chunks::<64>().0[index])
    }
}

/// Attention of one query head at one position. `out` is `head_dim` long.
#[inline(always)]
pub(crate) fn attend<S: Simd, P: AsRef<[u8]>>(
    simd: S,
    options: &AttentionOptions,
    pages: &[P],
    head: usize,
    position: usize,
    query: &[f32],
    out: &mut [f32],
) {
    match options.kv.element {
        KvElement::F32 => {
            attend_typed::<S, P, false>(simd, options, pages, head, position, query, out)
        }
        KvElement::F16 => {
            attend_typed::<S, P, true>(simd, options, pages, head, position, query, out)
        }
    }
}

#[inline(always)]
fn attend_typed<S: Simd, P: AsRef<[u8]>, const F16: bool>(
    simd: S,
    options: &AttentionOptions,
    pages: &[P],
    head: usize,
    position: usize,
    query: &[f32],
    out: &mut [f32],
) {
    let kv = &options.kv;
    let kv_head = head / (options.heads / kv.kv_heads);
    let padded = kv.head_dim.next_multiple_of(16);
    let mut scratch = vec![0.0; 3 * padded];
    let (query_padded, rest) = scratch.split_at_mut(padded);
    let (chunk, total) = rest.split_at_mut(padded);
    query_padded[..query.len()].copy_from_slice(query);
    let query = query_padded.as_chunks::<16>().0;
    let (chunk, total) = (chunk.as_chunks_mut::<16>().0, total.as_chunks_mut::<16>().0);

    let first = options
        .window
        .map_or(0, |window| (position + 1).saturating_sub(window));
    let (mut largest, mut sum) = (0.0, 0.0);
    let first_page = first / PAGE_TOKENS;
    let pages = &pages[first_page..=position / PAGE_TOKENS];
    for (page_index, page) in (first_page..).zip(pages) {
        let start = page_index * PAGE_TOKENS;
        let visible = first.saturating_sub(start)..(position + 1 - start).min(PAGE_TOKENS);
        let page = page.as_ref();
        let keys = &page[kv.keys_offset(kv_head)..][..kv.head_bytes()];
        let values = &page[kv.values_offset(kv_head)..][..kv.head_bytes()];

        let mut weights = [f32::NEG_INFINITY; PAGE_TOKENS];
        scores::<S, F16>(simd, query, keys, kv.row_bytes(), &visible, &mut weights);
        let (chunk_largest, chunk_sum) = softmax(simd, options, &visible, &mut weights);
        weigh::<S, F16>(simd, values, kv.row_bytes(), &visible, &weights, chunk);

        if page_index == first_page {
            (largest, sum) = (chunk_largest, chunk_sum);
            total.copy_from_slice(chunk);
        } else {
            let new = if chunk_largest > largest {
                chunk_largest
            } else {
                largest
            };
            let mut factors = [0.0; 16];
            factors[..2].copy_from_slice(&[largest - new, chunk_largest - new]);
            exp(simd.load(&factors)).store(&mut factors);
            let [old_factor, chunk_factor, ..] = factors;
            sum = sum.mul_add(old_factor, chunk_sum * chunk_factor);
            let (old_factor, chunk_factor) = (simd.splat(old_factor), simd.splat(chunk_factor));
            for (total, chunk) in total.iter_mut().zip(chunk.iter()) {
                let weighted = simd.load(chunk) * chunk_factor;
                simd.load(total).fma(old_factor, weighted).store(total);
            }
            largest = new;
        }
    }
    let inverse = simd.splat(1.0 / sum);
    for total in total.iter_mut() {
        (simd.load(total) * inverse).store(total);
    }
    out.copy_from_slice(&total.as_flattened()[..out.len()]);
}

/// Dot products of the query with the visible keys: 16 lanes along the head, then the tree.
#[inline(always)]
fn scores<S: Simd, const F16: bool>(
    simd: S,
    query: &[[f32; 16]],
    keys: &[u8],
    row_bytes: usize,
    visible: &Range<usize>,
    scores: &mut [f32; PAGE_TOKENS],
) {
    for slot in visible.clone() {
        let key = &keys[slot * row_bytes..][..row_bytes];
        let mut lanes = simd.splat(0.0);
        for (index, query) in query.iter().enumerate() {
            lanes = simd
                .load(query)
                .fma(load::<S, F16>(simd, key, index), lanes);
        }
        scores[slot] = lanes.sum();
    }
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
    let (quarters, _) = scores.as_chunks_mut::<16>();
    for quarter in &mut *quarters {
        let mut score = simd.load(quarter) * scale;
        if let Some(cap) = options.softcap {
            score = softcap(score, cap);
        }
        score.store(quarter);
    }
    // What is not visible must not count, whatever scale and softcap made of it.
    for (slot, score) in scores.iter_mut().enumerate() {
        if !visible.contains(&slot) {
            *score = f32::NEG_INFINITY;
        }
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

/// Sum of the visible values times their weights: one chain of fmas per column, ascending positions.
#[inline(always)]
fn weigh<S: Simd, const F16: bool>(
    simd: S,
    values: &[u8],
    row_bytes: usize,
    visible: &Range<usize>,
    weights: &[f32; PAGE_TOKENS],
    out: &mut [[f32; 16]],
) {
    let rows = &values[visible.start * row_bytes..visible.end * row_bytes];
    let weights = &weights[visible.clone()];
    let (fours, rest) = out.as_chunks_mut::<4>();
    for (index, out) in fours.iter_mut().enumerate() {
        weigh_columns::<S, F16, 4>(simd, rows, row_bytes, weights, 4 * index, out);
    }
    for (index, out) in (4 * fours.len()..).zip(rest) {
        weigh_columns::<S, F16, 1>(
            simd,
            rows,
            row_bytes,
            weights,
            index,
            std::array::from_mut(out),
        );
    }
}

/// The same for `16 * N` columns from `16 * first` on: several chains hide the latency of fma.
#[inline(always)]
fn weigh_columns<S: Simd, const F16: bool, const N: usize>(
    simd: S,
    rows: &[u8],
    row_bytes: usize,
    weights: &[f32],
    first: usize,
    out: &mut [[f32; 16]; N],
) {
    let mut sums = [simd.splat(0.0); N];
    for (row, weight) in rows.chunks_exact(row_bytes).zip(weights) {
        let weight = simd.splat(*weight);
        for (index, sum) in sums.iter_mut().enumerate() {
            *sum = load::<S, F16>(simd, row, first + index).fma(weight, *sum);
        }
    }
    for (sum, out) in sums.into_iter().zip(out) {
        sum.store(out);
    }
}
