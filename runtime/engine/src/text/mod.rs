//! Text to tokens and back.

mod decoding;
mod detokenizer;
mod tokenizer;

pub use detokenizer::Detokenizer;
pub use tokenizer::{TextError, Tokenizer};
