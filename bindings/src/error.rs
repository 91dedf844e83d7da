//! The engine's errors as an app sees them.

use crate::endpoint::EndpointFailure;
use crate::policy::RoutingRefusal;
use niwaki::bundle::BundleError;
use niwaki::{GenerateError, OpenError, SessionError, TemplateError, TextError};
use std::error::Error;
use std::io;

/// What went wrong, by what an app can do about it. `details` is for developers and logs: it says the rest and
/// never holds user text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, uniffi::Error)]
#[non_exhaustive]
pub enum NiwakiError {
    /// There is no such file: get it.
    #[error("{details}")]
    FileNotFound {
        /// More about it.
        details: String,
    },
    /// The file cannot be read: no permission, a closed descriptor, a failing disk.
    #[error("{details}")]
    FileUnreadable {
        /// More about it.
        details: String,
    },
    /// The file is damaged, truncated, or no bundle at all: get it again.
    #[error("{details}")]
    InvalidBundle {
        /// More about it.
        details: String,
    },
    /// The bundle is for another version of this library: update the app or get another bundle.
    #[error("{details}")]
    UnsupportedBundle {
        /// More about it.
        details: String,
    },
    /// The model does not fit into the allowed memory: use a shorter context or a smaller model.
    #[error("{details}")]
    NotEnoughMemory {
        /// What it needs; absent where an allocation failed.
        needed_bytes: Option<u64>,
        /// What it may take; absent where an allocation failed.
        limit_bytes: Option<u64>,
        /// More about it.
        details: String,
    },
    /// The context has too little room: start over, or with less text.
    #[error("{details}")]
    ContextFull {
        /// Tokens that would have to be in the context.
        needed_tokens: u64,
        /// Tokens the context holds.
        context_tokens: u64,
        /// More about it.
        details: String,
    },
    /// The model has no chat template that works: continue plain text with it.
    #[error("{details}")]
    NoChat {
        /// More about it.
        details: String,
    },
    /// The caller's arguments make no sense.
    #[error("{details}")]
    InvalidArgument {
        /// More about it.
        details: String,
    },
    /// Nobody may or can answer the request, and nothing was sent: allow another routing mode, or give the router
    /// what is missing.
    #[error("{details}")]
    NotRouted {
        /// What is in the way.
        refusal: RoutingRefusal,
        /// More about it.
        details: String,
    },
    /// The endpoint gave no answer, or not all of it.
    #[error("{details}")]
    Endpoint {
        /// What failed.
        failure: EndpointFailure,
        /// The status of its response; absent where that was not the failure.
        status: Option<u16>,
        /// The endpoint's own code for the failure, such as `context_length_exceeded`.
        code: Option<String>,
        /// When to try again, if the endpoint said so.
        retry_after_ms: Option<u64>,
        /// Whether a part of the answer was given out before.
        broke_off: bool,
        /// More about it.
        details: String,
    },
    /// Another stream of this session or chat is still going on: read it to its end, or cancel it.
    #[error("another stream of this session is still going on; read it to its end or cancel it")]
    Busy,
    /// Anything else: a bug worth reporting.
    #[error("{details}")]
    Internal {
        /// More about it.
        details: String,
    },
}

impl NiwakiError {
    pub(crate) fn panicked() -> NiwakiError {
        NiwakiError::Internal {
            details: "the engine failed in a way it should not; please report it".into(),
        }
    }
}

/// The messages of an error and its causes.
pub(crate) fn chain(error: &dyn Error) -> String {
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
        let details = chain(&error);
        match error {
            OpenError::Bundle(BundleError::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                NiwakiError::FileNotFound { details }
            }
            OpenError::Bundle(BundleError::Io { .. }) => NiwakiError::FileUnreadable { details },
            OpenError::Bundle(BundleError::UnsupportedVersion { .. }) => {
                NiwakiError::UnsupportedBundle { details }
            }
            OpenError::Bundle(_) | OpenError::Tokenizer(_) => {
                NiwakiError::InvalidBundle { details }
            }
            OpenError::MemoryLimit { limit_bytes, plan } => NiwakiError::NotEnoughMemory {
                needed_bytes: Some(plan.anonymous_bytes()),
                limit_bytes: Some(limit_bytes),
                details,
            },
            OpenError::NoContext
            | OpenError::TooManyThreads { .. }
            | OpenError::UnknownIsa { .. }
            | OpenError::UnavailableIsa { .. } => NiwakiError::InvalidArgument { details },
            _ => NiwakiError::Internal { details },
        }
    }
}

impl From<&SessionError> for NiwakiError {
    fn from(error: &SessionError) -> Self {
        let details = chain(error);
        match *error {
            SessionError::ContextFull {
                context_tokens,
                len,
                added,
            } => NiwakiError::ContextFull {
                needed_tokens: len.saturating_add(added) as u64,
                context_tokens: context_tokens as u64,
                details,
            },
            SessionError::OutOfMemory { .. } => NiwakiError::NotEnoughMemory {
                needed_bytes: None,
                limit_bytes: None,
                details,
            },
            SessionError::NoTokens
            | SessionError::UnknownToken { .. }
            | SessionError::Forgotten { .. } => NiwakiError::InvalidArgument { details },
            _ => NiwakiError::Internal { details },
        }
    }
}

impl From<&TextError> for NiwakiError {
    fn from(error: &TextError) -> Self {
        let details = chain(error);
        match error {
            TextError::Encode => NiwakiError::InvalidArgument { details },
            _ => NiwakiError::InvalidBundle { details },
        }
    }
}

impl From<&TemplateError> for NiwakiError {
    fn from(error: &TemplateError) -> Self {
        let details = chain(error);
        match error {
            TemplateError::Refused(_) => NiwakiError::InvalidArgument { details },
            _ => NiwakiError::NoChat { details },
        }
    }
}

impl From<&GenerateError> for NiwakiError {
    fn from(error: &GenerateError) -> Self {
        let details = chain(error);
        match error {
            GenerateError::Session(error) => error.into(),
            GenerateError::Text(error) => error.into(),
            GenerateError::Template(error) => error.into(),
            GenerateError::NotFinite { .. } => NiwakiError::InvalidBundle { details },
            GenerateError::Sampling(_) | GenerateError::Beams(_) => {
                NiwakiError::InvalidArgument { details }
            }
            GenerateError::DoesNotFit {
                prompt_tokens,
                max_new_tokens,
                room_tokens,
            } => NiwakiError::ContextFull {
                needed_tokens: prompt_tokens.saturating_add(*max_new_tokens) as u64,
                context_tokens: *room_tokens as u64,
                details,
            },
            _ => NiwakiError::Internal { details },
        }
    }
}

impl From<SessionError> for NiwakiError {
    fn from(error: SessionError) -> Self {
        (&error).into()
    }
}

impl From<TextError> for NiwakiError {
    fn from(error: TextError) -> Self {
        (&error).into()
    }
}

impl From<GenerateError> for NiwakiError {
    fn from(error: GenerateError) -> Self {
        (&error).into()
    }
}

/// An exception that a callback of the app threw.
impl From<uniffi::UnexpectedUniFFICallbackError> for NiwakiError {
    fn from(_: uniffi::UnexpectedUniFFICallbackError) -> Self {
        // What the exception says may hold user text.
        NiwakiError::Internal {
            details: "a callback of the app threw an exception".into(),
        }
    }
}
