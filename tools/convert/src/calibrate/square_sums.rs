//! How strongly each column is driven.

use super::Observer;

/// The sum of squares of each column, in `f64`, token by token. Takes 8 bytes for each column.
///
/// Wanda's norms are their roots (Sun et al., 2024), a scale search weighs errors by their means.
#[derive(Clone, Debug, PartialEq)]
pub struct SquareSums {
    sums: Vec<f64>,
    rows: u64,
}

impl SquareSums {
    /// For rows of so many columns.
    pub fn new(columns: usize) -> SquareSums {
        SquareSums {
            sums: vec![0.0; columns],
            rows: 0,
        }
    }

    /// The sum of squares of each column.
    pub fn sums(&self) -> &[f64] {
        &self.sums
    }

    /// Rows that were seen.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The norm of each column: the root of its sum.
    pub fn norms(&self) -> Vec<f32> {
        self.sums.iter().map(|sum| sum.sqrt() as f32).collect()
    }

    /// The mean of each column's squares; zeros when nothing was seen.
    pub fn means(&self) -> Vec<f64> {
        let rows = self.rows.max(1) as f64;
        self.sums.iter().map(|sum| sum / rows).collect()
    }
}

impl Observer for SquareSums {
    fn observe(&mut self, rows: &[f32]) {
        for row in rows.chunks_exact(self.sums.len().max(1)) {
            for (sum, x) in self.sums.iter_mut().zip(row) {
                *sum += f64::from(*x) * f64::from(*x);
            }
            self.rows += 1;
        }
    }
}
