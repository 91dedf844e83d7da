//! Plain values that cross the boundary.

use niwaki::{GenerateOptions, OpenOptions, Sampling, Verify};

/// How to open a bundle.
#[derive(Clone, Debug, uniffi::Record)]
pub struct ModelOptions {
    /// Threads that compute; 0 takes the number of fast cores.
    #[uniffi(default = 0)]
    pub threads: u32,
    /// Opening fails when the model needs more memory than this.
    #[uniffi(default = None)]
    pub memory_limit_bytes: Option<u64>,
    /// Cap on the context; the model's own when absent.
    #[uniffi(default = None)]
    pub context_tokens: Option<u32>,
    /// Compares the whole file with its hashes, which reads it once; without, only its structure.
    #[uniffi(default = true)]
    pub verify_weights: bool,
}

impl From<&ModelOptions> for OpenOptions {
    fn from(options: &ModelOptions) -> Self {
        OpenOptions {
            threads: options.threads as usize,
            verify: if options.verify_weights {
                Verify::Full
            } else {
                Verify::Structure
            },
            memory_limit_bytes: options.memory_limit_bytes,
            context_tokens: options.context_tokens.map(|tokens| tokens as usize),
            kv: None,
            isa: None,
        }
    }
}

/// How to generate.
#[derive(Clone, Debug, uniffi::Record)]
pub struct GenerationOptions {
    /// Most tokens to generate.
    #[uniffi(default = 256)]
    pub max_new_tokens: u32,
    /// Softmax temperature; 0 always takes the most likely token.
    #[uniffi(default = 0.0)]
    pub temperature: f32,
    /// Only this many of the most likely tokens are chosen from.
    #[uniffi(default = None)]
    pub top_k: Option<u32>,
    /// Only the most likely tokens that together reach this probability are chosen from.
    #[uniffi(default = None)]
    pub top_p: Option<f32>,
    /// What the random numbers follow from: the same seed gives the same text on every device.
    #[uniffi(default = 0)]
    pub seed: u64,
}

impl From<&GenerationOptions> for GenerateOptions {
    fn from(options: &GenerationOptions) -> Self {
        GenerateOptions {
            max_new_tokens: options.max_new_tokens as usize,
            sampling: Sampling {
                temperature: options.temperature,
                top_k: options.top_k.map(|k| k as usize),
                top_p: options.top_p,
                seed: options.seed,
                ..Sampling::GREEDY
            },
            ..GenerateOptions::default()
        }
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum FinishReason {
    /// As many tokens as were asked for.
    MaxTokens,
    /// The model ended its text.
    EndOfText,
    /// The context is full.
    ContextFull,
    /// The listener asked to stop.
    Stopped,
}

impl From<Option<niwaki::FinishReason>> for FinishReason {
    fn from(reason: Option<niwaki::FinishReason>) -> Self {
        match reason {
            Some(niwaki::FinishReason::MaxTokens) => FinishReason::MaxTokens,
            Some(
                niwaki::FinishReason::EndOfText
                | niwaki::FinishReason::StopToken
                | niwaki::FinishReason::StopString,
            ) => FinishReason::EndOfText,
            Some(niwaki::FinishReason::ContextFull) => FinishReason::ContextFull,
            Some(niwaki::FinishReason::Cancelled | niwaki::FinishReason::Failed) | None => {
                FinishReason::Stopped
            }
        }
    }
}

/// One line of a memory plan.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct MemoryPart {
    /// What it is for.
    pub name: String,
    /// The system may take it back: pages of the file. Otherwise it counts against the app.
    pub file_backed: bool,
    /// Bytes at the peak.
    pub size_bytes: u64,
}

/// What a model takes at its peak.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct MemoryPlan {
    /// The parts.
    pub parts: Vec<MemoryPart>,
    /// Bytes of file-backed memory.
    pub file_bytes: u64,
    /// Bytes that count against the app.
    pub anonymous_bytes: u64,
    /// Tokens of context the plan is for.
    pub context_tokens: u64,
}

impl From<&niwaki::MemoryPlan> for MemoryPlan {
    fn from(plan: &niwaki::MemoryPlan) -> Self {
        let parts = plan.parts.iter().map(|part| MemoryPart {
            name: part.name.to_owned(),
            file_backed: part.backing == niwaki::Backing::File,
            size_bytes: part.size_bytes,
        });
        MemoryPlan {
            parts: parts.collect(),
            file_bytes: plan.file_bytes(),
            anonymous_bytes: plan.anonymous_bytes(),
            context_tokens: plan.context_tokens as u64,
        }
    }
}
