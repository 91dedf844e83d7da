//! A graph from a file is hostile until every index, width and number in it has been checked.

use super::{Columns, Graph, Levels, MatrixId, Node, Op, VectorId};
use crate::{MatrixEntry, WeightTable};

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

/// What is wrong with a lowered graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
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

/// Which rows a value has: one per token, or one per token whose logits were asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum RowSet {
    Tokens,
    Wanted,
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
        let mut checker = NodeChecker {
            graph: self,
            weights,
            row_sets: Vec::with_capacity(self.nodes.len()),
            attended: vec![false; self.layers.len()],
        };
        for (index, node) in self.nodes.iter().enumerate() {
            let row_set = checker
                .check(index, node)
                .map_err(|problem| GraphError::Node {
                    node: index,
                    name: node.name.clone(),
                    problem,
                })?;
            checker.row_sets.push(row_set);
        }
        match self.nodes.get(self.logits) {
            None => Err(GraphError::Whole(format!(
                "the logits are node {}, and there are {} nodes",
                self.logits,
                self.nodes.len()
            ))),
            Some(node) if node.width != self.vocabulary => Err(GraphError::Whole(format!(
                "the logits have {} columns for a vocabulary of {}",
                node.width, self.vocabulary
            ))),
            Some(_) => Ok(()),
        }
    }

    /// Which rows each node's value has, for a graph that passed [`check`](Self::check).
    pub fn row_sets(&self) -> Vec<RowSet> {
        let mut row_sets: Vec<RowSet> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let of_input = node
                .inputs
                .first()
                .and_then(|input| row_sets.get(input.node))
                .copied();
            row_sets.push(match node.op {
                Op::LastRows => RowSet::Wanted,
                _ => of_input.unwrap_or(RowSet::Tokens),
            });
        }
        row_sets
    }

    fn check_sizes(&self) -> Result<(), GraphError> {
        let whole = |problem: String| Err(GraphError::Whole(problem));
        if self.nodes.len() > MAX_NODES {
            return whole(format!(
                "{} nodes, at most {MAX_NODES} are allowed",
                self.nodes.len()
            ));
        }
        for (what, value) in [
            ("a vocabulary", self.vocabulary),
            ("a context", self.context_tokens),
        ] {
            if value == 0 || value > MAX_WIDTH {
                return whole(format!(
                    "{what} of {value} tokens; 1 to {MAX_WIDTH} are allowed"
                ));
            }
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
            let fail = |problem: String| Err(GraphError::Layer { layer, problem });
            if kv.kv_heads == 0 || kv.head_dim == 0 || kv.head_dim > MAX_HEAD_DIM {
                return fail(format!(
                    "{} heads of {} columns are not possible",
                    kv.kv_heads, kv.head_dim
                ));
            }
            if kv
                .kv_heads
                .checked_mul(kv.head_dim)
                .is_none_or(|width| width > MAX_WIDTH)
            {
                return fail(format!(
                    "{} heads of {} columns are too many",
                    kv.kv_heads, kv.head_dim
                ));
            }
            if kv.window == Some(0) {
                return fail("a window of 0 positions sees nothing".into());
            }
        }
        for (table, rope) in self.ropes.iter().enumerate() {
            let fail = |problem: String| Err(GraphError::Rope { table, problem });
            if rope.inverse_frequencies.is_empty()
                || rope.inverse_frequencies.len() > MAX_HEAD_DIM / 2
            {
                return fail(format!(
                    "{} pairs are not possible",
                    rope.inverse_frequencies.len()
                ));
            }
            if !rope.magnitude.is_finite()
                || rope.inverse_frequencies.iter().any(|f| !f.is_finite())
            {
                return fail("a frequency or the magnitude is not a finite number".into());
            }
        }
        Ok(())
    }
}

struct NodeChecker<'a> {
    graph: &'a Graph,
    weights: &'a WeightTable,
    row_sets: Vec<RowSet>,
    attended: Vec<bool>,
}

