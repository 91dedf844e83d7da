//! On-device language-model engine: opens a `.niwaki` bundle by mapping it and generates text from it.

pub mod bundle;
pub mod graph;
