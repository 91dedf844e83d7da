//! Pages of the KV cache: 64 positions of one layer's keys and values.
//!
//! A page holds, for each key/value head, its keys as a matrix of 64 rows (positions) by `head_dim` columns,
//! then its values as a matrix of `head_dim` rows by 64 columns (positions), both stored like weights: 16 rows
//! to a group. So lanes hold different scores, and different columns of the output.

use crate::format::{ACTIVATION_BLOCK, ROWS};
use crate::lanes::{IntLanes, Lanes, Simd, load_part};
use crate::quantized::scale_of;
use std::collections::TryReserveError;

/// Positions in a page, and in a chunk of attention.
pub const PAGE_TOKENS: usize = 64;

/// Bytes of the scales of a block of 16 positions' keys.
const KEY_SCALES_BYTES: usize = ROWS * 4;
/// Bytes of 16 rows by 32 columns of integers.
const TILE_BYTES: usize = ROWS * ACTIVATION_BLOCK;
/// Bytes of a block of 16 positions' keys.
pub(crate) const KEY_TILE_BYTES: usize = KEY_SCALES_BYTES + TILE_BYTES;
/// Bytes of 16 columns of a page's values.
pub(crate) const VALUE_GROUP_BYTES: usize = ROWS * PAGE_TOKENS;
/// Bytes of the scales of a page's values.
pub(crate) const VALUE_SCALES_BYTES: usize = PAGE_TOKENS * 4;

/// What a cached number is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvElement {
    /// IEEE binary32.
    F32,
    /// IEEE binary16, rounded to nearest even.
    F16,
    /// 8-bit integers: keys with a binary32 scale per position and 32 columns, values with one per position.
    I8,
}

impl KvElement {
    /// Every kind, largest first.
    pub const ALL: &[KvElement] = &[KvElement::F32, KvElement::F16, KvElement::I8];

    /// The name that [`from_name`](Self::from_name) understands.
    pub fn name(self) -> &'static str {
        match self {
            KvElement::F32 => "f32",
            KvElement::F16 => "f16",
            KvElement::I8 => "i8",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|element| element.name() == name)
    }
}

/// The shape of one layer's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvFormat {
    /// Number of key/value heads.
    pub kv_heads: usize,
    /// Columns of one head, the same for keys and values.
    pub head_dim: usize,
    /// What a number is stored as.
    pub element: KvElement,
}

impl KvFormat {
    /// Bytes of a page; `None` if that number overflows.
    pub fn page_bytes(&self) -> Option<usize> {
        // A bound that is above every number the offsets below meet.
        self.head_dim
            .checked_next_multiple_of(ACTIVATION_BLOCK)?
            .checked_mul(2 * PAGE_TOKENS * 8)?
            .checked_mul(self.kv_heads)?;
        Some(self.head_bytes() * self.kv_heads)
    }

    /// Columns of the output of one head, padded to whole groups.
    pub(crate) fn padded_dim(&self) -> usize {
        self.head_dim.next_multiple_of(ROWS)
    }

    /// Blocks of 32 columns of a head's keys.
    pub(crate) fn key_blocks(&self) -> usize {
        self.head_dim.div_ceil(ACTIVATION_BLOCK)
    }

    fn keys_bytes(&self) -> usize {
        match self.element {
            KvElement::F32 => PAGE_TOKENS * self.head_dim * 4,
            KvElement::F16 => PAGE_TOKENS * self.head_dim * 2,
            KvElement::I8 => PAGE_TOKENS / ROWS * self.key_blocks() * KEY_TILE_BYTES,
        }
    }

    fn values_bytes(&self) -> usize {
        match self.element {
            KvElement::F32 => PAGE_TOKENS * self.padded_dim() * 4,
            KvElement::F16 => PAGE_TOKENS * self.padded_dim() * 2,
            KvElement::I8 => PAGE_TOKENS * self.padded_dim() + VALUE_SCALES_BYTES,
        }
    }

    fn head_bytes(&self) -> usize {
        self.keys_bytes() + self.values_bytes()
    }

    /// Keys and values of a head in a page.
    #[inline(always)]
    pub(crate) fn head<'a>(&self, page: &'a [u8], kv_head: usize) -> (&'a [u8], &'a [u8]) {
        page[kv_head * self.head_bytes()..][..self.head_bytes()].split_at(self.keys_bytes())
    }
}

/// Stores the keys and values of the token at position `slot` of a page.
#[inline(always)]
pub(crate) fn write<S: Simd>(
    simd: S,
    format: &KvFormat,
    page: &mut [u8],
    slot: usize,
    key: &[f32],
    value: &[f32],
) {
    let heads = page.chunks_exact_mut(format.head_bytes());
    let rows = key
        .chunks_exact(format.head_dim)
        .zip(value.chunks_exact(format.head_dim));
    for (head, (key, value)) in heads.zip(rows) {
        let (keys, values) = head.split_at_mut(format.keys_bytes());
        match format.element {
            KvElement::F32 => {
                write_float::<S, false>(simd, keys, values, slot, key, value);
            }
            KvElement::F16 => {
                write_float::<S, true>(simd, keys, values, slot, key, value);
            }
            KvElement::I8 => {
                write_key_i8(simd, keys, slot, key);
                write_value_i8(simd, values, slot, value);
            }
        }
    }
}

