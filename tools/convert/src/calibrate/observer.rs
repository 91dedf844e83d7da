//! What looks at the rows that a matrix is multiplied with.

use niwaki_bundle::graph::MatrixId;

/// What a matrix is multiplied with: the columns of one value, for every token of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixInput {
    /// The matrix.
    pub matrix: MatrixId,
    /// Its columns, which are those of the rows.
    pub columns: usize,
}

/// Looks at the rows that one matrix is multiplied with, in the order of the text.
///
/// How rows are cut into calls depends on lengths and memory, so what an observer answers in the end must not depend on
/// it, nor on the number of threads. It may use the threads of rayon's current pool.
///
/// ```
/// use niwaki_convert::calibrate::Observer;
///
/// /// Counts tokens.
/// struct Count { columns: usize, tokens: usize }
///
/// impl Observer for Count {
///     fn observe(&mut self, rows: &[f32]) {
///         self.tokens += rows.len() / self.columns;
///     }
/// }
///
/// let mut count = Count { columns: 2, tokens: 0 };
/// count.observe(&[1.0, 2.0, 3.0, 4.0]);
/// assert_eq!(count.tokens, 2);
/// ```
pub trait Observer {
    /// The next rows, row-major, each as long as the matrix has columns. All numbers are finite.
    fn observe(&mut self, rows: &[f32]);

    /// No more rows come.
    fn finish(&mut self) {}
}

/// Two observers of the same rows.
impl<A: Observer, B: Observer> Observer for (A, B) {
    fn observe(&mut self, rows: &[f32]) {
        self.0.observe(rows);
        self.1.observe(rows);
    }

    fn finish(&mut self) {
        self.0.finish();
        self.1.finish();
    }
}

/// One that may not be wanted.
impl<O: Observer> Observer for Option<O> {
    fn observe(&mut self, rows: &[f32]) {
        if let Some(observer) = self {
            observer.observe(rows);
        }
    }

    fn finish(&mut self) {
        if let Some(observer) = self {
            observer.finish();
        }
    }
}
