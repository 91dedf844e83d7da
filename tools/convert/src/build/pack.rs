//! A matrix as the plan says, in the order that the kernels read.

use super::BuildError;
use super::formats::{format_of, of_code};
use super::optimize::Source;
use crate::lower::{Matrix, RowsOut};
use crate::onnx::FloatRows;
use crate::panels::each_panel;
use crate::plan::Fate;
use crate::quantize::QuantizedRows;
use niwaki_bundle::graph::MatrixId;
use niwaki_bundle::write::BundleWriter;
use niwaki_kernels::{Element, LayoutError, MatrixFormat, pack};
use std::ops::Range;

/// What of the plan concerns one matrix.
#[derive(Clone, Copy)]
pub(super) struct Stored {
    pub(super) fate: Fate,
    pub(super) format: MatrixFormat,
}

/// Writes a matrix, and says in which format; `progress` hears of the rows that are done.
pub(super) fn write_matrix(
    writer: &mut BundleWriter,
    id: MatrixId,
    matrix: &Matrix,
    Stored { fate, format }: Stored,
    source: &Source<'_>,
    progress: &mut dyn FnMut(usize),
) -> Result<MatrixFormat, BuildError> {
    let (rows, columns) = (matrix.rows(), matrix.cols());
    let layout = |source| BuildError::Layout {
        name: matrix.name.clone(),
        source,
    };
    let mut quantized = QuantizedRows::default();
    let mut format = format;
    if let Fate::Quantize(code) = fate {
        let target;
        (quantized, target) = source.take(id, matrix, of_code(code))?;
        format = format_of(target);
    }
    let mut output = writer
        .begin_matrix(matrix.name.clone(), format, rows, columns)?
        .with_origins(matrix.origins.clone());
    if let Some(codebook) = quantized.codebook {
        output = output.with_codebook(codebook);
    }
    if let (true, Some(blocks)) = (format.is_quantized(), source.refined.get(&id)) {
        output = output.with_refined(*blocks);
    }
    let pack = |panel: Range<usize>| match fate {
        Fate::Quantize(_) => {
            let (codes, scales) = quantized.rows(panel.clone(), columns);
            pack::pack_int(format, panel.len(), columns, codes, scales, None).map_err(layout)
        }
        Fate::Float(_) | Fate::Keep => pack_rows(matrix, panel, format, layout),
    };
    let write = |bytes: Vec<u8>| Ok(output.write(&bytes)?);
    each_panel(rows, pack, write, progress)?;
    output.finish()?;
    matrix.release(0..rows);
    Ok(format)
}

/// Rows as they are, or as floats.
fn pack_rows(
    matrix: &Matrix,
    panel: Range<usize>,
    format: MatrixFormat,
    layout: impl Fn(LayoutError) -> BuildError,
) -> Result<Vec<u8>, BuildError> {
    let (count, columns) = (panel.len(), matrix.cols());
    if format.is_quantized() {
        let Integers {
            codes,
            scales,
            zero_points,
        } = integers(matrix, panel.clone(), &format);
        matrix.release(panel);
        let zero_points = format.zero_points.then_some(zero_points.as_slice());
        return pack::pack_int(format, count, columns, &codes, &scales, zero_points)
            .map_err(layout);
    }
    let mut values = vec![0.0; count * columns];
    matrix
        .read(panel.clone(), &mut values)
        .map_err(BuildError::Onnx)?;
    matrix.release(panel.clone());
    let row_of = |at: usize| panel.start + at / columns.max(1);
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return Err(BuildError::NotFinite {
            name: matrix.name.clone(),
            row: row_of(at),
            value: values[at],
        });
    }
    if format.element == Element::F16
        && let Some(at) = values
            .iter()
            .position(|value| !half::f16::from_f32(*value).is_finite())
    {
        return Err(BuildError::TooLargeForHalf {
            name: matrix.name.clone(),
            row: row_of(at),
            value: values[at],
        });
    }
    pack::pack_float(format, count, columns, &values).map_err(layout)
}

/// Rows of a matrix that the export holds quantized.
#[derive(Default)]
struct Integers {
    codes: Vec<i8>,
    scales: Vec<f32>,
    zero_points: Vec<i8>,
}

/// Rows in the format that the export holds them in, which all sources of a matrix share.
fn integers(matrix: &Matrix, panel: Range<usize>, format: &MatrixFormat) -> Integers {
    let mut joined = Integers::default();
    for piece in matrix.read_rows(panel, format) {
        if let RowsOut::Quantized {
            codes,
            scales,
            zero_points,
        } = piece
        {
            joined.codes.extend(codes);
            joined.scales.extend(scales);
            joined.zero_points.extend(zero_points.unwrap_or_default());
        }
    }
    joined
}
