//! Kotlin and Swift bindings of the niwaki engine: a thin face, nothing is decided here.
//!
//! What is exported is the same for every language and stays behind hand-written types: `android/niwaki` and
//! `ios/`. Everything here may be called from any thread. Calls that open, generate or wait block the calling
//! thread: the faces make them `suspend` and `async`.
//!
//! Errors are the few kinds an app can act on ([`NiwakiError`]). A panic never crosses: UniFFI turns it into an
//! error of the calling language, and one in a generation's thread ends its stream with
//! [`NiwakiError::Internal`]. That is why the `dist` profile unwinds.

mod chat;
mod decision;
mod endpoint;
mod engine;
mod error;
mod exclusive;
mod logging;
mod memory;
mod options;
mod policy;
mod router;
mod session;
mod source;
mod stream;
mod transport;

pub use chat::{Chat, Message, Role};
pub use decision::{Backend, Decision, RoutingReason, TriedBackend};
pub use endpoint::{ApiKeySource, Endpoint, EndpointFailure, EndpointRetry, EndpointTimeouts};
pub use engine::{Engine, memory_plan};
pub use error::NiwakiError;
pub use logging::{LogLevel, LogSink, set_log_sink};
pub use memory::{MemoryPart, MemoryPlan};
pub use options::{
    ContextEnd, GenerateOptions, KvElement, OpenOptions, RepetitionPenalty, Sampling,
};
pub use policy::{RoutingMode, RoutingPolicy, RoutingRefusal};
pub use router::{RouteRequest, RoutedFinish, RoutedStream, Router};
pub use session::Session;
pub use source::BundleSource;
pub use stream::{Finish, FinishReason, Token, TokenStream};
pub use transport::{Exchange, HttpHeader, HttpRequest, ResponseHead, Transport, TransportError};

uniffi::setup_scaffolding!();
