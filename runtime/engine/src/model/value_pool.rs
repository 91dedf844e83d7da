//! Memory of the values that flow between operators, used again and again.
//!
//! Values come and go hundreds of times per token while pages of keys and values stay: left to the
//! allocator, the pages settle between the values and memory fragments to a multiple of what is alive. So it
//! is settled once per plan which values share memory.

use super::steps::Step;
use super::turn::Rows;
use niwaki_bundle::graph::{Graph, RowSet};
use std::sync::Arc;
use tract_core::internal::*;

/// Where the value of a step goes: the first columns of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) index: usize,
    pub(super) columns: usize,
}

/// Memory that values use one after the other, as wide as the widest of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct SharedSlot {
    columns: usize,
    /// Which rows its values have.
    rows: RowSet,
    /// Holds an output, which the caller may keep.
    kept: bool,
}

/// The tensor of each slot.
pub(crate) struct ValuePool {
    slots: Arc<[SharedSlot]>,
    tensors: Vec<Option<Arc<Tensor>>>,
}

impl ValuePool {
    pub(super) fn new(slots: Arc<[SharedSlot]>) -> ValuePool {
        ValuePool {
            tensors: vec![None; slots.len()],
            slots,
        }
    }

    /// Makes room for a run with values of so many rows.
    ///
    /// All at once, where that of another run was: between pages of keys and values it would not fit in again.
    pub(crate) fn prepare(&mut self, run: Rows) -> TractResult<()> {
        for of in [RowSet::Tokens, RowSet::Wanted, RowSet::Sequences] {
            let rows = run.of(of);
            let slots = self.slots.iter().zip(&mut self.tensors);
            let mut slots: Vec<_> = slots
                .filter(|(slot, _)| slot.rows == of && !slot.kept)
                .collect();
            let fits = |tensor: &Option<Arc<Tensor>>| {
                let first = tensor.as_ref().and_then(|tensor| tensor.shape().first());
                first == Some(&rows)
            };
            if slots.iter().all(|(_, tensor)| fits(tensor)) {
                continue;
            }
            slots.iter_mut().for_each(|(_, tensor)| **tensor = None);
            for (slot, tensor) in slots {
                *tensor = Some(Arc::new(Tensor::zero::<f32>(&[rows, slot.columns])?));
            }
        }
        Ok(())
    }

    /// A tensor `[rows, columns of the slot]` that nobody else holds; what is in it is left over from earlier use.
    pub(super) fn take(&mut self, slot: Slot, rows: usize) -> TractResult<Arc<Tensor>> {
        let shape = [rows, slot.columns];
        let free = |tensor: &Arc<Tensor>| Arc::strong_count(tensor) == 1 && tensor.shape() == shape;
        let kept = self.tensors.get_mut(slot.index).and_then(Option::take);
        match kept.filter(free) {
            Some(tensor) => Ok(tensor),
            None => Ok(Arc::new(Tensor::zero::<f32>(&shape)?)),
        }
    }

    /// Keeps a tensor for the next value of its slot.
    pub(super) fn keep(&mut self, slot: Slot, tensor: Arc<Tensor>) {
        if let Some(kept) = self.tensors.get_mut(slot.index) {
            *kept = Some(tensor);
        }
    }
}

/// One step of a plan, and which rows its value has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Live {
    pub(super) step: Step,
    pub(super) rows: RowSet,
}

/// Which values share memory.
pub(super) struct Sharing {
    pub(super) slots: Arc<[SharedSlot]>,
    /// By step of the plan.
    of_step: Vec<usize>,
}

impl Sharing {
    /// Shares out memory among the values of `plan`, which are computed in this order: a value lives from its step
    /// to the end of the last step that reads it. Each takes the narrowest free slot that it fits into, else
    /// the widest free one, which grows to hold it.
    pub(super) fn of(graph: &Graph, plan: &[Live]) -> Sharing {
        let mut last_use = vec![0; graph.nodes.len()];
        for (at, live) in plan.iter().enumerate() {
            for input in live.step.inputs(graph) {
                if let Some(last_use) = last_use.get_mut(input.node) {
                    *last_use = at;
                }
            }
        }
        let mut slots: Vec<SharedSlot> = Vec::new();
        // The last step that needs what is in the slot.
        let mut needed_until: Vec<usize> = Vec::new();
        let mut of_step = Vec::with_capacity(plan.len());
        for (at, live) in plan.iter().enumerate() {
            let value = live.step.value();
            let kept = graph.is_output(value);
            let columns = graph.nodes.get(value).map_or(0, |node| node.width);
            let until = last_use.get(value).map_or(at, |last| at.max(*last));
            let best = (slots.iter_mut().zip(&mut needed_until).enumerate())
                .filter(|(_, (slot, until))| {
                    !kept && !slot.kept && slot.rows == live.rows && **until < at
                })
                .min_by_key(|(_, (slot, _))| match slot.columns {
                    wide if wide >= columns => (false, wide),
                    narrow => (true, usize::MAX - narrow),
                });
            if let Some((index, (slot, needed_until))) = best {
                slot.columns = slot.columns.max(columns);
                *needed_until = until;
                of_step.push(index);
            } else {
                of_step.push(slots.len());
                slots.push(SharedSlot {
                    columns,
                    rows: live.rows,
                    kept,
                });
                needed_until.push(until);
            }
        }
        Sharing {
            slots: slots.into(),
            of_step,
        }
    }

