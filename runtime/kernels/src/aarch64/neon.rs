//! Plain NEON: widening multiplications to 16 bits.
#![allow(unsafe_code)]

use super::floats::{Floats, Ints};
use super::products::{Activations, PANEL_ROWS, Products};
use super::tiles::TileReader;
use super::{shared_methods, unrolled};
use crate::dispatch::Work;
use crate::format::{ACTIVATION_BLOCK, Element};
use crate::lanes::Simd;
use crate::weights::Weights;
use std::arch::aarch64::*;
use std::arch::asm;
use std::array::from_fn;

#[derive(Clone, Copy)]
pub(crate) struct Neon;

/// Runs `work` with plain NEON.
pub(crate) fn run_neon<W: Work>(work: W) {
    work.run(Neon);
}

/// Four activations, four times.
///
/// # Safety
/// `4 * quad + 4` bytes must be readable.
#[inline(always)]
unsafe fn broadcast_quad(activations: *const i8, quad: usize) -> int8x16_t {
    // SAFETY: the caller's promise.
    unsafe { vreinterpretq_s8_s32(vld1q_dup_s32(activations.cast::<i32>().add(quad))) }
}

/// A multiplication of eight weights with eight activations, to 16 bits.
///
/// Not the intrinsics: the compiler sees that the upper activations equal the lower ones, takes those, and then
/// has to move the weights down with an instruction of its own.
macro_rules! multiplication {
    ($(#[$doc:meta])* $name:ident($instruction:literal)) => {
        $(#[$doc])*
        #[inline(always)]
        fn $name(weights: int8x16_t, activations: int8x16_t) -> int16x8_t {
            let products;
            // SAFETY: a base NEON instruction that only touches its operands.
            unsafe {
                asm!($instruction, out(vreg) products, in(vreg) weights, in(vreg) activations,
                    options(nomem, nostack, preserves_flags));
            }
            products
        }
    };
    ($(#[$doc:meta])* $name:ident($instruction:literal, sums)) => {
        $(#[$doc])*
        #[inline(always)]
        fn $name(sums: int16x8_t, weights: int8x16_t, activations: int8x16_t) -> int16x8_t {
            let mut sums = sums;
            // SAFETY: a base NEON instruction that only touches its operands.
            unsafe {
                asm!($instruction, inout(vreg) sums, in(vreg) weights, in(vreg) activations,
                    options(nomem, nostack, preserves_flags));
            }
            sums
        }
    };
}

multiplication!(lower_products("smull {0:v}.8h, {1:v}.8b, {2:v}.8b"));
multiplication!(upper_products("smull2 {0:v}.8h, {1:v}.16b, {2:v}.16b"));
multiplication!(add_lower_products(
    "smlal {0:v}.8h, {1:v}.8b, {2:v}.8b",
    sums
));
multiplication!(add_upper_products(
    "smlal2 {0:v}.8h, {1:v}.16b, {2:v}.16b",
    sums
));

/// Four activations of each of the eight quads of a block, four times.
#[inline(always)]
fn broadcast([first, second]: [int8x16_t; 2]) -> [int8x16_t; 8] {
    // SAFETY: NEON is always there.
    unsafe {
        let (first, second) = (vreinterpretq_s32_s8(first), vreinterpretq_s32_s8(second));
        [
            vdupq_laneq_s32::<0>(first),
            vdupq_laneq_s32::<1>(first),
            vdupq_laneq_s32::<2>(first),
            vdupq_laneq_s32::<3>(first),
            vdupq_laneq_s32::<0>(second),
            vdupq_laneq_s32::<1>(second),
            vdupq_laneq_s32::<2>(second),
            vdupq_laneq_s32::<3>(second),
        ]
        .map(|quad| vreinterpretq_s8_s32(quad))
    }
}

/// The products of four rows of weights: of the first two rows, and of the last two.
type Products16 = [int16x8_t; 2];

#[inline(always)]
fn products(weights: int8x16_t, activations: int8x16_t) -> Products16 {
    [
        lower_products(weights, activations),
        upper_products(weights, activations),
    ]
}

#[inline(always)]
fn add_products(
    [lower, upper]: Products16,
    weights: int8x16_t,
    activations: int8x16_t,
) -> Products16 {
    [
        add_lower_products(lower, weights, activations),
        add_upper_products(upper, weights, activations),
    ]
}

/// The sums of two neighbours each: two of every row.
#[inline(always)]
fn add_neighbours([lower, upper]: Products16) -> int16x8_t {
    // SAFETY: NEON is always there.
    unsafe { vpaddq_s16(lower, upper) }
}

/// Sums of neighbours: of each pair of products, or added to `sums`.
macro_rules! pairwise {
    ($name:ident($instruction:literal, $kind:ident $(, $sums:ident)?)) => {
        #[inline(always)]
        fn $name($($sums: int32x4_t,)? products: int16x8_t) -> int32x4_t {
            let out;
            // SAFETY: a base NEON instruction that only touches its operands.
            unsafe {
                asm!($instruction, $kind(vreg) $($sums =>)? out, in(vreg) products,
                    options(nomem, nostack, preserves_flags));
            }
            out
        }
    };
}

pairwise!(add_pairs("saddlp {0:v}.4s, {1:v}.8h", out));
pairwise!(accumulate_pairs("sadalp {0:v}.4s, {1:v}.8h", inout, sums));

/// A tile in the order of a panel.
#[derive(Clone, Copy)]
pub(super) struct NeonTile {
    /// `[four rows]`
    scales: [float32x4_t; 4],
    /// `[four rows][quad of columns]`
    weights: [[int8x16_t; 8]; 4],
}

impl Products for Neon {
    type Tile = NeonTile;
    /// `[row of activations]`
    type Sums = [[float32x4_t; 4]; PANEL_ROWS];
    // SAFETY: all bits zero are the number zero.
    const NO_SUMS: Self::Sums = unsafe { std::mem::zeroed() };

    #[inline(always)]
    unsafe fn add_tile<W: Weights, const LANE: i32>(
        tiles: &mut TileReader,
        codebook: int8x16_t,
        activations: *const i8,
        scales: float32x4_t,
        offsets: int32x4_t,
        sums: &mut Floats,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let row_scales = tiles.row_scales();
            let a = broadcast([vld1q_s8(activations), vld1q_s8(activations.add(16))]);
            let dots = if W::ELEMENT == Element::Int4 {
                // All products of a row are added in 16 bits: 8 of them per lane and 16 per pair of
                // neighbours, each at most 15 * 127.
                let [first, last] = tiles.octet::<W>(codebook, false);
                let mut rows: [_; 4] = from_fn(|i| products(first[i], a[0]));
                rows = from_fn(|i| add_products(rows[i], last[i], a[1]));
                unrolled!(for octet in [1 2 3] {
                    let [first, last] = tiles.octet::<W>(codebook, octet % 2 == 1);
                    rows = from_fn(|i| add_products(rows[i], first[i], a[2 * octet]));
                    rows = from_fn(|i| add_products(rows[i], last[i], a[2 * octet + 1]));
                });
                let start = vdupq_laneq_s32::<LANE>(offsets);
                from_fn(|i| accumulate_pairs(start, add_neighbours(rows[i])))
            } else {
                // Two products fit into 16 bits: at most 2 * 128 * 127.
                let pairs = |[first, last]: [[int8x16_t; 4]; 2], octet: usize| -> [_; 4] {
                    from_fn(|i| {
                        let rows = products(first[i], a[2 * octet]);
                        add_products(rows, last[i], a[2 * octet + 1])
                    })
                };
                let mut rows =
                    pairs(tiles.octet::<W>(codebook, false), 0).map(|rows| rows.map(add_pairs));
                unrolled!(for octet in [1 2 3] {
                    let pairs = pairs(tiles.octet::<W>(codebook, false), octet);
                    for (rows, pairs) in rows.iter_mut().zip(pairs) {
                        rows[0] = accumulate_pairs(rows[0], pairs[0]);
                        rows[1] = accumulate_pairs(rows[1], pairs[1]);
                    }
                });
                rows.map(|[lower, upper]| vpaddq_s32(lower, upper))
            };
            *sums = Floats(from_fn(|i| {
                let scale = vmulq_laneq_f32::<LANE>(row_scales[i], scales);
                vfmaq_f32(sums.0[i], vcvtq_f32_s32(dots[i]), scale)
            }));
        }
    }

    #[inline(always)]
    unsafe fn unpack<W: Weights>(tiles: &mut TileReader, codebook: int8x16_t, out: *mut NeonTile) {
        // SAFETY: the caller's promise; all numbers of the tile are written.
        unsafe {
            (&raw mut (*out).scales).write(tiles.row_scales());
            unrolled!(for octet in [0 1 2 3] {
                let octets = tiles.signed_octet::<W>(codebook, octet % 2 == 1);
                for (i, quad) in octets.into_iter().enumerate() {
                    for (four_rows, weights) in quad.into_iter().enumerate() {
                        (&raw mut (*out).weights[four_rows][2 * octet + i]).write(weights);
                    }
                }
            });
        }
    }

    #[inline(always)]
    unsafe fn add_panel<W: Weights>(tiles: &[NeonTile], x: Activations, sums: &mut Self::Sums) {
        for ((values, scales), sums) in x.values.into_iter().zip(x.scales).zip(sums) {
            let mut running = *sums;
            for (block, tile) in tiles.iter().enumerate() {
                // SAFETY: the caller's promise; the weights of four rows are 128 bytes.
                unsafe {
                    let values = values.add(ACTIVATION_BLOCK * block);
                    let a = broadcast([vld1q_s8(values), vld1q_s8(values.add(16))]);
                    let scale = vld1q_dup_f32(scales.add(block));
                    let mut weights = TileReader::new((&raw const tile.weights).cast());
                    unrolled!(for four_rows in [0 1 2 3] {
                        let dots = dots::<W>([weights.next_64(false), weights.next_64(true)], &a);
                        let scale = vmulq_f32(tile.scales[four_rows], scale);
                        running[four_rows] = vfmaq_f32(running[four_rows], vcvtq_f32_s32(dots), scale);
                    });
                }
            }
            *sums = running;
        }
    }

    #[inline(always)]
    fn outputs(sums: &Self::Sums) -> [Floats; PANEL_ROWS] {
        sums.map(Floats)
    }
}

/// The dot products of four rows of weights, of -8 to 7 if they are int4, and a block of activations.
#[inline(always)]
fn dots<W: Weights>(weights: [[int8x16_t; 4]; 2], a: &[int8x16_t; 8]) -> int32x4_t {
    let [[w0, w1, w2, w3], [w4, w5, w6, w7]] = weights;
    // SAFETY: NEON is always there.
    unsafe {
        if W::ELEMENT == Element::Int4 {
            // All products of a row are added in 16 bits.
            let rows = add_products(products(w0, a[0]), w1, a[1]);
            let rows = add_products(add_products(rows, w2, a[2]), w3, a[3]);
            let rows = add_products(add_products(rows, w4, a[4]), w5, a[5]);
            let rows = add_products(add_products(rows, w6, a[6]), w7, a[7]);
            add_pairs(add_neighbours(rows))
        } else {
            // Two products fit into 16 bits: at most 2 * 128 * 127.
            let add_pair = |[lower, upper]: [int32x4_t; 2], [first, second]: Products16| {
                [
                    accumulate_pairs(lower, first),
                    accumulate_pairs(upper, second),
                ]
            };
            let sums = add_products(products(w0, a[0]), w1, a[1]).map(add_pairs);
            let sums = add_pair(sums, add_products(products(w2, a[2]), w3, a[3]));
            let sums = add_pair(sums, add_products(products(w4, a[4]), w5, a[5]));
            let [lower, upper] = add_pair(sums, add_products(products(w6, a[6]), w7, a[7]));
            vpaddq_s32(lower, upper)
        }
    }
}

impl Simd for Neon {
    shared_methods!();
    const BATCH: usize = 2;

    /// The products of a row are added in 16 bits: 16 of them per lane, at most 15 * 127 each.
    #[inline(always)]
    unsafe fn dots_int4<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        sums: [i32; M],
    ) -> [Ints; M] {
        let mut dots = sums.map(|sum| Ints::splat(-8 * sum));
        // SAFETY: the caller's promise on the lengths.
        unsafe {
            unrolled!(for four_rows in [0 1 2 3] {
                let mut first = [vdupq_n_s16(0); M];
                let mut second = [vdupq_n_s16(0); M];
                unrolled!(for chunk in [0 1 2 3] {
                    if chunk < QUADS / 2 {
                        let bytes = vld1q_u8(quants.add(64 * chunk + 16 * four_rows));
                        let low = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
                        let high = vreinterpretq_s8_u8(vshrq_n_u8::<4>(bytes));
                        for m in 0..M {
                            let a = broadcast_quad(activations[m], 2 * chunk);
                            first[m] = add_lower_products(first[m], low, a);
                            second[m] = add_upper_products(second[m], low, a);
                            let a = broadcast_quad(activations[m], 2 * chunk + 1);
                            first[m] = add_lower_products(first[m], high, a);
                            second[m] = add_upper_products(second[m], high, a);
                        }
                    }
                });
                for m in 0..M {
                    let rows = vpaddq_s32(vpaddlq_s16(first[m]), vpaddlq_s16(second[m]));
                    dots[m].0[four_rows] = vaddq_s32(dots[m].0[four_rows], rows);
                }
            });
        }
        dots
    }

    /// Two products fit into 16 bits: at most 2 * 128 * 127.
    #[inline(always)]
    unsafe fn dots_int8<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        _sums: [i32; M],
    ) -> [Ints; M] {
        let mut dots = [Ints::splat(0); M];
        // SAFETY: the caller's promise on the lengths.
        unsafe {
            unrolled!(for four_rows in [0 1 2 3] {
                let mut first = [vdupq_n_s32(0); M];
                let mut second = [vdupq_n_s32(0); M];
                unrolled!(for pair in [0 1 2 3] {
                    if pair < QUADS / 2 {
                        let quads = quants.add(128 * pair + 16 * four_rows).cast();
                        let (even, odd) = (vld1q_s8(quads), vld1q_s8(quads.add(64)));
                        for m in 0..M {
                            let a_even = broadcast_quad(activations[m], 2 * pair);
                            let a_odd = broadcast_quad(activations[m], 2 * pair + 1);
                            let products = lower_products(even, a_even);
                            let products = add_lower_products(products, odd, a_odd);
                            first[m] = vpadalq_s16(first[m], products);
                            let products = upper_products(even, a_even);
                            let products = add_upper_products(products, odd, a_odd);
                            second[m] = vpadalq_s16(second[m], products);
                        }
                    }
                });
                for m in 0..M {
                    dots[m].0[four_rows] = vpaddq_s32(first[m], second[m]);
                }
            });
        }
        dots
    }
}
