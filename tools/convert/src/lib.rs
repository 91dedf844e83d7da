//! From an exported ONNX model to a bundle, offline: read, lower, prune, quantize, pack, and measure what it cost.
//!
//! Nothing of this ends up in an app. The `niwaki` command is one user of it.

pub mod build;
pub mod calibrate;
mod cholesky;
pub mod evaluate;
pub mod export;
pub mod lora;
pub mod lower;
pub mod memory;
pub mod onnx;
pub mod panels;
pub mod plan;
pub mod prune;
pub mod quantize;
mod refine;
