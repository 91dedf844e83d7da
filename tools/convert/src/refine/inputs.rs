//! What a text shows of the inputs of matrices whose channels may move.

use super::spaces::{SpaceId, Spaces};
use crate::calibrate::{CalibrateError, Calibration, Follow, Pass, Replacements, Samples};
use crate::lower::{Lowered, Matrix};
use crate::onnx::FloatRows;
use crate::panels::each_panel;
use niwaki_bundle::graph::{Columns, MatrixId, Op};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Rows of an input that are looked at.
const ROWS: usize = 128;

/// An input that matrices share.
pub(super) struct Input {
    pub(super) space: SpaceId,
    /// The matrices that are multiplied with it; at least one.
    pub(super) matrices: Vec<MatrixId>,
    /// Outputs of all of them.
    pub(super) outputs: usize,
    pub(super) columns: usize,
    /// Rows of the input, row-major.
    pub(super) rows: Vec<f32>,
    /// For each column, how much of the matrices' products an error of 1 in it is, as a share of their energy.
    pub(super) weights: Vec<f64>,
}

/// The inputs of matrices that are quantized, where channels may move, in the order of the graph.
pub(super) fn inputs(
    lowered: &Lowered,
    spaces: &Spaces,
    quantized: &BTreeSet<MatrixId>,
    calibration: Calibration<'_>,
) -> Result<Vec<Input>, CalibrateError> {
    let mut readers: Vec<(Columns, SpaceId, Vec<MatrixId>)> = vec![];
    let mut seen = BTreeSet::new();
    for node in &lowered.graph.nodes {
        let (Op::Linear { weight, .. }, Some(columns)) = (&node.op, node.inputs.first()) else {
            continue;
        };
        let Some(space) = spaces.of_columns(columns) else {
            continue;
        };
        if !quantized.contains(weight) || !seen.insert(*weight) {
            continue;
        }
        match readers.iter_mut().find(|(held, ..)| held == columns) {
            Some((_, _, matrices)) => matrices.push(*weight),
            None => readers.push((*columns, space, vec![*weight])),
        }
    }
    let watched = readers.iter().map(|(_, _, matrices)| matrices[0]).collect();
    let mut samples = samples(lowered, &watched, calibration)?;
    readers
        .into_iter()
        .map(|(columns, space, matrices)| {
            let rows = samples.remove(&matrices[0]).unwrap_or_default();
            let read = matrices.iter().map(|id| &lowered.parts.matrices[*id]);
            Ok(Input {
                space,
                outputs: read.clone().map(Matrix::rows).sum(),
                columns: columns.width,
                weights: shares(read, &rows, columns.width)?,
                rows,
                matrices,
            })
        })
        .collect()
}

/// Rows of the inputs of matrices.
fn samples(
    lowered: &Lowered,
    matrices: &BTreeSet<MatrixId>,
    calibration: Calibration<'_>,
) -> Result<BTreeMap<MatrixId, Vec<f32>>, CalibrateError> {
    let mut rows = BTreeMap::new();
    if matrices.is_empty() {
        return Ok(rows);
    }
    let pass = Pass {
        lowered,
        calibration,
        matrices,
        follow: Follow::Original,
    };
    pass.run(
        |input| Ok::<_, CalibrateError>(Samples::new(input.columns, ROWS)),
        |seen| {
            rows.extend(
                seen.into_iter()
                    .map(|(input, samples)| (input.matrix, samples.values().to_vec())),
            );
            Ok(Replacements::new())
        },
        &mut |_| {},
    )?;
    Ok(rows)
}

/// The squares of each column's weights, over the energy of the products with `rows`, added up over matrices.
fn shares<'a>(
    matrices: impl Iterator<Item = &'a Matrix>,
    rows: &[f32],
    columns: usize,
) -> Result<Vec<f64>, CalibrateError> {
    let energies = square_sums(rows, columns);
    let mut shares = vec![0.0; columns];
    for matrix in matrices {
        let weights = column_squares(matrix)?;
        let energy: f64 = energies.iter().zip(&weights).map(|(x, w)| x * w).sum();
        if energy > 0.0 {
            let parts = shares.iter_mut().zip(&weights);
            parts.for_each(|(share, weight)| *share += weight / energy);
        }
    }
    Ok(shares)
}

/// For each column, the sum of the squares of its weights.
fn column_squares(matrix: &Matrix) -> Result<Vec<f64>, CalibrateError> {
    let columns = matrix.cols();
    let mut squares = vec![0.0; columns];
    let of_panel = |panel: Range<usize>| -> Result<Vec<f64>, CalibrateError> {
        let mut values = vec![0.0; panel.len() * columns];
        matrix.read(panel.clone(), &mut values)?;
        matrix.release(panel);
        Ok(square_sums(&values, columns))
    };
    let add = |part: Vec<f64>| {
        squares.iter_mut().zip(part).for_each(|(sum, w)| *sum += w);
        Ok(())
    };
    each_panel(matrix.rows(), of_panel, add, &mut |_| {})?;
    Ok(squares)
}

/// For each column of some rows, the sum of its squares.
pub(super) fn square_sums(rows: &[f32], columns: usize) -> Vec<f64> {
    let mut sums = vec![0.0; columns];
    for row in rows.chunks_exact(columns.max(1)) {
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += f64::from(*x) * f64::from(*x);
        }
    }
    sums
}
