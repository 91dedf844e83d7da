//! NEON with the 8-bit matrix multiply instructions of ARMv8.6.
//!
//! `smmla` multiplies 2 x 8 weights by 8 x 2 activations. Single rows go through the dot product.
#![allow(unsafe_code)]

use super::dotprod::{Dotprod, has_dotprod};
use super::floats::{Floats, Ints};
use super::products::{Activations, PANEL_ROWS, Products};
use super::tiles::{TileReader, stored_apart};
use super::{shared_methods, unrolled};
use crate::dispatch::Work;
use crate::lanes::Simd;
use crate::quantized::ActivationTile;
use crate::weights::Weights;
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::array::from_fn;

/// Proof that the CPU has the dot product and the matrix multiply instructions.
#[derive(Clone, Copy)]
pub(crate) struct I8mm(Dotprod);

/// Whether the CPU has all that these kernels use.
pub(crate) fn has_i8mm() -> bool {
    has_dotprod() && is_aarch64_feature_detected!("i8mm")
}

/// Runs `work`, compiled with the matrix multiply instructions.
///
/// # Safety
/// [`has_i8mm`] must have answered yes.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(crate) unsafe fn run_i8mm<W: Work>(work: W) {
    // SAFETY: the caller's promise.
    work.run(I8mm(unsafe { Dotprod::assume() }));
}

/// A tile in the order of [`add_eight_rows`]: two times eight rows.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct PairTile([EightRows; 2]);

#[derive(Clone, Copy)]
#[repr(C)]
struct EightRows {
    /// `[row pair]`: the scales (row 0, row 0, row 1, row 1).
    scales: [float32x4_t; 4],
    /// `[row pair][octet of columns]`: 8 weights of a row, then of the next.
    weights: [[int8x16_t; 4]; 4],
}

/// Sums of four pairs of rows and two pairs of activation rows: of a pair of each (row 0 x activations 0,
/// row 0 x activations 1, row 1 x activations 0, row 1 x activations 1), which is the order of `smmla`.
type EightSums = [[float32x4_t; 2]; 4];

/// Adds the products of the eight rows `which` of consecutive tiles and four rows of activations to `sums`.
///
/// Written out because 8 sums, 8 registers of activations and the 16 of a pair of rows on the way take all there are.
///
/// # Safety
/// The CPU must have i8mm; `x` must have a block for each of the tiles, of which there must be one.
#[inline(always)]
unsafe fn add_eight_rows(
    tiles: &[PairTile],
    which: usize,
    x: *const ActivationTile,
    sums: &mut EightSums,
) {
    /// The products of a pair of rows, whose weights are in `$a` to `$d`, added to the sums `$first` and `$second`.
    macro_rules! row_pair {
        ($scales:literal, $a:literal $b:literal $c:literal $d:literal, $first:literal $second:literal) => {
            concat!(
                "movi v30.4s, #0\n",
                "movi v31.4s, #0\n",
                "smmla v30.4s, ",
                $a,
                ".16b, v8.16b\n",
                "smmla v31.4s, ",
                $a,
                ".16b, v9.16b\n",
                "smmla v30.4s, ",
                $b,
                ".16b, v10.16b\n",
                "smmla v31.4s, ",
                $b,
                ".16b, v11.16b\n",
                "smmla v30.4s, ",
                $c,
                ".16b, v12.16b\n",
                "smmla v31.4s, ",
                $c,
                ".16b, v13.16b\n",
                "smmla v30.4s, ",
                $d,
                ".16b, v14.16b\n",
                "smmla v31.4s, ",
                $d,
                ".16b, v15.16b\n",
                "fmul ",
                $a,
                ".4s, ",
                $scales,
                ".4s, v28.4s\n",
                "fmul ",
                $b,
                ".4s, ",
                $scales,
                ".4s, v29.4s\n",
                "scvtf v30.4s, v30.4s\n",
                "scvtf v31.4s, v31.4s\n",
                "fmla ",
                $first,
                ".4s, v30.4s, ",
                $a,
                ".4s\n",
                "fmla ",
                $second,
                ".4s, v31.4s, ",
                $b,
                ".4s\n",
            )
        };
    }
    let [[s0, s1], [s2, s3], [s4, s5], [s6, s7]] = sums;
    // SAFETY: as many tiles and blocks are read as there are, each from its first byte to its last; all registers
    // that are written are named.
    unsafe {
        asm!(
            "2:",
            "ld1 {{v24.4s, v25.4s, v26.4s, v27.4s}}, [{tile}], #64",
            "ld1 {{v8.16b, v9.16b, v10.16b, v11.16b}}, [{x}], #64",
            "ld1 {{v16.16b, v17.16b, v18.16b, v19.16b}}, [{tile}], #64",
            "ld1 {{v12.16b, v13.16b, v14.16b, v15.16b}}, [{x}], #64",
            "ldp q28, q29, [{x}], #32",
            "ld1 {{v20.16b, v21.16b, v22.16b, v23.16b}}, [{tile}], #64",
            row_pair!("v24", "v16" "v17" "v18" "v19", "v0" "v1"),
            "ld1 {{v16.16b, v17.16b, v18.16b, v19.16b}}, [{tile}], #64",
            row_pair!("v25", "v20" "v21" "v22" "v23", "v2" "v3"),
            "ld1 {{v20.16b, v21.16b, v22.16b, v23.16b}}, [{tile}], {skip}",
            "subs {count}, {count}, #1",
            row_pair!("v26", "v16" "v17" "v18" "v19", "v4" "v5"),
            row_pair!("v27", "v20" "v21" "v22" "v23", "v6" "v7"),
            "b.ne 2b",
            tile = inout(reg) tiles.as_ptr().cast::<EightRows>().add(which) => _,
            // From the last 64 bytes over the other eight rows.
            skip = in(reg) 64 + size_of::<EightRows>(),
            x = inout(reg) x => _,
            count = inout(reg) tiles.len() => _,
            inout("v0") *s0, inout("v1") *s1, inout("v2") *s2, inout("v3") *s3,
            inout("v4") *s4, inout("v5") *s5, inout("v6") *s6, inout("v7") *s7,
            out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _, out("v14") _,
            out("v15") _, out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _,
            out("v22") _, out("v23") _, out("v24") _, out("v25") _, out("v26") _, out("v27") _, out("v28") _,
            out("v29") _, out("v30") _, out("v31") _,
            options(readonly, nostack),
        );
    }
}

