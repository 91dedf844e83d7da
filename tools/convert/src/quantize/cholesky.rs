//! A Gram matrix as `L L^T`, from which errors are fed back.

use crate::calibrate::Gram;
use rayon::prelude::*;

/// Columns that are factored together.
const BLOCK: usize = 64;
/// Rows and columns of the products that are kept in registers.
const TILE_ROWS: usize = 4;
const TILE_COLUMNS: usize = 4;
/// Rows that are one task.
const BAND_ROWS: usize = 32;

/// How errors in some columns are best made up for in others: the lower triangular factor `L` of the Gram matrix with its
/// columns in another order, each column divided by its element on the diagonal.
///
/// With `e` the errors of a row of weights, its squared error on the text is `|e L|^2`, and element `j` of `e L` is
/// `L_jj * (e_j + sum over i > j of e_i * unit_ij)`. So when columns are rounded from the last to the first, column `j` has
/// to make up for that sum (LDLQ: Chee et al., 2023, who show that GPTQ does the same with the inverse).
#[derive(Debug)]
pub(crate) struct Cholesky {
    size: usize,
    unit: Vec<f32>,
}

impl Cholesky {
    /// Factors a Gram matrix with its columns in `order`. `damping` times the mean of the diagonal is added to the diagonal.
    /// `None` if it is not positive definite then, or there is no memory.
    ///
    /// Takes 12 bytes for each element. Uses the threads of rayon's current pool; their number changes no bit.
    pub(crate) fn of(gram: &Gram, order: &[usize], damping: f64) -> Option<Cholesky> {
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
        factor(&mut elements, size)?;
        let mut unit: Vec<f32> = Vec::new();
        unit.try_reserve_exact(size * size).ok()?;
        unit.resize(size * size, 0.0);
        let pivots: Vec<f64> = (0..size).map(|i| elements[i * size + i]).collect();
        let rows = unit.par_chunks_mut(size.max(1)).enumerate();
        rows.for_each(|(i, row)| {
            for (j, unit) in row[..=i].iter_mut().enumerate() {
                *unit = (elements[i * size + j] / pivots[j]) as f32;
            }
        });
        Some(Cholesky { size, unit })
    }

    /// Row `i`: for each column before `i` the share of an error in column `i` that it has to make up for.
    pub(crate) fn row(&self, i: usize) -> &[f32] {
        &self.unit[i * self.size..][..i]
    }
}

/// Factors the lower triangle of a row-major square matrix in place; `None` where it is not positive definite.
fn factor(matrix: &mut [f64], size: usize) -> Option<()> {
    for first in (0..size).step_by(BLOCK) {
        let end = (first + BLOCK).min(size);
        for j in first..end {
            for k in first..=j {
                let products = (first..k).map(|t| matrix[j * size + t] * matrix[k * size + t]);
                let rest = matrix[j * size + k] - products.sum::<f64>();
                matrix[j * size + k] = if k < j {
                    rest / matrix[k * size + k]
                } else if rest > 0.0 && rest.is_finite() {
                    rest.sqrt()
                } else {
                    return None;
                };
            }
        }
        let (above, below) = matrix.split_at_mut(end * size);
        let corner: Vec<&[f64]> = (first..end)
            .map(|j| &above[j * size..][first..=j])
            .collect();
        below.par_chunks_mut(size).for_each(|row| {
            let row = &mut row[first..end];
            for (j, corner) in corner.iter().enumerate() {
                let known = row[..j].iter().zip(*corner).map(|(x, l)| x * l);
                let known: f64 = known.sum();
                row[j] = (row[j] - known) / corner[j];
            }
        });
        subtract_products(below, size, first..end);
    }
    Some(())
}

/// Takes the products of the columns `panel` away from what is right of them. `rows` are those below the panel's corner.
fn subtract_products(rows: &mut [f64], size: usize, panel: std::ops::Range<usize>) {
    let (count, depth) = (rows.len() / size.max(1), panel.len());
    let padded = count.next_multiple_of(TILE_COLUMNS);
    // Transposed, so that neighbours in memory are neighbours in the result.
    let mut turned = vec![0.0; depth * padded];
    for (row, values) in rows.chunks_exact(size).enumerate() {
        for (k, value) in values[panel.clone()].iter().enumerate() {
            turned[k * padded + row] = *value;
        }
    }
    let turned = &turned;
    rows.par_chunks_mut(BAND_ROWS * size)
        .enumerate()
        .for_each(|(band, rows)| {
            let mut top = band * BAND_ROWS;
            for tile in rows.chunks_mut(TILE_ROWS * size) {
                let height = tile.len() / size;
                for left in (0..top + height).step_by(TILE_COLUMNS) {
                    let mut products = [[0.0f64; TILE_COLUMNS]; TILE_ROWS];
                    for k in 0..depth {
                        let line = &turned[k * padded..][..padded];
                        let columns: [f64; TILE_COLUMNS] = std::array::from_fn(|j| line[left + j]);
                        for (i, products) in products.iter_mut().enumerate() {
                            // Rows past the last one are not taken over.
                            let x = line[(top + i).min(count - 1)];
                            for (product, column) in products.iter_mut().zip(columns) {
                                *product += x * column;
                            }
                        }
                    }
                    for (i, products) in products.iter().take(height).enumerate() {
                        let last = (top + i + 1).min(left + TILE_COLUMNS);
                        let columns = panel.end + left..panel.end + last.max(left);
                        let targets = &mut tile[i * size..][columns];
                        for (target, product) in targets.iter_mut().zip(products) {
                            *target -= product;
                        }
                    }
                }
                top += height;
            }
        });
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
            let factor = Cholesky::of(&gram, &order, damping).unwrap();
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
            pool.install(|| Cholesky::of(&gram, &order, 0.01).unwrap().unit)
        };
        assert_eq!(on(1), on(3));
    }

    #[test]
    fn columns_that_nothing_drives_need_damping() {
        let mut gram = Gram::new(3).unwrap();
        gram.observe(&[1.0, 0.0, 2.0, 2.0, 0.0, 4.0]);
        gram.finish();
        assert!(Cholesky::of(&gram, &[0, 1, 2], 0.0).is_none());
        assert!(Cholesky::of(&gram, &[0, 1, 2], 0.01).is_some());
    }
}
