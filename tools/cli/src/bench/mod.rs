//! Measuring a model on this machine: speed, memory, share of the memory bandwidth, time by operator.

mod bandwidth;
mod memory;
mod operators;
mod speed;

pub use bandwidth::read_bandwidth;
pub use memory::{ResidentMemory, resident_memory};
pub use operators::{OperatorTime, operator_times};
pub use speed::{Sample, Test, TestKind, bytes_per_token, measure, percentile, profile};
