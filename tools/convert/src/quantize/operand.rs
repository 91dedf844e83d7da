//! What nodes do with constants: which axes of one count what is computed apart, so that it can have a scale of its own.

use crate::onnx::{DataType, MovedConstant, is_float, proto::NodeProto};
use std::borrow::Cow;

/// What a node does with a constant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operand {
    /// It multiplies by it, or looks up parts of it: these axes count output channels, or what is looked up.
    Channels(Vec<usize>),
    /// It needs floats, for this reason.
    Floats(Cow<'static, str>),
    /// It is no weight.
    NoWeight(&'static str),
}

impl Operand {
    /// What becomes of input `input` of a node, in the axes of the stored tensor.
    pub(super) fn of(node: &NodeProto, input: usize, constant: &MovedConstant<'_>) -> Operand {
        let rank = constant.tensor.dims.len();
        match read_by(node, input, rank) {
            Operand::Channels(axes) => stored_axes(axes, constant).map_or_else(
                |reason| Operand::Floats(reason.into()),
                |mut axes| {
                    axes.sort_unstable();
                    axes.dedup();
                    Operand::Channels(axes)
                },
            ),
            other => other,
        }
    }
}

/// What a node does with an input of so many axes, as it sees them.
fn read_by(node: &NodeProto, input: usize, rank: usize) -> Operand {
    let flag = |name: &str| node.int(name).unwrap_or(0) != 0;
    let matrices = |of_matrix: usize| Operand::Channels((0..rank - 2).chain([of_matrix]).collect());
    let floats = |reason: &'static str| Operand::Floats(reason.into());
    if rank < 2 {
        return floats("it has fewer than two dimensions");
    }
    if reads_quantized_weights(node) {
        return Operand::NoWeight("it belongs to weights that are quantized");
    }
    if node.is_microsoft("FusedMatMul") {
        let transposed = [flag("transA"), flag("transB")];
        return match input {
            _ if flag("transBatchA") || flag("transBatchB") => floats("its batches are transposed"),
            0 | 1 => matrices(rank - 1 - usize::from((input == 0) != transposed[input])),
            _ => floats("it is added"),
        };
    }
    let unknown = || match node.op_type() {
        "RotaryEmbedding" | "GroupQueryAttention" | "MultiHeadAttention" => {
            Operand::NoWeight("it is a table of angles or a mask")
        }
        "Where" | "Constant" => Operand::NoWeight("it is chosen from and not multiplied by"),
        operator => Operand::Floats(format!("the operator {operator} is not quantized").into()),
    };
    if !node.is_onnx() {
        return unknown();
    }
    match (node.op_type(), input) {
        ("MatMul", 0) => matrices(rank - 2),
        ("MatMul", 1) => matrices(rank - 1),
        ("Gemm", 0) => matrices(usize::from(flag("transA"))),
        ("Gemm", 1) => matrices(usize::from(!flag("transB"))),
        ("Gemm", _) => floats("it is added"),
        ("Conv", 1) => Operand::Channels(vec![0]),
        // Each group has input channels of its own, and counts its output channels anew.
        ("ConvTranspose", 1) => {
            let groups = node.int("group").unwrap_or(1);
            Operand::Channels(vec![usize::from(groups == 1)])
        }
        ("LSTM" | "GRU" | "RNN", 1 | 2) => Operand::Channels(vec![0, 1]),
        ("Einsum", _) => {
            let equation = node.string("equation").unwrap_or_default();
            match einsum_axes(equation, input, rank) {
                Some(axes) => Operand::Channels(axes),
                None => floats("nothing in the equation counts its output channels"),
            }
        }
        ("Gather", 0) => {
            let axis = node.int("axis").unwrap_or(0);
            let axis = if axis < 0 { axis + rank as i64 } else { axis };
            match usize::try_from(axis) {
                Ok(axis) if axis < rank => Operand::Channels(vec![axis]),
                _ => floats("it is looked up along an axis that it does not have"),
            }
        }
        _ => unknown(),
    }
}

/// Whether a node reads weights that are integers already.
pub(super) fn reads_quantized_weights(node: &NodeProto) -> bool {
    matches!(
        node.op_type(),
        "MatMulNBits"
            | "GatherBlockQuantized"
            | "MatMulInteger"
            | "MatMulIntegerToFloat"
            | "DynamicQuantizeMatMul"
            | "QLinearMatMul"
            | "QGemm"
            | "ConvInteger"
            | "QLinearConv"
            | "DequantizeLinear"
            | "MatMulBnb4"
    )
}

/// Where the stored tensor has the axes that the reader sees.
fn stored_axes(axes: Vec<usize>, constant: &MovedConstant<'_>) -> Result<Vec<usize>, &'static str> {
    let rank = constant.tensor.dims.len();
    let mut axes = axes;
    for node in &constant.moved_by {
        match node.op_type() {
            "Identity" => {}
            "Cast" => {
                let to = node.int("to").and_then(|code| i32::try_from(code).ok());
                let to = to.and_then(|code| DataType::try_from(code).ok());
                if !to.is_some_and(is_float) {
                    return Err("it is cast to what is no float");
                }
            }
            "Transpose" => {
                for axis in &mut axes {
                    *axis = match node.ints("perm") {
                        None => rank.checked_sub(1 + *axis),
                        Some(perm) => perm.get(*axis).and_then(|&from| usize::try_from(from).ok()),
                    }
                    .ok_or("it is transposed in a way that does not suit it")?;
                }
            }
            _ => return Err("it is reshaped before it is used"),
        }
    }
    match axes.iter().all(|axis| *axis < rank) {
        true => Ok(axes),
        false => Err("it has fewer dimensions than its operator needs"),
    }
}

/// The axes of an operand that the result has too. `None` where there is none, where one is counted twice, and where the
/// equation is for another number of axes.
fn einsum_axes(equation: &str, input: usize, rank: usize) -> Option<Vec<usize>> {
    let equation: String = equation.split_whitespace().collect();
    let (operands, result) = match equation.split_once("->") {
        Some((operands, result)) => (operands, Some(result)),
        None => (equation.as_str(), None),
    };
    let operand = operands.split(',').nth(input)?;
    let is_kept = |letter: char| match result {
        Some(result) => result.contains(letter),
        None => operands.matches(letter).count() == 1,
    };
    let (before, after) = operand.split_once("...").unwrap_or((operand, ""));
    let letters = before.chars().count() + after.chars().count();
    let has_others = operand.contains("...");
    let others = rank.checked_sub(letters)?;
    let twice = |letter: char| operand.matches(letter).count() > 1;
    if (others > 0 && !has_others) || before.chars().chain(after.chars()).any(twice) {
        return None;
    }
    let kept = before.chars().map(is_kept);
    let kept = kept.chain(std::iter::repeat_n(true, others));
    let kept = kept.chain(after.chars().map(is_kept));
    let axes: Vec<usize> = kept
        .enumerate()
        .filter_map(|(axis, is_kept)| is_kept.then_some(axis))
        .collect();
    (!axes.is_empty()).then_some(axes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_equation_says_which_axes_the_result_keeps() {
        let axes = |equation: &str, input, rank| einsum_axes(equation, input, rank);
        assert_eq!(axes("bld,dhk->blhk", 1, 3), Some(vec![1, 2]));
        assert_eq!(axes("bd , hd -> bh", 1, 2), Some(vec![0]));
        assert_eq!(axes("ij,jk", 1, 2), Some(vec![1]));
        assert_eq!(axes("...d,...df->...f", 1, 4), Some(vec![0, 1, 3]));
        assert_eq!(axes("i,jj->i", 1, 2), None);
        assert_eq!(axes("ij,jk->i", 1, 3), None);
        assert_eq!(axes("ij,jk->i", 2, 2), None);
        assert_eq!(axes("ij,kl->ij", 1, 2), None);
    }
}
