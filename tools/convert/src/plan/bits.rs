//! Widths of integers.

use serde::Serialize;

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

    /// The name that people read.
    pub fn name(self) -> &'static str {
        match self {
            Self::Four => "int4",
            Self::Eight => "int8",
        }
    }
}
