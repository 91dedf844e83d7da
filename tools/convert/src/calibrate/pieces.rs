//! A lowered graph, cut where one value carries everything on.

use crate::lower::Lowered;
use niwaki_bundle::graph::{Columns, MatrixId, Node, Op, RowSet};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A lowered graph without the rows it drops, and where it is cut.
pub(super) struct Pieces<'a> {
    pub(super) lowered: &'a Lowered,
    pub(super) nodes: Vec<Node>,
    /// Nodes after which nothing earlier is read; ascending.
    cuts: Vec<usize>,
}

/// A product: the node that computes it and the columns that it reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub(super) node: usize,
    pub(super) matrix: MatrixId,
    pub(super) reads: Columns,
}

impl<'a> Pieces<'a> {
    pub(super) fn of(lowered: &'a Lowered) -> Pieces<'a> {
        let nodes = with_all_rows(&lowered.graph.nodes);
        let row_sets = lowered.graph.row_sets().unwrap_or_default();
        let mut cuts = cuts(&nodes);
        // A piece begins with a row per token.
        cuts.retain(|id| row_sets.get(*id) != Some(&RowSet::Sequences));
        Pieces {
            lowered,
            nodes,
            cuts,
        }
    }

    /// The same in one piece.
    #[cfg(test)]
    pub(super) fn uncut(mut self) -> Self {
        self.cuts.clear();
        self
    }

    #[cfg(test)]
    pub(super) fn cuts(&self) -> usize {
        self.cuts.len()
    }

    /// The pieces in order, as ranges of nodes. The last node of each but the last carries everything on.
    pub(super) fn ranges(&self) -> Vec<Range<usize>> {
        let ends = self.cuts.iter().map(|cut| cut + 1);
        let mut first = 0;
        let mut ranges: Vec<Range<usize>> = ends
            .map(|end| std::mem::replace(&mut first, end)..end)
            .collect();
        if first < self.nodes.len() {
            ranges.push(first..self.nodes.len());
        }
        ranges
    }

    /// The first product with each of `matrices`, in order.
    pub(super) fn products(&self, matrices: &BTreeSet<MatrixId>) -> Vec<Product> {
        let mut seen = BTreeSet::new();
        let nodes = self.nodes.iter().enumerate();
        nodes
            .filter_map(|(node, Node { op, inputs, .. })| match op {
                Op::Linear { weight, .. } => Some(Product {
                    node,
                    matrix: *weight,
                    reads: *inputs.first()?,
                }),
                _ => None,
            })
            .filter(|product| matrices.contains(&product.matrix) && seen.insert(product.matrix))
            .collect()
    }

    /// Whether a node from `first` on reads a matrix.
    pub(super) fn reads(&self, matrix: MatrixId, first: usize) -> bool {
        let mut nodes = self.nodes.iter().skip(first);
        nodes.any(|node| node.op.matrices().any(|read| read == matrix))
    }

    /// Products in the order in which they can be replaced: none reads what another of its stage computes.
    pub(super) fn stages(&self, products: &[Product]) -> Vec<Vec<Product>> {
        let of_nodes: BTreeSet<usize> = products.iter().map(|product| product.node).collect();
        let mut before: Vec<usize> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            // Products on the longest way to the node.
            let reads = node.inputs.iter().map(|columns| {
                before[columns.node] + usize::from(of_nodes.contains(&columns.node))
            });
            before.push(reads.max().unwrap_or(0));
        }
        let mut stages: BTreeMap<usize, Vec<Product>> = BTreeMap::new();
        for product in products {
            stages
                .entry(before[product.node])
                .or_default()
                .push(*product);
        }
        stages.into_values().collect()
    }

    /// The nodes that `targets` depend on, themselves included, but for what lies at or before `start`.
    pub(super) fn needed(&self, start: Option<usize>, targets: &[usize]) -> BTreeSet<usize> {
        let there = |id: usize| start.is_some_and(|start| id <= start);
        let mut needed = BTreeSet::new();
        let mut open = targets.to_vec();
        while let Some(id) = open.pop() {
            if !there(id) && needed.insert(id) {
                open.extend(self.nodes[id].inputs.iter().map(|columns| columns.node));
            }
        }
        needed
    }
}

/// The nodes without [`Op::LastRows`]: calibration looks at every token to the end.
fn with_all_rows(nodes: &[Node]) -> Vec<Node> {
    let mut nodes = nodes.to_vec();
    for id in 0..nodes.len() {
        for input in 0..nodes[id].inputs.len() {
            let Columns {
                node,
                offset,
                width,
            } = nodes[id].inputs[input];
            if matches!(nodes[node].op, Op::LastRows) {
                let source = nodes[node].inputs[0];
                nodes[id].inputs[input] = Columns {
                    node: source.node,
                    offset: source.offset + offset,
                    width,
                };
            }
        }
    }
    nodes
}

/// Nodes after which nothing earlier is read.
fn cuts(nodes: &[Node]) -> Vec<usize> {
    // For each node, the first one that it or a later node reads; sources read what was there before all.
    let mut earliest = usize::MAX;
    let mut cuts = vec![];
    for (id, node) in nodes.iter().enumerate().rev() {
        if matches!(node.op, Op::LastRows) {
            continue;
        }
        if earliest == id {
            cuts.push(id);
        }
        let reads = node
            .inputs
            .iter()
            .map(|columns| columns.node)
            .min()
            .unwrap_or(0);
        earliest = earliest.min(reads);
        if node.inputs.is_empty() {
            break;
        }
    }
    cuts.reverse();
    cuts
}
