//! How a weight matrix lies in memory, and views of packed bytes that were checked against it.

use crate::codebook::Codebook;
use half::f16;
use std::ops::Range;
use thiserror::Error;

/// Rows of a matrix (output channels) that are stored together, and lanes of every kernel.
pub const ROWS: usize = 16;

/// Activations are quantized in blocks of this many columns, whatever the weight's block is.
pub const ACTIVATION_BLOCK: usize = 32;

/// Blocks of activations that have a second term at most: as many as kernels unpack weights for at once.
pub const MAX_REFINED: usize = 32;

/// What one weight is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// Signed 8-bit integer with a scale per block.
    Int8,
    /// Signed 4-bit integer, -8 to 7, with a scale per block.
    Int4,
    /// 4-bit code of a value in the matrix's [`Codebook`], with a scale per block.
    Codebook4,
}

/// What the scale of a block is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleType {
    /// IEEE binary16.
    F16,
    /// IEEE binary32, for imports whose scales binary16 does not hold exactly.
    F32,
}

/// The storage format of a matrix. Float elements have no blocks, scales or zero points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixFormat {
    /// Element type.
    pub element: Element,
    /// Columns that share a scale: 32 or 16. Ignored for float elements.
    pub block: usize,
    /// Type of the scales. Ignored for float elements.
    pub scale: ScaleType,
    /// Whether each block has a zero point. Ignored for float elements.
    pub zero_points: bool,
}

/// Why bytes or arguments do not describe a matrix.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// Blocks have 16 or 32 columns.
    #[error("block size {0} is not supported: use 16 or 32")]
    Block(usize),
    /// The number of bytes does not fit into `usize`.
    #[error("a matrix of {rows} x {cols} is too large for this machine's address space")]
    TooLarge {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
    },
    /// A matrix without rows or columns: nothing bounds its other dimension.
    #[error("a matrix of {rows} x {cols} has no elements")]
    Empty {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
    },
    /// Packed bytes of the wrong length.
    #[error("a {rows} x {cols} matrix takes {expected} bytes in this format, not {actual}")]
    Length {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// Bytes the format needs.
        expected: usize,
        /// Bytes that were given.
        actual: usize,
    },
    /// An argument of a packing function has the wrong number of elements.
    #[error("{what}: expected {expected} elements, got {actual}")]
    Count {
        /// Which argument.
        what: &'static str,
        /// Elements it must have.
        expected: usize,
        /// Elements it has.
        actual: usize,
    },
    /// An element, scale or zero point that the format cannot hold exactly.
    #[error("{what} {value} at index {index} cannot be stored in this format")]
    Value {
        /// Which argument.
        what: &'static str,
        /// The value, as text.
        value: String,
        /// Where it is.
        index: usize,
    },
    /// Zero points were given for a symmetric format, or are missing.
    #[error("zero points given: {given}, zero points in the format: {expected}")]
    ZeroPoints {
        /// Whether the caller gave zero points.
        given: bool,
        /// Whether the format has them.
        expected: bool,
    },
    /// More blocks of activations in two terms than there can be.
    #[error("{refined} blocks of activations in two terms: this matrix can have at most {most}")]
    Refined {
        /// Blocks that were asked for.
        refined: usize,
        /// The most that there can be.
        most: usize,
    },
    /// A codebook was given for a format without one, or is missing.
    #[error("codebook given: {given}, codebook in the format: {expected}")]
    Codebook {
        /// Whether the caller gave a codebook.
        given: bool,
        /// Whether the format has one.
        expected: bool,
    },
    /// Codes with other blocks, other scales, or zero points.
    #[error("a matrix with a codebook has blocks of 32, f16 scales and no zero points")]
    CodebookFormat,
    /// A float format where an integer one is needed, or the reverse.
    #[error("element type {0:?} does not fit this packing function")]
    Element(Element),
}

