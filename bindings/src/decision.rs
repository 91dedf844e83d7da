//! The record of a decision. It holds numbers and names, never text of users.

use crate::policy::RoutingMode;
use niwaki_route as route;

/// Who can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Backend {
    /// The model on the device.
    Local,
    /// The endpoint.
    Cloud,
}

/// Why a backend is asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum RoutingReason {
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
        prompt_tokens: u64,
        /// The policy's limit.
        max_local_prompt_tokens: u64,
    },
    /// The prompt leaves no room for an answer in the device's context.
    PromptOverContext {
        /// Tokens of the prompt.
        prompt_tokens: u64,
        /// Tokens that the context holds.
        context_tokens: u64,
    },
    /// The device would take too long to its first token.
    TooSlow {
        /// How long it is expected to take.
        predicted_ms: u64,
        /// The policy's limit.
        max_first_token_ms: u64,
    },
}

/// A backend that was asked and did not answer.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct TriedBackend {
    /// Which.
    pub backend: Backend,
    /// A name for why that stays the same over versions (`docs/routing.md`).
    pub code: String,
    /// Why, in words.
    pub details: String,
    /// How often the request was sent.
    pub sent: u32,
    /// How long it took to fail.
    pub took_ms: u64,
}

/// How a request was answered.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct Decision {
    /// Who answered, or began to; absent when nobody did.
    pub answered_by: Option<Backend>,
    /// Why the backend that was asked first was; absent when none was asked.
    pub reason: Option<RoutingReason>,
    /// What was asked before, and why it did not answer.
    pub tried: Vec<TriedBackend>,
    /// The policy's mode.
    pub mode: RoutingMode,
    /// Whether the request had to stay on the device.
    pub on_device_only: bool,
    /// Tokens of the prompt, by the device's model.
    pub prompt_tokens: Option<u64>,
    /// Tokens that the device's context holds.
    pub context_tokens: Option<u64>,
    /// The policy's limit.
    pub max_local_prompt_tokens: Option<u64>,
    /// How long the device was expected to take to its first token.
    pub predicted_first_token_ms: Option<u64>,
    /// How long the answer took to its first text, everything tried before included.
    pub first_text_ms: Option<u64>,
}

impl From<&route::Decision> for Decision {
    fn from(decision: &route::Decision) -> Self {
        let count = |tokens: Option<usize>| tokens.map(|tokens| tokens as u64);
        Decision {
            answered_by: decision
                .answered_by
                .as_ref()
                .map(|backend| backend.kind.into()),
            reason: decision.reason.map(RoutingReason::from),
            tried: decision.tried.iter().map(TriedBackend::from).collect(),
            mode: decision.mode.into(),
            on_device_only: decision.on_device_only,
            prompt_tokens: count(decision.prompt_tokens),
            context_tokens: count(decision.context_tokens),
            max_local_prompt_tokens: count(decision.max_local_prompt_tokens),
            predicted_first_token_ms: decision.predicted_first_token_ms,
            first_text_ms: decision.first_text_ms,
        }
    }
}

impl From<route::BackendKind> for Backend {
    fn from(kind: route::BackendKind) -> Self {
        match kind {
            route::BackendKind::Local => Backend::Local,
            route::BackendKind::Cloud => Backend::Cloud,
        }
    }
}

impl From<route::Reason> for RoutingReason {
    fn from(reason: route::Reason) -> Self {
        match reason {
            route::Reason::OnDeviceOnly => RoutingReason::OnDeviceOnly,
            route::Reason::NoEndpoint => RoutingReason::NoEndpoint,
            route::Reason::NoLocalModel => RoutingReason::NoLocalModel,
            route::Reason::PromptOverLimit {
                prompt_tokens,
                max_local_prompt_tokens,
            } => RoutingReason::PromptOverLimit {
                prompt_tokens: prompt_tokens as u64,
                max_local_prompt_tokens: max_local_prompt_tokens as u64,
            },
            route::Reason::PromptOverContext {
                prompt_tokens,
                context_tokens,
            } => RoutingReason::PromptOverContext {
                prompt_tokens: prompt_tokens as u64,
                context_tokens: context_tokens as u64,
            },
            route::Reason::TooSlow {
                predicted_ms,
                max_first_token_ms,
            } => RoutingReason::TooSlow {
                predicted_ms,
                max_first_token_ms,
            },
            // There are no others for conversations, which both take.
            _ => RoutingReason::Mode,
        }
    }
}

impl From<&route::Tried> for TriedBackend {
    fn from(tried: &route::Tried) -> Self {
        TriedBackend {
            backend: tried.backend.kind.into(),
            code: tried.failure.code().to_owned(),
            details: tried.failure.to_string(),
            sent: tried.sent,
            took_ms: tried.took_ms,
        }
    }
}
