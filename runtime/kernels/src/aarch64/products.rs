//! Products of matrices in the usual formats, over what integer instructions there are.
//!
//! A single row of activations is multiplied with the tiles as they are stored. For more rows, the tiles of a
//! panel of columns are first brought into the order, and weights of four bits to the eight bits, that the instructions
//! take them in; then all rows are multiplied with the panel, four at a time, while it is in the first-level cache.
#![allow(unsafe_code)]

use super::floats::Floats;
use super::tiles::{TileReader, load_codebook};
use crate::format::{ACTIVATION_BLOCK, MAX_REFINED};
use crate::lanes::Simd;
use crate::quantized::{ActivationTile, QuantizedRows};
use crate::weights::Weights;
use std::arch::aarch64::*;
use std::arch::asm;
use std::array::from_fn;
use std::mem::MaybeUninit;

/// Rows of activations that are multiplied with a panel at once.
pub(super) const PANEL_ROWS: usize = ActivationTile::ROWS;

/// Tiles of a panel: 18 KiB, which leaves room for activations in a first-level cache of 32.
const PANEL_TILES: usize = 32;
const _: () = assert!(MAX_REFINED <= PANEL_TILES);

/// Quadruples of rows for which a panel is unpacked: their sums lie on the stack.
const MAX_BATCHES: usize = 16;

/// Four rows of activations, from some block on.
#[derive(Clone, Copy)]
pub(super) struct Activations {
    /// The integers of each row.
    pub(super) values: [*const i8; PANEL_ROWS],
    /// The scales of each row.
    pub(super) scales: [*const f32; PANEL_ROWS],
    /// The same, interleaved, if [`Simd::INTERLEAVED`](crate::lanes::Simd::INTERLEAVED).
    pub(super) interleaved: *const ActivationTile,
}

/// The products of an instruction set.
pub(super) trait Products: Simd {
    /// A tile in the order that [`add_panel`](Self::add_panel) reads.
    type Tile: Copy;
    /// Sums of 16 rows of weights and four of activations.
    type Sums: Copy;
    /// No products yet.
    const NO_SUMS: Self::Sums;

    /// Adds the products of a tile and a block of activations to `sums`, an output per lane.
    ///
    /// Lane `LANE` of `scales` and of `offsets` belongs to the block: the integer sums of int4 weights, which
    /// are `q + 8`, start from the offset. `codebook` is what codes stand for.
    ///
    /// # Safety
    /// The CPU must have the instructions; a tile must be readable, and 32 bytes at `activations`.
    unsafe fn add_tile<W: Weights, const LANE: i32>(
        tiles: &mut TileReader,
        codebook: int8x16_t,
        activations: *const i8,
        scales: float32x4_t,
        offsets: int32x4_t,
        sums: &mut Floats,
    );

    /// Brings a tile into order, all of it where `out` points to.
    ///
    /// # Safety
    /// The CPU must have the instructions; a tile must be readable, and `out` be writable.
    unsafe fn unpack<W: Weights>(tiles: &mut TileReader, codebook: int8x16_t, out: *mut Self::Tile);

    /// Adds the products of four rows of activations and consecutive tiles, which `x` is at.
    ///
    /// # Safety
    /// The CPU must have the instructions; `x` must have a block for each tile.
    unsafe fn add_panel<W: Weights>(tiles: &[Self::Tile], x: Activations, sums: &mut Self::Sums);

    /// The sums of each row of activations.
    fn outputs(sums: &Self::Sums) -> [Floats; PANEL_ROWS];
}

/// Outputs of the 16 rows `group` of a matrix in the usual format for each row of `x`, handed to `finish`.
///
/// # Safety
/// The CPU must have the instructions of `P`.
#[inline(always)]
pub(super) unsafe fn multiply<P: Products, W: Weights>(
    weights: W,
    group: &[u8],
    x: &QuantizedRows,
    mut finish: impl FnMut(usize, Floats),
) -> usize {
    let codebook = load_codebook(weights.codebook());
    let rows = x.rows();
    let mut row = 0;
    let panels = !P::INTERLEAVED || x.is_interleaved();
    while panels && row + PANEL_ROWS <= rows {
        // SAFETY: the caller's promise.
        row = unsafe { some_rows::<P, W>(codebook, group, x, row, &mut finish) };
    }
    while row < rows {
        // SAFETY: the caller's promise.
        finish(row, unsafe { one_row::<P, W>(codebook, group, x, row) });
        row += 1;
    }
    rows
}

