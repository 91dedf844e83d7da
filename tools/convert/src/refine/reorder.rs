//! A graph whose channels are in another order, and which computes the same.

use super::spaces::{SpaceId, Spaces};
use crate::lower::Lowered;
use niwaki_bundle::graph::{Graph, Op, VectorId, WeightId};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// For each space that is reordered, where each of its channels was before.
pub(super) type Orders = BTreeMap<SpaceId, Arc<[usize]>>;

/// Puts the channels of spaces in a new order. Sums over channels are added up in that order: values change by rounding.
pub(super) fn reorder(lowered: &mut Lowered, spaces: &Spaces, orders: &Orders) {
    for (id, matrix) in lowered.parts.matrices.iter_mut().enumerate() {
        let columns = spaces.of_matrix_columns(id);
        let columns = columns.and_then(|space| orders.get(&space).cloned());
        let rows = whole(matrix.rows(), spaces.of_matrix_rows(id), orders);
        matrix.reorder(rows, columns);
    }
    let mut uses = vector_uses(&lowered.graph);
    for id in 0..lowered.graph.nodes.len() {
        let node = &mut lowered.graph.nodes[id];
        let Some(order) = whole(node.width, spaces.of_value(id), orders) else {
            continue;
        };
        let vectors = match &mut node.op {
            Op::Norm { weight, bias, .. } => [weight.as_mut(), bias.as_mut()],
            Op::Linear { bias, .. } => [bias.as_mut(), None],
            _ => [None, None],
        };
        for vector in vectors.into_iter().flatten() {
            *vector = reordered(&mut lowered.parts.vectors, *vector, &order, &mut uses);
        }
    }
}

/// The order of all of `width` channels, of which parts are reordered; `None` if none is.
fn whole(
    width: usize,
    parts: Vec<(Range<usize>, SpaceId)>,
    orders: &Orders,
) -> Option<Arc<[usize]>> {
    let mut order: Option<Vec<usize>> = None;
    for (channels, space) in parts {
        let Some(part) = orders.get(&space) else {
            continue;
        };
        let order = order.get_or_insert_with(|| (0..width).collect());
        for (place, from) in order[channels.clone()].iter_mut().zip(part.iter()) {
            *place = channels.start + from;
        }
    }
    order.map(Arc::from)
}

/// A vector in another order: in its own place if nothing else reads it as it was.
fn reordered(
    vectors: &mut Vec<(String, Vec<f32>)>,
    id: VectorId,
    order: &[usize],
    uses: &mut BTreeMap<VectorId, usize>,
) -> VectorId {
    let (name, values) = &vectors[id];
    let new = (
        name.clone(),
        order.iter().map(|from| values[*from]).collect(),
    );
    let left = uses.entry(id).or_insert(1);
    *left -= 1;
    if *left == 0 {
        vectors[id] = new;
        return id;
    }
    vectors.push(new);
    vectors.len() - 1
}

/// How often each vector is read.
fn vector_uses(graph: &Graph) -> BTreeMap<VectorId, usize> {
    let mut uses = BTreeMap::new();
    for weight in graph.nodes.iter().flat_map(|node| node.op.weights()) {
        if let WeightId::Vector(id) = weight {
            *uses.entry(id).or_default() += 1;
        }
    }
    uses
}
