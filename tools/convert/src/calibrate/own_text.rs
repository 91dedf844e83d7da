//! A text that the model writes itself, for when there is no other.

use super::CalibrateError;
use niwaki::{BatchStep, Engine, Entries, LogitsFor, SampleError, Sampler, Sampling, Session};
use niwaki_bundle::graph::Output;

/// How much a model is to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnText {
    /// Tokens of all sequences together, rounded up to whole sequences.
    pub tokens: usize,
    /// Tokens of one sequence.
    pub window_tokens: usize,
    /// Another number gives another text.
    pub seed: u64,
}

/// Sequences that are written side by side: weights are read once for all of them.
const SIDE_BY_SIDE: usize = 32;

/// Lets a model write: each sequence begins with a token drawn from the whole vocabulary, the others are drawn from the
/// model's own distribution (Liu et al., "LLM-QAT", 2023). The text is about what the model was trained on, which is why
/// weights that are rounded with it in mind lose least there. The same on every CPU.
///
/// `progress` is told the share that is done.
///
/// # Errors
/// When the model gives no logits or does not run.
pub fn own_text(
    engine: &Engine,
    wish: OwnText,
    progress: &mut dyn FnMut(f64),
) -> Result<Vec<Vec<u32>>, CalibrateError> {
    let vocabulary = engine.token_ids();
    let window = wish.window_tokens.min(engine.context_tokens()).max(1);
    let count = wish.tokens.div_ceil(window);
    let mut sequences: Vec<Vec<u32>> = Vec::with_capacity(count);
    while sequences.len() < count {
        let first = sequences.len();
        let mut writers = (first..count.min(first + SIDE_BY_SIDE))
            .map(|index| Writer::new(engine, vocabulary, wish.seed.wrapping_add(index as u64)))
            .collect::<Result<Vec<_>, _>>()?;
        for position in 1..window {
            let given: Vec<[u32; 1]> = writers.iter().map(Writer::last).collect();
            let inputs: Vec<[Entries<'_>; 1]> =
                given.iter().map(|token| [Entries::Ids(token)]).collect();
            let mut steps: Vec<BatchStep<'_>> = writers
                .iter_mut()
                .zip(&inputs)
                .map(|(writer, inputs)| BatchStep {
                    session: &mut writer.session,
                    inputs,
                    logits_for: LogitsFor::LastToken,
                })
                .collect();
            let outputs = engine.run(&mut steps, None)?;
            for (writer, outputs) in writers.iter_mut().zip(outputs) {
                let logits = outputs
                    .get(Output::LOGITS)
                    .ok_or(CalibrateError::WritesNothing)?;
                writer.tokens.push(writer.sampler.sample(logits.last())?);
            }
            let done = first * window + position * writers.len();
            progress(done as f64 / (count * window) as f64);
        }
        sequences.extend(writers.into_iter().map(|writer| writer.tokens));
    }
    Ok(sequences)
}

/// One sequence as it grows.
struct Writer {
    session: Session,
    sampler: Sampler,
    tokens: Vec<u32>,
}

impl Writer {
    fn new(engine: &Engine, vocabulary: usize, seed: u64) -> Result<Writer, CalibrateError> {
        let sampling = Sampling::from_defaults(&Default::default(), seed);
        let mut sampler = Sampler::new(&sampling).map_err(|_| CalibrateError::WritesNothing)?;
        // Every token is as likely as another.
        let begin = sampler.sample(&vec![0.0; vocabulary])?;
        Ok(Writer {
            session: engine.session()?,
            sampler,
            tokens: vec![begin],
        })
    }

    fn last(&self) -> [u32; 1] {
        [self.tokens.last().copied().unwrap_or(0)]
    }
}

impl From<SampleError> for CalibrateError {
    fn from(source: SampleError) -> CalibrateError {
        CalibrateError::Choose(source)
    }
}
