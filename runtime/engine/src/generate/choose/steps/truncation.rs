//! Steps that leave out the unlikely. Each keeps at least one.

use crate::generate::choose::candidates::{Candidates, total_weight, weight, weights};
use crate::generate::choose::ln::ln;
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

/// Those with a logit at most so many standard deviations below the best one's. The deviation is the population's, of all
/// candidates.
#[derive(Clone)]
pub(super) struct TopNSigma(pub(super) f32);

impl SamplingStep for TopNSigma {
    fn stage(&self) -> Stage {
        Stage::Truncation
    }

    fn apply(&mut self, candidates: &mut Candidates) {
        let best = candidates.best_logit();
        candidates.fix_order();
        let count = candidates.len() as f64;
        let logits = || candidates.as_slice().iter().map(|c| f64::from(c.logit));
        let mean = logits().sum::<f64>() / count;
        let squares: f64 = logits().map(|logit| (logit - mean) * (logit - mean)).sum();
        let limit = f64::from(best) - f64::from(self.0) * (squares / count).sqrt();
        candidates.retain(|candidate| f64::from(candidate.logit) >= limit);
    }

    fn fork(&self) -> Box<dyn SamplingStep> {
        Box::new(self.clone())
    }
}

/// As transformers' TypicalLogitsWarper, equals at the edge included.
#[derive(Clone)]
pub(super) struct Typical(pub(super) f32);

impl SamplingStep for Typical {
    fn stage(&self) -> Stage {
        Stage::Truncation
    }

    fn apply(&mut self, candidates: &mut Candidates) {
        if self.0 >= 1.0 {
            return;
        }
        let best = candidates.best_logit();
        let total = total_weight(candidates, best);
        let log_total = ln(total);
        let surprise = |logit: f32| log_total - (f64::from(logit) - f64::from(best));
        let shares = || weights(candidates.as_slice(), best).map(|(c, w)| (c.logit, w / total));
        // What is too unlikely for a share adds nothing, however surprising.
        let expected = |(logit, share): (f32, f64)| match share > 0.0 {
            true => share * surprise(logit),
            false => 0.0,
        };
        let entropy: f64 = shares().map(expected).sum();
        let distance = |logit: f32| (surprise(logit) - entropy).abs();
        let mut nearest: Vec<(f64, f64)> =
            shares().map(|(l, share)| (distance(l), share)).collect();
        // Equal distances have equal shares, or one on each side: both orders are of the values alone.
        nearest.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
        let mut reached = 0.0;
        let edge = nearest.iter().find(|(_, share)| {
            reached += share;
            reached >= f64::from(self.0)
        });
        let edge = edge
            .or(nearest.last())
            .map_or(0.0, |(distance, _)| *distance);
        candidates.retain(|candidate| distance(candidate.logit) <= edge);
    }

    fn fork(&self) -> Box<dyn SamplingStep> {
        Box::new(self.clone())
    }
}
