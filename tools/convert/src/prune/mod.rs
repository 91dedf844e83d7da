//! Pruning an ONNX model's weights: the least important of each layer become zero, ONNX to ONNX.
//!
//! - `selection`: which weights go
//! - `measure`: how strongly each input of each layer is driven, on a text ([`calibrate`](crate::calibrate)): a layer sees
//!   what the pruned layers before it compute
//! - `rewrite`: zeros in the stored tensors
//!
//! The projections inside the decoder's layers are pruned; embeddings and the output head are not.

mod measure;
mod rewrite;
mod selection;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use selection::Pattern;

use crate::calibrate::{CalibrateError, Calibration};
use crate::lower::{LowerError, ModelFacts};
use crate::memory::give_back_freed;
use crate::onnx::{OnnxError, OnnxModel, release_all};
use crate::plan::LeftNode;
use serde::Serialize;

/// What to prune, and by which measure of importance.
#[derive(Clone, Debug)]
pub struct PruneOptions<'a> {
    /// How the pruned weights lie.
    pub pattern: Pattern,
    /// With a text a weight counts by its magnitude times the norm of the input it meets, compared within its output
    /// channel (Wanda: Sun et al., 2024); without, by its magnitude, compared within its matrix (Han et al., 2015).
    pub calibration: Option<Calibration<'a>>,
}

/// What was done to a model.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PruneReport {
    /// The matrices that were pruned, in the order of the graph.
    pub pruned: Vec<PrunedMatrix>,
    /// Nodes that kept their weights although they lie inside the layers, and why.
    pub left: Vec<LeftNode>,
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
    /// Where the decoder's layers are is not known.
    #[error("its layers cannot be told apart")]
    Lower(#[from] LowerError),
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
    /// The pruned weights could not be kept on disk.
    #[error("pruned weights cannot be written to a temporary file")]
    Spool(#[source] std::io::Error),
}

/// Prunes the projections inside a decoder's layers. `progress` is told the share that is done.
///
/// Tensors keep their names, shapes and types. Weights that the export holds quantized already are left as they are, and
/// so are those that embeddings or the output head use as well; the report names them.
///
/// # Errors
/// When the model does not lower, a weight cannot be read or is not finite, a layer does not run, or no weight at all
/// would have become zero.
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
    let lowered = crate::lower::lower(&inlined, facts, crate::lower::Rounding::Niwaki)?;
    release_all();
    give_back_freed();
    let projections = measure::Projections::of(&lowered);
    let importances = match options.calibration {
        None => projections.by_magnitude(),
        Some(calibration) => projections.measure(calibration, options.pattern, progress)?,
    };
    rewrite::rewrite(&inlined, &importances, options.pattern)
}
