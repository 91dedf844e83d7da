//! The library behind the niwaki command.

pub mod onnx;
pub mod pack;
pub mod quantize;
