//! Engines, sessions, and what they cost.

mod cancellation;
mod isa;
mod logits;
mod memory_plan;
mod open;
mod session;
mod threads;

pub use cancellation::{Cancellation, OnCancel};
pub use logits::Logits;
pub use memory_plan::{Backing, MemoryPart, MemoryPlan};
pub use open::{Engine, OpenError, OpenOptions};
pub use session::{LogitsFor, Session, SessionError};
