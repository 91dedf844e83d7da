//! Answers from an endpoint that speaks OpenAI's chat completions.

mod backend;
mod client;
mod endpoint;
mod error;
mod retry;
mod wait;

pub use client::{
    ApiKeySource, CloudAnswer, CloudClient, CloudFailure, CloudOptions, KeyUnavailable,
};
pub use endpoint::EndpointProblem;
pub use error::{CloudError, ProtocolProblem, TimeoutPhase, TooLarge};
pub use retry::RetryPolicy;
pub use wait::CloudTimeouts;
