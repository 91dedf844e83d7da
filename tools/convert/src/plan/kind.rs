//! What a matrix is for.

use crate::lower::{ModelFacts, Rounding, lower};
use crate::onnx::OnnxModel;
use niwaki_bundle::graph::{Columns, Graph, InputKind, MatrixId, Node, Op, Output};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What a matrix is for. Matrices of one kind have about as much to lose, so they are treated alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MatrixKind {
    /// The token embedding.
    Embedding,
    /// The token embedding that is the output head as well.
    EmbeddingAndHead,
    /// A table of positions, which is added to the embedding.
    PositionTable,
    /// What attention reads: queries, keys, values, or several of them in one.
    Qkv,
    /// What reads the attention.
    AttentionOutput,
    /// What goes into a gate or an activation.
    GateUp,
    /// What reads the gate or the activation.
    Down,
    /// The projection that gives the logits.
    Head,
    /// Any other.
    Other,
}

impl MatrixKind {
    /// The name that people read.
    pub fn name(self) -> &'static str {
        match self {
            MatrixKind::Embedding => "embedding",
            MatrixKind::EmbeddingAndHead => "embedding, head",
            MatrixKind::PositionTable => "position table",
            MatrixKind::Qkv => "q/k/v",
            MatrixKind::AttentionOutput => "o",
            MatrixKind::GateUp => "gate/up",
            MatrixKind::Down => "down",
            MatrixKind::Head => "head",
            MatrixKind::Other => "other",
        }
    }

    /// Whether rows of it are looked up.
    pub fn is_table(self) -> bool {
        self.is_embedding() || self == MatrixKind::PositionTable
    }

    /// Whether rows of it are looked up by token ids.
    pub fn is_embedding(self) -> bool {
        matches!(self, MatrixKind::Embedding | MatrixKind::EmbeddingAndHead)
    }

    /// Whether it is a projection inside the layers.
    pub fn is_inside_layers(self) -> bool {
        !self.is_table() && self != MatrixKind::Head
    }
}

/// The kind of each matrix that a graph reads.
pub fn kinds(graph: &Graph) -> BTreeMap<MatrixId, MatrixKind> {
    let head = graph
        .output(Output::LOGITS)
        .and_then(|logits| head(&graph.nodes, logits));
    let mut kinds = BTreeMap::new();
    for (id, node) in graph.nodes.iter().enumerate() {
        for matrix in node.op.matrices() {
            let kind = match node.op {
                Op::PositionEmbed { .. } => MatrixKind::PositionTable,
                Op::Embed { input, .. } => match graph.inputs.get(input).map(|input| input.kind) {
                    Some(InputKind::TokenIds { .. }) => MatrixKind::Embedding,
                    _ => MatrixKind::Other,
                },
                _ if Some(id) == head => MatrixKind::Head,
                _ => projection(&graph.nodes, id),
            };
            let held = kinds.entry(matrix).or_insert(kind);
            *held = joined(*held, kind);
        }
    }
    kinds
}

/// The kinds of the matrices that an ONNX model's nodes read, by the nodes' names. Where the model does not lower, nothing
/// is known of them.
pub fn kinds_by_node(model: &OnnxModel, facts: &ModelFacts) -> BTreeMap<String, MatrixKind> {
    let Ok(lowered) = lower(model, facts, Rounding::Niwaki) else {
        return BTreeMap::new();
    };
    let kinds = kinds(&lowered.graph);
    let mut by_node = BTreeMap::new();
    for node in &lowered.graph.nodes {
        for matrix in node.op.matrices() {
            let Some(kind) = kinds.get(&matrix) else {
                continue;
            };
            by_node.insert(node.name.clone(), *kind);
            let origins = lowered.parts.matrices[matrix].origins.iter();
            by_node.extend(origins.map(|origin| (origin.node.clone(), *kind)));
        }
    }
    by_node
}

/// The kind of a matrix that is of two.
fn joined(a: MatrixKind, b: MatrixKind) -> MatrixKind {
    use MatrixKind::{Embedding, EmbeddingAndHead, Head, Other};
    match (a, b) {
        _ if a == b => a,
        (Embedding | EmbeddingAndHead, Head) | (Head, Embedding | EmbeddingAndHead) => {
            EmbeddingAndHead
        }
        // Whatever else looks up its rows or gives the logits with it: that is what it can lose most by.
        (Embedding | EmbeddingAndHead | Head, _) => a,
        (_, Embedding | EmbeddingAndHead | Head) => b,
        _ => Other,
    }
}

/// The last projection before the logits.
fn head(nodes: &[Node], logits: usize) -> Option<usize> {
    let mut id = logits;
    loop {
        let node = nodes.get(id)?;
        match node.op {
            Op::Linear { .. } => return Some(id),
            Op::Scale { .. } | Op::Softcap { .. } | Op::Round { .. } | Op::LastRows => {
                id = node.inputs.first()?.node;
            }
            _ => return None,
        }
    }
}

/// The kind of the projection at node `id` by what it reads and what reads it.
fn projection(nodes: &[Node], id: usize) -> MatrixKind {
    match source(nodes, id) {
        Some(Meets::Attention) => return MatrixKind::AttentionOutput,
        Some(Meets::Function) => return MatrixKind::Down,
        None => {}
    }
    let readers = readers(nodes, id);
    match (
        readers.contains(&Meets::Attention),
        readers.contains(&Meets::Function),
    ) {
        (true, false) => MatrixKind::Qkv,
        (false, true) => MatrixKind::GateUp,
        _ => MatrixKind::Other,
    }
}

