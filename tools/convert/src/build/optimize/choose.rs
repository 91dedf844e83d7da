//! Which method, and which matrices are worth more bytes: both by what was measured.

use super::measure::{Measure, Quality};
use super::{Optimizer, Tried};
use crate::build::formats::{Assignment, format_of, of_code};
use crate::build::layers::layers;
use crate::build::{Budget, BuildError};
use crate::plan::{Code, Fate, MatrixKind};
use niwaki_bundle::graph::{MatrixId, Op};
use std::collections::BTreeMap;

/// The method with the least divergence, with the matrices' usual codes.
pub(super) fn method(
    optimizer: &Optimizer<'_>,
    measure: &Measure,
    tried: &mut Vec<Tried>,
    on_window: &mut dyn FnMut(),
) -> Result<(Assignment, Quality), BuildError> {
    let quantizers = optimizer.options.quantizers;
    let assignments: Vec<Assignment> = (0..quantizers.len())
        .map(|quantizer| Assignment {
            quantizer,
            codes: BTreeMap::new(),
        })
        .collect();
    let found = measure.measure(optimizer, &assignments, on_window)?;
    for (quantizer, (quality, size_bytes)) in quantizers.iter().zip(&found) {
        tried.push(Tried {
            what: quantizer.description(),
            kl_nats: quality.kl_nats,
            size_bytes: *size_bytes,
        });
    }
    let pairs = assignments.into_iter().zip(found);
    let best = pairs.min_by(|(_, a), (_, b)| a.0.kl_nats.total_cmp(&b.0.kl_nats));
    best.map(|(assignment, (quality, _))| (assignment, quality))
        .ok_or(BuildError::NoQuantizer)
}

/// Matrices that get another code together: of one kind, in one part of the layers.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) name: String,
    matrices: Vec<MatrixId>,
    /// What their better code takes more.
    pub(super) added_bytes: u64,
    /// How much nearer the predictions come to the float model's.
    pub(super) gain_nats: f64,
}

/// The groups in the order of what they gain for a byte, each measured alone.
pub(super) fn groups(
    optimizer: &Optimizer<'_>,
    measure: &Measure,
    base: &Assignment,
    quality: &Quality,
    tried: &mut Vec<Tried>,
    on_window: &mut dyn FnMut(),
) -> Result<Vec<Group>, BuildError> {
    let mut groups = cut(optimizer, base);
    let assignments: Vec<Assignment> = groups
        .iter()
        .map(|group| with(base, std::slice::from_ref(group)))
        .collect();
    let found = measure.measure(optimizer, &assignments, on_window)?;
    for (group, (with_it, size_bytes)) in groups.iter_mut().zip(found) {
        group.gain_nats = quality.kl_nats - with_it.kl_nats;
        tried.push(Tried {
            what: format!("{} in int8", group.name),
            kl_nats: with_it.kl_nats,
            size_bytes,
        });
    }
    groups.sort_by(|a, b| {
        let of_a_byte = |group: &Group| group.gain_nats / group.added_bytes.max(1) as f64;
        of_a_byte(b).total_cmp(&of_a_byte(a))
    });
    // What makes it worse is noise.
    groups.retain(|group| group.gain_nats > 0.0);
    Ok(groups)
}

/// How many groups there are to measure.
pub(super) fn count(optimizer: &Optimizer<'_>, base: &Assignment) -> usize {
    cut(optimizer, base).len()
}

/// The base with these groups in int8.
pub(super) fn with(base: &Assignment, groups: &[Group]) -> Assignment {
    let mut assignment = base.clone();
    for group in groups {
        let codes = group.matrices.iter().map(|matrix| (*matrix, Code::Int8));
        assignment.codes.extend(codes);
    }
    assignment
}

