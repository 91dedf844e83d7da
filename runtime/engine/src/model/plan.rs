//! The tract operator of one step, and the plan made of them.

use super::compute::compute;
use super::steps::{Step, steps};
use super::turn::Turn;
use super::value_pool::{Live, PoolColumns, SharedSlot, Sharing, Slot, ValuePool};
use super::weights::Weights;
use super::workspace::Workspace;
use niwaki_bundle::Bundle;
use niwaki_bundle::graph::{Graph, InputKind, MatrixId, Op as GraphOp, RowSet};
use niwaki_kernels::Kernels;
use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;
use tract_core::internal::*;
use tract_core::model::TypedSimplePlan;
use tract_core::ops::EvalOp;

/// tract refused the graph, or an operator failed.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
pub struct ModelError(#[from] pub(super) TractError);

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

/// What a graph computes as a plan: outputs from inputs. Shared by all runs of an engine.
pub(crate) struct Model {
    shared: Arc<Shared>,
    plan: Arc<TypedSimplePlan>,
    slots: Arc<[SharedSlot]>,
    /// Which rows each output has.
    output_rows: Vec<RowSet>,
}

/// What every operator of a model needs.
pub(super) struct Shared {
    pub(super) graph: Arc<Graph>,
    pub(super) weights: Weights,
    pub(super) kernels: Arc<Kernels>,
}

/// Numbers of rows that no input has.
pub(super) const WANTED: &str = "wanted";
pub(super) const SEQUENCES: &str = "sequences";

/// The operator of one step. Cloning it copies no weights; equality is identity, so that comparing two
/// never touches a page of them.
#[derive(Clone)]
struct Operator {
    shared: Arc<Shared>,
    step: Step,
    /// Where the value goes.
    slot: Slot,
    /// Which rows the value has, and their number, symbolic.
    rows: RowSet,
    rows_dim: TDim,
    /// Of a matrix product: the matrix of the one after it.
    next_matrix: Option<MatrixId>,
}

impl Model {
    /// Builds the plan of a checked graph. Reads no weights.
    pub(crate) fn new(bundle: &Arc<Bundle>, kernels: &Arc<Kernels>) -> Result<Model, ModelError> {
        let shared = Shared {
            graph: bundle.graph().clone(),
            weights: Weights::new(bundle.clone()),
            kernels: kernels.clone(),
        };
        Self::build(Arc::new(shared)).map_err(ModelError)
    }

    fn build(shared: Arc<Shared>) -> TractResult<Model> {
        let graph = &*shared.graph;
        let mut model = TypedModel::default();
        let tokens = model.symbols.sym("tokens").to_dim();
        let wanted = model.symbols.sym(WANTED).to_dim();
        let sequences = model.symbols.sym(SEQUENCES).to_dim();
        let mut sources = Vec::with_capacity(graph.inputs.len());
        for (id, input) in graph.inputs.iter().enumerate() {
            let fact = match input.kind {
                InputKind::TokenIds { .. } | InputKind::TokenTypes { .. } => {
                    u32::fact([tokens.clone()])
                }
                InputKind::Rows { width } => f32::fact([tokens.clone(), width.to_dim()]),
            };
            sources.push(model.add_source(format!("input {id}"), fact)?);
        }
        let row_sets = match graph.row_sets() {
            Ok(row_sets) => row_sets,
            Err((node, problem)) => bail!("node {node}: {problem}"),
        };
        let mut outlets: Vec<Option<OutletId>> = vec![None; graph.nodes.len()];
        for (node, outlet) in graph.nodes.iter().zip(&mut outlets) {
            if let GraphOp::Rows { input } = node.op {
                *outlet = sources.get(input).copied();
            }
        }
        for step in steps(graph, |id| shared.weights.is_quantized(id)) {
            let value = step.value();
            let node = graph.nodes.get(value).context("no such node")?;
            let rows = *row_sets.get(value).context("no such node")?;
            let rows_dim = match rows {
                RowSet::Tokens => tokens.clone(),
                RowSet::Wanted => wanted.clone(),
                RowSet::Sequences => sequences.clone(),
            };
            // Known when the order is.
            let slot = Slot {
                index: 0,
                columns: node.width,
            };
            let fact = f32::fact([rows_dim.clone(), slot.columns.to_dim()]);
            let operator = Operator {
                shared: shared.clone(),
                step,
                slot,
                rows,
                rows_dim,
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
                let built = outlets.get(input.node).copied().flatten();
                inputs.push(built.context("an input that was not built")?);
            }
            // Embeddings read what is given, and so do positions, to know how many there are.
            if inputs.is_empty() {
                let input = match &node.op {
                    GraphOp::Embed { input, .. } => *input,
                    _ => 0,
                };
                inputs.push(*sources.get(input).context("no such input")?);
            }
            for (slot, input) in inputs.into_iter().enumerate() {
                model.add_edge(input, InletId::new(id, slot))?;
            }
            if let Some(outlet) = outlets.get_mut(value) {
                *outlet = Some(OutletId::new(id, 0));
            }
        }
        let mut outputs = Vec::with_capacity(graph.outputs.len());
        let mut output_rows = Vec::with_capacity(graph.outputs.len());
        for output in &graph.outputs {
            let outlet = outlets.get(output.node).copied().flatten();
            outputs.push(outlet.context("an output that was not built")?);
            output_rows.push(*row_sets.get(output.node).context("no such node")?);
        }
        model.select_output_outlets(&outputs)?;
        let order = Self::operators(&model, &model.eval_order_opt_ram()?);
        let live: Vec<Live> = order
            .iter()
            .map(|(_, operator)| Live {
                step: operator.step,
                rows: operator.rows,
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
            let fact = f32::fact([operator.rows_dim.clone(), slot.columns.to_dim()]);
            model.set_outlet_fact(OutletId::new(*id, 0), fact)?;
        }
        let plan = TypedSimplePlan::new(model)?;
        let planned = Self::operators(plan.model(), plan.order_without_consts());
        ensure!(
            planned.iter().map(|(id, _)| id).eq(&order),
            "operators in another order than values share memory in"
        );
        let slots = sharing.slots;
        Ok(Model {
            shared,
            plan,
            slots,
            output_rows,
        })
    }

    /// The operators among `nodes`, with their nodes.
    fn operators<'a>(model: &'a TypedModel, nodes: &[usize]) -> Vec<(usize, &'a Operator)> {
        let operator = |id: &usize| Some((*id, model.node(*id).op_as::<Operator>()?));
        nodes.iter().filter_map(operator).collect()
    }

    /// The graph that it computes.
    pub(crate) fn graph(&self) -> &Graph {
        &self.shared.graph
    }

    /// Which rows each output has.
    pub(crate) fn output_rows(&self) -> &[RowSet] {
        &self.output_rows
    }

    /// Number of operators that a run passes through.
    pub(crate) fn steps(&self) -> usize {
        self.plan.order_without_consts().len()
    }

    /// What the values of a run take.
    pub(crate) fn pool_columns(&self) -> PoolColumns {
        PoolColumns::of(&self.slots)
    }

    /// What one run at a time needs.
    pub(crate) fn workspace(&self) -> Result<Workspace, ModelError> {
        let turn = Turn::new(&self.shared.graph, ValuePool::new(self.slots.clone()));
        let state = self.plan.spawn().map_err(ModelError)?;
        Ok(Workspace::new(state, turn))
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
        let nodes = &self.shared.graph.nodes;
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
        self.shared.weights.same(&other.shared.weights) && self.step == other.step
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
        let shared = &*self.shared;
        if let Some(matrix) = self.next_matrix.and_then(|id| shared.weights.matrix(id)) {
            shared.kernels.announce(&matrix);
        }
        let start = turn.profile.is_some().then(Instant::now);
        let output = compute(&self.step, self.slot, self.rows, shared, &mut turn, &inputs)?;
        if let (Some(start), Some(profile)) = (start, &mut turn.profile) {
            profile.add_node(self.step.node, start.elapsed());
        }
        Ok(tvec!(TValue::from_const(output)))
    }
}

impl TypedOp for Operator {
    fn output_facts(&self, _inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact([
            self.rows_dim.clone(),
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
