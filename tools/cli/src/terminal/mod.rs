//! What a person sees: tables, progress, sizes and failures.

mod failure;
mod progress;
mod quantity;
mod table;

pub use failure::describe;
pub use progress::Progress;
pub use quantity::{bytes, count, percent_change, significant};
pub use table::Table;
