//! Several sequences in one run.
//!
//! Every weight is read once for all of them, and none of them changes a bit of another's results
//! (`docs/arithmetic.md`).

use super::context::Session;
use super::engine::Engine;
use super::error::SessionError;
use super::rows::Logits;
use crate::cancellation::Cancellation;
use crate::kv::KvCache;
use crate::model::{Entries, ModelError, Part, Profile};
use niwaki_bundle::graph::{Graph, InputKind, RowSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;
use tract_core::internal::{TVec, Tensor};

/// Results of one run are computed in runs that hold at most about this much of them.
const RESULTS_TARGET_BYTES: usize = 64 << 20;

/// Of which tokens a run returns results: the next-token logits, and rows of other outputs that have one per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogitsFor {
    /// One row, of the last token.
    LastToken,
    /// So many rows, of the last tokens; of all where there are fewer.
    LastTokens(usize),
    /// One row per token.
    EveryToken,
}

impl LogitsFor {
    /// How many rows, of so many tokens.
    fn rows(self, tokens: usize) -> usize {
        match self {
            LogitsFor::LastToken => tokens.min(1),
            LogitsFor::LastTokens(count) => tokens.min(count),
            LogitsFor::EveryToken => tokens,
        }
    }
}

/// One sequence of a batch: what is added to a session's context, and what comes back.
#[derive(Debug)]
pub struct BatchStep<'a> {
    /// Whose context it is.
    pub session: &'a mut Session,
    /// One for each of the graph's [inputs](Graph::inputs), in their order, all of as many tokens.
    pub inputs: &'a [Entries<'a>],
    /// Of which tokens results are wanted.
    pub logits_for: LogitsFor,
}

/// Why a batch did not run. All contexts are then as they were before.
#[derive(Debug, thiserror::Error)]
#[error("{}", match step { Some(step) => format!("sequence {step} of the batch: {source}"), None => source.to_string() })]
pub struct BatchError {
    /// The step that cannot be run; `None` where the run itself failed.
    pub step: Option<usize>,
    /// Why.
    pub source: SessionError,
}

/// The outputs of one sequence.
#[derive(Clone, Debug)]
pub struct Outputs {
    graph: Arc<Graph>,
    values: Vec<Logits>,
}

impl Outputs {
    /// An output by its name: the rows that were asked for, or the one row of an output that has one per sequence.
    pub fn get(&self, name: &str) -> Option<&Logits> {
        self.values.get(position(&self.graph, name)?)
    }

    /// As [`get`](Self::get), for a caller who needs no other.
    pub fn take(mut self, name: &str) -> Option<Logits> {
        let index = position(&self.graph, name)?;
        (index < self.values.len()).then(|| self.values.swap_remove(index))
    }

    /// All outputs, with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Logits)> {
        let names = self.graph.outputs.iter().map(|output| output.name.as_str());
        names.zip(&self.values)
    }
}

fn position(graph: &Graph, name: &str) -> Option<usize> {
    graph.outputs.iter().position(|output| output.name == name)
}

