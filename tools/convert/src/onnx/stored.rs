//! The tensors that a graph holds, wherever it does.

use super::proto::{GraphProto, TensorProto};

/// Calls `visit` with every tensor that the graph itself holds, initializers and constants, and the name of its value.
pub(crate) fn for_each_stored(
    graph: &mut GraphProto,
    mut visit: impl FnMut(&str, &mut TensorProto),
) {
    for tensor in &mut graph.initializer {
        let name = tensor.name().to_owned();
        visit(&name, tensor);
    }
    for node in graph.node.iter_mut().filter(|node| node.is("Constant")) {
        let value = node.output.first().cloned().unwrap_or_default();
        let tensors = node.attribute.iter_mut().filter_map(|a| a.t.as_mut());
        tensors.for_each(|tensor| visit(&value, tensor));
    }
}
