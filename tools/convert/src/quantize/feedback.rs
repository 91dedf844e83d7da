//! How errors are fed back: a Gram matrix's Cholesky factor, column by column.

use crate::calibrate::Gram;
use crate::cholesky::Cholesky;
use rayon::prelude::*;

/// How errors in some columns are best made up for in others: the lower triangular factor `L` of the Gram matrix with its
/// columns in another order, each column divided by its element on the diagonal.
///
/// With `e` the errors of a row of weights, its squared error on the text is `|e L|^2`, and element `j` of `e L` is
/// `L_jj * (e_j + sum over i > j of e_i * unit_ij)`. So when columns are rounded from the last to the first, column `j` has
/// to make up for that sum (LDLQ: Chee et al., 2023, who show that GPTQ does the same with the inverse).
#[derive(Debug)]
pub(crate) struct Feedback {
    size: usize,
    unit: Vec<f32>,
}

impl Feedback {
    /// Factors a Gram matrix with its columns in `order`. `damping` times the mean of the diagonal is added to the diagonal.
    /// `None` if it is not positive definite then, or there is no memory.
    ///
    /// Takes 12 bytes for each element. Uses the threads of rayon's current pool; their number changes no bit.
    pub(crate) fn of(gram: &Gram, order: &[usize], damping: f64) -> Option<Feedback> {
        let size = order.len();
        let mut elements: Vec<f64> = Vec::new();
        elements.try_reserve_exact(size.checked_mul(size)?).ok()?;
        elements.resize(size * size, 0.0);
        let diagonal: f64 = order.iter().map(|&column| gram.at(column, column)).sum();
        let damping = damping * diagonal / size.max(1) as f64;
        elements
            .par_chunks_mut(size.max(1))
            .enumerate()
            .for_each(|(i, row)| {
                for (element, &column) in row.iter_mut().zip(&order[..=i]) {
                    *element = gram.at(order[i], column);
                }
                row[i] += damping;
            });
        let factor = Cholesky::of(elements, size)?;
        let mut unit: Vec<f32> = Vec::new();
        unit.try_reserve_exact(size * size).ok()?;
        unit.resize(size * size, 0.0);
        let pivots: Vec<f64> = (0..size).map(|i| factor.row(i)[i]).collect();
        let rows = unit.par_chunks_mut(size.max(1)).enumerate();
        rows.for_each(|(i, row)| {
            let elements = factor.row(i).iter().zip(&pivots);
            for (unit, (element, pivot)) in row[..=i].iter_mut().zip(elements) {
                *unit = (element / pivot) as f32;
            }
        });
        Some(Feedback { size, unit })
    }

    /// Row `i`: for each column before `i` the share of an error in column `i` that it has to make up for.
    pub(crate) fn row(&self, i: usize) -> &[f32] {
        &self.unit[i * self.size..][..i]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::calibrate::Observer;

    fn gram(columns: usize, tokens: usize) -> Gram {
        let mut gram = Gram::new(columns).unwrap();
        let mut state = 1u32;
        let rows: Vec<f32> = (0..columns * tokens)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect();
        gram.observe(&rows);
        gram.finish();
        gram
    }

    /// Rows of the factor are those of a matrix whose product with itself, columns scaled back, is the Gram matrix.
    #[test]
    fn the_factor_times_itself_is_the_gram_matrix_in_its_order() {
        for columns in [1, 5, 64, 67, 150] {
            let gram = gram(columns, 3 * columns);
            let order: Vec<usize> = (0..columns).map(|i| (i * 7 + 3) % columns).collect();
            if order
                .iter()
                .collect::<std::collections::BTreeSet<_>>()
                .len()
                < columns
            {
                continue;
            }
            let damping = 0.01;
            let factor = Feedback::of(&gram, &order, damping).unwrap();
            let mean: f64 = (0..columns).map(|i| gram.at(i, i)).sum::<f64>() / columns as f64;
            // The squared pivots follow from the diagonal.
            let unit = |i: usize, j: usize| match i.cmp(&j) {
                std::cmp::Ordering::Less => 0.0,
                std::cmp::Ordering::Equal => 1.0,
                std::cmp::Ordering::Greater => f64::from(factor.row(i)[j]),
            };
            let mut pivots = vec![];
            for (i, &column) in order.iter().enumerate() {
                let known: f64 = (0..i).map(|k| unit(i, k).powi(2) * pivots[k]).sum();
                pivots.push(gram.at(column, column) + damping * mean - known);
            }
            for i in 0..columns {
                for j in 0..i {
                    let product: f64 = (0..=j).map(|k| unit(i, k) * unit(j, k) * pivots[k]).sum();
                    let expected = gram.at(order[i], order[j]);
                    assert!(
                        (product - expected).abs() < 1e-4 * mean,
                        "{columns}: {i} {j}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let gram = gram(200, 300);
        let order: Vec<usize> = (0..200).collect();
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let pool = pool.build().unwrap();
            pool.install(|| Feedback::of(&gram, &order, 0.01).unwrap().unit)
        };
        assert_eq!(on(1), on(3));
    }

    #[test]
    fn columns_that_nothing_drives_need_damping() {
        let mut gram = Gram::new(3).unwrap();
        gram.observe(&[1.0, 0.0, 2.0, 2.0, 0.0, 4.0]);
        gram.finish();
        assert!(Feedback::of(&gram, &[0, 1, 2], 0.0).is_none());
        assert!(Feedback::of(&gram, &[0, 1, 2], 0.01).is_some());
    }
}
