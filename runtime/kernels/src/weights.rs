//! Integer weights as types: no branch is left in a loop for how they are stored.

use crate::codebook::Codebook;
use crate::format::{Element, MatrixFormat};

/// How the weights of a quantized matrix are stored.
pub(crate) trait Weights: Copy + Send + Sync {
    /// The usual format of these weights: binary16 scales, blocks of 32, no zero points.
    const FORMAT: MatrixFormat;
    /// What one weight is stored as.
    const ELEMENT: Element = Self::FORMAT.element;
    /// Bytes of a tile in the usual format.
    const TILE_BYTES: usize = Self::FORMAT.tile_bytes();

    /// What codes of four bits stand for.
    #[inline(always)]
    fn codebook(self) -> Codebook {
        Codebook::LINEAR
    }
}

/// Weights of -8 to 7, stored as `q + 8`.
#[derive(Clone, Copy)]
pub(crate) struct Int4;

/// Weights of -128 to 127.
#[derive(Clone, Copy)]
pub(crate) struct Int8;

/// Codes of values.
#[derive(Clone, Copy)]
pub(crate) struct Codebook4(pub(crate) Codebook);

impl Weights for Int4 {
    const FORMAT: MatrixFormat = MatrixFormat::INT4;
}

impl Weights for Int8 {
    const FORMAT: MatrixFormat = MatrixFormat::INT8;
}

impl Weights for Codebook4 {
    const FORMAT: MatrixFormat = MatrixFormat::CODEBOOK4;

    #[inline(always)]
    fn codebook(self) -> Codebook {
        self.0
    }
}
