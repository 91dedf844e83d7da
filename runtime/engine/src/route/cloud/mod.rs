//! Answers from an endpoint that speaks OpenAI's chat completions.

mod client;
mod completions;
mod endpoint;
mod error;
mod events;
mod response;
mod retry;
mod wait;

pub use client::{
    ApiKeySource, CloudAnswer, CloudClient, CloudFailure, CloudOptions, KeyUnavailable,
};
pub use completions::CloudUsage;
pub use error::{CloudError, ProtocolProblem, TimeoutPhase, TooLarge};
pub use retry::RetryPolicy;
pub use wait::CloudTimeouts;
