//! How the next token is chosen: the settings.

use niwaki_bundle::GenerationDefaults;

/// How the next token is chosen: a chain of steps, then a draw. They work in the order of the fields from
/// [`banned_tokens`](Self::banned_tokens) on, constraints first, then penalties, temperature and truncation; an app's own
/// steps join them at their [`Stage`](crate::Stage). `docs/decoding.md` explains each. At temperature 0 only
/// constraints and penalties work: the others never change which token is the best, or are there to avoid it.
///
/// ```
/// use niwaki::{RepetitionPenalty, Sampling, Xtc};
///
/// let sampling = Sampling::GREEDY
///     .with_temperature(0.8)
///     .with_top_p(0.95)
///     .with_repetition_penalty(RepetitionPenalty::new(1.1).with_last_tokens(64));
/// assert_eq!(sampling.clone().with_top_p(None).top_p, None);
/// let sampling = sampling.with_banned_tokens([5]).with_logit_bias([(7, 2.5)]).with_xtc(Xtc::new(0.5, 0.1));
/// assert_eq!(sampling.banned_tokens, [5]);
/// ```
#[derive(Clone, Debug, PartialEq)]
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
    /// Tokens that never come, whatever else is asked for.
    pub banned_tokens: Vec<u32>,
    /// What is generated begins with these tokens.
    pub forced_tokens: Vec<u32>,
    /// No run of so many tokens comes twice, the prompt included; 1 means that no token does.
    pub no_repeat_ngram: Option<usize>,
    /// Added to the logits of tokens, as (token, bias). Minus infinity bans.
    pub logit_bias: Vec<(u32, f32)>,
    /// Taken from a token's logit for each time it was generated (as in OpenAI's API); 0 changes nothing.
    pub frequency_penalty: f32,
    /// Taken once from the logit of a token that was generated (as in OpenAI's API); 0 changes nothing.
    pub presence_penalty: f32,
    /// Makes what would go on with a repetition less likely, the more the longer it is.
    pub dry: Option<Dry>,
    /// Only tokens whose logit is at most so many standard deviations below the best one's are chosen from
    /// (top-n-sigma, Tang et al., 2024).
    pub top_n_sigma: Option<f32>,
    /// Only tokens whose surprise is nearest to the expected one, which together reach this probability, are chosen
    /// from (locally typical sampling, Meister et al., 2022).
    pub typical_p: Option<f32>,
    /// Leaves out the most likely tokens now and then.
    pub xtc: Option<Xtc>,
    /// Holds the surprise of the text near a goal, in place of a fixed cut.
    pub mirostat: Option<Mirostat>,
}

/// Don't repeat yourself (p-e-w, 2024): a token that would go on with a repetition of `n` tokens, `n` at least
/// `allowed_length`, loses `multiplier * base^(n - allowed_length)` of its logit. The prompt counts.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Dry {
    /// What the shortest repetition that counts costs.
    pub multiplier: f32,
    /// How fast the cost grows with each token more; at least 1.
    pub base: f32,
    /// So many tokens may repeat without a cost, at least 1.
    pub allowed_length: usize,
    /// Only the last so many tokens are searched for repetitions; all when absent.
    pub last_tokens: Option<usize>,
    /// Tokens that no repetition goes across: line ends, quotation marks, names of roles.
    pub breakers: Vec<u32>,
}

impl Dry {
    /// With this multiplier (0.8 is usual), base 1.75, an allowed length of 2, the whole context and no breakers.
    pub fn new(multiplier: f32) -> Dry {
        Dry {
            multiplier,
            base: 1.75,
            allowed_length: 2,
            last_tokens: None,
            breakers: Vec::new(),
        }
    }
}

/// Exclude top choices (p-e-w, 2024): of the tokens that have at least `threshold` of the probability, all but the least
/// likely one are left out, with a chance of `probability` at each token.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Xtc {
    /// How often it happens, 0 to 1.
    pub probability: f32,
    /// What makes a token a top choice, 0 to 1; above 0.5 there is never more than one.
    pub threshold: f32,
}

impl Xtc {
    /// Of this probability and threshold; 0.5 and 0.1 are usual.
    pub fn new(probability: f32, threshold: f32) -> Xtc {
        Xtc {
            probability,
            threshold,
        }
    }
}

/// Mirostat 2 (Basu et al., 2021): tokens that are more surprising than a limit are left out, and the limit, which begins
/// at `2 tau`, moves by `eta` times what the chosen token's surprise was off `tau`. It is the last cut before the draw.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Mirostat {
    /// The surprise to hold, in bits.
    pub tau: f32,
    /// How fast the limit follows.
    pub eta: f32,
}

impl Mirostat {
    /// Of this goal and rate; 5 and 0.1 are usual.
    pub fn new(tau: f32, eta: f32) -> Mirostat {
        Mirostat { tau, eta }
    }
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
    /// Any other setting.
    #[error("{setting} {value} is not {expected}")]
    OutOfRange {
        /// Its name.
        setting: &'static str,
        /// What it was.
        value: f32,
        /// What it has to be.
        expected: &'static str,
    },
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
        banned_tokens: Vec::new(),
        forced_tokens: Vec::new(),
        no_repeat_ngram: None,
        logit_bias: Vec::new(),
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        dry: None,
        top_n_sigma: None,
        typical_p: None,
        xtc: None,
        mirostat: None,
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
            ..Sampling::GREEDY
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