impl MatrixFormat {
    /// Plain binary32.
    pub const F32: Self = Self::float(Element::F32);
    /// Plain binary16.
    pub const F16: Self = Self::float(Element::F16);
    /// Symmetric 8-bit, blocks of 32, binary16 scales.
    pub const INT8: Self = Self::symmetric(Element::Int8);
    /// Symmetric 4-bit, blocks of 32, binary16 scales.
    pub const INT4: Self = Self::symmetric(Element::Int4);
    /// 4-bit codes of values in a codebook, blocks of 32, binary16 scales of either sign: the only format with a codebook.
    pub const CODEBOOK4: Self = Self::symmetric(Element::Codebook4);

    const fn float(element: Element) -> Self {
        Self {
            element,
            block: 32,
            scale: ScaleType::F32,
            zero_points: false,
        }
    }

    const fn symmetric(element: Element) -> Self {
        Self {
            element,
            block: 32,
            scale: ScaleType::F16,
            zero_points: false,
        }
    }

    /// Whether the elements are integers with scales.
    pub const fn is_quantized(&self) -> bool {
        !matches!(self.element, Element::F32 | Element::F16)
    }

    /// Bytes of a packed matrix; `None` if that number overflows or there is no such format.
    pub fn size_bytes(&self, rows: usize, cols: usize) -> Option<usize> {
        rows.div_ceil(ROWS).checked_mul(self.group_bytes(cols)?)
    }

    /// Bytes of one group of 16 rows.
    pub(crate) fn group_bytes(&self, cols: usize) -> Option<usize> {
        match self.element {
            Element::F32 => cols.checked_mul(ROWS * 4),
            Element::F16 => cols.checked_mul(ROWS * 2),
            Element::Int8 | Element::Int4 | Element::Codebook4 => {
                self.check_quantized().ok()?;
                cols.div_ceil(self.block).checked_mul(self.tile_bytes())
            }
        }
    }

    /// Bytes of one tile: 16 rows times one block of an integer format.
    pub(crate) const fn tile_bytes(&self) -> usize {
        self.quants_offset() + self.quants_bytes()
    }

    /// Bytes of the integers of one tile.
    pub(crate) const fn quants_bytes(&self) -> usize {
        match self.element {
            Element::Int4 | Element::Codebook4 => ROWS * self.block / 2,
            _ => ROWS * self.block,
        }
    }

    /// Bytes of the scales, the first thing in a tile.
    pub(crate) const fn scales_bytes(&self) -> usize {
        match self.scale {
            ScaleType::F16 => ROWS * 2,
            ScaleType::F32 => ROWS * 4,
        }
    }

    /// Where the integers start in a tile: after the scales and the zero points.
    pub(crate) const fn quants_offset(&self) -> usize {
        self.scales_bytes() + if self.zero_points { ROWS } else { 0 }
    }

    pub(crate) fn checked_size(&self, rows: usize, cols: usize) -> Result<usize, LayoutError> {
        if self.is_quantized() {
            self.check_quantized()?;
        }
        self.size_bytes(rows, cols)
            .ok_or(LayoutError::TooLarge { rows, cols })
    }

    /// Whether there is such a format of integers.
    fn check_quantized(&self) -> Result<(), LayoutError> {
        if self.element == Element::Codebook4 && *self != Self::CODEBOOK4 {
            return Err(LayoutError::CodebookFormat);
        }
        match self.block {
            16 | 32 => Ok(()),
            block => Err(LayoutError::Block(block)),
        }
    }
}

