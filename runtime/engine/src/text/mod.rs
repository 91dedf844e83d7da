//! Text to tokens and back; messages to the text of a prompt.

mod chat_template;
mod decoding;
mod detokenizer;
mod message;
mod python_json;
mod strftime;
mod tokenizer;

pub use chat_template::{ChatTemplate, TemplateError};
pub use detokenizer::Detokenizer;
pub use message::{Message, Role};
pub use tokenizer::{TextError, Tokenizer};
