//! How to open and how to generate. The faces say what holds when an app says nothing.

use niwaki::Verify;
use niwaki::bundle::GenerationDefaults;

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
    /// Texts that end the generation wherever they come up in it. They are not given out.
    pub stop_strings: Vec<String>,
    /// What happens when the context has no room left.
    pub context_end: ContextEnd,
}

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq, uniffi::Record)]
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
            Some(sampling) => niwaki::Sampling::GREEDY
                .with_temperature(sampling.temperature)
                .with_top_k(sampling.top_k.map(|k| k as usize))
                .with_top_p(sampling.top_p)
                .with_min_p(sampling.min_p)
                .with_repetition_penalty(sampling.repetition_penalty.map(|penalty| {
                    niwaki::RepetitionPenalty::new(penalty.factor)
                        .with_last_tokens(penalty.last_tokens.map(|tokens| tokens as usize))
                }))
                .with_seed(self.seed),
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
            .with_stop_strings(self.stop_strings.clone())
            .with_context_end(context_end)
    }
}
