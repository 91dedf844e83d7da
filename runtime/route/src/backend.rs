//! What a router can ask.

use crate::cloud::{CloudAnswer, CloudError};
use crate::request::{Prompt, PromptKind, RouteRequest};
use niwaki::{Cancellation, FinishReason, GenerateError, Token};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

/// Who can answer: [`LocalModel`](crate::LocalModel), [`CloudClient`](crate::CloudClient), or something of an app.
pub trait Backend: Send + Sync {
    /// Its name in records: the app's, and never text of users.
    fn name(&self) -> &str;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Counts the tokens of a prompt; `None` where only the answer tells. It does not wait for an answer under way, and a
    /// backend that leaves the device does not leave it for this.
    ///
    /// # Errors
    /// [`BackendFailure`] when this prompt is nothing that it can read; it is not asked then.
    fn measure(&self, prompt: &Prompt) -> Result<Option<PromptSize>, BackendFailure>;

    /// Answers, handing on every token as it comes until the answer is complete, `on_token` breaks off, or it is
    /// cancelled. Text that has no token of its own comes as one without an id.
    ///
    /// # Errors
    /// [`Unanswered`].
    fn answer(
        &self,
        request: &RouteRequest,
        cancellation: &Cancellation,
        on_token: &mut dyn FnMut(Token) -> ControlFlow<()>,
    ) -> Result<BackendAnswer, Unanswered>;
}

/// Whether a backend leaves the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendKind {
    /// A model on the device: nothing leaves it.
    Local,
    /// An endpoint: what it answers leaves the device, for the next room or for the cloud.
    Cloud,
}

/// What a backend can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether it leaves the device.
    pub kind: BackendKind,
    /// Whether it answers conversations.
    pub chats: bool,
    /// Whether it continues texts.
    pub plain_prompts: bool,
    /// Tokens that its context holds, where that is known.
    pub context_tokens: Option<usize>,
}

impl Capabilities {
    /// Whether it takes such a prompt.
    pub fn takes(&self, prompt: PromptKind) -> bool {
        match prompt {
            PromptKind::Chat => self.chats,
            PromptKind::Plain => self.plain_prompts,
        }
    }
}

/// How long a prompt is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromptSize {
    /// Its tokens.
    pub tokens: usize,
    /// How many of them are computed already, from turns before.
    pub computed_tokens: usize,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendAnswer {
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens of the prompt that were computed for it, and how long that took until the first token; `None` where that
    /// was not measured.
    pub prefill: Option<(usize, Duration)>,
    /// What an endpoint said about it.
    pub cloud: Option<CloudAnswer>,
}

impl BackendAnswer {
    /// One that ended without anything to tell.
    pub fn ended(finish_reason: FinishReason) -> BackendAnswer {
        BackendAnswer {
            finish_reason,
            prefill: None,
            cloud: None,
        }
    }
}

/// A request that a backend did not answer, or not to the end.
#[derive(Clone, Debug)]
pub struct Unanswered {
    /// Why.
    pub failure: BackendFailure,
    /// How often the request was sent: more than once only to an endpoint.
    pub sent: u32,
}

impl<F: Into<BackendFailure>> From<F> for Unanswered {
    fn from(failure: F) -> Self {
        Unanswered {
            failure: failure.into(),
            sent: 1,
        }
    }
}

/// Why a backend did not answer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum BackendFailure {
    /// The device's model failed.
    Local(Arc<GenerateError>),
    /// The device's model has as many requests waiting as it takes.
    Busy {
        /// How many wait.
        waiting: usize,
    },
    /// The endpoint failed.
    Cloud(CloudError),
}

impl BackendFailure {
    /// A name for it that stays the same over versions.
    pub fn code(&self) -> &'static str {
        match self {
            BackendFailure::Local(error) => match **error {
                GenerateError::DoesNotFit { .. } => "does_not_fit",
                GenerateError::Sampling(_) => "sampling",
                GenerateError::Text(_) => "text",
                GenerateError::Template(_) => "template",
                GenerateError::Session(_) => "session",
                GenerateError::Thread(_) => "thread",
                // There are no others yet.
                _ => "generation",
            },
            BackendFailure::Busy { .. } => "busy",
            BackendFailure::Cloud(error) => error.code(),
        }
    }

    /// Whether every other backend would fail in the same way.
    pub(crate) fn is_of_the_request(&self) -> bool {
        matches!(self, BackendFailure::Local(error) if matches!(**error, GenerateError::Sampling(_)))
    }
}

impl From<GenerateError> for BackendFailure {
    fn from(error: GenerateError) -> Self {
        BackendFailure::Local(Arc::new(error))
    }
}

impl From<CloudError> for BackendFailure {
    fn from(error: CloudError) -> Self {
        BackendFailure::Cloud(error)
    }
}

impl fmt::Display for BackendFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackendFailure::Local(error) => error.fmt(f),
            BackendFailure::Busy { waiting } => {
                write!(f, "{waiting} requests wait for it already; ask again later")
            }
            BackendFailure::Cloud(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BackendFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            BackendFailure::Local(error) => std::error::Error::source(&**error),
            BackendFailure::Busy { .. } => None,
            BackendFailure::Cloud(error) => std::error::Error::source(error),
        }
    }
}

impl Serialize for BackendFailure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("BackendFailure", 2)?;
        fields.serialize_field("code", self.code())?;
        fields.serialize_field("message", &self.to_string())?;
        fields.end()
    }
}
