//! Where each weight lies in the weights section and how it is stored.

use super::layout::WEIGHT_ALIGNMENT;
use niwaki_kernels::{
    ACTIVATION_BLOCK, Codebook, Element, LayoutError, MAX_REFINED, Matrix, MatrixFormat, ScaleType,
};
use serde::{Deserialize, Serialize};

/// Most weights a table may list; real models have thousands.
const MAX_WEIGHTS: usize = 1 << 18;
/// Most rows or columns of a matrix.
const MAX_SIDE: usize = 1 << 24;

/// The weight table section.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightTable {
    /// Packed matrices; a graph's `MatrixId` indexes this list.
    pub matrices: Vec<MatrixEntry>,
    /// Vectors of little-endian `f32`; a graph's `VectorId` indexes this list.
    pub vectors: Vec<VectorEntry>,
}

/// A packed matrix: one row per output channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatrixEntry {
    /// Name for people: the exported initializer's.
    pub name: String,
    /// Which nodes of the export its rows come from, where they are several: projections that were joined.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub origins: Vec<RowOrigin>,
    /// How one value is stored.
    pub element: ElementKind,
    /// Columns that share a scale; 0 for floats.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub block: usize,
    /// How scales are stored; absent for floats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<ScaleKind>,
    /// Whether blocks have zero points.
    #[serde(default, skip_serializing_if = "is_false")]
    pub zero_points: bool,
    /// What the codes 0 to 15 stand for, each -127 to 127; only with [`ElementKind::Codebook4`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codebook: Option<[i8; 16]>,
    /// How many of the first blocks of 32 columns of its inputs are quantized in two terms.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub refined: usize,
    /// Output channels.
    pub rows: usize,
    /// Input channels.
    pub cols: usize,
    /// First byte in the weights section; a multiple of [`WEIGHT_ALIGNMENT`].
    pub offset: u64,
    /// Bytes, exactly what the format takes for rows x cols.
    pub length: u64,
}

/// Where consecutive rows of a matrix come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowOrigin {
    /// The exported graph's node.
    pub node: String,
    /// How many rows.
    pub rows: usize,
}

/// A vector of `f32`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VectorEntry {
    /// Name for people: the exported initializer's.
    pub name: String,
    /// Number of values.
    pub len: usize,
    /// First byte in the weights section; a multiple of [`WEIGHT_ALIGNMENT`].
    pub offset: u64,
}

/// How one value of a matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ElementKind {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// Signed 8-bit integers with block scales.
    Int8,
    /// Signed 4-bit integers with block scales.
    Int4,
    /// 4-bit codes of the values in the matrix's codebook, with block scales.
    Codebook4,
}

/// How a block's scale is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleKind {
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl MatrixEntry {
    /// An entry for a matrix of `format`, without a codebook, for inputs of one term.
    pub fn new(
        name: String,
        format: MatrixFormat,
        rows: usize,
        cols: usize,
        offset: u64,
        length: u64,
    ) -> Self {
        let (element, quantized) = match format.element {
            Element::F32 => (ElementKind::F32, false),
            Element::F16 => (ElementKind::F16, false),
            Element::Int8 => (ElementKind::Int8, true),
            Element::Int4 => (ElementKind::Int4, true),
            Element::Codebook4 => (ElementKind::Codebook4, true),
        };
        let scale = match format.scale {
            ScaleType::F16 => ScaleKind::F16,
            ScaleType::F32 => ScaleKind::F32,
        };
        MatrixEntry {
            name,
            origins: Vec::new(),
            element,
            block: if quantized { format.block } else { 0 },
            scale: quantized.then_some(scale),
            zero_points: quantized && format.zero_points,
            codebook: None,
            refined: 0,
            rows,
            cols,
            offset,
            length,
        }
    }

    /// The kernels' name of the storage format; `None` when the fields do not describe one.
    pub fn format(&self) -> Option<MatrixFormat> {
        let float = |format| {
            (self.block == 0 && self.scale.is_none() && !self.zero_points).then_some(format)
        };
        let quantized = |element| {
            let scale = match self.scale? {
                ScaleKind::F16 => ScaleType::F16,
                ScaleKind::F32 => ScaleType::F32,
            };
            matches!(self.block, 16 | 32).then_some(MatrixFormat {
                element,
                block: self.block,
                scale,
                zero_points: self.zero_points,
            })
        };
        match self.element {
            ElementKind::F32 => float(MatrixFormat::F32),
            ElementKind::F16 => float(MatrixFormat::F16),
            ElementKind::Int8 => quantized(Element::Int8),
            ElementKind::Int4 => quantized(Element::Int4),
            ElementKind::Codebook4 => {
                quantized(Element::Codebook4).filter(|format| *format == MatrixFormat::CODEBOOK4)
            }
        }
    }

    /// The kernels' view of its bytes; `None` when the fields, or the length, do not describe a matrix.
    pub(crate) fn view<'a>(&self, bytes: &'a [u8]) -> Option<Matrix<'a>> {
        let format = self.format()?;
        match self.checked_codebook().ok()? {
            Some(codebook) => Matrix::with_codebook(codebook, self.rows, self.cols, bytes),
            None => Matrix::new(format, self.rows, self.cols, bytes),
        }
        .and_then(|matrix| matrix.with_refined(self.refined))
        .ok()
    }

    /// The codebook, there if and only if the elements are codes.
    fn checked_codebook(&self) -> Result<Option<Codebook>, LayoutError> {
        let (given, expected) = (
            self.codebook.is_some(),
            self.element == ElementKind::Codebook4,
        );
        if given != expected {
            return Err(LayoutError::Codebook { given, expected });
        }
        self.codebook.map(Codebook::new).transpose()
    }
}

