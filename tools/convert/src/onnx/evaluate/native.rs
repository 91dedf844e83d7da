//! Operators that tract lacks or computes otherwise than the standard says, and the commonest ones, for speed.

use half::bf16;
use tract_onnx::prelude::{DatumType, Tensor, tract_ndarray as ndarray};

use ndarray::{ArrayD, ArrayViewD, Axis, Ix1, Ix2, IxDyn};

use crate::onnx::{
    proto::{NodeProto, TensorProto, tensor_proto::DataType},
    tensor::{Declared, TensorView, inline_bytes},
};

type Outputs = Result<Vec<Tensor>, String>;

/// The node's outputs, or `None` where tract shall compute them.
pub(super) fn evaluate(node: &NodeProto, inputs: &[Option<Tensor>]) -> Option<Outputs> {
    let is = |index: usize, kind: DatumType| {
        inputs
            .get(index)
            .and_then(Option::as_ref)
            .is_some_and(|input| input.datum_type() == kind)
    };
    let boolean = |index: usize| is(index, DatumType::Bool);
    let integer = |index: usize| {
        inputs
            .get(index)
            .and_then(Option::as_ref)
            .is_some_and(|input| input.datum_type().is_integer())
    };
    match node.op_type() {
        "Constant" => Some(constant(node)),
        "ConstantOfShape" => Some(constant_of_shape(node, inputs)),
        "Identity" => Some(required(inputs, 0).map(|input| vec![input.clone()])),
        "Shape" => Some(shape(node, inputs)),
        "Slice" => slice_of_unit_steps(inputs).transpose(),
        "Transpose" => Some(transpose(node, inputs)),
        "Cast" if node.int("to") == Some(DataType::Bfloat16 as i64) => Some(cast_to_bf16(inputs)),
        // tract takes the largest INT64 for a symbolic dimension and loses it.
        "Cast" if node.int("to") == Some(DataType::Int64 as i64) && is(0, DatumType::I64) => {
            Some(required(inputs, 0).map(|input| vec![input.clone()]))
        }
        "Equal" if boolean(0) => Some(equal_flags(inputs)),
        "Where" if boolean(1) => Some(select_flags(inputs)),
        "MatMul" if integer(0) => Some(integer_matmul(inputs)),
        "DequantizeLinear" if node.int("block_size").unwrap_or(0) != 0 => {
            Some(dequantize_blocks(node, inputs))
        }
        _ => None,
    }
}

fn required(inputs: &[Option<Tensor>], index: usize) -> Result<&Tensor, String> {
    inputs
        .get(index)
        .and_then(Option::as_ref)
        .ok_or_else(|| format!("input {index} is missing"))
}

fn elements<T: tract_onnx::prelude::Datum + Clone>(tensor: &Tensor) -> Result<Vec<T>, String> {
    let cast = tensor.cast_to::<T>().map_err(text)?;
    let plain = cast.try_as_plain_ram().map_err(text)?;
    plain.as_slice::<T>().map(<[T]>::to_vec).map_err(text)
}

fn array<T: tract_onnx::prelude::Datum + Clone>(tensor: &Tensor) -> Result<ArrayD<T>, String> {
    ArrayD::from_shape_vec(IxDyn(tensor.shape()), elements(tensor)?)
        .map_err(|error| error.to_string())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn inline_tensor(message: &TensorProto) -> Result<Tensor, String> {
    if message.data_location.unwrap_or(0) != 0 {
        return Err("its value lies in external data".to_owned());
    }
    let declared = Declared::of(message).map_err(text)?;
    let data = inline_bytes(message, &declared).map_err(text)?;
    TensorView::new(message.name(), declared, data)
        .and_then(|view| view.to_tensor())
        .map_err(text)
}

fn constant(node: &NodeProto) -> Outputs {
    let value = if let Some(message) = node.tensor("value") {
        inline_tensor(message)?
    } else if let Some(value) = node.int("value_int") {
        Tensor::from(value)
    } else if let Some(value) = node.float("value_float") {
        Tensor::from(value)
    } else if let Some(values) = node.ints("value_ints") {
        Tensor::from_shape(&[values.len()], values).map_err(text)?
    } else if let Some(values) = node.floats("value_floats") {
        Tensor::from_shape(&[values.len()], values).map_err(text)?
    } else {
        return Err("it has no value that can be computed with".to_owned());
    };
    Ok(vec![value])
}

fn constant_of_shape(node: &NodeProto, inputs: &[Option<Tensor>]) -> Outputs {
    let value = node
        .tensor("value")
        .map_or(Ok(Tensor::from(0f32)), inline_tensor)?;
    if value.len() != 1 {
        return Err(format!(
            "its value has {} elements instead of one",
            value.len()
        ));
    }
    let dims: Vec<usize> = elements::<i64>(required(inputs, 0)?)?
        .into_iter()
        .map(|dim| usize::try_from(dim).map_err(|_| format!("dimension {dim} is impossible")))
        .collect::<Result<_, _>>()?;
    let scalar = value.into_shape(&[]).map_err(text)?;
    Ok(vec![scalar.broadcast_scalar_to_shape(&dims).map_err(text)?])
}

fn shape(node: &NodeProto, inputs: &[Option<Tensor>]) -> Outputs {
    let dims: Vec<i64> = required(inputs, 0)?
        .shape()
        .iter()
        .map(|&dim| dim as i64)
        .collect();
    let rank = dims.len() as i64;
    let clamp = |axis: i64| {
        if axis < 0 {
            axis.saturating_add(rank)
        } else {
            axis
        }
        .clamp(0, rank) as usize
    };
    let start = clamp(node.int("start").unwrap_or(0));
    let end = clamp(node.int("end").unwrap_or(rank));
    let dims = dims.get(start..end).unwrap_or_default();
    Ok(vec![Tensor::from_shape(&[dims.len()], dims).map_err(text)?])
}

/// tract does not end when `perm` is no permutation.
fn transpose(node: &NodeProto, inputs: &[Option<Tensor>]) -> Outputs {
    let data = required(inputs, 0)?;
    let axes: Vec<usize> = match node.ints("perm") {
        Some(perm) => perm
            .iter()
            .map(|&axis| usize::try_from(axis).unwrap_or(usize::MAX))
            .collect(),
        None => (0..data.rank()).rev().collect(),
    };
    let mut sorted = axes.clone();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..data.rank()) {
        return Err(format!(
            "its perm is no permutation of the {} axes",
            data.rank()
        ));
    }
    Ok(vec![data.clone().permute_axes(&axes).map_err(text)?])
}

