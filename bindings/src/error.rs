//! The engine's errors as an app sees them.

use niwaki::{GenerateError, OpenError, SessionError, TextError};
use std::error::Error;

/// What went wrong, by what an app can do about it. The message says the rest; it never holds user text.
#[derive(Debug, thiserror::Error, uniffi::Error)]
#[uniffi(flat_error)]
#[non_exhaustive]
pub enum NiwakiError {
    /// The file is missing, damaged or not for this version: get it again.
    #[error("{0}")]
    InvalidBundle(String),
    /// The model does not fit into the allowed memory: use a shorter context or a smaller model.
    #[error("{0}")]
    NotEnoughMemory(String),
    /// The context is full: start over with less text.
    #[error("{0}")]
    ContextFull(String),
    /// The caller's arguments make no sense.
    #[error("{0}")]
    InvalidArgument(String),
    /// Anything else: a bug worth reporting.
    #[error("{0}")]
    Internal(String),
}

/// The messages of an error and its causes.
fn chain(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message.push_str(": ");
        message.push_str(&error.to_string());
        cause = error.source();
    }
    message
}

impl From<OpenError> for NiwakiError {
    fn from(error: OpenError) -> Self {
        let message = chain(&error);
        match error {
            OpenError::Bundle(_) | OpenError::Tokenizer(_) => NiwakiError::InvalidBundle(message),
            OpenError::MemoryLimit { .. } => NiwakiError::NotEnoughMemory(message),
            OpenError::NoContext
            | OpenError::UnknownIsa { .. }
            | OpenError::UnavailableIsa { .. } => NiwakiError::InvalidArgument(message),
            _ => NiwakiError::Internal(message),
        }
    }
}

impl From<SessionError> for NiwakiError {
    fn from(error: SessionError) -> Self {
        let message = chain(&error);
        match error {
            SessionError::ContextFull { .. } => NiwakiError::ContextFull(message),
            SessionError::OutOfMemory { .. } => NiwakiError::NotEnoughMemory(message),
            SessionError::NoTokens
            | SessionError::UnknownToken { .. }
            | SessionError::Forgotten { .. } => NiwakiError::InvalidArgument(message),
            _ => NiwakiError::Internal(message),
        }
    }
}

impl From<TextError> for NiwakiError {
    fn from(error: TextError) -> Self {
        match error {
            TextError::Encode => NiwakiError::InvalidArgument(chain(&error)),
            _ => NiwakiError::InvalidBundle(chain(&error)),
        }
    }
}

impl From<GenerateError> for NiwakiError {
    fn from(error: GenerateError) -> Self {
        match error {
            GenerateError::Session(error) => error.into(),
            GenerateError::Text(error) => error.into(),
            GenerateError::Sampling(_) | GenerateError::Template(_) => {
                NiwakiError::InvalidArgument(chain(&error))
            }
            GenerateError::DoesNotFit { .. } => NiwakiError::ContextFull(chain(&error)),
            _ => NiwakiError::Internal(chain(&error)),
        }
    }
}
