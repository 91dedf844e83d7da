//! The lowered graph as a tract model: one operator per step, one plan for prefill and decode.

mod compute;
mod operator;
mod profile;
mod steps;
#[cfg(test)]
mod test_graphs;
mod turn;
mod value_pool;

pub(crate) use operator::Decoder;
pub use operator::ModelError;
pub use profile::Profile;
