//! Steps that leave out the unlikely. Each keeps at least the best.

use crate::generate::choose::candidates::{Candidates, total_weight, weight};
use crate::generate::choose::step::{SamplingStep, Stage};

/// The `0` most likely.
#[derive(Clone)]
pub(super) struct TopK(pub(super) usize);

impl SamplingStep for TopK {
    fn stage(&self) -> Stage {
        Stage::Truncation
    }

    fn apply(&mut self, candidates: &mut Candidates) {
        candidates.keep_best(self.0);
    }

    fn fork(&self) -> Box<dyn SamplingStep> {
        Box::new(self.clone())
    }
}

/// The fewest that together reach this probability.
#[derive(Clone)]
pub(super) struct TopP(pub(super) f32);

impl SamplingStep for TopP {
    fn stage(&self) -> Stage {
        Stage::Truncation
    }

    fn apply(&mut self, candidates: &mut Candidates) {
        if self.0 >= 1.0 {
            return;
        }
        let best = candidates.best_logit();
        let goal = f64::from(self.0) * total_weight(candidates, best);
        let (mut reached, mut kept) = (0.0, 0);
        // Most often few are needed: sort more of them only as it turns out.
        let mut count = 64;
        while reached < goal && kept < candidates.len() {
            for candidate in candidates.best(count).iter().skip(kept) {
                if reached >= goal {
                    break;
                }
                reached += weight(candidate, best);
                kept += 1;
            }
            count *= 4;
        }
        candidates.keep_best(kept);
    }

    fn fork(&self) -> Box<dyn SamplingStep> {
        Box::new(self.clone())
    }
}

/// Those with at least this share of the best one's probability.
#[derive(Clone)]
pub(super) struct MinP(pub(super) f32);

impl SamplingStep for MinP {
    fn stage(&self) -> Stage {
        Stage::Truncation
    }

    fn apply(&mut self, candidates: &mut Candidates) {
        let best = candidates.best_logit();
        // Weights are shares of the best one's probability; few are so near the limit that it takes one to tell. Away
        // from it both say the same, whatever the last bits of this platform's logarithm are. The best one's share is 1.
        let limit = f64::from(self.0).ln();
        candidates.retain(|candidate| {
            let distance = f64::from(candidate.logit) - f64::from(best) - limit;
            if distance.abs() < 1e-6 {
                weight(&candidate, best) >= f64::from(self.0)
            } else {
                distance > 0.0
            }
        });
    }

    fn fork(&self) -> Box<dyn SamplingStep> {
        Box::new(self.clone())
    }
}
