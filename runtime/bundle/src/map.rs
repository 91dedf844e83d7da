//! The mapped file: the only place of the engine that handles raw memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;

// Numbers are stored little-endian and read in place.
#[cfg(target_endian = "big")]
compile_error!("niwaki bundles are read in place on little-endian machines only");

/// Read-only bytes of a bundle, backed by its file.
pub(crate) struct Map {
    map: memmap2::Mmap,
}

impl Map {
    /// Maps `length` bytes of `file` from `offset`. Nothing is read yet.
    pub(crate) fn new(file: &File, offset: u64, length: usize) -> std::io::Result<Map> {
        // SAFETY: a mapping is unsound only if bytes that the program relies on change under it. Others
        // can write to or cut the file, so nothing relies on mapped bytes for more than their numeric
        // value: the header and the sections that are parsed are copied out first and checked as copies,
        // so what was checked is what is used; what stays mapped is weights, for which every bit pattern
        // is a valid `u8` or `f32` and which never steer an index or a length. A file cut by others while
        // mapped faults on access, which ends the process as a disk error would; packing replaces files
        // by rename and never writes in place, so that our own tool cannot cause it.
        let map = unsafe {
            memmap2::MmapOptions::new()
                .offset(offset)
                .len(length)
                .map(file)?
        };
        Ok(Map { map })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The bytes in `range` as `f32`; `None` when the range is outside, or not aligned to 4 bytes.
    pub(crate) fn f32s(&self, range: Range<usize>) -> Option<&[f32]> {
        let bytes = self.map.get(range)?;
        // SAFETY: every bit pattern is a valid f32, and `align_to` only puts aligned whole values into
        // the middle slice, which borrows from the same mapping.
        let (before, values, after) = unsafe { bytes.align_to::<f32>() };
        (before.is_empty() && after.is_empty()).then_some(values)
    }
}
