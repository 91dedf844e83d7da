//! The lowered graph as a tract model: one operator per step, one plan for prefill and decode.
//!
//! - `steps`: which graph nodes are computed together
//! - `plan`: the plan of them, shared by all sessions, and the operator that tract runs
//! - `weights`: what operators ask for matrices and vectors
//! - `workspace`: what one run at a time needs besides the plan, and the run itself
//! - `turn`: what the operators of a run share, the sequences of the run among it
//! - `compute`: what each operator does
//! - `value_pool`: which values share memory

mod compute;
mod plan;
mod profile;
mod steps;
#[cfg(test)]
mod test_graphs;
mod turn;
mod value_pool;
mod weights;
mod workspace;

pub(crate) use plan::Model;
pub use plan::ModelError;
pub use profile::Profile;
pub use workspace::Entries;
pub(crate) use workspace::{Part, Workspace};
