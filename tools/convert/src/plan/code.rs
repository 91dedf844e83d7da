//! What weights become.

use serde::Serialize;

/// What a quantized weight is stored as; each block of 32 has a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Code {
    /// Integers from -8 to 7.
    Int4,
    /// 4-bit codes of 16 values, which are fitted to each matrix.
    Codebook4,
    /// Integers from -127 to 127.
    Int8,
}

impl Code {
    /// 4 or 8.
    pub fn bits(self) -> usize {
        match self {
            Self::Int4 | Self::Codebook4 => 4,
            Self::Int8 => 8,
        }
    }

    /// The name that people read.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int4 => "int4",
            Self::Codebook4 => "codebook4",
            Self::Int8 => "int8",
        }
    }
}