impl NodeChecker<'_> {
    /// Checks one node whose predecessors were checked; answers which rows its value has.
    fn check(&mut self, index: usize, node: &Node) -> Result<RowSet, String> {
        if node.width == 0 || node.width > MAX_WIDTH {
            return Err(format!(
                "{} columns; 1 to {MAX_WIDTH} are allowed",
                node.width
            ));
        }
        for (nth, input) in node.inputs.iter().enumerate() {
            self.check_input(index, nth, input)?;
        }
        let row_set = self.common_rows(node)?;
        match &node.op {
            Op::Embed { table, scale } => {
                inputs::<0>(node)?;
                finite("scale", *scale)?;
                let table = self.matrix(*table)?;
                at_least_rows(table, self.graph.vocabulary, "the vocabulary")?;
                same(
                    "columns of the table and the node's width",
                    table.cols,
                    node.width,
                )?;
            }
            Op::PositionEmbed { table, offset } => {
                inputs::<0>(node)?;
                let table = self.matrix(*table)?;
                let needed = self
                    .graph
                    .context_tokens
                    .checked_add(*offset)
                    .ok_or("its offset is too large")?;
                at_least_rows(table, needed, "the context and the offset")?;
                same(
                    "columns of the table and the node's width",
                    table.cols,
                    node.width,
                )?;
            }
            Op::Norm {
                kind: _,
                epsilon,
                group,
                weight,
                bias,
            } => {
                let [x] = inputs(node)?;
                same(
                    "width of the input and the node's width",
                    x.width,
                    node.width,
                )?;
                finite("epsilon", *epsilon)?;
                if *epsilon < 0.0 {
                    return Err(format!("epsilon {epsilon} is negative"));
                }
                if *group == 0 || !node.width.is_multiple_of(*group) {
                    return Err(format!(
                        "groups of {group} columns do not divide a width of {}",
                        node.width
                    ));
                }
                for vector in [weight, bias].into_iter().flatten() {
                    let len = self.vector_len(*vector)?;
                    if len != *group && len != node.width {
                        return Err(format!(
                            "a vector of {len} values for groups of {group} in {} columns",
                            node.width
                        ));
                    }
                }
            }
            Op::Linear { weight, bias } => {
                let [x] = inputs(node)?;
                let weight = self.matrix(*weight)?;
                same(
                    "width of the input and columns of the matrix",
                    x.width,
                    weight.cols,
                )?;
                same(
                    "rows of the matrix and the node's width",
                    weight.rows,
                    node.width,
                )?;
                if let Some(bias) = bias {
                    same(
                        "length of the bias and the node's width",
                        self.vector_len(*bias)?,
                        node.width,
                    )?;
                }
            }
            Op::Rope { table, head_dim } => {
                let [x] = inputs(node)?;
                same(
                    "width of the input and the node's width",
                    x.width,
                    node.width,
                )?;
                per_token(row_set)?;
                let Some(rope) = self.graph.ropes.get(*table) else {
                    return Err(format!(
                        "rotary table {table} does not exist, there are {}",
                        self.graph.ropes.len()
                    ));
                };
                if *head_dim == 0
                    || *head_dim > MAX_HEAD_DIM
                    || !node.width.is_multiple_of(*head_dim)
                {
                    return Err(format!(
                        "heads of {head_dim} columns do not divide a width of {}",
                        node.width
                    ));
                }
                if rope.inverse_frequencies.len() > head_dim / 2 {
                    return Err(format!(
                        "rotary table {table} turns {} pairs, a head of {head_dim} columns has fewer",
                        rope.inverse_frequencies.len()
                    ));
                }
            }
            Op::Attention {
                layer,
                heads,
                scale,
                softcap,
            } => {
                let [q, k, v] = inputs(node)?;
                per_token(row_set)?;
                self.check_attention(node, *layer, *heads, [q, k, v])?;
                finite("scale", *scale)?;
                softcap.map_or(Ok(()), positive_cap)?;
            }
            Op::Gate { activation: _ } => {
                let [gate, up] = inputs(node)?;
                same(
                    "width of the gate and the node's width",
                    gate.width,
                    node.width,
                )?;
                same(
                    "width of the other input and the node's width",
                    up.width,
                    node.width,
                )?;
            }
            Op::Add { scale } => {
                let [a, b] = inputs(node)?;
                finite("scale", *scale)?;
                same(
                    "width of the first input and the node's width",
                    a.width,
                    node.width,
                )?;
                same(
                    "width of the second input and the node's width",
                    b.width,
                    node.width,
                )?;
            }
            Op::Activate { activation: _ } => {
                let [x] = inputs(node)?;
                same(
                    "width of the input and the node's width",
                    x.width,
                    node.width,
                )?;
            }
            Op::Round { levels } => {
                let [x] = inputs(node)?;
                same(
                    "width of the input and the node's width",
                    x.width,
                    node.width,
                )?;
                if let Levels::Static {
                    scale, low, high, ..
                } = levels
                {
                    let len = self.vector_len(*scale)?;
                    if (len != 1 && len != node.width) || low >= high {
                        return Err(format!(
                            "{len} scales and levels {low} to {high} for {} columns",
                            node.width
                        ));
                    }
                }
            }
            Op::Scale { factor } => {
                let [x] = inputs(node)?;
                finite("factor", *factor)?;
                same(
                    "width of the input and the node's width",
                    x.width,
                    node.width,
                )?;
            }
            Op::Softcap { cap } => {
                let [x] = inputs(node)?;
                positive_cap(*cap)?;
                same(
                    "width of the input and the node's width",
                    x.width,
                    node.width,
                )?;
            }
            Op::LastRows => {
                let [x] = inputs(node)?;
                per_token(row_set)?;
                same(
                    "width of the input and the node's width",
                    x.width,
                    node.width,
                )?;
                return Ok(RowSet::Wanted);
            }
        }
        Ok(row_set)
    }

    fn check_input(&self, index: usize, nth: usize, input: &Columns) -> Result<(), String> {
        if input.node >= index {
            return Err(format!(
                "input {nth} reads node {}, which does not come before it",
                input.node
            ));
        }
        let width = self
            .graph
            .nodes
            .get(input.node)
            .map_or(0, |node| node.width);
        match input.offset.checked_add(input.width) {
            Some(end) if end <= width && input.width > 0 => Ok(()),
            _ => Err(format!(
                "input {nth} reads {} columns from column {} of node {}, which has {width}",
                input.width, input.offset, input.node
            )),
        }
    }

    fn common_rows(&self, node: &Node) -> Result<RowSet, String> {
        let mut row_sets = node
            .inputs
            .iter()
            .filter_map(|input| self.row_sets.get(input.node))
            .copied();
        let first = row_sets.next().unwrap_or(RowSet::Tokens);
        if row_sets.all(|row_set| row_set == first) {
            Ok(first)
        } else {
            Err(
                "one input has a row per token and another only the rows whose logits are wanted"
                    .into(),
            )
        }
    }

    fn check_attention(
        &mut self,
        node: &Node,
        layer: usize,
        heads: usize,
        [q, k, v]: [&Columns; 3],
    ) -> Result<(), String> {
        let (Some(kv), Some(attended)) =
            (self.graph.layers.get(layer), self.attended.get_mut(layer))
        else {
            return Err(format!(
                "attention layer {layer} does not exist, there are {}",
                self.graph.layers.len()
            ));
        };
        if std::mem::replace(attended, true) {
            return Err(format!(
                "attention layer {layer} is used by an earlier node"
            ));
        }
        if heads == 0 || !heads.is_multiple_of(kv.kv_heads) {
            return Err(format!(
                "{heads} query heads cannot share {} key/value heads",
                kv.kv_heads
            ));
        }
        let query_width = heads
            .checked_mul(kv.head_dim)
            .ok_or("its heads are too many")?;
        let kv_width = kv.kv_heads * kv.head_dim;
        same(
            "width of the queries and heads x head_dim",
            q.width,
            query_width,
        )?;
        same(
            "width of the keys and kv_heads x head_dim",
            k.width,
            kv_width,
        )?;
        same(
            "width of the values and kv_heads x head_dim",
            v.width,
            kv_width,
        )?;
        same(
            "heads x head_dim and the node's width",
            query_width,
            node.width,
        )
    }

    fn matrix(&self, id: MatrixId) -> Result<&MatrixEntry, String> {
        let matrices = &self.weights.matrices;
        matrices
            .get(id)
            .ok_or_else(|| format!("matrix {id} does not exist, there are {}", matrices.len()))
    }

    fn vector_len(&self, id: VectorId) -> Result<usize, String> {
        let vectors = &self.weights.vectors;
        let vector = vectors
            .get(id)
            .ok_or_else(|| format!("vector {id} does not exist, there are {}", vectors.len()))?;
        Ok(vector.len)
    }
}

