//! What a caller asks of a generation.

use super::choose::{Sampling, SamplingStep, SamplingSteps};
use super::filter::{TextFilter, TextFilters};
use std::time::Duration;

/// When to stop and how to choose.
///
/// ```
/// use niwaki::{ContextEnd, GenerateOptions, Sampling};
///
/// let options = GenerateOptions::default()
///     .with_max_new_tokens(64)
///     .with_sampling(Sampling::GREEDY.with_temperature(0.7).with_min_p(0.05).with_seed(7))
///     .with_stop_strings(["\n\n"])
///     .with_context_end(ContextEnd::ForgetOldest);
/// # assert!(options.stop_tokens.is_empty());
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// No token is begun when so much time has passed since the first one was asked for: the generation then ends with
    /// [`FinishReason::MaxTime`](crate::FinishReason::MaxTime). A token that was begun is finished, the prompt
    /// before it included.
    pub max_time: Option<Duration>,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Tokens come with the log-probabilities of the chosen one and so many of the best; 0 for the chosen one alone.
    pub log_probs: Option<usize>,
    /// Tokens that end the generation, besides the model's own end-of-text tokens.
    pub stop_tokens: Vec<u32>,
    /// Texts that end the generation wherever they come up in what is generated, across tokens too. A stop
    /// string is not given out, nor is what follows it. Empty ones are passed over.
    pub stop_strings: Vec<String>,
    /// What happens when the context has no room left.
    pub context_end: ContextEnd,
    /// Sampling steps of the app's own, beside those of `sampling`. They work on the device: a router's endpoint
    /// does not get them.
    pub steps: SamplingSteps,
    /// Filters of the app's own for the text that is generated. Stop strings are looked for in what they let through. They
    /// work on the device: text of a router's endpoint does not pass them.
    pub filters: TextFilters,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_new_tokens: 256,
            max_time: None,
            sampling: Sampling::GREEDY,
            log_probs: None,
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
            context_end: ContextEnd::Stop,
            steps: SamplingSteps::default(),
            filters: TextFilters::default(),
        }
    }
}

impl GenerateOptions {
    /// With this for [`max_new_tokens`](Self::max_new_tokens).
    #[must_use]
    pub fn with_max_new_tokens(mut self, max_new_tokens: usize) -> Self {
        self.max_new_tokens = max_new_tokens;
        self
    }

    /// With this for [`max_time`](Self::max_time).
    #[must_use]
    pub fn with_max_time(mut self, max_time: impl Into<Option<Duration>>) -> Self {
        self.max_time = max_time.into();
        self
    }

    /// With this for [`log_probs`](Self::log_probs).
    #[must_use]
    pub fn with_log_probs(mut self, log_probs: impl Into<Option<usize>>) -> Self {
        self.log_probs = log_probs.into();
        self
    }

    /// With this for [`sampling`](Self::sampling).
    #[must_use]
    pub fn with_sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
        self
    }

    /// With these for [`stop_tokens`](Self::stop_tokens).
    #[must_use]
    pub fn with_stop_tokens(mut self, tokens: impl Into<Vec<u32>>) -> Self {
        self.stop_tokens = tokens.into();
        self
    }

    /// With these for [`stop_strings`](Self::stop_strings).
    #[must_use]
    pub fn with_stop_strings<S: Into<String>>(
        mut self,
        strings: impl IntoIterator<Item = S>,
    ) -> Self {
        self.stop_strings = strings.into_iter().map(Into::into).collect();
        self
    }

    /// With this for [`context_end`](Self::context_end).
    #[must_use]
    pub fn with_context_end(mut self, context_end: ContextEnd) -> Self {
        self.context_end = context_end;
        self
    }

    /// With one more of [`steps`](Self::steps).
    #[must_use]
    pub fn with_step(mut self, step: impl SamplingStep + 'static) -> Self {
        self.steps.push(step);
        self
    }

    /// With one more of [`filters`](Self::filters).
    #[must_use]
    pub fn with_filter(mut self, filter: impl TextFilter + 'static) -> Self {
        self.filters.push(filter);
        self
    }
}

/// What happens when the context has no room left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ContextEnd {
    /// Generate as long as there is room, then end with [`FinishReason::ContextFull`](crate::FinishReason::ContextFull).
    #[default]
    Stop,
    /// Fail before anything is computed unless the prompt and all of `max_new_tokens` have room:
    /// [`GenerateError::DoesNotFit`](crate::GenerateError::DoesNotFit).
    Refuse,
    /// Forget the oldest and go on.
    ///
    /// A [`Chat`](crate::Chat) leaves out its oldest turns before a reply, never system messages or the last
    /// turn, so that the reply has room; it ends with [`FinishReason::ContextFull`](crate::FinishReason::ContextFull) if even that is too little.
    /// A generation without a chat forgets the older half of its tokens whenever the context is full, except a
    /// beginning-of-text token, and computes the newer half again at its new positions.
    ForgetOldest,
}
