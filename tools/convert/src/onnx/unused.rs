//! What a rewrite leaves without a reader.

use super::order::used_names;
use super::proto::GraphProto;
use std::collections::{HashMap, HashSet};

/// Drops nodes whose results nothing uses, and initializers that no node reads, in a graph and in the bodies inside it.
pub(crate) fn drop_unused(graph: &mut GraphProto) {
    // What a body does not read any more may be all that wanted a value of the graph around it.
    let attributes = graph.node.iter_mut().flat_map(|node| &mut node.attribute);
    for attribute in attributes {
        let bodies = attribute.g.iter_mut().chain(&mut attribute.graphs);
        bodies.for_each(drop_unused);
    }
    let mut producers: HashMap<&str, usize> = HashMap::new();
    for (index, node) in graph.node.iter().enumerate() {
        producers.extend(node.output.iter().map(|output| (output.as_str(), index)));
    }
    let mut live_nodes = vec![false; graph.node.len()];
    let mut live_names: HashSet<String> = HashSet::new();
    let mut wanted: Vec<&str> = graph.output.iter().map(|output| output.name()).collect();
    while let Some(name) = wanted.pop() {
        if live_names.insert(name.to_owned())
            && let Some(&index) = producers.get(name)
            && !std::mem::replace(&mut live_nodes[index], true)
        {
            wanted.extend(used_names(&graph.node[index]));
            // Outputs that are left out have no name.
            let outputs = graph.node[index].output.iter().map(String::as_str);
            wanted.extend(outputs.filter(|name| !name.is_empty()));
        }
    }
    let dropped: HashSet<String> = graph
        .initializer
        .iter()
        .map(|tensor| tensor.name().to_owned())
        .filter(|name| !live_names.contains(name))
        .collect();
    let mut is_live = live_nodes.into_iter();
    graph.node.retain(|_| is_live.next().unwrap_or(true));
    graph
        .initializer
        .retain(|tensor| !dropped.contains(tensor.name()));
    graph.input.retain(|input| !dropped.contains(input.name()));
    graph
        .value_info
        .retain(|value| live_names.contains(value.name()));
    graph
        .quantization_annotation
        .retain(|annotation| live_names.contains(annotation.tensor_name()));
}
