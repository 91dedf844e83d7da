//! Float weights times float activations.

use crate::format::{Element, Matrix, ROWS};
use crate::lanes::{Lanes, Simd, load_part, store_part};
use crate::rows::{Rows, SharedRows};
use std::ops::Range;

/// Computes the outputs of row groups `groups` for all activation rows.
///
/// # Safety
/// No other thread may access these columns of `out`.
#[allow(unsafe_code)]
#[inline(always)]
pub(crate) unsafe fn float_groups<S: Simd>(
    simd: S,
    matrix: &Matrix<'_>,
    x: &Rows<'_>,
    bias: Option<&[f32]>,
    out: &SharedRows<'_>,
    groups: Range<usize>,
) {
    // SAFETY: passed on.
    unsafe {
        if matrix.format().element == Element::F16 {
            groups_of::<S, true>(simd, matrix, x, bias, out, groups);
        } else {
            groups_of::<S, false>(simd, matrix, x, bias, out, groups);
        }
    }
}

/// # Safety
/// As for [`float_groups`].
#[allow(unsafe_code)]
#[inline(always)]
unsafe fn groups_of<S: Simd, const F16: bool>(
    simd: S,
    matrix: &Matrix<'_>,
    x: &Rows<'_>,
    bias: Option<&[f32]>,
    out: &SharedRows<'_>,
    groups: Range<usize>,
) {
    // Several chains at once hide the latency of fma: 4 groups of one row, or 4 or 8 rows of one group. Nothing
    // is asked for ahead: CPUs see by themselves that memory is read front to back.
    let finish = |group: usize, row: usize, sum: S::F| {
        let start = group * ROWS;
        let len = ROWS.min(matrix.rows() - start);
        let bias = bias.map(|bias| load_part(simd, &bias[start..][..len], 0.0));
        let sum = bias.map_or(sum, |bias| sum + bias);
        // SAFETY: the caller's promise: these columns are this thread's.
        store_part(sum, unsafe { out.segment(row, start, len) });
    };
    let mut batched = 0;
    for group in groups.clone() {
        let bytes = [matrix.group(group)];
        let mut row = 0;
        if S::BATCH == 8 {
            while row + 8 <= x.rows() {
                let rows = std::array::from_fn(|m| x.row(row + m));
                let [sums] = chains::<S, F16, 1, 8>(simd, bytes, rows, None);
                for (m, sum) in sums.into_iter().enumerate() {
                    finish(group, row + m, sum);
                }
                row += 8;
            }
        }
        while row + 4 <= x.rows() {
            let rows = std::array::from_fn(|m| x.row(row + m));
            let [sums] = chains::<S, F16, 1, 4>(simd, bytes, rows, None);
            for (m, sum) in sums.into_iter().enumerate() {
                finish(group, row + m, sum);
            }
            row += 4;
        }
        batched = row;
    }
    for row in batched..x.rows() {
        let mut group = groups.start;
        while group + 4 <= groups.end {
            let bytes = std::array::from_fn(|g| matrix.group(group + g));
            let sums = chains::<S, F16, 4, 1>(simd, bytes, [x.row(row)], None);
            for (g, [sum]) in sums.into_iter().enumerate() {
                finish(group + g, row, sum);
            }
            group += 4;
        }
        for group in group..groups.end {
            let [[sum]] = chains::<S, F16, 1, 1>(simd, [matrix.group(group)], [x.row(row)], None);
            finish(group, row, sum);
        }
    }
}

/// `sum = fma(weight, activation, sum)` over ascending columns, for `G` groups times `M` rows. Asks memory for as much
/// from `ahead` on, if that is there, as the groups take, column by column: all at once, it would be waited for.
#[inline(always)]
pub(crate) fn chains<S: Simd, const F16: bool, const G: usize, const M: usize>(
    simd: S,
    groups: [&[u8]; G],
    rows: [&[f32]; M],
    ahead: Option<*const u8>,
) -> [[S::F; M]; G] {
    let column_bytes = ROWS * if F16 { 2 } else { 4 };
    let cols = rows[0].len();
    let rows = rows.map(|row| &row[..cols]);
    let groups = groups.map(|group| &group[..cols * column_bytes]);
    let mut sums = [[simd.splat(0.0); M]; G];
    let fours = if S::MULTIPLIES_BY_LANE { cols / 4 } else { 0 };
    for four in 0..fours {
        let x = rows.map(|row| &row.as_chunks::<4>().0[four]);
        let four_bytes = 4 * column_bytes;
        if let Some(ahead) = ahead {
            simd.prefetch(ahead.wrapping_add(four * G * four_bytes), G * four_bytes);
        }
        for (sums, group) in sums.iter_mut().zip(groups) {
            simd.add_four_columns::<F16, M>(&group[four * four_bytes..][..four_bytes], x, sums);
        }
    }
    for k in 4 * fours..cols {
        if let Some(ahead) = ahead {
            simd.prefetch(ahead.wrapping_add(k * G * column_bytes), G * column_bytes);
        }
        for (sums, group) in sums.iter_mut().zip(groups) {
            let weights = if F16 {
                simd.load_f16(&group.as_chunks::<32>().0[k])
            } else {
                simd.load_f32(&group.as_chunks::<64>().0[k])
            };
            for (sum, row) in sums.iter_mut().zip(rows) {
                *sum = weights.fma(simd.splat(row[k]), *sum);
            }
        }
    }
    sums
}
