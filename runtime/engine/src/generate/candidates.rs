//! The tokens that may be chosen.

use super::exp::exp;
use std::cmp::Ordering;

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its id.
    pub token: u32,
    /// Its logit; infinite and undefined ones were replaced by the lowest number.
    pub logit: f32,
}

/// The tokens that may be chosen.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    entries: Vec<Candidate>,
    /// So many at the front are the best ones, best first.
    sorted: usize,
}

impl Candidates {
    /// One candidate per logit, in the order of token ids.
    pub(super) fn fill(&mut self, logits: &[f32]) {
        self.entries.clear();
        self.sorted = 0;
        // Zero once: -0 + 0 is 0.
        let finite = |logit: f32| {
            if logit.is_finite() {
                logit + 0.0
            } else {
                f32::MIN
            }
        };
        self.entries
            .extend((0u32..).zip(logits).map(|(token, logit)| Candidate {
                token,
                logit: finite(*logit),
            }));
    }

    /// Number of candidates.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All candidates, in no particular order.
    pub fn as_slice(&self) -> &[Candidate] {
        &self.entries
    }

    /// The `count` best, best first: higher logits, then lower ids.
    pub fn best(&mut self, count: usize) -> &[Candidate] {
        let count = count.min(self.entries.len());
        if count > self.sorted {
            let rest = self.entries.get_mut(self.sorted..).unwrap_or_default();
            let new = count - self.sorted;
            if new < rest.len() {
                rest.select_nth_unstable_by(new - 1, better);
            }
            rest.get_mut(..new)
                .unwrap_or_default()
                .sort_unstable_by(better);
            self.sorted = count;
        }
        self.entries.get(..count).unwrap_or_default()
    }

    /// Keeps the `count` best, at least one.
    pub fn keep_best(&mut self, count: usize) {
        let count = count.max(1);
        self.best(count);
        self.entries.truncate(count);
        self.sorted = self.sorted.min(self.entries.len());
    }

    /// Gives each candidate the logit `change` answers.
    pub fn adjust(&mut self, change: impl Fn(Candidate) -> f32) {
        for entry in &mut self.entries {
            entry.logit = change(*entry);
        }
        self.sorted = 0;
    }

    /// Gives one candidate, if it is there, the logit `change` answers.
    pub fn adjust_token(&mut self, token: u32, change: impl Fn(f32) -> f32) {
        // Untouched candidates lie at the place of their id.
        let at = match self.entries.get(token as usize) {
            Some(entry) if entry.token == token => Some(token as usize),
            _ => self.entries.iter().position(|entry| entry.token == token),
        };
        if let Some(entry) = at.and_then(|at| self.entries.get_mut(at)) {
            entry.logit = change(entry.logit);
            self.sorted = 0;
        }
    }

    /// Keeps those that `keep` wants, and the best in any case.
    pub fn retain(&mut self, keep: impl Fn(Candidate) -> bool) {
        let Some(best) = self.best(1).first().copied() else {
            return;
        };
        let mut at = 0;
        let (sorted, mut still_sorted) = (self.sorted, 0);
        self.entries.retain(|entry| {
            let kept = *entry == best || keep(*entry);
            still_sorted += usize::from(kept && at < sorted);
            at += 1;
            kept
        });
        self.sorted = still_sorted;
    }

    /// The highest logit.
    pub fn best_logit(&self) -> f32 {
        self.entries
            .iter()
            .fold(f32::MIN, |best, candidate| best.max(candidate.logit))
    }
}

fn better(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// Unnormalised probability.
pub(super) fn weight(candidate: &Candidate, best_logit: f32) -> f64 {
    exp(f64::from(candidate.logit) - f64::from(best_logit))
}

/// The sum of all weights, added in the order of token ids: the order must not depend on how the candidates
/// were sorted before.
pub(super) fn total_weight(candidates: &mut Candidates, best: f32) -> f64 {
    if candidates.sorted == candidates.len() {
        return candidates
            .entries
            .iter()
            .map(|candidate| weight(candidate, best))
            .sum();
    }
    candidates
        .entries
        .sort_unstable_by_key(|candidate| candidate.token);
    candidates.sorted = 0;
    candidates
        .entries
        .iter()
        .map(|candidate| weight(candidate, best))
        .sum()
}
