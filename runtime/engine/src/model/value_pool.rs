//! Memory of the values that flow between operators, used again and again.
//!
//! Values come and go hundreds of times per token while pages of keys and values stay: left to the
//! allocator, the pages settle between the values and memory fragments to a multiple of what is alive.

use super::steps::Step;
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

/// One step of a plan, and which rows its value has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Live {
    pub(super) step: Step,
    /// Only rows of wanted logits.
    pub(super) wanted: bool,
}

/// Columns of all tensors that a pool ends up with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PoolColumns {
    /// Of tensors with a row per token.
    pub(crate) per_token: usize,
    /// Of tensors with a row per wanted logits.
    pub(crate) per_wanted: usize,
}

/// What the pool of a run over `plan` ends up with: a value lives from its step to the end of the last
/// step that reads it.
pub(super) fn pool_columns(graph: &Graph, plan: &[Live]) -> PoolColumns {
    let width = |live: &Live| {
        let node = graph.nodes.get(live.step.value());
        node.map_or(0, |node| node.width)
    };
    let mut last_use = vec![0; graph.nodes.len()];
    for (at, live) in plan.iter().enumerate() {
        for input in live.step.inputs(graph) {
            if let Some(last_use) = last_use.get_mut(input.node) {
                *last_use = at;
            }
        }
    }
    let mut dying: Vec<Vec<Live>> = vec![Vec::new(); plan.len()];
    for live in plan.iter().filter(|live| live.step.value() != graph.logits) {
        let last_use = last_use.get(live.step.value());
        if let Some(dying) = last_use.and_then(|at| dying.get_mut(*at)) {
            dying.push(*live);
        }
    }
    let mut free: HashMap<(bool, usize), usize> = HashMap::default();
    let mut columns = PoolColumns::default();
    for (live, dying) in plan.iter().zip(&dying) {
        let width_ = width(live);
        match free.get_mut(&(live.wanted, width_)) {
            Some(count) if *count > 0 => *count -= 1,
            _ if live.wanted => columns.per_wanted = columns.per_wanted.saturating_add(width_),
            _ => columns.per_token = columns.per_token.saturating_add(width_),
        }
        for dead in dying {
            *free.entry((dead.wanted, width(dead))).or_default() += 1;
        }
    }
    columns
}
