//! Some of the rows themselves.

use super::Observer;

/// Rows evenly spread over the text, and never more than a given number of them: every n-th, where n doubles, and every
/// second kept row goes, as often as there would be too many. Takes 4 bytes for each number kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    columns: usize,
    most: usize,
    /// Every so many rows one is kept.
    stride: u64,
    seen: u64,
    values: Vec<f32>,
}

impl Samples {
    /// At most `most` rows of so many columns.
    pub fn new(columns: usize, most: usize) -> Samples {
        Samples {
            columns,
            most,
            stride: 1,
            seen: 0,
            values: vec![],
        }
    }

    /// The rows that were kept, row-major, in the order of the text.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// How many rows were kept.
    pub fn kept(&self) -> usize {
        self.values.len() / self.columns.max(1)
    }

    /// Rows that were seen.
    pub fn rows(&self) -> u64 {
        self.seen
    }

    /// Keeps every second of the rows that it holds.
    fn thin(&mut self) {
        let columns = self.columns;
        let kept = self.kept().div_ceil(2);
        for row in 1..kept {
            self.values
                .copy_within(2 * row * columns..(2 * row + 1) * columns, row * columns);
        }
        self.values.truncate(kept * columns);
        self.stride *= 2;
    }
}

impl Observer for Samples {
    fn observe(&mut self, rows: &[f32]) {
        for row in rows.chunks_exact(self.columns.max(1)) {
            let index = self.seen;
            self.seen += 1;
            if self.most == 0 {
                continue;
            }
            if index.is_multiple_of(self.stride) && self.kept() == self.most {
                self.thin();
            }
            // A single row that is thinned stays: it is the first.
            if index.is_multiple_of(self.stride) && self.kept() < self.most {
                self.values.extend_from_slice(row);
            }
        }
    }
}