    /// With this for [`banned_tokens`](Self::banned_tokens).
    #[must_use]
    pub fn with_banned_tokens(mut self, banned_tokens: impl Into<Vec<u32>>) -> Self {
        self.banned_tokens = banned_tokens.into();
        self
    }

    /// With this for [`forced_tokens`](Self::forced_tokens).
    #[must_use]
    pub fn with_forced_tokens(mut self, forced_tokens: impl Into<Vec<u32>>) -> Self {
        self.forced_tokens = forced_tokens.into();
        self
    }

    /// With this for [`no_repeat_ngram`](Self::no_repeat_ngram).
    #[must_use]
    pub fn with_no_repeat_ngram(mut self, no_repeat_ngram: impl Into<Option<usize>>) -> Self {
        self.no_repeat_ngram = no_repeat_ngram.into();
        self
    }

    /// With this for [`logit_bias`](Self::logit_bias).
    #[must_use]
    pub fn with_logit_bias(mut self, logit_bias: impl Into<Vec<(u32, f32)>>) -> Self {
        self.logit_bias = logit_bias.into();
        self
    }

    /// With this for [`frequency_penalty`](Self::frequency_penalty).
    #[must_use]
    pub fn with_frequency_penalty(mut self, frequency_penalty: f32) -> Self {
        self.frequency_penalty = frequency_penalty;
        self
    }

    /// With this for [`presence_penalty`](Self::presence_penalty).
    #[must_use]
    pub fn with_presence_penalty(mut self, presence_penalty: f32) -> Self {
        self.presence_penalty = presence_penalty;
        self
    }

    /// With this for [`dry`](Self::dry).
    #[must_use]
    pub fn with_dry(mut self, dry: impl Into<Option<Dry>>) -> Self {
        self.dry = dry.into();
        self
    }

    /// With this for [`top_n_sigma`](Self::top_n_sigma).
    #[must_use]
    pub fn with_top_n_sigma(mut self, top_n_sigma: impl Into<Option<f32>>) -> Self {
        self.top_n_sigma = top_n_sigma.into();
        self
    }

    /// With this for [`typical_p`](Self::typical_p).
    #[must_use]
    pub fn with_typical_p(mut self, typical_p: impl Into<Option<f32>>) -> Self {
        self.typical_p = typical_p.into();
        self
    }

    /// With this for [`xtc`](Self::xtc).
    #[must_use]
    pub fn with_xtc(mut self, xtc: impl Into<Option<Xtc>>) -> Self {
        self.xtc = xtc.into();
        self
    }

    /// With this for [`mirostat`](Self::mirostat).
    #[must_use]
    pub fn with_mirostat(mut self, mirostat: impl Into<Option<Mirostat>>) -> Self {
        self.mirostat = mirostat.into();
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
        if let Some(RepetitionPenalty { factor, .. }) = self.repetition_penalty
            && (!factor.is_finite() || factor <= 0.0)
        {
            return Err(InvalidSampling::RepetitionPenalty(factor));
        }
        self.check_the_rest()
    }

    fn check_the_rest(&self) -> Result<(), InvalidSampling> {
        let (number, above_0, share) = ("a number", "a number above 0", "from 0 to 1");
        let check = |fits: bool, setting, value, expected| match fits {
            true => Ok(()),
            false => Err(InvalidSampling::OutOfRange {
                setting,
                value,
                expected,
            }),
        };
        let positive =
            |setting, value: f32| check(value.is_finite() && value > 0.0, setting, value, above_0);
        let probability =
            |setting, value: f32| check((0.0..=1.0).contains(&value), setting, value, share);
        for (setting, value) in [
            ("frequency penalty", self.frequency_penalty),
            ("presence penalty", self.presence_penalty),
        ] {
            check(value.is_finite(), setting, value, number)?;
        }
        for (_, bias) in &self.logit_bias {
            let forbids = *bias == f32::NEG_INFINITY;
            let expected = "a number, or minus infinity";
            check(bias.is_finite() || forbids, "logit bias", *bias, expected)?;
        }
        if let Some(length) = self.no_repeat_ngram {
            check(length > 0, "no-repeat n-gram", 0.0, "1 or more")?;
        }
        if let Some(dry) = &self.dry {
            let multiplier = dry.multiplier;
            let fits = multiplier.is_finite() && multiplier >= 0.0;
            check(fits, "DRY multiplier", multiplier, "a number from 0 on")?;
            let fits = dry.base.is_finite() && dry.base >= 1.0;
            check(fits, "DRY base", dry.base, "a number from 1 on")?;
            check(
                dry.allowed_length > 0,
                "DRY allowed length",
                0.0,
                "1 or more",
            )?;
        }
        if let Some(sigmas) = self.top_n_sigma {
            positive("top-n-sigma", sigmas)?;
        }
        if let Some(p) = self.typical_p {
            check(p > 0.0 && p <= 1.0, "typical-p", p, "above 0 and at most 1")?;
        }
        if let Some(xtc) = self.xtc {
            probability("XTC probability", xtc.probability)?;
            probability("XTC threshold", xtc.threshold)?;
        }
        if let Some(mirostat) = self.mirostat {
            positive("mirostat tau", mirostat.tau)?;
            positive("mirostat eta", mirostat.eta)?;
        }
        Ok(())
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling::GREEDY
    }
}
