//! Numbers as an export stores them: floats and small integers over the bytes of a file, addressed as a matrix.

use crate::onnx::{DataType, TensorView, release};
use bytes::Bytes;
use half::{bf16, f16};
use std::ops::Range;

/// Where element (row, column) of a grid lies: every `row_block` rows and `col_block` columns share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
    pub(super) row_block: usize,
    pub(super) col_block: usize,
}

impl Grid {
    /// One element for each place of a row-major matrix with `cols` columns.
    pub(super) fn dense(cols: usize) -> Grid {
        Grid {
            row_stride: cols,
            col_stride: 1,
            row_block: 1,
            col_block: 1,
        }
    }

    /// One element for all.
    pub(super) fn scalar() -> Grid {
        Grid {
            row_stride: 0,
            col_stride: 0,
            row_block: 1,
            col_block: 1,
        }
    }

    pub(super) fn transposed(self) -> Grid {
        Grid {
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            row_block: self.col_block,
            col_block: self.row_block,
        }
    }

    fn at(self, row: usize, col: usize) -> usize {
        row / self.row_block * self.row_stride + col / self.col_block * self.col_stride
    }

    /// The columns of a row lie side by side.
    fn is_row_major(self) -> bool {
        self.col_stride == 1 && self.col_block == 1
    }

    /// Columns that share an element: usize::MAX when all of a row do.
    fn shared_cols(self) -> usize {
        if self.col_stride == 0 {
            usize::MAX
        } else {
            self.col_block
        }
    }
}

/// Floating-point numbers in a file.
#[derive(Clone, Debug)]
pub(super) struct Reals {
    bytes: Bytes,
    kind: RealKind,
    grid: Grid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RealKind {
    F16,
    Bf16,
    F32,
    F64,
}

impl RealKind {
    fn bytes(self) -> usize {
        match self {
            RealKind::F16 | RealKind::Bf16 => 2,
            RealKind::F32 => 4,
            RealKind::F64 => 8,
        }
    }
}

impl Reals {
    /// The numbers of a float tensor; `None` when it is no float tensor or `grid` can reach outside of it.
    pub(super) fn new(view: &TensorView, grid: Grid, rows: usize, cols: usize) -> Option<Reals> {
        let kind = match view.data_type {
            DataType::Float16 => RealKind::F16,
            DataType::Bfloat16 => RealKind::Bf16,
            DataType::Float => RealKind::F32,
            DataType::Double => RealKind::F64,
            _ => return None,
        };
        fits(grid, rows, cols, view.elements()).then(|| Reals {
            bytes: view.data.clone(),
            kind,
            grid,
        })
    }

    /// `f32`s, little-endian; `grid` reaches no further than `bytes`.
    pub(super) fn of_f32(bytes: Bytes, grid: Grid) -> Reals {
        Reals {
            bytes,
            kind: RealKind::F32,
            grid,
        }
    }

    /// One `f32` for all places.
    pub(super) fn single(bytes: Bytes) -> Reals {
        Reals::of_f32(bytes, Grid::scalar())
    }

    /// Gives back the memory of some rows, or of all.
    pub(super) fn release(&self, rows: Option<Range<usize>>) {
        release_rows(&self.bytes, self.grid, 8 * self.kind.bytes(), rows);
    }

    /// Whether both are the same numbers of the same file.
    pub(super) fn is(&self, other: &Reals) -> bool {
        self.bytes.as_ptr() == other.bytes.as_ptr()
            && self.bytes.len() == other.bytes.len()
            && (self.kind, self.grid) == (other.kind, other.grid)
    }

    pub(super) fn is_f16(&self) -> bool {
        self.kind == RealKind::F16
    }

    pub(super) fn shared_cols(&self) -> usize {
        self.grid.shared_cols()
    }

    pub(super) fn transposed(&self) -> Reals {
        Reals {
            grid: self.grid.transposed(),
            ..self.clone()
        }
    }

    /// The rows of a column lie side by side, its columns do not.
    pub(super) fn is_transposed(&self) -> bool {
        !self.grid.is_row_major() && self.grid.transposed().is_row_major()
    }

    pub(super) fn at(&self, row: usize, col: usize) -> f32 {
        let mut value = [0.0];
        self.read_at(self.grid.at(row, col), &mut value);
        value[0]
    }

    /// One row from its first column on.
    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        if self.grid.is_row_major() {
            return self.read_at(self.grid.at(row, 0), out);
        }
        for (col, out) in out.iter_mut().enumerate() {
            *out = self.at(row, col);
        }
    }

    /// `rows`, row-major with `cols` columns each, of a [transposed](Self::is_transposed) matrix: a run of rows is
    /// read at once, column after column.
    pub(super) fn read_transposed(&self, rows: &[usize], cols: usize, out: &mut [f32]) {
        let mut column = vec![0.0; rows.len()];
        let mut first = 0;
        for run in rows.chunk_by(|a, b| a + 1 == *b) {
            let column = &mut column[..run.len()];
            for col in 0..cols {
                self.read_at(self.grid.at(run[0], col), column);
                for (row, value) in column.iter().enumerate() {
                    out[(first + row) * cols + col] = *value;
                }
            }
            first += run.len();
        }
    }

