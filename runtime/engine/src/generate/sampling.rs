//! From logits to a token.

use super::exp::exp;
use super::random::Random;
use crate::bundle::GenerationDefaults;
use std::cmp::Ordering;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Softmax temperature; 0 always takes the most likely token.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens are chosen from.
    pub top_k: Option<usize>,
    /// Only the most likely tokens that together reach this probability are chosen from (Holtzman et al.,
    /// 2020).
    pub top_p: Option<f32>,
    /// What the random numbers follow from.
    pub seed: u64,
}

/// Settings that describe no distribution.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSampling {
    /// Negative, infinite or not a number.
    #[error("temperature {0} is not a number from 0 on")]
    Temperature(f32),
    /// No token left.
    #[error("top-k 0 leaves no token; leave it out to keep all")]
    TopK,
    /// Not a probability.
    #[error("top-p {0} is not above 0 and at most 1")]
    TopP(f32),
}

impl Sampling {
    /// Always the most likely token.
    pub const GREEDY: Sampling = Sampling {
        temperature: 0.0,
        top_k: None,
        top_p: None,
        seed: 0,
    };

    /// As a model's generation defaults say; temperature 1 where they do not.
    pub fn from_defaults(defaults: &GenerationDefaults, seed: u64) -> Sampling {
        Sampling {
            temperature: defaults.temperature.unwrap_or(1.0),
            top_k: defaults.top_k.filter(|k| *k > 0),
            top_p: defaults.top_p,
            seed,
        }
    }

    fn check(&self) -> Result<(), InvalidSampling> {
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            return Err(InvalidSampling::Temperature(self.temperature));
        }
        if self.top_k == Some(0) {
            return Err(InvalidSampling::TopK);
        }
        match self.top_p {
            Some(p) if p.is_nan() || p <= 0.0 || p > 1.0 => Err(InvalidSampling::TopP(p)),
            _ => Ok(()),
        }
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling::GREEDY
    }
}

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
    fn fill(&mut self, logits: &[f32]) {
        self.entries.clear();
        self.sorted = 0;
        let finite = |logit: f32| if logit.is_finite() { logit } else { f32::MIN };
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

    /// Adds `change(token)` to each logit.
    pub fn adjust(&mut self, change: impl Fn(Candidate) -> f32) {
        for entry in &mut self.entries {
            entry.logit = change(*entry);
        }
        self.sorted = 0;
    }

    fn best_logit(&self) -> f32 {
        self.entries
            .iter()
            .fold(f32::MIN, |best, candidate| best.max(candidate.logit))
    }
}

fn better(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// One step of the chain between logits and choice: removes candidates or changes their logits.
pub trait SamplingStep: Send {
    /// Applies the step. At least one candidate must be left.
    fn apply(&mut self, candidates: &mut Candidates);
}

struct Temperature(f32);

impl SamplingStep for Temperature {
    fn apply(&mut self, candidates: &mut Candidates) {
        // Differences, so that a small temperature does not overflow: the best logit becomes 0.
        let best = candidates.best_logit();
        candidates.adjust(|candidate| ((candidate.logit - best) / self.0).max(f32::MIN));
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

/// Unnormalised probability.
fn weight(candidate: &Candidate, best_logit: f32) -> f64 {
    exp(f64::from(candidate.logit) - f64::from(best_logit))
}

/// The sum of all weights, added in the order of token ids: the order must not depend on how the candidates
/// were sorted before.
fn total_weight(candidates: &mut Candidates, best: f32) -> f64 {
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

/// Chooses tokens: a chain of steps, then a draw.
pub struct Sampler {
    steps: Vec<Box<dyn SamplingStep>>,
    greedy: bool,
    random: Random,
    candidates: Candidates,
}

impl Sampler {
    /// The chain temperature, top-k, top-p.
    ///
    /// # Errors
    /// [`InvalidSampling`].
    pub fn new(sampling: &Sampling) -> Result<Sampler, InvalidSampling> {
        sampling.check()?;
        let mut steps: Vec<Box<dyn SamplingStep>> = Vec::new();
        let greedy = sampling.temperature == 0.0;
        if !greedy {
            if sampling.temperature != 1.0 {
                steps.push(Box::new(Temperature(sampling.temperature)));
            }
            steps.extend(
                sampling
                    .top_k
                    .map(|k| Box::new(TopK(k)) as Box<dyn SamplingStep>),
            );
            steps.extend(
                sampling
                    .top_p
                    .map(|p| Box::new(TopP(p)) as Box<dyn SamplingStep>),
            );
        }
        Ok(Sampler {
            steps,
            greedy,
            random: Random::new(sampling.seed),
            candidates: Candidates::default(),
        })
    }

    /// Adds a step after those there are.
    pub fn push(&mut self, step: Box<dyn SamplingStep>) {
        self.steps.push(step);
    }

    /// The next token; `None` for no logits at all. Equal logits go to the lower id when greedy.
    pub fn sample(&mut self, logits: &[f32]) -> Option<u32> {
        self.candidates.fill(logits);
        for step in &mut self.steps {
            step.apply(&mut self.candidates);
        }
        if self.greedy || self.candidates.len() <= 1 {
            return self
                .candidates
                .best(1)
                .first()
                .map(|candidate| candidate.token);
        }
        let best = self.candidates.best_logit();
        let total = total_weight(&mut self.candidates, best);
        let mut left = self.random.next_unit() * total;
        for candidate in self.candidates.as_slice() {
            left -= weight(candidate, best);
            if left < 0.0 {
                return Some(candidate.token);
            }
        }
        // Rounding left a little over: the last one that can be chosen.
        let mut chosen = self.candidates.as_slice().iter().rev();
        chosen
            .find(|candidate| weight(candidate, best) > 0.0)
            .map(|candidate| candidate.token)
    }
}