    /// The slot of the value of step `at` of the plan.
    pub(super) fn slot(&self, at: usize) -> Option<Slot> {
        let index = *self.of_step.get(at)?;
        let columns = self.slots.get(index)?.columns;
        Some(Slot { index, columns })
    }
}

/// Columns of all slots but those of outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PoolColumns {
    /// Of slots with a row per token.
    pub(crate) per_token: usize,
    /// Of slots with a row per wanted result.
    pub(crate) per_wanted: usize,
    /// Of slots with a row per sequence.
    pub(crate) per_sequence: usize,
}

impl PoolColumns {
    pub(super) fn of(slots: &[SharedSlot]) -> PoolColumns {
        let mut columns = PoolColumns::default();
        for slot in slots.iter().filter(|slot| !slot.kept) {
            let sum = match slot.rows {
                RowSet::Tokens => &mut columns.per_token,
                RowSet::Wanted => &mut columns.per_wanted,
                RowSet::Sequences => &mut columns.per_sequence,
            };
            *sum = sum.saturating_add(slot.columns);
        }
        columns
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::steps::steps;
    use crate::model::test_graphs::{feed_forward, graph_of_widths};
    use proptest::prelude::*;

    fn plan(graph: &Graph) -> Vec<Live> {
        let live = |step| Live {
            step,
            rows: RowSet::Tokens,
        };
        steps(graph, |_| true).into_iter().map(live).collect()
    }

    #[test]
    fn a_feed_forward_block_holds_its_residual_and_what_it_multiplies() {
        let graph = feed_forward();
        let width = graph.nodes[0].width;
        let sharing = Sharing::of(&graph, &plan(&graph));
        let columns = PoolColumns::of(&sharing.slots);
        // The residual, gate and up; their sum is the value of the graph, which is not counted.
        assert_eq!(columns.per_token, 3 * width);
        assert_eq!(columns.per_wanted, 0);
    }

    #[test]
    fn a_narrow_slot_grows_before_another_is_made() {
        // 0 (8 columns) -> 1 (4) -> 2 (32) -> 3 (8): 2 finds 0's slot free, and widens it.
        let graph = graph_of_widths(&[8, 4, 32, 8], &[&[], &[0], &[1], &[2]]);
        let sharing = Sharing::of(&graph, &plan(&graph));
        let columns = PoolColumns::of(&sharing.slots);
        assert_eq!(columns.per_token, 32 + 4);
    }

    proptest! {
        #[test]
        fn values_that_live_at_the_same_time_share_nothing(
            nodes in prop::collection::vec((1usize..64, prop::collection::vec(any::<prop::sample::Index>(), 1..4)), 2..40)
        ) {
            let widths: Vec<usize> = nodes.iter().map(|node| node.0).collect();
            let inputs: Vec<Vec<usize>> = nodes.iter().enumerate().map(|(id, (_, inputs))| {
                if id == 0 { Vec::new() } else { inputs.iter().map(|input| input.index(id)).collect() }
            }).collect();
            let inputs: Vec<&[usize]> = inputs.iter().map(Vec::as_slice).collect();
            let graph = graph_of_widths(&widths, &inputs);
            let plan = plan(&graph);
            let sharing = Sharing::of(&graph, &plan);
            let mut holder = vec![None; plan.len()];
            for (at, live) in plan.iter().enumerate() {
                let value = live.step.value();
                for input in live.step.inputs(&graph) {
                    let written = plan.iter().position(|live| live.step.value() == input.node).unwrap();
                    prop_assert_eq!(holder[sharing.slot(written).unwrap().index], Some(input.node));
                }
                let slot = sharing.slot(at).unwrap();
                prop_assert!(slot.columns >= widths[value]);
                prop_assert!(live.step.inputs(&graph).all(|input| holder[slot.index] != Some(input.node)));
                holder[slot.index] = Some(value);
            }
        }
    }
}