/// # Safety
/// The CPU must have the instructions of `P`.
#[inline(always)]
unsafe fn one_row<P: Products, W: Weights>(
    codebook: int8x16_t,
    group: &[u8],
    x: &QuantizedRows,
    row: usize,
) -> Floats {
    let blocks = group.len() / W::TILE_BYTES;
    let (values, scales, sums) = (x.values(row), x.scales(row), x.sums(row));
    // The width of `x` is that of the matrix, so this holds.
    assert!(x.refined() <= blocks && x.refined() + blocks == scales.len());
    let (mut values, mut scales, mut sums) = (values.as_ptr(), scales.as_ptr(), sums.as_ptr());
    let mut outputs = Floats::splat(0.0);
    // The first tiles meet what the integers of their blocks left over, then all tiles the blocks.
    for blocks in [x.refined(), blocks] {
        let mut tiles = TileReader::new(group.as_ptr());
        // SAFETY: the loops go over `blocks` tiles, which are there, and in all over as many blocks of activations as
        // there are; a block has 32 values, a scale and a sum. The instructions are the caller's promise.
        unsafe {
            for _ in 0..blocks / 4 {
                let (d, offsets) = (vld1q_f32(scales), vmulq_n_s32(vld1q_s32(sums), -8));
                P::add_tile::<W, 0>(&mut tiles, codebook, values, d, offsets, &mut outputs);
                finish_tile(&mut outputs);
                P::add_tile::<W, 1>(
                    &mut tiles,
                    codebook,
                    values.add(32),
                    d,
                    offsets,
                    &mut outputs,
                );
                finish_tile(&mut outputs);
                P::add_tile::<W, 2>(
                    &mut tiles,
                    codebook,
                    values.add(64),
                    d,
                    offsets,
                    &mut outputs,
                );
                finish_tile(&mut outputs);
                P::add_tile::<W, 3>(
                    &mut tiles,
                    codebook,
                    values.add(96),
                    d,
                    offsets,
                    &mut outputs,
                );
                (values, scales, sums) = (values.add(128), scales.add(4), sums.add(4));
            }
            for _ in 0..blocks % 4 {
                let (d, offsets) = (vld1q_dup_f32(scales), vdupq_n_s32(-8 * *sums));
                P::add_tile::<W, 0>(&mut tiles, codebook, values, d, offsets, &mut outputs);
                (values, scales, sums) = (values.add(32), scales.add(1), sums.add(1));
            }
        }
    }
    outputs
}

/// Makes the compiler finish these sums before it goes on with the next tile: it would compute all at the end,
/// and run out of registers.
#[inline(always)]
fn finish_tile(sums: &mut Floats) {
    let [a, b, c, d] = &mut sums.0;
    // SAFETY: no instruction.
    unsafe {
        asm!(
            "/* {0:v} {1:v} {2:v} {3:v} */",
            inout(vreg) * a,
            inout(vreg) * b,
            inout(vreg) * c,
            inout(vreg) * d,
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// Up to 64 rows from `row` on, a multiple of four. Returns the row after them.
///
/// # Safety
/// The CPU must have the instructions of `P`; there must be four rows.
#[inline(always)]
unsafe fn some_rows<P: Products, W: Weights>(
    codebook: int8x16_t,
    group: &[u8],
    x: &QuantizedRows,
    row: usize,
    finish: &mut impl FnMut(usize, Floats),
) -> usize {
    let blocks = group.len() / W::TILE_BYTES;
    let batches = ((x.rows() - row) / PANEL_ROWS).min(MAX_BATCHES);
    let rows = row..row + PANEL_ROWS * batches;
    let (values, scales) = x.consecutive(rows.clone());
    // Those with second terms are in the first panel.
    let refined = x.refined();
    assert!(refined <= blocks.min(PANEL_TILES));
    let terms = refined + blocks;
    assert!(scales.len() == rows.len() * terms);
    let interleaved = if P::INTERLEAVED {
        x.interleaved(rows.clone())
    } else {
        &[]
    };
    let mut all_sums = [P::NO_SUMS; MAX_BATCHES];
    let sums = &mut all_sums[..batches];
    let mut panel = [const { MaybeUninit::<P::Tile>::uninit() }; PANEL_TILES];
    let mut reader = TileReader::new(group.as_ptr());
    for first in (0..blocks).step_by(PANEL_TILES) {
        let tiles = &mut panel[..PANEL_TILES.min(blocks - first)];
        for tile in &mut *tiles {
            // SAFETY: the loops go over `blocks` tiles; the instructions are the caller's promise.
            unsafe { P::unpack::<W>(&mut reader, codebook, tile.as_mut_ptr()) };
        }
        // SAFETY: all were written.
        let tiles = unsafe { tiles.assume_init_ref() };
        for (batch, sums) in sums.iter_mut().enumerate() {
            // From term `first` of each row on.
            let activations = |first: usize| {
                let term = |m: usize| (PANEL_ROWS * batch + m) * terms + first;
                // SAFETY: it is in its row.
                unsafe {
                    Activations {
                        values: from_fn(|m| values.as_ptr().add(ACTIVATION_BLOCK * term(m))),
                        scales: from_fn(|m| scales.as_ptr().add(term(m))),
                        interleaved: interleaved.as_ptr().wrapping_add(batch * terms + first),
                    }
                }
            };
            // SAFETY: as many terms are left as there are tiles; the instructions are the caller's promise.
            unsafe {
                if first == 0 && refined > 0 {
                    P::add_panel::<W>(&tiles[..refined], activations(0), sums);
                }
                P::add_panel::<W>(tiles, activations(refined + first), sums);
            }
        }
    }
    for (batch, sums) in sums.iter().enumerate() {
        for (m, output) in P::outputs(sums).into_iter().enumerate() {
            finish(row + PANEL_ROWS * batch + m, output);
        }
    }
    rows.end
}
