//! Quantizers, and an ONNX model's weights quantized: a rewrite from ONNX to ONNX that onnxruntime can run.
//!
//! - `quantizer`: what a quantizer is; `rtn`: round to nearest; `search`: the scale with the least error; `gptq`: error
//!   feedback
//! - `lattice`: weights that training left on a 4-bit grid stay what they are
//! - `shelf`: quantized matrices on disk, so that work that was stopped can go on
//! - what they share: `matrix`: a matrix row by row, `levels`: the values that codes stand for, `scale`: the search,
//!   `codebook_fit`: the values of a matrix's codebook, `feedback`: how errors are fed back
//! - `stored`: the constants of an ONNX model and what reads them, `operand`: what nodes do with them, `candidates`: those
//!   that blocks can hold, `decisions`: what becomes of each, `left`: what stays floats
//! - `rewrite`: quantizes what the [plan](crate::plan) says and replaces nodes; `nodes`: the new ones, `store`: their
//!   tensors, `operators`: the byte layouts of `MatMulNBits` and `GatherBlockQuantized`, `channels`: tensors of any shape
//!   with one scale for each channel; `measured`: what a text tells of a matrix decides how it is quantized
//!
//! A new quantizer implements [`Quantizer`]; nothing else has to change.

mod candidates;
mod channels;
mod codebook_fit;
mod decisions;
mod feedback;
mod gptq;
mod lattice;
mod left;
mod levels;
mod matrix;
mod measured;
mod nodes;
mod operand;
mod operators;
mod quantizer;
mod rewrite;
mod rtn;
mod scale;
mod search;
mod shelf;
mod store;
mod stored;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use crate::plan::Code;
pub use gptq::Gptq;
pub use lattice::{KeepLattice, OnLattice, on_lattice};
pub use left::LeftTensor;
pub use quantizer::{
    QuantizeError, QuantizedRows, Quantizer, ScaleGrid, Target, quantize_in_reach,
};
pub use rtn::RoundToNearest;
pub use search::ScaleSearch;
pub use shelf::{Shelf, ShelfError};

use crate::calibrate::Calibration;
use crate::lower::ModelFacts;
use crate::onnx::OnnxModel;
use crate::plan::{Plan, Weights, Wishes};
use serde::Serialize;

/// Columns that share a scale.
pub const BLOCK: usize = 32;

/// What to quantize, and how far.
#[derive(Clone, Debug, Default)]
pub struct QuantizeOptions {
    /// What is asked for. Matrices that are not quantized stay as they are, whatever else is said of them.
    pub wishes: Wishes,
    /// The `accuracy_level` of the `MatMulNBits` nodes: 0 for the plain meaning (weights are dequantized, activations
    /// stay floats), 4 to let onnxruntime quantize activations to 8 bits.
    pub accuracy_level: i64,
    /// What the configuration says about the model: it helps to tell what matrices are for.
    pub facts: ModelFacts,
}

impl QuantizeOptions {
    /// The plain meaning at the given width.
    pub fn new(code: Code) -> Self {
        let weights = match code {
            Code::Int4 => Weights::Int4,
            Code::Codebook4 => Weights::Codebook4,
            Code::Int8 => Weights::Int8,
        };
        Self {
            wishes: weights.into(),
            ..Self::default()
        }
    }
}

/// What was done to a model.
#[derive(Clone, Debug, Default, Serialize)]
pub struct QuantizeReport {
    /// What was decided of every matrix.
    #[serde(rename = "matrices")]
    pub plan: Plan,
    /// The matrices that were quantized, in the order of the graph.
    pub quantized: Vec<QuantizedMatrix>,
    /// Every stored tensor of floats that was left as it is, and why; single numbers are not counted.
    pub left: Vec<LeftTensor>,
}

/// One quantized matrix.
#[derive(Clone, Debug, Serialize)]
pub struct QuantizedMatrix {
    /// The node that uses it.
    pub node: String,
    /// Output channels.
    pub rows: usize,
    /// Input channels.
    pub columns: usize,
    /// Root mean square of the error over that of the weights.
    pub relative_error: f64,
}

/// Quantizes a model's weights by rounding to nearest, in its graph and in the bodies of `If`, `Loop` and `Scan`.
///
/// Every `MatMul`, `Gemm` and `FusedMatMul` by a constant matrix becomes a `MatMulNBits` (and an `Add` of the bias),
/// every lookup of token embeddings in a constant table a `GatherBlockQuantized`. Equal tables, such as an embedding and
/// the output head tied to it, are stored once. Other weights (of `Conv`, `ConvTranspose`, `Einsum`, recurrences, products
/// that blocks do not suit) become 8-bit integers with a scale for each output channel, which `DequantizeLinear` makes
/// floats of where they were stored, or `Cast` and `Mul` where that has no axis.
///
/// Nodes that are quantized already, also by `DequantizeLinear`, are left as they are; so are the floats beside them,
/// unless the wishes name them. What no node uses any more is dropped. Where 16-bit scales do not reach, products are
/// computed in f32; where no scale does, floats stay.
///
/// # Errors
/// When a weight cannot be read or is not finite, and when nothing would be quantized.
pub fn quantize_model(
    model: &OnnxModel,
    options: &QuantizeOptions,
    progress: &mut (dyn FnMut(f64) + Send),
) -> Result<(OnnxModel, QuantizeReport), QuantizeError> {
    quantize_model_with(&RoundToNearest, model, options, progress)
}

/// As [`quantize_model`], with a quantizer of the caller's choice.
///
/// # Errors
/// As [`quantize_model`].
pub fn quantize_model_with(
    quantizer: &dyn Quantizer,
    model: &OnnxModel,
    options: &QuantizeOptions,
    progress: &mut (dyn FnMut(f64) + Send),
) -> Result<(OnnxModel, QuantizeReport), QuantizeError> {
    rewrite::rewrite(quantizer, model, options, None, progress)
}

/// As [`quantize_model_with`], by what a text tells of the matrices in the layers and the head. What it tells nothing of is
/// rounded to nearest.
///
/// # Errors
/// As [`quantize_model`], and when the model does not lower or does not run on the text.
pub fn quantize_model_calibrated(
    quantizer: &dyn Quantizer,
    model: &OnnxModel,
    options: &QuantizeOptions,
    calibration: Calibration<'_>,
    progress: &mut (dyn FnMut(f64) + Send),
) -> Result<(OnnxModel, QuantizeReport), QuantizeError> {
    rewrite::rewrite(quantizer, model, options, Some(calibration), progress)
}