/// The groups that the budget has room for, the best first; one that does not fit leaves room for smaller ones.
pub(super) fn within(
    optimizer: &Optimizer<'_>,
    base_bytes: u64,
    budget: Budget,
    groups: &[Group],
) -> Result<Vec<Group>, BuildError> {
    let matrices = &optimizer.lowered.parts.matrices;
    let weights: u64 = matrices
        .iter()
        .map(|matrix| (matrix.rows() * matrix.cols()) as u64)
        .sum();
    let room_bytes = match budget {
        Budget::SizeBytes(size_bytes) => size_bytes as f64 - base_bytes as f64,
        Budget::BitsPerWeight(bits) => {
            let (_, stored) = optimizer.plan(&Assignment::default());
            let sizes = matrices.iter().zip(&stored).map(|(matrix, stored)| {
                stored
                    .format
                    .size_bytes(matrix.rows(), matrix.cols())
                    .unwrap_or(0) as f64
            });
            bits * weights as f64 / 8.0 - sizes.sum::<f64>()
        }
    };
    if room_bytes < 0.0 {
        return Err(BuildError::BudgetTooSmall {
            budget,
            least_bytes: base_bytes,
            least_bits: 8.0 * base_bytes as f64 / weights.max(1) as f64,
        });
    }
    let mut left = room_bytes;
    let fitting = groups.iter().filter(|group| {
        let fits = group.added_bytes as f64 <= left;
        if fits {
            left -= group.added_bytes as f64;
        }
        fits
    });
    Ok(fitting.cloned().collect())
}

/// Parts of the layers: the first ones and the last ones are more sensitive than others.
const PARTS: [&str; 3] = ["first layers", "middle layers", "last layers"];

/// The matrices that could be int8, by kind and part.
fn cut(optimizer: &Optimizer<'_>, base: &Assignment) -> Vec<Group> {
    let (plan, stored) = optimizer.plan(base);
    let nodes = &optimizer.lowered.graph.nodes;
    let count = optimizer.lowered.graph.layers.len().max(1);
    let layer_of = layers(&optimizer.lowered.graph, &plan);
    let attentions = nodes
        .iter()
        .filter(|node| matches!(node.op, Op::Attention { .. }));
    let values: Vec<usize> = attentions
        .filter_map(|node| node.inputs.get(2))
        .map(|columns| columns.node)
        .collect();
    let is_value = |matrix: MatrixId| {
        values.iter().any(|node| {
            matches!(nodes[*node].op, Op::Linear { weight, .. } if weight == matrix)
                && !nodes.iter().any(|reader| {
                    matches!(reader.op, Op::Attention { .. })
                        && reader
                            .inputs
                            .iter()
                            .take(2)
                            .any(|columns| columns.node == *node)
                })
        })
    };
    let mut groups: Vec<Group> = vec![];
    for (id, (planned, stored)) in plan.matrices.iter().zip(&stored).enumerate() {
        let Fate::Quantize(Code::Int4 | Code::Codebook4) = stored.fate else {
            continue;
        };
        // More bits would not make it any nearer.
        if optimizer.lattices.contains_key(&id) {
            continue;
        }
        let layer = layer_of.get(&id).copied().unwrap_or(0);
        let part = if layer * 6 < count {
            PARTS[0]
        } else if layer * 6 >= count * 5 {
            PARTS[2]
        } else {
            PARTS[1]
        };
        let kind = match planned.kind {
            MatrixKind::Qkv if is_value(id) => "v",
            kind => kind.name(),
        };
        let name = if planned.kind.is_inside_layers() {
            format!("{kind} of the {part}")
        } else {
            kind.to_owned()
        };
        let bytes = |format: niwaki_kernels::MatrixFormat| {
            format
                .size_bytes(planned.rows, planned.columns)
                .unwrap_or(0) as u64
        };
        let added_bytes =
            bytes(format_of(of_code(Code::Int8))).saturating_sub(bytes(stored.format));
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => {
                group.matrices.push(id);
                group.added_bytes += added_bytes;
            }
            None => groups.push(Group {
                name,
                matrices: vec![id],
                added_bytes,
                gain_nats: 0.0,
            }),
        }
    }
    groups
}
