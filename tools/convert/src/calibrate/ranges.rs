//! How far each column goes.

use super::Observer;

/// The smallest and the largest value of each column, and the largest magnitude. Takes 8 bytes for each column.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranges {
    least: Vec<f32>,
    most: Vec<f32>,
    rows: u64,
}

impl Ranges {
    /// For rows of so many columns.
    pub fn new(columns: usize) -> Ranges {
        Ranges {
            least: vec![f32::INFINITY; columns],
            most: vec![f32::NEG_INFINITY; columns],
            rows: 0,
        }
    }

    /// The smallest value of each column; infinite when nothing was seen.
    pub fn least(&self) -> &[f32] {
        &self.least
    }

    /// The largest value of each column; minus infinite when nothing was seen.
    pub fn most(&self) -> &[f32] {
        &self.most
    }

    /// The largest magnitude of each column; 0 when nothing was seen.
    pub fn magnitudes(&self) -> Vec<f32> {
        if self.rows == 0 {
            return vec![0.0; self.least.len()];
        }
        let pairs = self.least.iter().zip(&self.most);
        pairs
            .map(|(least, most)| least.abs().max(most.abs()))
            .collect()
    }

    /// Rows that were seen.
    pub fn rows(&self) -> u64 {
        self.rows
    }
}

impl Observer for Ranges {
    fn observe(&mut self, rows: &[f32]) {
        for row in rows.chunks_exact(self.least.len().max(1)) {
            for (least, x) in self.least.iter_mut().zip(row) {
                *least = least.min(*x);
            }
            for (most, x) in self.most.iter_mut().zip(row) {
                *most = most.max(*x);
            }
            self.rows += 1;
        }
    }
}
