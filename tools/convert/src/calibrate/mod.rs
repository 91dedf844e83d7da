//! What a text does inside a model: one pass over it, layer by layer, that feeds observers.
//!
//! - `pieces`: the graph, cut where one value carries everything on, which is the residual stream between two layers
//! - `piece_bundle`: a piece as a small bundle with float weights, which the engine maps and runs
//! - `pass`: the text through one piece after the other; `side_by_side`: and through what becomes of the model beside it
//! - `observer`: what is kept of the rows that a matrix is multiplied with; `square_sums`, `gram`, `ranges` and `samples`
//!   are the ones there are, `statistics` is any of them together
//! - `origin`: the ONNX nodes that a matrix comes from
//! - `own_text`: a text that the model writes itself
//!
//! Memory holds the residual stream of the text once (4 bytes for each token and column), the results of about
//! [`RUN_TOKENS`] tokens in one piece, and what the observers of one piece keep; the weights of the piece are mapped.

mod gram;
mod observer;
mod origin;
mod own_text;
mod pass;
mod piece_bundle;
mod pieces;
mod ranges;
mod samples;
mod side_by_side;
mod square_sums;
mod statistics;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use gram::Gram;
pub use observer::{MatrixInput, Observer};
pub(crate) use origin::Origin;
pub use own_text::{OwnText, own_text};
pub use pass::{Follow, Pass, RUN_TOKENS, Replacements};
pub use ranges::Ranges;
pub use samples::Samples;
pub use side_by_side::{SideBySide, WantedRows, stream_similarities};
pub use square_sums::SquareSums;
pub use statistics::{Statistics, Wanted};

use crate::onnx::OnnxError;
use niwaki_bundle::write::WriteError;
use std::path::Path;

/// A text to calibrate on, and how.
#[derive(Clone, Copy, Debug)]
pub struct Calibration<'a> {
    /// Token sequences that do not see each other.
    pub sequences: &'a [Vec<u32>],
    /// A folder for one piece's bundle at a time.
    pub scratch: &'a Path,
    /// Threads that compute; 0 takes the number of fast cores. Results do not depend on it.
    pub threads: usize,
}

impl Calibration<'_> {
    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(Vec::len).sum()
    }
}

/// Why a text did not get through a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrateError {
    /// Nothing to measure with.
    #[error("the calibration text has no tokens; give a longer one")]
    NoTokens,
    /// The graph wants something that a text does not have.
    #[error("the model takes {input:?} for every token, and a calibration text has only token ids")]
    Input {
        /// The graph's input.
        input: String,
    },
    /// The text's values do not fit into memory.
    #[error("there is no memory for the values of {tokens} calibration tokens; use fewer")]
    OutOfMemory {
        /// Tokens of the text.
        tokens: usize,
    },
    /// A value is NaN or infinite.
    #[error(
        "on the calibration text, what the product {node:?} reads becomes infinite or is no number; the export is broken"
    )]
    NotFinite {
        /// The node of the graph.
        node: String,
    },
    /// A weight could not be read.
    #[error("a weight cannot be read for calibration")]
    Read(#[from] OnnxError),
    /// There are no kernels to compute statistics with.
    #[error("nothing can be computed on this CPU")]
    Kernels(#[from] niwaki_kernels::UnsupportedIsa),
    /// The threads could not be started.
    #[error("no threads could be started to calibrate with")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// A piece's bundle could not be written.
    #[error("a layer cannot be written for calibration")]
    Write(#[from] WriteError),
    /// A piece's bundle could not be opened.
    #[error("a layer cannot be opened for calibration")]
    Open(#[from] niwaki::OpenError),
    /// A piece would not run.
    #[error("a layer does not run on the calibration text")]
    Run(#[from] niwaki::BatchError),
    /// A model that is to write a text of its own gives no logits.
    #[error("the model predicts no tokens, so it cannot write a calibration text; give one")]
    WritesNothing,
    /// No token could be chosen.
    #[error("the model cannot write a calibration text; give one")]
    Choose(#[source] niwaki::SampleError),
    /// A sequence could not be begun.
    #[error("a layer does not run on the calibration text")]
    Session(#[from] niwaki::SessionError),
}
