//! The step that sharpens or flattens.

use crate::generate::choose::candidates::Candidates;
use crate::generate::choose::step::{SamplingStep, Stage};

#[derive(Clone)]
pub(super) struct Temperature(pub(super) f32);

impl SamplingStep for Temperature {
    fn stage(&self) -> Stage {
        Stage::Temperature
    }

    fn apply(&mut self, candidates: &mut Candidates) {
        // Differences, so that a small temperature does not overflow: the best logit becomes 0. Too low for a number is
        // very unlikely, not forbidden.
        let best = candidates.best_logit();
        candidates.adjust(|candidate| ((candidate.logit - best) / self.0).max(f32::MIN));
    }

    fn fork(&self) -> Box<dyn SamplingStep> {
        Box::new(self.clone())
    }
}
