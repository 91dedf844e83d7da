//! Error feedback: what rounding one column does wrong, the columns that are rounded after it make up for.

use super::feedback::Feedback;
use super::levels::{Block, Levels};
use super::matrix::{self, Panel};
use super::scale::{Factors, best_scale, round_scale};
use super::{BLOCK, QuantizeError, QuantizedRows, Quantizer, ScaleGrid, ScaleSearch, Target};
use crate::calibrate::{Gram, Statistics, Wanted};
use crate::onnx::FloatRows;
use std::ops::Range;

/// Rows that are rounded side by side.
const LANES: usize = 16;

/// One weight of each of the rows.
type Lanes = [f32; LANES];

/// GPTQ (Frantar et al., 2023), with whole blocks in the order of how strongly their inputs are driven and each scale found
/// by a search, weighted with the inputs' mean squares, at the time its block is reached.
///
/// A matrix whose input was not observed gets the scale search alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gptq {
    /// This share of the mean of the Gram matrix's diagonal is added to its diagonal: how far the text is not trusted.
    pub damping: f64,
}

impl Gptq {
    /// For a text like those that the model will see.
    pub const USUAL: Gptq = Gptq { damping: 0.05 };
    /// For a text that may be of another kind.
    pub const CAUTIOUS: Gptq = Gptq { damping: 0.3 };
}

/// So often is the damping raised tenfold where the Gram matrix cannot be factored.
const ATTEMPTS: i32 = 6;

impl Quantizer for Gptq {
    fn name(&self) -> &'static str {
        "GPTQ"
    }

    fn description(&self) -> String {
        format!("{}, damping {}", self.name(), self.damping)
    }

    fn wants(&self) -> Wanted {
        Wanted {
            gram: true,
            ..Wanted::default()
        }
    }

    fn quantize(
        &self,
        weights: &dyn FloatRows,
        statistics: Option<&Statistics>,
        target: Target,
    ) -> Result<QuantizedRows, QuantizeError> {
        let gram = statistics.and_then(|statistics| statistics.gram.as_ref());
        let Some(gram) = gram.filter(|gram| gram.columns() == weights.columns()) else {
            return ScaleSearch.quantize(weights, statistics, target);
        };
        let importance = mean_squares(gram);
        let blocks = Ordered::by(&importance);
        let attempts = (0..ATTEMPTS).map(|attempt| self.damping.max(1e-6) * 10f64.powi(attempt));
        let factor = attempts
            .into_iter()
            .find_map(|damping| Feedback::of(gram, &blocks.columns, damping));
        let Some(factor) = factor else {
            return ScaleSearch.quantize(weights, statistics, target);
        };
        let codebook = matrix::codebook(weights, &importance, target)?;
        let levels = Levels::of(target.code, codebook.as_ref());
        let task = Task {
            factors: Factors::of(&levels),
            levels,
            grid: target.grid,
            importance: blocks.columns.iter().map(|&c| importance[c]).collect(),
            blocks,
            factor,
        };
        matrix::quantize(weights, codebook, |panel| task.quantize(panel))
    }
}

/// The mean square of each column.
fn mean_squares(gram: &Gram) -> Vec<f32> {
    let rows = gram.rows().max(1) as f64;
    (0..gram.columns())
        .map(|column| (gram.at(column, column) / rows) as f32)
        .collect()
}

/// Columns in the order in which they are factored: the last are rounded first. Blocks stay whole.
struct Ordered {
    columns: Vec<usize>,
    /// Which columns of the matrix are a block, and where they are in the order; from the first to be factored on.
    blocks: Vec<(usize, Range<usize>)>,
}

impl Ordered {
    /// The most strongly driven last.
    fn by(importance: &[f32]) -> Ordered {
        let of_block = |block: usize| {
            let columns = block * BLOCK..((block + 1) * BLOCK).min(importance.len());
            columns.map(|column| f64::from(importance[column]))
        };
        let mut order: Vec<usize> = (0..importance.len().div_ceil(BLOCK)).collect();
        order.sort_by(|a, b| {
            let sums = [*a, *b].map(|block| of_block(block).sum::<f64>());
            sums[0].total_cmp(&sums[1])
        });
        let mut columns = Vec::with_capacity(importance.len());
        let mut blocks = vec![];
        for block in order {
            let first = columns.len();
            columns.extend(block * BLOCK..((block + 1) * BLOCK).min(importance.len()));
            columns[first..].sort_by(|a, b| importance[*a].total_cmp(&importance[*b]));
            blocks.push((block, first..columns.len()));
        }
        Ordered { columns, blocks }
    }
}

