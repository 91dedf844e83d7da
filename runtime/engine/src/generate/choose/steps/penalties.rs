//! Steps that make tokens less likely.

use crate::generate::choose::candidates::Candidates;
use crate::generate::choose::settings::RepetitionPenalty;
use crate::generate::choose::step::{SamplingStep, Stage};
use std::collections::HashMap;

/// As transformers' RepetitionPenaltyLogitsProcessor; a token counts once however often it is there.
#[derive(Clone)]
pub(super) struct Repetition {
    factor: f32,
    last_tokens: Option<usize>,
    /// All tokens of the context: those that left the window come back into it when later ones are taken back.
    tokens: Vec<u32>,
    /// How often each of those that count is there.
    counts: HashMap<u32, usize>,
}

impl Repetition {
    pub(super) fn new(penalty: RepetitionPenalty) -> Repetition {
        Repetition {
            factor: penalty.factor,
            last_tokens: penalty.last_tokens,
            tokens: Vec::new(),
            counts: HashMap::new(),
        }
    }

    /// The token that the last one pushed out of the window; that one itself where the window has no room at all.
    fn pushed_out(&self) -> Option<u32> {
        let before = self.tokens.len().checked_sub(1)?;
        let at = before.checked_sub(self.last_tokens?)?;
        self.tokens.get(at).copied()
    }

    fn count(&mut self, token: u32) {
        *self.counts.entry(token).or_default() += 1;
    }

    fn uncount(&mut self, token: u32) {
        if let Some(count) = self.counts.get_mut(&token) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&token);
            }
        }
    }
}

impl SamplingStep for Repetition {
    fn stage(&self) -> Stage {
        Stage::Penalty
    }

    fn apply(&mut self, candidates: &mut Candidates) {
        let penalize = |logit: f32| {
            let penalized = if logit > 0.0 {
                logit / self.factor
            } else {
                logit * self.factor
            };
            // Too low for a number is very unlikely, not forbidden.
            penalized.max(f32::MIN)
        };
        for token in self.counts.keys() {
            candidates.adjust_token(*token, penalize);
        }
    }

    fn read_prompt(&mut self, tokens: &[u32]) {
        for token in tokens {
            self.accept(*token);
        }
    }

    fn accept(&mut self, token: u32) {
        self.tokens.push(token);
        self.count(token);
        if let Some(oldest) = self.pushed_out() {
            self.uncount(oldest);
        }
    }

    fn rollback(&mut self, count: usize) {
        for _ in 0..count {
            if let Some(oldest) = self.pushed_out() {
                self.count(oldest);
            }
            if let Some(token) = self.tokens.pop() {
                self.uncount(token);
            }
        }
    }

    fn fork(&self) -> Box<dyn SamplingStep> {
        Box::new(self.clone())
    }
}

/// Adds to logits; biases of the same token add up.
#[derive(Clone)]
pub(super) struct Bias(Vec<(u32, f32)>);

impl Bias {
    pub(super) fn new(biases: &[(u32, f32)]) -> Bias {
        Bias(biases.to_vec())
    }
}

impl SamplingStep for Bias {
    fn stage(&self) -> Stage {
        Stage::Penalty
    }

    fn apply(&mut self, candidates: &mut Candidates) {
        for (token, bias) in &self.0 {
            candidates.adjust_token(*token, |logit| match *bias == f32::NEG_INFINITY {
                true => f32::NEG_INFINITY,
                false => (logit + bias).max(f32::MIN),
            });
        }
    }

    fn fork(&self) -> Box<dyn SamplingStep> {
        Box::new(self.clone())
    }
}

/// Frequency and presence penalty, of what was generated alone.
#[derive(Clone)]
pub(super) struct Generated {
    frequency: f32,
    presence: f32,
    tokens: Vec<u32>,
    counts: HashMap<u32, u32>,
}

impl Generated {
    pub(super) fn new(frequency: f32, presence: f32) -> Generated {
        Generated {
            frequency,
            presence,
            tokens: Vec::new(),
            counts: HashMap::new(),
        }
    }
}

impl SamplingStep for Generated {
    fn stage(&self) -> Stage {
        Stage::Penalty
    }

    fn apply(&mut self, candidates: &mut Candidates) {
        for (token, count) in &self.counts {
            let penalty = *count as f32 * self.frequency + self.presence;
            candidates.adjust_token(*token, |logit| (logit - penalty).max(f32::MIN));
        }
    }

    fn accept(&mut self, token: u32) {
        self.tokens.push(token);
        *self.counts.entry(token).or_default() += 1;
    }

    fn rollback(&mut self, count: usize) {
        let kept = self.tokens.len().saturating_sub(count);
        for token in self.tokens.drain(kept..) {
            match self.counts.get_mut(&token) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.counts.remove(&token)),
            }
        }
    }

    fn fork(&self) -> Box<dyn SamplingStep> {
        Box::new(self.clone())
    }
}
