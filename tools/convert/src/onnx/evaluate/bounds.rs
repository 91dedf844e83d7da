//! What is checked before a node is computed: that its inputs are there, that those which tract reads as one number
//! hold one (it reads whatever lies there), and how large the result will be (a few bytes of a damaged model can ask for
//! terabytes).

use std::collections::HashMap;

use tract_onnx::prelude::Tensor;

use crate::onnx::proto::NodeProto;

/// The most elements that a result may have; bookkeeping of real models stays far below.
const MAX_ELEMENTS: usize = 1 << 26;

/// Refuses operators that are not evaluated, and results that would be absurdly large.
pub(super) fn check(node: &NodeProto, inputs: &[Option<Tensor>]) -> Result<(), String> {
    let required = required_inputs(node.op_type());
    if let Some(index) = inputs.iter().take(required).position(Option::is_none) {
        return Err(format!("input {index} is missing"));
    }
    let not_one = |index: &&usize| {
        inputs
            .get(**index)
            .and_then(Option::as_ref)
            .is_some_and(|input| input.len() != 1)
    };
    if let Some(index) = numbers(node.op_type()).iter().find(not_one) {
        return Err(format!("input {index} must hold one number"));
    }
    let elements = result_elements(node, inputs)?;
    match elements {
        Some(elements) if elements <= MAX_ELEMENTS => Ok(()),
        _ => Err("its result would be absurdly large".to_owned()),
    }
}

/// How many of the first inputs cannot be absent.
fn required_inputs(op_type: &str) -> usize {
    match op_type {
        "Clip" | "Pad" | "ReduceL2" | "ReduceMax" | "ReduceMean" | "ReduceMin" | "ReduceProd"
        | "ReduceSum" | "ReduceSumSquare" | "Slice" | "Split" | "Squeeze" | "Trilu" => 1,
        "DequantizeLinear" | "QuantizeLinear" => 2,
        _ => usize::MAX,
    }
}

/// The inputs that are one number each.
fn numbers(op_type: &str) -> &'static [usize] {
    match op_type {
        "Clip" => &[1, 2],
        "CumSum" | "OneHot" | "TopK" | "Trilu" => &[1],
        "Pad" => &[2],
        "Range" => &[0, 1, 2],
        _ => &[],
    }
}

/// An upper bound of the result's elements; `None` when it does not fit in a `usize`.
fn result_elements(node: &NodeProto, inputs: &[Option<Tensor>]) -> Result<Option<usize>, String> {
    let given = || inputs.iter().flatten();
    let largest = || given().map(Tensor::len).max().unwrap_or(0);
    Ok(match node.op_type() {
        "Add" | "And" | "BitShift" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" | "Clip" | "Div"
        | "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "Max" | "Mean"
        | "Min" | "Mod" | "Mul" | "Or" | "Pow" | "Sub" | "Sum" | "Where" | "Xor" => {
            product(&broadcast(given().map(Tensor::shape)))
        }
        "Abs" | "ArgMax" | "ArgMin" | "Cast" | "CastLike" | "Ceil" | "Cos" | "CumSum"
        | "DequantizeLinear" | "Erf" | "Exp" | "EyeLike" | "Flatten" | "Floor"
        | "GatherElements" | "Gelu" | "Identity" | "IsInf" | "IsNaN" | "Log" | "LogSoftmax"
        | "Neg" | "Not" | "QuantizeLinear" | "Reciprocal" | "ReduceL2" | "ReduceMax"
        | "ReduceMean" | "ReduceMin" | "ReduceProd" | "ReduceSum" | "ReduceSumSquare" | "Relu"
        | "Reshape" | "Round" | "ScatterElements" | "ScatterND" | "Shape" | "Sigmoid" | "Sign"
        | "Sin" | "Size" | "Slice" | "Softmax" | "Softplus" | "Split" | "Sqrt" | "Squeeze"
        | "Tan" | "Tanh" | "TopK" | "Transpose" | "Trilu" | "Unsqueeze" => Some(largest()),
        "Concat" => given().try_fold(0usize, |sum, input| sum.checked_add(input.len())),
        "NonZero" => inputs
            .first()
            .and_then(Option::as_ref)
            .and_then(|data| data.len().checked_mul(data.rank())),
        "Constant" => Some(0),
        "ConstantOfShape" => product(&dimensions(inputs, 0)?),
        "Expand" => {
            let shape = dimensions(inputs, 1)?;
            product(&broadcast(
                given().take(1).map(Tensor::shape).chain([shape.as_slice()]),
            ))
        }
        "Tile" => {
            product(&dimensions(inputs, 1)?).and_then(|repeats| repeats.checked_mul(largest()))
        }
        "Range" => range_length(inputs)?,
        "OneHot" => {
            let depth = dimensions(inputs, 1)?;
            product(&depth).and_then(|depth| depth.checked_mul(inputs.first()?.as_ref()?.len()))
        }
        "Pad" => {
            // An attribute before opset 11.
            let pads = node
                .ints("pads")
                .map_or_else(|| integers(inputs, 1), |pads| Ok(pads.to_vec()))?;
            let widest = pads.iter().try_fold(0usize, |sum, &pad| {
                sum.checked_add(usize::try_from(pad).unwrap_or(0))
            });
            let data = inputs
                .first()
                .and_then(Option::as_ref)
                .ok_or("its data is missing")?;
            widest.and_then(|wider| {
                data.shape().iter().try_fold(1usize, |product, &dim| {
                    product.checked_mul(dim.checked_add(wider)?)
                })
            })
        }
        "Gather" | "GatherND" => match inputs {
            [Some(data), Some(indices), ..] if data.rank() > 0 => {
                let axis = if node.op_type() == "Gather" {
                    node.int("axis").unwrap_or(0)
                } else {
                    0
                };
                let axis = if axis < 0 {
                    axis + data.rank() as i64
                } else {
                    axis
                };
                let dim = usize::try_from(axis)
                    .ok()
                    .and_then(|axis| data.shape().get(axis).copied());
                (data.len() / dim.ok_or("its axis does not exist")?.max(1))
                    .checked_mul(indices.len())
            }
            _ => return Err("its data or indices are missing".to_owned()),
        },
        "MatMul" | "Gemm" => match inputs {
            [Some(a), Some(b), ..] => matrix_product(node, a.shape(), b.shape())?,
            _ => return Err("a factor is missing".to_owned()),
        },
        "Einsum" => einsum(node.string("equation").unwrap_or_default(), inputs)?,
        other => {
            return Err(format!(
                "{other} is not among the operators that are evaluated"
            ));
        }
    })
}