impl WeightTable {
    /// Checks that every weight describes a known format and lies inside a weights section of
    /// `section_bytes` bytes.
    ///
    /// # Errors
    /// A sentence that names the weight.
    pub fn check(&self, section_bytes: u64) -> Result<(), String> {
        if self.matrices.len() > MAX_WEIGHTS || self.vectors.len() > MAX_WEIGHTS {
            return Err(format!("more than {MAX_WEIGHTS} weights"));
        }
        for (index, matrix) in self.matrices.iter().enumerate() {
            let fail =
                |problem: String| Err(format!("matrix {index} ({}): {problem}", matrix.name));
            let Some(format) = matrix.format() else {
                return fail(
                    "element, block, scale and zero points do not form a known format".into(),
                );
            };
            if let Err(error) = matrix.checked_codebook() {
                return fail(error.to_string());
            }
            let (rows, cols) = (matrix.rows, matrix.cols);
            if rows == 0 || cols == 0 || rows > MAX_SIDE || cols > MAX_SIDE {
                return fail(format!("{rows} x {cols} is not a possible size"));
            }
            let most_refined = match format.is_quantized() {
                true => MAX_REFINED.min(cols / ACTIVATION_BLOCK),
                false => 0,
            };
            if matrix.refined > most_refined {
                return fail(format!(
                    "{} blocks of inputs in two terms, where there can be {most_refined}",
                    matrix.refined
                ));
            }
            let of_origins = matrix
                .origins
                .iter()
                .try_fold(0usize, |sum, origin| sum.checked_add(origin.rows));
            if !matrix.origins.is_empty() && of_origins != Some(rows) {
                return fail(format!("its origins do not have {rows} rows together"));
            }
            match format.size_bytes(rows, cols) {
                Some(size) if size as u64 == matrix.length => {}
                Some(size) => {
                    return fail(format!(
                        "{rows} x {cols} takes {size} bytes, the table says {}",
                        matrix.length
                    ));
                }
                None => return fail(format!("{rows} x {cols} is too large")),
            }
            if let Some(problem) = outside(matrix.offset, matrix.length, section_bytes) {
                return fail(problem);
            }
        }
        for (index, vector) in self.vectors.iter().enumerate() {
            let fail =
                |problem: String| Err(format!("vector {index} ({}): {problem}", vector.name));
            let Some(length) = (vector.len as u64).checked_mul(4) else {
                return fail(format!("{} values are too many", vector.len));
            };
            if let Some(problem) = outside(vector.offset, length, section_bytes) {
                return fail(problem);
            }
        }
        Ok(())
    }
}

fn outside(offset: u64, length: u64, section_bytes: u64) -> Option<String> {
    if !offset.is_multiple_of(WEIGHT_ALIGNMENT) {
        return Some(format!(
            "its offset {offset} is not a multiple of {WEIGHT_ALIGNMENT}"
        ));
    }
    match offset.checked_add(length) {
        Some(end) if end <= section_bytes => None,
        _ => Some(format!(
            "{length} bytes from {offset} do not lie in the weights section of {section_bytes} bytes"
        )),
    }
}

fn is_zero(value: &usize) -> bool {
    *value == 0
}

fn is_false(value: &bool) -> bool {
    !*value
}
