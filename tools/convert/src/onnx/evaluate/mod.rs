//! Evaluating one node on concrete values.
//!
//! The lowering computes what exporters spell out as graphs (shapes, positions, masks, rotary tables) by running the
//! nodes on probe values. tract-onnx does the work; `native` holds the operators that it lacks, or computes otherwise
//! than the standard says.

mod bounds;
mod native;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod tract;

use tract_onnx::prelude::{DatumType, Tensor};

use super::{OnnxError, proto::NodeProto};

/// The outputs of `node` on `inputs`, with the meaning that version `opset` of the standard's operator set gives it.
/// `None` is an optional input that is absent. Tensors of type BFLOAT16 are held as f32, see
/// [`TensorView::to_tensor`](super::TensorView::to_tensor).
///
/// # Errors
/// When the operator is unknown, holds a subgraph, does not fit the inputs, or would give an absurdly large result.
pub fn evaluate_node(
    node: &NodeProto,
    inputs: &[Option<Tensor>],
    opset: i64,
) -> Result<Vec<Tensor>, OnnxError> {
    if node.subgraphs().next().is_some() {
        return Err(OnnxError::node(
            node,
            "an operator with subgraphs has no value of its own",
        ));
    }
    if !node.is_onnx() {
        return Err(OnnxError::node(
            node,
            "the operator is not of the ONNX standard",
        ));
    }
    let outputs = bounds::check(node, inputs)
        .and_then(|()| {
            native::evaluate(node, inputs).unwrap_or_else(|| tract::evaluate(node, inputs, opset))
        })
        .map_err(|reason| OnnxError::node(node, reason))?;
    outputs
        .into_iter()
        .map(|output| match output.datum_type() {
            // tract counts in symbolic dimensions; concrete values of them are ONNX's INT64.
            DatumType::TDim => output
                .cast_to_dt(DatumType::I64)
                .map(|cast| cast.into_owned()),
            _ => Ok(output),
        })
        .collect::<Result<_, _>>()
        .map_err(|error| OnnxError::node(node, error.to_string()))
}
