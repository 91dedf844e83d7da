//! The record of a decision: who answered, why, and what was tried before. It holds numbers and names, never
//! text of users.

use super::cloud::CloudError;
use super::policy::RoutingMode;
use niwaki::GenerateError;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use std::fmt;
use std::sync::Arc;

/// Who can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// The model on the device.
    Local,
    /// The endpoint.
    Cloud,
}

/// Why a backend is asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// The policy's mode wants it.
    Mode,
    /// The request may not leave the device.
    OnDeviceOnly,
    /// There is no endpoint.
    NoEndpoint,
    /// There is no model on the device.
    NoLocalModel,
    /// The prompt is longer than the device should take.
    PromptOverLimit {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// [`Policy::max_local_prompt_tokens`](super::Policy::max_local_prompt_tokens).
        max_local_prompt_tokens: usize,
    },
    /// The prompt leaves no room for an answer in the device's context.
    PromptOverContext {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens that the context holds.
        context_tokens: usize,
    },
    /// The device would take too long to its first token.
    TooSlow {
        /// How long it is expected to take.
        predicted_ms: u64,
        /// [`Policy::max_first_token_ms`](super::Policy::max_first_token_ms).
        max_first_token_ms: u64,
    },
}

/// Why no backend is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Refusal {
    /// The request may not leave the device, and the policy computes nothing there.
    #[error("the request may not leave the device, but the routing mode is cloud-only")]
    OnDeviceOnly,
    /// There is no model on the device, and no other backend may answer.
    #[error("there is no model on the device to answer with")]
    NoLocalModel,
    /// There is no endpoint, and no other backend may answer.
    #[error("there is no endpoint to answer with")]
    NoEndpoint,
    /// The prompt leaves no room for an answer in the device's context, and no other backend may answer.
    #[error(
        "the prompt has {prompt_tokens} tokens and the context holds {context_tokens}; {}",
        if *.may_leave { "there is no endpoint for longer ones" } else { "the request may not leave the device" }
    )]
    PromptOverContext {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens that the context holds.
        context_tokens: usize,
        /// Whether an endpoint might have answered.
        may_leave: bool,
    },
}

/// A backend that was asked and did not answer.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    /// Which.
    pub backend: Backend,
    /// Why it did not answer.
    pub failure: BackendFailure,
    /// How often the request was sent: more than once only to an endpoint, never when it failed before that, as without a
    /// key.
    pub sent: u32,
    /// How long it took to fail.
    pub took_ms: u64,
}

/// Why a backend did not answer.
#[derive(Clone, Debug)]
pub enum BackendFailure {
    /// The device's model failed.
    Local(Arc<GenerateError>),
    /// The endpoint failed.
    Cloud(CloudError),
}

/// How a request was answered. Every answer and every error has one.
#[derive(Clone, Debug, Serialize)]
pub struct Decision {
    /// Who answered, or began to; `None` when nobody did.
    pub answered_by: Option<Backend>,
    /// Why the backend that was asked first was; `None` when none was asked.
    pub reason: Option<Reason>,
    /// What was asked before, and why it did not answer.
    pub tried: Vec<Tried>,
    /// The policy's mode.
    pub mode: RoutingMode,
    /// Whether the request had to stay on the device.
    pub on_device_only: bool,
    /// Tokens of the prompt, by the device's model.
    pub prompt_tokens: Option<usize>,
    /// Tokens that the device's context holds.
    pub context_tokens: Option<usize>,
    /// The policy's limit.
    pub max_local_prompt_tokens: Option<usize>,
    /// How long the device was expected to take to its first token.
    pub predicted_first_token_ms: Option<u64>,
    /// How long the answer took to its first text, everything tried before included.
    pub first_text_ms: Option<u64>,
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
            BackendFailure::Cloud(error) => error.code(),
        }
    }
}

impl fmt::Display for BackendFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackendFailure::Local(error) => error.fmt(f),
            BackendFailure::Cloud(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BackendFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            BackendFailure::Local(error) => std::error::Error::source(&**error),
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
