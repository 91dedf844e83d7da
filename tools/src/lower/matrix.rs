//! Weight matrices as the export stores them, read element by element without unpacking the file.

use crate::onnx::{DataType, TensorView};
use bytes::Bytes;
use half::{bf16, f16};
use niwaki_kernels::{Element, MatrixFormat, ScaleType};
use std::rc::Rc;

/// A constant matrix of the export, `[rows, cols]`, possibly transposed, dequantised or with rows picked.
#[derive(Clone, Debug)]
pub struct MatrixSource {
    rows: usize,
    cols: usize,
    content: Content,
    row_picks: Option<Rc<[usize]>>,
    row_factors: Option<Rc<[f32]>>,
}

#[derive(Clone, Debug)]
enum Content {
    Real(Reals),
    Quantized {
        codes: Codes,
        zero: Zero,
        scale: Reals,
    },
}

#[derive(Clone, Debug)]
enum Zero {
    Constant(i32),
    Codes(Codes),
    Real(Reals),
}

/// Where element (row, column) of a grid lies: every `row_block` rows and `col_block` columns share one.
#[derive(Clone, Copy, Debug)]
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

    fn transposed(self) -> Grid {
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

#[derive(Clone, Copy, Debug, PartialEq)]
enum RealKind {
    F16,
    Bf16,
    F32,
    F64,
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

    fn at(&self, row: usize, col: usize) -> f32 {
        let i = self.grid.at(row, col);
        let bytes = |size: usize| &self.bytes[i * size..(i + 1) * size];
        match self.kind {
            RealKind::F16 => f16::from_le_bytes([bytes(2)[0], bytes(2)[1]]).to_f32(),
            RealKind::Bf16 => bf16::from_le_bytes([bytes(2)[0], bytes(2)[1]]).to_f32(),
            RealKind::F32 => {
                let b = bytes(4);
                f32::from_le_bytes([b[0], b[1], b[2], b[3]])
            }
            RealKind::F64 => {
                let b = bytes(8);
                f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32
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

    fn at(&self, row: usize, col: usize) -> i32 {
        let i = self.grid.at(row, col);
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

/// Rows ready to be packed: integers with their block scales, or plain numbers.
#[derive(Debug)]
pub enum RowsOut {
    /// `(code - zero point) * scale`, all row-major.
    Quantized {
        /// `[rows, cols]`.
        codes: Vec<i8>,
        /// `[rows, blocks]`.
        scales: Vec<f32>,
        /// `[rows, blocks]`; zero when absent.
        zero_points: Option<Vec<i8>>,
    },
    /// Values, `[rows, cols]`, row-major.
    Real(Vec<f32>),
}

impl MatrixSource {
    /// A float matrix, two-dimensional, row-major.
    pub(super) fn real(view: &TensorView) -> Option<MatrixSource> {
        let &[rows, cols] = view.dims.as_slice() else {
            return None;
        };
        let content = Content::Real(Reals::new(view, Grid::dense(cols), rows, cols)?);
        Some(MatrixSource {
            rows,
            cols,
            content,
            row_picks: None,
            row_factors: None,
        })
    }

    /// `(codes - zero) * scale`.
    pub(super) fn quantized(
        rows: usize,
        cols: usize,
        codes: Codes,
        zero: ZeroPoints,
        scale: Reals,
    ) -> MatrixSource {
        let zero = match zero {
            ZeroPoints::Constant(value) => Zero::Constant(value),
            ZeroPoints::Codes(codes) => Zero::Codes(codes),
            ZeroPoints::Real(reals) => Zero::Real(reals),
        };
        let content = Content::Quantized { codes, zero, scale };
        MatrixSource {
            rows,
            cols,
            content,
            row_picks: None,
            row_factors: None,
        }
    }

    /// `codes - zero`, an integer matrix whose scale the graph applies later.
    pub(super) fn integers(
        rows: usize,
        cols: usize,
        codes: Codes,
        zero: ZeroPoints,
    ) -> MatrixSource {
        let one = Bytes::from_static(&[0, 0, 0x80, 0x3f]);
        let scale = Reals {
            bytes: one,
            kind: RealKind::F32,
            grid: Grid::scalar(),
        };
        MatrixSource::quantized(rows, cols, codes, zero, scale)
    }

    /// Number of rows: output channels, or tokens of an embedding.
    pub fn rows(&self) -> usize {
        self.row_picks
            .as_ref()
            .map_or(self.rows, |picks| picks.len())
    }

    /// Number of columns: input channels.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Whether the export already holds it in integers.
    pub fn is_quantized(&self) -> bool {
        matches!(self.content, Content::Quantized { .. })
    }

    /// A small float matrix that was computed, not stored.
    pub(super) fn of_values(rows: usize, cols: usize, values: &[f32]) -> MatrixSource {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let content = Content::Real(Reals {
            bytes: bytes.into(),
            kind: RealKind::F32,
            grid: Grid::dense(cols),
        });
        MatrixSource {
            rows,
            cols,
            content,
            row_picks: None,
            row_factors: None,
        }
    }

    /// Whether both hold the same values: an embedding that also is the output projection.
    pub fn same_values(&self, other: &MatrixSource) -> bool {
        if self.rows() != other.rows()
            || self.cols != other.cols
            || self.is_quantized() != other.is_quantized()
        {
            return false;
        }
        let same = |row: usize, col: usize| {
            self.value(row, col).to_bits() == other.value(row, col).to_bits()
        };
        // A few scattered places settle nearly every pair of different matrices without reading them.
        let scattered = (0..64usize).all(|i| {
            self.rows() == 0
                || self.cols == 0
                || same(i * 7919 % self.rows(), i * 104_729 % self.cols)
        });
        scattered && (0..self.rows()).all(|row| (0..self.cols).all(|col| same(row, col)))
    }

    /// Rows and columns exchanged. Only before rows are picked or scaled.
    pub(super) fn transposed(&self) -> MatrixSource {
        let reals = |reals: &Reals| Reals {
            grid: reals.grid.transposed(),
            ..reals.clone()
        };
        let codes = |codes: &Codes| Codes {
            grid: codes.grid.transposed(),
            ..codes.clone()
        };
        let content = match &self.content {
            Content::Real(values) => Content::Real(reals(values)),
            Content::Quantized {
                codes: held,
                zero,
                scale,
            } => Content::Quantized {
                codes: codes(held),
                zero: match zero {
                    Zero::Constant(value) => Zero::Constant(*value),
                    Zero::Codes(held) => Zero::Codes(codes(held)),
                    Zero::Real(values) => Zero::Real(reals(values)),
                },
                scale: reals(scale),
            },
        };
        debug_assert!(self.row_picks.is_none() && self.row_factors.is_none());
        MatrixSource {
            rows: self.cols,
            cols: self.rows,
            content,
            row_picks: None,
            row_factors: None,
        }
    }

    /// Replaces a per-tensor scale and zero point: what `DequantizeLinear` after a `Gather` does.
    pub(super) fn rescaled(&self, scale: f32, zero_point: i32) -> Option<MatrixSource> {
        let Content::Quantized {
            codes,
            zero: Zero::Constant(0),
            ..
        } = &self.content
        else {
            return None;
        };
        let bytes = Bytes::copy_from_slice(&scale.to_le_bytes());
        let scale = Reals {
            bytes,
            kind: RealKind::F32,
            grid: Grid::scalar(),
        };
        let content = Content::Quantized {
            codes: codes.clone(),
            zero: Zero::Constant(zero_point),
            scale,
        };
        Some(MatrixSource {
            content,
            ..self.clone()
        })
    }

    /// The rows `picks`, in that order, the i-th times `factors[i]`.
    pub(super) fn with_rows(&self, picks: &[usize], factors: Option<&[f32]>) -> MatrixSource {
        let through = |row: usize| self.row_picks.as_ref().map_or(row, |held| held[row]);
        let row_factors = match (&self.row_factors, factors) {
            (None, None) => None,
            (held, new) => Some(
                picks
                    .iter()
                    .enumerate()
                    .map(|(i, &row)| {
                        held.as_ref().map_or(1.0, |held| held[row]) * new.map_or(1.0, |new| new[i])
                    })
                    .collect(),
            ),
        };
        let row_picks = Some(picks.iter().map(|&row| through(row)).collect());
        MatrixSource {
            row_picks,
            row_factors,
            ..self.clone()
        }
    }

    fn value(&self, row: usize, col: usize) -> f32 {
        let factor = self
            .row_factors
            .as_ref()
            .map_or(1.0, |factors| factors[row]);
        let row = self.row_picks.as_ref().map_or(row, |picks| picks[row]);
        let value = match &self.content {
            Content::Real(values) => values.at(row, col),
            Content::Quantized { codes, zero, scale } => {
                let code = codes.at(row, col);
                let centred = match zero {
                    Zero::Constant(value) => (code - value) as f32,
                    Zero::Codes(zero) => (code - zero.at(row, col)) as f32,
                    Zero::Real(zero) => code as f32 - zero.at(row, col),
                };
                centred * scale.at(row, col)
            }
        };
        if self.row_factors.is_some() {
            value * factor
        } else {
            value
        }
    }

    /// One row as numbers.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        for (col, out) in out.iter_mut().enumerate() {
            *out = self.value(row, col);
        }
    }

    /// How the matrix can be packed with no change of any value.
    ///
    /// Integers stay integers where Niwaki's blocks can hold them; a half-precision matrix stays `f16`;
    /// everything else becomes `f32`. The second value says why a quantized matrix had to become floats.
    pub fn exact_format(&self) -> (MatrixFormat, Option<&'static str>) {
        let (codes, zero, scale) = match &self.content {
            Content::Real(values) if values.kind == RealKind::F16 && self.row_factors.is_none() => {
                return (MatrixFormat::F16, None);
            }
            Content::Real(_) => return (MatrixFormat::F32, None),
            Content::Quantized { codes, zero, scale } => (codes, zero, scale),
        };
        if matches!(zero, Zero::Real(_)) {
            return (MatrixFormat::F32, Some("its zero points are not integers"));
        }
        let zero_cols = match zero {
            Zero::Codes(zero) => zero.grid.shared_cols(),
            _ => usize::MAX,
        };
        let shared = scale.grid.shared_cols().min(zero_cols);
        let block = match shared {
            cols if cols >= self.cols || cols.is_multiple_of(32) => 32,
            16 => 16,
            _ => {
                return (
                    MatrixFormat::F32,
                    Some("its blocks along the input are not a multiple of 16"),
                );
            }
        };
        let (mut narrow, mut centred, mut bits4) = (true, true, true);
        let (low, high) = if codes.bits == 8 {
            (-128, 127)
        } else {
            (-8, 7)
        };
        for row in 0..self.rows() {
            let from = self.row_picks.as_ref().map_or(row, |picks| picks[row]);
            for start in (0..self.cols).step_by(block) {
                let scale = self.block_scale(scale, row, from, start);
                narrow &= f16::from_f32(scale).to_f32() == scale;
                let zero = zero_at(zero, from, start);
                for col in start..(start + block).min(self.cols) {
                    let code = codes.at(from, col);
                    centred &= (low..=high).contains(&(code - zero));
                    bits4 &= (-8..=7).contains(&(code - zero));
                }
            }
        }
        let element = if codes.bits <= 4 || (bits4 && codes.bits < 8) {
            Element::Int4
        } else {
            Element::Int8
        };
        let scale = if narrow {
            ScaleType::F16
        } else {
            ScaleType::F32
        };
        (
            MatrixFormat {
                element,
                block,
                scale,
                zero_points: !centred,
            },
            None,
        )
    }

    fn block_scale(&self, scale: &Reals, row: usize, from: usize, col: usize) -> f32 {
        let factor = self
            .row_factors
            .as_ref()
            .map_or(1.0, |factors| factors[row]);
        scale.at(from, col) * factor
    }

    /// Rows `range` in the format [`exact_format`](Self::exact_format) chose.
    pub fn read_rows(&self, range: std::ops::Range<usize>, format: &MatrixFormat) -> RowsOut {
        let (Content::Quantized { codes, zero, scale }, Element::Int4 | Element::Int8) =
            (&self.content, format.element)
        else {
            let mut values = vec![0.0; range.len() * self.cols];
            for (row, out) in range.zip(values.chunks_exact_mut(self.cols.max(1))) {
                self.read_row(row, out);
            }
            return RowsOut::Real(values);
        };
        // The packed format counts codes as signed; unsigned ones move down by half their range.
        let shift = match (codes.signed, codes.bits) {
            (true, _) => 0,
            (false, 8) => 128,
            (false, _) => 8,
        };
        let blocks = self.cols.div_ceil(format.block);
        let mut out_codes = Vec::with_capacity(range.len() * self.cols);
        let mut out_scales = Vec::with_capacity(range.len() * blocks);
        let mut out_zeros = Vec::with_capacity(range.len() * blocks);
        for row in range {
            let from = self.row_picks.as_ref().map_or(row, |picks| picks[row]);
            for start in (0..self.cols).step_by(format.block) {
                let zero = zero_at(zero, from, start);
                out_scales.push(self.block_scale(scale, row, from, start));
                out_zeros.push((zero - shift) as i8);
                for col in start..(start + format.block).min(self.cols) {
                    let centre = if format.zero_points { shift } else { zero };
                    out_codes.push((codes.at(from, col) - centre) as i8);
                }
            }
        }
        let zero_points = format.zero_points.then_some(out_zeros);
        RowsOut::Quantized {
            codes: out_codes,
            scales: out_scales,
            zero_points,
        }
    }
}

fn zero_at(zero: &Zero, row: usize, col: usize) -> i32 {
    match zero {
        Zero::Constant(value) => *value,
        Zero::Codes(codes) => codes.at(row, col),
        Zero::Real(_) => 0,
    }
}

/// What is subtracted from the codes of a quantized matrix.
pub(super) enum ZeroPoints {
    Constant(i32),
    Codes(Codes),
    Real(Reals),
}
