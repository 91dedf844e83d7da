//! What a caller asks of a generation, and how it can end.

use super::sampling::{InvalidSampling, Sampling};
use crate::session::SessionError;
use crate::text::{TemplateError, TextError};

/// When to stop and how to choose.
///
/// ```
/// use niwaki::{ContextEnd, GenerateOptions, Sampling};
///
/// let options = GenerateOptions {
///     max_new_tokens: 64,
///     sampling: Sampling { temperature: 0.7, min_p: Some(0.05), seed: 7, ..Sampling::GREEDY },
///     stop_strings: vec!["\n\n".into()],
///     context_end: ContextEnd::ForgetOldest,
///     ..GenerateOptions::default()
/// };
/// # assert!(options.stop_tokens.is_empty());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Tokens that end the generation, besides the model's own end-of-text tokens.
    pub stop_tokens: Vec<u32>,
    /// Texts that end the generation wherever they come up in what is generated, across tokens too. A stop
    /// string is not given out, nor is what follows it. Empty ones are passed over.
    pub stop_strings: Vec<String>,
    /// What happens when the context has no room left.
    pub context_end: ContextEnd,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_new_tokens: 256,
            sampling: Sampling::GREEDY,
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
            context_end: ContextEnd::Stop,
        }
    }
}

/// What happens when the context has no room left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ContextEnd {
    /// Generate as long as there is room, then end with [`FinishReason::ContextFull`].
    #[default]
    Stop,
    /// Fail before anything is computed unless the prompt and all of `max_new_tokens` have room:
    /// [`GenerateError::DoesNotFit`].
    Refuse,
    /// Forget the oldest and go on.
    ///
    /// A [`Chat`](crate::Chat) leaves out its oldest turns before a reply, never system messages or the last
    /// turn, so that the reply has room; it ends with [`FinishReason::ContextFull`] if even that is too little.
    /// A generation without a chat forgets the older half of its tokens whenever the context is full, except a
    /// beginning-of-text token, and computes the newer half again at its new positions.
    ForgetOldest,
}

/// Why a generation broke off. No variant carries the user's text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The options describe no distribution.
    #[error("the sampling options make no sense")]
    Sampling(#[from] InvalidSampling),
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
    /// The system would not start a thread.
    #[error("no thread can be started for the generation")]
    Thread(#[source] std::io::Error),
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// As many tokens as were asked for.
    MaxTokens,
    /// The model ended its text.
    EndOfText,
    /// One of the stop tokens came.
    StopToken,
    /// One of the stop strings came.
    StopString,
    /// The context is full.
    ContextFull,
    /// It was cancelled.
    Cancelled,
    /// It broke off with an error.
    Failed,
}

/// A generated token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id; `None` for text that comes after the last token, because it might have become a stop string.
    pub id: Option<u32>,
    /// The text that is certain with it: never half a character, nothing that may still become a stop string.
    /// Often empty: the text then comes with a later token.
    pub text: String,
}
