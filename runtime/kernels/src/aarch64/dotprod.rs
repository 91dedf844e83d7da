//! NEON with the dot product instructions of ARMv8.2.
#![allow(unsafe_code)]

use super::floats::{Floats, Ints};
use super::products::{Activations, PANEL_ROWS, Products, multiply};
use super::tiles::{TileReader, split_nibbles};
use super::{float_methods, unrolled};
use crate::dispatch::Work;
use crate::lanes::Simd;
use crate::quantized::QuantizedRows;
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::array::from_fn;

/// Proof that the CPU has the dot product instructions.
#[derive(Clone, Copy)]
pub(crate) struct Dotprod(());

/// Whether the CPU has all that these kernels use.
pub(crate) fn has_dotprod() -> bool {
    is_aarch64_feature_detected!("dotprod")
}

/// Runs `work`, compiled with the dot product instructions.
///
/// # Safety
/// [`has_dotprod`] must have answered yes.
#[target_feature(enable = "neon,dotprod")]
pub(crate) unsafe fn run_dotprod<W: Work>(work: W) {
    work.run(Dotprod(()));
}

impl Dotprod {
    /// # Safety
    /// [`has_dotprod`] must have answered yes.
    #[inline(always)]
    pub(super) unsafe fn assume() -> Self {
        Self(())
    }
}

/// Adds to each lane of `sums` the dot product of four weights with activations `4 * LANE..4 * LANE + 4`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot<const LANE: i32>(sums: int32x4_t, weights: int8x16_t, activations: int8x16_t) -> int32x4_t {
    let mut sums = sums;
    // The intrinsic is not stable.
    // SAFETY: an instruction that this function is compiled for and that only touches its operands.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{lane}]",
            inout(vreg) sums, in(vreg) weights, in(vreg) activations, lane = const LANE,
            options(nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// The weights of quads `2 * CHUNK` and `2 * CHUNK + 1` of an int4 tile.
///
/// # Safety
/// The CPU must have dotprod; `64 * (CHUNK + 1)` bytes must be readable at `quants`.
#[inline(always)]
unsafe fn add_int4_chunk<const M: usize, const CHUNK: usize, const LANE: i32, const NEXT: i32>(
    quants: *const u8,
    activations: &[[int8x16_t; 2]; M],
    dots: &mut [Ints; M],
) {
    for four_rows in 0..4 {
        // SAFETY: the caller's promise.
        unsafe {
            let bytes = vld1q_u8(quants.add(64 * CHUNK + 16 * four_rows));
            let low = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
            let high = vreinterpretq_s8_u8(vshrq_n_u8::<4>(bytes));
            for (dots, activations) in dots.iter_mut().zip(activations) {
                let a = activations[CHUNK / 2];
                let sums = &mut dots.0[four_rows];
                *sums = sdot::<NEXT>(sdot::<LANE>(*sums, low, a), high, a);
            }
        }
    }
}

/// The weights of quad `4 * HALF + LANE` of an int8 tile.
///
/// # Safety
/// The CPU must have dotprod; `64 * (4 * HALF + LANE + 1)` bytes must be readable at `quants`.
#[inline(always)]
unsafe fn add_int8_quad<const M: usize, const HALF: usize, const LANE: i32>(
    quants: *const u8,
    activations: &[[int8x16_t; 2]; M],
    dots: &mut [Ints; M],
) {
    for four_rows in 0..4 {
        // SAFETY: the caller's promise.
        unsafe {
            let quad = 4 * HALF + LANE as usize;
            let weights = vld1q_s8(quants.add(64 * quad + 16 * four_rows).cast());
            for (dots, activations) in dots.iter_mut().zip(activations) {
                let sums = &mut dots.0[four_rows];
                *sums = sdot::<LANE>(*sums, weights, activations[HALF]);
            }
        }
    }
}

/// The activations of a block, 16 in a register; those of a half block twice.
///
/// # Safety
/// `4 * QUADS` bytes must be readable at each pointer.
#[inline(always)]
unsafe fn load_activations<const M: usize, const QUADS: usize>(
    activations: [*const i8; M],
) -> [[int8x16_t; 2]; M] {
    // SAFETY: the caller's promise.
    activations.map(|a| unsafe {
        let first = vld1q_s8(a);
        [
            first,
            if QUADS == 8 {
                vld1q_s8(a.add(16))
            } else {
                first
            },
        ]
    })
}

/// Adds the dot products of four columns of 16 rows with activations `4 * lane..4 * lane + 4`.
///
/// # Safety
/// The CPU must have dotprod.
#[inline(always)]
unsafe fn add_quad(
    dots: &mut [int32x4_t; 4],
    weights: [int8x16_t; 4],
    half: int8x16_t,
    lane: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match lane {
            0 => *dots = from_fn(|i| sdot::<0>(dots[i], weights[i], half)),
            1 => *dots = from_fn(|i| sdot::<1>(dots[i], weights[i], half)),
            2 => *dots = from_fn(|i| sdot::<2>(dots[i], weights[i], half)),
            _ => *dots = from_fn(|i| sdot::<3>(dots[i], weights[i], half)),
        }
    }
}

