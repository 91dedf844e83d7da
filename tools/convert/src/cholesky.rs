//! A positive definite matrix as the product of a triangle and its transpose.

use rayon::prelude::*;

/// Columns that are factorised together.
const BLOCK: usize = 64;

/// The lower triangle `L` of `A = L L^T`, row-major in the whole square; what lies above the diagonal is zero.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cholesky {
    order: usize,
    lower: Vec<f64>,
}

impl Cholesky {
    /// Factorises a symmetric matrix, of which only what lies on and below the diagonal is read. `None` when it is not
    /// positive definite.
    ///
    /// The result has the same bits for any number of threads.
    pub(crate) fn of(mut matrix: Vec<f64>, order: usize) -> Option<Cholesky> {
        for first in (0..order).step_by(BLOCK) {
            let end = (first + BLOCK).min(order);
            factorise_diagonal(&mut matrix, order, first..end)?;
            let (above, below) = matrix.split_at_mut(end * order);
            let diagonal = &above[first * order..];
            below.par_chunks_mut(order).for_each(|row| {
                for column in first..end {
                    let factors = &diagonal[(column - first) * order..];
                    let known = dot(&row[first..column], &factors[first..column]);
                    row[column] = (row[column] - known) / factors[column];
                }
            });
            // What the rest of the matrix loses, row by row: each needs the new columns of those above it.
            let rows = order - end;
            let mut turned = vec![0.0; (end - first) * rows];
            for (index, row) in below.chunks(order).enumerate() {
                for column in first..end {
                    turned[(column - first) * rows + index] = row[column];
                }
            }
            below
                .par_chunks_mut(order)
                .enumerate()
                .for_each(|(index, row)| {
                    let (known, rest) = row.split_at_mut(end);
                    let rest = &mut rest[..=index];
                    subtract_products(rest, &known[first..], &turned, rows);
                });
        }
        for row in 0..order {
            matrix[row * order + row + 1..(row + 1) * order].fill(0.0);
        }
        Some(Cholesky {
            order,
            lower: matrix,
        })
    }

    /// Rows and columns.
    pub(crate) fn order(&self) -> usize {
        self.order
    }

    /// A row of the triangle, its diagonal last.
    pub(crate) fn row(&self, row: usize) -> &[f64] {
        &self.lower[row * self.order..][..=row]
    }

    /// The inverse of `A`, row-major.
    pub(crate) fn inverse(&self) -> Vec<f64> {
        let order = self.order;
        let mut inverse = vec![0.0; order * order];
        inverse
            .par_chunks_mut(order.max(1))
            .enumerate()
            .for_each(|(index, x)| {
                x[index] = 1.0;
                self.solve_row(x, index);
            });
        inverse
    }

    /// `x A^-1 x^T`.
    pub(crate) fn inverse_square(&self, mut x: Vec<f64>) -> f64 {
        // With y L^T = x it is y y^T.
        for column in 0..self.order {
            let factors = self.row(column);
            let known = dot(&x[..column], &factors[..column]);
            x[column] = (x[column] - known) / factors[column];
        }
        dot(&x, &x)
    }

    /// Solves `x A = b` for each row of `rows`, in place.
    pub(crate) fn solve_rows(&self, rows: &mut [f64]) {
        let rows = rows.par_chunks_mut(self.order.max(1));
        rows.for_each(|x| self.solve_row(x, 0));
    }

    /// Solves `x A = b` where `b` begins with `zeros` zeros.
    fn solve_row(&self, x: &mut [f64], zeros: usize) {
        // y L^T = b, from the first column on.
        for column in zeros..self.order {
            let factors = self.row(column);
            let known = dot(&x[zeros..column], &factors[zeros..column]);
            x[column] = (x[column] - known) / factors[column];
        }
        // x L = y, from the last column on.
        for column in (0..self.order).rev() {
            let factors = self.row(column);
            let value = x[column] / factors[column];
            x[column] = value;
            for (x, factor) in x[..column].iter_mut().zip(factors) {
                *x -= value * factor;
            }
        }
    }
}

