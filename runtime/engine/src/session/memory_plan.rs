//! What an engine with one session takes at its peak, stated before anything is loaded.

use crate::kv::pages_at_peak;
use crate::model::Model;
use niwaki_bundle::graph::{Graph, Op};
use niwaki_bundle::{Bundle, SectionKind};
use niwaki_kernels::{ACTIVATION_BLOCK, AttentionScratch, KvElement, PAGE_TOKENS, QuantizedRows};
use std::fmt;

/// Prompts are fed in runs of at most this many tokens.
const CHUNK_TOKENS: usize = 128;
/// Wide models are fed in shorter runs, so that their activations stay below this.
const ACTIVATIONS_TARGET_BYTES: usize = 64 << 20;
/// Measured: the used part of a thread's stack, and its part of the allocator.
const PER_THREAD_BYTES: u64 = 64 << 10;
/// Measured: tables of addresses that the loader fills in, the program's and its libraries'.
const PROGRAM_BYTES: u64 = 640 << 10;

/// What kind of memory a part takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Pages of the bundle's file: the system takes them back under pressure without asking.
    File,
    /// Memory that counts against the app.
    Anonymous,
}

/// One line of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPart {
    /// What it is for.
    pub name: &'static str,
    /// What kind of memory it is.
    pub backing: Backing,
    /// Bytes at the peak.
    pub size_bytes: u64,
}

/// Peak memory of an engine with one session whose context is full, by part.
///
/// Logits that a caller asks for and keeps are the caller's, and so are further sessions: each takes keys and values
/// again, and those that run at the same time activations, logits of one token and scratch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The parts.
    pub parts: Vec<MemoryPart>,
    /// Tokens of context the plan is for.
    pub context_tokens: usize,
}

impl MemoryPlan {
    /// Bytes of file-backed memory.
    pub fn file_bytes(&self) -> u64 {
        self.sum(Backing::File)
    }

    /// Bytes that count against the app.
    pub fn anonymous_bytes(&self) -> u64 {
        self.sum(Backing::Anonymous)
    }

    fn sum(&self, backing: Backing) -> u64 {
        let parts = self.parts.iter().filter(|part| part.backing == backing);
        parts.fold(0, |sum: u64, part| sum.saturating_add(part.size_bytes))
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, kind: &str, bytes: u64| {
            writeln!(
                f,
                "{name:<28} {kind:<11} {:>10.2} MiB",
                bytes as f64 / (1 << 20) as f64
            )
        };
        for part in &self.parts {
            let kind = match part.backing {
                Backing::File => "file",
                Backing::Anonymous => "anonymous",
            };
            line(part.name, kind, part.size_bytes)?;
        }
        line("total", "file", self.file_bytes())?;
        line("total", "anonymous", self.anonymous_bytes())?;
        write!(f, "with a context of {} tokens", self.context_tokens)
    }
}

/// How many tokens one run of the plan takes, so that activations are bounded.
pub(super) fn chunk_tokens(model: &Model, context_tokens: usize) -> usize {
    if model.graph().needs_whole_sequences() {
        return context_tokens;
    }
    let columns = model.pool_columns().per_token.max(1);
    (ACTIVATIONS_TARGET_BYTES / 4 / columns)
        .clamp(1, CHUNK_TOKENS)
        .min(context_tokens)
}

/// States the plan of an opened bundle.
pub(super) fn memory_plan(
    bundle: &Bundle,
    model: &Model,
    element: KvElement,
    context_tokens: usize,
    threads: usize,
) -> MemoryPlan {
    let graph = bundle.graph();
    let chunk = chunk_tokens(model, context_tokens);
    let section = |kind| {
        bundle
            .header()
            .section(kind)
            .map_or(0, |entry| entry.length)
    };
    let anonymous = |name, size_bytes| MemoryPart {
        name,
        backing: Backing::Anonymous,
        size_bytes,
    };
    let pool = model.pool_columns();
    let values = (pool.per_token * chunk + pool.per_wanted + pool.per_sequence) as u64 * 4;
    let rope_pairs: usize = graph
        .ropes
        .iter()
        .map(|rope| rope.inverse_frequencies.len())
        .sum();
    let scratch = quantized_bytes(bundle, chunk)
        + (rope_pairs * chunk * 8) as u64
        + attention_bytes(graph, context_tokens, threads);
    let parts = vec![
        MemoryPart {
            name: "weights and other sections",
            backing: Backing::File,
            size_bytes: bundle.header().bundle_bytes,
        },
        anonymous("program", PROGRAM_BYTES),
        anonymous("graph and plan", graph_bytes(bundle, graph, model)),
        anonymous(
            "tokenizer",
            tokenizer_bytes(section(SectionKind::Tokenizer)),
        ),
        anonymous(
            "keys and values",
            pages_at_peak(&graph.layers, element, context_tokens, chunk),
        ),
        anonymous("activations", values),
        anonymous("logits of one token", one_token_bytes(graph)),
        anonymous("scratch", scratch),
        anonymous("threads", threads as u64 * PER_THREAD_BYTES),
    ];
    MemoryPlan {
        parts,
        context_tokens,
    }
}

/// One row of each output.
fn one_token_bytes(graph: &Graph) -> u64 {
    let nodes = graph
        .outputs
        .iter()
        .filter_map(|output| graph.nodes.get(output.node));
    nodes.fold(0, |sum: u64, node| {
        sum.saturating_add(node.width as u64 * 4)
    })
}

/// The widest quantized activations.
fn quantized_bytes(bundle: &Bundle, chunk: usize) -> u64 {
    let widths = bundle
        .graph()
        .nodes
        .iter()
        .filter_map(|node| match node.op {
            Op::Linear { weight, .. } => bundle
                .matrix(weight)
                .filter(|matrix| matrix.format().is_quantized()),
            _ => None,
        });
    let blocks = widths
        .map(|matrix| matrix.refined() + matrix.cols().div_ceil(ACTIVATION_BLOCK))
        .max()
        .unwrap_or(0);
    (blocks * QuantizedRows::BLOCK_BYTES * chunk) as u64
}

/// The chunks of a query that threads share out.
fn attention_bytes(graph: &Graph, context_tokens: usize, threads: usize) -> u64 {
    if threads == 1 {
        return 0;
    }
    let pages = context_tokens.div_ceil(PAGE_TOKENS);
    let bytes = graph.nodes.iter().filter_map(|node| match node.op {
        Op::Attention { layer, heads, .. } => {
            let head_dim = graph.layers.get(layer)?.head_dim;
            Some(AttentionScratch::size_bytes(heads, head_dim, pages))
        }
        _ => None,
    });
    bytes.max().unwrap_or(0) as u64
}

/// The parsed graph and weight table, tract's nodes, and a session's list of values.
fn graph_bytes(bundle: &Bundle, graph: &Graph, model: &Model) -> u64 {
    /// Measured: a parsed node and its name.
    const PER_NODE: u64 = 256;
    /// Measured: a tract node, its name, its facts and its place in the plan.
    const PER_STEP: u64 = 1792;
    const PER_WEIGHT: u64 = 256;
    let table = bundle.weight_table();
    graph.nodes.len() as u64 * PER_NODE
        + model.steps() as u64 * PER_STEP
        + (table.matrices.len() + table.vectors.len()) as u64 * PER_WEIGHT
}

/// Measured: what reading a vocabulary with its merges takes at its peak per byte of its JSON. About half of
/// it is free again when the tokenizer is read.
fn tokenizer_bytes(json_bytes: u64) -> u64 {
    json_bytes.saturating_mul(13)
}