/// What is the same for all rows of a matrix.
struct Task {
    levels: Levels,
    factors: &'static Factors,
    grid: ScaleGrid,
    blocks: Ordered,
    /// Of the columns in their order.
    importance: Vec<f32>,
    factor: Feedback,
}

impl Task {
    fn quantize(&self, panel: &mut Panel<'_>) -> Result<(), QuantizeError> {
        for first in (0..panel.rows()).step_by(LANES) {
            self.quantize_lanes(panel, first..(first + LANES).min(panel.rows()))?;
        }
        Ok(())
    }

    fn quantize_lanes(
        &self,
        panel: &mut Panel<'_>,
        rows: Range<usize>,
    ) -> Result<(), QuantizeError> {
        let order = &self.blocks.columns;
        let weights: Vec<Lanes> = order
            .iter()
            .map(|&column| {
                let mut lanes = [0.0; LANES];
                for (lane, row) in lanes.iter_mut().zip(rows.clone()) {
                    *lane = panel.weights(row)[column];
                }
                lanes
            })
            .collect();
        let mut errors: Vec<Lanes> = vec![[0.0; LANES]; order.len()];
        for (block, columns) in self.blocks.blocks.iter().rev() {
            let mut targets = [[0.0; LANES]; BLOCK];
            targets[..columns.len()].copy_from_slice(&weights[columns.clone()]);
            self.make_up(&mut targets, &errors, columns);
            let scales = self.scales(&targets, columns);
            for (row, scale) in rows.clone().zip(scales) {
                panel.set_scale(row, *block, scale)?;
            }
            let inverse = scales.map(|scale| if scale == 0.0 { 0.0 } else { 1.0 / scale });
            for index in (0..columns.len()).rev() {
                let position = columns.start + index;
                let mut scaled = targets[index];
                for (scaled, inverse) in scaled.iter_mut().zip(inverse) {
                    *scaled *= inverse;
                }
                // What was pruned makes up for nothing: it stays zero.
                for (scaled, weight) in scaled.iter_mut().zip(weights[position]) {
                    if weight == 0.0 {
                        *scaled = 0.0;
                    }
                }
                let levels = self.levels.nearest(&scaled);
                let error = &mut errors[position];
                for lane in 0..LANES {
                    error[lane] = weights[position][lane] - levels[lane] * scales[lane];
                }
                for (row, scaled) in rows.clone().zip(scaled) {
                    panel.set_code(row, order[position], self.levels.code(scaled));
                }
                let shares = &self.factor.row(position)[columns.start..];
                for (target, share) in targets.iter_mut().zip(shares) {
                    for (target, error) in target.iter_mut().zip(error.iter()) {
                        *target += error * share;
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds to the targets of some columns what the columns after them left.
    fn make_up(&self, targets: &mut [Lanes; BLOCK], errors: &[Lanes], columns: &Range<usize>) {
        let mut position = columns.end;
        while position + 4 <= errors.len() {
            let shares: [&[f32]; 4] =
                std::array::from_fn(|i| &self.factor.row(position + i)[columns.clone()]);
            let errors: [&Lanes; 4] = std::array::from_fn(|i| &errors[position + i]);
            for (index, target) in targets[..columns.len()].iter_mut().enumerate() {
                let [a, b, c, d] = shares.map(|shares| shares[index]);
                for lane in 0..LANES {
                    target[lane] += (errors[0][lane] * a + errors[1][lane] * b)
                        + (errors[2][lane] * c + errors[3][lane] * d);
                }
            }
            position += 4;
        }
        for (position, error) in errors.iter().enumerate().skip(position) {
            let shares = &self.factor.row(position)[columns.clone()];
            for (target, share) in targets.iter_mut().zip(shares) {
                for (target, error) in target.iter_mut().zip(error) {
                    *target += error * share;
                }
            }
        }
    }

    fn scales(&self, targets: &[Lanes; BLOCK], columns: &Range<usize>) -> Lanes {
        let mut importance: Block = [0.0; BLOCK];
        importance[..columns.len()].copy_from_slice(&self.importance[columns.clone()]);
        std::array::from_fn(|lane| {
            let weights: Block = std::array::from_fn(|index| targets[index][lane]);
            let scale = best_scale(&self.levels, &weights, &importance, self.factors);
            round_scale(scale, self.grid)
        })
    }
}
