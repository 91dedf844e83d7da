//! The projection that reads what stays, fitted to do without what went.

use super::choice::{choose, costs};
use super::halves::Half;
use crate::calibrate::{Gram, MatrixInput, Observer, WantedRows};
use crate::cholesky::Cholesky;
use crate::prune::PruneError;
use rayon::prelude::*;

/// What is added to the diagonal, as a share of its mean, where a projection is fitted to what the stream lacks. Most of that
/// the projection cannot know, and with less damping it would learn the text's chance by heart.
const DAMPING: f64 = 1.0;

/// Sums over a text of products of what a projection reads, and of that with what it should give; tokens count by the size
/// of the stream.
pub(super) struct Moments {
    columns: usize,
    wanted: Option<WantedRows>,
    /// What the projection adds to every row.
    bias: Option<Vec<f32>>,
    /// Tokens that were seen.
    tokens: usize,
    /// Of what is read and, behind it, what should be given.
    gram: Gram,
    /// Room for rows of both.
    joined: Vec<f32>,
}

/// A fitted projection.
pub(super) struct Fit {
    /// Parts that it still reads, in order.
    pub(super) parts: Vec<usize>,
    /// Its weights, row-major: of the columns of those parts.
    pub(super) weights: Vec<f32>,
}

impl Moments {
    pub(super) fn new(
        input: MatrixInput,
        wanted: Option<WantedRows>,
        bias: Option<Vec<f32>>,
    ) -> Result<Moments, PruneError> {
        let width = wanted.as_ref().map_or(0, |wanted| wanted.width);
        Ok(Moments {
            columns: input.columns,
            wanted,
            bias,
            tokens: 0,
            gram: Gram::new(input.columns + width)?,
            joined: vec![],
        })
    }

    /// Chooses the `kept` parts that stay, and fits the weights to read only them: first to what all of them gave, then, where
    /// it is known, to what should be given. `None` when the text does not determine them.
    pub(super) fn fit(&self, half: &Half, weights: &[f32], kept: usize) -> Option<Fit> {
        let choice = choose(half, |i, j| self.gram.at(i, j), weights, kept)?;
        let columns = half.columns_of(&choice.parts);
        let order = columns.len();
        let rows = weights.len().checked_div(self.columns)?;
        let mut fitted = vec![0.0; rows * order];
        for (index, of_column) in choice.columns.chunks(rows.max(1)).enumerate() {
            for (row, weight) in of_column.iter().enumerate() {
                fitted[row * order + index] = *weight;
            }
        }
        if self.wanted.is_some() {
            self.add_what_lacks(&columns, &mut fitted)?;
        }
        Some(Fit {
            parts: choice.parts,
            weights: fitted.into_iter().map(|weight| weight as f32).collect(),
        })
    }

    /// How much the outputs change in all when so many parts at a time go, for each token and output; `times` times.
    pub(super) fn costs(
        &self,
        half: &Half,
        weights: &[f32],
        at_a_time: usize,
        times: usize,
    ) -> Option<Vec<f64>> {
        costs(half, |i, j| self.gram.at(i, j), weights, at_a_time, times)
    }

    /// Changes weights by the `d` of the least `|target - (w + d) x|^2 + damping |d|^2`.
    fn add_what_lacks(&self, columns: &[usize], weights: &mut [f64]) -> Option<()> {
        let order = columns.len();
        let mut matrix = vec![0.0; order * order];
        let rows = matrix.par_chunks_mut(order.max(1)).zip(columns);
        rows.for_each(|(values, row)| {
            for (value, column) in values.iter_mut().zip(columns) {
                *value = self.gram.at(*row, *column);
            }
        });
        let mut lacks = vec![0.0; weights.len()];
        lacks
            .par_chunks_mut(order.max(1))
            .zip(weights.par_chunks(order.max(1)))
            .enumerate()
            .for_each(|(row, (lacks, weights))| {
                for (lacks, column) in lacks.iter_mut().zip(columns) {
                    *lacks = self.gram.at(self.columns + row, *column);
                }
                for (weight, products) in weights.iter().zip(matrix.chunks(order)) {
                    for (lacks, product) in lacks.iter_mut().zip(products) {
                        *lacks -= weight * product;
                    }
                }
            });
        let trace: f64 = (0..order).map(|index| matrix[index * order + index]).sum();
        let damping = DAMPING * trace / order.max(1) as f64;
        for index in 0..order {
            matrix[index * order + index] += if damping > 0.0 { damping } else { 1.0 };
        }
        Cholesky::of(matrix, order)?.solve_rows(&mut lacks);
        for (weight, change) in weights.iter_mut().zip(lacks) {
            *weight += change;
        }
        Some(())
    }
}