#[inline(always)]
fn write_float<S: Simd, const F16: bool>(
    simd: S,
    keys: &mut [u8],
    values: &mut [u8],
    slot: usize,
    key: &[f32],
    value: &[f32],
) {
    let size = if F16 { 2 } else { 4 };
    let group = &mut keys[slot / ROWS * key.len() * ROWS * size..];
    for (index, key) in key.chunks(ROWS).enumerate() {
        let stored = stored::<S, F16>(simd, key);
        let rows = group[index * ROWS * ROWS * size..].chunks_exact_mut(ROWS * size);
        for (row, number) in rows.zip(stored.chunks_exact(size)).take(key.len()) {
            row[slot % ROWS * size..][..size].copy_from_slice(number);
        }
    }
    let groups = values.chunks_exact_mut(PAGE_TOKENS * ROWS * size);
    for (group, value) in groups.zip(value.chunks(ROWS)) {
        let stored = stored::<S, F16>(simd, value);
        group[slot * ROWS * size..][..ROWS * size].copy_from_slice(&stored[..ROWS * size]);
    }
}

/// Up to 16 numbers as they are stored, padded with zeros; binary16 takes the first half.
#[inline(always)]
fn stored<S: Simd, const F16: bool>(simd: S, x: &[f32]) -> [u8; 64] {
    let x = load_part(simd, x, 0.0);
    let mut bytes = [0; 64];
    if F16 {
        x.store_f16(&mut bytes.as_chunks_mut::<32>().0[0]);
    } else {
        let mut lanes = [0.0; 16];
        x.store(&mut lanes);
        for (bytes, lane) in bytes.as_chunks_mut().0.iter_mut().zip(lanes) {
            *bytes = lane.to_le_bytes();
        }
    }
    bytes
}

#[inline(always)]
fn write_key_i8<S: Simd>(simd: S, keys: &mut [u8], slot: usize, key: &[f32]) {
    let blocks = key.len().div_ceil(ACTIVATION_BLOCK);
    let group = &mut keys[slot / ROWS * blocks * KEY_TILE_BYTES..];
    let tiles = group.chunks_exact_mut(KEY_TILE_BYTES);
    for (tile, key) in tiles.zip(key.chunks(ACTIVATION_BLOCK)) {
        let (scale, inverse) = scale_of(largest_magnitude(simd, key));
        let (scales, tile) = tile.split_at_mut(KEY_SCALES_BYTES);
        scales.as_chunks_mut().0[slot % ROWS] = scale.to_le_bytes();
        for (index, half) in tile
            .as_chunks_mut::<{ TILE_BYTES / 2 }>()
            .0
            .iter_mut()
            .enumerate()
        {
            let key = key.chunks(ROWS).nth(index).unwrap_or_default();
            let quants = quantized(simd, key, inverse);
            let quads = quants.as_chunks::<4>().0;
            for (chunk, quad) in half.as_chunks_mut::<64>().0.iter_mut().zip(quads) {
                chunk.as_chunks_mut().0[slot % ROWS] = *quad;
            }
        }
    }
}

#[inline(always)]
fn write_value_i8<S: Simd>(simd: S, values: &mut [u8], slot: usize, value: &[f32]) {
    let (values, scales) = values.split_at_mut(values.len() - VALUE_SCALES_BYTES);
    let (scale, inverse) = scale_of(largest_magnitude(simd, value));
    scales.as_chunks_mut().0[slot] = scale.to_le_bytes();
    let groups = values.chunks_exact_mut(VALUE_GROUP_BYTES);
    for (group, value) in groups.zip(value.chunks(ROWS)) {
        let quants = quantized(simd, value, inverse);
        let chunk = &mut group[slot / 4 * 64..][..64];
        for (quad, q) in chunk.as_chunks_mut::<4>().0.iter_mut().zip(quants) {
            quad[slot % 4] = q;
        }
    }
}

#[inline(always)]
fn largest_magnitude<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let mut largest = simd.splat(0.0);
    for x in x.chunks(ROWS) {
        largest = largest.max(load_part(simd, x, 0.0).abs());
    }
    largest.max_lane()
}

/// Up to 16 numbers times the inverse of their scale, as signed bytes padded with zeros.
#[inline(always)]
fn quantized<S: Simd>(simd: S, x: &[f32], inverse: f32) -> [u8; ROWS] {
    let mut quants = [0; ROWS];
    let x = load_part(simd, x, 0.0) * simd.splat(inverse);
    x.to_int().store_i8(&mut quants);
    quants.map(|q| q as u8)
}

/// Memory of one page, aligned to cache lines.
#[derive(Debug)]
pub struct KvPage {
    /// The page begins with the first cache line. Aligned memory would begin with it, too, but glibc before 2.38
    /// does not reuse what it gave back for as much of it again, and windows give back pages all the time.
    bytes: Vec<u8>,
    start: usize,
    size_bytes: usize,
}

const CACHE_LINE_BYTES: usize = 64;

impl KvPage {
    /// A page of zeros of `size_bytes` bytes.
    ///
    /// # Errors
    /// If the system has no memory.
    pub fn new(size_bytes: usize) -> Result<Self, TryReserveError> {
        let allocated = size_bytes.saturating_add(CACHE_LINE_BYTES - 1);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(allocated)?;
        bytes.resize(allocated, 0);
        Ok(Self::within(bytes, size_bytes))
    }

    /// The page in `bytes`, which are a cache line less one byte longer.
    fn within(bytes: Vec<u8>, size_bytes: usize) -> Self {
        let offset = bytes.as_ptr().align_offset(CACHE_LINE_BYTES);
        Self {
            start: offset.min(bytes.len() - size_bytes),
            bytes,
            size_bytes,
        }
    }
}

impl Clone for KvPage {
    fn clone(&self) -> Self {
        // Another allocation, another distance to its first cache line.
        let mut page = Self::within(vec![0; self.bytes.len()], self.size_bytes);
        page.as_mut().copy_from_slice(self.as_ref());
        page
    }
}

impl AsRef<[u8]> for KvPage {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.start..][..self.size_bytes]
    }
}

impl AsMut<[u8]> for KvPage {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.size_bytes]
    }
}
