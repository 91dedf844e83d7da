//! Putting a graph's nodes in an order in which each comes after those whose results it uses.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
};

use super::{
    OnnxError,
    proto::{GraphProto, NodeProto},
};

/// The nodes in topological order; among those that are ready, the file's order is kept, so a sorted graph stays as it is.
/// What a node's subgraphs use of the graph around them counts as its input.
///
/// # Errors
/// When nodes form a cycle, or one value is computed twice.
pub fn sorted_nodes(graph: &GraphProto) -> Result<Vec<&NodeProto>, OnnxError> {
    let mut producers = HashMap::new();
    for (index, node) in graph.node.iter().enumerate() {
        for output in node.output.iter().filter(|name| !name.is_empty()) {
            if producers.insert(output.as_str(), index).is_some() {
                return Err(OnnxError::node(
                    node,
                    format!("value {output:?} is computed by two nodes"),
                ));
            }
        }
    }
    let mut waiting = vec![0usize; graph.node.len()];
    let mut users = vec![Vec::new(); graph.node.len()];
    for (index, node) in graph.node.iter().enumerate() {
        let needed: HashSet<usize> = used_names(node)
            .into_iter()
            .filter_map(|name| producers.get(name).copied())
            .collect();
        waiting[index] = needed.len();
        for producer in needed {
            users[producer].push(index);
        }
    }
    let mut ready: BinaryHeap<_> = waiting
        .iter()
        .enumerate()
        .filter(|(_, count)| **count == 0)
        .map(|(index, _)| Reverse(index))
        .collect();
    let mut sorted = Vec::with_capacity(graph.node.len());
    while let Some(Reverse(index)) = ready.pop() {
        sorted.push(&graph.node[index]);
        for &user in &users[index] {
            waiting[user] -= 1;
            if waiting[user] == 0 {
                ready.push(Reverse(user));
            }
        }
    }
    match waiting.iter().position(|&count| count > 0) {
        Some(index) => Err(OnnxError::node(
            &graph.node[index],
            "it depends on its own result",
        )),
        None => Ok(sorted),
    }
}

/// Every value that a node reads: its inputs, and what its subgraphs read without defining it themselves.
pub fn used_names(node: &NodeProto) -> Vec<&str> {
    let mut names: Vec<&str> = node
        .input
        .iter()
        .map(String::as_str)
        .filter(|name| !name.is_empty())
        .collect();
    for graph in node.subgraphs() {
        let defined: HashSet<&str> = graph
            .input
            .iter()
            .map(|input| input.name())
            .chain(graph.initializer.iter().map(|tensor| tensor.name()))
            .chain(
                graph
                    .node
                    .iter()
                    .flat_map(|node| node.output.iter().map(String::as_str)),
            )
            .collect();
        let inner = graph
            .node
            .iter()
            .flat_map(used_names)
            .chain(graph.output.iter().map(|output| output.name()));
        names.extend(inner.filter(|name| !defined.contains(name)));
    }
    names
}
