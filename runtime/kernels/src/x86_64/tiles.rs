//! Products of int4 and int8 weights by AVX-512 VNNI, in tiles of several groups by several activation rows.
//!
//! An unpacked weight serves all rows of a tile, a broadcast activation all its groups, and the sums stay in
//! registers. What limits the speed is then the multiplications themselves: 8 of bytes and 2 of floats per
//! block, group and activation row.
#![allow(unsafe_code)]

use super::avx512::Avx512;
use crate::format::{ACTIVATION_BLOCK, Element, ROWS};
use crate::matmul::Outputs;
use crate::quantized::QuantizedRows;
use crate::weights::Weights;
use std::arch::asm;
use std::arch::x86_64::*;
use std::array::from_fn;
use std::ops::Range;

/// Activations that stay in the second-level cache until all weights of a task have met them.
const RESIDENT_BYTES: usize = 384 * 1024;

/// How far ahead of a single row's product its weights are fetched, where that helps.
const STREAM_AHEAD_BYTES: usize = 4096;

/// At most so many of the last tiles of activation rows fetch the next groups while they meet these, each an equal part.
const FETCHING_TILES: usize = 4;

/// What memory is asked for meanwhile: a block of weights at every `2^shift`-th block.
#[derive(Clone, Copy)]
struct Ahead {
    /// From these weights to the first of those blocks.
    distance_bytes: usize,
    shift: u32,
}

impl Ahead {
    /// Nothing but the block at hand.
    const NOTHING: Self = Self {
        distance_bytes: 0,
        shift: usize::BITS - 1,
    };

    /// The own weights of a single row.
    fn stream() -> Self {
        if super::streams_need_prefetch() {
            Self {
                distance_bytes: STREAM_AHEAD_BYTES,
                shift: 0,
            }
        } else {
            Self::NOTHING
        }
    }

    /// For one of `tiles` tiles of activation rows, which `left` others follow: a part of the groups that lie
    /// `next_bytes` behind these.
    fn next_groups(tiles: usize, left: usize, next_bytes: usize, group_bytes: usize) -> Self {
        let shift = tiles.min(FETCHING_TILES).ilog2();
        match ((1 << shift) - 1usize).checked_sub(left) {
            Some(part) => Self {
                distance_bytes: next_bytes + part * (group_bytes >> shift),
                shift,
            },
            None => Self::NOTHING,
        }
    }
}

/// `M` activation rows.
#[derive(Clone, Copy)]
struct Activations<const M: usize> {
    values: [*const i8; M],
    scales: [*const f32; M],
    sums: [*const i32; M],
}

/// Keeps the compiler from loading ahead: it would take the registers of the sums for it.
#[inline(always)]
fn in_order() {
    // SAFETY: no instruction.
    unsafe { asm!("", options(nostack, preserves_flags)) };
}

