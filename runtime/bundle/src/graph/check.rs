//! A graph from a file is hostile until every index, width and number in it has been checked.

mod nodes;

use super::{Graph, Input, InputKind, KvLayer, Output, RopeTable};
use crate::WeightTable;
use nodes::NodeChecker;
use std::collections::HashSet;

/// Most operators of a graph; real decoders have tens per layer.
const MAX_NODES: usize = 1 << 16;
/// Most attention layers, and most rotary tables.
const MAX_LAYERS: usize = 1 << 12;
/// Most columns of one value, and most tokens of a vocabulary or a context.
const MAX_WIDTH: usize = 1 << 24;
/// Most columns of all values together: bounds what one row of activations can take.
const MAX_TOTAL_WIDTH: usize = 1 << 26;
/// Most columns of an attention head.
const MAX_HEAD_DIM: usize = 1 << 12;
/// Most inputs, and most outputs: every value that projections of a deep layer read is fewer.
const MAX_ENDS: usize = 1 << 10;

/// What is wrong with a lowered graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// An input is impossible.
    #[error("input {input} ({name}): {problem}")]
    Input {
        /// Index of the input.
        input: usize,
        /// Its name.
        name: String,
        /// What does not fit.
        problem: String,
    },
    /// An output is impossible.
    #[error("output {output} ({name}): {problem}")]
    Output {
        /// Index of the output.
        output: usize,
        /// Its name.
        name: String,
        /// What does not fit.
        problem: String,
    },
    /// An operator does not fit its inputs, its weights or the layers.
    #[error("node {node} ({name}): {problem}")]
    Node {
        /// Index of the node.
        node: usize,
        /// Its name.
        name: String,
        /// What does not fit.
        problem: String,
    },
    /// A key/value layer is impossible.
    #[error("attention layer {layer}: {problem}")]
    Layer {
        /// Index of the layer.
        layer: usize,
        /// What does not fit.
        problem: String,
    },
    /// A rotary table is impossible.
    #[error("rotary table {table}: {problem}")]
    Rope {
        /// Index of the table.
        table: usize,
        /// What does not fit.
        problem: String,
    },
    /// The graph as a whole is impossible.
    #[error("{0}")]
    Whole(String),
}

impl Graph {
    /// Checks that the engine can run this graph over these weights: afterwards no index, width or number
    /// in it can lead outside of anything.
    ///
    /// # Errors
    /// [`GraphError`] for the first thing that does not fit.
    pub fn check(&self, weights: &WeightTable) -> Result<(), GraphError> {
        self.check_sizes()?;
        self.check_tables()?;
        self.check_inputs()?;
        let mut checker = NodeChecker::new(self, weights);
        for (index, node) in self.nodes.iter().enumerate() {
            checker
                .check(index, node)
                .map_err(|problem| GraphError::Node {
                    node: index,
                    name: node.name.clone(),
                    problem,
                })?;
        }
        self.check_outputs()
    }

    fn check_sizes(&self) -> Result<(), GraphError> {
        let whole = |problem: String| Err(GraphError::Whole(problem));
        if self.nodes.len() > MAX_NODES {
            return whole(format!(
                "{} nodes, at most {MAX_NODES} are allowed",
                self.nodes.len()
            ));
        }
        if self.context_tokens == 0 || self.context_tokens > MAX_WIDTH {
            return whole(format!(
                "a context of {} tokens; 1 to {MAX_WIDTH} are allowed",
                self.context_tokens
            ));
        }
        if self.inputs.len() > MAX_ENDS || self.outputs.len() > MAX_ENDS {
            return whole(format!(
                "{} inputs and {} outputs, at most {MAX_ENDS} of each are allowed",
                self.inputs.len(),
                self.outputs.len()
            ));
        }
        let mut total = 0usize;
        for node in &self.nodes {
            total = total.saturating_add(node.width);
        }
        if total > MAX_TOTAL_WIDTH {
            return whole(format!(
                "all values together have {total} columns, at most {MAX_TOTAL_WIDTH} are allowed"
            ));
        }
        Ok(())
    }

