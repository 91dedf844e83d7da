//! Steps that say what may come at all.

use crate::generate::choose::candidates::Candidates;
use crate::generate::choose::step::{SamplingStep, Stage};

/// Never these.
#[derive(Clone)]
pub(super) struct Banned(pub(super) Vec<u32>);

impl SamplingStep for Banned {
    fn stage(&self) -> Stage {
        Stage::Constraint
    }

    fn apply(&mut self, candidates: &mut Candidates) {
        candidates.forbid(&self.0);
    }

    fn fork(&self) -> Box<dyn SamplingStep> {
        Box::new(self.clone())
    }
}

/// These first, one after the other.
#[derive(Clone)]
pub(super) struct Forced {
    tokens: Vec<u32>,
    accepted: usize,
}

impl Forced {
    pub(super) fn new(tokens: &[u32]) -> Forced {
        Forced {
            tokens: tokens.to_vec(),
            accepted: 0,
        }
    }
}

impl SamplingStep for Forced {
    fn stage(&self) -> Stage {
        Stage::Constraint
    }

    fn apply(&mut self, candidates: &mut Candidates) {
        if let Some(token) = self.tokens.get(self.accepted) {
            candidates.retain(|candidate| candidate.token == *token);
        }
    }

    fn accept(&mut self, _: u32) {
        self.accepted += 1;
    }

    fn rollback(&mut self, count: usize) {
        self.accepted = self.accepted.saturating_sub(count);
    }

    fn fork(&self) -> Box<dyn SamplingStep> {
        Box::new(self.clone())
    }
}

/// No run of `length` tokens twice: as transformers' NoRepeatNGramLogitsProcessor.
#[derive(Clone)]
pub(super) struct NoRepeat {
    length: usize,
    tokens: Vec<u32>,
}

impl NoRepeat {
    /// `length` is at least 1.
    pub(super) fn new(length: usize) -> NoRepeat {
        NoRepeat {
            length,
            tokens: Vec::new(),
        }
    }
}

impl SamplingStep for NoRepeat {
    fn stage(&self) -> Stage {
        Stage::Constraint
    }

    fn apply(&mut self, candidates: &mut Candidates) {
        let Some(begin) = (self.tokens.len() + 1).checked_sub(self.length) else {
            return;
        };
        let begun = self.tokens.get(begin..).unwrap_or_default();
        let ends = self.tokens.windows(self.length).filter_map(|run| {
            let (last, before) = run.split_last()?;
            (before == begun).then_some(*last)
        });
        candidates.forbid(&ends.collect::<Vec<_>>());
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