/// A tile in the order of a panel.
#[derive(Clone, Copy)]
pub(super) struct DotTile {
    /// `[four rows]`
    scales: [float32x4_t; 4],
    /// `[eight rows][quad of columns][four rows]`
    weights: [[[int8x16_t; 2]; 8]; 2],
}

impl Products for Dotprod {
    type Tile = DotTile;
    /// `[eight rows][row of activations][four rows]`
    type Sums = [[[float32x4_t; 2]; PANEL_ROWS]; 2];
    // SAFETY: all bits zero are the number zero.
    const NO_SUMS: Self::Sums = unsafe { std::mem::zeroed() };

    #[inline(always)]
    unsafe fn add_tile<const INT4: bool, const LANE: i32>(
        tiles: &mut TileReader,
        activations: *const i8,
        scales: float32x4_t,
        offsets: int32x4_t,
        sums: &mut Floats,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let row_scales = tiles.row_scales();
            let halves = [vld1q_s8(activations), vld1q_s8(activations.add(16))];
            let start = if INT4 {
                vdupq_laneq_s32::<LANE>(offsets)
            } else {
                vdupq_n_s32(0)
            };
            let mut dots = [start; 4];
            // Loads are a step ahead, for cores that work in order.
            let mut bytes = tiles.next_64(false);
            if INT4 {
                let mut add_octet = |bytes, octet: usize| {
                    let [first, last] = split_nibbles(bytes);
                    add_quad(&mut dots, first, halves[octet / 2], 2 * (octet % 2));
                    add_quad(&mut dots, last, halves[octet / 2], 2 * (octet % 2) + 1);
                };
                unrolled!(for octet in [0 1 2] {
                    let ahead = tiles.next_64(octet % 2 == 0);
                    add_octet(bytes, octet);
                    bytes = ahead;
                });
                add_octet(bytes, 3);
            } else {
                unrolled!(for quad in [0 1 2 3 4 5 6] {
                    let ahead = tiles.next_64(quad % 2 == 0);
                    add_quad(&mut dots, bytes, halves[quad / 4], quad % 4);
                    bytes = ahead;
                });
                add_quad(&mut dots, bytes, halves[1], 3);
            }
            *sums = Floats(from_fn(|i| {
                let scale = vmulq_laneq_f32::<LANE>(row_scales[i], scales);
                vfmaq_f32(sums.0[i], vcvtq_f32_s32(dots[i]), scale)
            }));
        }
    }

    #[inline(always)]
    unsafe fn unpack<const INT4: bool>(tiles: &mut TileReader) -> DotTile {
        // SAFETY: the caller's promise.
        unsafe {
            let scales = tiles.row_scales();
            let mut weights = [[[vdupq_n_s8(0); 2]; 8]; 2];
            unrolled!(for octet in [0 1 2 3] {
                let octets = tiles.signed_octet::<INT4>(octet % 2 == 1);
                for (i, quad) in octets.into_iter().enumerate() {
                    weights[0][2 * octet + i] = [quad[0], quad[1]];
                    weights[1][2 * octet + i] = [quad[2], quad[3]];
                }
            });
            DotTile { scales, weights }
        }
    }

    #[inline(always)]
    unsafe fn add_panel<const INT4: bool>(
        tiles: &[DotTile],
        x: Activations,
        sums: &mut Self::Sums,
    ) {
        // Eight rows at a time: as many as the registers hold.
        for (eight_rows, sums) in sums.iter_mut().enumerate() {
            let mut x = x.interleaved;
            let mut running = *sums;
            for tile in tiles {
                let row_scales = &tile.scales.as_chunks::<2>().0[eight_rows];
                // SAFETY: the caller's promise; the weights of eight rows are 256 bytes.
                unsafe {
                    let mut weights = TileReader::new((&raw const tile.weights[eight_rows]).cast());
                    let values: *const i8 = (&raw const (*x).values).cast();
                    let pairs: [[_; 4]; 2] = from_fn(|pair| {
                        from_fn(|octet| vld1q_s8(values.add(64 * pair + 16 * octet)))
                    });
                    let mut dots = [[vdupq_n_s32(0); 2]; PANEL_ROWS];
                    let mut ahead = weights.next_64(false);
                    unrolled!(for octet in [0 1 2 3] {
                        let current = ahead;
                        if octet < 3 {
                            ahead = weights.next_64(octet % 2 == 0);
                        }
                        for (pair, dots) in dots.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                            let a = pairs[pair][octet];
                            dots[0] = from_fn(|i| sdot::<0>(dots[0][i], current[i], a));
                            dots[1] = from_fn(|i| sdot::<2>(dots[1][i], current[i], a));
                        }
                        for (pair, dots) in dots.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                            let a = pairs[pair][octet];
                            dots[0] = from_fn(|i| sdot::<1>(dots[0][i], current[2 + i], a));
                            dots[1] = from_fn(|i| sdot::<3>(dots[1][i], current[2 + i], a));
                        }
                    });
                    let scales = vld1q_f32((*x).scales.as_ptr());
                    let mut add = |m: usize, scale: [float32x4_t; 2]| {
                        running[m] = from_fn(|i| {
                            vfmaq_f32(running[m][i], vcvtq_f32_s32(dots[m][i]), scale[i])
                        });
                    };
                    add(0, row_scales.map(|rows| vmulq_laneq_f32::<0>(rows, scales)));
                    add(1, row_scales.map(|rows| vmulq_laneq_f32::<1>(rows, scales)));
                    add(2, row_scales.map(|rows| vmulq_laneq_f32::<2>(rows, scales)));
                    add(3, row_scales.map(|rows| vmulq_laneq_f32::<3>(rows, scales)));
                    x = x.add(1);
                }
            }
            *sums = running;
        }
    }

    #[inline(always)]
    fn outputs(sums: &Self::Sums) -> [Floats; PANEL_ROWS] {
        from_fn(|m| Floats([sums[0][m][0], sums[0][m][1], sums[1][m][0], sums[1][m][1]]))
    }
}

