//! How columns go together.

use super::Observer;
use niwaki_kernels::{
    Isa, Kernels, Matrix, MatrixFormat, QuantizedRows, Rows, RowsMut, ThreadPool, UnsupportedIsa,
    pack_float,
};
use rayon::prelude::*;
use std::sync::Arc;

/// Tokens whose products are summed in `f32` before they join the `f64` sums.
const CHUNK_ROWS: usize = 256;

/// Rows of the matrix that are computed together: a multiple of the kernels' groups of 16.
const BAND_ROWS: usize = 64;

/// The Gram matrix of the rows: element (i, j) is the sum over all tokens of column i times column j. Twice it is the
/// Hessian that GPTQ works with (Frantar et al., 2023).
///
/// Tokens come in chunks of 256. Within a chunk `sum = fma(column j, column i, sum)` over ascending tokens in `f32`,
/// which the kernels of `docs/arithmetic.md` compute with the same bits on every CPU; chunks are added in `f64`, in order.
///
/// Only the half on and below the diagonal is kept: about 4 bytes times the square of the columns (268 MB for 8192), and
/// while a chunk is added 3 KB for each column.
#[derive(Clone, Debug)]
pub struct Gram {
    columns: usize,
    rows: u64,
    /// Rows that wait for their chunk to be full.
    pending: Vec<f32>,
    /// Bands of rows from the top; each is as wide as its last row needs.
    bands: Vec<Vec<f64>>,
    /// On the thread that calls: what runs in parallel are bands.
    kernels: Kernels,
}

impl Gram {
    /// For rows of so many columns.
    ///
    /// # Errors
    /// When there are no kernels for this CPU.
    pub fn new(columns: usize) -> Result<Gram, UnsupportedIsa> {
        let bands = (0..columns.div_ceil(BAND_ROWS)).map(|band| {
            let (rows, width) = shape(band, columns);
            vec![0.0; rows * width]
        });
        Ok(Gram {
            columns,
            rows: 0,
            pending: vec![],
            bands: bands.collect(),
            kernels: Kernels::new(Isa::detect(), Arc::new(ThreadPool::new(1)))?,
        })
    }

    /// Rows and columns of the matrix.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Rows that were seen.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The sum of column `i` times column `j`, which is that of `j` times `i`.
    ///
    /// # Panics
    /// If there are not so many columns.
    pub fn at(&self, i: usize, j: usize) -> f64 {
        let (i, j) = (i.max(j), i.min(j));
        let band = i / BAND_ROWS;
        let (_, width) = shape(band, self.columns);
        self.bands[band][i % BAND_ROWS * width + j]
    }

    /// Adds the rows that wait.
    fn add_pending(&mut self) {
        let tokens = self.pending.len() / self.columns.max(1);
        if tokens == 0 {
            return;
        }
        let mut turned = vec![0.0; self.pending.len()];
        for (token, row) in self.pending.chunks_exact(self.columns).enumerate() {
            for (column, x) in row.iter().enumerate() {
                turned[column * tokens + token] = *x;
            }
        }
        self.pending.clear();
        let (columns, kernels) = (self.columns, &self.kernels);
        // Its only error is a wrong number of values.
        let packed = pack_float(MatrixFormat::F32, columns, tokens, &turned).unwrap_or_default();
        self.bands
            .par_iter_mut()
            .enumerate()
            .for_each(|(band, sums)| {
                let (rows, width) = shape(band, columns);
                let needed = MatrixFormat::F32.size_bytes(width, tokens).unwrap_or(0);
                // Packed rows come in whole groups, so those of the first bands are a matrix of their own.
                let Ok(matrix) = Matrix::new(
                    MatrixFormat::F32,
                    width,
                    tokens,
                    packed.get(..needed).unwrap_or_default(),
                ) else {
                    return;
                };
                let first = band * BAND_ROWS * tokens;
                let mut products = vec![0.0; rows * width];
                kernels.matmul(
                    &matrix,
                    &Rows::contiguous(&turned[first..][..rows * tokens], rows, tokens),
                    None,
                    &mut QuantizedRows::new(),
                    &mut RowsMut::contiguous(&mut products, rows, width),
                );
                for (sum, product) in sums.iter_mut().zip(products) {
                    *sum += f64::from(product);
                }
            });
    }
}

impl Observer for Gram {
    fn observe(&mut self, rows: &[f32]) {
        for row in rows.chunks_exact(self.columns.max(1)) {
            self.pending.extend_from_slice(row);
            self.rows += 1;
            if self.rows.is_multiple_of(CHUNK_ROWS as u64) {
                self.add_pending();
            }
        }
    }

    fn finish(&mut self) {
        self.add_pending();
        self.pending = vec![];
    }
}

/// Rows and columns of a band.
fn shape(band: usize, columns: usize) -> (usize, usize) {
    let first = band * BAND_ROWS;
    let end = (first + BAND_ROWS).min(columns);
    (end - first, end)
}
