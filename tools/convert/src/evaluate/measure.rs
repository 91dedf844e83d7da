//! Runs models over windows, and compares what they predict.

use super::error::EvaluateError;
use super::evaluation::{ComparedPosition, Comparison, Evaluation};
use super::logits_row::LogitsRow;
use super::window::Window;
use niwaki::{Engine, Logits, LogitsFor, Session, SessionError};

/// Logits of one model that are held at once take about this many bytes. How many tokens are fed at once changes no bit
/// of them.
const LOGITS_TARGET_BYTES: usize = 16 << 20;

/// A model, and what errors call it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    name: &'a str,
    engine: &'a Engine,
}

impl<'a> Subject<'a> {
    /// A model under a name.
    pub fn new(name: &'a str, engine: &'a Engine) -> Subject<'a> {
        Subject { name, engine }
    }
}

/// Lets a model predict the targets of windows; `on_window` hears of each finished one.
///
/// # Errors
/// [`EvaluateError`]: the model refuses a window, or what it computes are not numbers.
pub fn evaluate(
    model: Subject<'_>,
    windows: impl IntoIterator<Item = Window>,
    mut on_window: impl FnMut(),
) -> Result<Evaluation, EvaluateError> {
    let mut run = Run::new(model)?;
    let mut found = Evaluation::default();
    for (index, window) in windows.into_iter().enumerate() {
        run.begin(index, &window)?;
        for chunk in chunks(&window, run.vocabulary) {
            let logits = run.predict(&chunk)?;
            found.positions.extend(run.each_row(&chunk, |row| {
                let scored = run.row(&logits, &chunk, row)?;
                Ok(scored.score(scored.log_sum(), chunk.targets[row]))
            })?);
        }
        found.windows.push(window.targets.len());
        on_window();
    }
    Ok(found)
}

/// Lets models predict the targets of windows beside a reference, and compares each with it; `on_window` hears of each
/// finished window. The reference computes once for all of them.
///
/// # Errors
/// [`EvaluateError`]: a model refuses a window, what it computes are not numbers, or it has another vocabulary than the
/// reference. Whether the tokenizers agree is for the caller to see: their [`TokenStream`](super::TokenStream)s are then
/// equal.
pub fn compare(
    reference: Subject<'_>,
    models: &[Subject<'_>],
    windows: impl IntoIterator<Item = Window>,
    mut on_window: impl FnMut(),
) -> Result<Vec<Comparison>, EvaluateError> {
    let mut reference = Run::new(reference)?;
    let mut models = models
        .iter()
        .map(|model| Run::beside(*model, &reference))
        .collect::<Result<Vec<_>, _>>()?;
    let mut found = vec![Comparison::default(); models.len()];
    for (index, window) in windows.into_iter().enumerate() {
        reference.begin(index, &window)?;
        for model in &mut models {
            model.begin(index, &window)?;
        }
        for chunk in chunks(&window, reference.vocabulary) {
            let expected = reference.predict(&chunk)?;
            for (model, found) in models.iter_mut().zip(&mut found) {
                let predicted = model.predict(&chunk)?;
                found.positions.extend(model.each_row(&chunk, |row| {
                    let expected = reference.row(&expected, &chunk, row)?;
                    let predicted = model.row(&predicted, &chunk, row)?;
                    Ok(compared(&expected, &predicted, chunk.targets[row]))
                })?);
            }
        }
        for found in &mut found {
            found.windows.push(window.targets.len());
        }
        on_window();
    }
    Ok(found)
}

fn compared(reference: &LogitsRow<'_>, model: &LogitsRow<'_>, target: u32) -> ComparedPosition {
    let rows = reference.compare(model);
    ComparedPosition {
        model: model.score(rows.log_sums[1], target),
        reference: reference.score(rows.log_sums[0], target),
        kl_nats: rows.kl_nats,
    }
}

/// Inputs that are fed at once, and what comes after each.
struct Chunk<'w> {
    /// Index of the first input in the window.
    position: usize,
    inputs: &'w [u32],
    targets: &'w [u32],
}

