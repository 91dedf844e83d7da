//! Weight matrices as the export stores them, read in place, without unpacking the file.

use super::stored::{Codes, Grid, Reals};
use crate::onnx::TensorView;
use bytes::Bytes;
use half::f16;
use niwaki_kernels::{Element, MatrixFormat, ScaleType};
use std::ops::Range;
use std::sync::Arc;

/// A constant matrix of the export, `[rows, cols]`, possibly transposed, dequantised or with rows picked.
#[derive(Clone, Debug)]
pub struct MatrixSource {
    rows: usize,
    cols: usize,
    content: Content,
    row_picks: Option<Arc<[usize]>>,
    row_factors: Option<Arc<[f32]>>,
    low_rank: Vec<LowRank>,
}

/// `factor * up * down`, which is added to some rows of a matrix.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// To which rows.
    pub rows: Range<usize>,
    /// `[rank, columns of the matrix]`, row-major.
    pub down: Arc<[f32]>,
    /// `[rows, rank]`, row-major.
    pub up: Arc<[f32]>,
    /// The factor.
    pub factor: f32,
}

impl LowRank {
    /// Adds what it has for `row` to that row's values.
    fn add_to(&self, row: usize, values: &mut [f32]) {
        if !self.rows.contains(&row) || values.is_empty() {
            return;
        }
        let rank = self.down.len() / values.len();
        let up = &self.up[(row - self.rows.start) * rank..][..rank];
        let mut sums = vec![0.0; values.len()];
        for (up, down) in up.iter().zip(self.down.chunks_exact(values.len())) {
            sums.iter_mut()
                .zip(down)
                .for_each(|(sum, down)| *sum += up * down);
        }
        let pairs = values.iter_mut().zip(sums);
        pairs.for_each(|(value, sum)| *value += self.factor * sum);
    }
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
            low_rank: vec![],
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
            low_rank: vec![],
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
        let scale = Reals::single(one);
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

    /// Adds to its rows, whatever they were picked from. Only floats have room for it.
    pub fn add(&mut self, low_rank: LowRank) {
        debug_assert!(!self.is_quantized());
        self.low_rank.push(low_rank);
    }

