//! The lowered graph: a short list of operators over rows of `f32`.
//!
//! The offline tool lowers an exported ONNX model to a [`Graph`], the bundle stores it as JSON, and the
//! engine checks it ([`check`](Graph::check)) and builds a tract model from it. Every node produces one
//! value of shape `[rows, width]`; the node's index is the value's id. Which rows a value has follows from the
//! operators ([`RowSet`]).
//!
//! Decoders, encoders, classifiers and rerankers differ in what goes in ([`Input`]), what comes out ([`Output`]) and
//! what attention keeps ([`KvLayer`]); the operators between are the same.

mod check;
mod operators;
mod rows;
mod weights;

pub use check::GraphError;
pub use operators::{
    Activation, Columns, KvLayer, Levels, Node, NormKind, Op, PairLayout, Pooling, RopeTable,
};
pub use rows::RowSet;
pub use weights::{WeightId, WeightMut};

use serde::{Deserialize, Serialize};

/// Index of a packed matrix in the bundle's weight table.
pub type MatrixId = usize;
/// Index of an `f32` vector in the bundle's weight table.
pub type VectorId = usize;
/// Index of an [`Input`] in [`Graph::inputs`].
pub type InputId = usize;

/// A lowered model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Graph {
    /// Longest context the model was made for, in tokens.
    pub context_tokens: usize,
    /// What a run is given for each of its tokens.
    pub inputs: Vec<Input>,
    /// One entry per attention.
    pub layers: Vec<KvLayer>,
    /// Rotary tables, shared between layers.
    pub ropes: Vec<RopeTable>,
    /// Operators in the order they run; a node reads only nodes before it.
    pub nodes: Vec<Node>,
    /// The values that a run answers, under names that differ.
    pub outputs: Vec<Output>,
}

/// One entry per token of what a run is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Its name: the exported graph's.
    pub name: String,
    /// What an entry is.
    pub kind: InputKind,
}

/// What a run is given for each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum InputKind {
    /// The token's id, below `count`.
    TokenIds {
        /// Number of ids.
        count: usize,
    },
    /// The id of the token's type (the sentence of a pair it belongs to), below `count`.
    TokenTypes {
        /// Number of types.
        count: usize,
    },
    /// A row of this many numbers: what another model or another part of this one computed.
    Rows {
        /// Columns of a row.
        width: usize,
    },
}

/// A value that a run answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Its name; [`Output::LOGITS`] is what tokens are chosen by.
    pub name: String,
    /// The node whose value it is. The node's [`RowSet`] says which rows come out: of every token, of the tokens that
    /// were asked for, or one per sequence.
    pub node: usize,
}

impl Output {
    /// Name of the scores of every token id.
    pub const LOGITS: &str = "logits";

    /// The scores of every token id.
    pub fn logits(node: usize) -> Output {
        Output {
            name: Output::LOGITS.to_owned(),
            node,
        }
    }
}

impl Graph {
    /// The node of an output.
    pub fn output(&self, name: &str) -> Option<usize> {
        let output = self.outputs.iter().find(|output| output.name == name)?;
        Some(output.node)
    }

    /// Columns of the logits; `None` when the graph has none.
    pub fn vocabulary(&self) -> Option<usize> {
        Some(self.nodes.get(self.output(Output::LOGITS)?)?.width)
    }

    /// The input that takes token ids, and how many ids there are; `None` when the graph has none.
    pub fn token_ids(&self) -> Option<(InputId, usize)> {
        let inputs = self.inputs.iter().enumerate();
        inputs
            .filter_map(|(id, input)| match input.kind {
                InputKind::TokenIds { count } => Some((id, count)),
                InputKind::TokenTypes { .. } | InputKind::Rows { .. } => None,
            })
            .next()
    }

    /// Whether the node's value is an output.
    pub fn is_output(&self, node: usize) -> bool {
        self.outputs.iter().any(|output| output.node == node)
    }

    /// Whether a sequence has to come in one run: a later part would change what an earlier one gave.
    pub fn needs_whole_sequences(&self) -> bool {
        let pools = |node: &Node| matches!(node.op, Op::Pool { .. });
        self.layers.iter().any(|layer| !layer.cached) || self.nodes.iter().any(pools)
    }
}
