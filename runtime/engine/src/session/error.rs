//! Why a session could not go on.

use crate::kv::CacheError;
use crate::model::ModelError;

/// Why a session could not go on. Its context is then as it was before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// Nothing to compute.
    #[error("no tokens were given; give at least one")]
    NoTokens,
    /// A token id the model does not have.
    #[error(
        "token {token} at index {index} is not in the vocabulary of {vocabulary}; is this the model's own tokenizer?"
    )]
    UnknownToken {
        /// The id.
        token: u32,
        /// Where it is among the given ones.
        index: usize,
        /// Number of tokens the model has.
        vocabulary: usize,
    },
    /// More tokens than the context holds.
    #[error(
        "the context is full: it holds {context_tokens} tokens, {len} are in it and {added} more were given; \
         start over with less text"
    )]
    ContextFull {
        /// Tokens the context holds.
        context_tokens: usize,
        /// Tokens in it.
        len: usize,
        /// Tokens that were given.
        added: usize,
    },
    /// Sliding windows dropped what going back would need.
    #[error(
        "the session cannot go back from {len} tokens to {target}: its sliding windows forgot what is needed; reset it"
    )]
    Forgotten {
        /// Tokens in the context.
        len: usize,
        /// Where it should have gone.
        target: usize,
    },
    /// The session belongs to another engine than the batch runs on.
    #[error("the session belongs to another engine; run it with its own")]
    OtherEngine,
    /// The model takes other inputs, or more of them.
    #[error("{given} inputs were given, the model takes {names}; give each of them, in this order")]
    Inputs {
        /// How many were given.
        given: usize,
        /// The names of those it takes.
        names: String,
    },
    /// An input was given something that it does not take, or of another number of tokens than the inputs before it.
    #[error("input {name} was given something else than it takes, or of another number of tokens")]
    Input {
        /// The input.
        name: String,
    },
    /// The model sees sequences as a whole, and there is a beginning already.
    #[error("the model sees a sequence as a whole; give all of it at once, to an empty session")]
    WholeSequencesOnly,
    /// The model has no logits.
    #[error("the model has no logits: it is not one that generates text")]
    NoLogits,
    /// A run before broke off in a way that nobody expected, and the context is gone.
    #[error("the session's context was lost when a run before broke off; reset it")]
    Lost,
    /// The result does not fit into memory.
    #[error("no memory for logits of {rows} tokens; ask for fewer at once")]
    OutOfMemory {
        /// Rows of logits.
        rows: usize,
    },
    /// Keys and values could not be kept.
    #[error("keys and values cannot be kept: {0}")]
    Cache(String),
    /// The work was cancelled.
    #[error("the work was cancelled")]
    Cancelled,
    /// An operator failed.
    #[error("the model cannot be run")]
    Model(#[source] ModelError),
}

impl From<ModelError> for SessionError {
    fn from(error: ModelError) -> Self {
        if error.is_cancelled() {
            SessionError::Cancelled
        } else {
            SessionError::Model(error)
        }
    }
}

impl From<CacheError> for SessionError {
    fn from(error: CacheError) -> Self {
        SessionError::Cache(error.to_string())
    }
}