/// Factorises a block on the diagonal, from which what the columns before it give was taken already.
fn factorise_diagonal(
    matrix: &mut [f64],
    order: usize,
    block: std::ops::Range<usize>,
) -> Option<()> {
    for column in block.clone() {
        for row in column..block.end {
            let (above, below) = matrix.split_at_mut(row * order);
            let known = if row == column {
                dot(&below[block.start..column], &below[block.start..column])
            } else {
                let factors = &above[column * order..];
                dot(&below[block.start..column], &factors[block.start..column])
            };
            let left = below[column] - known;
            below[column] = if row == column {
                // Not a number is no pivot either.
                (left > 0.0 && left.is_finite()).then(|| left.sqrt())?
            } else {
                left / above[column * order + column]
            };
        }
    }
    Some(())
}

/// `rest -= factors[t] * turned[t]` for all `t`, four at a time.
fn subtract_products(rest: &mut [f64], factors: &[f64], turned: &[f64], width: usize) {
    let count = rest.len();
    let row = |t: usize| &turned[t * width..][..count];
    let mut t = 0;
    while t + 4 <= factors.len() {
        let (a, b, c, d) = (row(t), row(t + 1), row(t + 2), row(t + 3));
        let [fa, fb, fc, fd] = [factors[t], factors[t + 1], factors[t + 2], factors[t + 3]];
        for (index, x) in rest.iter_mut().enumerate() {
            *x -= fa * a[index] + fb * b[index] + fc * c[index] + fd * d[index];
        }
        t += 4;
    }
    for (factor, t) in factors[t..].iter().zip(t..) {
        for (x, product) in rest.iter_mut().zip(row(t)) {
            *x -= factor * product;
        }
    }
}

/// The sum of products, in eight sums that are added in order.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a_chunks, a_rest) = a.as_chunks::<8>();
    let (b_chunks, b_rest) = b.as_chunks::<8>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// `B B^T` plus the unit matrix, for a matrix of scattered numbers.
    fn positive_definite(order: usize) -> Vec<f64> {
        let b = |row: usize, column: usize| ((row * 37 + column * 101) % 89) as f64 / 89.0 - 0.5;
        let mut matrix = vec![0.0; order * order];
        for row in 0..order {
            for column in 0..order {
                let product: f64 = (0..order).map(|t| b(row, t) * b(column, t)).sum();
                matrix[row * order + column] = product + f64::from(u8::from(row == column));
            }
        }
        matrix
    }

    #[test]
    fn the_triangle_times_its_transpose_is_the_matrix() {
        for order in [1, 2, 63, 64, 65, 150] {
            let matrix = positive_definite(order);
            let factor = Cholesky::of(matrix.clone(), order).unwrap();
            for row in 0..order {
                for column in 0..=row {
                    let (a, b) = (factor.row(row), factor.row(column));
                    let product: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                    assert!((product - matrix[row * order + column]).abs() < 1e-9);
                }
            }
        }
    }

    #[test]
    fn solutions_give_the_right_side_again() {
        let order = 130;
        let matrix = positive_definite(order);
        let factor = Cholesky::of(matrix.clone(), order).unwrap();
        let wanted: Vec<f64> = (0..2 * order).map(|index| (index % 17) as f64).collect();
        let mut rows = wanted.clone();
        factor.solve_rows(&mut rows);
        for (x, wanted) in rows.chunks(order).zip(wanted.chunks(order)) {
            for column in 0..order {
                let value: f64 = (0..order).map(|t| x[t] * matrix[t * order + column]).sum();
                assert!((value - wanted[column]).abs() < 1e-8);
            }
        }
    }

    #[test]
    fn a_matrix_that_is_not_positive_definite_has_no_triangle() {
        assert_eq!(Cholesky::of(vec![1.0, 0.0, 2.0, 1.0], 2), None);
        assert_eq!(Cholesky::of(vec![f64::NAN], 1), None);
        assert_eq!(Cholesky::of(vec![0.0], 1), None);
    }

    #[test]
    fn the_bits_do_not_depend_on_the_number_of_threads() {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let pool = pool.build().unwrap();
            pool.install(|| Cholesky::of(positive_definite(150), 150).unwrap())
        };
        assert_eq!(on(1), on(3));
    }
}
