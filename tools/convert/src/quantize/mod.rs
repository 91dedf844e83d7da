//! Quantizing an ONNX model's weights: a rewrite from ONNX to ONNX that onnxruntime can run.
//!
//! - `rtn`: round to nearest, the quantizer that needs no data
//! - `operators`: the byte layouts of `MatMulNBits` and `GatherBlockQuantized`
//! - `rewrite`: the nodes of the graph
//!
//! A new quantizer implements [`Quantizer`]; nothing else has to change.

mod operators;
mod rewrite;
pub mod rtn;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use serde::Serialize;

use crate::onnx::{OnnxError, OnnxModel};

/// Columns that share a scale.
pub const BLOCK: usize = 32;

/// The width of a quantized weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Bits {
    /// Integers from -8 to 7.
    Four,
    /// Integers from -127 to 127.
    Eight,
}

impl Bits {
    /// 4 or 8.
    pub fn count(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

/// The grid on which scales lie, so that what is computed with is what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleGrid {
    /// Multiples that f16 holds; every f32 or f16 model.
    F16,
    /// Multiples that both bf16 and f16 hold; bf16 models, whose operators take bf16 scales.
    Bf16,
}

/// Rows of quantized weights: `value = integer * scale`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QuantizedRows {
    /// Row-major, as many as the weights.
    pub integers: Vec<i8>,
    /// Row-major, `columns.div_ceil(BLOCK)` for each row; on the scale grid, never NaN or infinite.
    pub scales: Vec<f32>,
}

/// How weights become integers.
pub trait Quantizer {
    /// The method's name, for reports.
    fn name(&self) -> &'static str;

    /// Quantizes whole rows (output channels) of one matrix.
    ///
    /// # Errors
    /// When a weight is not finite, or too large for a scale on the grid.
    fn quantize(
        &self,
        rows: &WeightRows<'_>,
        bits: Bits,
        grid: ScaleGrid,
    ) -> Result<QuantizedRows, QuantizeError>;
}

/// Some rows of a weight matrix.
#[derive(Clone, Copy, Debug)]
pub struct WeightRows<'a> {
    /// The matrix's name.
    pub name: &'a str,
    /// The matrix's row that comes first here.
    pub first_row: usize,
    /// The length of a row: the matrix's input channels.
    pub columns: usize,
    /// Row-major.
    pub values: &'a [f32],
}

/// What to quantize, and how far.
#[derive(Clone, Debug)]
pub struct QuantizeOptions {
    /// The width of the weights.
    pub bits: Bits,
    /// The `accuracy_level` of the `MatMulNBits` nodes: 0 for the plain meaning (weights are dequantized, activations
    /// stay floats), 4 to let onnxruntime quantize activations to 8 bits.
    pub accuracy_level: i64,
}

impl QuantizeOptions {
    /// The plain meaning at the given width.
    pub fn new(bits: Bits) -> Self {
        Self {
            bits,
            accuracy_level: 0,
        }
    }
}

/// What was done to a model.
#[derive(Clone, Debug, Default, Serialize)]
pub struct QuantizeReport {
    /// The matrices that were quantized, in the order of the graph.
    pub quantized: Vec<QuantizedMatrix>,
    /// Nodes with constant weights that were left as they are, and why.
    pub left: Vec<LeftNode>,
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

/// One node that kept its weights.
#[derive(Clone, Debug, Serialize)]
pub struct LeftNode {
    /// The node.
    pub node: String,
    /// Why it was left.
    pub reason: String,
}

/// Why a model could not be quantized.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The model could not be read.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// A weight is NaN or infinite.
    #[error("weights {matrix:?}: row {row} holds a value that is not finite; the export is broken")]
    NotFinite {
        /// The matrix.
        matrix: String,
        /// The row: the output channel.
        row: usize,
    },
    /// A weight is so large that no f16 scale reaches it.
    #[error(
        "weights {matrix:?}: row {row} holds {value}, too large for a 16-bit scale; keep this model in floats"
    )]
    TooLarge {
        /// The matrix.
        matrix: String,
        /// The row: the output channel.
        row: usize,
        /// The value.
        value: f32,
    },
}

/// Quantizes a model's matrices by rounding to nearest.
///
/// Every `MatMul`, `Gemm` and `FusedMatMul` by a constant matrix becomes a `MatMulNBits` (and an `Add` of the bias),
/// every lookup of token embeddings in a constant table a `GatherBlockQuantized`. Equal tables, such as an embedding and
/// the output head tied to it, are stored once. Nodes that are quantized already, also by `DequantizeLinear`, are left as
/// they are. What no node uses any more is dropped.
///
/// # Errors
/// When a weight cannot be read, is not finite, or is out of range.
pub fn quantize_model(
    model: &OnnxModel,
    options: &QuantizeOptions,
) -> Result<(OnnxModel, QuantizeReport), QuantizeError> {
    quantize_model_with(&rtn::RoundToNearest, model, options)
}

/// As [`quantize_model`], with a quantizer of the caller's choice.
///
/// # Errors
/// As [`quantize_model`].
pub fn quantize_model_with(
    quantizer: &dyn Quantizer,
    model: &OnnxModel,
    options: &QuantizeOptions,
) -> Result<(OnnxModel, QuantizeReport), QuantizeError> {
    rewrite::rewrite(quantizer, model, options)
}
