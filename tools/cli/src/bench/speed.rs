//! Timing of prefill and decode.

use cpu_time::ProcessTime;
use niwaki::{LogitsFor, Profile, Session, SessionError};
use niwaki_bundle::WeightTable;
use niwaki_bundle::graph::{Graph, Op};
use serde::Serialize;
use std::time::{Duration, Instant};

/// What one test computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TestKind {
    /// All tokens in one call.
    Prefill,
    /// One call per token.
    Decode,
}

/// One test: `tokens` tokens after a context of `depth` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Test {
    /// What is computed.
    #[serde(rename = "test")]
    pub kind: TestKind,
    /// Number of tokens that are timed.
    pub tokens: usize,
    /// Tokens in the context before, which are not timed.
    pub depth: usize,
}

/// One timed repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Wall clock of each call: one for prefill, one per token for decode.
    pub calls: Vec<Duration>,
    /// CPU time of the process, all threads together.
    pub cpu: Duration,
}

impl Sample {
    /// Wall clock of all calls.
    pub fn wall(&self) -> Duration {
        self.calls.iter().sum()
    }
}

/// Runs a test once untimed and `repeats` times timed; `done` is called after each run.
///
/// # Errors
/// [`SessionError`] of the session, which should be empty.
pub fn measure(
    session: &mut Session,
    test: Test,
    repeats: usize,
    mut done: impl FnMut(),
) -> Result<Vec<Sample>, SessionError> {
    let mut samples = Vec::new();
    for run in 0..=repeats {
        rewind(session, test.depth)?;
        let sample = run_once(session, test)?;
        if run > 0 {
            samples.push(sample);
        }
        done();
    }
    Ok(samples)
}

/// Runs a test once more, with time by operator.
///
/// # Errors
/// [`SessionError`] of the session.
pub fn profile(session: &mut Session, test: Test) -> Result<Profile, SessionError> {
    rewind(session, test.depth)?;
    session.start_profile();
    run_once(session, test)?;
    Ok(session.take_profile().unwrap_or_default())
}

fn run_once(session: &mut Session, test: Test) -> Result<Sample, SessionError> {
    let tokens = made_up_tokens(session, test.depth, test.tokens);
    let call_tokens = match test.kind {
        TestKind::Prefill => test.tokens,
        TestKind::Decode => 1,
    };
    let mut calls = Vec::with_capacity(tokens.len().div_ceil(call_tokens.max(1)));
    let cpu = ProcessTime::now();
    for tokens in tokens.chunks(call_tokens.max(1)) {
        let start = Instant::now();
        session.append(tokens, LogitsFor::LastToken)?;
        calls.push(start.elapsed());
    }
    Ok(Sample {
        calls,
        cpu: cpu.elapsed(),
    })
}

/// Brings the context to `depth` tokens.
fn rewind(session: &mut Session, depth: usize) -> Result<(), SessionError> {
    match session.truncate(depth) {
        Ok(()) => {}
        Err(SessionError::Forgotten { .. }) => session.reset()?,
        Err(error) => return Err(error),
    }
    let missing = made_up_tokens(session, session.len(), depth - session.len().min(depth));
    if !missing.is_empty() {
        session.append(&missing, LogitsFor::LastToken)?;
    }
    Ok(())
}

/// Tokens of no meaning, spread over the vocabulary: speed does not depend on them.
fn made_up_tokens(session: &Session, first: usize, count: usize) -> Vec<u32> {
    let vocabulary = session.engine().token_ids().max(1);
    (first..first + count)
        .map(|index| (index.wrapping_mul(7919) % vocabulary) as u32)
        .collect()
}

/// Bytes of weights that one decoded token reads: every matrix as often as a product uses it. Rows of embeddings,
/// vectors, keys and values are not among them.
pub fn bytes_per_token(graph: &Graph, weights: &WeightTable) -> u64 {
    graph
        .nodes
        .iter()
        .filter_map(|node| match node.op {
            Op::Linear { weight, .. } => weights.matrices.get(weight),
            _ => None,
        })
        .map(|matrix| matrix.length)
        .sum()
}

/// The value below which `share` (0 to 1) of all values are, by the nearest rank; 0 without values.
pub fn percentile(values: impl IntoIterator<Item = Duration>, share: f64) -> Duration {
    let mut values: Vec<Duration> = values.into_iter().collect();
    values.sort();
    let rank = (share * values.len() as f64).ceil() as usize;
    values
        .get(rank.saturating_sub(1).min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::percentile;
    use std::time::Duration;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let ms = |values: &[u64]| values.iter().copied().map(Duration::from_millis).collect();
        let values: Vec<Duration> = ms(&[50, 10, 40, 20, 30]);
        let at = |share| percentile(values.clone(), share).as_millis();
        assert_eq!((at(0.0), at(0.5), at(0.95), at(1.0)), (10, 30, 50, 50));
        assert_eq!(percentile([], 0.5), Duration::ZERO);
    }
}
