//! The record of a decision: who answered, why, and what was tried before. It holds numbers and names, never
//! text of users.

use crate::backend::{BackendFailure, BackendKind};
use crate::policy::RoutingMode;
use crate::request::PromptKind;
use serde::Serialize;

/// A backend in a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct BackendId {
    /// The name it has in the app.
    pub name: String,
    /// Whether it leaves the device.
    pub kind: BackendKind,
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
        /// [`Policy::max_local_prompt_tokens`](crate::Policy::max_local_prompt_tokens).
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
        /// [`Policy::max_first_token_ms`](crate::Policy::max_first_token_ms).
        max_first_token_ms: u64,
    },
    /// Who is wanted takes no such prompt.
    NotTaken {
        /// Who.
        by: BackendKind,
        /// What.
        prompt: PromptKind,
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
    /// Who may answer takes no such prompt.
    #[error("{}", not_taken(*.by, *.prompt))]
    NotTaken {
        /// Who.
        by: BackendKind,
        /// What.
        prompt: PromptKind,
    },
}

fn not_taken(by: BackendKind, prompt: PromptKind) -> &'static str {
    match (by, prompt) {
        (BackendKind::Cloud, PromptKind::Plain) => {
            "this prompt cannot go to the endpoint: it is a text to continue, and the endpoint answers chats"
        }
        (BackendKind::Cloud, PromptKind::Chat) => {
            "this conversation cannot go to the endpoint, which only continues texts"
        }
        (BackendKind::Local, PromptKind::Chat) => {
            "the model on the device has no chat template: it continues texts, and answers no conversations"
        }
        (BackendKind::Local, PromptKind::Plain) => {
            "the model on the device answers conversations only, and this is a text to continue"
        }
    }
}

/// A backend that was asked and did not answer.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    /// Which.
    pub backend: BackendId,
    /// Why it did not answer.
    pub failure: BackendFailure,
    /// How often the request was sent: more than once only to an endpoint, never when it failed before that, as without a
    /// key.
    pub sent: u32,
    /// How long it took to fail.
    pub took_ms: u64,
}

/// How a request was answered. Every answer and every error has one.
#[derive(Clone, Debug, Serialize)]
pub struct Decision {
    /// Who answered, or began to; `None` when nobody did.
    pub answered_by: Option<BackendId>,
    /// Why the backend that was asked first was; `None` when none was asked.
    pub reason: Option<Reason>,
    /// What was asked before, and why it did not answer.
    pub tried: Vec<Tried>,
    /// The policy's mode.
    pub mode: RoutingMode,
    /// Whether the request had to stay on the device.
    pub on_device_only: bool,
    /// Tokens of the prompt, by the first model on the device.
    pub prompt_tokens: Option<usize>,
    /// Tokens that its context holds.
    pub context_tokens: Option<usize>,
    /// The policy's limit.
    pub max_local_prompt_tokens: Option<usize>,
    /// How long it was expected to take to its first token.
    pub predicted_first_token_ms: Option<u64>,
    /// How long the answer took to its first text, everything tried before included.
    pub first_text_ms: Option<u64>,
}