impl Engine {
    /// Adds tokens to the contexts of several sessions at once: the weights are read once for all of them. Each gets the
    /// bits that it would get alone. Long prompts are computed in runs of bounded size, as in
    /// [`Session::append`].
    ///
    /// ```no_run
    /// use niwaki::{Engine, Entries, LogitsFor, OpenOptions, BatchStep};
    ///
    /// let engine = Engine::open("model.niwaki", &OpenOptions::default())?;
    /// let mut first = engine.session()?;
    /// let mut second = engine.session()?;
    /// let outputs = engine.run(&mut [
    ///     BatchStep { session: &mut first, inputs: &[Entries::Ids(&[1, 2, 3])], logits_for: LogitsFor::LastToken },
    ///     BatchStep { session: &mut second, inputs: &[Entries::Ids(&[7])], logits_for: LogitsFor::LastToken },
    /// ], None)?;
    /// let logits = outputs[0].get("logits").ok_or("the model has no logits")?;
    /// println!("{:?}", logits.last().first());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`BatchError`]; all contexts are then as they were before.
    pub fn run(
        &self,
        steps: &mut [BatchStep<'_>],
        cancellation: Option<&Cancellation>,
    ) -> Result<Vec<Outputs>, BatchError> {
        let mut sequences: TVec<Sequence<'_>> = TVec::new();
        for (index, step) in steps.iter_mut().enumerate() {
            let sequence = Sequence::new(self, step).map_err(|source| BatchError {
                step: Some(index),
                source,
            })?;
            sequences.push(sequence);
        }
        if sequences.is_empty() {
            return Ok(Vec::new());
        }
        let start = Instant::now();
        let mut profile = sequences
            .iter_mut()
            .find_map(|sequence| sequence.profile.take());
        let result = run_all(self, &mut sequences, cancellation, profile.as_mut());
        if let (Some(profile), Ok(())) = (&mut profile, &result) {
            profile.add_append(start.elapsed());
        }
        if let Some(first) = sequences.first_mut() {
            *first.profile = profile;
        }
        if let Err(source) = result {
            sequences.iter_mut().for_each(Sequence::restore);
            return Err(BatchError { step: None, source });
        }
        let outputs = sequences.into_iter();
        Ok(outputs.map(|sequence| sequence.outputs(self)).collect())
    }
}

/// A step on its way.
struct Sequence<'a> {
    cache: &'a mut KvCache,
    tokens: &'a mut Vec<u32>,
    profile: &'a mut Option<Profile>,
    inputs: &'a [Entries<'a>],
    /// Tokens to compute, and those of them that are computed.
    count: usize,
    done: usize,
    /// Results are wanted of so many.
    wanted: usize,
    /// The context before.
    before: usize,
    cache_before: Option<KvCache>,
    /// Of each output what runs gave so far.
    results: TVec<Results>,
}

/// What a run takes of a sequence.
struct Share {
    /// Index of the sequence.
    sequence: usize,
    tokens: Range<usize>,
    /// Results are wanted of so many, the last ones.
    wanted: usize,
}

/// What runs gave of one output.
enum Results {
    Nothing,
    /// All there is, from one run.
    Whole(Logits),
    /// Of several runs.
    Pieces(Vec<f32>),
}

