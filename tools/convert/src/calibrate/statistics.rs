//! Everything that can be known of a matrix's input, together.

use super::{Gram, Observer, Ranges, Samples, SquareSums};
use niwaki_kernels::UnsupportedIsa;

/// Which statistics are wanted of a matrix's input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// How strongly each column is driven.
    pub square_sums: bool,
    /// How columns go together.
    pub gram: bool,
    /// How far each column goes.
    pub ranges: bool,
    /// At most so many rows themselves.
    pub samples: usize,
}

impl Wanted {
    /// Whether anything is.
    pub fn is_anything(self) -> bool {
        self != Wanted::default()
    }
}

/// What is known of a matrix's input: what was wanted, over one text.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    /// How strongly each column is driven.
    pub square_sums: Option<SquareSums>,
    /// How columns go together.
    pub gram: Option<Gram>,
    /// How far each column goes.
    pub ranges: Option<Ranges>,
    /// Some of the rows themselves.
    pub samples: Option<Samples>,
}

impl Statistics {
    /// An observer of what is wanted of rows of so many columns.
    ///
    /// # Errors
    /// When there are no kernels for this CPU, which a Gram matrix is computed with.
    pub fn new(columns: usize, wanted: Wanted) -> Result<Statistics, UnsupportedIsa> {
        Ok(Statistics {
            square_sums: wanted.square_sums.then(|| SquareSums::new(columns)),
            gram: wanted.gram.then(|| Gram::new(columns)).transpose()?,
            ranges: wanted.ranges.then(|| Ranges::new(columns)),
            samples: (wanted.samples > 0).then(|| Samples::new(columns, wanted.samples)),
        })
    }
}

impl Observer for Statistics {
    fn observe(&mut self, rows: &[f32]) {
        self.square_sums.observe(rows);
        self.gram.observe(rows);
        self.ranges.observe(rows);
        self.samples.observe(rows);
    }

    fn finish(&mut self) {
        self.square_sums.finish();
        self.gram.finish();
        self.ranges.finish();
        self.samples.finish();
    }
}