impl Products for I8mm {
    type Tile = PairTile;
    /// Of the first eight rows, and of the last.
    type Sums = [EightSums; 2];
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
        // SAFETY: passed on: a CPU with i8mm has dotprod.
        unsafe {
            Dotprod::add_tile::<W, LANE>(tiles, codebook, activations, scales, offsets, sums)
        };
    }

    #[inline(always)]
    unsafe fn unpack<W: Weights>(tiles: &mut TileReader, codebook: int8x16_t, out: *mut PairTile) {
        // SAFETY: the caller's promise; all numbers of the tile are written.
        unsafe {
            for (i, four) in tiles.row_scales().into_iter().enumerate() {
                let four = vreinterpretq_s32_f32(four);
                let scales = &raw mut (*out).0[i / 2].scales;
                for (pair, scales_of_pair) in [vzip1q_s32(four, four), vzip2q_s32(four, four)]
                    .into_iter()
                    .enumerate()
                {
                    (&raw mut (*scales)[2 * (i % 2) + pair])
                        .write(vreinterpretq_f32_s32(stored_apart(scales_of_pair)));
                }
            }
            unrolled!(for octet in [0 1 2 3] {
                let [first, last] = tiles.signed_octet::<W>(codebook, octet % 2 == 1);
                for i in 0..4 {
                    let first = vreinterpretq_s32_s8(first[i]);
                    let last = vreinterpretq_s32_s8(last[i]);
                    let pairs = [vzip1q_s32(first, last), vzip2q_s32(first, last)];
                    let weights = &raw mut (*out).0[i / 2].weights;
                    for (pair, weights_of_pair) in pairs.into_iter().enumerate() {
                        (&raw mut (*weights)[2 * (i % 2) + pair][octet])
                            .write(vreinterpretq_s8_s32(stored_apart(weights_of_pair)));
                    }
                }
            });
        }
    }

    #[inline(always)]
    unsafe fn add_panel<W: Weights>(tiles: &[PairTile], x: Activations, sums: &mut Self::Sums) {
        if tiles.is_empty() {
            return;
        }
        for (which, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise; there is a tile.
            unsafe { add_eight_rows(tiles, which, x.interleaved, sums) };
        }
    }

    #[inline(always)]
    fn outputs(sums: &Self::Sums) -> [Floats; PANEL_ROWS] {
        from_fn(|m| {
            Floats(from_fn(|i| {
                let pairs = &sums[i / 2][2 * (i % 2)..];
                let (upper, lower) = (pairs[0][m / 2], pairs[1][m / 2]);
                // SAFETY: NEON is always there.
                unsafe {
                    if m % 2 == 0 {
                        vuzp1q_f32(upper, lower)
                    } else {
                        vuzp2q_f32(upper, lower)
                    }
                }
            }))
        })
    }
}

impl Simd for I8mm {
    shared_methods!();
    const BATCH: usize = 4;
    const INTERLEAVED: bool = true;

    #[inline(always)]
    unsafe fn dots_int4<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        sums: [i32; M],
    ) -> [Ints; M] {
        // SAFETY: passed on.
        unsafe { self.0.dots_int4::<M, QUADS>(quants, activations, sums) }
    }

    #[inline(always)]
    unsafe fn dots_int8<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        sums: [i32; M],
    ) -> [Ints; M] {
        // SAFETY: passed on.
        unsafe { self.0.dots_int8::<M, QUADS>(quants, activations, sums) }
    }
}
