//! How to open and how to generate. The faces say what holds when an app says nothing.

use niwaki::Verify;
use niwaki::bundle::GenerationDefaults;
use std::time::Duration;

/// How to open a bundle.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct OpenOptions {
    /// Threads that compute, at most 256; 0 takes the number of fast cores.
    pub threads: u32,
    /// Opening fails when the model needs more memory than this.
    pub memory_limit_bytes: Option<u64>,
    /// Cap on the context; the model's own when absent.
    pub context_tokens: Option<u32>,
    /// How the context's keys and values are kept; as fits the model when absent.
    pub kv: Option<KvElement>,
    /// Compares the whole file with its hashes, which reads it once; without, only its structure.
    pub verify_weights: bool,
}

/// What a number of a context's keys and values is kept as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum KvElement {
    /// 8-bit integers with scales: about half of the memory of `F16`.
    I8,
    /// Half precision.
    F16,
    /// Single precision: twice the memory of `F16`.
    F32,
}

impl From<KvElement> for niwaki::KvElement {
    fn from(element: KvElement) -> Self {
        match element {
            KvElement::I8 => niwaki::KvElement::I8,
            KvElement::F16 => niwaki::KvElement::F16,
            KvElement::F32 => niwaki::KvElement::F32,
        }
    }
}

impl From<&OpenOptions> for niwaki::OpenOptions {
    fn from(options: &OpenOptions) -> Self {
        niwaki::OpenOptions::default()
            .with_threads(options.threads as usize)
            .with_verify(match options.verify_weights {
                true => Verify::Full,
                false => Verify::Structure,
            })
            .with_memory_limit_bytes(options.memory_limit_bytes)
            .with_context_tokens(options.context_tokens.map(|tokens| tokens as usize))
            .with_kv(options.kv.map(niwaki::KvElement::from))
    }
}

/// How to generate.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_new_tokens: u32,
    /// How the next token is chosen; as the model's own defaults say when absent.
    pub sampling: Option<Sampling>,
    /// What the random numbers follow from: the same seed gives the same text on every device.
    pub seed: u64,
    /// No token is begun when so much time has passed.
    pub max_time_ms: Option<u64>,
    /// Tokens come with the log-probabilities of the chosen one and so many of the best.
    pub log_probs: Option<u32>,
    /// Tokens that end the generation, besides the model's own.
    pub stop_tokens: Vec<u32>,
    /// Texts that end the generation wherever they come up in it. They are not given out.
    pub stop_strings: Vec<String>,
    /// What happens when the context has no room left.
    pub context_end: ContextEnd,
}

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct Sampling {
    /// Softmax temperature; 0 always takes the most likely token.
    pub temperature: f32,
    /// Only this many of the most likely tokens are chosen from.
    pub top_k: Option<u32>,
    /// Only the most likely tokens that together reach this probability are chosen from.
    pub top_p: Option<f32>,
    /// Only tokens with at least this share of the most likely token's probability are chosen from.
    pub min_p: Option<f32>,
    /// Makes tokens less likely that the context holds already.
    pub repetition_penalty: Option<RepetitionPenalty>,
    /// Tokens that never come, whatever else is asked for.
    pub banned_tokens: Vec<u32>,
    /// What is generated begins with these tokens.
    pub forced_tokens: Vec<u32>,
    /// No run of so many tokens comes twice, the prompt included.
    pub no_repeat_ngram: Option<u32>,
    /// Added to the logits of tokens.
    pub logit_bias: Vec<LogitBias>,
    /// Taken from a token's logit for each time it was generated; 0 changes nothing.
    pub frequency_penalty: f32,
    /// Taken once from the logit of a token that was generated; 0 changes nothing.
    pub presence_penalty: f32,
    /// Makes what would go on with a repetition less likely.
    pub dry: Option<Dry>,
    /// Only tokens whose logit is at most so many standard deviations below the best one's are chosen from.
    pub top_n_sigma: Option<f32>,
    /// Only tokens whose surprise is nearest to the expected one, which together reach this probability, are chosen from.
    pub typical_p: Option<f32>,
    /// Leaves out the most likely tokens now and then.
    pub xtc: Option<Xtc>,
    /// Holds the surprise of the text near a goal.
    pub mirostat: Option<Mirostat>,
}

/// Added to a token's logit.
#[derive(Clone, Copy, Debug, PartialEq, uniffi::Record)]
pub struct LogitBias {
    /// The token.
    pub token: u32,
    /// Minus infinity bans.
    pub bias: f32,
}