impl Simd for Dotprod {
    float_methods!();
    const BATCH: usize = 4;
    const INTERLEAVED: bool = true;

    #[inline(always)]
    fn batch<const INT4: bool>(
        self,
        group: &[u8],
        x: &QuantizedRows,
        finish: impl FnMut(usize, Floats),
    ) -> usize {
        // SAFETY: `self` proves the CPU's support.
        unsafe { multiply::<Self, INT4>(group, x, finish) }
    }

    #[inline(always)]
    unsafe fn dots_int4<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        sums: [i32; M],
    ) -> [Ints; M] {
        let mut dots = sums.map(|sum| Ints::splat(-8 * sum));
        // SAFETY: the caller's promise on the lengths; `self` proves the CPU's support.
        unsafe {
            let activations = load_activations::<M, QUADS>(activations);
            add_int4_chunk::<M, 0, 0, 1>(quants, &activations, &mut dots);
            add_int4_chunk::<M, 1, 2, 3>(quants, &activations, &mut dots);
            if QUADS == 8 {
                add_int4_chunk::<M, 2, 0, 1>(quants, &activations, &mut dots);
                add_int4_chunk::<M, 3, 2, 3>(quants, &activations, &mut dots);
            }
        }
        dots
    }

    #[inline(always)]
    unsafe fn dots_int8<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        _sums: [i32; M],
    ) -> [Ints; M] {
        let mut dots = [Ints::splat(0); M];
        // SAFETY: the caller's promise on the lengths; `self` proves the CPU's support.
        unsafe {
            let activations = load_activations::<M, QUADS>(activations);
            add_int8_quad::<M, 0, 0>(quants, &activations, &mut dots);
            add_int8_quad::<M, 0, 1>(quants, &activations, &mut dots);
            add_int8_quad::<M, 0, 2>(quants, &activations, &mut dots);
            add_int8_quad::<M, 0, 3>(quants, &activations, &mut dots);
            if QUADS == 8 {
                add_int8_quad::<M, 1, 0>(quants, &activations, &mut dots);
                add_int8_quad::<M, 1, 1>(quants, &activations, &mut dots);
                add_int8_quad::<M, 1, 2>(quants, &activations, &mut dots);
                add_int8_quad::<M, 1, 3>(quants, &activations, &mut dots);
            }
        }
        dots
    }
}
