//! Pruning where the weights that stay take over what those that go contributed (SparseGPT: Frantar & Alistarh, 2023).
//!
//! With `H` the Gram matrix of a projection's inputs and `H = L L^T`, what a change `e` of a row's weights does to its
//! outputs is `|e L|^2`. Column after column from the last one, a weight first takes over what the columns behind it
//! changed, `w_j + sum(e_i L_ij, i > j) / L_jj`, and is then kept or becomes zero. That is the feedback of Chee et al. (2023),
//! which is SparseGPT's without an inverse.

use super::selection::{Pattern, select};
use crate::cholesky::Cholesky;
use rayon::prelude::*;

/// Columns that are decided together: weights are compared within so many columns of all rows.
const BLOCK_COLUMNS: usize = 128;

/// Rows that a thread works on together, so that a row of the triangle is read once for all of them.
const TILE_ROWS: usize = 16;

/// What is added to the diagonal, as a share of its mean: inputs that are never active have a factor too.
pub(super) const DAMPING: f64 = 0.01;

/// The triangle as the feedback reads it.
pub(super) struct Feedback {
    columns: usize,
    /// Rows of `L`, each up to its diagonal.
    rows: Vec<Vec<f32>>,
}

impl Feedback {
    pub(super) fn of(factor: &Cholesky) -> Feedback {
        let columns = factor.order();
        let row = |row: usize| factor.row(row).iter().map(|x| *x as f32).collect();
        Feedback {
            columns,
            rows: (0..columns).map(row).collect(),
        }
    }

    fn diagonal(&self, column: usize) -> f32 {
        self.rows[column][column]
    }

    /// Prunes the rows of `values`, and changes the weights that stay. On the threads of rayon's current pool; the bits do
    /// not depend on their number.
    pub(super) fn prune(&self, values: &mut [f32], pattern: Pattern) {
        let columns = self.columns;
        if columns == 0 {
            return;
        }
        // What the decided columns hand on to each column: the sum of `e_i L_ij`.
        let mut handed_on = vec![0.0f32; values.len()];
        let block = match pattern {
            Pattern::Unstructured(_) => BLOCK_COLUMNS,
            // Groups lie in one block.
            Pattern::OfConsecutive { of, .. } => (BLOCK_COLUMNS / of.max(1)).max(1) * of.max(1),
        };
        let tile = TILE_ROWS * columns;
        for first in (0..columns).step_by(block).rev() {
            let end = (first + block).min(columns);
            let gone = self.lowest_of_block(values, &handed_on, first..end, pattern);
            values
                .par_chunks_mut(tile)
                .zip(handed_on.par_chunks_mut(tile))
                .zip(gone.par_chunks(TILE_ROWS * (end - first)))
                .for_each(|((values, handed_on), gone)| {
                    self.decide_block(values, handed_on, gone, first..end, pattern);
                });
        }
    }

    /// Which weights of a block go, where they are compared over all rows; empty for patterns within rows, which are chosen
    /// group by group.
    fn lowest_of_block(
        &self,
        values: &[f32],
        handed_on: &[f32],
        block: std::ops::Range<usize>,
        pattern: Pattern,
    ) -> Vec<bool> {
        let rows = values.len() / self.columns;
        let mut gone = vec![false; rows * block.len()];
        if let Pattern::Unstructured(_) = pattern {
            let mut scores = vec![0.0f32; rows * block.len()];
            let of_rows = scores.par_chunks_mut(block.len()).zip(
                values
                    .par_chunks(self.columns)
                    .zip(handed_on.par_chunks(self.columns)),
            );
            of_rows.for_each(|(scores, (values, handed_on))| {
                self.score(scores, values, handed_on, block.clone());
            });
            select(&scores, block.len(), pattern, |index| gone[index] = true);
        }
        gone
    }

    /// How much more the outputs change if a weight goes than if it stays, for each of some columns of a row.
    fn score(
        &self,
        scores: &mut [f32],
        values: &[f32],
        handed_on: &[f32],
        columns: std::ops::Range<usize>,
    ) {
        for (score, column) in scores.iter_mut().zip(columns) {
            // The value that the weight would have, times the diagonal.
            *score = (values[column] * self.diagonal(column) + handed_on[column]).abs();
        }
    }