/// A slice whose bounds are inputs and whose steps are all one (`None` otherwise). tract refuses an end before the start,
/// which is an empty slice.
fn slice_of_unit_steps(inputs: &[Option<Tensor>]) -> Result<Option<Vec<Tensor>>, String> {
    let [Some(data), Some(starts), Some(ends), optional @ ..] = inputs else {
        return Ok(None);
    };
    let optional = |index: usize| {
        optional
            .get(index)
            .and_then(Option::as_ref)
            .map(elements::<i64>)
            .transpose()
    };
    let (starts, ends) = (elements::<i64>(starts)?, elements::<i64>(ends)?);
    if optional(1)?.is_some_and(|steps| steps.iter().any(|&step| step != 1)) {
        return Ok(None);
    }
    let axes = optional(0)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    if starts.len() != ends.len() || starts.len() != axes.len() {
        return Err("its starts, ends and axes differ in number".to_owned());
    }
    let mut result = data.clone();
    for ((start, end), axis) in starts.into_iter().zip(ends).zip(axes) {
        let axis = if axis < 0 {
            axis.saturating_add(data.rank() as i64)
        } else {
            axis
        };
        let axis = usize::try_from(axis)
            .ok()
            .filter(|&axis| axis < data.rank())
            .ok_or("its axis does not exist")?;
        let dim = result.shape()[axis] as i64;
        let clamp = |place: i64| {
            if place < 0 {
                place.saturating_add(dim)
            } else {
                place
            }
            .clamp(0, dim) as usize
        };
        let (start, end) = (clamp(start), clamp(end));
        result = if start < end {
            result.slice(axis, start, end)
        } else {
            let mut shape = result.shape().to_vec();
            shape[axis] = 0;
            Tensor::zero_dt(result.datum_type(), &shape)
        }
        .map_err(text)?;
    }
    Ok(Some(vec![result]))
}

/// BFLOAT16 is held as f32, see [`TensorView::to_tensor`]; the cast still rounds.
fn cast_to_bf16(inputs: &[Option<Tensor>]) -> Outputs {
    let input = required(inputs, 0)?;
    let rounded: Vec<f32> = elements::<f32>(input)?
        .into_iter()
        .map(|value| bf16::from_f32(value).to_f32())
        .collect();
    Ok(vec![
        Tensor::from_shape(input.shape(), &rounded).map_err(text)?,
    ])
}

fn common_shape(arrays: &[&ArrayD<bool>]) -> Result<Vec<usize>, String> {
    let rank = arrays.iter().map(|array| array.ndim()).max().unwrap_or(0);
    let mut shape = vec![1; rank];
    for array in arrays {
        for (common, &dim) in shape.iter_mut().rev().zip(array.shape().iter().rev()) {
            match (*common, dim) {
                (_, 1) => {}
                (1, dim) => *common = dim,
                (common, dim) if common == dim => {}
                _ => return Err("its inputs do not broadcast".to_owned()),
            }
        }
    }
    Ok(shape)
}

