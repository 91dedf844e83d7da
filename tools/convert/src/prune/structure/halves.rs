//! The halves of a lowered model's layers: what each computes in parts that can go, and what reads it.

use crate::lower::Lowered;
use crate::plan::{MatrixKind, kinds};
use niwaki_bundle::graph::{Columns, MatrixId, Node, NormKind, Op};
use std::ops::Range;

/// A projection that joins the stream, and what computes its inputs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Half {
    /// The node of the projection.
    pub(super) reader: usize,
    /// Its matrix.
    pub(super) matrix: MatrixId,
    pub(super) kind: HalfKind,
    /// Parts that can go, each on its own.
    pub(super) parts: usize,
    /// Columns of the projection's matrix for each part, part after part.
    pub(super) columns_per_part: usize,
    /// What computes the parts.
    pub(super) sources: Vec<Source>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HalfKind {
    /// Parts are key/value heads with their query heads.
    Attention {
        layer: usize,
        query_heads_per_part: usize,
    },
    /// Parts are channels.
    FeedForward,
}

/// Rows of a matrix that compute parts, part after part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) node: usize,
    pub(super) first_row: usize,
    pub(super) rows_per_part: usize,
}

impl Half {
    /// The columns of a part.
    pub(super) fn columns(&self, part: usize) -> Range<usize> {
        part * self.columns_per_part..(part + 1) * self.columns_per_part
    }

    /// The columns of some parts.
    pub(super) fn columns_of(&self, parts: &[usize]) -> Vec<usize> {
        parts.iter().flat_map(|part| self.columns(*part)).collect()
    }
}

/// All halves whose parts can be told apart, in the order of the graph.
pub(super) fn halves(lowered: &Lowered) -> Vec<Half> {
    let graph = &lowered.graph;
    let kinds = kinds(graph);
    let nodes = graph.nodes.iter().enumerate();
    nodes
        .filter_map(|(reader, node)| {
            let Op::Linear { weight, .. } = node.op else {
                return None;
            };
            let input = of_every_row(&graph.nodes, *node.inputs.first()?);
            let readers = graph.nodes.iter().filter(|node| {
                let mut matrices = node.op.matrices();
                matrices.any(|matrix| matrix == weight)
            });
            let read = graph.nodes.get(input.node)?;
            let whole = input.offset == 0 && input.width == read.width;
            if readers.count() != 1 || !whole || lowered.parts.matrices[weight].is_quantized() {
                return None;
            }
            let half = |kind, parts: usize, sources| Half {
                reader,
                matrix: weight,
                kind,
                parts,
                columns_per_part: read.width / parts.max(1),
                sources,
            };
            match (&read.op, kinds.get(&weight)?) {
                (Op::Gate { .. } | Op::Activate { .. }, MatrixKind::Down) => {
                    let sources = read.inputs.iter().map(|columns| {
                        let (node, first_row) = projection(&graph.nodes, *columns, None)?;
                        Some(Source {
                            node,
                            first_row,
                            rows_per_part: 1,
                        })
                    });
                    let sources = sources.collect::<Option<Vec<_>>>()?;
                    Some(half(HalfKind::FeedForward, read.width, sources))
                }
                (Op::Attention { layer, heads, .. }, MatrixKind::AttentionOutput) => {
                    let kv = graph.layers.get(*layer)?;
                    let per_part = heads.checked_div(kv.kv_heads)?;
                    let sources = read.inputs.iter().enumerate().map(|(index, columns)| {
                        let (node, first_row) =
                            projection(&graph.nodes, *columns, Some(kv.head_dim))?;
                        let heads = if index == 0 { per_part } else { 1 };
                        Some(Source {
                            node,
                            first_row,
                            rows_per_part: heads * kv.head_dim,
                        })
                    });
                    let sources = sources.collect::<Option<Vec<_>>>()?;
                    let kind = HalfKind::Attention {
                        layer: *layer,
                        query_heads_per_part: per_part,
                    };
                    Some(half(kind, kv.kv_heads, sources))
                }
                _ => None,
            }
        })
        .collect()
}

/// Some columns of a value with all its rows, as they were before those that nobody asked for were dropped.
fn of_every_row(nodes: &[Node], mut columns: Columns) -> Columns {
    while let Some(node) = nodes.get(columns.node)
        && matches!(node.op, Op::LastRows)
        && let Some(source) = node.inputs.first()
    {
        columns = Columns {
            node: source.node,
            offset: source.offset + columns.offset,
            width: columns.width,
        };
    }
    columns
}

/// Where a half joins the stream: the node of the stream before it, and the node that adds to it. `None` where it does so in
/// another way.
pub(super) fn joint(nodes: &[Node], half: &Half) -> Option<(usize, usize)> {
    // Through a norm of what is added, and a factor.
    let mut value = half.reader;
    loop {
        let (id, node) = nodes
            .iter()
            .enumerate()
            .find(|(_, node)| node.inputs.iter().any(|columns| columns.node == value))?;
        match node.op {
            Op::Add { .. } => {
                let other = node.inputs.iter().find(|columns| columns.node != value)?;
                return Some((of_every_row(nodes, *other).node, id));
            }
            Op::Norm { .. } | Op::Scale { .. } => value = id,
            _ => return None,
        }
    }
}

/// The projection that computes some columns, and the first of its rows; through what works on each head on its own.
fn projection(nodes: &[Node], columns: Columns, head_dim: Option<usize>) -> Option<(usize, usize)> {
    let (mut id, mut offset) = (columns.node, columns.offset);
    loop {
        let node = nodes.get(id)?;
        let passes = match node.op {
            Op::Linear { .. } => return Some((id, offset)),
            Op::LastRows => true,
            Op::Rope { .. } => head_dim.is_some(),
            Op::Norm {
                kind: NormKind::Rms | NormKind::Layer,
                group,
                ..
            } => head_dim == Some(group),
            _ => false,
        };
        let input = node.inputs.first().filter(|_| passes)?;
        (id, offset) = (input.node, input.offset + offset);
    }
}
