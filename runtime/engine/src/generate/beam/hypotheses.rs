//! Texts that have ended, and which of them are kept.

use super::options::{BeamOptions, EarlyStopping};
use crate::generate::choose::power;
use crate::generate::outcome::FinishReason;

/// A text that a beam search found.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Hypothesis {
    /// Its tokens, without the prompt and without the token that ended it.
    pub tokens: Vec<u32>,
    /// Their text; empty where the model has no tokenizer.
    pub text: String,
    /// What hypotheses are compared by: `log_prob` divided by the length to the power of the length penalty. Higher is
    /// better.
    pub score: f64,
    /// The sum of the natural logarithms of its tokens' probabilities, the one that ended it included, as constraints,
    /// penalties and the diversity penalty left them.
    pub log_prob: f64,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// What a group of beams found so far: at most as many as it has beams, in the order they came.
pub(super) struct Hypotheses {
    kept: Vec<Hypothesis>,
    most: usize,
    length_penalty: f64,
    early_stopping: EarlyStopping,
    max_tokens: usize,
}

impl Hypotheses {
    /// For a group of `most` beams that have at most `max_tokens` tokens.
    pub(super) fn new(options: &BeamOptions, most: usize, max_tokens: usize) -> Hypotheses {
        Hypotheses {
            kept: Vec::new(),
            most,
            length_penalty: f64::from(options.length_penalty),
            early_stopping: options.early_stopping,
            max_tokens,
        }
    }

    fn score(&self, log_prob: f64, length: usize) -> f64 {
        log_prob / power(length.max(1) as f64, self.length_penalty)
    }

    /// Adds a text of `length` tokens, the one that ended it included, if it is better than the worst of a full group.
    pub(super) fn add(
        &mut self,
        tokens: Vec<u32>,
        log_prob: f64,
        length: usize,
        reason: FinishReason,
    ) {
        let score = self.score(log_prob, length);
        if self.kept.len() >= self.most && self.worst().is_some_and(|(_, worst)| score <= worst) {
            return;
        }
        self.kept.push(Hypothesis {
            tokens,
            text: String::new(),
            score,
            log_prob,
            finish_reason: reason,
        });
        if self.kept.len() > self.most
            && let Some((index, _)) = self.worst()
        {
            self.kept.remove(index);
        }
    }

    /// Place and score of the worst; of equals the first that came.
    fn worst(&self) -> Option<(usize, f64)> {
        let scores = self.kept.iter().map(|hypothesis| hypothesis.score);
        scores.enumerate().min_by(|(_, a), (_, b)| a.total_cmp(b))
    }

    /// Whether nothing better is to be expected. The best candidate for the token that makes texts `length` long, one that
    /// ends the text included, has this sum of log-probabilities.
    pub(super) fn is_done(&self, best_log_prob: f64, length: usize) -> bool {
        let Some((_, worst)) = self.worst().filter(|_| self.kept.len() >= self.most) else {
            return false;
        };
        let reachable_length = match self.early_stopping {
            EarlyStopping::WhenFull => return true,
            EarlyStopping::Never if self.length_penalty > 0.0 => self.max_tokens,
            EarlyStopping::Never | EarlyStopping::Unlikely => length,
        };
        worst >= self.score(best_log_prob, reachable_length)
    }

    pub(super) fn into_kept(self) -> Vec<Hypothesis> {
        self.kept
    }
}
