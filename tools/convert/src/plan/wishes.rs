//! What is asked for.

use super::Code;
use serde::Serialize;

/// How matrices are stored that the export stores as floats. Matrices that the export has already quantized are always
/// kept to the last bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// 4-bit integers in blocks of 32.
    Int4,
    /// 4-bit codes of 16 values in blocks of 32; the values are fitted to each matrix.
    Codebook4,
    /// 8-bit integers in blocks of 32.
    Int8,
    /// Half precision.
    F16,
    /// Single precision.
    F32,
    /// As the export stores them.
    AsStored,
    /// What the export computes, for comparisons with other runtimes: quantized weights as the floats they stand for,
    /// activations rounded where the export rounds them. Larger and slower than any other choice.
    AsExported,
}

impl Weights {
    /// The name that the command line and the manifest use.
    pub fn name(self) -> &'static str {
        match self {
            Weights::Int4 => "int4",
            Weights::Codebook4 => "codebook4",
            Weights::Int8 => "int8",
            Weights::F16 => "f16",
            Weights::F32 => "f32",
            Weights::AsStored => "as-stored",
            Weights::AsExported => "as-exported",
        }
    }

    /// What weights become then, if they are quantized.
    pub fn code(self) -> Option<Code> {
        match self {
            Weights::Int4 => Some(Code::Int4),
            Weights::Codebook4 => Some(Code::Codebook4),
            Weights::Int8 => Some(Code::Int8),
            Weights::F16 | Weights::F32 | Weights::AsStored | Weights::AsExported => None,
        }
    }
}

/// What is asked for of a model's matrices.
///
/// Where nothing is said, an export of floats becomes what is `usual`. An export that holds quantized matrices was quantized by
/// somebody who chose to leave the others in floats; these stay as they are unless they are asked for, and its embedding
/// only by `embedding`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// How float matrices are stored.
    pub weights: Option<Weights>,
    /// How a float embedding is stored, if not as `weights` says.
    pub embedding: Option<Weights>,
    /// What an export of floats becomes where nothing is said.
    pub usual: Usual,
}

/// What floats become where nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Usual {
    /// What standard ONNX operators can hold.
    #[default]
    Int4,
    /// What costs least for 4 bits in a bundle.
    Codebook4,
}

impl Usual {
    /// The weights that it means.
    pub fn weights(self) -> Weights {
        match self {
            Usual::Int4 => Weights::Int4,
            Usual::Codebook4 => Weights::Codebook4,
        }
    }
}

impl From<Weights> for Wishes {
    fn from(weights: Weights) -> Wishes {
        Wishes {
            weights: Some(weights),
            ..Wishes::default()
        }
    }
}
