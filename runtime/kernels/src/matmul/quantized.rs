//! Integer weights times quantized activations.

use super::Outputs;
use crate::format::{ACTIVATION_BLOCK, Element, Matrix, MatrixFormat, ScaleType};
use crate::lanes::{IntLanes, Lanes, Simd};
use crate::quantized::QuantizedRows;
use crate::rows::SharedRows;
use crate::weights::{Codebook4, Int4, Int8, Weights};
use std::array::from_fn;
use std::ops::Range;

/// Computes the outputs of row groups `groups` for all activation rows.
///
/// # Safety
/// No other thread may access these columns of `out`.
#[allow(unsafe_code)]
#[inline(always)]
pub(crate) unsafe fn quantized_groups<S: Simd>(
    simd: S,
    matrix: &Matrix<'_>,
    x: &QuantizedRows,
    bias: Option<&[f32]>,
    out: &SharedRows<'_>,
    groups: Range<usize>,
) {
    let format = matrix.format();
    // The hot formats have no branches left in their loops.
    // SAFETY: passed on.
    unsafe {
        match format {
            MatrixFormat::INT4 => {
                groups_of::<S, _, 8, true>(simd, Int4, matrix, x, bias, out, groups);
            }
            MatrixFormat::INT8 => {
                groups_of::<S, _, 8, true>(simd, Int8, matrix, x, bias, out, groups);
            }
            MatrixFormat::CODEBOOK4 => {
                let weights = Codebook4(matrix.code_values());
                groups_of::<S, _, 8, true>(simd, weights, matrix, x, bias, out, groups);
            }
            _ => match (format.element, format.block) {
                (Element::Int4, 32) => {
                    groups_of::<S, _, 8, false>(simd, Int4, matrix, x, bias, out, groups);
                }
                (Element::Int4, _) => {
                    groups_of::<S, _, 4, false>(simd, Int4, matrix, x, bias, out, groups);
                }
                (_, 32) => groups_of::<S, _, 8, false>(simd, Int8, matrix, x, bias, out, groups),
                _ => groups_of::<S, _, 4, false>(simd, Int8, matrix, x, bias, out, groups),
            },
        }
    }
}

/// `QUADS` is a quarter of the block; `PLAIN` means binary16 scales and no zero points.
///
/// # Safety
/// As for [`quantized_groups`].
#[allow(unsafe_code)]
#[inline(always)]
unsafe fn groups_of<S: Simd, W: Weights, const QUADS: usize, const PLAIN: bool>(
    simd: S,
    weights: W,
    matrix: &Matrix<'_>,
    x: &QuantizedRows,
    bias: Option<&[f32]>,
    out: &SharedRows<'_>,
    groups: Range<usize>,
) {
    let outputs = Outputs {
        out: *out,
        bias,
        first_group: groups.start,
        columns: matrix.rows(),
    };
    if PLAIN {
        let bytes = matrix.groups_bytes(groups.clone());
        // SAFETY: `PLAIN` means such a matrix; the caller's promise.
        if unsafe { simd.products(weights, bytes, x, 0..x.rows(), &outputs) } {
            return;
        }
    }
    for (index, group) in groups.enumerate() {
        let bytes = matrix.group(group);
        // SAFETY: the caller's promise: these columns are this thread's.
        let finish = |row: usize, sum: S::F| unsafe { outputs.put_group(simd, index, row, sum) };
        let format = &matrix.format();
        let mut row = if PLAIN {
            simd.batch(weights, bytes, x, finish)
        } else {
            0
        };
        /// Goes on in steps of `$m` rows.
        macro_rules! batches {
            ($m:literal) => {
                while row + $m <= x.rows() {
                    let sums =
                        group_rows::<S, W, QUADS, PLAIN, $m>(simd, weights, format, bytes, x, row);
                    for (i, sum) in sums.into_iter().enumerate() {
                        finish(row + i, sum);
                    }
                    row += $m;
                }
            };
        }
        match S::BATCH {
            8 => batches!(8),
            4 => batches!(4),
            _ => batches!(2),
        }
        if S::BATCH == 8 {
            batches!(4);
        }
        while row < x.rows() {
            let [sum] = group_rows::<S, W, QUADS, PLAIN, 1>(simd, weights, format, bytes, x, row);
            finish(row, sum);
            row += 1;
        }
    }
}

