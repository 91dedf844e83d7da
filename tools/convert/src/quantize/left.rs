//! What of a model stays floats.

use super::decisions::Left;
use crate::onnx::{
    DataType, Place, element_bits, is_float,
    proto::{GraphProto, TensorProto},
};
use serde::Serialize;
use std::collections::HashMap;

/// A stored tensor of floats that was left as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftTensor {
    /// Its name.
    pub name: String,
    /// A node that reads it.
    pub node: String,
    /// Why it was left.
    pub reason: String,
    /// What it takes of the file.
    pub size_bytes: u64,
}

/// Tensors of more than one number in one graph that hold floats and are not among the `new` ones. `graph` counts as
/// [`Scopes`](crate::onnx::Scopes) does.
pub(super) fn left_in(
    number: usize,
    graph: &GraphProto,
    new: &dyn Fn(&str) -> bool,
    reasons: &HashMap<Place, Left>,
    found: &mut Vec<LeftTensor>,
) {
    let mut take = |name: &str, tensor: &TensorProto| {
        let data_type = DataType::try_from(tensor.data_type()).unwrap_or_default();
        let dims = tensor
            .dims
            .iter()
            .map(|dim| u64::try_from(*dim).unwrap_or(0));
        let elements = dims.fold(1, u64::saturating_mul);
        let bits = element_bits(data_type).unwrap_or(0) as u64;
        if !is_float(data_type) || elements <= 1 || new(name) {
            return;
        }
        let place = Place {
            graph: number,
            value: name.to_owned(),
        };
        let (node, reason) = match reasons.get(&place) {
            Some(left) => (left.node.clone(), left.reason.clone()),
            None => (String::new(), "no operator reads it".to_owned()),
        };
        found.push(LeftTensor {
            name: name.to_owned(),
            node,
            reason,
            size_bytes: elements.saturating_mul(bits) / 8,
        });
    };
    for tensor in &graph.initializer {
        take(tensor.name(), tensor);
    }
    for node in graph.node.iter().filter(|node| node.is("Constant")) {
        if let (Some(name), Some(tensor)) = (node.output_name(0), node.tensor("value")) {
            take(name, tensor);
        }
    }
}
