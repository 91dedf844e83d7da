//! The lowered graph as a tract model: one operator per node, one plan for prefill and decode.

mod compute;
mod liveness;
mod operator;
mod turn;

pub(crate) use liveness::live_columns_at_peak;
pub(crate) use operator::Decoder;
pub use operator::ModelError;
pub(crate) use turn::Turn;
