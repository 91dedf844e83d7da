//! Products with keys and values stored as floats.

use super::chunk::Products;
use super::plan::TILE;
use crate::format::ROWS;
use crate::kv::PAGE_TOKENS;
use crate::lanes::{Lanes, Simd};
use crate::matmul::chains;
use std::array::from_fn;
use std::ops::Range;

/// Queries as they are.
pub(super) struct Float<'a, const F16: bool> {
    pub(super) queries: [&'a [f32]; TILE],
}

impl<const F16: bool> Float<'_, F16> {
    const NUMBER_BYTES: usize = if F16 { 2 } else { 4 };
}

impl<const F16: bool> Products for Float<'_, F16> {
    #[inline(always)]
    fn scores<S: Simd, const M: usize>(
        &self,
        simd: S,
        (keys, next): (&[u8], &[u8]),
        first: usize,
        visible: &Range<usize>,
        scores: &mut [[f32; PAGE_TOKENS]; M],
    ) {
        let queries: [&[f32]; M] = from_fn(|m| self.queries[first + m]);
        let group_bytes = queries[0].len() * ROWS * Self::NUMBER_BYTES;
        let groups = visible.start / ROWS..visible.end.div_ceil(ROWS);
        let mut scores = scores.each_mut().map(|scores| scores.as_chunks_mut().0);
        products::<S, F16, M>(
            simd,
            (keys, next),
            group_bytes,
            queries,
            groups,
            &mut scores,
        );
    }

    #[inline(always)]
    fn weigh<S: Simd, const M: usize>(
        &self,
        simd: S,
        (values, next): (&[u8], &[u8]),
        visible: &Range<usize>,
        weights: &[[f32; PAGE_TOKENS]; M],
        out: &mut [&mut [[f32; ROWS]]; M],
    ) {
        let weights: [&[f32]; M] = from_fn(|m| &weights[m][visible.clone()]);
        let values = &values[visible.start * ROWS * Self::NUMBER_BYTES..];
        let group_bytes = PAGE_TOKENS * ROWS * Self::NUMBER_BYTES;
        let groups = 0..out[0].len();
        products::<S, F16, M>(simd, (values, next), group_bytes, weights, groups, out);
    }
}

/// `out[m][group] = sum of matrix[group] times inputs[m]`, each a chain of fmas.
#[inline(always)]
fn products<S: Simd, const F16: bool, const M: usize>(
    simd: S,
    (matrix, next): (&[u8], &[u8]),
    group_bytes: usize,
    inputs: [&[f32]; M],
    groups: Range<usize>,
    out: &mut [&mut [[f32; ROWS]]; M],
) {
    let ahead = (!next.is_empty()).then_some(next.as_ptr());
    let mut group = groups.start;
    /// Goes on in steps of `$g` groups: several chains at once hide the latency of fma.
    macro_rules! steps {
        ($g:literal) => {
            while groups.end - group >= $g {
                let bytes = from_fn(|g| &matrix[(group + g) * group_bytes..]);
                let ahead = ahead.map(|ahead| ahead.wrapping_add(group * group_bytes));
                let sums = chains::<S, F16, $g, M>(simd, bytes, inputs, ahead);
                for (g, sums) in sums.into_iter().enumerate() {
                    for (sum, out) in sums.into_iter().zip(&mut *out) {
                        sum.store(&mut out[group + g]);
                    }
                }
                group += $g;
            }
        };
    }
    if M == 1 || S::BATCH == 8 {
        steps!(4);
    }
    if M == 2 || S::BATCH == 8 {
        steps!(2);
    }
    steps!(1);
}
