//! The step against repetitions that grow.

use crate::generate::choose::candidates::Candidates;
use crate::generate::choose::settings;
use crate::generate::choose::step::{SamplingStep, Stage};
use std::collections::HashMap;

#[derive(Clone)]
pub(super) struct Dry {
    settings: settings::Dry,
    tokens: Vec<u32>,
}

impl Dry {
    pub(super) fn new(settings: settings::Dry) -> Dry {
        Dry {
            settings,
            tokens: Vec::new(),
        }
    }

    /// How many tokens each token would go on repeating, at most those since the last breaker.
    fn repeated(&self) -> HashMap<u32, usize> {
        let window = self.settings.last_tokens.unwrap_or(usize::MAX);
        let newest: Vec<u32> = self.tokens.iter().rev().take(window).copied().collect();
        let breaks = |token: &u32| self.settings.breakers.contains(token);
        let most = newest.iter().position(breaks).unwrap_or(newest.len());
        let mut repeated = HashMap::new();
        if most == 0 {
            return repeated;
        }
        for (next, length) in newest.iter().zip(common_prefixes(&newest).iter().skip(1)) {
            let length = most.min(*length);
            if length >= self.settings.allowed_length && !breaks(next) {
                let longest: &mut usize = repeated.entry(*next).or_default();
                *longest = length.max(*longest);
            }
        }
        repeated
    }

    fn penalty(&self, length: usize) -> f32 {
        let mut penalty = f64::from(self.settings.multiplier);
        for _ in self.settings.allowed_length..length {
            penalty *= f64::from(self.settings.base);
            if penalty > f64::from(f32::MAX) {
                return f32::MAX;
            }
        }
        penalty as f32
    }
}

/// For each place, how much of what begins there is as at the beginning (the Z algorithm: linear time, where text that
/// is all repetition would take a comparison of every place with every other).
fn common_prefixes(tokens: &[u32]) -> Vec<usize> {
    let mut lengths = vec![0; tokens.len()];
    let (mut from, mut to) = (0, 0);
    for at in 1..tokens.len() {
        let known = lengths.get(at - from).copied().unwrap_or_default();
        let mut length = if at < to { known.min(to - at) } else { 0 };
        while at + length < tokens.len() && tokens.get(length) == tokens.get(at + length) {
            length += 1;
        }
        if at + length > to {
            (from, to) = (at, at + length);
        }
        if let Some(out) = lengths.get_mut(at) {
            *out = length;
        }
    }
    lengths
}

impl SamplingStep for Dry {
    fn stage(&self) -> Stage {
        Stage::Penalty
    }

    fn apply(&mut self, candidates: &mut Candidates) {
        for (token, length) in self.repeated() {
            let penalty = self.penalty(length);
            candidates.adjust_token(token, |logit| (logit - penalty).max(f32::MIN));
        }
    }

    fn read_prompt(&mut self, tokens: &[u32]) {
        self.tokens.extend(tokens);
    }

    fn accept(&mut self, token: u32) {
        self.tokens.push(token);
    }

    fn rollback(&mut self, count: usize) {
        let kept = self.tokens.len().saturating_sub(count);
        self.tokens.truncate(kept);
    }

    fn fork(&self) -> Box<dyn SamplingStep> {
        Box::new(self.clone())
    }
}
