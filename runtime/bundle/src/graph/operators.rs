//! The operators a lowered graph is made of.

use super::{InputId, MatrixId, VectorId};
use serde::{Deserialize, Serialize};

/// One operator and where it reads from. Its value is `[rows, width]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Name for people: taken from the exported graph.
    pub name: String,
    /// What is computed.
    pub op: Op,
    /// What it reads, in the order the operator documents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Columns>,
    /// Columns of the value this node produces.
    pub width: usize,
}

/// A range of columns of an earlier node's value. Fused projections are read in place this way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Columns {
    /// The node that produced the value.
    pub node: usize,
    /// First column.
    pub offset: usize,
    /// Number of columns.
    pub width: usize,
}

/// What one attention sees, and what it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvLayer {
    /// Number of key/value heads.
    pub kv_heads: usize,
    /// Columns of one head, the same for keys and values.
    pub head_dim: usize,
    /// A query at position `p` sees keys at positions `p - window + 1 ..= p`; all of `..= p` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// A query sees no position after its own. Without, it sees the whole sequence, which then has to come in one run:
    /// such a layer keeps nothing.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub causal: bool,
    /// Keys and values stay for the runs that follow.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub cached: bool,
}

impl KvLayer {
    /// A decoder's: causal, over all positions, kept.
    pub fn decoder(kv_heads: usize, head_dim: usize) -> KvLayer {
        KvLayer {
            kv_heads,
            head_dim,
            window: None,
            causal: true,
            cached: true,
        }
    }
}

fn yes() -> bool {
    true
}

fn is_true(value: &bool) -> bool {
    *value
}

/// How a rotary embedding pairs the columns it rotates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairLayout {
    /// Column `i` with column `i + pairs` (Llama's Hugging Face layout, GPT-NeoX).
    Halves,
    /// Column `2 i` with column `2 i + 1` (GPT-J, original Llama).
    Interleaved,
}

/// Frequencies of a rotary position embedding (Su et al., 2021).
///
/// At position `p` pair `i` turns by the angle `p * inverse_frequencies[i]`, its result is multiplied by
/// `magnitude` (1 unless the scaling rule, YaRN or LongRoPE, asks for another).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeTable {
    /// Radians per position, one per pair; columns after `2 * len` of a head pass unchanged.
    pub inverse_frequencies: Vec<f32>,
    /// Which columns form a pair.
    pub pairs: PairLayout,
    /// Factor on the rotated columns.
    pub magnitude: f32,
}

/// Root-mean-square or mean-and-variance normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + epsilon)` (Zhang & Sennrich, 2019).
    Rms,
    /// `(x - mean(x)) / sqrt(var(x) + epsilon)` (Ba et al., 2016).
    Layer,
}

/// Elementwise functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * (1 + erf(x / sqrt 2)) / 2`.
    GeluErf,
    /// `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`.
    GeluSigmoid,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    ReluSquared,
}

/// The values that a quantized export rounds activations to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "levels", rename_all = "snake_case", deny_unknown_fields)]
pub enum Levels {
    /// 256 levels between the smallest and the largest value of one call (ONNX `DynamicQuantizeLinear`): here the
    /// logits depend on how tokens are split over calls.
    Dynamic,
    /// `(q - zero_point) * scale` for `q` in `low..=high` (ONNX `QuantizeLinear`).
    Static {
        /// One scale for all columns, or one for each.
        scale: VectorId,
        /// Level of zero.
        zero_point: i32,
        /// Lowest level.
        low: i32,
        /// Highest level.
        high: i32,
    },
}

/// How the rows of a sequence become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean of each column.
    Mean,
    /// The row of the first token.
    First,
    /// The row of the last token.
    Last,
}

fn is_first(input: &InputId) -> bool {
    *input == 0
}

/// What a node computes. Inputs are listed as `[name: width]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Op {
    /// Row of `table` (ids x width) for the id that `input` gives each token, times `scale`. No inputs from nodes.
    Embed {
        /// Whose ids: of tokens, or of their types.
        #[serde(default, skip_serializing_if = "is_first")]
        input: InputId,
        /// The embedding matrix, one row per id.
        table: MatrixId,
        /// Factor on the row (1 for most models, sqrt(hidden) for Gemma).
        scale: f32,
    },
    /// The rows that `input` gives, as they are. No inputs from nodes.
    Rows {
        /// Which input.
        input: InputId,
    },
    /// Row `position + offset` of `table`: learned absolute positions (GPT-2). No inputs.
    PositionEmbed {
        /// One row per position.
        table: MatrixId,
        /// Added to the position.
        offset: usize,
    },
    /// Normalises every `group` consecutive columns of `[x: width]` on their own:
    /// the whole row for a layer's norm, one head for query and key norms.
    Norm {
        /// Which normalisation.
        kind: NormKind,
        /// Added under the root.
        epsilon: f32,
        /// Columns normalised together; divides the width.
        group: usize,
        /// Factor per column, `group` or `width` long; 1 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        weight: Option<VectorId>,
        /// Summand per column, `group` or `width` long; 0 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bias: Option<VectorId>,
    },
    /// `x W^T + bias` for `[x: columns of W]`; `weight` has one row per output column.
    Linear {
        /// The packed matrix.
        weight: MatrixId,
        /// One summand per output column.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bias: Option<VectorId>,
    },
    /// Rotates each head of `[x: heads * head_dim]` by the token's position.
    Rope {
        /// Index into [`Graph::ropes`](super::Graph::ropes).
        table: usize,
        /// Columns of one head.
        head_dim: usize,
    },
    /// Grouped-query attention of `[q: heads * head_dim, k: kv_heads * head_dim, v: kv_heads * head_dim]`
    /// over the keys and values of `layer`, to which `k` and `v` are appended first.
    /// Width `heads * head_dim`; query head `h` reads key/value head `h / (heads / kv_heads)`.
    Attention {
        /// Index into [`Graph::layers`](super::Graph::layers).
        layer: usize,
        /// Number of query heads.
        heads: usize,
        /// Factor on the scores.
        scale: f32,
        /// Scores become `softcap * tanh(score / softcap)` (Gemma 2).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        softcap: Option<f32>,
    },
    /// `activation(gate) * up` for `[gate: width, up: width]`.
    Gate {
        /// Function on the gate.
        activation: Activation,
    },
    /// Elementwise function of `[x: width]`.
    Activate {
        /// Which function.
        activation: Activation,
    },
    /// `a + scale * b` for `[a: width, b: width]`.
    Add {
        /// Factor on `b` (1 for most models, Granite's residual multiplier).
        scale: f32,
    },
    /// `factor * x` for `[x: width]`.
    Scale {
        /// The factor.
        factor: f32,
    },
    /// `cap * tanh(x / cap)` for `[x: width]` (Gemma 2's final logits).
    Softcap {
        /// The cap.
        cap: f32,
    },
    /// Rounds `[x: width]` to the levels of a quantized export. Only graphs that reproduce another runtime carry it:
    /// Niwaki's own bundles quantize activations inside [`Linear`](Op::Linear), by the arithmetic contract.
    Round {
        /// Which levels.
        levels: Levels,
    },
    /// Keeps only the rows of `[x: width]` whose results were asked for: the last ones of each sequence, or all.
    LastRows,
    /// One row of `[x: width]` for each sequence.
    Pool {
        /// How.
        pooling: Pooling,
    },
}
