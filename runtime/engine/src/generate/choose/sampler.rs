//! The chain and the draw.

use super::candidates::{Candidates, total_weight, weight, weights};
use super::logits::{argmax, first_not_finite};
use super::mirostat::Mirostat;
use super::random::Random;
use super::settings::{InvalidSampling, Sampling};
use super::step::{SamplingStep, Stage};
use super::steps;

/// Chooses tokens: a chain of steps in the order of their [`Stage`], then a draw.
///
/// [`checkpoint`](Self::checkpoint) and [`rollback`](Self::rollback) take tokens back, [`fork`](Self::fork) makes a second
/// sampler that goes on from the same place. Both are exact: what follows is what would have followed.
///
/// ```
/// use niwaki::{Sampler, Sampling};
///
/// let logits = [1.0, 1.5, 0.5, 1.2];
/// let mut sampler = Sampler::new(&Sampling::GREEDY.with_temperature(1.0).with_seed(7))?;
/// sampler.read_prompt(&[3, 0]);
/// let before = sampler.checkpoint();
/// let token = sampler.sample(&logits)?;
/// sampler.accept(token);
/// sampler.rollback(&before)?;
/// assert_eq!(sampler.sample(&logits)?, token);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Sampler {
    chain: Vec<Link>,
    greedy: bool,
    random: Random,
    mirostat: Option<Mirostat>,
    /// Number of tokens.
    accepted: usize,
    candidates: Candidates,
}

/// A step in its place.
struct Link {
    stage: Stage,
    step: Box<dyn SamplingStep>,
    /// Number of tokens it accepted: none of those from before it was added.
    accepted: usize,
}

/// A moment of a [`Sampler`], to go back to.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerCheckpoint {
    accepted: usize,
    random: Random,
    mirostat: Option<Mirostat>,
}

/// No token can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// The steps forbid every token, or there are no logits.
    #[error("the steps of the chain leave no token to choose")]
    NothingAllowed,
    /// The model's logits are not numbers: no token would follow from them. The bundle or what it was built from is
    /// broken.
    #[error("the model's logit of token {token} is not finite: the bundle is broken")]
    NotFinite {
        /// The first token with such a logit.
        token: u32,
    },
}

/// A sampler cannot go back to what lies ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a sampler that has accepted {accepted_tokens} tokens cannot go back to a checkpoint of {checkpoint_tokens}: it \
     was made further on, or by another sampler"
)]
pub struct CheckpointAhead {
    /// Tokens the sampler has accepted.
    pub accepted_tokens: usize,
    /// Tokens that were accepted at the checkpoint.
    pub checkpoint_tokens: usize,
}

impl Sampler {
    /// The steps that the settings ask for.
    ///
    /// # Errors
    /// [`InvalidSampling`].
    pub fn new(sampling: &Sampling) -> Result<Sampler, InvalidSampling> {
        sampling.check()?;
        let mut sampler = Sampler {
            chain: Vec::new(),
            greedy: sampling.temperature == 0.0,
            random: Random::new(sampling.seed),
            mirostat: (sampling.mirostat)
                .filter(|_| sampling.temperature != 0.0)
                .map(Mirostat::new),
            accepted: 0,
            candidates: Candidates::default(),
        };
        for step in steps::of(sampling) {
            sampler.push(step);
        }
        Ok(sampler)
    }

    /// Adds a step, behind those of its stage and of earlier ones. It learns the tokens that come from now on.
    pub fn push(&mut self, step: Box<dyn SamplingStep>) {
        let stage = step.stage();
        let place = self.chain.partition_point(|link| link.stage <= stage);
        let link = Link {
            stage,
            step,
            accepted: 0,
        };
        self.chain.insert(place, link);
    }

    /// Tells the steps tokens of the prompt, before any that was chosen. They may come in parts.
    pub fn read_prompt(&mut self, tokens: &[u32]) {
        for link in &mut self.chain {
            link.step.read_prompt(tokens);
        }
    }

    /// Tells the steps a token that was chosen.
    pub fn accept(&mut self, token: u32) {
        self.accepted += 1;
        if let Some(mirostat) = &mut self.mirostat {
            mirostat.accept(token);
        }
        for link in &mut self.chain {
            link.accepted += 1;
            link.step.accept(token);
        }
    }

    /// The next token. Equal logits go to the lower id when greedy.
    ///
    /// # Errors
    /// [`SampleError::NothingAllowed`] when no candidate is left, [`SampleError::NotFinite`] when a logit is not finite.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, SampleError> {
        if let Some(token) = first_not_finite(logits) {
            return Err(SampleError::NotFinite { token });
        }
        if self.greedy
            && self.chain.is_empty()
            && let Some(token) = argmax(logits)
        {
            return Ok(token);
        }
        self.left_of(logits);
        self.choose().ok_or(SampleError::NothingAllowed)
    }

    /// What the chain leaves of these finite logits, before any draw.
    pub(in crate::generate) fn left_of(&mut self, logits: &[f32]) -> &mut Candidates {
        self.candidates.fill(logits);
        for link in &mut self.chain {
            if self.candidates.is_empty() {
                break;
            }
            link.step.apply(&mut self.candidates);
        }
        &mut self.candidates
    }

    /// One of the candidates, after Mirostat's cut.
    fn choose(&mut self) -> Option<u32> {
        if self.candidates.is_empty() {
            return None;
        }
        if let Some(mirostat) = &self.mirostat {
            mirostat.cut(&mut self.candidates);
        }
        let token = self.draw()?;
        if let Some(mirostat) = &mut self.mirostat {
            mirostat.drawn(&mut self.candidates, token);
        }
        Some(token)
    }

    /// One of the candidates; `None` for none.
    fn draw(&mut self) -> Option<u32> {
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

    /// This moment: the tokens accepted so far, and the random numbers to come.
    pub fn checkpoint(&self) -> SamplerCheckpoint {
        SamplerCheckpoint {
            accepted: self.accepted,
            random: self.random.clone(),
            mirostat: self.mirostat.clone(),
        }
    }

    /// Goes back to a checkpoint of this sampler, or of the one it was forked from: the tokens that were accepted since
    /// are taken back from every step, and the random numbers come again. It must not have been taken back itself.
    ///
    /// # Errors
    /// [`CheckpointAhead`] when more tokens were accepted at the checkpoint than now; nothing changes then.
    pub fn rollback(&mut self, checkpoint: &SamplerCheckpoint) -> Result<(), CheckpointAhead> {
        let Some(count) = self.accepted.checked_sub(checkpoint.accepted) else {
            return Err(CheckpointAhead {
                accepted_tokens: self.accepted,
                checkpoint_tokens: checkpoint.accepted,
            });
        };
        for link in &mut self.chain {
            let known = count.min(link.accepted);
            link.accepted -= known;
            link.step.rollback(known);
        }
        self.accepted = checkpoint.accepted;
        self.random = checkpoint.random.clone();
        self.mirostat = checkpoint.mirostat.clone();
        Ok(())
    }

    /// A sampler of its own that goes on from here: it would choose the same.
    #[must_use]
    pub fn fork(&self) -> Sampler {
        let fork = |link: &Link| Link {
            stage: link.stage,
            step: link.step.fork(),
            accepted: link.accepted,
        };
        Sampler {
            chain: self.chain.iter().map(fork).collect(),
            greedy: self.greedy,
            random: self.random.clone(),
            mirostat: self.mirostat.clone(),
            accepted: self.accepted,
            candidates: Candidates::default(),
        }
    }
}
