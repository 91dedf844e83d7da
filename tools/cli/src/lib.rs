//! The library behind the niwaki command.

pub mod bench;
pub mod commands;
pub mod demo_model;
pub mod terminal;
