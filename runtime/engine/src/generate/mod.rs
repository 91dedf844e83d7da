//! Choosing the next token, again and again.

mod candidates;
mod chat;
mod exp;
mod generation;
mod options;
mod random;
mod run;
mod sampler;
mod sampling;
mod steps;
mod stop_strings;
mod stream;

pub use candidates::{Candidate, Candidates};
pub use chat::{Chat, ChatRequest, Reply};
pub use generation::Generation;
pub use options::{ContextEnd, FinishReason, GenerateError, GenerateOptions, Token};
pub use random::Random;
pub use sampler::Sampler;
pub use sampling::{InvalidSampling, RepetitionPenalty, Sampling};
pub use steps::SamplingStep;
pub use stream::TokenStream;
