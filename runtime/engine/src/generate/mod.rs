//! Choosing the next token, again and again.

mod exp;
mod generation;
mod random;
mod sampling;

pub use generation::{FinishReason, GenerateError, GenerateOptions, Generation, Token};
pub use random::Random;
pub use sampling::{Candidate, Candidates, InvalidSampling, Sampler, Sampling, SamplingStep};
