//! Where the modules of an adapter are in a lowered graph.

use super::adapter::Delta;
use niwaki_bundle::graph::{Columns, Graph, MatrixId, Node, Op, Output};
use std::collections::BTreeMap;
use std::ops::Range;

/// Rows of a matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) matrix: MatrixId,
    pub(super) rows: Range<usize>,
}

/// What a projection of a layer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Query,
    Key,
    Value,
    AttentionOutput,
    Gate,
    Up,
    Down,
}

/// The projections of a graph by layer and by what they are for.
pub(super) struct Places {
    layers: Vec<BTreeMap<Role, Place>>,
    head: Option<Place>,
}

impl Places {
    pub(super) fn of(graph: &Graph) -> Places {
        let nodes = &graph.nodes;
        let mut layers: Vec<BTreeMap<Role, Place>> = vec![];
        // Where the order of a graph does not tell which layer a feed-forward part belongs to, none is found.
        let mut ordered = true;
        for (id, node) in nodes.iter().enumerate() {
            match node.op {
                Op::Attention { .. } => {
                    let roles = [Role::Query, Role::Key, Role::Value];
                    let inputs = roles.into_iter().zip(&node.inputs);
                    let mut layer: BTreeMap<Role, Place> = inputs
                        .filter_map(|(role, columns)| Some((role, projection(nodes, *columns)?)))
                        .collect();
                    layer.extend(reader(nodes, id).map(|place| (Role::AttentionOutput, place)));
                    layers.push(layer);
                }
                Op::Gate { .. } | Op::Activate { .. } => {
                    let Some(layer) = layers.last_mut() else {
                        ordered = false;
                        continue;
                    };
                    ordered &= !layer.contains_key(&Role::Up);
                    let roles = match node.op {
                        Op::Gate { .. } => [Some(Role::Gate), Some(Role::Up)],
                        _ => [Some(Role::Up), None],
                    };
                    for (role, columns) in roles.into_iter().flatten().zip(&node.inputs) {
                        layer.extend(projection(nodes, *columns).map(|place| (role, place)));
                    }
                    layer.extend(reader(nodes, id).map(|place| (Role::Down, place)));
                }
                _ => {}
            }
        }
        if !ordered {
            for layer in &mut layers {
                layer.retain(|role, _| !matches!(role, Role::Gate | Role::Up | Role::Down));
            }
        }
        let head = graph.output(Output::LOGITS).and_then(|logits| {
            let width = nodes.get(logits)?.width;
            projection(
                nodes,
                Columns {
                    node: logits,
                    offset: 0,
                    width,
                },
            )
        });
        Places { layers, head }
    }

    /// Where a module is; several places, in the order of its rows, where it is several projections in one.
    pub(super) fn find(&self, delta: &Delta) -> Vec<Place> {
        let mut parts = delta.module.rsplit('.');
        let name = parts.next().unwrap_or_default();
        if matches!(name, "lm_head" | "embed_out") {
            return self.head.iter().cloned().collect();
        }
        let layer = parts.find_map(|part| part.parse::<usize>().ok());
        let Some(layer) = layer.and_then(|layer| self.layers.get(layer)) else {
            return vec![];
        };
        // What Hugging Face's models call them.
        let roles: &[Role] = match name {
            "q_proj" => &[Role::Query],
            "k_proj" => &[Role::Key],
            "v_proj" => &[Role::Value],
            "qkv_proj" | "c_attn" => &[Role::Query, Role::Key, Role::Value],
            "o_proj" | "out_proj" | "dense" => &[Role::AttentionOutput],
            "c_proj" if delta.module.contains("attn") => &[Role::AttentionOutput],
            "gate_proj" => &[Role::Gate],
            "up_proj" | "c_fc" | "fc1" | "fc_in" | "dense_h_to_4h" => &[Role::Up],
            "gate_up_proj" => &[Role::Gate, Role::Up],
            "down_proj" | "c_proj" | "fc2" | "fc_out" | "dense_4h_to_h" => &[Role::Down],
            _ => return vec![],
        };
        let found: Option<Vec<Place>> = roles.iter().map(|role| layer.get(role).cloned()).collect();
        found.unwrap_or_default()
    }
}

/// The rows of the projection that these columns come from, through what treats columns alike.
fn projection(nodes: &[Node], mut columns: Columns) -> Option<Place> {
    loop {
        let node = nodes.get(columns.node)?;
        match node.op {
            Op::Linear { weight, .. } => {
                return Some(Place {
                    matrix: weight,
                    rows: columns.offset..columns.offset + columns.width,
                });
            }
            Op::Norm { .. }
            | Op::Rope { .. }
            | Op::Scale { .. }
            | Op::Softcap { .. }
            | Op::Round { .. }
            | Op::LastRows => {
                let from = *node.inputs.first()?;
                columns = Columns {
                    node: from.node,
                    offset: from.offset + columns.offset,
                    width: columns.width,
                };
            }
            _ => return None,
        }
    }
}

/// The projection that reads a node, all its rows, where it reads all of it.
fn reader(nodes: &[Node], id: usize) -> Option<Place> {
    let found = nodes.iter().enumerate().find_map(|(reader, node)| {
        let from = node.inputs.first()?;
        (from.node == id && from.width == nodes[id].width).then_some((reader, node))
    })?;
    match found {
        (
            _,
            Node {
                op: Op::Linear { weight, .. },
                width,
                ..
            },
        ) => Some(Place {
            matrix: *weight,
            rows: 0..*width,
        }),
        (
            next,
            Node {
                op: Op::Norm { .. } | Op::Round { .. } | Op::Scale { .. },
                ..
            },
        ) => reader(nodes, next),
        _ => None,
    }
}
