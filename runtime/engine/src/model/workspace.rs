//! What one run at a time needs besides the plan, and the run itself.

use super::plan::{Model, ModelError, SEQUENCES, WANTED};
use super::profile::Profile;
use super::turn::{Sequence, Turn};
use crate::cancellation::Cancellation;
use crate::kv::KvCache;
use niwaki_bundle::graph::{Input, InputKind};
use std::cell::RefCell;
use tract_core::internal::*;
use tract_core::model::TypedSimpleState;

/// Memory of the values, scratch, and tract's state. Sessions that do not run at the same time share one.
pub(crate) struct Workspace {
    state: TypedSimpleState,
}

/// What an input is given for the tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub enum Entries<'a> {
    /// One id per token.
    Ids(&'a [u32]),
    /// One row per token.
    Rows(&'a [f32]),
}

/// One sequence's part of a run. Inputs are given by the caller, all of as many tokens.
pub(crate) struct Part<'a> {
    /// Keys and values of the positions before. Those of this run are in it afterwards, and count after
    /// [`advance`](KvCache::advance).
    pub(crate) cache: &'a mut KvCache,
    /// Tokens of this part.
    pub(crate) tokens: usize,
    /// Results are wanted of this many, the last ones.
    pub(crate) wanted: usize,
}

impl Workspace {
    pub(super) fn new(mut state: TypedSimpleState, turn: Turn) -> Workspace {
        state.turn_state.shared.insert(RefCell::new(turn));
        Workspace { state }
    }

    /// Computes the model's outputs, in their order; the rows of the parts follow each other. `entries` gives what
    /// input `i` of the graph takes for part `p`: `entries(i, p)`.
    ///
    /// # Errors
    /// When an operator fails or the run is cancelled: then what the caches hold after their length is undefined.
    pub(crate) fn run<'a>(
        &mut self,
        model: &Model,
        parts: &mut [Part<'_>],
        entries: impl Fn(usize, usize) -> Option<Entries<'a>>,
        cancellation: Option<&Cancellation>,
        mut profile: Option<&mut Profile>,
    ) -> Result<TVec<Arc<Tensor>>, ModelError> {
        let graph = model.graph();
        let mut inputs = tvec!();
        for (id, input) in graph.inputs.iter().enumerate() {
            let given = (0..parts.len()).map(|part| entries(id, part));
            inputs.push(tensor(input, given)?.into_tvalue());
        }
        let turn = self.turn()?;
        turn.cancellation = cancellation.cloned();
        turn.profile = profile.as_deref_mut().map(std::mem::take);
        turn.sequences.clear();
        let mut first = 0;
        for part in &mut *parts {
            // Back in its place below, whatever happens but a panic, which leaves its session without.
            let cache = std::mem::take(part.cache);
            let rows = first..first + part.tokens;
            first = rows.end;
            turn.sequences.push(Sequence {
                cache,
                rows,
                wanted: part.wanted.min(part.tokens),
            });
        }
        let result = self.run_turn(model, inputs);
        let turn = self.turn()?;
        for (part, sequence) in parts.iter_mut().zip(turn.sequences.drain(..)) {
            *part.cache = sequence.cache;
        }
        turn.cancellation = None;
        if let (Some(profile), Some(measured)) = (profile, turn.profile.take()) {
            *profile = measured;
        }
        result
    }

    fn run_turn(
        &mut self,
        model: &Model,
        inputs: TVec<TValue>,
    ) -> Result<TVec<Arc<Tensor>>, ModelError> {
        let turn = self.turn()?;
        turn.begin(&model.graph().ropes)?;
        let rows = turn.rows();
        // Otherwise tract looks for these numbers at every operator until it meets them.
        for (name, count) in [(WANTED, rows.wanted), (SEQUENCES, rows.sequences)] {
            let symbol = self.state.model().symbols.sym(name);
            let symbols = &mut self.state.turn_state.resolved_symbols;
            symbols.set(&symbol, count as i64);
        }
        let result = self.state.run(inputs);
        if result.is_err() && !self.state.turn_state.values.is_empty() {
            // tract keeps the values of a run that failed.
            self.state.reset_turn().map_err(ModelError)?;
        }
        let outputs = result.map_err(ModelError)?;
        Ok(outputs
            .into_iter()
            .map(IntoArcTensor::into_arc_tensor)
            .collect())
    }

    fn turn(&mut self) -> Result<&mut Turn, ModelError> {
        self.state
            .turn_state
            .shared
            .get_mut::<RefCell<Turn>>()
            .map(RefCell::get_mut)
            .ok_or_else(|| ModelError(format_err!("the state holds no turn")))
    }
}

/// What an input is given, of all parts.
fn tensor<'a>(
    input: &Input,
    mut given: impl Iterator<Item = Option<Entries<'a>>>,
) -> TractResult<Tensor> {
    let wrong = || format_err!("input {} was given something else", input.name);
    match input.kind {
        InputKind::TokenIds { .. } | InputKind::TokenTypes { .. } => {
            let ids = given.map(|entries| match entries {
                Some(Entries::Ids(ids)) => Ok(ids),
                Some(Entries::Rows(_)) | None => Err(wrong()),
            });
            match ids.collect::<TractResult<TVec<&[u32]>>>()?.as_slice() {
                [ids] => Tensor::from_shape(&[ids.len()], ids),
                several => {
                    let ids = several.concat();
                    Tensor::from_shape(&[ids.len()], &ids)
                }
            }
        }
        InputKind::Rows { width } => {
            let mut rows = Vec::new();
            given.try_for_each(|entries| match entries {
                Some(Entries::Rows(values)) => {
                    rows.extend_from_slice(values);
                    Ok(())
                }
                Some(Entries::Ids(_)) | None => Err(wrong()),
            })?;
            Tensor::from_shape(&[rows.len() / width, width], &rows)
        }
    }
}
