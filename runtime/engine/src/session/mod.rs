//! Engines, sessions, and what they cost.

mod batch;
mod context;
mod engine;
mod error;
mod isa;
mod memory_plan;
mod rows;
mod threads;
mod workspaces;

pub use batch::{BatchError, BatchStep, LogitsFor, Outputs};
pub use context::{Session, SessionCheckpoint};
pub use engine::{Engine, OpenError, OpenOptions};
pub use error::SessionError;
pub use memory_plan::{Backing, MemoryPart, MemoryPlan};
pub use rows::Logits;
