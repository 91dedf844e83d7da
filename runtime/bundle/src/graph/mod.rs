//! The lowered graph: a short list of decoder operators over rows of `f32`, one row per token.
//!
//! The offline tool lowers an exported ONNX model to a [`Graph`], the bundle stores it as JSON, and the
//! engine checks it ([`check`](Graph::check)) and builds a tract model from it. Every node produces one
//! value of shape `[tokens, width]`; the node's index is the value's id.

mod check;
mod operators;

pub use check::GraphError;
pub use check::RowSet;
pub use operators::{
    Activation, Columns, KvLayer, Levels, Node, NormKind, Op, PairLayout, RopeTable,
};

use serde::{Deserialize, Serialize};

/// Index of a packed matrix in the bundle's weight table.
pub type MatrixId = usize;
/// Index of an `f32` vector in the bundle's weight table.
pub type VectorId = usize;

/// A lowered decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Graph {
    /// Number of token ids the embedding and the logits cover.
    pub vocabulary: usize,
    /// Longest context the model was made for, in tokens.
    pub context_tokens: usize,
    /// One entry per attention layer that keeps keys and values.
    pub layers: Vec<KvLayer>,
    /// Rotary tables, shared between layers.
    pub ropes: Vec<RopeTable>,
    /// Operators in the order they run; a node reads only nodes before it.
    pub nodes: Vec<Node>,
    /// The node whose value is the logits, `[tokens, vocabulary]`.
    pub logits: usize,
}
