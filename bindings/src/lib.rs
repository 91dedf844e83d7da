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
mod engine;
mod error;
mod exclusive;
mod logging;
mod memory;
mod options;
mod session;
mod source;
mod stream;

pub use chat::{Chat, Message, Role};
pub use engine::{Engine, memory_plan};
pub use error::NiwakiError;
pub use logging::{LogLevel, LogSink, set_log_sink};
pub use memory::{MemoryPart, MemoryPlan};
pub use options::{ContextEnd, GenerateOptions, OpenOptions, RepetitionPenalty, Sampling};
pub use session::Session;
pub use source::BundleSource;
pub use stream::{Finish, FinishReason, Token, TokenStream};

uniffi::setup_scaffolding!();
