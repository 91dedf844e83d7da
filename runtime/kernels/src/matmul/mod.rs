//! Matrix products: 16 outputs at a time, each its own chain of fmas over ascending columns.

mod float;
mod outputs;
mod quantized;

pub(crate) use float::{chains, float_groups};
pub(crate) use outputs::Outputs;
pub(crate) use quantized::quantized_groups;