/// A packed matrix: `rows` output channels by `cols` inputs. Borrows its bytes, copies nothing.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    format: MatrixFormat,
    rows: usize,
    cols: usize,
    codebook: Option<Codebook>,
    refined: usize,
    bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// Views `bytes` as a packed matrix without a codebook. They may start at any address.
    ///
    /// # Errors
    /// If the format is not supported or has a codebook, the matrix has no elements, or `bytes` does not have
    /// exactly the length that the format prescribes.
    pub fn new(
        format: MatrixFormat,
        rows: usize,
        cols: usize,
        bytes: &'a [u8],
    ) -> Result<Self, LayoutError> {
        Self::checked(format, None, rows, cols, bytes)
    }

    /// Views `bytes` as a packed [`MatrixFormat::CODEBOOK4`] matrix. They may start at any address.
    ///
    /// # Errors
    /// If the matrix has no elements, or `bytes` does not have exactly the length that the format prescribes.
    pub fn with_codebook(
        codebook: Codebook,
        rows: usize,
        cols: usize,
        bytes: &'a [u8],
    ) -> Result<Self, LayoutError> {
        Self::checked(MatrixFormat::CODEBOOK4, Some(codebook), rows, cols, bytes)
    }

    fn checked(
        format: MatrixFormat,
        codebook: Option<Codebook>,
        rows: usize,
        cols: usize,
        bytes: &'a [u8],
    ) -> Result<Self, LayoutError> {
        let (given, expected) = (codebook.is_some(), format.element == Element::Codebook4);
        if given != expected {
            return Err(LayoutError::Codebook { given, expected });
        }
        if rows == 0 || cols == 0 {
            return Err(LayoutError::Empty { rows, cols });
        }
        let expected = format.checked_size(rows, cols)?;
        if bytes.len() != expected {
            return Err(LayoutError::Length {
                rows,
                cols,
                expected,
                actual: bytes.len(),
            });
        }
        Ok(Self {
            format,
            rows,
            cols,
            codebook,
            refined: 0,
            bytes,
        })
    }

    /// The same matrix, whose inputs have second terms in their first `refined` blocks of 32 columns.
    ///
    /// # Errors
    /// If it is a matrix of floats, has fewer whole blocks, or `refined` is above [`MAX_REFINED`].
    pub fn with_refined(self, refined: usize) -> Result<Self, LayoutError> {
        let most = match self.format.is_quantized() {
            true => MAX_REFINED.min(self.cols / ACTIVATION_BLOCK),
            false => 0,
        };
        match refined <= most {
            true => Ok(Self { refined, ..self }),
            false => Err(LayoutError::Refined { refined, most }),
        }
    }

    /// How many of the first blocks of 32 columns of its inputs are quantized in two terms.
    pub fn refined(&self) -> usize {
        self.refined
    }

    /// Storage format.
    pub fn format(&self) -> MatrixFormat {
        self.format
    }

    /// What its codes stand for, if the format has a codebook.
    pub fn codebook(&self) -> Option<Codebook> {
        self.codebook
    }

    /// What codes of four bits stand for: the codebook, or the integers of int4.
    pub(crate) fn code_values(&self) -> Codebook {
        self.codebook.unwrap_or(Codebook::LINEAR)
    }

    /// Output channels.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs of each output channel.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The packed bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether every float that it holds is finite: its values, or its scales. Reads those alone, none of the integers.
    pub fn is_finite(&self) -> bool {
        let (tile_bytes, floats_bytes, wide) = match self.format.is_quantized() {
            true => (
                self.format.tile_bytes(),
                self.format.scales_bytes(),
                self.format.scale == ScaleType::F32,
            ),
            false => (ROWS * 4, ROWS * 4, self.format.element == Element::F32),
        };
        // The largest magnitude of a tile, without a branch.
        let is_finite = |floats: &[u8]| match wide {
            true => {
                let floats = floats.as_chunks::<4>().0.iter();
                let magnitudes = floats.map(|float| u32::from_le_bytes(*float) & 0x7fff_ffff);
                magnitudes.fold(0, u32::max) < 0x7f80_0000
            }
            false => {
                let floats = floats.as_chunks::<2>().0.iter();
                let magnitudes = floats.map(|float| u16::from_le_bytes(*float) & 0x7fff);
                magnitudes.fold(0, u16::max) < 0x7c00
            }
        };
        let mut tiles = self.bytes.chunks(tile_bytes);
        tiles.all(|tile| is_finite(&tile[..floats_bytes.min(tile.len())]))
    }

    /// Number of groups of 16 rows.
    pub(crate) fn groups(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// Packed bytes of one group of 16 rows.
    #[inline]
    pub(crate) fn group(&self, index: usize) -> &'a [u8] {
        // The length was checked by `new`, so the division is exact and `groups() > index >= 0`.
        let group_bytes = self.bytes.len() / self.groups();
        &self.bytes[index * group_bytes..][..group_bytes]
    }

    /// Packed bytes of consecutive groups.
    #[inline]
    pub(crate) fn groups_bytes(&self, groups: Range<usize>) -> &'a [u8] {
        let group_bytes = self.bytes.len() / self.groups();
        &self.bytes[groups.start * group_bytes..groups.end * group_bytes]
    }

    /// Writes row `row`, as f32, to `out`: an embedding's row, or a dequantized weight row.
    ///
    /// # Panics
    /// If `row` is not below [`rows`](Self::rows) or `out` is not [`cols`](Self::cols) long.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(
            row < self.rows,
            "row {row} of a matrix of {} rows",
            self.rows
        );
        assert_eq!(out.len(), self.cols, "length of the row");
        let lane = row % ROWS;
        let group = self.group(row / ROWS);
        match self.format.element {
            Element::F32 => {
                for (value, column) in out.iter_mut().zip(group.as_chunks::<4>().0.chunks(ROWS)) {
                    *value = f32::from_le_bytes(column[lane]);
                }
            }
            Element::F16 => {
                for (value, column) in out.iter_mut().zip(group.as_chunks::<2>().0.chunks(ROWS)) {
                    *value = f16::from_le_bytes(column[lane]).to_f32();
                }
            }
            Element::Int8 | Element::Int4 | Element::Codebook4 => {
                let codebook = self.code_values();
                let tiles = group.chunks(self.format.tile_bytes());
                for (block, tile) in out.chunks_mut(self.format.block).zip(tiles) {
                    let tile = Tile {
                        format: &self.format,
                        codebook,
                        bytes: tile,
                    };
                    let (scale, zero_point) = (tile.scale(lane), tile.zero_point(lane));
                    for (k, value) in block.iter_mut().enumerate() {
                        *value = (tile.quant(lane, k) - zero_point) as f32 * scale;
                    }
                }
            }
        }
    }
}

