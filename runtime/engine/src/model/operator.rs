//! The tract operator of one graph node, and the model made of them.

use super::compute::compute;
use super::steps::{Step, steps};
use super::turn::Turn;
use super::value_pool::{Live, PoolColumns, SharedSlot, Sharing, Slot, ValuePool};
use crate::kv::KvCache;
use niwaki_bundle::Bundle;
use niwaki_bundle::graph::{Graph, MatrixId, Op as GraphOp, RowSet};
use niwaki_kernels::Kernels;
use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;
use tract_core::internal::*;
use tract_core::model::{TypedSimplePlan, TypedSimpleState};
use tract_core::ops::EvalOp;

/// tract refused the graph, or an operator failed.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
pub struct ModelError(#[from] TractError);

/// What an operator fails with when the run was cancelled.
#[derive(Debug, thiserror::Error)]
#[error("cancelled")]
struct Cancelled;

impl ModelError {
    /// Whether it is no failure: the run was cancelled.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.root_cause().is::<Cancelled>()
    }
}

/// A plan that computes logits from token ids. Shared by all sessions of an engine.
pub(crate) struct Decoder {
    plan: Arc<TypedSimplePlan>,
    slots: Arc<[SharedSlot]>,
}

/// Rows of values after the last rows were picked.
const WANTED: &str = "wanted";

/// The operator of one step. Cloning it copies no weights; equality is identity, so that comparing two
/// never touches a page of them.
#[derive(Clone)]
struct Operator {
    bundle: Arc<Bundle>,
    kernels: Arc<Kernels>,
    step: Step,
    /// Where the value goes.
    slot: Slot,
    /// Number of rows of the value, symbolic.
    rows: TDim,
    /// Of a matrix product: the matrix of the one after it.
    next_matrix: Option<MatrixId>,
}

impl Decoder {
    /// Builds the plan of a checked graph. Reads no weights.
    pub(crate) fn new(bundle: &Arc<Bundle>, kernels: &Arc<Kernels>) -> Result<Decoder, ModelError> {
        Self::build(bundle, kernels).map_err(ModelError)
    }

    fn build(bundle: &Arc<Bundle>, kernels: &Arc<Kernels>) -> TractResult<Decoder> {
        let graph = bundle.graph();
        let mut model = TypedModel::default();
        let tokens = model.symbols.sym("tokens").to_dim();
        let wanted = model.symbols.sym(WANTED).to_dim();
        let source = model.add_source("token ids", u32::fact([tokens.clone()]))?;
        let row_sets = graph.row_sets();
        let is_quantized = |id| {
            let matrix = bundle.matrix(id);
            matrix.is_some_and(|matrix| matrix.format().is_quantized())
        };
        let mut tract_ids: Vec<Option<OutletId>> = vec![None; graph.nodes.len()];
        for step in steps(graph, is_quantized) {
            let value = step.value();
            let node = graph.nodes.get(value).context("no such node")?;
            let rows = match row_sets.get(value) {
                Some(RowSet::Wanted) => wanted.clone(),
                _ => tokens.clone(),
            };
            // Known when the order is.
            let slot = Slot {
                index: 0,
                columns: node.width,
            };
            let fact = f32::fact([rows.clone(), slot.columns.to_dim()]);
            let operator = Operator {
                bundle: bundle.clone(),
                kernels: kernels.clone(),
                step,
                slot,
                rows,
                next_matrix: None,
            };
            // Not `wire_node`: it looks through all earlier names every time.
            let id = model.add_node(
                format!("{value} {}", node.name),
                Box::new(operator) as Box<dyn TypedOp>,
                tvec!(fact),
            )?;
            let mut inputs = Vec::new();
            for input in step.inputs(graph) {
                let built = tract_ids.get(input.node).copied().flatten();
                inputs.push(built.context("an input that was not built")?);
            }
            // Embeddings read the tokens.
            if inputs.is_empty() {
                inputs.push(source);
            }
            for (slot, input) in inputs.into_iter().enumerate() {
                model.add_edge(input, InletId::new(id, slot))?;
            }
            if let Some(tract_id) = tract_ids.get_mut(value) {
                *tract_id = Some(OutletId::new(id, 0));
            }
        }
        let logits = tract_ids.get(graph.logits).copied().flatten();
        let logits = logits.context("no logits")?;
        model.select_output_outlets(&[logits])?;
        let order = Self::operators(&model, &model.eval_order_opt_ram()?);
        let live: Vec<Live> = order
            .iter()
            .map(|(_, operator)| Live {
                step: operator.step,
                wanted: operator.rows == wanted,
            })
            .collect();
        let sharing = Sharing::of(graph, &live);
        let products: Vec<Option<MatrixId>> = live
            .iter()
            .map(|live| match graph.nodes.get(live.step.node)?.op {
                GraphOp::Linear { weight, .. } => Some(weight),
                _ => None,
            })
            .collect();
        let next_matrices = following(&products);
        let order: Vec<usize> = order.into_iter().map(|(id, _)| id).collect();
        for (at, id) in order.iter().enumerate() {
            let slot = sharing.slot(at).context("a value without memory")?;
            let operator = model.node_mut(*id).op_as_mut::<Operator>();
            let operator = operator.context("no operator")?;
            operator.slot = slot;
            operator.next_matrix = next_matrices.get(at).copied().flatten();
            let fact = f32::fact([operator.rows.clone(), slot.columns.to_dim()]);
            model.set_outlet_fact(OutletId::new(*id, 0), fact)?;
        }
        let plan = TypedSimplePlan::new(model)?;
        let planned = Self::operators(plan.model(), plan.order_without_consts());
        ensure!(
            planned.iter().map(|(id, _)| id).eq(&order),
            "operators in another order than values share memory in"
        );
        let slots = sharing.slots;
        Ok(Decoder { plan, slots })
    }