fn product(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))
}

fn broadcast<'a>(shapes: impl Iterator<Item = &'a [usize]>) -> Vec<usize> {
    let mut result: Vec<usize> = Vec::new();
    for shape in shapes {
        if shape.len() > result.len() {
            result.splice(0..0, std::iter::repeat_n(1, shape.len() - result.len()));
        }
        for (largest, &dim) in result.iter_mut().rev().zip(shape.iter().rev()) {
            *largest = (*largest).max(dim);
        }
    }
    result
}

fn integers(inputs: &[Option<Tensor>], index: usize) -> Result<Vec<i64>, String> {
    let tensor = inputs
        .get(index)
        .and_then(Option::as_ref)
        .ok_or_else(|| format!("input {index} is missing"))?;
    let cast = tensor.cast_to::<i64>().map_err(|error| error.to_string())?;
    let plain = cast.try_as_plain_ram().map_err(|error| error.to_string())?;
    plain
        .as_slice::<i64>()
        .map(<[i64]>::to_vec)
        .map_err(|error| error.to_string())
}

fn dimensions(inputs: &[Option<Tensor>], index: usize) -> Result<Vec<usize>, String> {
    integers(inputs, index)?
        .into_iter()
        .map(|dim| {
            usize::try_from(dim)
                .map_err(|_| format!("input {index} holds the impossible dimension {dim}"))
        })
        .collect()
}

fn range_length(inputs: &[Option<Tensor>]) -> Result<Option<usize>, String> {
    let number = |index: usize| {
        let tensor = inputs
            .get(index)
            .and_then(Option::as_ref)
            .ok_or_else(|| format!("input {index} is missing"))?;
        tensor
            .cast_to_scalar::<f64>()
            .map_err(|error| error.to_string())
    };
    let (start, limit, delta) = (number(0)?, number(1)?, number(2)?);
    let length = ((limit - start) / delta).ceil();
    if delta == 0.0 || !length.is_finite() {
        return Err("its step is zero or not finite".to_owned());
    }
    Ok(Some(length.max(0.0) as usize))
}

fn matrix_product(node: &NodeProto, a: &[usize], b: &[usize]) -> Result<Option<usize>, String> {
    let transposed = |name| node.int(name).unwrap_or(0) != 0;
    let (rows, depth) = match a {
        [] => return Err("a factor is a scalar".to_owned()),
        [depth] => (1, *depth),
        [.., rows, depth] if !transposed("transA") => (*rows, *depth),
        [.., depth, rows] => (*rows, *depth),
    };
    let (depth_of_b, columns) = match b {
        [] => return Err("a factor is a scalar".to_owned()),
        [depth] => (*depth, 1),
        [.., depth, columns] if !transposed("transB") => (*depth, *columns),
        [.., columns, depth] => (*depth, *columns),
    };
    if depth != depth_of_b {
        return Err(format!("factors of shapes {a:?} and {b:?} do not fit"));
    }
    let batch = broadcast(
        [a, b]
            .into_iter()
            .map(|shape| &shape[..shape.len().saturating_sub(2)]),
    );
    Ok([rows, columns]
        .into_iter()
        .try_fold(1usize, usize::checked_mul)
        .and_then(|of_one| product(&batch)?.checked_mul(of_one)))
}

/// The product of the result's axes; an ellipsis counts as a whole operand. Axes of one label must be equally long.
fn einsum(equation: &str, inputs: &[Option<Tensor>]) -> Result<Option<usize>, String> {
    let (operands, result) = equation.split_once("->").unwrap_or((equation, equation));
    let mut dims: HashMap<char, usize> = HashMap::new();
    for (operand, input) in operands.split(',').zip(inputs) {
        let shape = input.as_ref().ok_or("an operand is missing")?.shape();
        let (front, back) = operand
            .trim()
            .split_once("...")
            .unwrap_or((operand.trim(), ""));
        let labels = front.chars().count() + back.chars().count();
        if labels > shape.len() || (!operand.contains("...") && labels != shape.len()) {
            return Err(format!(
                "operand {operand:?} does not fit the shape {shape:?}"
            ));
        }
        let axes = front
            .chars()
            .zip(shape)
            .chain(back.chars().rev().zip(shape.iter().rev()));
        for (label, &dim) in axes {
            if *dims.entry(label).or_insert(dim) != dim {
                return Err(format!("the axes {label:?} differ in length"));
            }
        }
    }
    let ellipsis = if result.contains("...") {
        inputs.iter().flatten().map(Tensor::len).max()
    } else {
        None
    };
    let named = result.chars().filter_map(|label| dims.get(&label).copied());
    Ok(named.chain(ellipsis).try_fold(1usize, usize::checked_mul))
}
