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
mod split;
mod stored;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use matrix::{LowRank, MatrixSource, RowsOut};
pub use parts::{ChannelOrder, Matrix, Parts};
pub use split::split_values;

use crate::onnx::{OnnxError, OnnxModel};
use boundary::Boundary;
use interpret::{Interpretation, Interpreter, Lengths};
use niwaki_bundle::graph::{Graph, Input, InputKind, Node, Op, Output};
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

/// How a note ends that says that Niwaki rounds activations in place of the export, which it does in products with
/// integer weights.
pub const QUANTIZED_PER_BLOCK: &str = "are quantized per block instead";

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
    /// A cache of an impossible size.
    #[error(
        "the graph's input `{name}` would be a cache of shape {shape:?}, more than any decoder has"
    )]
    CacheSize {
        /// The input.
        name: String,
        /// Its shape at the probed length.
        shape: Vec<usize>,
    },
    /// The values of the graph are absurdly many.
    #[error("the graph's values are larger in all than those of any decoder that Niwaki runs")]
    TooLarge,
    /// The thread that lowers could not be started.
    #[error("no thread could be started to lower the graph")]
    Thread(#[source] std::io::Error),
    /// A mistake of Niwaki's own.
    #[error("lowering this graph failed by a mistake of Niwaki; please report it with the graph")]
    Internal,
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

/// Stack of the thread that lowers: matching follows a graph from its logits to its token ids, so a deep graph takes
/// a deep stack. Only what is used becomes memory.
const STACK_BYTES: usize = 512 << 20;

/// Lowers the decoder in `model`.
pub fn lower(
    model: &OnnxModel,
    facts: &ModelFacts,
    rounding: Rounding,
) -> Result<Lowered, LowerError> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("lower".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || lower_here(model, facts, rounding))
            .map_err(LowerError::Thread)?
            .join()
            .unwrap_or(Err(LowerError::Internal))
    })
}

fn lower_here(
    model: &OnnxModel,
    facts: &ModelFacts,
    rounding: Rounding,
) -> Result<Lowered, LowerError> {
    let rounds = rounding == Rounding::Export;
    let boundary = Boundary::of(model, facts.kv_heads, facts.head_dim)?;
    let near = probe_lengths(model, facts, &boundary);
    let near_run = Interpreter::run(model, &boundary, near, rounds)?;
    let mut notes = near_run.notes.clone();
    notes.extend(boundary.left_out());
    let mut context_tokens = facts.context_tokens.unwrap_or(2048);
    let far_at = |past: usize| {
        let lengths = Lengths {
            past,
            track_past: false,
            ..near
        };
        Interpreter::run(model, &boundary, lengths, rounds).ok()
    };
    // Windows and far angles show at a long past; so does what changes beyond a length that the graph compares with.
    let limits: Vec<usize> = near_run
        .limits
        .iter()
        .filter_map(|limit| usize::try_from(*limit).ok())
        .filter(|limit| (near.past + near.tokens..context_tokens).contains(limit))
        .collect();
    let wanted = facts
        .window
        .into_iter()
        .chain(limits.iter().copied())
        .map(|length| length.saturating_add(2))
        .fold(FAR_PAST, usize::max);
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
    if let Some(limit) = limits.iter().find(|limit| **limit > past + near.tokens) {
        notes.push(format!(
            "beyond {} tokens the export may compute something else, so the context is limited to them",
            limit - 1
        ));
        context_tokens = limit - 1;
    }
    let far_run = if boundary.past.is_empty() || past <= near.past {
        None
    } else {
        far_at(past)
    };
    let mut outcome = recognise::recognise(&near_run, far_run.as_ref());
    drop(far_run);
    if outcome
        .as_ref()
        .is_err_and(|failure| failure.varies_with_length)
        && let Some((length, recognised)) = up_to_a_change(&near_run, past, far_at)
    {
        notes.push(format!(
            "beyond {length} tokens the export computes something else, so the context is limited to them"
        ));
        context_tokens = length;
        outcome = Ok(recognised);
    }
    let recognised = match outcome {
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
        context_tokens,
        inputs: vec![Input {
            name: "input_ids".to_owned(),
            kind: InputKind::TokenIds {
                count: token_ids(&nodes, &parts).unwrap_or(vocabulary),
            },
        }],
        layers,
        ropes,
        nodes,
        outputs: vec![Output::logits(logits)],
    };
    Ok(Lowered {
        graph,
        parts,
        notes,
        last_token_only,
    })
}

/// Rows of the smallest embedding: every id below has one in all of them.
fn token_ids(nodes: &[Node], parts: &Parts) -> Option<usize> {
    let tables = nodes.iter().filter_map(|node| match node.op {
        Op::Embed { table, .. } => parts.matrices.get(table),
        _ => None,
    });
    tables.map(Matrix::rows).min()
}

/// Where a graph changes what it computes with the length (rotary frequencies chosen by it): the longest total length
/// up to which it computes the same, and what that is. `None` when there is none worth having.
fn up_to_a_change(
    near: &Interpretation,
    changed_past: usize,
    far_at: impl Fn(usize) -> Option<Interpretation>,
) -> Option<(usize, recognise::Recognised)> {
    let (mut same, mut changed) = (near.lengths.past, changed_past);
    let mut found = None;
    while changed - same > 1 {
        let middle = same + (changed - same) / 2;
        match recognise::recognise(near, far_at(middle).as_ref()) {
            Ok(recognised) => {
                same = middle;
                found = Some((middle + near.lengths.tokens, recognised));
            }
            Err(failure) if failure.varies_with_length => changed = middle,
            Err(_) => return None,
        }
    }
    found
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
