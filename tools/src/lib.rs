//! The library behind the niwaki command.

pub mod bench;
pub mod build;
pub mod commands;
pub mod demo_model;
pub mod evaluate;
pub mod export;
pub mod lower;
pub mod onnx;
pub mod pack;
pub mod prune;
pub mod quantize;
pub mod report;
