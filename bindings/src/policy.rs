//! What a router goes by.

use crate::error::{NiwakiError, chain};
use niwaki_route as route;

/// Which backend is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum RoutingMode {
    /// Never leave the device.
    LocalOnly,
    /// The device as long as the limits allow it, else the endpoint.
    PreferLocal,
    /// The endpoint, and the device when the endpoint fails.
    PreferCloud,
    /// Never compute on the device.
    CloudOnly,
}

/// What a router goes by. The context of the model is a limit of its own: longer prompts go to the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Record)]
pub struct RoutingPolicy {
    /// Which backend is wanted.
    pub mode: RoutingMode,
    /// Longer prompts go to the endpoint, and to it alone.
    pub max_local_prompt_tokens: Option<u64>,
    /// Where the device would take longer to its first token, by the speed it was seen to have, the endpoint is
    /// asked first.
    pub max_first_token_ms: Option<u64>,
}

/// Why nobody is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum RoutingRefusal {
    /// The request may not leave the device, and the policy computes nothing there.
    OnDeviceOnly,
    /// There is no model on the device, and nobody else may answer.
    NoLocalModel,
    /// There is no endpoint, and nobody else may answer.
    NoEndpoint,
}

impl From<RoutingPolicy> for route::Policy {
    fn from(policy: RoutingPolicy) -> Self {
        route::Policy {
            mode: match policy.mode {
                RoutingMode::LocalOnly => route::RoutingMode::LocalOnly,
                RoutingMode::PreferLocal => route::RoutingMode::PreferLocal,
                RoutingMode::PreferCloud => route::RoutingMode::PreferCloud,
                RoutingMode::CloudOnly => route::RoutingMode::CloudOnly,
            },
            max_local_prompt_tokens: policy
                .max_local_prompt_tokens
                .map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX)),
            max_first_token_ms: policy.max_first_token_ms,
        }
    }
}

impl From<route::RoutingMode> for RoutingMode {
    fn from(mode: route::RoutingMode) -> Self {
        match mode {
            route::RoutingMode::LocalOnly => RoutingMode::LocalOnly,
            route::RoutingMode::PreferLocal => RoutingMode::PreferLocal,
            route::RoutingMode::PreferCloud => RoutingMode::PreferCloud,
            route::RoutingMode::CloudOnly => RoutingMode::CloudOnly,
        }
    }
}

impl From<route::Refusal> for NiwakiError {
    fn from(refusal: route::Refusal) -> Self {
        let details = chain(&refusal);
        let refusal = match refusal {
            route::Refusal::PromptOverContext {
                prompt_tokens,
                context_tokens,
                ..
            } => {
                return NiwakiError::ContextFull {
                    needed_tokens: prompt_tokens as u64,
                    context_tokens: context_tokens as u64,
                    details,
                };
            }
            route::Refusal::OnDeviceOnly => RoutingRefusal::OnDeviceOnly,
            route::Refusal::NoLocalModel => RoutingRefusal::NoLocalModel,
            route::Refusal::NoEndpoint => RoutingRefusal::NoEndpoint,
            _ => return NiwakiError::Internal { details },
        };
        NiwakiError::NotRouted { refusal, details }
    }
}