    /// A small float matrix that was computed, not stored.
    pub(super) fn of_values(rows: usize, cols: usize, values: &[f32]) -> MatrixSource {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let content = Content::Real(Reals::of_f32(bytes.into(), Grid::dense(cols)));
        MatrixSource {
            rows,
            cols,
            content,
            row_picks: None,
            row_factors: None,
            low_rank: vec![],
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
        if self.is(other) {
            return true;
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
        if !scattered {
            return false;
        }
        let (mut mine, mut theirs) = (vec![0.0; self.cols], vec![0.0; self.cols]);
        (0..self.rows()).all(|row| {
            self.read_row(row, &mut mine);
            other.read_row(row, &mut theirs);
            mine.iter()
                .zip(&theirs)
                .all(|(a, b)| a.to_bits() == b.to_bits())
        })
    }

    /// Rows and columns exchanged. Only before rows are picked or scaled.
    pub(super) fn transposed(&self) -> MatrixSource {
        let content = match &self.content {
            Content::Real(values) => Content::Real(values.transposed()),
            Content::Quantized {
                codes: held,
                zero,
                scale,
            } => Content::Quantized {
                codes: held.transposed(),
                zero: match zero {
                    Zero::Constant(value) => Zero::Constant(*value),
                    Zero::Codes(held) => Zero::Codes(held.transposed()),
                    Zero::Real(values) => Zero::Real(values.transposed()),
                },
                scale: scale.transposed(),
            },
        };
        debug_assert!(self.row_picks.is_none() && self.row_factors.is_none());
        MatrixSource {
            rows: self.cols,
            cols: self.rows,
            content,
            row_picks: None,
            row_factors: None,
            low_rank: vec![],
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
        let scale = Reals::single(bytes);
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
        debug_assert!(
            self.low_rank.is_empty(),
            "only lowering compares matrices, before anything is added"
        );
        let factor = self
            .row_factors
            .as_ref()
            .map_or(1.0, |factors| factors[row]);
        let row = self.row_picks.as_ref().map_or(row, |picks| picks[row]);
        let value = match &self.content {
            Content::Real(values) => values.at(row, col),
            Content::Quantized { codes, zero, scale } => {
                centred(codes.at(row, col), zero, row, col) * scale.at(row, col)
            }
        };
        if self.row_factors.is_some() {
            value * factor
        } else {
            value
        }
    }

    /// One row as numbers; `out` is as long as the matrix has columns.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        let from = self.stored_row(row);
        let factor = self.row_factors.as_ref().map(|factors| factors[row]);
        match &self.content {
            Content::Real(values) => values.read_row(from, out),
            Content::Quantized { codes, zero, scale } => {
                let mut held = vec![0; out.len()];
                codes.read_run(from, 0, &mut held);
                for (col, (out, code)) in out.iter_mut().zip(held).enumerate() {
                    *out = centred(code, zero, from, col) * scale.at(from, col);
                }
            }
        }
        if let Some(factor) = factor {
            out.iter_mut().for_each(|value| *value *= factor);
        }
        self.low_rank
            .iter()
            .for_each(|added| added.add_to(row, out));
    }

    /// Says that these rows are not needed for a while: what of the file holds them and nothing else leaves memory.
    pub(super) fn release(&self, range: Range<usize>) {
        // Rows that were picked lie anywhere, but all of them are all there is.
        let whole = range == (0..self.rows());
        let part = (!whole && self.row_picks.is_none()).then_some(range);
        if !whole && part.is_none() {
            return;
        }
        match &self.content {
            Content::Real(values) => values.release(part),
            Content::Quantized { codes, zero, scale } => {
                codes.release(part.clone());
                if part.is_none() {
                    scale.release(None);
                    match zero {
                        Zero::Constant(_) => {}
                        Zero::Codes(codes) => codes.release(None),
                        Zero::Real(values) => values.release(None),
                    }
                }
            }
        }
    }

    /// Whether both are the same part of the same file.
    fn is(&self, other: &MatrixSource) -> bool {
        let same_content = match (&self.content, &other.content) {
            (Content::Real(mine), Content::Real(theirs)) => mine.is(theirs),
            _ => false,
        };
        same_content
            && (self.rows, self.cols) == (other.rows, other.cols)
            && self.row_picks == other.row_picks
            && self.row_factors == other.row_factors
    }

    fn stored_row(&self, row: usize) -> usize {
        self.row_picks.as_ref().map_or(row, |picks| picks[row])
    }

    /// How the matrix can be packed with no change of any value.
    ///
    /// Integers stay integers where Niwaki's blocks can hold them; a half-precision matrix stays `f16`;
    /// everything else becomes `f32`. The second value says why a quantized matrix had to become floats.
    pub fn exact_format(&self) -> (MatrixFormat, Option<&'static str>) {
        let (codes, zero, scale) = match &self.content {
            Content::Real(values)
                if values.is_f16() && self.row_factors.is_none() && self.low_rank.is_empty() =>
            {
                return (MatrixFormat::F16, None);
            }
            Content::Real(_) => return (MatrixFormat::F32, None),
            Content::Quantized { codes, zero, scale } => (codes, zero, scale),
        };
        if matches!(zero, Zero::Real(_)) {
            return (MatrixFormat::F32, Some("its zero points are not integers"));
        }
        let zero_cols = match zero {
            Zero::Codes(zero) => zero.shared_cols(),
            _ => usize::MAX,
        };
        let shared = scale.shared_cols().min(zero_cols);
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
        let (mut narrow, mut without_zeros) = (true, true);
        let (low, high) = if codes.bits() == 8 {
            (-128, 127)
        } else {
            (-8, 7)
        };
        let (least, most) = codes.range();
        let mut held = vec![0; block];
        for row in 0..self.rows() {
            let from = self.stored_row(row);
            for start in (0..self.cols).step_by(block) {
                let scale = self.block_scale(scale, row, from, start);
                narrow &= f16::from_f32(scale).to_f32() == scale;
                let zero = zero_at(zero, from, start);
                // Only where a code could leave the range are the codes themselves looked at.
                if without_zeros && (least - zero < low || most - zero > high) {
                    let held = &mut held[..block.min(self.cols - start)];
                    codes.read_run(from, start, held);
                    without_zeros = held
                        .iter()
                        .all(|code| (low..=high).contains(&(code - zero)));
                }
            }
        }
        let element = if codes.bits() <= 4 {
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
                zero_points: !without_zeros,
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
    pub fn read_rows(&self, range: Range<usize>, format: &MatrixFormat) -> RowsOut {
        let (Content::Quantized { codes, zero, scale }, Element::Int4 | Element::Int8) =
            (&self.content, format.element)
        else {
            let mut values = vec![0.0; range.len() * self.cols];
            self.read_floats(range, &mut values);
            return RowsOut::Real(values);
        };
        // The packed format counts codes as signed; unsigned ones move down by half their range.
        let shift = match (codes.signed(), codes.bits()) {
            (true, _) => 0,
            (false, 8) => 128,
            (false, _) => 8,
        };
        let blocks = self.cols.div_ceil(format.block);
        let mut out_codes = Vec::with_capacity(range.len() * self.cols);
        let mut out_scales = Vec::with_capacity(range.len() * blocks);
        let mut out_zeros = Vec::with_capacity(range.len() * blocks);
        let mut held = vec![0; self.cols];
        for row in range {
            let from = self.stored_row(row);
            codes.read_run(from, 0, &mut held);
            for (block, held) in held.chunks(format.block).enumerate() {
                let start = block * format.block;
                let zero = zero_at(zero, from, start);
                out_scales.push(self.block_scale(scale, row, from, start));
                out_zeros.push((zero - shift) as i8);
                let centre = if format.zero_points { shift } else { zero };
                out_codes.extend(held.iter().map(|code| (code - centre) as i8));
            }
        }
        let zero_points = format.zero_points.then_some(out_zeros);
        RowsOut::Quantized {
            codes: out_codes,
            scales: out_scales,
            zero_points,
        }
    }

    /// Rows `range` as numbers, row-major, into `out`, which has as many.
    pub fn read_floats(&self, range: Range<usize>, out: &mut [f32]) {
        match &self.content {
            // A transposed matrix is read down its columns, which lie in a row in the file.
            Content::Real(values) if values.is_transposed() => {
                let from: Vec<usize> = range.clone().map(|row| self.stored_row(row)).collect();
                values.read_transposed(&from, self.cols, out);
                for (row, out) in range.zip(out.chunks_exact_mut(self.cols.max(1))) {
                    if let Some(factors) = &self.row_factors {
                        out.iter_mut().for_each(|value| *value *= factors[row]);
                    }
                    self.low_rank
                        .iter()
                        .for_each(|added| added.add_to(row, out));
                }
            }
            _ => {
                for (row, out) in range.zip(out.chunks_exact_mut(self.cols.max(1))) {
                    self.read_row(row, out);
                }
            }
        }
    }
}

fn centred(code: i32, zero: &Zero, row: usize, col: usize) -> f32 {
    match zero {
        Zero::Constant(value) => (code - value) as f32,
        Zero::Codes(zero) => (code - zero.at(row, col)) as f32,
        Zero::Real(zero) => code as f32 - zero.at(row, col),
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