/// The inputs of a window after which something is predicted, in pieces that bound the memory for logits.
fn chunks(window: &Window, vocabulary: usize) -> impl Iterator<Item = Chunk<'_>> {
    let size = (LOGITS_TARGET_BYTES / size_of::<f32>() / vocabulary.max(1)).max(1);
    let context = window.context_tokens();
    let inputs = window.inputs.get(context..).unwrap_or_default();
    let pieces = inputs.chunks(size).zip(window.targets.chunks(size));
    pieces
        .enumerate()
        .map(move |(index, (inputs, targets))| Chunk {
            position: context + index * size,
            inputs,
            targets,
        })
}

/// A model on its way through the windows.
struct Run<'a> {
    model: Subject<'a>,
    session: Session,
    /// Tokens that it predicts.
    vocabulary: usize,
    /// The window it is in.
    window: usize,
}

impl<'a> Run<'a> {
    fn new(model: Subject<'a>) -> Result<Run<'a>, EvaluateError> {
        let failed = |source| EvaluateError::Session {
            model: model.name.to_owned(),
            window: 0,
            source,
        };
        let vocabulary = model.engine.graph().vocabulary();
        Ok(Run {
            model,
            session: model.engine.session().map_err(failed)?,
            vocabulary: vocabulary.ok_or_else(|| failed(SessionError::NoLogits))?,
            window: 0,
        })
    }

    /// A model to be compared with another.
    fn beside(model: Subject<'a>, reference: &Run<'_>) -> Result<Run<'a>, EvaluateError> {
        let run = Run::new(model)?;
        if run.vocabulary != reference.vocabulary {
            return Err(EvaluateError::Vocabularies {
                model: model.name.to_owned(),
                vocabulary: run.vocabulary,
                reference: reference.model.name.to_owned(),
                reference_vocabulary: reference.vocabulary,
            });
        }
        Ok(run)
    }

    /// Begins a window: reads what is only context in it.
    fn begin(&mut self, index: usize, window: &Window) -> Result<(), EvaluateError> {
        self.window = index;
        let beyond =
            |target: &&u32| usize::try_from(**target).is_ok_and(|id| id >= self.vocabulary);
        if let Some(token) = window.targets.iter().find(beyond) {
            return Err(EvaluateError::UnknownToken {
                model: self.model.name.to_owned(),
                token: *token,
                vocabulary: self.vocabulary,
            });
        }
        let context = window.inputs.get(..window.context_tokens());
        let begun = self.session.reset().and_then(|()| match context {
            None | Some([]) => Ok(()),
            Some(context) => self
                .session
                .append(context, LogitsFor::LastTokens(0))
                .map(drop),
        });
        begun.map_err(|source| self.refused(source))
    }

    /// Logits after each input of a chunk.
    fn predict(&mut self, chunk: &Chunk<'_>) -> Result<Logits, EvaluateError> {
        let logits = self.session.append(chunk.inputs, LogitsFor::EveryToken);
        logits.map_err(|source| self.refused(source))
    }

    fn refused(&self, source: SessionError) -> EvaluateError {
        EvaluateError::Session {
            model: self.model.name.to_owned(),
            window: self.window,
            source,
        }
    }

    /// What the model predicts after one input of a chunk.
    fn row<'l>(
        &self,
        logits: &'l Logits,
        chunk: &Chunk<'_>,
        row: usize,
    ) -> Result<LogitsRow<'l>, EvaluateError> {
        let row_logits = logits.row(row).and_then(LogitsRow::new);
        row_logits.ok_or_else(|| EvaluateError::NotFinite {
            model: self.model.name.to_owned(),
            window: self.window,
            position: chunk.position + row,
        })
    }

    /// Does something for each target of a chunk, on as many threads as the model computes with.
    fn each_row<T: Send>(
        &self,
        chunk: &Chunk<'_>,
        work: impl Fn(usize) -> Result<T, EvaluateError> + Sync,
    ) -> Result<Vec<T>, EvaluateError> {
        let rows = chunk.targets.len();
        let share = rows.div_ceil(self.model.engine.threads().max(1)).max(1);
        let work = &work;
        std::thread::scope(|scope| {
            let starts = (0..rows).step_by(share);
            let threads: Vec<_> = starts
                .map(|start| {
                    let rows = start..rows.min(start + share);
                    scope.spawn(move || rows.map(work).collect::<Result<Vec<T>, _>>())
                })
                .collect();
            let mut found = Vec::with_capacity(rows);
            for thread in threads {
                let part = thread.join();
                found.extend(part.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
            }
            Ok(found)
        })
    }
}
