//! Typed views of tensors: the element type, the dimensions and the little-endian bytes.

use std::{borrow::Cow, ops::Range};

use bytes::Bytes;
use half::{bf16, f16};
use tract_onnx::prelude::{DatumType, Tensor};

use super::{
    OnnxError,
    proto::{TensorProto, tensor_proto::DataType},
};

/// A tensor's elements where they lie: a slice of the model's file or of an external data file.
#[derive(Clone, Debug)]
pub struct TensorView {
    /// The element type; never a string, a complex number or undefined.
    pub data_type: DataType,
    /// The dimensions, outermost first; empty for a scalar.
    pub dims: Vec<usize>,
    /// The elements, row-major and little-endian. Types of 4 and 2 bits are packed, the first element in the low bits.
    pub data: Bytes,
    name: String,
    elements: usize,
}

/// The bits that an element takes, or `None` for types that have no fixed size or no meaning here.
pub fn element_bits(data_type: DataType) -> Option<usize> {
    use DataType::*;
    Some(match data_type {
        Undefined | String | Complex64 | Complex128 | Float6e2m3 | Float6e3m2 => return None,
        Int2 | Uint2 => 2,
        Int4 | Uint4 | Float4e2m1 => 4,
        Bool | Int8 | Uint8 | Float8e4m3fn | Float8e4m3fnuz | Float8e5m2 | Float8e5m2fnuz
        | Float8e8m0 => 8,
        Int16 | Uint16 | Float16 | Bfloat16 => 16,
        Int32 | Uint32 | Float => 32,
        Int64 | Uint64 | Double => 64,
    })
}

/// The element type, the dimensions, the number of elements and of bytes that a tensor declares.
pub(super) struct Declared {
    pub(super) data_type: DataType,
    pub(super) dims: Vec<usize>,
    pub(super) elements: usize,
    pub(super) size_bytes: usize,
}

impl Declared {
    pub(super) fn of(tensor: &TensorProto) -> Result<Self, OnnxError> {
        let name = tensor.name();
        let code = tensor.data_type.unwrap_or(0);
        let data_type = DataType::try_from(code).map_err(|_| {
            OnnxError::tensor(
                name,
                format!("element type {code} is not in the ONNX standard"),
            )
        })?;
        let bits = element_bits(data_type).ok_or_else(|| {
            OnnxError::tensor(
                name,
                format!(
                    "elements of type {} are not supported",
                    data_type.as_str_name()
                ),
            )
        })?;
        let overflow =
            || OnnxError::tensor(name, format!("dimensions {:?} are impossible", tensor.dims));
        let dims = tensor
            .dims
            .iter()
            .map(|&dim| usize::try_from(dim))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| overflow())?;
        let elements = dims
            .iter()
            .try_fold(1usize, |product, &dim| product.checked_mul(dim))
            .ok_or_else(overflow)?;
        let size_bytes = elements.checked_mul(bits).ok_or_else(overflow)?.div_ceil(8);
        Ok(Self {
            data_type,
            dims,
            elements,
            size_bytes,
        })
    }
}

