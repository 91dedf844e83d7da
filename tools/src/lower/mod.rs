//! Lowers an exported ONNX decoder onto Niwaki's operators.
//!
//! 1. The graph is interpreted on forms (`form`) at a short and at a long past: what only moves elements
//!    disappears, what computes becomes a base (`base`).
//! 2. The bases the logits depend on are recognised (`recognise`) as embeddings, projections, norms, rotary
//!    embeddings, attention and gates, by what they compute.
//! 3. Projections of the same input are fused (`fuse`).
//!
//! Weights are not read: [`Parts`] says where they lie in the file. A graph that is no decoder, or has a node
//! that is not understood, gives a [`LowerError::NotLowered`] that lists the nodes and the reasons.

mod base;
mod boundary;
mod form;
mod fuse;
mod interpret;
mod known;
mod layout;
mod matrix;
mod parts;
mod recognise;

pub use matrix::{MatrixSource, RowsOut};
pub use parts::{Matrix, Parts};

use crate::onnx::{OnnxError, OnnxModel};
use boundary::Boundary;
use interpret::{Interpreter, Lengths};
use niwaki::graph::Graph;
use std::collections::BTreeSet;

/// What the export's configuration says about the model; none of it is needed where the graph says it too.
#[derive(Clone, Debug, Default)]
pub struct ModelFacts {
    /// Longest context, in tokens.
    pub context_tokens: Option<usize>,
    /// Number of key/value heads.
    pub kv_heads: Option<usize>,
    /// Columns of one head.
    pub head_dim: Option<usize>,
    /// Length of the sliding window some layers have.
    pub window: Option<usize>,
    /// All sizes the configuration mentions: the probed lengths keep clear of them.
    pub sizes: BTreeSet<usize>,
}

/// A lowered decoder.
#[derive(Debug)]
pub struct Lowered {
    /// The operators.
    pub graph: Graph,
    /// The constants they read.
    pub parts: Parts,
    /// How the export was read, where a person should know.
    pub notes: Vec<String>,
    /// The export itself returns the logits of the last token only.
    pub last_token_only: bool,
}

/// A node of the export that was not lowered.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LeftOver {
    /// The node.
    pub node: String,
    /// Its operator, where one is to blame.
    pub operator: Option<String>,
    /// Why it was not lowered.
    pub reason: String,
}

/// Why a graph was not lowered.
#[derive(Debug, thiserror::Error)]
pub enum LowerError {
    /// The file could not be read.
    #[error("the ONNX file cannot be read")]
    Onnx(#[from] OnnxError),
    /// A node reads a name that nothing defines.
    #[error(
        "the graph reads `{name}`, which neither a node nor an input nor an initializer defines; export it again"
    )]
    Undefined {
        /// The name.
        name: String,
    },
    /// An input that is not part of a decoder's usual interface.
    #[error(
        "the graph has an input `{name}` that no text decoder has; Niwaki lowers decoders with input_ids, \
         attention_mask, position_ids and cached keys and values of rank 4"
    )]
    Input {
        /// The input.
        name: String,
    },
    /// No token ids.
    #[error("the graph has no input `input_ids`: it is not a text decoder")]
    NoTokenIds,
    /// No output.
    #[error("the graph has no output")]
    NoLogits,
    /// A tensor could not be handled.
    #[error("a constant of the graph cannot be used: {0}")]
    Tensor(String),
    /// Some nodes are not understood.
    #[error("the graph does not lower: {}", summary(.0))]
    NotLowered(Vec<LeftOver>),
}

fn summary(left: &[LeftOver]) -> String {
    let mut lines: Vec<String> = left
        .iter()
        .take(3)
        .map(|left| match &left.operator {
            Some(operator) => format!("{operator} `{}`: {}", left.node, left.reason),
            None => format!("`{}`: {}", left.node, left.reason),
        })
        .collect();
    if left.len() > 3 {
        lines.push(format!("and {} more", left.len() - 3));
    }
    lines.join("; ")
}

impl LowerError {
    fn tensor(error: impl std::fmt::Display) -> LowerError {
        LowerError::Tensor(error.to_string())
    }
}