    fn check_tables(&self) -> Result<(), GraphError> {
        if self.layers.len() > MAX_LAYERS || self.ropes.len() > MAX_LAYERS {
            return Err(GraphError::Whole(format!(
                "{} attention layers and {} rotary tables, at most {MAX_LAYERS} of each are allowed",
                self.layers.len(),
                self.ropes.len()
            )));
        }
        for (layer, kv) in self.layers.iter().enumerate() {
            check_layer(kv).map_err(|problem| GraphError::Layer { layer, problem })?;
        }
        for (table, rope) in self.ropes.iter().enumerate() {
            check_rope(rope).map_err(|problem| GraphError::Rope { table, problem })?;
        }
        Ok(())
    }

    fn check_inputs(&self) -> Result<(), GraphError> {
        if self.inputs.is_empty() {
            return Err(GraphError::Whole("it has no input".into()));
        }
        for (index, input) in self.inputs.iter().enumerate() {
            self.check_input(index, input)
                .map_err(|problem| GraphError::Input {
                    input: index,
                    name: input.name.clone(),
                    problem,
                })?;
        }
        Ok(())
    }

    fn check_input(&self, index: usize, input: &Input) -> Result<(), String> {
        let before = self.inputs.get(..index).unwrap_or_default();
        if before.iter().any(|other| other.name == input.name) {
            return Err("an earlier input has this name".into());
        }
        let is_token_ids = |input: &Input| matches!(input.kind, InputKind::TokenIds { .. });
        if is_token_ids(input) && before.iter().any(is_token_ids) {
            return Err("an earlier input takes token ids already".into());
        }
        let size = match input.kind {
            InputKind::TokenIds { count } | InputKind::TokenTypes { count } => count,
            InputKind::Rows { width } => width,
        };
        if size == 0 || size > MAX_WIDTH {
            return Err(format!("a size of {size}; 1 to {MAX_WIDTH} are allowed"));
        }
        Ok(())
    }

    fn check_outputs(&self) -> Result<(), GraphError> {
        if self.outputs.is_empty() {
            return Err(GraphError::Whole("it has no output".into()));
        }
        let mut names = HashSet::new();
        for (index, output) in self.outputs.iter().enumerate() {
            let fail = |problem: String| {
                Err(GraphError::Output {
                    output: index,
                    name: output.name.clone(),
                    problem,
                })
            };
            if !names.insert(output.name.as_str()) {
                return fail("an earlier output has this name".into());
            }
            if output.node >= self.nodes.len() {
                return fail(format!(
                    "it is node {}, and there are {} nodes",
                    output.node,
                    self.nodes.len()
                ));
            }
            if let (Output::LOGITS, Some(vocabulary), Some((_, ids))) =
                (output.name.as_str(), self.vocabulary(), self.token_ids())
                && vocabulary > ids
            {
                return fail(format!(
                    "it has {vocabulary} columns, and there are {ids} token ids"
                ));
            }
        }
        Ok(())
    }
}

fn check_layer(kv: &KvLayer) -> Result<(), String> {
    if kv.kv_heads == 0 || kv.head_dim == 0 || kv.head_dim > MAX_HEAD_DIM {
        return Err(format!(
            "{} heads of {} columns are not possible",
            kv.kv_heads, kv.head_dim
        ));
    }
    if kv
        .kv_heads
        .checked_mul(kv.head_dim)
        .is_none_or(|width| width > MAX_WIDTH)
    {
        return Err(format!(
            "{} heads of {} columns are too many",
            kv.kv_heads, kv.head_dim
        ));
    }
    if kv.window == Some(0) {
        return Err("a window of 0 positions sees nothing".into());
    }
    if !kv.causal && kv.cached {
        return Err(
            "a layer that sees later positions cannot keep keys and values for later runs".into(),
        );
    }
    if !kv.causal && kv.window.is_some() {
        return Err("a window is for layers that see earlier positions only".into());
    }
    Ok(())
}

fn check_rope(rope: &RopeTable) -> Result<(), String> {
    if rope.inverse_frequencies.is_empty() || rope.inverse_frequencies.len() > MAX_HEAD_DIM / 2 {
        return Err(format!(
            "{} pairs are not possible",
            rope.inverse_frequencies.len()
        ));
    }
    if !rope.magnitude.is_finite() || rope.inverse_frequencies.iter().any(|f| !f.is_finite()) {
        return Err("a frequency or the magnitude is not a finite number".into());
    }
    Ok(())
}
