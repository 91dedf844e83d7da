//! The tract operator of one graph node, and the model made of them.

use super::compute::compute;
use super::turn::Turn;
use super::value_pool::{PoolColumns, Step, pool_columns};
use crate::bundle::Bundle;
use crate::graph::{Node, Op as GraphOp, RowSet};
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
    pool_columns: PoolColumns,
}

/// The operator of one node. Cloning it copies no weights; equality is identity, so that comparing two
/// never touches a page of them.
#[derive(Clone)]
struct Operator {
    bundle: Arc<Bundle>,
    kernels: Arc<Kernels>,
    node: usize,
    /// Number of rows of the value, symbolic.
    rows: TDim,
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
        let wanted = model.symbols.sym("wanted").to_dim();
        let source = model.add_source("token ids", u32::fact([tokens.clone()]))?;
        let mut tract_ids = Vec::with_capacity(graph.nodes.len());
        for (index, (node, row_set)) in graph.nodes.iter().zip(graph.row_sets()).enumerate() {
            let rows = match row_set {
                RowSet::Tokens => tokens.clone(),
                RowSet::Wanted => wanted.clone(),
            };
            let fact = f32::fact([rows.clone(), node.width.to_dim()]);
            let operator = Operator {
                bundle: bundle.clone(),
                kernels: kernels.clone(),
                node: index,
                rows,
            };
            // Not `wire_node`: it looks through all earlier names every time.
            let id = model.add_node(
                format!("{index} {}", node.name),
                Box::new(operator) as Box<dyn TypedOp>,
                tvec!(fact),
            )?;
            let inputs: Vec<OutletId> = match &node.op {
                GraphOp::Embed { .. } | GraphOp::PositionEmbed { .. } => vec![source],
                _ => node
                    .inputs
                    .iter()
                    .map(|input| {
                        tract_ids
                            .get(input.node)
                            .copied()
                            .context("an input that was not built")
                    })
                    .collect::<TractResult<_>>()?,
            };
            for (slot, input) in inputs.into_iter().enumerate() {
                model.add_edge(input, InletId::new(id, slot))?;
            }
            tract_ids.push(OutletId::new(id, 0));
        }
        let logits = tract_ids.get(graph.logits).copied().context("no logits")?;
        model.select_output_outlets(&[logits])?;
        let plan = TypedSimplePlan::new(model)?;
        let steps: Vec<Step> = plan
            .order_without_consts()
            .iter()
            .filter_map(|id| plan.model().node(*id).op_as::<Operator>())
            .map(|operator| Step {
                node: operator.node,
                wanted: operator.rows == wanted,
            })
            .collect();
        let pool_columns = pool_columns(graph, &steps);
        Ok(Decoder { plan, pool_columns })
    }

    /// What a session's values take.
    pub(crate) fn pool_columns(&self) -> PoolColumns {
        self.pool_columns
    }

    /// A state to run the plan with, holding `turn`.
    pub(crate) fn spawn(&self, turn: Turn) -> Result<TypedSimpleState, ModelError> {
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

impl Operator {
    fn node(&self) -> TractResult<&Node> {
        self.bundle
            .graph()
            .nodes
            .get(self.node)
            .context("an operator without its node")
    }
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.bundle.graph().nodes.get(self.node))
    }
}

impl PartialEq for Operator {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.bundle, &other.bundle) && self.node == other.node
    }
}

impl Eq for Operator {}

impl Op for Operator {
    fn name(&self) -> StaticName {
        "Niwaki".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{:?}", self.node()?.op)])
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
        let start = turn.profile.is_some().then(Instant::now);
        let output = compute(
            self.node()?,
            &self.bundle,
            &self.kernels,
            &mut turn,
            &inputs,
        )?;
        if let (Some(start), Some(profile)) = (start, &mut turn.profile) {
            profile.add_node(self.node, start.elapsed());
        }
        Ok(tvec!(TValue::from_const(output)))
    }
}

impl TypedOp for Operator {
    fn output_facts(&self, _inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact([
            self.rows.clone(),
            self.node()?.width.to_dim()
        ])))
    }

    as_op!();
}
