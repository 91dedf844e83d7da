//! How the next token is chosen: the settings.

use niwaki_bundle::GenerationDefaults;

/// How the next token is chosen: a chain of repetition penalty, temperature, top-k, top-p and min-p in this
/// order, as transformers has it, then a draw. An app's own steps join them at their [`Stage`](crate::Stage).
///
/// ```
/// use niwaki::{RepetitionPenalty, Sampling};
///
/// let sampling = Sampling::GREEDY
///     .with_temperature(0.8)
///     .with_top_p(0.95)
///     .with_repetition_penalty(RepetitionPenalty::new(1.1).with_last_tokens(64));
/// assert_eq!(sampling.with_top_p(None).top_p, None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// Softmax temperature; 0 always takes the most likely token.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens are chosen from.
    pub top_k: Option<usize>,
    /// Only the most likely tokens that together reach this probability are chosen from (Holtzman et al.,
    /// 2020).
    pub top_p: Option<f32>,
    /// Only tokens with at least this share of the most likely token's probability are chosen from (Nguyen et
    /// al., 2024).
    pub min_p: Option<f32>,
    /// Tokens that are in the context are made less likely.
    pub repetition_penalty: Option<RepetitionPenalty>,
    /// What the random numbers follow from.
    pub seed: u64,
}

/// Makes tokens less likely that the context holds already, prompt included (Keskar et al., 2019).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct RepetitionPenalty {
    /// Positive logits are divided by it, negative ones multiplied: 1 changes nothing, less than 1 rewards.
    pub factor: f32,
    /// Only the last so many tokens of the context count; all when absent.
    pub last_tokens: Option<usize>,
}

impl RepetitionPenalty {
    /// Of this factor, for all tokens of the context.
    pub fn new(factor: f32) -> RepetitionPenalty {
        RepetitionPenalty {
            factor,
            last_tokens: None,
        }
    }

    /// With this for [`last_tokens`](Self::last_tokens).
    #[must_use]
    pub fn with_last_tokens(mut self, last_tokens: impl Into<Option<usize>>) -> Self {
        self.last_tokens = last_tokens.into();
        self
    }
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
    /// Not a share.
    #[error("min-p {0} is not from 0 to 1")]
    MinP(f32),
    /// Zero, negative, infinite or not a number.
    #[error("repetition penalty {0} is not a number above 0")]
    RepetitionPenalty(f32),
}

impl Sampling {
    /// Always the most likely token.
    pub const GREEDY: Sampling = Sampling {
        temperature: 0.0,
        top_k: None,
        top_p: None,
        min_p: None,
        repetition_penalty: None,
        seed: 0,
    };

    /// As a model's generation defaults say; temperature 1 where they do not.
    pub fn from_defaults(defaults: &GenerationDefaults, seed: u64) -> Sampling {
        Sampling {
            temperature: defaults.temperature.unwrap_or(1.0),
            top_k: defaults.top_k.filter(|k| *k > 0),
            top_p: defaults.top_p,
            min_p: defaults.min_p,
            repetition_penalty: defaults.repetition_penalty.map(RepetitionPenalty::new),
            seed,
        }
    }

    /// With this for [`temperature`](Self::temperature).
    #[must_use]
    pub fn with_temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// With this for [`top_k`](Self::top_k).
    #[must_use]
    pub fn with_top_k(mut self, top_k: impl Into<Option<usize>>) -> Self {
        self.top_k = top_k.into();
        self
    }

    /// With this for [`top_p`](Self::top_p).
    #[must_use]
    pub fn with_top_p(mut self, top_p: impl Into<Option<f32>>) -> Self {
        self.top_p = top_p.into();
        self
    }

    /// With this for [`min_p`](Self::min_p).
    #[must_use]
    pub fn with_min_p(mut self, min_p: impl Into<Option<f32>>) -> Self {
        self.min_p = min_p.into();
        self
    }

    /// With this for [`repetition_penalty`](Self::repetition_penalty).
    #[must_use]
    pub fn with_repetition_penalty(
        mut self,
        penalty: impl Into<Option<RepetitionPenalty>>,
    ) -> Self {
        self.repetition_penalty = penalty.into();
        self
    }

    /// With this for [`seed`](Self::seed).
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    pub(super) fn check(&self) -> Result<(), InvalidSampling> {
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            return Err(InvalidSampling::Temperature(self.temperature));
        }
        if self.top_k == Some(0) {
            return Err(InvalidSampling::TopK);
        }
        if let Some(p) = self.top_p
            && !(p > 0.0 && p <= 1.0)
        {
            return Err(InvalidSampling::TopP(p));
        }
        if let Some(p) = self.min_p
            && !(0.0..=1.0).contains(&p)
        {
            return Err(InvalidSampling::MinP(p));
        }
        match self.repetition_penalty {
            Some(RepetitionPenalty { factor, .. }) if !factor.is_finite() || factor <= 0.0 => {
                Err(InvalidSampling::RepetitionPenalty(factor))
            }
            _ => Ok(()),
        }
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling::GREEDY
    }
}
