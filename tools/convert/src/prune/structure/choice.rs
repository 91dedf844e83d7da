//! Which parts go: one after the other the one that costs least, when the columns that stay take over after each.

use super::halves::Half;
use crate::cholesky::Cholesky;
use rayon::prelude::*;

/// What is added to the diagonal, as a share of its mean: it keeps the weights that take over near what they were.
const DAMPING: f64 = 0.01;

/// What stays of a projection's columns.
pub(super) struct Choice {
    /// Parts that stay, in order.
    pub(super) parts: Vec<usize>,
    /// The weights of each column that stays, column after column: they give of what all gave as much as they can.
    pub(super) columns: Vec<f64>,
}

/// Chooses the parts that stay, by the Gram matrix of the columns (ZipLM: Kurtic et al., 2023). `weights` are row-major.
///
/// With `I` the inverse of the Gram matrix, the outputs change by `w_B I_BB^-1 w_B^T` for each row when the columns `B` go
/// and the others take over, which they do by `-w_B I_BB^-1 I_B`; the inverse without `B` follows in the same way. For `n`
/// columns of `m` rows a column that goes takes `n (n + m)` products.
///
/// `None` when the Gram matrix is not positive definite. The bits do not depend on the number of threads.
pub(super) fn choose(
    half: &Half,
    gram: impl Fn(usize, usize) -> f64 + Sync,
    weights: &[f32],
    kept: usize,
) -> Option<Choice> {
    let order = half.parts * half.columns_per_part;
    let rows = weights.len().checked_div(order)?;
    let (parts, columns) = if kept < half.parts {
        let mut removal = Removal::begin(half, gram, weights)?;
        while removal.parts.len() > kept {
            removal.remove_least()?;
        }
        (removal.parts, removal.columns)
    } else {
        ((0..half.parts).collect(), by_column(weights, order))
    };
    let staying = half.columns_of(&parts).into_iter();
    let columns = staying.flat_map(|column| columns[column * rows..][..rows].to_vec());
    Some(Choice {
        columns: columns.collect(),
        parts,
    })
}

/// How much the outputs change in all when so many parts at a time go, one time after the other, `times` times. `None` as for
/// [`choose`].
pub(super) fn costs(
    half: &Half,
    gram: impl Fn(usize, usize) -> f64 + Sync,
    weights: &[f32],
    at_a_time: usize,
    times: usize,
) -> Option<Vec<f64>> {
    let mut removal = Removal::begin(half, gram, weights)?;
    let mut cost = 0.0;
    (0..times)
        .map(|_| {
            for _ in 0..at_a_time {
                cost += removal.remove_least()?;
            }
            Some(cost)
        })
        .collect()
}

/// Row-major weights column after column.
fn by_column(weights: &[f32], order: usize) -> Vec<f64> {
    let rows = weights.len().checked_div(order).unwrap_or(0);
    let mut columns = vec![0.0; order * rows];
    columns
        .par_chunks_mut(rows.max(1))
        .enumerate()
        .for_each(|(column, values)| {
            for (value, row) in values.iter_mut().zip(weights.chunks(order)) {
                *value = f64::from(row[column]);
            }
        });
    columns
}

fn damped(order: usize, gram: impl Fn(usize, usize) -> f64 + Sync) -> Option<Cholesky> {
    let trace: f64 = (0..order).map(|column| gram(column, column)).sum();
    let damping = DAMPING * trace / order.max(1) as f64;
    // What is never active at all can be anything.
    let damping = if damping > 0.0 { damping } else { 1.0 };
    let mut matrix = vec![0.0; order * order];
    let rows = matrix.par_chunks_mut(order.max(1)).enumerate();
    rows.for_each(|(row, values)| {
        for (column, value) in values.iter_mut().enumerate() {
            *value = gram(row, column);
        }
        values[row] += damping;
    });
    Cholesky::of(matrix, order)
}

/// Columns that go part by part.
struct Removal<'a> {
    half: &'a Half,
    /// Parts that stay, in order.
    parts: Vec<usize>,
    order: usize,
    rows: usize,
    /// Of the Gram matrix of what stays; what lies in rows and columns that went has no meaning.
    inverse: Vec<f64>,
    /// Weights of each column.
    columns: Vec<f64>,
}