fn stretched<'a>(array: &'a ArrayD<bool>, shape: &[usize]) -> Result<ArrayViewD<'a, bool>, String> {
    array
        .broadcast(IxDyn(shape))
        .ok_or_else(|| "its inputs do not broadcast".to_owned())
}

fn flags(array: ArrayD<bool>) -> Outputs {
    Ok(vec![Tensor::from(array)])
}

fn equal_flags(inputs: &[Option<Tensor>]) -> Outputs {
    let (a, b) = (array(required(inputs, 0)?)?, array(required(inputs, 1)?)?);
    let shape = common_shape(&[&a, &b])?;
    flags(
        ndarray::Zip::from(stretched(&a, &shape)?)
            .and(stretched(&b, &shape)?)
            .map_collect(|a, b| a == b),
    )
}

fn select_flags(inputs: &[Option<Tensor>]) -> Outputs {
    let [condition, a, b] = [0, 1, 2].map(|index| required(inputs, index).and_then(array::<bool>));
    let (condition, a, b) = (condition?, a?, b?);
    let shape = common_shape(&[&condition, &a, &b])?;
    let zip = ndarray::Zip::from(stretched(&condition, &shape)?)
        .and(stretched(&a, &shape)?)
        .and(stretched(&b, &shape)?);
    flags(zip.map_collect(|&condition, &a, &b| if condition { a } else { b }))
}

/// Matrices of integers, up to one batch axis on either side being absent.
fn integer_matmul(inputs: &[Option<Tensor>]) -> Outputs {
    let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
    let (mut left, mut right) = (array::<i64>(a)?, array::<i64>(b)?);
    let (vector_left, vector_right) = (left.ndim() == 1, right.ndim() == 1);
    if vector_left {
        left.insert_axis_inplace(Axis(0));
    }
    if vector_right {
        right.insert_axis_inplace(Axis(1));
    }
    if left.ndim() < 2 || right.ndim() != 2 || left.shape()[left.ndim() - 1] != right.shape()[0] {
        return Err("integer factors of these shapes are not multiplied".to_owned());
    }
    let mut shape = left.shape().to_vec();
    let depth = right.shape()[0];
    let rows = left.len().checked_div(depth).unwrap_or(0);
    let left = left.into_shape_with_order((rows, depth)).map_err(text)?;
    let right = right.into_dimensionality::<Ix2>().map_err(text)?;
    let columns = right.ncols();
    let product = ndarray::Array2::from_shape_fn((rows, columns), |(row, column)| {
        let terms = left
            .row(row)
            .into_dimensionality::<Ix1>()
            .into_iter()
            .flatten()
            .zip(right.column(column));
        terms.fold(0i64, |sum, (a, b)| sum.wrapping_add(a.wrapping_mul(*b)))
    });
    shape.pop();
    if vector_left {
        shape.pop();
    }
    if !vector_right {
        shape.push(columns);
    }
    let product = product.into_shape_with_order(IxDyn(&shape)).map_err(text)?;
    Ok(vec![
        Tensor::from(product)
            .cast_to_dt(a.datum_type())
            .map_err(text)?
            .into_owned(),
    ])
}

/// DequantizeLinear with one scale for each `block_size` elements along `axis`.
fn dequantize_blocks(node: &NodeProto, inputs: &[Option<Tensor>]) -> Outputs {
    let values = array::<f32>(required(inputs, 0)?)?;
    let scale_type = required(inputs, 1)?.datum_type();
    let scales = array::<f32>(required(inputs, 1)?)?;
    let zeros = inputs
        .get(2)
        .and_then(Option::as_ref)
        .map(array::<f32>)
        .transpose()?;
    let block = node
        .int("block_size")
        .and_then(|size| usize::try_from(size).ok())
        .filter(|&size| size > 0);
    let block = block.ok_or("its block size is not positive")?;
    let axis = node.int("axis").unwrap_or(1);
    let axis = if axis < 0 {
        axis + values.ndim() as i64
    } else {
        axis
    };
    let axis = usize::try_from(axis)
        .ok()
        .filter(|&axis| axis < values.ndim())
        .ok_or("its axis does not exist")?;
    let mut expected = values.shape().to_vec();
    expected[axis] = expected[axis].div_ceil(block);
    if scales.shape() != expected
        || zeros
            .as_ref()
            .is_some_and(|zeros| zeros.shape() != expected)
    {
        return Err(format!(
            "its scales have shape {:?} instead of {expected:?}",
            scales.shape()
        ));
    }
    let mut result = values;
    for (at, value) in result.indexed_iter_mut() {
        let mut of_block = at.clone();
        of_block[axis] /= block;
        let zero = zeros.as_ref().map_or(0.0, |zeros| zeros[&of_block]);
        *value = (*value - zero) * scales[&of_block];
    }
    Ok(vec![
        Tensor::from(result)
            .cast_to_dt(scale_type)
            .map_err(text)?
            .into_owned(),
    ])
}