/// Longest past that is probed for sliding windows and far rotary angles.
const FAR_PAST_MAX: usize = 8200;
const FAR_PAST: usize = 600;

/// What a lowered graph computes where an export quantizes activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// What Niwaki's arithmetic contract says: int8 per block of 32 in products with integer weights.
    Niwaki,
    /// What the export says, to compare with other runtimes. Logits then depend on how tokens are split over calls
    /// where the export quantizes per call.
    Export,
}

/// Lowers the decoder in `model`.
pub fn lower(
    model: &OnnxModel,
    facts: &ModelFacts,
    rounding: Rounding,
) -> Result<Lowered, LowerError> {
    let rounds = rounding == Rounding::Export;
    let boundary = Boundary::of(model, facts.kv_heads, facts.head_dim)?;
    let near = probe_lengths(model, facts, &boundary);
    let near_run = Interpreter::run(model, &boundary, near, rounds)?;
    let mut notes = near_run.notes.clone();
    let context_tokens = facts.context_tokens.unwrap_or(2048);
    let wanted = facts
        .window
        .map_or(FAR_PAST, |window| window.saturating_add(2).max(FAR_PAST));
    let past = wanted
        .min(FAR_PAST_MAX)
        .min(context_tokens.saturating_sub(near.tokens + 1));
    if wanted > past
        && facts
            .window
            .is_some_and(|window| window > past && window < context_tokens)
    {
        notes.push(format!(
            "windows longer than {past} tokens were not looked for"
        ));
    }
    let far = Lengths {
        past,
        track_past: false,
        ..near
    };
    let far_run = if boundary.past.is_empty() || past <= near.past {
        None
    } else {
        Interpreter::run(model, &boundary, far, rounds).ok()
    };
    let recognised = match recognise::recognise(&near_run, far_run.as_ref()) {
        Ok(recognised) => recognised,
        Err(failure) => {
            let mut left: Vec<LeftOver> = near_run
                .obstacles
                .iter()
                .map(|obstacle| LeftOver {
                    node: obstacle.node.clone(),
                    operator: Some(obstacle.operator.clone()),
                    reason: obstacle.reason.clone(),
                })
                .collect();
            left.push(LeftOver {
                node: failure.node,
                operator: None,
                reason: failure.reason,
            });
            return Err(LowerError::NotLowered(left));
        }
    };
    let last_token_only = near_run
        .logits
        .as_ref()
        .is_some_and(|logits| !logits.shape.contains(&near.tokens));
    let recognise::Recognised {
        mut nodes,
        layers,
        ropes,
        mut logits,
        vocabulary,
        mut parts,
    } = recognised;
    fuse::fuse_projections(&mut nodes, &mut logits, &mut parts);
    // An export that quantizes per call looks at all rows of the call, so none may be dropped before.
    if !rounds {
        fuse::keep_last_rows(&mut nodes, &mut logits);
    }
    let graph = Graph {
        vocabulary,
        context_tokens,
        layers,
        ropes,
        nodes,
        logits,
    };
    Ok(Lowered {
        graph,
        parts,
        notes,
        last_token_only,
    })
}

/// Lengths that no size of the model equals, so that an axis of tokens can be told by its length.
fn probe_lengths(model: &OnnxModel, facts: &ModelFacts, boundary: &Boundary) -> Lengths {
    let mut taken: BTreeSet<usize> = facts.sizes.clone();
    for tensor in &model.graph().initializer {
        taken.extend(
            tensor
                .dims
                .iter()
                .filter_map(|dim| usize::try_from(*dim).ok()),
        );
    }
    taken.extend(
        boundary
            .past
            .iter()
            .flat_map(|(_, shape)| shape.iter().flatten().copied()),
    );
    let free = |length: &usize| !taken.contains(length);
    let tokens = (5..).step_by(2).find(|length| free(length)).unwrap_or(5);
    let past = if boundary.past.is_empty() {
        0
    } else {
        (tokens + 2..)
            .find(|past| free(past) && free(&(past + tokens)))
            .unwrap_or(tokens + 2)
    };
    Lengths {
        tokens,
        past,
        track_past: true,
    }
}
