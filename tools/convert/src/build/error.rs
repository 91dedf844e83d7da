//! Why no bundle was built.

use crate::calibrate::CalibrateError;
use crate::export::ExportError;
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
    /// A matrix cannot be packed.
    #[error("matrix {name} cannot be packed")]
    Layout {
        /// The matrix.
        name: String,
        /// Why.
        #[source]
        source: LayoutError,
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

impl BuildError {
    /// The nodes that did not lower, when that is the reason.
    pub fn not_lowered(&self) -> Option<&[LeftOver]> {
        match self {
            BuildError::Lower(LowerError::NotLowered(left)) => Some(left),
            _ => None,
        }
    }
}
