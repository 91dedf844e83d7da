//! Where a bundle loses what it loses: in its weights, its activations or its cache, and in which matrices.

use super::Optimizer;
use super::measure::Measure;
use crate::build::BuildError;
use crate::calibrate::{
    CalibrateError, Calibration, Follow, MatrixInput, Pass, Replacements, Samples,
};
use crate::evaluate::{Subject, compare, write_float_form};
use crate::lower::Matrix;
use crate::onnx::FloatRows;
use crate::panels::each_panel;
use crate::plan::Fate;
use niwaki::{Engine, KvElement, OpenOptions};
use niwaki_bundle::graph::MatrixId;
use niwaki_bundle::{Bundle, Verify};
use niwaki_kernels::{
    Isa, Kernels, Matrix as Packed, MatrixFormat, QuantizedRows, Rows, RowsMut, ThreadPool,
    pack_float,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Tokens of held-out text whose values are followed through the layers: whole sequences, about so many.
const FOLLOWED_TOKENS: usize = 1024;

/// Rows that a matrix is multiplied with, of the tokens that are followed.
const SAMPLED_ROWS: usize = 256;

/// Where the divergence from the float model comes from: what each step adds to the mean, one after the other. The three
/// together are the bundle's whole divergence. A step may take back a little of what those before it did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Damage {
    /// The weights are what they were rounded to; activations and cache are floats.
    pub weights_nats: f64,
    /// Activations are int8 as well.
    pub activations_nats: f64,
    /// Keys and values are kept as the engine keeps them.
    pub cache_nats: f64,
}

/// Damage of the bundle that `engine` has open, whose whole divergence is `kl_nats`.
pub(super) fn split(
    optimizer: &Optimizer<'_>,
    measure: &Measure,
    engine: &Engine,
    kl_nats: f64,
    bundle: &Path,
    on_window: &mut dyn FnMut(),
) -> Result<Damage, BuildError> {
    let path = optimizer.scratch.join("float-form.niwaki");
    write_float_form(engine.bundle(), &path)?;
    let options = OpenOptions::default()
        .with_threads(optimizer.options.threads)
        .with_verify(Verify::Structure)
        .with_kv(KvElement::F32);
    let open = |path: &Path| Engine::open(path, &options).map_err(BuildError::Measure);
    let [float, float_cache] = [open(&path)?, open(bundle)?];
    let subjects = [
        Subject::new("the model in floats", &float),
        Subject::new("the model with a cache of floats", &float_cache),
    ];
    let windows = measure.windows.iter().cloned();
    let compared = compare(measure.reference(), &subjects, windows, on_window)?;
    let kl = |index: usize| {
        compared
            .get(index)
            .map_or(0.0, |found| found.kl_nats().value)
    };
    // It is large, and not needed any more.
    drop(float);
    let _ = std::fs::remove_file(&path);
    Ok(Damage {
        weights_nats: kl(0),
        activations_nats: kl(1) - kl(0),
        cache_nats: kl_nats - kl(1),
    })
}

/// What quantizing its weights does to each matrix's products: the root mean square of the error over that of the product
/// itself, on rows that the float model multiplies it with on held-out text. Of quantized matrices that something is
/// multiplied with.
pub(super) fn product_errors(
    optimizer: &Optimizer<'_>,
    held_out: &[Vec<u32>],
    bundle: &Bundle,
) -> Result<BTreeMap<MatrixId, f64>, BuildError> {
    let (_, stored) = optimizer.plan(&Default::default());
    let quantized = |id: &MatrixId| matches!(stored[*id].fate, Fate::Quantize(_));
    let wanted: BTreeSet<MatrixId> = (0..stored.len()).filter(quantized).collect();
    let mut tokens = 0;
    let followed: Vec<Vec<u32>> = held_out
        .iter()
        .take_while(|sequence| {
            let is_wanted = tokens < FOLLOWED_TOKENS;
            tokens += sequence.len();
            is_wanted
        })
        .cloned()
        .collect();
    let pass = Pass {
        lowered: optimizer.lowered,
        calibration: Calibration {
            sequences: &followed,
            scratch: optimizer.scratch,
            threads: optimizer.options.threads,
        },
        matrices: &wanted,
        follow: Follow::Original,
    };
    let kernels =
        Kernels::new(Isa::detect(), Arc::new(ThreadPool::new(1))).map_err(CalibrateError::from)?;
    let mut errors = BTreeMap::new();
    let observer = |input: MatrixInput| Ok(Samples::new(input.columns, SAMPLED_ROWS));
    let observed = |seen: Vec<(MatrixInput, Samples)>| {
        for (MatrixInput { matrix: id, .. }, samples) in &seen {
            let (Some(matrix), Some(stored)) = (
                optimizer.lowered.parts.matrices.get(*id),
                bundle.matrix(*id),
            ) else {
                continue;
            };
            errors.extend(relative_error(&kernels, matrix, &stored, samples)?.map(|e| (*id, e)));
        }
        Ok::<_, BuildError>(Replacements::new())
    };
    pass.run(observer, observed, &mut |_| ())?;
    Ok(errors)
}

/// The error of a matrix's product with sampled rows; none if the product is zero.
fn relative_error(
    kernels: &Kernels,
    matrix: &Matrix,
    stored: &Packed<'_>,
    samples: &Samples,
) -> Result<Option<f64>, BuildError> {
    let columns = matrix.cols();
    let (mut error, mut whole) = (0.0, 0.0);
    let work = |panel: Range<usize>| -> Result<[f64; 2], BuildError> {
        let mut weights = vec![0.0; panel.len() * columns];
        matrix.read(panel.clone(), &mut weights)?;
        matrix.release(panel.clone());
        let mut lost = vec![0.0; columns];
        let mut differences = Vec::with_capacity(weights.len());
        for (row, weights) in panel.clone().zip(weights.chunks(columns.max(1))) {
            stored.read_row(row, &mut lost);
            differences.extend(
                weights
                    .iter()
                    .zip(&lost)
                    .map(|(weight, held)| weight - held),
            );
        }
        Ok([&differences, &weights]
            .map(|weights| square_sum(kernels, weights, panel.len(), columns, samples)))
    };
    let take = |[panel_error, panel]: [f64; 2]| {
        error += panel_error;
        whole += panel;
        Ok(())
    };
    each_panel(matrix.rows(), work, take, &mut |_| ())?;
    Ok((whole > 0.0).then(|| (error / whole).sqrt()))
}

/// The sum of the squares of a product with sampled rows.
fn square_sum(
    kernels: &Kernels,
    weights: &[f32],
    rows: usize,
    columns: usize,
    samples: &Samples,
) -> f64 {
    // Its only error is a wrong number of values, and so is that of the matrix.
    let packed = pack_float(MatrixFormat::F32, rows, columns, weights).unwrap_or_default();
    let Ok(matrix) = Packed::new(MatrixFormat::F32, rows, columns, &packed) else {
        return 0.0;
    };
    let mut products = vec![0.0; samples.kept() * rows];
    kernels.matmul(
        &matrix,
        &Rows::contiguous(samples.values(), samples.kept(), columns),
        None,
        &mut QuantizedRows::new(),
        &mut RowsMut::contiguous(&mut products, samples.kept(), rows),
    );
    products.iter().map(|x| f64::from(*x).powi(2)).sum()
}
