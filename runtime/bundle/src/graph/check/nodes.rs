//! One operator after the other: its inputs, its weights, its numbers.

use super::{MAX_HEAD_DIM, MAX_WIDTH};
use crate::graph::{
    Columns, Graph, Input, InputId, InputKind, Levels, MatrixId, Node, Op, RowSet, VectorId,
};
use crate::{MatrixEntry, WeightTable};

/// Checks nodes one after the other.
pub(super) struct NodeChecker<'a> {
    graph: &'a Graph,
    weights: &'a WeightTable,
    /// Of the nodes that were checked.
    row_sets: Vec<RowSet>,
    /// Layers whose attention was there.
    attended: Vec<bool>,
}

impl<'a> NodeChecker<'a> {
    pub(super) fn new(graph: &'a Graph, weights: &'a WeightTable) -> NodeChecker<'a> {
        NodeChecker {
            graph,
            weights,
            row_sets: Vec::with_capacity(graph.nodes.len()),
            attended: vec![false; graph.layers.len()],
        }
    }

    /// Checks the next node, whose predecessors were checked.
    pub(super) fn check(&mut self, index: usize, node: &Node) -> Result<(), String> {
        if node.width == 0 || node.width > MAX_WIDTH {
            return Err(format!(
                "{} columns; 1 to {MAX_WIDTH} are allowed",
                node.width
            ));
        }
        for (nth, input) in node.inputs.iter().enumerate() {
            self.check_input(index, nth, input)?;
        }
        let row_set = RowSet::of(node, &self.row_sets)?;
        match &node.op {
            Op::Embed {
                input,
                table,
                scale,
            } => {
                inputs::<0>(node)?;
                finite("scale", *scale)?;
                let table = self.matrix(*table)?;
                let count = match self.input(*input)?.kind {
                    InputKind::TokenIds { count } | InputKind::TokenTypes { count } => count,
                    InputKind::Rows { .. } => {
                        return Err(format!("input {input} gives rows, not ids"));
                    }
                };
                at_least_rows(table, count, "the ids of its input")?;
                same(
                    "columns of the table and the node's width",
                    table.cols,
                    node.width,
                )?;
            }
            Op::Rows { input } => {
                inputs::<0>(node)?;
                let InputKind::Rows { width } = self.input(*input)?.kind else {
                    return Err(format!("input {input} gives ids, not rows"));
                };
                same(
                    "width of the given rows and the node's width",
                    width,
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
            Op::LastRows | Op::Pool { pooling: _ } => {
                let [x] = inputs(node)?;
                same(
                    "width of the input and the node's width",
                    x.width,
                    node.width,
                )?;
            }
        }
        self.row_sets.push(row_set);
        Ok(())
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

    fn input(&self, id: InputId) -> Result<&Input, String> {
        let inputs = &self.graph.inputs;
        inputs
            .get(id)
            .ok_or_else(|| format!("input {id} does not exist, there are {}", inputs.len()))
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
