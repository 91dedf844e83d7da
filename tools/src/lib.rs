//! The library behind the niwaki command.

pub mod onnx;
