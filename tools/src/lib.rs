//! The library behind the niwaki command.

pub mod build;
pub mod export;
pub mod lower;
pub mod onnx;
pub mod pack;
pub mod quantize;
