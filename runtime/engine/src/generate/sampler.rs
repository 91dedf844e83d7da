//! From logits to a token.

use super::candidates::{Candidates, total_weight, weight, weights};
use super::random::Random;
use super::sampling::{InvalidSampling, Sampling};
use super::steps::{SamplingStep, chain};

/// Chooses tokens: a chain of steps, then a draw.
pub struct Sampler {
    steps: Vec<Box<dyn SamplingStep>>,
    greedy: bool,
    random: Random,
    candidates: Candidates,
}

impl Sampler {
    /// The chain repetition penalty, temperature, top-k, top-p, min-p, as far as the settings ask for them.
    ///
    /// # Errors
    /// [`InvalidSampling`].
    pub fn new(sampling: &Sampling) -> Result<Sampler, InvalidSampling> {
        sampling.check()?;
        Ok(Sampler {
            steps: chain(sampling),
            greedy: sampling.temperature == 0.0,
            random: Random::new(sampling.seed),
            candidates: Candidates::default(),
        })
    }

    /// Adds a step after those there are.
    pub fn push(&mut self, step: Box<dyn SamplingStep>) {
        self.steps.push(step);
    }

    /// Tells the steps a token of the context: each of the prompt, then each one that was chosen.
    pub fn accept(&mut self, token: u32) {
        for step in &mut self.steps {
            step.accept(token);
        }
    }

    /// The next token; `None` for no logits at all. Equal logits go to the lower id when greedy.
    pub fn sample(&mut self, logits: &[f32]) -> Option<u32> {
        if self.greedy
            && self.steps.is_empty()
            && let Some(token) = argmax(logits)
        {
            return Some(token);
        }
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
        for (candidate, weight) in weights(self.candidates.as_slice(), best) {
            left -= weight;
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

/// The place of the highest logit, the first of equals. `None` where there is none, or it is not finite: then
/// it takes a closer look. NaN is never the highest.
fn argmax(logits: &[f32]) -> Option<u32> {
    const LANES: usize = 16;
    /// Short enough that looking for the place in one block costs nothing.
    const BLOCK: usize = 1024;
    let (mut highest, mut block) = (f32::NEG_INFINITY, None);
    for (index, values) in logits.chunks(BLOCK).enumerate() {
        // Comparisons in lanes of their own: one vector instruction each.
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (whole, rest) = values.as_chunks::<LANES>();
        for values in whole {
            for (lane, value) in lanes.iter_mut().zip(values) {
                *lane = if *value > *lane { *value } else { *lane };
            }
        }
        let of_block = rest
            .iter()
            .chain(&lanes)
            .fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
        if of_block > highest {
            (highest, block) = (of_block, Some(index * BLOCK));
        }
    }
    let from = block.filter(|_| highest.is_finite())?;
    let place = logits
        .get(from..)?
        .iter()
        .position(|value| *value == highest)?;
    u32::try_from(from + place).ok()
}
