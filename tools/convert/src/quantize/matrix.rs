//! A matrix quantized row by row: what all methods share.

use super::codebook_fit::{self, Sample};
use super::levels::Block;
use super::{BLOCK, QuantizeError, QuantizedRows, Target};
use crate::onnx::FloatRows;
use crate::panels::{PANEL_ROWS, panels};
use crate::plan::Code;
use niwaki_kernels::Codebook;
use rayon::prelude::*;
use std::ops::Range;

/// Blocks that a codebook is fitted to at most.
const SAMPLED_BLOCKS: usize = 4096;

/// Some rows of a matrix, and what becomes of them.
pub(super) struct Panel<'a> {
    matrix: &'a dyn FloatRows,
    first_row: usize,
    columns: usize,
    values: Vec<f32>,
    codes: &'a mut [i8],
    scales: &'a mut [f32],
}

impl Panel<'_> {
    pub(super) fn rows(&self) -> usize {
        self.values.len() / self.columns
    }

    /// The weights of a row.
    pub(super) fn weights(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..][..self.columns]
    }

    /// Sets the code of one weight.
    pub(super) fn set_code(&mut self, row: usize, column: usize, code: i8) {
        self.codes[row * self.columns + column] = code;
    }

    /// Sets the scale of one block of a row.
    ///
    /// # Errors
    /// When it is out of range, and when it is zero and a weight of the block is not.
    pub(super) fn set_scale(
        &mut self,
        row: usize,
        block: usize,
        scale: f32,
    ) -> Result<(), QuantizeError> {
        let weights = &self.weights(row)[block * BLOCK..];
        let weights = &weights[..weights.len().min(BLOCK)];
        let largest = weights
            .iter()
            .fold(0.0f32, |largest, weight| largest.max(weight.abs()));
        let matrix = || self.matrix.name().to_owned();
        let row_of_matrix = self.first_row + row;
        if !scale.is_finite() {
            return Err(QuantizeError::TooLarge {
                matrix: matrix(),
                row: row_of_matrix,
                value: largest,
            });
        }
        if scale == 0.0 && largest > 0.0 {
            return Err(QuantizeError::TooSmall {
                matrix: matrix(),
                row: row_of_matrix,
                value: largest,
            });
        }
        let blocks = self.columns.div_ceil(BLOCK);
        self.scales[row * blocks + block] = scale;
        Ok(())
    }
}

/// Quantizes all rows, some at a time.
pub(super) fn quantize(
    weights: &dyn FloatRows,
    codebook: Option<Codebook>,
    work: impl Fn(&mut Panel<'_>) -> Result<(), QuantizeError> + Sync,
) -> Result<QuantizedRows, QuantizeError> {
    let (rows, columns) = (weights.rows(), weights.columns());
    let blocks = columns.div_ceil(BLOCK);
    let mut quantized = QuantizedRows {
        codes: vec![0; rows * columns],
        scales: vec![0.0; rows * blocks],
        codebook,
    };
    if quantized.codes.is_empty() {
        return Ok(quantized);
    }
    let codes = quantized.codes.par_chunks_mut(PANEL_ROWS * columns);
    let scales = quantized.scales.par_chunks_mut(PANEL_ROWS * blocks);
    let panels: Vec<Range<usize>> = panels(rows).collect();
    // All results are looked at, so that the first of several errors is the one that is told.
    let results: Vec<Result<(), QuantizeError>> = panels
        .into_par_iter()
        .zip(codes.zip(scales))
        .map(|(panel, (codes, scales))| {
            let values = read(weights, panel.clone())?;
            weights.release(panel.clone());
            work(&mut Panel {
                matrix: weights,
                first_row: panel.start,
                columns,
                values,
                codes,
                scales,
            })
        })
        .collect();
    results.into_iter().collect::<Result<(), QuantizeError>>()?;
    Ok(quantized)
}

/// Rows of finite weights.
pub(super) fn read(weights: &dyn FloatRows, rows: Range<usize>) -> Result<Vec<f32>, QuantizeError> {
    let columns = weights.columns();
    let mut values = vec![0.0; rows.len() * columns];
    weights.read(rows.clone(), &mut values)?;
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(at) => Err(QuantizeError::NotFinite {
            matrix: weights.name().to_owned(),
            row: rows.start + at / columns,
        }),
    }
}

/// The numbers of one block of a row; a short one is filled up with zeros.
pub(super) fn block(row: &[f32], index: usize) -> Block {
    let part = &row[index * BLOCK..];
    let part = &part[..part.len().min(BLOCK)];
    let mut block = [0.0; BLOCK];
    block[..part.len()].copy_from_slice(part);
    block
}

/// The codebook that suits a matrix, where it is to have one. `importance` says how much an error in each column counts.
pub(super) fn codebook(
    weights: &dyn FloatRows,
    importance: &[f32],
    target: Target,
) -> Result<Option<Codebook>, QuantizeError> {
    if target.code != Code::Codebook4 {
        return Ok(None);
    }
    let blocks = weights.columns().div_ceil(BLOCK);
    let sampled_rows = (SAMPLED_BLOCKS / blocks.max(1)).clamp(1, weights.rows().max(1));
    let mut samples = vec![];
    for index in 0..sampled_rows.min(weights.rows()) {
        let row = index * weights.rows() / sampled_rows;
        let values = read(weights, row..row + 1)?;
        weights.release(row..row + 1);
        samples.extend((0..blocks).map(|index| Sample {
            weights: block(&values, index),
            importance: block(importance, index),
        }));
    }
    Ok(Some(codebook_fit::fit(&samples)))
}