impl<'a> Removal<'a> {
    fn begin(
        half: &'a Half,
        gram: impl Fn(usize, usize) -> f64 + Sync,
        weights: &[f32],
    ) -> Option<Removal<'a>> {
        let order = half.parts * half.columns_per_part;
        let rows = weights.len().checked_div(order)?;
        if rows == 0 {
            return None;
        }
        Some(Removal {
            half,
            parts: (0..half.parts).collect(),
            order,
            rows,
            inverse: damped(order, gram)?.inverse(),
            columns: by_column(weights, order),
        })
    }

    /// Takes out the part that costs least, and says how much.
    fn remove_least(&mut self) -> Option<f64> {
        let costs: Vec<Option<f64>> = self.parts.par_iter().map(|part| self.cost(*part)).collect();
        let known = costs.iter().enumerate();
        let known = known.filter_map(|(at, cost)| Some((at, (*cost)?)));
        let (at, least) = known.min_by(|(_, a), (_, b)| a.total_cmp(b))?;
        let part = self.parts.remove(at);
        self.remove(part)?;
        Some(least)
    }

    fn column(&self, column: usize) -> &[f64] {
        &self.columns[column * self.rows..][..self.rows]
    }

    /// The triangle of the inverse's block of a part.
    fn block(&self, part: usize) -> Option<Cholesky> {
        let columns = self.half.columns(part);
        let block = columns
            .clone()
            .flat_map(|row| self.inverse[row * self.order..][columns.clone()].iter());
        Cholesky::of(block.copied().collect(), columns.len())
    }

    /// How much the outputs change when a part goes.
    fn cost(&self, part: usize) -> Option<f64> {
        if self.half.columns_per_part == 1 {
            let squares: f64 = self.column(part).iter().map(|weight| weight * weight).sum();
            return Some(squares / self.inverse[part * self.order + part]);
        }
        let block = self.block(part)?;
        let columns: Vec<&[f64]> = self
            .half
            .columns(part)
            .map(|column| self.column(column))
            .collect();
        let costs = (0..self.rows).map(|row| {
            let weights: Vec<f64> = columns.iter().map(|column| column[row]).collect();
            block.inverse_square(weights)
        });
        Some(costs.sum())
    }

    /// Lets those that stay take over from a part.
    fn remove(&mut self, part: usize) -> Option<()> {
        let (order, rows) = (self.order, self.rows);
        let columns = self.half.columns(part);
        let size = columns.len();
        let block = self.block(part)?;
        let went: Vec<f64> = columns
            .clone()
            .flat_map(|column| self.column(column).to_vec())
            .collect();
        let inverse_of_part: Vec<f64> = columns
            .clone()
            .flat_map(|row| self.inverse[row * order..][..order].to_vec())
            .collect();
        // By how much of each column of the part every column changes.
        let mut factors: Vec<f64> = (0..order)
            .flat_map(|column| (0..size).map(move |row| (row, column)))
            .map(|(row, column)| inverse_of_part[row * order + column])
            .collect();
        block.solve_rows(&mut factors);
        let mut stays = vec![false; order];
        for column in self.half.columns_of(&self.parts) {
            stays[column] = true;
        }
        let of_columns = self
            .columns
            .par_chunks_mut(rows)
            .zip(self.inverse.par_chunks_mut(order))
            .enumerate()
            .filter(|(column, _)| stays[*column]);
        of_columns.for_each(|(column, (weights, inverse))| {
            let factors = &factors[column * size..][..size];
            for (index, factor) in factors.iter().enumerate() {
                let went = &went[index * rows..][..rows];
                for (weight, went) in weights.iter_mut().zip(went) {
                    *weight -= factor * went;
                }
                let went = &inverse_of_part[index * order..][..order];
                for (value, went) in inverse.iter_mut().zip(went) {
                    *value -= factor * went;
                }
            }
        });
        Some(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::prune::structure::halves::HalfKind;

    const COLUMNS: usize = 12;
    const ROWS: usize = 3;

    fn half(columns_per_part: usize) -> Half {
        Half {
            reader: 0,
            matrix: 0,
            kind: HalfKind::FeedForward,
            parts: COLUMNS / columns_per_part,
            columns_per_part,
            sources: vec![],
        }
    }

    /// Columns 2 and 3 are the same but for their sizes, column 7 is hardly active.
    fn gram(row: usize, column: usize) -> f64 {
        let input = |token: usize, column: usize| {
            let (column, factor) = match column {
                3 => (2, 2.0),
                7 => (7, 0.01),
                _ => (column, 1.0),
            };
            factor * (((token * 7919 + column * 104_729) % 1009) as f64 / 1009.0 - 0.5)
        };
        (0..300)
            .map(|token| input(token, row) * input(token, column))
            .sum()
    }

    fn weights() -> Vec<f32> {
        (0..ROWS * COLUMNS)
            .map(|index| 1.0 + (index % 5) as f32)
            .collect()
    }

    #[test]
    fn what_others_can_give_as_well_goes_first_and_they_give_it() {
        let choice = choose(&half(1), gram, &weights(), COLUMNS - 2).unwrap();
        assert!(!choice.parts.contains(&7));
        assert_eq!(
            [2, 3]
                .iter()
                .filter(|part| choice.parts.contains(part))
                .count(),
            1
        );
        let left = choice
            .parts
            .iter()
            .position(|part| [2, 3].contains(part))
            .unwrap();
        let (own, factor) = if choice.parts[left] == 2 {
            (2, 1.0)
        } else {
            (3, 2.0)
        };
        for row in 0..ROWS {
            let of = |column: usize| f64::from(weights()[row * COLUMNS + column]);
            let expected = (of(2) + 2.0 * of(3)) / factor;
            let given = choice.columns[left * ROWS + row];
            assert!(
                (given / expected - 1.0).abs() < 0.05,
                "{own}: {given}, {expected}"
            );
        }
    }

    #[test]
    fn each_time_costs_more_than_the_one_before() {
        let costs = costs(&half(1), gram, &weights(), 2, 5).unwrap();
        let each = costs.iter().scan(0.0, |before, cost| {
            Some(*cost - std::mem::replace(before, *cost))
        });
        assert_eq!(costs.len(), 5);
        assert!(each.collect::<Vec<f64>>().is_sorted());
    }

    #[test]
    fn parts_of_several_columns_go_whole() {
        let choice = choose(&half(3), gram, &weights(), 2).unwrap();
        assert_eq!(choice.parts.len(), 2);
        assert_eq!(choice.columns.len(), 2 * 3 * ROWS);
    }

    #[test]
    fn where_nothing_goes_the_weights_are_what_they_were() {
        let choice = choose(&half(1), gram, &weights(), COLUMNS).unwrap();
        for (column, values) in choice.columns.chunks(ROWS).enumerate() {
            for (row, value) in values.iter().enumerate() {
                assert_eq!(*value as f32, weights()[row * COLUMNS + column]);
            }
        }
    }
}
