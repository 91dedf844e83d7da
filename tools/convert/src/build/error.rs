//! Why no bundle was built.

use super::{Budget, WINDOW_TOKENS};
use crate::calibrate::CalibrateError;
use crate::evaluate::EvaluateError;
use crate::export::ExportError;
use crate::lora::MergeError;
use crate::lower::{LeftOver, LowerError};
use crate::onnx::OnnxError;
use crate::quantize::{QuantizeError, ShelfError};
use niwaki_bundle::write::WriteError;
use niwaki_kernels::LayoutError;
use std::path::PathBuf;

/// Why no bundle was built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The export folder is incomplete.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The ONNX file cannot be read.
    #[error("the ONNX model cannot be read")]
    Onnx(#[from] OnnxError),
    /// The graph does not lower.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// An adapter does not fit the model.
    #[error("the LoRA adapter cannot be merged")]
    Lora(#[from] MergeError),
    /// A matrix cannot be quantized.
    #[error("a weight cannot be quantized")]
    Quantize(#[from] QuantizeError),
    /// Calibration did not get through the model.
    #[error("the model cannot be calibrated")]
    Calibrate(#[from] CalibrateError),
    /// Quantized matrices could not be kept on disk meanwhile.
    #[error("quantized matrices cannot be kept until the bundle is written")]
    Shelf(#[from] ShelfError),
    /// There was no place for files that live as long as the work.
    #[error("no temporary folder can be made")]
    Scratch(#[source] std::io::Error),
    /// What quantization costs could not be measured.
    #[error("what quantization costs cannot be measured")]
    Evaluate(#[from] EvaluateError),
    /// A bundle to measure could not be opened.
    #[error("a bundle to measure cannot be opened")]
    Measure(#[source] niwaki::OpenError),
    /// A bundle to measure does not run.
    #[error("a bundle to measure does not run")]
    Session(#[source] niwaki::SessionError),
    /// A bundle does not continue a text.
    #[error("what the model says cannot be told")]
    Continue(#[source] niwaki::GenerateError),
    /// No method was given.
    #[error("there is no method to quantize by")]
    NoQuantizer,
    /// Formats are to be chosen, and there is no text to measure on.
    #[error(
        "formats are chosen by what is measured on a fifth of the calibration text, and it has fewer than five windows of \
         {WINDOW_TOKENS} tokens; give a longer text"
    )]
    NothingHeldOut,
    /// The smallest form of the model is larger than it may be.
    #[error(
        "{budget} is not enough: with 4 bits for everything that can have them it takes {:.1} MB, which is {least_bits:.2} bits \
         for each weight",
        *least_bytes as f64 / 1e6
    )]
    BudgetTooSmall {
        /// What was asked for.
        budget: Budget,
        /// What it takes at least.
        least_bytes: u64,
        /// The same for each weight.
        least_bits: f64,
    },
    /// Quantization costs more than it may.
    #[error(
        "quantized, perplexity is {:.2} % above the float model's, and {:.2} % are allowed; {}",
        100.0 * found,
        100.0 * limit,
        meets(would)
    )]
    PerplexityIncrease {
        /// What is allowed, as a share.
        limit: f64,
        /// What was found.
        found: f64,
        /// The size of a bundle that would meet it, and what it was found to cost.
        would: Option<(u64, f64)>,
    },
    /// A matrix cannot be packed.
    #[error("matrix {name} cannot be packed")]
    Layout {
        /// The matrix.
        name: String,
        /// Why.
        #[source]
        source: LayoutError,
    },
    /// A weight is no number.
    #[error(
        "matrix {name} has a weight of {value} in row {row}: the export is damaged; export the model again, and if the weight is \
         there again, the model itself is broken"
    )]
    NotFinite {
        /// The matrix.
        name: String,
        /// The row.
        row: usize,
        /// The weight.
        value: f32,
    },
    /// A weight is too large for half precision.
    #[error(
        "matrix {name} has a weight of {value} in row {row}, which f16 cannot hold; choose int8, int4 or f32"
    )]
    TooLargeForHalf {
        /// The matrix.
        name: String,
        /// The row.
        row: usize,
        /// The weight.
        value: f32,
    },
    /// The bundle cannot be written.
    #[error("the bundle cannot be written")]
    Pack(#[from] WriteError),
    /// A source file cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What would meet a limit.
fn meets(would: &Option<(u64, f64)>) -> String {
    match would {
        Some((size_bytes, increase)) => format!(
            "--target-size {:.1}MB would meet it ({:+.2} %)",
            // Rounded up, so that it fits.
            (*size_bytes as f64 / 1e5).ceil() / 10.0,
            100.0 * increase
        ),
        None => {
            "not even int8 for what matters most would meet it; choose int8, f16 or a larger limit"
                .to_owned()
        }
    }
}

impl BuildError {
    /// The nodes that did not lower, when that is the reason.
    pub fn not_lowered(&self) -> Option<&[LeftOver]> {
        match self {
            BuildError::Lower(LowerError::NotLowered(left)) => Some(left),
            _ => None,
        }
    }
}
