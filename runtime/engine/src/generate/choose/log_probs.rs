//! How likely the model found what was chosen.

use super::candidates::{Candidates, total_weight};
use super::ln::ln;

/// Natural logarithms of the model's probabilities at one token: of its own distribution, the softmax of its logits, before
/// any constraint, penalty, temperature or cut. So they say what the model thinks and are the same under every setting,
/// as those of OpenAI's API.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LogProbs {
    /// Of the chosen token.
    pub chosen: f32,
    /// Of the most likely tokens, best first, as (token, logarithm); of equals the lower id comes first.
    pub best: Vec<(u32, f32)>,
}

impl LogProbs {
    /// Of `token` and the `count` best; `None` when `logits` has no such token or no finite numbers.
    pub fn of(logits: &[f32], token: u32, count: usize) -> Option<LogProbs> {
        let chosen = *logits.get(usize::try_from(token).ok()?)?;
        if super::logits::first_not_finite(logits).is_some() {
            return None;
        }
        let mut candidates = Candidates::default();
        candidates.fill(logits);
        let best = candidates.best_logit();
        let log_total = ln(total_weight(&mut candidates, best));
        let of = |logit: f32| (f64::from(logit) - f64::from(best) - log_total) as f32;
        let best = candidates.best(count).iter();
        Some(LogProbs {
            chosen: of(chosen),
            best: best.map(|c| (c.token, of(c.logit))).collect(),
        })
    }
}

/// The natural logarithm of each token's probability, for finite logits.
pub(in crate::generate) fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let mut candidates = Candidates::default();
    candidates.fill(logits);
    let best = candidates.best_logit();
    let log_total = ln(total_weight(&mut candidates, best));
    let of = |logit: &f32| (f64::from(*logit) - f64::from(best) - log_total) as f32;
    logits.iter().map(|logit| of(logit).max(f32::MIN)).collect()
}