/// Makes what would go on with a repetition less likely, the more the longer it is.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct Dry {
    /// What the shortest repetition that counts costs.
    pub multiplier: f32,
    /// How fast the cost grows with each token more; at least 1.
    pub base: f32,
    /// So many tokens may repeat without a cost, at least 1.
    pub allowed_length: u32,
    /// Only the last so many tokens are searched; all when absent.
    pub last_tokens: Option<u32>,
    /// Tokens that no repetition goes across.
    pub breakers: Vec<u32>,
}

/// Leaves out the most likely tokens now and then.
#[derive(Clone, Copy, Debug, PartialEq, uniffi::Record)]
pub struct Xtc {
    /// How often, 0 to 1.
    pub probability: f32,
    /// What makes a token a top choice, 0 to 1.
    pub threshold: f32,
}

/// Holds the surprise of the text near a goal.
#[derive(Clone, Copy, Debug, PartialEq, uniffi::Record)]
pub struct Mirostat {
    /// The surprise to hold, in bits.
    pub tau: f32,
    /// How fast the limit follows.
    pub eta: f32,
}

impl From<&Sampling> for niwaki::Sampling {
    fn from(sampling: &Sampling) -> Self {
        let dry = sampling.dry.as_ref().map(|dry| {
            let mut engine = niwaki::Dry::new(dry.multiplier);
            engine.base = dry.base;
            engine.allowed_length = dry.allowed_length as usize;
            engine.last_tokens = dry.last_tokens.map(|tokens| tokens as usize);
            engine.breakers = dry.breakers.clone();
            engine
        });
        let biases = sampling.logit_bias.iter();
        let biases: Vec<(u32, f32)> = biases.map(|bias| (bias.token, bias.bias)).collect();
        niwaki::Sampling::GREEDY
            .with_temperature(sampling.temperature)
            .with_top_k(sampling.top_k.map(|k| k as usize))
            .with_top_p(sampling.top_p)
            .with_min_p(sampling.min_p)
            .with_repetition_penalty(sampling.repetition_penalty.map(|penalty| {
                niwaki::RepetitionPenalty::new(penalty.factor)
                    .with_last_tokens(penalty.last_tokens.map(|tokens| tokens as usize))
            }))
            .with_banned_tokens(sampling.banned_tokens.clone())
            .with_forced_tokens(sampling.forced_tokens.clone())
            .with_no_repeat_ngram(sampling.no_repeat_ngram.map(|length| length as usize))
            .with_logit_bias(biases)
            .with_frequency_penalty(sampling.frequency_penalty)
            .with_presence_penalty(sampling.presence_penalty)
            .with_dry(dry)
            .with_top_n_sigma(sampling.top_n_sigma)
            .with_typical_p(sampling.typical_p)
            .with_xtc((sampling.xtc).map(|xtc| niwaki::Xtc::new(xtc.probability, xtc.threshold)))
            .with_mirostat(
                (sampling.mirostat)
                    .map(|mirostat| niwaki::Mirostat::new(mirostat.tau, mirostat.eta)),
            )
    }
}

/// Makes tokens less likely that the context holds already.
#[derive(Clone, Copy, Debug, PartialEq, uniffi::Record)]
pub struct RepetitionPenalty {
    /// 1 changes nothing, more makes repetition rarer.
    pub factor: f32,
    /// Only the last so many tokens of the context count; all when absent.
    pub last_tokens: Option<u32>,
}

/// What happens when the context has no room left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum ContextEnd {
    /// Generate as long as there is room.
    Stop,
    /// Fail before anything is computed unless the prompt and all new tokens have room.
    Refuse,
    /// Forget the oldest and go on.
    ForgetOldest,
}

impl GenerateOptions {
    /// As the engine wants them, with a model's own defaults where the caller has none.
    pub(crate) fn for_model(&self, defaults: &GenerationDefaults) -> niwaki::GenerateOptions {
        let sampling = match &self.sampling {
            Some(sampling) => niwaki::Sampling::from(sampling).with_seed(self.seed),
            None => niwaki::Sampling::from_defaults(defaults, self.seed),
        };
        let context_end = match self.context_end {
            ContextEnd::Stop => niwaki::ContextEnd::Stop,
            ContextEnd::Refuse => niwaki::ContextEnd::Refuse,
            ContextEnd::ForgetOldest => niwaki::ContextEnd::ForgetOldest,
        };
        niwaki::GenerateOptions::default()
            .with_max_new_tokens(self.max_new_tokens as usize)
            .with_sampling(sampling)
            .with_max_time(self.max_time_ms.map(Duration::from_millis))
            .with_log_probs(self.log_probs.map(|count| count as usize))
            .with_stop_tokens(self.stop_tokens.clone())
            .with_stop_strings(self.stop_strings.clone())
            .with_context_end(context_end)
    }
}