impl Observer for Moments {
    fn observe(&mut self, rows: &[f32]) {
        let Some(WantedRows {
            rows: wanted,
            width,
            token_weights,
        }) = &self.wanted
        else {
            return self.gram.observe(rows);
        };
        let wanted = &wanted[self.tokens * width..];
        let both = rows
            .chunks_exact(self.columns.max(1))
            .zip(wanted.chunks_exact((*width).max(1)));
        self.joined.clear();
        for (row, wanted) in both {
            let token_weight = token_weights.get(self.tokens).copied().unwrap_or(0.0);
            self.joined.extend(row.iter().map(|x| token_weight * x));
            match &self.bias {
                None => self.joined.extend(wanted.iter().map(|x| token_weight * x)),
                Some(bias) => {
                    let without = wanted.iter().zip(bias).map(|(wanted, bias)| wanted - bias);
                    self.joined.extend(without.map(|x| token_weight * x));
                }
            }
            self.tokens += 1;
        }
        self.gram.observe(&self.joined);
    }

    fn finish(&mut self) {
        self.gram.finish();
        self.joined = vec![];
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::prune::structure::halves::HalfKind;
    use std::sync::Arc;

    const COLUMNS: usize = 8;
    const WIDTH: usize = 4;
    const TOKENS: usize = 300;

    fn noise(seed: usize) -> f32 {
        (seed * 7919 % 1009) as f32 / 1009.0 - 0.5
    }

    fn read() -> Vec<f32> {
        (0..TOKENS * COLUMNS).map(noise).collect()
    }

    fn outputs(rows: &[f32], weights: &[f32]) -> Vec<f32> {
        rows.chunks(COLUMNS)
            .flat_map(|row| {
                let output = |weights: &[f32]| row.iter().zip(weights).map(|(x, w)| x * w).sum();
                weights.chunks(COLUMNS).map(output).collect::<Vec<f32>>()
            })
            .collect()
    }

    #[test]
    fn a_projection_comes_nearer_to_what_it_should_give() {
        let half = Half {
            reader: 0,
            matrix: 0,
            kind: HalfKind::FeedForward,
            parts: COLUMNS,
            columns_per_part: 1,
            sources: vec![],
        };
        let weights: Vec<f32> = (0..WIDTH * COLUMNS).map(|index| noise(index + 5)).collect();
        // Something that other weights would give, and the bias that is added anyway.
        let other: Vec<f32> = weights.iter().map(|weight| 1.5 * weight + 0.1).collect();
        let bias = vec![3.0; WIDTH];
        let target = outputs(&read(), &other);
        let wanted = WantedRows {
            rows: Arc::new(target.iter().map(|x| x + 3.0).collect()),
            width: WIDTH,
            token_weights: Arc::new(vec![1.0; TOKENS]),
        };
        let input = MatrixInput {
            matrix: 0,
            columns: COLUMNS,
        };
        let mut moments = Moments::new(input, Some(wanted), Some(bias)).unwrap();
        for rows in read().chunks(COLUMNS * 77) {
            moments.observe(rows);
        }
        moments.finish();
        let fit = moments.fit(&half, &weights, COLUMNS).unwrap();
        assert_eq!(fit.parts, (0..COLUMNS).collect::<Vec<_>>());
        let distance = |weights: &[f32]| -> f32 {
            let outputs = outputs(&read(), weights);
            outputs
                .iter()
                .zip(&target)
                .map(|(a, b)| (a - b).powi(2))
                .sum()
        };
        let (before, after) = (distance(&weights), distance(&fit.weights));
        assert!(after < 0.5 * before, "{after} of {before}");
    }
}