    fn decide_block(
        &self,
        values: &mut [f32],
        handed_on: &mut [f32],
        gone: &[bool],
        block: std::ops::Range<usize>,
        pattern: Pattern,
    ) {
        let columns = self.columns;
        let rows = values.len() / columns;
        let mut errors = vec![0.0f32; rows * block.len()];
        let of_rows = values
            .chunks_mut(columns)
            .zip(handed_on.chunks_mut(columns));
        for (row, (values, handed_on)) in of_rows.enumerate() {
            let errors = &mut errors[row * block.len()..][..block.len()];
            let mut goes = gone[row * block.len()..][..block.len()].to_vec();
            for column in block.clone().rev() {
                if let Pattern::OfConsecutive { of, .. } = pattern
                    && ((column + 1).is_multiple_of(of) || column + 1 == columns)
                {
                    let first = column / of * of;
                    let mut scores = vec![0.0; column + 1 - first];
                    self.score(&mut scores, values, handed_on, first..column + 1);
                    select(&scores, scores.len(), pattern, |index| {
                        goes[first + index - block.start] = true;
                    });
                }
                let old = values[column];
                let factors = &self.rows[column];
                let new = if goes[column - block.start] {
                    0.0
                } else {
                    old + handed_on[column] / factors[column]
                };
                values[column] = new;
                let error = old - new;
                errors[column - block.start] = error;
                for (sum, factor) in handed_on[block.start..column]
                    .iter_mut()
                    .zip(&factors[block.start..column])
                {
                    *sum += error * factor;
                }
            }
        }
        // The columns before the block, for all rows of the tile together.
        for (index, column) in block.clone().enumerate() {
            let factors = &self.rows[column][..block.start];
            for (row, handed_on) in handed_on.chunks_mut(columns).enumerate() {
                let error = errors[row * block.len() + index];
                for (sum, factor) in handed_on[..block.start].iter_mut().zip(factors) {
                    *sum += error * factor;
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::prune::selection::prune_rows;

    const COLUMNS: usize = 160;
    const ROWS: usize = 20;

    /// Inputs in which neighbouring columns go together.
    fn gram() -> Vec<f64> {
        let input = |token: usize, column: usize| {
            let noise = |seed: usize| ((seed * 7919 + 13) % 1009) as f64 / 1009.0 - 0.5;
            noise(token * 31 + column / 4) + 0.3 * noise(token * 173 + column * 7)
        };
        let mut gram = vec![0.0; COLUMNS * COLUMNS];
        for row in 0..COLUMNS {
            for column in 0..COLUMNS {
                gram[row * COLUMNS + column] = (0..400)
                    .map(|token| input(token, row) * input(token, column))
                    .sum();
            }
            gram[row * COLUMNS + row] += 0.1;
        }
        gram
    }

    fn weights() -> Vec<f32> {
        (0..ROWS * COLUMNS)
            .map(|index| ((index * 2_654_435 + 7) % 997) as f32 / 997.0 - 0.5)
            .collect()
    }

    /// What the change of weights does to the outputs.
    fn damage(before: &[f32], after: &[f32], gram: &[f64]) -> f64 {
        let rows = before.chunks(COLUMNS).zip(after.chunks(COLUMNS));
        rows.map(|(before, after)| {
            let error: Vec<f64> = before
                .iter()
                .zip(after)
                .map(|(before, after)| f64::from(before - after))
                .collect();
            (0..COLUMNS)
                .map(|row| {
                    let product =
                        (0..COLUMNS).map(|column| gram[row * COLUMNS + column] * error[column]);
                    error[row] * product.sum::<f64>()
                })
                .sum::<f64>()
        })
        .sum()
    }

    fn pruned(pattern: Pattern) -> Vec<f32> {
        let mut values = weights();
        let factor = Cholesky::of(gram(), COLUMNS).unwrap();
        Feedback::of(&factor).prune(&mut values, pattern);
        values
    }

    #[test]
    fn what_stays_takes_over_most_of_what_wanda_loses() {
        let gram = gram();
        let norms: Vec<f32> = (0..COLUMNS)
            .map(|column| gram[column * COLUMNS + column].sqrt() as f32)
            .collect();
        for pattern in [Pattern::Unstructured(0.5), Pattern::TWO_OF_FOUR] {
            let mut wanda = weights();
            prune_rows(&mut wanda, &norms, pattern);
            let (wanda, ours) = (
                damage(&weights(), &wanda, &gram),
                damage(&weights(), &pruned(pattern), &gram),
            );
            assert!(ours < 0.5 * wanda, "{pattern:?}: {ours}, wanda {wanda}");
        }
    }

    #[test]
    fn as_many_weights_go_as_the_pattern_says() {
        let zeros = |values: &[f32]| values.iter().filter(|value| **value == 0.0).count();
        let half = pruned(Pattern::Unstructured(0.5));
        assert_eq!(zeros(&half), ROWS * COLUMNS / 2);
        for (kept, of) in [(2, 4), (1, 3), (5, 64)] {
            for row in pruned(Pattern::OfConsecutive { kept, of }).chunks(COLUMNS) {
                for group in row.chunks(of) {
                    assert_eq!(
                        zeros(group),
                        group.len().saturating_sub(kept),
                        "{kept}:{of}"
                    );
                }
            }
        }
    }

    #[test]
    fn where_inputs_have_nothing_in_common_the_weights_that_stay_do_not_change() {
        let mut unit = vec![0.0; COLUMNS * COLUMNS];
        for column in 0..COLUMNS {
            unit[column * COLUMNS + column] = 1.0;
        }
        let mut values = weights();
        let factor = Cholesky::of(unit, COLUMNS).unwrap();
        Feedback::of(&factor).prune(&mut values, Pattern::Unstructured(0.5));
        for (old, new) in weights().iter().zip(&values) {
            assert!(old == new || *new == 0.0);
        }
    }

    #[test]
    fn the_bits_do_not_depend_on_the_number_of_threads() {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build()
                .unwrap()
                .install(|| pruned(Pattern::Unstructured(0.5)))
        };
        assert_eq!(on(1), on(3));
    }
}