fn inputs<const N: usize>(node: &Node) -> Result<[&Columns; N], String> {
    let found: Vec<&Columns> = node.inputs.iter().take(N + 1).collect();
    found.try_into().map_err(|_| {
        format!(
            "it has {} inputs, its operator takes {N}",
            node.inputs.len()
        )
    })
}

fn per_token(row_set: RowSet) -> Result<(), String> {
    match row_set {
        RowSet::Tokens => Ok(()),
        RowSet::Wanted => Err(
            "it needs a row per token, and its input keeps only the rows whose logits are wanted"
                .into(),
        ),
    }
}

fn at_least_rows(table: &MatrixEntry, needed: usize, what: &str) -> Result<(), String> {
    if table.rows >= needed {
        Ok(())
    } else {
        Err(format!(
            "the table has {} rows, {what} need {needed}",
            table.rows
        ))
    }
}

fn same(what: &str, left: usize, right: usize) -> Result<(), String> {
    if left == right {
        Ok(())
    } else {
        Err(format!("{what} differ: {left} and {right}"))
    }
}

fn finite(what: &str, value: f32) -> Result<(), String> {
    if value.is_finite() {
        Ok(())
    } else {
        Err(format!("{what} {value} is not a finite number"))
    }
}

fn positive_cap(cap: f32) -> Result<(), String> {
    if cap.is_finite() && cap > 0.0 {
        Ok(())
    } else {
        Err(format!("a cap of {cap} is not a positive number"))
    }
}
