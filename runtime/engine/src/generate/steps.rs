//! The steps of the chain between logits and choice.

use super::candidates::{Candidates, total_weight, weight};
use super::sampling::{RepetitionPenalty, Sampling};
use std::collections::{HashMap, VecDeque};

/// One step of the chain between logits and choice: removes candidates or changes their logits.
pub trait SamplingStep: Send {
    /// Applies the step. At least one candidate must be left.
    fn apply(&mut self, candidates: &mut Candidates);

    /// Learns a token of the context: of the prompt, then each one that was chosen.
    fn accept(&mut self, token: u32) {
        let _ = token;
    }
}

/// The chain of checked settings, in the order of transformers.
pub(super) fn chain(sampling: &Sampling) -> Vec<Box<dyn SamplingStep>> {
    let mut steps: Vec<Box<dyn SamplingStep>> = Vec::new();
    if let Some(penalty) = sampling.repetition_penalty.filter(|p| p.factor != 1.0) {
        steps.push(Box::new(Repetition::new(penalty)));
    }
    if sampling.temperature == 0.0 {
        return steps;
    }
    if sampling.temperature != 1.0 {
        steps.push(Box::new(Temperature(sampling.temperature)));
    }
    if let Some(k) = sampling.top_k {
        steps.push(Box::new(TopK(k)));
    }
    if let Some(p) = sampling.top_p {
        steps.push(Box::new(TopP(p)));
    }
    if let Some(p) = sampling.min_p {
        steps.push(Box::new(MinP(p)));
    }
    steps
}

/// As transformers' RepetitionPenaltyLogitsProcessor; a token counts once however often it is there.
struct Repetition {
    factor: f32,
    last_tokens: Option<usize>,
    /// The tokens that count, oldest first; not kept when all count.
    window: VecDeque<u32>,
    /// How often each of them is there.
    counts: HashMap<u32, usize>,
}

impl Repetition {
    fn new(penalty: RepetitionPenalty) -> Repetition {
        Repetition {
            factor: penalty.factor,
            last_tokens: penalty.last_tokens,
            window: VecDeque::new(),
            counts: HashMap::new(),
        }
    }
}

impl SamplingStep for Repetition {
    fn apply(&mut self, candidates: &mut Candidates) {
        let penalize = |logit: f32| {
            if logit > 0.0 {
                logit / self.factor
            } else {
                logit * self.factor
            }
        };
        for token in self.counts.keys() {
            candidates.adjust_token(*token, penalize);
        }
    }

    fn accept(&mut self, token: u32) {
        *self.counts.entry(token).or_default() += 1;
        let Some(last_tokens) = self.last_tokens else {
            return;
        };
        self.window.push_back(token);
        if self.window.len() > last_tokens
            && let Some(oldest) = self.window.pop_front()
            && let Some(count) = self.counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
    }
}

struct Temperature(f32);

impl SamplingStep for Temperature {
    fn apply(&mut self, candidates: &mut Candidates) {
        // Differences, so that a small temperature does not overflow: the best logit becomes 0.
        let best = candidates.best_logit();
        candidates.adjust(|candidate| (candidate.logit - best) / self.0);
    }
}

struct TopK(usize);

impl SamplingStep for TopK {
    fn apply(&mut self, candidates: &mut Candidates) {
        candidates.keep_best(self.0);
    }
}

struct TopP(f32);

impl SamplingStep for TopP {
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
}

struct MinP(f32);

impl SamplingStep for MinP {
    fn apply(&mut self, candidates: &mut Candidates) {
        let best = candidates.best_logit();
        // Weights are shares of the best one's probability; few are so near the limit that it takes one to tell. Away
        // from it both say the same, whatever the last bits of this platform's logarithm are.
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
}
