//! The 16 values that 4-bit codes stand for.

use crate::format::LayoutError;

/// The 16 values that the 4-bit codes of a matrix stand for, each -127 to 127.
///
/// They may be in any order, and several may be equal. -128 is left out, so that a codebook turned around
/// (every value with the other sign, and every scale with the other sign) is one, too.
///
/// ```
/// use niwaki_kernels::{Codebook, Matrix, MatrixFormat, pack_int};
///
/// let codebook = Codebook::new([-127, -96, -75, -57, -41, -28, -16, -6, 1, 10, 20, 31, 44, 59, 80, 114])?;
/// let bytes = pack_int(MatrixFormat::CODEBOOK4, 1, 3, &[0, 8, 15], &[-0.5], None)?;
/// let mut row = [0.0; 3];
/// Matrix::with_codebook(codebook, 1, 3, &bytes)?.read_row(0, &mut row);
/// assert_eq!(row, [63.5, -0.5, -57.0]);
/// # Ok::<(), niwaki_kernels::LayoutError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Codebook([i8; 16]);

impl Codebook {
    /// What the codes of int4 weights stand for.
    pub const LINEAR: Self = Self([-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7]);

    /// The codebook of these values: code `i` stands for `values[i]`.
    ///
    /// # Errors
    /// [`LayoutError::Value`] if one of them is -128.
    pub fn new(values: [i8; 16]) -> Result<Self, LayoutError> {
        match values.iter().position(|value| *value == i8::MIN) {
            None => Ok(Self(values)),
            Some(index) => Err(LayoutError::Value {
                what: "codebook value",
                value: i8::MIN.to_string(),
                index,
            }),
        }
    }

    /// The values, by their codes.
    pub fn values(&self) -> &[i8; 16] {
        &self.0
    }

    /// What the lower and the upper four bits of a byte stand for.
    pub(crate) fn look_up(&self, byte: u8) -> [i8; 2] {
        [byte & 15, byte >> 4].map(|code| self.0[usize::from(code)])
    }
}