impl TensorView {
    /// A view whose bytes must be exactly as many as type and dimensions say.
    pub(super) fn new(name: &str, declared: Declared, data: Bytes) -> Result<Self, OnnxError> {
        let Declared {
            data_type,
            dims,
            elements,
            size_bytes,
        } = declared;
        if data.len() != size_bytes {
            return Err(OnnxError::tensor(
                name,
                format!(
                    "it has {} bytes, but {dims:?} of {} take {size_bytes}",
                    data.len(),
                    data_type.as_str_name()
                ),
            ));
        }
        Ok(Self {
            data_type,
            dims,
            data,
            name: name.to_owned(),
            elements,
        })
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// The tensor's name in the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All elements as f32. f16 and bf16 are widened exactly.
    ///
    /// # Errors
    /// For element types other than FLOAT, FLOAT16 and BFLOAT16.
    pub fn to_f32(&self) -> Result<Vec<f32>, OnnxError> {
        let mut values = vec![0.0; self.elements];
        self.read_f32(0..self.elements, &mut values)?;
        Ok(values)
    }

    /// The elements `range` as f32, so that a large tensor is read piece by piece.
    ///
    /// # Errors
    /// For element types other than FLOAT, FLOAT16 and BFLOAT16, for a range outside the tensor, and when `out` is not as
    /// long as the range.
    pub fn read_f32(&self, range: Range<usize>, out: &mut [f32]) -> Result<(), OnnxError> {
        if range.start > range.end || range.end > self.elements || range.len() != out.len() {
            return Err(self.error(format!(
                "elements {range:?} do not lie in its {} elements",
                self.elements
            )));
        }
        let slice = |width: usize| {
            self.data
                .get(range.start * width..range.end * width)
                .unwrap_or_default()
        };
        match self.data_type {
            DataType::Float => {
                for (value, bytes) in out.iter_mut().zip(slice(4).as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            DataType::Float16 => {
                for (value, bytes) in out.iter_mut().zip(slice(2).as_chunks::<2>().0) {
                    *value = f16::from_le_bytes(*bytes).to_f32();
                }
            }
            DataType::Bfloat16 => {
                for (value, bytes) in out.iter_mut().zip(slice(2).as_chunks::<2>().0) {
                    *value = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
            other => {
                return Err(self.error(format!("{} where floats are needed", other.as_str_name())));
            }
        }
        Ok(())
    }

    /// As [`read_f32`](Self::read_f32), and f64 rounded: what f32 is too coarse for becomes its smallest number and not zero,
    /// so that no weight seems to be absent; what is too large becomes infinite.
    ///
    /// # Errors
    /// As [`read_f32`](Self::read_f32).
    pub(crate) fn read_rounded(
        &self,
        range: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), OnnxError> {
        let is_inside = range.start <= range.end && range.end <= self.elements;
        if self.data_type != DataType::Double || !is_inside || range.len() != out.len() {
            return self.read_f32(range, out);
        }
        let data = self.data.get(range.start * 8..range.end * 8);
        let chunks = data.unwrap_or_default().as_chunks::<8>().0;
        for (value, bytes) in out.iter_mut().zip(chunks) {
            let exact = f64::from_le_bytes(*bytes);
            *value = exact as f32;
            if *value == 0.0 && exact != 0.0 {
                *value = f32::from_bits(1).copysign(exact as f32);
            }
        }
        Ok(())
    }

    /// All elements as i64, from any integer type or BOOL.
    ///
    /// # Errors
    /// For floats, and for a UINT64 above `i64::MAX`.
    pub fn to_i64(&self) -> Result<Vec<i64>, OnnxError> {
        use DataType::*;
        let data = &self.data[..];
        Ok(match self.data_type {
            Int64 => data
                .as_chunks()
                .0
                .iter()
                .map(|&bytes| i64::from_le_bytes(bytes))
                .collect(),
            Int32 => data
                .as_chunks()
                .0
                .iter()
                .map(|&bytes| i32::from_le_bytes(bytes).into())
                .collect(),
            Uint32 => data
                .as_chunks()
                .0
                .iter()
                .map(|&bytes| u32::from_le_bytes(bytes).into())
                .collect(),
            Int16 => data
                .as_chunks()
                .0
                .iter()
                .map(|&bytes| i16::from_le_bytes(bytes).into())
                .collect(),
            Uint16 => data
                .as_chunks()
                .0
                .iter()
                .map(|&bytes| u16::from_le_bytes(bytes).into())
                .collect(),
            Uint64 => data
                .as_chunks()
                .0
                .iter()
                .map(|&bytes| i64::try_from(u64::from_le_bytes(bytes)))
                .collect::<Result<_, _>>()
                .map_err(|_| self.error("a value exceeds the range of a signed 64-bit integer"))?,
            Bool => data.iter().map(|&byte| i64::from(byte != 0)).collect(),
            Int8 | Int4 | Int2 => self.to_i8()?.into_iter().map(i64::from).collect(),
            Uint8 | Uint4 | Uint2 => self.to_u8()?.iter().map(|&value| value.into()).collect(),
            other => {
                return Err(
                    self.error(format!("{} where integers are needed", other.as_str_name()))
                );
            }
        })
    }

    /// All elements of an INT8, INT4 or INT2 tensor, unpacked.
    ///
    /// # Errors
    /// For other element types.
    pub fn to_i8(&self) -> Result<Vec<i8>, OnnxError> {
        let sign_extend = |value: u8, bits: u32| ((value << (8 - bits)) as i8) >> (8 - bits);
        Ok(match self.data_type {
            DataType::Int8 => self.data.iter().map(|&byte| byte as i8).collect(),
            DataType::Int4 => self.unpack(4).map(|value| sign_extend(value, 4)).collect(),
            DataType::Int2 => self.unpack(2).map(|value| sign_extend(value, 2)).collect(),
            other => {
                return Err(self.error(format!(
                    "{} where INT8 or INT4 is needed",
                    other.as_str_name()
                )));
            }
        })
    }

    /// All elements of a UINT8, BOOL, UINT4 or UINT2 tensor, unpacked.
    ///
    /// # Errors
    /// For other element types.
    pub fn to_u8(&self) -> Result<Cow<'_, [u8]>, OnnxError> {
        Ok(match self.data_type {
            DataType::Uint8 | DataType::Bool => Cow::Borrowed(&self.data[..]),
            DataType::Uint4 => Cow::Owned(self.unpack(4).collect()),
            DataType::Uint2 => Cow::Owned(self.unpack(2).collect()),
            other => {
                return Err(self.error(format!(
                    "{} where UINT8 or UINT4 is needed",
                    other.as_str_name()
                )));
            }
        })
    }

    /// The elements as a tensor of tract's. Types that tract lacks are widened exactly: BFLOAT16 to f32, 4- and 2-bit
    /// integers to 8 bits.
    ///
    /// # Errors
    /// For 8- and 4-bit floats.
    pub fn to_tensor(&self) -> Result<Tensor, OnnxError> {
        use DataType::*;
        let built = match self.data_type {
            Bfloat16 => Tensor::from_shape(&self.dims, &self.to_f32()?),
            Int4 | Int2 => Tensor::from_shape(&self.dims, &self.to_i8()?),
            Uint4 | Uint2 => Tensor::from_shape(&self.dims, &self.to_u8()?),
            Bool => {
                let flags: Vec<bool> = self.data.iter().map(|&byte| byte != 0).collect();
                Tensor::from_shape(&self.dims, &flags)
            }
            other => {
                let datum_type = plain_datum_type(other).ok_or_else(|| {
                    self.error(format!(
                        "{} has no values to compute with",
                        other.as_str_name()
                    ))
                })?;
                Tensor::zero_dt(datum_type, &self.dims).map(|mut tensor| {
                    if let Some(mut plain) = tensor.as_plain_ram_mut() {
                        plain.as_bytes_mut().copy_from_slice(&self.data);
                    }
                    tensor
                })
            }
        };
        built.map_err(|error| self.error(error.to_string()))
    }

    fn unpack(&self, bits: usize) -> impl Iterator<Item = u8> + '_ {
        let per_byte = 8 / bits;
        let mask = (1u8 << bits) - 1;
        self.data
            .iter()
            .flat_map(move |&byte| (0..per_byte).map(move |place| (byte >> (place * bits)) & mask))
            .take(self.elements)
    }

    fn error(&self, reason: impl Into<String>) -> OnnxError {
        OnnxError::tensor(&self.name, reason)
    }
}

/// The type under which tract holds the same bytes.
fn plain_datum_type(data_type: DataType) -> Option<DatumType> {
    use DataType::*;
    Some(match data_type {
        Float => DatumType::F32,
        Float16 => DatumType::F16,
        Double => DatumType::F64,
        Int8 => DatumType::I8,
        Int16 => DatumType::I16,
        Int32 => DatumType::I32,
        Int64 => DatumType::I64,
        Uint8 => DatumType::U8,
        Uint16 => DatumType::U16,
        Uint32 => DatumType::U32,
        Uint64 => DatumType::U64,
        _ => return None,
    })
}

/// The bytes of a tensor that keeps its elements in the message itself, as `raw_data` or in one of the typed fields.
pub(super) fn inline_bytes(tensor: &TensorProto, declared: &Declared) -> Result<Bytes, OnnxError> {
    use DataType::*;
    let fields = [
        tensor
            .raw_data
            .as_ref()
            .is_some_and(|data| !data.is_empty()),
        !tensor.float_data.is_empty(),
        !tensor.int32_data.is_empty(),
        !tensor.int64_data.is_empty(),
        !tensor.uint64_data.is_empty(),
        !tensor.double_data.is_empty(),
        !tensor.string_data.is_empty(),
    ];
    if fields.iter().filter(|&&filled| filled).count() > 1 {
        return Err(OnnxError::tensor(
            tensor.name(),
            "its elements are given twice, in different fields",
        ));
    }
    if let Some(raw) = tensor.raw_data.as_ref().filter(|raw| !raw.is_empty()) {
        return Ok(raw.clone());
    }
    let bytes: Vec<u8> = match declared.data_type {
        Float => tensor
            .float_data
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        Double => tensor
            .double_data
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        Int64 => tensor
            .int64_data
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        Uint64 => tensor
            .uint64_data
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        Uint32 => tensor
            .uint64_data
            .iter()
            .flat_map(|&value| (value as u32).to_le_bytes())
            .collect(),
        Int32 => tensor
            .int32_data
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        Int16 | Uint16 | Float16 | Bfloat16 => tensor
            .int32_data
            .iter()
            .flat_map(|&value| (value as u16).to_le_bytes())
            .collect(),
        _ => tensor.int32_data.iter().map(|&value| value as u8).collect(),
    };
    Ok(bytes.into())
}
