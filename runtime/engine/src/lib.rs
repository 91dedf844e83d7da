//! On-device language-model engine: opens a `.niwaki` bundle by mapping it and generates text from it.
//!
//! ```no_run
//! use niwaki::{Engine, GenerateOptions, OpenOptions};
//!
//! let engine = Engine::open("model.niwaki", &OpenOptions::default())?;
//! let tokenizer = engine.tokenizer().ok_or("the bundle has no tokenizer")?;
//! let prompt = tokenizer.encode("Once upon a time", true)?;
//! let mut session = engine.session()?;
//! for token in session.generate(&prompt, &GenerateOptions::default()) {
//!     print!("{}", token?.text);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A model that was trained for chats talks through a [`Chat`]; [`TokenStream`] runs either on a thread of its own,
//! [`Stream`] any other work that hands on what it makes piece by piece.
//!
//! The logits are the same bits on every CPU, for every number of threads, and however tokens are split
//! over calls (`docs/arithmetic.md`). No text of users is ever logged or put into an error.

mod cancellation;
mod generate;
mod kv;
mod model;
mod session;
mod stream;
mod text;

pub use cancellation::{Cancellation, OnCancel};
pub use generate::{
    BeamOptions, Candidate, Candidates, Chat, ChatRequest, CheckpointAhead, ContextEnd, Dry,
    EarlyStopping, FilteredText, FinishReason, GenerateError, GenerateOptions, Generation,
    Hypothesis, InvalidBeams, InvalidSampling, LogProbs, Mirostat, Random, RepetitionPenalty,
    Reply, SampleError, Sampler, SamplerCheckpoint, Sampling, SamplingStep, SamplingSteps, Stage,
    TextFilter, TextFilters, Token, TokenStream, Xtc,
};
pub use model::{Entries, ModelError, Profile};
pub use niwaki_kernels::{Isa, KvElement};
pub use session::{
    Backing, BatchError, BatchStep, Engine, Logits, LogitsFor, MemoryPart, MemoryPlan, OpenError,
    OpenOptions, Outputs, Session, SessionCheckpoint, SessionError,
};
pub use stream::{Feed, Panicked, Stream};
pub use text::{ChatTemplate, Detokenizer, Message, Role, TemplateError, TextError, Tokenizer};

pub use niwaki_bundle::{self as bundle, Verify, graph};

/// Keeps the README's program compiling.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
