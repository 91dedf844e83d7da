//! Which weights of a row, or of a matrix, are the least important.

use std::cmp::Ordering;

/// How the pruned weights lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    /// Anywhere: this share of the weights, 0 to 1.
    Unstructured(f64),
    /// All but `kept` of every `of` weights that follow each other along the input.
    OfConsecutive {
        /// Weights that stay.
        kept: usize,
        /// Weights in a group.
        of: usize,
    },
}

impl Pattern {
    /// Two of every four, which sparse matrix units compute with.
    pub const TWO_OF_FOUR: Pattern = Pattern::OfConsecutive { kept: 2, of: 4 };

    /// The share of weights that it prunes.
    pub fn sparsity(self) -> f64 {
        match self {
            Pattern::Unstructured(sparsity) => sparsity,
            Pattern::OfConsecutive { kept, of } => 1.0 - kept as f64 / of.max(1) as f64,
        }
    }
}

/// Calls `prune` with the index of each weight that goes. `scores` are those of a comparison group: a row, or for
/// [`Pattern::Unstructured`] any number of rows. Of equal scores the first goes.
pub(super) fn select(
    scores: &[f32],
    columns: usize,
    pattern: Pattern,
    mut prune: impl FnMut(usize),
) {
    match pattern {
        Pattern::Unstructured(sparsity) => {
            let count = (scores.len() as f64 * sparsity) as usize;
            lowest(scores, 0, count, &mut prune);
        }
        Pattern::OfConsecutive { kept, of } => {
            for (row, scores) in scores.chunks(columns.max(1)).enumerate() {
                for (group, scores) in scores.chunks(of.max(1)).enumerate() {
                    // A group that the row's end cuts short keeps as many as a whole one.
                    let count = scores.len().saturating_sub(kept);
                    lowest(scores, row * columns + group * of, count, &mut prune);
                }
            }
        }
    }
}

fn lowest(scores: &[f32], first: usize, count: usize, prune: &mut impl FnMut(usize)) {
    if count == 0 {
        return;
    }
    let count = count.min(scores.len());
    let order = |a: &u32, b: &u32| -> Ordering {
        scores[*a as usize]
            .total_cmp(&scores[*b as usize])
            .then(a.cmp(b))
    };
    let mut indices: Vec<u32> = (0..scores.len() as u32).collect();
    if count < indices.len() {
        indices.select_nth_unstable_by(count, order);
    }
    indices[..count]
        .iter()
        .for_each(|index| prune(first + *index as usize));
}

/// Scores of whole rows: magnitude, times the norm of the input that the weight meets (Wanda: Sun et al., 2024).
pub(super) fn scores(values: &[f32], columns: usize, norms: Option<&[f32]>) -> Vec<f32> {
    match norms {
        None => values.iter().map(|value| value.abs()).collect(),
        Some(norms) => values
            .chunks(columns.max(1))
            .flat_map(|row| {
                row.iter()
                    .zip(norms)
                    .map(|(value, norm)| value.abs() * norm)
            })
            .collect(),
    }
}

/// Sets the weights of each row to zero that Wanda prunes.
pub(super) fn prune_rows(values: &mut [f32], norms: &[f32], pattern: Pattern) {
    let columns = norms.len();
    for row in values.chunks_mut(columns.max(1)) {
        let scores = scores(row, columns, Some(norms));
        select(&scores, columns, pattern, |index| row[index] = 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pruned(scores: &[f32], columns: usize, pattern: Pattern) -> Vec<usize> {
        let mut pruned = vec![];
        select(scores, columns, pattern, |index| pruned.push(index));
        pruned.sort_unstable();
        pruned
    }

    #[test]
    fn the_lowest_scores_go_and_of_equal_ones_the_first() {
        let half = Pattern::Unstructured(0.5);
        assert_eq!(pruned(&[3.0, 1.0, 2.0, 4.0], 4, half), [1, 2]);
        assert_eq!(pruned(&[1.0; 5], 5, half), [0, 1]);
        assert_eq!(
            pruned(&[1.0; 5], 5, Pattern::Unstructured(0.0)),
            [] as [usize; 0]
        );
        assert_eq!(pruned(&[1.0; 3], 3, Pattern::Unstructured(1.0)), [0, 1, 2]);
    }

    #[test]
    fn groups_do_not_cross_rows_and_a_short_last_group_keeps_its_best() {
        let scores = [
            1.0, 2.0, 3.0, 4.0, 9.0, 8.0, /* next row */ 4.0, 3.0, 2.0, 1.0, 5.0, 6.0,
        ];
        assert_eq!(pruned(&scores, 6, Pattern::TWO_OF_FOUR), [0, 1, 8, 9]);
    }

    #[test]
    fn an_input_that_is_never_active_loses_its_weights_first() {
        let mut row = [5.0, -0.1, 0.2, -6.0];
        prune_rows(
            &mut row,
            &[0.0, 10.0, 10.0, 0.0],
            Pattern::Unstructured(0.5),
        );
        assert_eq!(row, [0.0, -0.1, 0.2, 0.0]);
    }

    proptest! {
        #[test]
        fn no_weight_that_stays_scores_below_one_that_goes(
            scores in proptest::collection::vec(0.0f32..1.0, 1..200), sparsity in 0.0f64..=1.0
        ) {
            let gone = pruned(&scores, scores.len(), Pattern::Unstructured(sparsity));
            prop_assert_eq!(gone.len(), (scores.len() as f64 * sparsity) as usize);
            let highest_gone = gone.iter().map(|index| scores[*index]).fold(0.0, f32::max);
            for (index, score) in scores.iter().enumerate() {
                prop_assert!(gone.contains(&index) || *score >= highest_gone);
            }
        }

        #[test]
        fn every_whole_group_keeps_exactly_its_two_best(
            scores in proptest::collection::vec(0.0f32..1.0, 8 * 4)
        ) {
            let gone = pruned(&scores, 16, Pattern::TWO_OF_FOUR);
            for group in 0..8 {
                let range = 4 * group..4 * group + 4;
                prop_assert_eq!(gone.iter().filter(|index| range.contains(*index)).count(), 2);
            }
        }
    }
}