/// 16 outputs of `M` activation rows from `row` on.
#[allow(unsafe_code)]
#[inline(always)]
fn group_rows<S: Simd, W: Weights, const QUADS: usize, const PLAIN: bool, const M: usize>(
    simd: S,
    weights: W,
    format: &MatrixFormat,
    group: &[u8],
    x: &QuantizedRows,
    row: usize,
) -> [S::F; M] {
    let block_len = 4 * QUADS;
    let quants_bytes = match W::ELEMENT {
        Element::Int4 | Element::Codebook4 => 32 * QUADS,
        _ => 64 * QUADS,
    };
    let (scales_bytes, quants_offset) = if PLAIN {
        (32, 32)
    } else {
        (format.scales_bytes(), format.quants_offset())
    };
    let tiles = group.chunks_exact(quants_offset + quants_bytes);
    // A block of activations is one tile, or two of 16 columns.
    let per_block = ACTIVATION_BLOCK / block_len;
    let refined = x.refined() * per_block;
    let blocks = refined + tiles.len();
    // The first tiles meet what the integers of their blocks left over, then all tiles the blocks.
    let passes = [(0, refined), (refined, tiles.len())];
    let values = from_fn::<_, M, _>(|m| {
        let values = x.values(row + m);
        assert!(values.len() >= blocks * block_len);
        values.as_ptr()
    });
    let activation_blocks = blocks.div_ceil(ACTIVATION_BLOCK / block_len);
    let scales = from_fn::<_, M, _>(|m| &x.scales(row + m)[..activation_blocks]);
    let sums = from_fn::<_, M, _>(|m| {
        let sums = if QUADS == 8 {
            x.sums(row + m)
        } else {
            x.half_sums(row + m)
        };
        &sums[..blocks]
    });
    let mut results = [simd.splat(0.0); M];
    for (first, len) in passes {
        for (block, tile) in (first..).zip(tiles.clone().take(len)) {
            let weight_scales = if PLAIN || format.scale == ScaleType::F16 {
                simd.load_f16(&tile.as_chunks::<32>().0[0])
            } else {
                simd.load_f32(&tile.as_chunks::<64>().0[0])
            };
            let block_sums = sums.map(|sums| sums[block]);
            // SAFETY: a tile is `quants_offset + quants_bytes` long; the length of the activations was
            // compared with the number of blocks. `quantize_row` makes -127 to 127 of finite numbers.
            let mut dots = unsafe {
                let quants = tile.as_ptr().add(quants_offset);
                let activations = values.map(|values| values.add(block * block_len));
                match W::ELEMENT {
                    Element::Int4 => simd.dots_int4::<M, QUADS>(quants, activations, block_sums),
                    // Always in blocks of 32.
                    Element::Codebook4 => {
                        simd.dots_codebook4(weights.codebook(), quants, activations, block_sums)
                    }
                    _ => simd.dots_int8::<M, QUADS>(quants, activations, block_sums),
                }
            };
            if !PLAIN && format.zero_points {
                let zero_points = simd.load_i8(&tile[scales_bytes..].as_chunks::<16>().0[0]);
                for (dots, sum) in dots.iter_mut().zip(block_sums) {
                    *dots = dots.sub_scaled(zero_points, sum);
                }
            }
            for m in 0..M {
                let scale = simd.splat(scales[m][block * block_len / ACTIVATION_BLOCK]);
                results[m] = dots[m].to_float().fma(weight_scales * scale, results[m]);
            }
        }
    }
    results
}
