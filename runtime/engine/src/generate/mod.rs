//! Choosing the next token, again and again.
//!
//! One turn of every generation, whoever owns its session (`run.rs`): the session computes logits, the chain of sampling
//! steps chooses a token ([`choose`]), the detokenizer makes text of it, and the chain of text filters says which of it is
//! given out ([`filter`]).

mod beam;
mod chat;
mod choose;
mod filter;
mod generation;
mod options;
mod outcome;
mod run;
mod stream;

pub use beam::{BeamOptions, EarlyStopping, Hypothesis, InvalidBeams};
pub use chat::{Chat, ChatRequest, Reply};
pub use choose::{
    Candidate, Candidates, CheckpointAhead, Dry, InvalidSampling, LogProbs, Mirostat, Random,
    RepetitionPenalty, SampleError, Sampler, SamplerCheckpoint, Sampling, SamplingStep,
    SamplingSteps, Stage, Xtc,
};
pub use filter::{FilteredText, TextFilter, TextFilters};
pub use generation::Generation;
pub use options::{ContextEnd, GenerateOptions};
pub use outcome::{FinishReason, GenerateError, Token};
pub use stream::TokenStream;