    /// The operators among `nodes`, with their nodes.
    fn operators<'a>(model: &'a TypedModel, nodes: &[usize]) -> Vec<(usize, &'a Operator)> {
        let operator = |id: &usize| Some((*id, model.node(*id).op_as::<Operator>()?));
        nodes.iter().filter_map(operator).collect()
    }

    /// Number of operators that a run passes through.
    pub(crate) fn steps(&self) -> usize {
        self.plan.order_without_consts().len()
    }

    /// What a session's values take.
    pub(crate) fn pool_columns(&self) -> PoolColumns {
        PoolColumns::of(&self.slots)
    }

    /// A state to run the plan with, holding a turn with this cache.
    pub(crate) fn spawn(
        &self,
        graph: &Graph,
        cache: KvCache,
    ) -> Result<TypedSimpleState, ModelError> {
        let turn = Turn::new(graph, cache, ValuePool::new(self.slots.clone()));
        let mut state = self.plan.spawn().map_err(ModelError)?;
        state.turn_state.shared.insert(RefCell::new(turn));
        Ok(state)
    }

    /// The turn of a state made by [`spawn`](Self::spawn).
    pub(crate) fn turn(state: &mut TypedSimpleState) -> Result<&mut Turn, ModelError> {
        state
            .turn_state
            .shared
            .get_mut::<RefCell<Turn>>()
            .map(RefCell::get_mut)
            .ok_or_else(|| ModelError(format_err!("the state holds no turn")))
    }

    /// Runs the plan over `tokens`; the turn says at which positions.
    pub(crate) fn run(state: &mut TypedSimpleState, tokens: &[u32]) -> Result<TValue, ModelError> {
        // Otherwise tract looks for the number of wanted rows at every operator until it meets them.
        let wanted = state.model().symbols.sym(WANTED);
        let wanted_rows = Self::turn(state)?.wanted_rows.min(tokens.len());
        let symbols = &mut state.turn_state.resolved_symbols;
        symbols.set(&wanted, wanted_rows as i64);
        let result = Tensor::from_shape(&[tokens.len()], tokens)
            .and_then(|ids| state.run(tvec!(ids.into_tvalue())))
            .and_then(|mut outputs| outputs.pop().context("no logits"));
        if result.is_err() && !state.turn_state.values.is_empty() {
            // tract keeps the values of a run that failed.
            state.reset_turn().map_err(ModelError)?;
        }
        result.map_err(ModelError)
    }
}

/// For each of those that are there, the next one; after the last the first, with which the next token begins.
fn following<T: Copy>(items: &[Option<T>]) -> Vec<Option<T>> {
    let mut next = items.iter().copied().flatten().next();
    let mut result = vec![None; items.len()];
    for (result, item) in result.iter_mut().zip(items).rev() {
        if item.is_some() {
            *result = next;
            next = *item;
        }
    }
    result
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Step { node, source, sum } = self.step;
        let computed = [source, Some(node), sum.map(|sum| sum.node)];
        let nodes = &self.bundle.graph().nodes;
        f.debug_list()
            .entries(
                computed
                    .into_iter()
                    .flatten()
                    .filter_map(|id| nodes.get(id)),
            )
            .finish()
    }
}

impl PartialEq for Operator {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.bundle, &other.bundle) && self.step == other.step
    }
}

impl Eq for Operator {}

impl Op for Operator {
    fn name(&self) -> StaticName {
        "Niwaki".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{self:?}")])
    }

    op_as_typed_op!();
}

impl EvalOp for Operator {
    not_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let turn = context
            .shared
            .and_then(|shared| shared.get::<RefCell<Turn>>())
            .context("no turn")?;
        let mut turn = turn.try_borrow_mut()?;
        if let Some(cancellation) = &turn.cancellation
            && !cancellation.begin_operator()
        {
            return Err(Cancelled.into());
        }
        if let Some(matrix) = self.next_matrix.and_then(|id| self.bundle.matrix(id)) {
            self.kernels.announce(&matrix);
        }
        let start = turn.profile.is_some().then(Instant::now);
        let output = compute(
            &self.step,
            self.slot,
            &self.bundle,
            &self.kernels,
            &mut turn,
            &inputs,
        )?;
        if let (Some(start), Some(profile)) = (start, &mut turn.profile) {
            profile.add_node(self.step.node, start.elapsed());
        }
        Ok(tvec!(TValue::from_const(output)))
    }
}

impl TypedOp for Operator {
    fn output_facts(&self, _inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact([
            self.rows.clone(),
            self.slot.columns.to_dim()
        ])))
    }

    as_op!();
}

#[cfg(test)]
mod tests {
    use super::following;

    #[test]
    fn the_last_product_is_followed_by_the_first() {
        let products = [None, Some(1), None, Some(2), Some(3), None];
        let expected = [None, Some(2), None, Some(3), Some(1), None];
        assert_eq!(following(&products), expected);
        assert_eq!(following(&[Some(7)]), [Some(7)]);
        assert_eq!(following::<u32>(&[None, None]), [None, None]);
    }
}