    /// Consecutive numbers from the `first` on.
    fn read_at(&self, first: usize, out: &mut [f32]) {
        let size = self.kind.bytes();
        let bytes = &self.bytes[first * size..(first + out.len()) * size];
        match self.kind {
            RealKind::F16 => {
                for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = f16::from_le_bytes(*b).to_f32();
                }
            }
            RealKind::Bf16 => {
                for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = bf16::from_le_bytes(*b).to_f32();
                }
            }
            RealKind::F32 => {
                for (out, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *out = f32::from_le_bytes(*b);
                }
            }
            RealKind::F64 => {
                for (out, b) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
                    *out = f64::from_le_bytes(*b) as f32;
                }
            }
        }
    }
}

/// Small integers in a file, packed low bits first.
#[derive(Clone, Debug)]
pub(super) struct Codes {
    bytes: Bytes,
    bits: u32,
    signed: bool,
    grid: Grid,
}

impl Codes {
    /// Codes of `bits` bits over raw bytes; `None` when `grid` can reach outside of them.
    pub(super) fn new(
        bytes: &Bytes,
        bits: u32,
        signed: bool,
        grid: Grid,
        rows: usize,
        cols: usize,
    ) -> Option<Codes> {
        if !matches!(bits, 2 | 4 | 8) {
            return None;
        }
        let held = bytes.len().checked_mul(8 / bits as usize)?;
        fits(grid, rows, cols, held).then(|| Codes {
            bytes: bytes.clone(),
            bits,
            signed,
            grid,
        })
    }

    /// The codes of an integer tensor, by its element type.
    pub(super) fn of_tensor(
        view: &TensorView,
        grid: Grid,
        rows: usize,
        cols: usize,
    ) -> Option<Codes> {
        let (bits, signed) = match view.data_type {
            DataType::Int8 => (8, true),
            DataType::Uint8 => (8, false),
            DataType::Int4 => (4, true),
            DataType::Uint4 => (4, false),
            DataType::Int2 => (2, true),
            DataType::Uint2 => (2, false),
            _ => return None,
        };
        Codes::new(&view.data, bits, signed, grid, rows, cols)
    }

    /// Gives back the memory of some rows, or of all.
    pub(super) fn release(&self, rows: Option<Range<usize>>) {
        release_rows(&self.bytes, self.grid, self.bits as usize, rows);
    }

    pub(super) fn bits(&self) -> u32 {
        self.bits
    }

    pub(super) fn signed(&self) -> bool {
        self.signed
    }

    /// The least and the largest code there can be.
    pub(super) fn range(&self) -> (i32, i32) {
        if self.signed {
            (-(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1)
        } else {
            (0, (1 << self.bits) - 1)
        }
    }

    pub(super) fn shared_cols(&self) -> usize {
        self.grid.shared_cols()
    }

    pub(super) fn transposed(&self) -> Codes {
        Codes {
            grid: self.grid.transposed(),
            ..self.clone()
        }
    }

    /// The codes of one row from column `col` on.
    pub(super) fn read_run(&self, row: usize, col: usize, out: &mut [i32]) {
        if self.bits == 8 && self.grid.is_row_major() {
            let first = self.grid.at(row, col);
            let bytes = &self.bytes[first..first + out.len()];
            for (out, &byte) in out.iter_mut().zip(bytes) {
                *out = if self.signed {
                    i32::from(byte as i8)
                } else {
                    i32::from(byte)
                };
            }
        } else if self.grid.is_row_major() {
            let first = self.grid.at(row, col);
            for (i, out) in out.iter_mut().enumerate() {
                *out = self.code(first + i);
            }
        } else {
            for (i, out) in out.iter_mut().enumerate() {
                *out = self.at(row, col + i);
            }
        }
    }

    pub(super) fn at(&self, row: usize, col: usize) -> i32 {
        self.code(self.grid.at(row, col))
    }

    fn code(&self, i: usize) -> i32 {
        let per_byte = 8 / self.bits as usize;
        let byte = self.bytes[i / per_byte];
        let shift = (i % per_byte) as u32 * self.bits;
        let code = (u32::from(byte) >> shift) & ((1 << self.bits) - 1);
        if self.signed {
            let unused = 32 - self.bits;
            ((code << unused) as i32) >> unused
        } else {
            code as i32
        }
    }
}

/// Gives back the memory of some rows, which does something where they lie in a row in the file, or of all.
fn release_rows(bytes: &[u8], grid: Grid, bits: usize, rows: Option<Range<usize>>) {
    let Some(rows) = rows else {
        return release(bytes);
    };
    if grid.is_row_major() {
        let at = |row: usize| grid.at(row, 0).saturating_mul(bits) / 8;
        release(bytes.get(at(rows.start)..at(rows.end)).unwrap_or_default());
    }
}

fn fits(grid: Grid, rows: usize, cols: usize, held: usize) -> bool {
    let Some(rows) = rows.checked_sub(1) else {
        return true;
    };
    let Some(cols) = cols.checked_sub(1) else {
        return true;
    };
    let last = (rows / grid.row_block)
        .checked_mul(grid.row_stride)
        .zip((cols / grid.col_block).checked_mul(grid.col_stride))
        .and_then(|(row, col)| row.checked_add(col));
    last.is_some_and(|last| last < held)
}
