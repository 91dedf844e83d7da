//! The constants of a lowered graph: matrices as the export stores them, and vectors.

use super::matrix::{MatrixSource, RowsOut};
use crate::onnx::FloatRows;
use crate::onnx::OnnxError;
use niwaki_bundle::RowOrigin;
use niwaki_bundle::graph::{MatrixId, VectorId};
use niwaki_kernels::MatrixFormat;
use std::sync::Arc;

/// One matrix of the lowered graph: sources stacked row upon row.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// Name for people.
    pub name: String,
    /// What it is stacked of; all have the same number of columns.
    pub stack: Vec<MatrixSource>,
    /// Which nodes of the export the rows come from, where they are several.
    pub origins: Vec<RowOrigin>,
    /// Where its rows and columns lie in the stack, if they were reordered.
    pub order: ChannelOrder,
}

/// Where the rows and columns of a matrix were before they were reordered; `None` where they were not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChannelOrder {
    /// For each row, which one it was.
    pub rows: Option<Arc<[usize]>>,
    /// For each column, which one it was.
    pub columns: Option<Arc<[usize]>>,
}

impl Matrix {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.stack.iter().map(MatrixSource::rows).sum()
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.stack.first().map_or(0, MatrixSource::cols)
    }

    /// Whether the export already holds it in integers.
    pub fn is_quantized(&self) -> bool {
        self.stack.iter().all(MatrixSource::is_quantized)
    }

    /// How it can be packed with no change of any value, and why integers had to become floats, if they had to.
    pub fn exact_format(&self) -> (MatrixFormat, Option<&'static str>) {
        // Stacks are only made of sources with equal formats.
        self.stack
            .first()
            .map_or((MatrixFormat::F32, None), MatrixSource::exact_format)
    }

    /// Puts rows and columns in another order: each tells where it is now. Only of floats, as a last step: what a row was
    /// made of, its origins say in the order of the stack.
    pub(crate) fn reorder(&mut self, rows: Option<Arc<[usize]>>, columns: Option<Arc<[usize]>>) {
        debug_assert!(!self.is_quantized() || (rows.is_none() && columns.is_none()));
        debug_assert!(self.order == ChannelOrder::default(), "reordered twice");
        self.order = ChannelOrder { rows, columns };
    }

    /// Rows `range`, in pieces: a piece ends where a source ends.
    pub fn read_rows(&self, range: std::ops::Range<usize>, format: &MatrixFormat) -> Vec<RowsOut> {
        let mut pieces = vec![];
        let mut first = 0;
        for source in &self.stack {
            let last = first + source.rows();
            let (start, end) = (range.start.max(first), range.end.min(last));
            if start < end {
                pieces.push(source.read_rows(start - first..end - first, format));
            }
            first = last;
        }
        pieces
    }

    /// One row as numbers, of a matrix that was not reordered.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        debug_assert!(self.order == ChannelOrder::default());
        let mut first = 0;
        for source in &self.stack {
            if row < first + source.rows() {
                return source.read_row(row - first, out);
            }
            first += source.rows();
        }
    }
}

impl FloatRows for Matrix {
    fn name(&self) -> &str {
        &self.name
    }

    fn rows(&self) -> usize {
        self.rows()
    }

    fn columns(&self) -> usize {
        self.cols()
    }

    fn read(&self, range: std::ops::Range<usize>, out: &mut [f32]) -> Result<(), OnnxError> {
        let columns = self.cols().max(1);
        match &self.order.rows {
            None => self.read_stack(range, out),
            Some(order) => {
                let rows = order[range].iter().zip(out.chunks_exact_mut(columns));
                rows.for_each(|(&from, row)| self.read_stack(from..from + 1, row));
            }
        }
        if let Some(order) = &self.order.columns {
            let mut before = vec![0.0; columns];
            for row in out.chunks_exact_mut(columns) {
                before.copy_from_slice(row);
                let values = order.iter().map(|from| before[*from]);
                row.iter_mut()
                    .zip(values)
                    .for_each(|(to, value)| *to = value);
            }
        }
        Ok(())
    }

    fn release(&self, range: std::ops::Range<usize>) {
        // Reordered rows lie anywhere, but all of them are all there is.
        if self.order.rows.is_some() && range != (0..self.rows()) {
            return;
        }
        let mut first = 0;
        for source in &self.stack {
            let last = first + source.rows();
            let (start, end) = (range.start.max(first), range.end.min(last));
            if start < end {
                source.release(start - first..end - first);
            }
            first = last;
        }
    }
}

impl Matrix {
    /// Rows in the order of the stack.
    fn read_stack(&self, range: std::ops::Range<usize>, out: &mut [f32]) {
        let mut rest = out;
        let mut first = 0;
        for source in &self.stack {
            let last = first + source.rows();
            let (start, end) = (range.start.max(first), range.end.min(last));
            if start < end {
                let (part, after) = rest.split_at_mut((end - start) * source.cols());
                source.read_floats(start - first..end - first, part);
                rest = after;
            }
            first = last;
        }
    }
}

/// All constants of a lowered graph, in the order of their ids.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// Matrices by [`MatrixId`].
    pub matrices: Vec<Matrix>,
    /// Vectors by [`VectorId`], with a name each.
    pub vectors: Vec<(String, Vec<f32>)>,
}

impl Parts {
    /// The id of a matrix; one with the same values is used again.
    pub(super) fn matrix(&mut self, name: &str, source: &MatrixSource) -> MatrixId {
        let held = self
            .matrices
            .iter()
            .position(|matrix| matrix.stack.len() == 1 && matrix.stack[0].same_values(source));
        held.unwrap_or_else(|| {
            self.matrices.push(Matrix {
                name: name.to_owned(),
                stack: vec![source.clone()],
                origins: vec![],
                order: ChannelOrder::default(),
            });
            self.matrices.len() - 1
        })
    }

    /// The id of a vector; one with the same values is used again.
    pub(super) fn vector(&mut self, name: &str, values: Vec<f32>) -> VectorId {
        let same = |held: &[f32]| {
            held.len() == values.len()
                && held
                    .iter()
                    .zip(&values)
                    .all(|(a, b)| a.to_bits() == b.to_bits())
        };
        if let Some(held) = self.vectors.iter().position(|(_, held)| same(held)) {
            return held;
        }
        self.vectors.push((name.to_owned(), values));
        self.vectors.len() - 1
    }
}
