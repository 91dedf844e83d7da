//! Answers from the device or from an endpoint: a policy decides, a record tells why (`docs/routing.md`).

mod cloud;
mod decision;
mod local;
mod policy;
mod router;
mod speed;

pub use cloud::{
    ApiKeySource, CloudAnswer, CloudClient, CloudError, CloudFailure, CloudOptions, CloudTimeouts,
    EndpointProblem, KeyUnavailable, ProtocolProblem, RetryPolicy, TimeoutPhase, TooLarge,
};
pub use decision::{Backend, BackendFailure, Decision, Reason, Refusal, Tried};
pub use local::{LocalAnswer, LocalChat, LocalModel, PromptSize};
pub use policy::{Plan, Policy, RoutingMode, Situation};
pub use router::{RouteError, RouteFailure, RouteRequest, RoutedAnswer, Router};
