//! NEON with the dot product instructions of ARMv8.2.
#![allow(unsafe_code)]

use super::floats::{Floats, Ints};
use super::products::{Activations, PANEL_ROWS, Products};
use super::tiles::{TileReader, split};
use super::{shared_methods, unrolled};
use crate::dispatch::Work;
use crate::format::Element;
use crate::lanes::Simd;
use crate::quantized::ActivationTile;
use crate::weights::Weights;
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

/// A tile in the order of [`add_eight_rows`]: two times eight rows.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct DotTile([EightRows; 2]);

#[derive(Clone, Copy)]
#[repr(C)]
struct EightRows {
    /// `[quad of columns][four rows]`
    weights: [[int8x16_t; 2]; 8],
    /// `[four rows]`
    scales: [float32x4_t; 2],
}

/// `[row of activations][four rows]`
type EightSums = [[float32x4_t; 2]; PANEL_ROWS];

/// Adds the products of the eight rows `which` of consecutive tiles and four rows of activations to `sums`.
///
/// Written out because the sums, as integers and as floats, and what is loaded a step ahead take all registers.
///
/// # Safety
/// The CPU must have dotprod; `x` must have a block for each of the tiles, of which there must be one.
#[inline(always)]
unsafe fn add_eight_rows(
    tiles: &[DotTile],
    which: usize,
    x: *const ActivationTile,
    sums: &mut EightSums,
) {
    /// The products of a quad of columns, `$upper` and `$lower` four rows, with two rows of activations.
    macro_rules! quad {
        ($upper:literal $lower:literal, $x:literal, $a:literal $b:literal $c:literal $d:literal, $lanes:tt) => {
            concat!(
                "sdot ", $a, ".4s, ", $upper, ".16b, ", $x, quad!(first $lanes),
                "sdot ", $b, ".4s, ", $lower, ".16b, ", $x, quad!(first $lanes),
                "sdot ", $c, ".4s, ", $upper, ".16b, ", $x, quad!(second $lanes),
                "sdot ", $d, ".4s, ", $lower, ".16b, ", $x, quad!(second $lanes),
            )
        };
        (first 0) => { ".4b[0]\n" };
        (second 0) => { ".4b[2]\n" };
        (first 1) => { ".4b[1]\n" };
        (second 1) => { ".4b[3]\n" };
    }
    /// The products of an octet of columns.
    macro_rules! octet {
        ($a:literal $b:literal $c:literal $d:literal, $x01:literal $x23:literal) => {
            concat!(
                quad!($a $b, $x01, "v8" "v9" "v10" "v11", 0),
                quad!($a $b, $x23, "v12" "v13" "v14" "v15", 0),
                quad!($c $d, $x01, "v8" "v9" "v10" "v11", 1),
                quad!($c $d, $x23, "v12" "v13" "v14" "v15", 1),
            )
        };
    }
    /// One operation on the four registers of two rows of activations.
    macro_rules! scale {
        (convert $a:literal $b:literal $c:literal $d:literal) => {
            concat!(
                "scvtf ", $a, ".4s, ", $a, ".4s\n",
                "scvtf ", $b, ".4s, ", $b, ".4s\n",
                "scvtf ", $c, ".4s, ", $c, ".4s\n",
                "scvtf ", $d, ".4s, ", $d, ".4s\n",
            )
        };
        (product $scales:literal, $a:literal $b:literal, $c:literal $d:literal) => {
            concat!(
                "fmul ", $a, ".4s, v16.4s, ", $scales, ".s[0]\n",
                "fmul ", $b, ".4s, v17.4s, ", $scales, ".s[0]\n",
                "fmul ", $c, ".4s, v16.4s, ", $scales, ".s[1]\n",
                "fmul ", $d, ".4s, v17.4s, ", $scales, ".s[1]\n",
            )
        };
        (add $($sum:literal += $dot:literal $scale:literal),+) => {
            concat!($("fmla ", $sum, ".4s, ", $dot, ".4s, ", $scale, ".4s\n"),+)
        };
    }
    let [[s0, s1], [s2, s3], [s4, s5], [s6, s7]] = sums;
    // SAFETY: as many tiles and blocks are read as there are, each from its first byte to its last; all registers
    // that are written are named.
    unsafe {
        asm!(
            "2:",
            "ld1 {{v20.16b, v21.16b, v22.16b, v23.16b}}, [{tile}], #64",
            "ld1 {{v16.16b, v17.16b, v18.16b, v19.16b}}, [{x}], #64",
            "movi v8.4s, #0",
            "movi v9.4s, #0",
            "movi v10.4s, #0",
            "movi v11.4s, #0",
            "ld1 {{v24.16b, v25.16b, v26.16b, v27.16b}}, [{tile}], #64",
            "movi v12.4s, #0",
            "movi v13.4s, #0",
            "movi v14.4s, #0",
            "movi v15.4s, #0",
            octet!("v20" "v21" "v22" "v23", "v16" "v17"),
            "ld1 {{v20.16b, v21.16b, v22.16b, v23.16b}}, [{tile}], #64",
            "ld1 {{v28.16b, v29.16b, v30.16b, v31.16b}}, [{x}], #64",
            octet!("v24" "v25" "v26" "v27", "v18" "v19"),
            "ld1 {{v24.16b, v25.16b, v26.16b, v27.16b}}, [{tile}], #64",
            "ldp q16, q17, [{tile}], #{skip}",
            "ldp q18, q19, [{x}], #32",
            octet!("v20" "v21" "v22" "v23", "v28" "v29"),
            octet!("v24" "v25" "v26" "v27", "v30" "v31"),
            "subs {count}, {count}, #1",
            // Eight of a kind, so that no core waits for a result.
            scale!(convert "v8" "v9" "v10" "v11"),
            scale!(convert "v12" "v13" "v14" "v15"),
            scale!(product "v18", "v20" "v21", "v22" "v23"),
            scale!(product "v19", "v24" "v25", "v26" "v27"),
            scale!(add "v0" += "v8" "v20", "v1" += "v9" "v21", "v2" += "v10" "v22", "v3" += "v11" "v23"),
            scale!(add "v4" += "v12" "v24", "v5" += "v13" "v25", "v6" += "v14" "v26", "v7" += "v15" "v27"),
            "b.ne 2b",
            tile = inout(reg) tiles.as_ptr().cast::<EightRows>().add(which) => _,
            // Over the scales and the other eight rows.
            skip = const 32 + size_of::<EightRows>(),
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

impl Products for Dotprod {
    type Tile = DotTile;
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
        // SAFETY: the caller's promise.
        unsafe {
            let row_scales = tiles.row_scales();
            let halves = [vld1q_s8(activations), vld1q_s8(activations.add(16))];
            let start = if W::ELEMENT == Element::Int4 {
                vdupq_laneq_s32::<LANE>(offsets)
            } else {
                vdupq_n_s32(0)
            };
            let mut dots = [start; 4];
            // Loads are a step ahead, for cores that work in order.
            let mut bytes = tiles.next_64(false);
            if W::ELEMENT != Element::Int8 {
                let mut add_octet = |bytes, octet: usize| {
                    let [first, last] = split::<W>(codebook, bytes);
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
    unsafe fn unpack<W: Weights>(tiles: &mut TileReader, codebook: int8x16_t, out: *mut DotTile) {
        // SAFETY: the caller's promise; all numbers of the tile are written.
        unsafe {
            for (i, scales) in tiles.row_scales().into_iter().enumerate() {
                (&raw mut (*out).0[i / 2].scales[i % 2]).write(scales);
            }
            unrolled!(for octet in [0 1 2 3] {
                let octets = tiles.signed_octet::<W>(codebook, octet % 2 == 1);
                for (i, quad) in octets.into_iter().enumerate() {
                    for (four_rows, weights) in quad.into_iter().enumerate() {
                        let eight_rows = &raw mut (*out).0[four_rows / 2].weights;
                        (&raw mut (*eight_rows)[2 * octet + i][four_rows % 2]).write(weights);
                    }
                }
            });
        }
    }

    #[inline(always)]
    unsafe fn add_panel<W: Weights>(tiles: &[DotTile], x: Activations, sums: &mut Self::Sums) {
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
        from_fn(|m| Floats([sums[0][m][0], sums[0][m][1], sums[1][m][0], sums[1][m][1]]))
    }
}

impl Simd for Dotprod {
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