/// 16 rows times one block of an integer matrix.
struct Tile<'a> {
    format: &'a MatrixFormat,
    codebook: Codebook,
    bytes: &'a [u8],
}

impl Tile<'_> {
    fn scale(&self, row: usize) -> f32 {
        let bytes = &self.bytes[..self.format.scales_bytes()];
        match self.format.scale {
            ScaleType::F16 => f16::from_le_bytes(bytes.as_chunks::<2>().0[row]).to_f32(),
            ScaleType::F32 => f32::from_le_bytes(bytes.as_chunks::<4>().0[row]),
        }
    }

    fn zero_point(&self, row: usize) -> i32 {
        if self.format.zero_points {
            i32::from(self.bytes[self.format.scales_bytes() + row] as i8)
        } else {
            0
        }
    }

    fn quant(&self, row: usize, k: usize) -> i32 {
        let position = quant_position(self.format.element, row, k);
        let byte = self.bytes[self.format.quants_offset() + position.byte];
        match self.format.element {
            Element::Int4 | Element::Codebook4 => {
                i32::from(self.codebook.look_up(byte)[usize::from(position.high)])
            }
            _ => i32::from(byte as i8),
        }
    }
}

/// Where the integer of a row and column is, counted from the first integer of the tile.
pub(crate) struct QuantPosition {
    pub(crate) byte: usize,
    /// The high half of the byte (4-bit elements only).
    pub(crate) high: bool,
}

/// The order of integers in a tile: chunks of 64 bytes, 4 bytes per row.
pub(crate) fn quant_position(element: Element, row: usize, k: usize) -> QuantPosition {
    match element {
        Element::Int4 | Element::Codebook4 => QuantPosition {
            byte: k / 8 * 64 + row * 4 + k % 4,
            high: k % 8 >= 4,
        },
        _ => QuantPosition {
            byte: k / 4 * 64 + row * 4 + k % 4,
            high: false,
        },
    }
}
