//! Memory of the values that flow between operators, used again and again.
//!
//! Values come and go hundreds of times per token while pages of keys and values stay: left to the
//! allocator, the pages settle between the values and memory fragments to a multiple of what is alive.

use crate::graph::Graph;
use std::sync::Arc;
use tract_core::internal::*;

/// Tensors by shape. One that nobody else holds any more is free.
#[derive(Default)]
pub(crate) struct ValuePool {
    tensors: Vec<Arc<Tensor>>,
}

impl ValuePool {
    /// A tensor `[rows, width]` that nobody else holds; what is in it is left over from earlier use.
    pub(crate) fn take(&mut self, rows: usize, width: usize) -> TractResult<Arc<Tensor>> {
        let free = |tensor: &Arc<Tensor>| {
            Arc::strong_count(tensor) == 1 && tensor.shape() == [rows, width]
        };
        match self.tensors.iter().position(free) {
            Some(index) => Ok(self.tensors.swap_remove(index)),
            None => Ok(Arc::new(Tensor::zero::<f32>(&[rows, width])?)),
        }
    }

    /// Keeps a tensor for later, when its value is no longer needed.
    pub(crate) fn keep(&mut self, tensor: Arc<Tensor>) {
        self.tensors.push(tensor);
    }

    /// Frees what a run with values of `tokens` and `wanted` rows has no use for.
    pub(crate) fn prepare(&mut self, tokens: usize, wanted: usize) {
        self.tensors.retain(|tensor| matches!(tensor.shape().first(), Some(rows) if *rows == tokens || *rows == wanted));
    }
}

/// One step of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The graph node it computes.
    pub(crate) node: usize,
    /// Its value has rows only for wanted logits.
    pub(crate) wanted: bool,
}

/// Columns of all tensors that a pool ends up with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PoolColumns {
    /// Of tensors with a row per token.
    pub(crate) per_token: usize,
    /// Of tensors with a row per wanted logits.
    pub(crate) per_wanted: usize,
}

/// What the pool of a run over `steps` ends up with: a value lives from its step to the end of the last
/// step that reads it.
pub(crate) fn pool_columns(graph: &Graph, steps: &[Step]) -> PoolColumns {
    let width = |step: &Step| graph.nodes.get(step.node).map_or(0, |node| node.width);
    let mut last_use = vec![0; graph.nodes.len()];
    for (at, step) in steps.iter().enumerate() {
        for input in graph
            .nodes
            .get(step.node)
            .into_iter()
            .flat_map(|node| &node.inputs)
        {
            if let Some(last_use) = last_use.get_mut(input.node) {
                *last_use = at;
            }
        }
    }
    let mut dying: Vec<Vec<Step>> = vec![Vec::new(); steps.len()];
    for step in steps.iter().filter(|step| step.node != graph.logits) {
        if let Some(dying) = last_use.get(step.node).and_then(|at| dying.get_mut(*at)) {
            dying.push(*step);
        }
    }
    let mut free: HashMap<(bool, usize), usize> = HashMap::default();
    let mut columns = PoolColumns::default();
    for (step, dying) in steps.iter().zip(&dying) {
        let width_ = width(step);
        match free.get_mut(&(step.wanted, width_)) {
            Some(count) if *count > 0 => *count -= 1,
            _ if step.wanted => columns.per_wanted = columns.per_wanted.saturating_add(width_),
            _ => columns.per_token = columns.per_token.saturating_add(width_),
        }
        for dead in dying {
            *free.entry((dead.wanted, width(dead))).or_default() += 1;
        }
    }
    columns
}
