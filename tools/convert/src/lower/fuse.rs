//! Rewrites of a recognised graph: projections of the same input become one, and rows whose logits nobody
//! asked for are dropped after the last attention.

use super::parts::{ChannelOrder, Matrix, Parts};
use niwaki_bundle::RowOrigin;
use niwaki_bundle::graph::{Columns, Node, Op, WeightMut};
use niwaki_kernels::MatrixFormat;

/// Joins projections that read the same columns: query, key and value; gate and up.
pub(super) fn fuse_projections(nodes: &mut Vec<Node>, logits: &mut usize, parts: &mut Parts) {
    let uses = |nodes: &[Node], id: usize| {
        nodes
            .iter()
            .filter(|node| node.op.matrices().any(|matrix| matrix == id))
            .count()
    };
    let mut formats: Vec<Option<(bool, MatrixFormat)>> = vec![None; parts.matrices.len()];
    let mut format = |parts: &Parts, id: usize| {
        *formats[id].get_or_insert_with(|| {
            let matrix: &Matrix = &parts.matrices[id];
            (matrix.is_quantized(), matrix.exact_format().0)
        })
    };
    let mut first = 0;
    while first < nodes.len() {
        let Op::Linear { weight, .. } = nodes[first].op else {
            first += 1;
            continue;
        };
        let input = nodes[first].inputs[0];
        let mut group = vec![first];
        if first != *logits && uses(nodes, weight) == 1 {
            for other in first + 1..nodes.len() {
                if let Op::Linear {
                    weight: other_weight,
                    ..
                } = nodes[other].op
                    && nodes[other].inputs[0] == input
                    && other != *logits
                    && uses(nodes, other_weight) == 1
                    && format(parts, weight) == format(parts, other_weight)
                {
                    group.push(other);
                }
            }
        }
        if group.len() > 1 {
            join(nodes, &group, parts);
        }
        first += 1;
    }
    compact(nodes, logits, parts);
}

/// Makes the first node of `group` compute all of them; their readers read columns of it.
fn join(nodes: &mut [Node], group: &[usize], parts: &mut Parts) {
    let mut stack = vec![];
    let mut origins = vec![];
    let mut bias = vec![];
    let mut offsets = vec![];
    let mut width = 0;
    let mut biased = false;
    for &id in group {
        let Op::Linear { weight, bias: own } = nodes[id].op else {
            continue;
        };
        offsets.push(width);
        width += nodes[id].width;
        stack.append(&mut parts.matrices[weight].stack);
        origins.push(RowOrigin {
            node: nodes[id].name.clone(),
            rows: nodes[id].width,
        });
        match own {
            Some(own) => {
                biased = true;
                bias.append(&mut parts.vectors[own].1);
            }
            None => bias.resize(width, 0.0),
        }
    }
    let name = group
        .iter()
        .map(|&id| nodes[id].name.as_str())
        .collect::<Vec<_>>()
        .join(" + ");
    parts.matrices.push(Matrix {
        name: name.clone(),
        stack,
        origins,
        order: ChannelOrder::default(),
    });
    let bias = biased.then(|| parts.vector(&format!("{name}/bias"), bias));
    let input = nodes[group[0]].inputs[0];
    let op = Op::Linear {
        weight: parts.matrices.len() - 1,
        bias,
    };
    nodes[group[0]] = Node {
        name,
        op,
        inputs: vec![input],
        width,
    };
    for (&id, &offset) in group.iter().zip(&offsets) {
        for node in nodes.iter_mut() {
            for columns in &mut node.inputs {
                if columns.node == id {
                    // The joined node comes first in the group, so its own readers move by offset 0.
                    *columns = Columns {
                        node: group[0],
                        offset: columns.offset + offset,
                        width: columns.width,
                    };
                }
            }
        }
    }
}

/// Drops nodes, matrices and vectors that nothing reads, and renumbers what is left.
fn compact(nodes: &mut Vec<Node>, logits: &mut usize, parts: &mut Parts) {
    let mut live = vec![false; nodes.len()];
    live[*logits] = true;
    for id in (0..nodes.len()).rev() {
        if live[id] {
            for columns in &nodes[id].inputs {
                live[columns.node] = true;
            }
        }
    }
    let mut ids = vec![usize::MAX; nodes.len()];
    let mut kept = vec![];
    for (id, mut node) in std::mem::take(nodes).into_iter().enumerate() {
        if live[id] {
            for columns in &mut node.inputs {
                columns.node = ids[columns.node];
            }
            ids[id] = kept.len();
            kept.push(node);
        }
    }
    *logits = ids[*logits];
    *nodes = kept;
    let mut matrices = vec![None; parts.matrices.len()];
    let mut vectors = vec![None; parts.vectors.len()];
    let mut new = Parts::default();
    for node in nodes {
        for weight in node.op.weights_mut() {
            match weight {
                WeightMut::Matrix(id) => {
                    *id = *matrices[*id].get_or_insert_with(|| {
                        new.matrices.push(parts.matrices[*id].clone());
                        new.matrices.len() - 1
                    });
                }
                WeightMut::Vector(id) => {
                    *id = *vectors[*id].get_or_insert_with(|| {
                        new.vectors.push(parts.vectors[*id].clone());
                        new.vectors.len() - 1
                    });
                }
            }
        }
    }
    *parts = new;
}

/// After the last attention a row's values depend on that row alone: there only the rows asked for go on.
pub(super) fn keep_last_rows(nodes: &mut Vec<Node>, logits: &mut usize) {
    let after = nodes
        .iter()
        .rposition(|node| matches!(node.op, Op::Attention { .. }))
        .map_or(0, |last| last + 1);
    let mut result: Vec<Node> = nodes[..after].to_vec();
    let mut ids: Vec<usize> = (0..after).collect();
    let mut kept: Vec<(Columns, usize)> = vec![];
    for node in &nodes[after..] {
        let mut node = node.clone();
        for columns in &mut node.inputs {
            if columns.node >= after {
                columns.node = ids[columns.node];
                continue;
            }
            let held = kept
                .iter()
                .find(|(from, _)| from == columns)
                .map(|(_, id)| *id);
            let id = held.unwrap_or_else(|| {
                let name = format!("{}/last_rows", nodes[columns.node].name);
                result.push(Node {
                    name,
                    op: Op::LastRows,
                    inputs: vec![*columns],
                    width: columns.width,
                });
                kept.push((*columns, result.len() - 1));
                result.len() - 1
            });
            *columns = Columns {
                node: id,
                offset: 0,
                width: columns.width,
            };
        }
        ids.push(result.len());
        result.push(node);
    }
    *logits = ids[*logits];
    *nodes = result;
}