/// Writes `G` consecutive groups for `M` activation rows to `out`, group after group in each row.
///
/// # Safety
/// The CPU must have AVX-512 F, BW, VL and VNNI; the groups must be `blocks` blocks long and `x` as many after `refined`
/// second terms, which are no more; `16 * G` numbers must be writable at each of `out` and readable at `bias`, unless it is null.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn tile<W: Weights, const G: usize, const M: usize>(
    weights: W,
    groups: *const u8,
    [refined, blocks]: [usize; 2],
    ahead: Ahead,
    x: Activations<M>,
    bias: *const f32,
    out: [*mut f32; M],
) {
    let group_bytes = blocks * W::TILE_BYTES;
    let mask = _mm512_set1_epi8(15);
    let sign = _mm512_set1_epi8(-128);
    let zero = _mm512_setzero_si512();
    // SAFETY: a codebook is 16 bytes.
    let codebook = unsafe { _mm_loadu_si128(weights.codebook().values().as_ptr().cast()) };
    let codebook = _mm512_xor_si512(_mm512_broadcast_i32x4(codebook), sign);
    let mut results = [[_mm512_setzero_ps(); M]; G];
    for block in 0..refined + blocks {
        // The first tiles meet what the integers of their blocks left over, then all tiles the blocks.
        let tile = block.checked_sub(refined).unwrap_or(block);
        // SAFETY: the caller's promise; a prefetch may go anywhere.
        unsafe {
            let tiles: [_; G] = from_fn(|g| groups.add(g * group_bytes + tile * W::TILE_BYTES));
            if tile & ((1 << ahead.shift) - 1) == 0 {
                let offset = ahead.distance_bytes + (tile >> ahead.shift) * W::TILE_BYTES;
                for g in 0..G {
                    let start = groups.wrapping_add(g * group_bytes + offset);
                    if M == 1 {
                        super::prefetch_to::<_MM_HINT_T0>(start, W::TILE_BYTES);
                    } else {
                        super::prefetch(start, W::TILE_BYTES);
                    }
                }
            }
            // Stored int4 weights are `q + 8`; turning the sign bit makes others `q + 128`. The offset times
            // the sum of the activations is taken back beforehand.
            let (mut dots, mut others) = ([[zero; M]; G], [[zero; M]; G]);
            for m in 0..M {
                let sum = _mm512_set1_epi32(x.sums[m].add(block).read());
                let offset = match W::ELEMENT {
                    Element::Int4 => _mm512_slli_epi32::<3>(sum),
                    _ => _mm512_slli_epi32::<7>(sum),
                };
                for dots in &mut dots {
                    dots[m] = _mm512_sub_epi32(zero, offset);
                }
            }
            for pair in 0..4 {
                let (mut even, mut odd) = ([zero; G], [zero; G]);
                for g in 0..G {
                    let quants = tiles[g].add(32).cast::<__m512i>();
                    if W::ELEMENT == Element::Int8 {
                        let bytes = _mm512_loadu_si512(quants.add(2 * pair));
                        even[g] = _mm512_xor_si512(bytes, sign);
                        let bytes = _mm512_loadu_si512(quants.add(2 * pair + 1));
                        odd[g] = _mm512_xor_si512(bytes, sign);
                    } else {
                        let bytes = _mm512_loadu_si512(quants.add(pair));
                        even[g] = _mm512_and_si512(bytes, mask);
                        odd[g] = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask);
                        if W::ELEMENT == Element::Codebook4 {
                            even[g] = _mm512_shuffle_epi8(codebook, even[g]);
                            odd[g] = _mm512_shuffle_epi8(codebook, odd[g]);
                        }
                    }
                }
                for m in 0..M {
                    in_order();
                    let values = x.values[m].add(block * ACTIVATION_BLOCK + 8 * pair);
                    let values = values.cast::<i32>();
                    let first = _mm512_set1_epi32(values.read_unaligned());
                    let second = _mm512_set1_epi32(values.add(1).read_unaligned());
                    for g in 0..G {
                        dots[g][m] = _mm512_dpbusd_epi32(dots[g][m], even[g], first);
                    }
                    for g in 0..G {
                        // Without other rows, a second chain hides the latency.
                        let dots = if M == 1 { &mut others } else { &mut dots };
                        dots[g][m] = _mm512_dpbusd_epi32(dots[g][m], odd[g], second);
                    }
                }
            }
            in_order();
            for g in 0..G {
                let weight_scales = _mm512_cvtph_ps(_mm256_loadu_si256(tiles[g].cast()));
                for m in 0..M {
                    let scale = _mm512_set1_ps(x.scales[m].add(block).read());
                    let scales = _mm512_mul_ps(weight_scales, scale);
                    let dots = if M == 1 {
                        _mm512_add_epi32(dots[g][m], others[g][m])
                    } else {
                        dots[g][m]
                    };
                    let dots = _mm512_cvtepi32_ps(dots);
                    results[g][m] = _mm512_fmadd_ps(dots, scales, results[g][m]);
                }
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe {
        if !bias.is_null() {
            for (g, results) in results.iter_mut().enumerate() {
                let bias = _mm512_loadu_ps(bias.add(ROWS * g));
                for result in results {
                    *result = _mm512_add_ps(*result, bias);
                }
            }
        }
        for (g, results) in results.iter().enumerate() {
            for (result, out) in results.iter().zip(out) {
                _mm512_storeu_ps(out.add(ROWS * g), *result);
            }
        }
    }
}

/// The groups in `bytes` for the rows `rows` of `x`, as many as are a multiple of `M`: tiles of `G` groups,
/// then of single ones. The weights of a tile stay in the first-level cache for all rows.
///
/// # Safety
/// As for [`products`], and the CPU must have AVX-512 F, BW, VL and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn tiles<W: Weights, const G: usize, const M: usize>(
    weights: W,
    bytes: &[u8],
    group_bytes: usize,
    x: &QuantizedRows,
    rows: Range<usize>,
    outputs: &Outputs<'_>,
) {
    let groups = bytes.len() / group_bytes;
    let mut group = 0;
    while group < groups {
        let first = bytes[group * group_bytes..].as_ptr();
        let whole = group + G <= groups;
        let count = if whole { G } else { 1 };
        let tile = if whole {
            tile::<W, G, M>
        } else {
            tile::<W, 1, M>
        };
        for row in rows.clone().step_by(M) {
            let (values, scales, sums) = (x.values(row), x.scales(row), x.sums(row));
            let terms = scales.len();
            let blocks = [x.refined(), terms - x.refined()];
            let ahead = if M == 1 {
                Ahead::stream()
            } else {
                let left = (rows.end - row) / M - 1;
                Ahead::next_groups(rows.len() / M, left, count * group_bytes, group_bytes)
            };
            // SAFETY: row `row + m`, which the caller promises to be there, follows `m` rows later.
            let activations = unsafe {
                Activations {
                    values: from_fn(|m| values.as_ptr().add(m * terms * ACTIVATION_BLOCK)),
                    scales: from_fn(|m| scales.as_ptr().add(m * terms)),
                    sums: from_fn(|m| sums.as_ptr().add(m * terms)),
                }
            };
            // SAFETY: the caller's promises: the groups have the columns of `x`.
            unsafe {
                outputs.put::<M>(group, count, row, |bias, out| {
                    tile(weights, first, blocks, ahead, activations, bias, out);
                });
            }
        }
        group += count;
    }
}

/// Computes `outputs`, the groups in `bytes` for the rows `rows` of `x`.
///
/// # Safety
/// `bytes` must be the groups of `outputs`, of a matrix in the usual format with the columns of `x`, which must
/// have the rows `rows`. No other thread may access the outputs.
#[inline(always)]
pub(super) unsafe fn products<W: Weights>(
    _simd: Avx512,
    weights: W,
    bytes: &[u8],
    x: &QuantizedRows,
    rows: Range<usize>,
    outputs: &Outputs<'_>,
) {
    assert!(rows.end <= x.rows(), "rows {rows:?} of {}", x.rows());
    let blocks = x.width().div_ceil(ACTIVATION_BLOCK);
    let group_bytes = blocks * W::TILE_BYTES;
    let resident = (RESIDENT_BYTES / (blocks * ACTIVATION_BLOCK)).max(4) / 4 * 4;
    for start in rows.clone().step_by(resident) {
        let len = resident.min(rows.end - start);
        let (fours, twos) = (start + len / 4 * 4, start + len / 2 * 2);
        // SAFETY: `_simd` proves the CPU's support; the rest is passed on.
        unsafe {
            tiles::<W, 2, 4>(weights, bytes, group_bytes, x, start..fours, outputs);
            tiles::<W, 4, 2>(weights, bytes, group_bytes, x, fours..twos, outputs);
            // One after the other: memory is read fastest in one stream.
            tiles::<W, 1, 1>(weights, bytes, group_bytes, x, twos..start + len, outputs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tiles_of_rows_fetch_all_of_the_next_groups_between_them() {
        for tile_bytes in [288, 544] {
            for blocks in 1..40 {
                let group_bytes = blocks * tile_bytes;
                for tiles in 1..10 {
                    let mut fetched = vec![false; group_bytes];
                    let mut fetches = 0;
                    for left in (0..tiles).rev() {
                        let ahead = Ahead::next_groups(tiles, left, 2 * group_bytes, group_bytes);
                        for block in (0..blocks).filter(|block| block % (1 << ahead.shift) == 0) {
                            let start = ahead.distance_bytes + (block >> ahead.shift) * tile_bytes;
                            let Some(start) = start.checked_sub(2 * group_bytes) else {
                                continue;
                            };
                            fetches += 1;
                            let end = (start + tile_bytes).min(group_bytes);
                            fetched[start..end].fill(true);
                        }
                    }
                    assert!(fetched.iter().all(|fetched| *fetched), "{blocks} {tiles}");
                    assert!(fetches < blocks + FETCHING_TILES, "{blocks} {tiles}");
                }
            }
        }
    }
}
