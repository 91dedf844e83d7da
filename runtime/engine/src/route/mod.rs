//! Answers from the device or from an endpoint: a policy decides, a record tells why (`docs/routing.md`).

mod cloud;
mod decision;
#[cfg(feature = "cloud")]
mod https;
mod local;
mod policy;
mod router;
mod speed;
mod transport;

pub use cloud::{
    ApiKeySource, CloudAnswer, CloudClient, CloudError, CloudFailure, CloudOptions, CloudTimeouts,
    CloudUsage, KeyUnavailable, ProtocolProblem, RetryPolicy, TimeoutPhase, TooLarge,
};
pub use decision::{Backend, BackendFailure, Decision, Reason, Refusal, Tried};
#[cfg(feature = "cloud")]
pub use https::{HttpsTransport, InvalidRoots};
pub use local::{LocalAnswer, LocalChat, LocalModel, PromptSize};
pub use policy::{Plan, Policy, RoutingMode, Situation};
pub use router::{RouteError, RouteFailure, RouteRequest, RoutedAnswer, Router};
pub use transport::{Exchange, HttpHeader, HttpRequest, ResponseHead, Transport, TransportError};