impl<'a> Sequence<'a> {
    fn new(engine: &Engine, step: &'a mut BatchStep<'_>) -> Result<Sequence<'a>, SessionError> {
        let graph = engine.graph();
        let session = &mut *step.session;
        if !session.belongs_to(engine) {
            return Err(SessionError::OtherEngine);
        }
        if session.cache.len() < session.tokens.len() {
            return Err(SessionError::Lost);
        }
        let count = count(graph, step.inputs)?;
        let before = session.cache.len();
        let context_tokens = engine.context_tokens();
        if count > context_tokens.saturating_sub(before) {
            return Err(SessionError::ContextFull {
                context_tokens,
                len: before,
                added: count,
            });
        }
        if before > 0 && graph.needs_whole_sequences() {
            return Err(SessionError::WholeSequencesOnly);
        }
        Ok(Sequence {
            cache: &mut session.cache,
            tokens: &mut session.tokens,
            profile: &mut session.profile,
            inputs: step.inputs,
            count,
            done: 0,
            wanted: step.logits_for.rows(count),
            before,
            cache_before: None,
            results: graph.outputs.iter().map(|_| Results::Nothing).collect(),
        })
    }

    /// Which of the tokens a run of `room` tokens takes next, and of how many of them results are wanted.
    fn next(&self, room: usize) -> (Range<usize>, usize) {
        let tokens = self.done..self.done + (self.count - self.done).min(room);
        let first_wanted = self.count - self.wanted;
        let wanted = tokens.end.saturating_sub(first_wanted.max(tokens.start));
        (tokens, wanted)
    }

    /// What input `id` gets for these tokens.
    fn entries(&self, graph: &Graph, id: usize, tokens: &Range<usize>) -> Option<Entries<'a>> {
        Some(match self.inputs.get(id)? {
            Entries::Ids(ids) => Entries::Ids(ids.get(tokens.clone())?),
            Entries::Rows(rows) => {
                let InputKind::Rows { width } = graph.inputs.get(id)?.kind else {
                    return None;
                };
                Entries::Rows(rows.get(tokens.start * width..tokens.end * width)?)
            }
        })
    }

    /// Keeps what a run computed of the tokens it took.
    fn took(&mut self, graph: &Graph, tokens: Range<usize>) {
        self.cache.advance(tokens.len());
        self.done = tokens.end;
        let ids = graph.token_ids().and_then(|(id, _)| self.inputs.get(id));
        if let Some(Entries::Ids(ids)) = ids {
            self.tokens
                .extend_from_slice(ids.get(tokens).unwrap_or_default());
        }
    }

    /// Adds what a run gave of one output.
    fn add(&mut self, output: usize, logits: Logits) -> Result<(), SessionError> {
        let wanted = self.wanted;
        let Some(results) = self.results.get_mut(output) else {
            return Ok(());
        };
        if matches!(results, Results::Nothing) && logits.rows() == wanted {
            *results = Results::Whole(logits);
            return Ok(());
        }
        if matches!(results, Results::Nothing) {
            let mut pieces = Vec::new();
            wanted
                .checked_mul(logits.width())
                .and_then(|count| pieces.try_reserve_exact(count).ok())
                .ok_or(SessionError::OutOfMemory { rows: wanted })?;
            *results = Results::Pieces(pieces);
        }
        if let Results::Pieces(pieces) = results {
            pieces.extend_from_slice(logits.as_slice());
        }
        Ok(())
    }

    fn restore(&mut self) {
        match self.cache_before.take() {
            Some(cache) => *self.cache = cache,
            None => {
                self.cache.truncate(self.before);
            }
        }
        self.tokens.truncate(self.before);
    }

    fn outputs(self, engine: &Engine) -> Outputs {
        let graph = engine.graph();
        let values = self.results.into_iter().zip(&graph.outputs);
        let values = values.map(|(results, output)| match results {
            Results::Whole(logits) => logits,
            Results::Pieces(pieces) => Logits::gathered(pieces, width(graph, output.node)),
            Results::Nothing => Logits::gathered(Vec::new(), width(graph, output.node)),
        });
        Outputs {
            values: values.collect(),
            graph: graph.clone(),
        }
    }
}

fn width(graph: &Graph, node: usize) -> usize {
    graph.nodes.get(node).map_or(1, |node| node.width.max(1))
}

