//! Tensors whose values do not depend on the text: shapes, positions, masks, constants.

use super::LowerError;
use std::rc::Rc;
use tract_onnx::prelude::{DatumType, Tensor};

/// A tensor with values, shared.
#[derive(Clone, Debug)]
pub(super) struct Known(Rc<Tensor>);

impl Known {
    pub(super) fn new(tensor: Tensor) -> Known {
        Known(Rc::new(tensor))
    }

    pub(super) fn from_i64(shape: &[usize], values: &[i64]) -> Result<Known, LowerError> {
        Ok(Known::new(
            Tensor::from_shape(shape, values).map_err(LowerError::tensor)?,
        ))
    }

    pub(super) fn from_f32(shape: &[usize], values: &[f32]) -> Result<Known, LowerError> {
        Ok(Known::new(
            Tensor::from_shape(shape, values).map_err(LowerError::tensor)?,
        ))
    }

    pub(super) fn tensor(&self) -> &Tensor {
        &self.0
    }

    pub(super) fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    pub(super) fn is_bool(&self) -> bool {
        self.0.datum_type() == DatumType::Bool
    }

    /// The values as `f64`.
    pub(super) fn f64s(&self) -> Result<Vec<f64>, LowerError> {
        let cast = self.0.cast_to::<f64>().map_err(LowerError::tensor)?;
        let plain = cast.try_as_plain_ram().map_err(LowerError::tensor)?;
        Ok(plain
            .as_slice::<f64>()
            .map_err(LowerError::tensor)?
            .to_vec())
    }

    /// The values as `i64`.
    pub(super) fn i64s(&self) -> Result<Vec<i64>, LowerError> {
        let cast = self.0.cast_to::<i64>().map_err(LowerError::tensor)?;
        let plain = cast.try_as_plain_ram().map_err(LowerError::tensor)?;
        Ok(plain
            .as_slice::<i64>()
            .map_err(LowerError::tensor)?
            .to_vec())
    }

    /// The value, when all elements are the same number.
    pub(super) fn uniform(&self) -> Result<Option<f64>, LowerError> {
        let values = self.f64s()?;
        Ok(values
            .first()
            .copied()
            .filter(|first| values.iter().all(|value| value == first)))
    }
}