/// What a projection stands next to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Meets {
    Attention,
    /// A gate or an activation.
    Function,
}

impl Meets {
    fn of(op: &Op) -> Option<Meets> {
        match op {
            Op::Attention { .. } => Some(Meets::Attention),
            Op::Gate { .. } | Op::Activate { .. } => Some(Meets::Function),
            _ => None,
        }
    }
}

/// Whether an operator changes a value and leaves it what it is.
fn passes(op: &Op) -> bool {
    matches!(
        op,
        Op::Norm { .. }
            | Op::Rope { .. }
            | Op::Scale { .. }
            | Op::Softcap { .. }
            | Op::Round { .. }
            | Op::LastRows
    )
}

fn source(nodes: &[Node], id: usize) -> Option<Meets> {
    let mut id = nodes.get(id)?.inputs.first()?.node;
    loop {
        let node = nodes.get(id)?;
        if let Some(meets) = Meets::of(&node.op) {
            return Some(meets);
        }
        if !passes(&node.op) {
            return None;
        }
        id = node.inputs.first()?.node;
    }
}

fn readers(nodes: &[Node], id: usize) -> BTreeSet<Meets> {
    let mut carriers = BTreeSet::from([id]);
    let mut found = BTreeSet::new();
    for (reader, node) in nodes.iter().enumerate().skip(id + 1) {
        let reads = |columns: &Columns| carriers.contains(&columns.node);
        if !node.inputs.iter().any(reads) {
            continue;
        }
        match Meets::of(&node.op) {
            Some(meets) => {
                found.insert(meets);
            }
            None if passes(&node.op) => {
                carriers.insert(reader);
            }
            None => {}
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use niwaki_bundle::graph::{Activation, Input, KvLayer, NormKind};

    fn columns(node: usize, offset: usize, width: usize) -> Columns {
        Columns {
            node,
            offset,
            width,
        }
    }

    /// One layer: joined q, k and v, o, joined gate and up, down, and the head.
    fn decoder(head: MatrixId) -> Graph {
        let node = |op, inputs: Vec<Columns>, width| Node {
            name: String::new(),
            op,
            inputs,
            width,
        };
        let linear = |weight| Op::Linear { weight, bias: None };
        let norm = || Op::Norm {
            kind: NormKind::Rms,
            epsilon: 0.0,
            group: 8,
            weight: None,
            bias: None,
        };
        let add = || Op::Add { scale: 1.0 };
        let attention = Op::Attention {
            layer: 0,
            heads: 1,
            scale: 1.0,
            softcap: None,
        };
        let gate = Op::Gate {
            activation: Activation::Silu,
        };
        let nodes = vec![
            node(
                Op::Embed {
                    input: 0,
                    table: 0,
                    scale: 1.0,
                },
                vec![],
                8,
            ),
            node(
                Op::PositionEmbed {
                    table: 1,
                    offset: 0,
                },
                vec![],
                8,
            ),
            node(add(), vec![columns(0, 0, 8), columns(1, 0, 8)], 8),
            node(norm(), vec![columns(2, 0, 8)], 8),
            node(linear(2), vec![columns(3, 0, 8)], 24),
            node(norm(), vec![columns(4, 0, 8)], 8),
            node(
                attention,
                vec![columns(5, 0, 8), columns(4, 8, 8), columns(4, 16, 8)],
                8,
            ),
            node(linear(3), vec![columns(6, 0, 8)], 8),
            node(add(), vec![columns(2, 0, 8), columns(7, 0, 8)], 8),
            node(linear(4), vec![columns(8, 0, 8)], 16),
            node(gate, vec![columns(9, 0, 8), columns(9, 8, 8)], 8),
            node(linear(5), vec![columns(10, 0, 8)], 8),
            node(add(), vec![columns(8, 0, 8), columns(11, 0, 8)], 8),
            node(Op::LastRows, vec![columns(12, 0, 8)], 8),
            node(linear(head), vec![columns(13, 0, 8)], 32),
        ];
        Graph {
            context_tokens: 16,
            inputs: vec![Input {
                name: "input_ids".to_owned(),
                kind: InputKind::TokenIds { count: 32 },
            }],
            layers: vec![KvLayer::decoder(1, 8)],
            ropes: vec![],
            outputs: vec![Output::logits(nodes.len() - 1)],
            nodes,
        }
    }

    #[test]
    fn kinds_follow_from_what_a_matrix_reads_and_what_reads_it() {
        use MatrixKind::*;
        let kinds: Vec<MatrixKind> = kinds(&decoder(6)).into_values().collect();
        let expected = [
            Embedding,
            PositionTable,
            Qkv,
            AttentionOutput,
            GateUp,
            Down,
            Head,
        ];
        assert_eq!(kinds, expected);
    }

    #[test]
    fn an_embedding_that_gives_the_logits_is_both() {
        assert_eq!(kinds(&decoder(0))[&0], MatrixKind::EmbeddingAndHead);
    }

    #[test]
    fn a_projection_into_both_halves_of_a_layer_is_of_no_kind_of_its_own() {
        let mut graph = decoder(6);
        // The gate reads what attention reads, as in layers whose halves run side by side.
        graph.nodes[10].inputs = vec![columns(4, 0, 8), columns(4, 8, 8)];
        assert_eq!(kinds(&graph)[&2], MatrixKind::Other);
    }
}
