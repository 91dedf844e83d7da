//! Kotlin and Swift bindings of the niwaki engine: a thin face, nothing is decided here.
//!
//! The generated types stay behind hand-written Kotlin and Swift ones. Errors are flattened into the few
//! kinds an app can act on. A panic never crosses: UniFFI turns it into an error of its own.

mod error;
mod model;
mod records;

pub use error::NiwakiError;
pub use model::{Model, TokenListener, memory_plan};
pub use records::{FinishReason, GenerationOptions, MemoryPart, MemoryPlan, ModelOptions};

uniffi::setup_scaffolding!();
