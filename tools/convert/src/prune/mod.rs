//! Pruning an ONNX model's weights: the least important of each matrix become zero, ONNX to ONNX.
//!
//! - `selection`: which weights go
//! - `measure`: what each projection is driven with, on a text ([`calibrate`](crate::calibrate)): a layer sees what the
//!   pruned layers before it compute; `error_feedback`: what stays takes over from what goes, by a `cholesky` triangle
//! - `products`: the products with constant weights that an ONNX model has, in its bodies too
//! - `rewrite`: the new weights in the stored tensors
//! - [`structure`]: parts taken out, channels, heads and layers, so that tensors shrink
//!
//! Where the model lowers, the projections inside its layers are pruned; embeddings and the output head are not. Of any other
//! model all products are, but tables and what gives its results.

mod error_feedback;
mod measure;
mod products;
mod rewrite;
mod selection;
pub mod structure;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use selection::Pattern;

use crate::calibrate::{CalibrateError, Calibration};
use crate::lower::{LowerError, ModelFacts};
use crate::memory::give_back_freed;
use crate::onnx::{OnnxError, OnnxModel, release_all};
use crate::plan::LeftNode;
use niwaki_kernels::UnsupportedIsa;
use rewrite::Verdicts;
use serde::Serialize;
use structure::CannotRemove;

/// By what the least important weights are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// By their magnitude, compared within their matrix (Han et al., 2015). Needs no text, and works on any model.
    Magnitude,
    /// By their magnitude times the norm of the input that they meet, compared within their output channel (Wanda: Sun et
    /// al., 2024).
    Wanda,
    /// By what their going costs when the weights that stay take over, which they do (SparseGPT: Frantar & Alistarh, 2023).
    SparseGpt,
}

/// What to prune, and how.
#[derive(Clone, Debug)]
pub struct PruneOptions<'a> {
    /// How the pruned weights lie.
    pub pattern: Pattern,
    /// By what they are found.
    pub method: Method,
    /// The text to measure on, which all methods but magnitude need.
    pub calibration: Option<Calibration<'a>>,
}

/// What was done to a model.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PruneReport {
    /// The matrices that were pruned, in the order of the graph.
    pub pruned: Vec<PrunedMatrix>,
    /// Nodes that kept their weights although they would be pruned, and why.
    pub left: Vec<LeftNode>,
    /// Nodes whose weights are never pruned: embeddings, other tables and output heads.
    pub spared: Vec<LeftNode>,
    /// What a person should know.
    pub notes: Vec<String>,
}

impl PruneReport {
    /// Weights of the pruned matrices, and how many of them are zero now.
    pub fn weights_and_zeros(&self) -> (u64, u64) {
        self.pruned.iter().fold((0, 0), |(weights, zeros), matrix| {
            (
                weights + (matrix.rows * matrix.columns) as u64,
                zeros + matrix.zeros,
            )
        })
    }
}

/// One pruned matrix.
#[derive(Clone, Debug, Serialize)]
pub struct PrunedMatrix {
    /// The node that uses it.
    pub node: String,
    /// Output channels.
    pub rows: usize,
    /// Input channels.
    pub columns: usize,
    /// Weights that are zero now.
    pub zeros: u64,
    /// Root mean square of what was taken away over that of the weights.
    pub relative_error: f64,
}

/// Why a model could not be pruned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PruneError {
    /// The model could not be read.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// What computes what is not known, so nothing can be measured.
    #[error("nothing can be measured in it, since it does not lower; prune it by magnitude")]
    Lower(#[from] LowerError),
    /// A method that measures has nothing to measure on.
    #[error("only pruning by magnitude needs no calibration text")]
    NoCalibration,
    /// There are no kernels to measure with.
    #[error("this CPU cannot measure")]
    Cpu(#[from] UnsupportedIsa),
    /// Numbers of the text are too far apart.
    #[error(
        "what {matrix:?} reads cannot be told apart on the calibration text; give a longer one"
    )]
    NotPositive {
        /// The matrix.
        matrix: String,
    },
    /// A share that is none.
    #[error("a sparsity of {0} is not possible; give a share above 0 and below 1")]
    Sparsity(f64),
    /// No weight would have become zero.
    #[error("nothing can be pruned: {reason}")]
    NothingPruned {
        /// Why.
        reason: String,
    },
    /// A weight is NaN or infinite.
    #[error("weights {matrix:?}: row {row} holds a value that is not finite; the export is broken")]
    NotFinite {
        /// The matrix.
        matrix: String,
        /// The row: the output channel.
        row: usize,
    },
    /// Nothing could be measured.
    #[error("the weights' importance cannot be measured")]
    Calibrate(#[from] CalibrateError),
    /// The export's graph cannot be rewritten.
    #[error("this export cannot be rewritten without what should go")]
    CannotRemove(#[from] CannotRemove),
    /// What was rewritten is no decoder any more.
    #[error("this export cannot be rewritten without what should go: the rest does not lower")]
    Rewritten(#[source] LowerError),
    /// The pruned weights could not be kept on disk.
    #[error("pruned weights cannot be written to a temporary file")]
    Spool(#[source] std::io::Error),
}

/// Prunes a model's weights. `progress` is told the share that is done.
///
/// Tensors keep their names, shapes and types. Weights that the export holds quantized already are left as they are, and
/// so are those that embeddings or the output head use as well; the report names them.
///
/// # Errors
/// When a weight cannot be read or is not finite, or no weight at all would have become zero; by any method but magnitude also
/// when the model does not lower or a layer does not run.
pub fn prune_model(
    model: &OnnxModel,
    facts: &ModelFacts,
    options: &PruneOptions<'_>,
    progress: &mut (dyn FnMut(f64) + Send),
) -> Result<(OnnxModel, PruneReport), PruneError> {
    let sparsity = options.pattern.sparsity();
    // Not a number is no share either.
    if !(sparsity > 0.0 && sparsity < 1.0) {
        return Err(PruneError::Sparsity(sparsity));
    }
    let mut inlined = model.derive(model.proto().clone())?;
    inlined.inline_functions()?;
    let weighted = products::weighted(&inlined)?;
    let lowered = crate::lower::lower(&inlined, facts, crate::lower::Rounding::Niwaki);
    release_all();
    give_back_freed();
    let mut notes = vec![];
    let verdicts = match (lowered, options.method, options.calibration) {
        (Ok(lowered), Method::Magnitude, _) => {
            let projections = measure::Projections::of(&lowered);
            Verdicts::OfNodes(projections.all(&measure::Verdict::Magnitude))
        }
        (Err(error), Method::Magnitude, _) => {
            notes.push(format!(
                "its layers are not known, so all its products were pruned but tables and what gives its results: {error}"
            ));
            Verdicts::ByMagnitude
        }
        (Err(error), ..) => return Err(error.into()),
        (Ok(_), _, None) => return Err(PruneError::NoCalibration),
        (Ok(lowered), method, Some(calibration)) => {
            let stored = weighted
                .iter()
                .filter_map(|weighted| match &weighted.reads {
                    products::Reads::Product(rows) => Some((weighted.node.name_or_output(), rows)),
                    _ => None,
                });
            let projections = measure::Projections::of(&lowered);
            let pattern = options.pattern;
            let stored = stored.collect();
            Verdicts::OfNodes(projections.measure(
                calibration,
                pattern,
                method,
                &stored,
                progress,
            )?)
        }
    };
    let (pruned, mut report) = rewrite::rewrite(&inlined, &weighted, &verdicts, options.pattern)?;
    report.notes = notes;
    Ok((pruned, report))
}
