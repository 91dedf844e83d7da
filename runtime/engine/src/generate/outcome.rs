//! What comes of a generation: tokens, and how it ended.

use super::beam::InvalidBeams;
use super::choose::{InvalidSampling, LogProbs};
use crate::session::SessionError;
use crate::text::{TemplateError, TextError};

/// Why a generation broke off. No variant carries the user's text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The options describe no distribution.
    #[error("the sampling options make no sense")]
    Sampling(#[from] InvalidSampling),
    /// No beam search can be made of what was asked for.
    #[error("the beam search makes no sense")]
    Beams(#[from] InvalidBeams),
    /// Text cannot be turned into tokens, or tokens into text.
    #[error("text and tokens cannot be converted")]
    Text(#[from] TextError),
    /// The messages cannot be turned into a prompt.
    #[error("the messages cannot be turned into a prompt")]
    Template(#[from] TemplateError),
    /// More than the context has room for.
    #[error(
        "a prompt of {prompt_tokens} tokens and {max_new_tokens} new ones do not fit into the {room_tokens} tokens \
         that the context has room for"
    )]
    DoesNotFit {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens that were asked for.
        max_new_tokens: usize,
        /// Tokens the context has room for.
        room_tokens: usize,
    },
    /// The model could not be run.
    #[error("the next token cannot be computed")]
    Session(#[from] SessionError),
    /// The model's logits are not numbers: the bundle, or what it was built from, is broken.
    #[error("the model's logit of token {token} is not finite: the bundle is broken")]
    NotFinite {
        /// The first token with such a logit.
        token: u32,
    },
    /// The system would not start a thread.
    #[error("no thread can be started for the generation")]
    Thread(#[source] std::io::Error),
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// As many tokens as were asked for.
    MaxTokens,
    /// As much time as was given.
    MaxTime,
    /// The model ended its text.
    EndOfText,
    /// One of the stop tokens came.
    StopToken,
    /// One of the stop strings came.
    StopString,
    /// The context is full.
    ContextFull,
    /// The sampling steps left no token to choose: a constraint, such as a grammar, allows nothing here.
    NothingAllowed,
    /// One of the app's text filters ended the text.
    Filtered,
    /// It was cancelled.
    Cancelled,
    /// It broke off with an error.
    Failed,
}

/// A generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id; `None` for text that comes after the last token, because it might have become a stop string or a filter
    /// held it back.
    pub id: Option<u32>,
    /// The text that is certain with it: never half a character, nothing that may still become a stop string.
    /// Often empty: the text then comes with a later token.
    pub text: String,
    /// How likely the model found it, where that was asked for.
    pub log_probs: Option<LogProbs>,
}
