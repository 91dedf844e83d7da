//! The step that leaves out the most likely.

use crate::generate::choose::candidates::{Candidates, total_weight, weight};
use crate::generate::choose::random::Random;
use crate::generate::choose::settings::Xtc;
use crate::generate::choose::step::{SamplingStep, Stage};

/// Its chance at a token follows from the seed and the token's number, so that it comes again after a rollback.
#[derive(Clone)]
pub(super) struct ExcludeTop {
    settings: Xtc,
    seed: u64,
    accepted: u64,
}

impl ExcludeTop {
    pub(super) fn new(settings: Xtc, seed: u64) -> ExcludeTop {
        ExcludeTop {
            settings,
            // Other numbers than those of the draw.
            seed: !seed,
            accepted: 0,
        }
    }
}

impl SamplingStep for ExcludeTop {
    fn stage(&self) -> Stage {
        Stage::Truncation
    }

    fn apply(&mut self, candidates: &mut Candidates) {
        // The first number of a seed is well mixed; the odd factor keeps neighbouring seeds apart.
        let place = self.accepted.wrapping_mul(0xd1b5_4a32_d192_ed03);
        let chance = Random::new(self.seed.wrapping_add(place)).next_unit();
        if chance >= f64::from(self.settings.probability) {
            return;
        }
        let best = candidates.best_logit();
        let limit = f64::from(self.settings.threshold) * total_weight(candidates, best);
        let slice = candidates.as_slice().iter();
        let top = slice.filter(|candidate| weight(candidate, best) >= limit);
        let top = top.map(|candidate| (candidate.logit, candidate.token));
        // The least likely of the top choices stays: of equals the one with the highest id.
        let least = top.min_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        if let Some((logit, token)) = least {
            candidates.retain(|candidate| candidate.logit < logit || candidate.token == token);
        }
    }

    fn accept(&mut self, _: u32) {
        self.accepted += 1;
    }

    fn rollback(&mut self, count: usize) {
        self.accepted = self.accepted.saturating_sub(count as u64);
    }

    fn fork(&self) -> Box<dyn SamplingStep> {
        Box::new(self.clone())
    }
}
