//! Float matrices that are read in runs of rows, so that none has to be in memory whole.

use super::OnnxError;
use std::ops::Range;

/// A matrix of floats: one row per output channel. Reading is cheap to repeat and may happen on several threads.
pub trait FloatRows: Sync {
    /// The matrix's name, for errors.
    fn name(&self) -> &str;

    /// Output channels.
    fn rows(&self) -> usize;

    /// Input channels.
    fn columns(&self) -> usize;

    /// The rows `range`, row-major; `out` has as many numbers.
    ///
    /// # Errors
    /// When the file that holds them cannot be read.
    fn read(&self, range: Range<usize>, out: &mut [f32]) -> Result<(), OnnxError>;

    /// Says that these rows are not needed for a while: what of a file holds them and nothing else may leave memory.
    fn release(&self, _range: Range<usize>) {}
}

/// A matrix in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Floats {
    name: String,
    columns: usize,
    values: Vec<f32>,
}

impl Floats {
    /// Row-major values; a last row that is not whole is left out.
    pub fn new(name: impl Into<String>, columns: usize, values: Vec<f32>) -> Floats {
        Floats {
            name: name.into(),
            columns,
            values,
        }
    }
}

impl FloatRows for Floats {
    fn name(&self) -> &str {
        &self.name
    }

    fn rows(&self) -> usize {
        self.values.len().checked_div(self.columns).unwrap_or(0)
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn read(&self, range: Range<usize>, out: &mut [f32]) -> Result<(), OnnxError> {
        out.copy_from_slice(&self.values[range.start * self.columns..range.end * self.columns]);
        Ok(())
    }
}