/// How many tokens are given, if every input gets what it takes.
fn count(graph: &Graph, inputs: &[Entries<'_>]) -> Result<usize, SessionError> {
    let mut count = None;
    if inputs.len() != graph.inputs.len() {
        return Err(SessionError::Inputs {
            given: inputs.len(),
            names: names(graph),
        });
    }
    for (input, entries) in graph.inputs.iter().zip(inputs) {
        let wrong = || SessionError::Input {
            name: input.name.clone(),
        };
        let tokens = match (input.kind, entries) {
            (
                InputKind::TokenIds { count } | InputKind::TokenTypes { count },
                Entries::Ids(ids),
            ) => {
                let unknown = ids.iter().position(|id| *id as usize >= count);
                if let Some(index) = unknown {
                    return Err(SessionError::UnknownToken {
                        token: ids.get(index).copied().unwrap_or_default(),
                        index,
                        vocabulary: count,
                    });
                }
                ids.len()
            }
            (InputKind::Rows { width }, Entries::Rows(rows))
                if rows.len().is_multiple_of(width) =>
            {
                rows.len() / width
            }
            _ => return Err(wrong()),
        };
        if *count.get_or_insert(tokens) != tokens {
            return Err(wrong());
        }
    }
    match count {
        None | Some(0) => Err(SessionError::NoTokens),
        Some(count) => Ok(count),
    }
}

fn names(graph: &Graph) -> String {
    let names: Vec<&str> = graph
        .inputs
        .iter()
        .map(|input| input.name.as_str())
        .collect();
    names.join(", ")
}

/// Tokens of one run at most.
fn run_tokens(engine: &Engine, sequences: &[Sequence<'_>]) -> usize {
    let graph = engine.graph();
    if graph.needs_whole_sequences() {
        return usize::MAX;
    }
    if sequences.iter().all(|sequence| sequence.wanted <= 1) {
        return engine.chunk_tokens();
    }
    let columns: usize = graph
        .outputs
        .iter()
        .map(|output| width(graph, output.node))
        .sum();
    (RESULTS_TARGET_BYTES / 4 / columns.max(1)).clamp(1, engine.chunk_tokens())
}

fn run_all(
    engine: &Engine,
    sequences: &mut [Sequence<'_>],
    cancellation: Option<&Cancellation>,
    mut profile: Option<&mut Profile>,
) -> Result<(), SessionError> {
    let graph = engine.graph();
    let most = run_tokens(engine, sequences);
    let all: usize = sequences.iter().map(|sequence| sequence.count).sum();
    if all > most && graph.layers.iter().any(|layer| layer.window.is_some()) {
        // Several runs may push keys and values out of a sliding window; going back needs them.
        for sequence in sequences.iter_mut().filter(|sequence| sequence.before > 0) {
            sequence.cache_before = Some(sequence.cache.clone());
        }
    }
    loop {
        let mut room = most;
        let mut run: TVec<Share> = TVec::new();
        for (index, sequence) in sequences.iter().enumerate() {
            let (tokens, wanted) = sequence.next(room);
            if !tokens.is_empty() {
                room -= tokens.len();
                run.push(Share {
                    sequence: index,
                    tokens,
                    wanted,
                });
            }
        }
        if run.is_empty() {
            return Ok(());
        }
        let outputs = run_once(
            engine,
            sequences,
            &run,
            cancellation,
            profile.as_deref_mut(),
        )?;
        hand_out(engine, sequences, &run, &outputs)?;
        for share in run {
            if let Some(sequence) = sequences.get_mut(share.sequence) {
                sequence.took(graph, share.tokens);
            }
        }
    }
}

fn run_once(
    engine: &Engine,
    sequences: &mut [Sequence<'_>],
    run: &[Share],
    cancellation: Option<&Cancellation>,
    profile: Option<&mut Profile>,
) -> Result<TVec<Arc<Tensor>>, SessionError> {
    let graph = engine.graph();
    let mut given: TVec<TVec<Option<Entries<'_>>>> = TVec::new();
    for share in run {
        let sequence = sequences.get(share.sequence);
        let entries = |id| sequence?.entries(graph, id, &share.tokens);
        given.push((0..graph.inputs.len()).map(entries).collect());
    }
    let mut parts: TVec<Part<'_>> = TVec::new();
    let mut taken = run.iter().peekable();
    for (index, sequence) in sequences.iter_mut().enumerate() {
        if let Some(share) = taken.next_if(|share| share.sequence == index) {
            parts.push(Part {
                cache: &mut *sequence.cache,
                tokens: share.tokens.len(),
                wanted: share.wanted,
            });
        }
    }
    let outputs = engine.with_workspace(|model, workspace| {
        let entries = |input: usize, part: usize| given.get(part)?.get(input).copied().flatten();
        workspace.run(model, &mut parts, entries, cancellation, profile)
    })??;
    Ok(outputs)
}

/// Gives each sequence its rows of the outputs.
fn hand_out(
    engine: &Engine,
    sequences: &mut [Sequence<'_>],
    run: &[Share],
    outputs: &[Arc<Tensor>],
) -> Result<(), SessionError> {
    let graph = engine.graph();
    let row_sets = engine.model().output_rows();
    for ((index, tensor), rows) in outputs.iter().enumerate().zip(row_sets) {
        let node = graph.outputs.get(index).map_or(0, |output| output.node);
        let width = width(graph, node);
        let mut first = 0;
        for share in run {
            let (count, kept) = match rows {
                RowSet::Tokens => (share.tokens.len(), share.wanted),
                RowSet::Wanted => (share.wanted, share.wanted),
                RowSet::Sequences => (1, 1),
            };
            let end = first + count;
            let range = end - kept..end;
            first = end;
            if range.is_empty() {
                continue;
            }
            let logits =
                Logits::computed(tensor.clone(), range, width).map_err(ModelError::from)?;
            if let Some(sequence) = sequences.get_mut(share.sequence) {
                sequence.add(index, logits)?;
            }
        }
    }
    Ok(())
}
