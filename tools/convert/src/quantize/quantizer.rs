//! How weights become integers.

use super::BLOCK;
use crate::calibrate::{CalibrateError, Statistics, Wanted};
use crate::lower::LowerError;
use crate::onnx::{FloatRows, OnnxError};
use crate::plan::Code;
use niwaki_kernels::Codebook;

/// The grid on which scales lie, so that what is computed with is what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleGrid {
    /// Multiples that f16 holds; every f32 or f16 model.
    F16,
    /// Multiples that both bf16 and f16 hold; bf16 models, whose operators take bf16 scales.
    Bf16,
    /// Any normal f32: where others do not reach.
    F32,
}

/// What a matrix is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// What its weights become.
    pub code: Code,
    /// Where its scales lie.
    pub grid: ScaleGrid,
}

impl Target {
    /// What a matrix becomes whose scales 16 bits do not hold: the same with scales of 32 bits, and without a codebook.
    pub fn with_wide_scales(self) -> Target {
        let code = match self.code {
            Code::Codebook4 => Code::Int8,
            code => code,
        };
        Target {
            code,
            grid: ScaleGrid::F32,
        }
    }
}

/// Quantizes a matrix, with wide scales if others do not reach all its weights, and says which it was.
///
/// # Errors
/// As [`Quantizer::quantize`].
pub fn quantize_in_reach(
    quantizer: &dyn Quantizer,
    weights: &dyn FloatRows,
    statistics: Option<&Statistics>,
    target: Target,
) -> Result<(QuantizedRows, Target), QuantizeError> {
    match quantizer.quantize(weights, statistics, target) {
        Err(QuantizeError::TooSmall { .. } | QuantizeError::TooLarge { .. })
            if target.grid != ScaleGrid::F32 =>
        {
            let wide = target.with_wide_scales();
            Ok((quantizer.quantize(weights, statistics, wide)?, wide))
        }
        result => Ok((result?, target)),
    }
}

/// A quantized matrix: `value = integer * scale`, or `value = codebook[code] * scale`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QuantizedRows {
    /// Row-major, as many as the weights: integers, or places in the codebook.
    pub codes: Vec<i8>,
    /// Row-major, `columns.div_ceil(BLOCK)` for each row; on the scale grid, never NaN or infinite.
    pub scales: Vec<f32>,
    /// What the codes stand for, if not for themselves.
    pub codebook: Option<Codebook>,
}

impl QuantizedRows {
    /// Codes and scales of some rows.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn rows(&self, range: std::ops::Range<usize>, columns: usize) -> (&[i8], &[f32]) {
        let blocks = columns.div_ceil(BLOCK);
        (
            &self.codes[range.start * columns..range.end * columns],
            &self.scales[range.start * blocks..range.end * blocks],
        )
    }
}

/// How weights become integers. [`RoundToNearest`](super::rtn::RoundToNearest) is one.
///
/// A quantizer sees a whole matrix, of which it reads what rows it needs, and what is known of the rows that the matrix is
/// multiplied with. It may use the threads of rayon's current pool; what it answers must not depend on their number.
pub trait Quantizer: Sync {
    /// The method's name, for reports.
    fn name(&self) -> &'static str;

    /// The method and all its settings: what is done by two quantizers of the same description is the same.
    fn description(&self) -> String {
        self.name().to_owned()
    }

    /// What it wants to know of a matrix's input. Where nothing is wanted, no text is needed.
    fn wants(&self) -> Wanted {
        Wanted::default()
    }

    /// Quantizes all rows (output channels) of one matrix. `statistics` are what it [`wants`](Self::wants), or none where
    /// there was no calibration text.
    ///
    /// # Errors
    /// When a weight cannot be read, is not finite, or no scale on the grid reaches it.
    fn quantize(
        &self,
        weights: &dyn FloatRows,
        statistics: Option<&Statistics>,
        target: Target,
    ) -> Result<QuantizedRows, QuantizeError>;
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
    /// The weights of a block are so small that its scale would be zero.
    #[error(
        "weights {matrix:?}: row {row} holds a block of 32 weights of which the largest is {value:e}, too small for its \
         scale: all of them would become zero; keep this matrix in floats"
    )]
    TooSmall {
        /// The matrix.
        matrix: String,
        /// The row: the output channel.
        row: usize,
        /// The block's largest magnitude.
        value: f32,
    },
    /// Nothing would have changed.
    #[error("nothing can be quantized: {reason}")]
    NothingQuantized {
        /// Why.
        reason: String,
        /// There are floats that would be quantized if they were asked for: the export holds others quantized.
        can_be_asked_for: bool,
    },
    /// What computes what is not known, so a text tells nothing of it.
    #[error("a text tells nothing of it, since it does not lower; quantize it by rtn")]
    Lower(#[source] Box<LowerError>),
    /// The text did not get through the model.
    #[error("what its matrices read cannot be measured")]
    Calibrate(#[from] CalibrateError),
    /// Quantized weights could not be kept on disk.
    #[error("quantized weights cannot be written to a temporary file")]
    Spool(#[source] std::io::Error),
}
