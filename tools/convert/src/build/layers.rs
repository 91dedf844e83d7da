//! Which layer a matrix is in.

use crate::plan::{MatrixKind, Plan};
use niwaki_bundle::graph::{Graph, MatrixId, Op};
use std::collections::BTreeMap;

/// The layer of each matrix that is inside one, counted from 0: a matrix belongs to the layer whose attention is the next
/// or, after it, was the last.
pub(super) fn layers(graph: &Graph, plan: &Plan) -> BTreeMap<MatrixId, usize> {
    let mut layers = BTreeMap::new();
    let mut attentions = 0;
    for node in &graph.nodes {
        if let Op::Attention { .. } = node.op {
            attentions += 1;
        }
        for matrix in node.op.matrices() {
            let Some(kind) = plan.matrices.get(matrix).map(|planned| planned.kind) else {
                continue;
            };
            if !kind.is_inside_layers() {
                continue;
            }
            let layer = match kind {
                MatrixKind::Qkv => attentions,
                _ => usize::max(attentions, 1) - 1,
            };
            layers.entry(matrix).or_insert(layer);
        }
    }
    layers
}
