//! Answers from the device or from endpoints: a policy decides, a record tells why (`docs/routing.md`).

mod backend;
mod cloud;
mod decision;
mod local;
mod policy;
mod queue;
mod request;
mod router;
mod run;
mod speed;
mod stream;

pub use backend::{
    Backend, BackendAnswer, BackendFailure, BackendKind, Capabilities, PromptSize, Unanswered,
};
pub use cloud::{
    ApiKeySource, CloudAnswer, CloudClient, CloudError, CloudFailure, CloudOptions, CloudTimeouts,
    EndpointProblem, KeyUnavailable, ProtocolProblem, RetryPolicy, TimeoutPhase, TooLarge,
};
pub use decision::{BackendId, Decision, Reason, Refusal, Tried};
pub use local::LocalModel;
pub use policy::{Candidate, Plan, Policy, RoutingMode, Situation};
pub use request::{Prompt, PromptKind, RouteRequest};
pub use router::{RouteError, RouteFailure, RoutedAnswer, Router};
pub use stream::RoutedStream;
