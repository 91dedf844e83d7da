//! Pruning an ONNX model's weights: the least important of each layer become zero, ONNX to ONNX.
//!
//! - `selection`: which weights go
//! - `calibrate`: how strongly each input of each layer is driven, measured on a text by the engine itself, layer by
//!   layer: a layer sees what the pruned layers before it compute
//! - `rewrite`: zeros in the stored tensors
//!
//! The projections inside the decoder's layers are pruned; embeddings and the output head are not.

mod calibrate;
mod rewrite;
mod selection;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use selection::Pattern;

use crate::lower::{LowerError, ModelFacts};
use crate::onnx::{OnnxError, OnnxModel};
use niwaki_bundle::write::WriteError;
use serde::Serialize;
use std::path::Path;

/// What to prune, and by which measure of importance.
#[derive(Clone, Debug)]
pub struct PruneOptions<'a> {
    /// How the pruned weights lie.
    pub pattern: Pattern,
    /// Without calibration a weight counts by its magnitude, compared within its matrix (Han et al., 2015).
    pub calibration: Option<Calibration<'a>>,
}

/// What Wanda (Sun et al., 2024) needs: a weight counts by its magnitude times the norm of the input it meets, compared
/// within its output channel.
#[derive(Clone, Debug)]
pub struct Calibration<'a> {
    /// Token sequences that do not see each other, none empty.
    pub sequences: &'a [Vec<u32>],
    /// A folder for one layer's bundle at a time.
    pub scratch: &'a Path,
    /// Threads that compute; 0 takes the number of fast cores.
    pub threads: usize,
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

/// One node that kept its weights.
#[derive(Clone, Debug, Serialize)]
pub struct LeftNode {
    /// The node.
    pub node: String,
    /// Why it was left.
    pub reason: &'static str,
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
    #[error("a sparsity of {0} is not possible; give a share from 0 to below 1")]
    Sparsity(f64),
    /// Nothing to measure with.
    #[error("the calibration text has no tokens; give a longer one")]
    NoTokens,
    /// A weight is NaN or infinite.
    #[error("weights {matrix:?}: row {row} holds a value that is not finite; the export is broken")]
    NotFinite {
        /// The matrix.
        matrix: String,
        /// The row: the output channel.
        row: usize,
    },
    /// A layer's bundle could not be written.
    #[error("a layer cannot be written for calibration")]
    Pack(#[from] WriteError),
    /// A layer's bundle could not be opened.
    #[error("a layer cannot be opened for calibration")]
    Open(#[from] niwaki::OpenError),
    /// A layer does not run.
    #[error("a layer does not run on the calibration text")]
    Session(#[from] niwaki::SessionError),
    /// The pruned weights could not be kept on disk.
    #[error("pruned weights cannot be written to a temporary file")]
    Spool(#[source] std::io::Error),
}

/// Prunes the projections inside a decoder's layers. `progress` is told the share that is done.
///
/// Tensors keep their names, shapes and types. Weights that the export holds quantized already are left as they are, and
/// so are those that embeddings or the output head use as well.
///
/// # Errors
/// When the model does not lower, a weight cannot be read or is not finite, or a layer does not run.
pub fn prune_model(
    model: &OnnxModel,
    facts: &ModelFacts,
    options: &PruneOptions<'_>,
    progress: &mut dyn FnMut(f64),
) -> Result<(OnnxModel, PruneReport), PruneError> {
    let sparsity = options.pattern.sparsity();
    if !(0.0..1.0).contains(&sparsity) {
        return Err(PruneError::Sparsity(sparsity));
    }
    let mut inlined = model.derive(model.proto().clone())?;
    inlined.inline_functions()?;
    let lowered = crate::lower::lower(&inlined, facts, crate::lower::Rounding::Niwaki)?;
    let layers = calibrate::Layers::of(&lowered);
    let measured = match &options.calibration {
        None => layers.unmeasured(),
        Some(calibration) => layers.measure(calibration, options.pattern, progress)?,
    };
    rewrite::rewrite(&inlined, &measured, options.pattern)
}
