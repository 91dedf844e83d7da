//! What is asked.

use niwaki::{GenerateOptions, Message};
use serde::Serialize;
use std::fmt;

/// What to answer, how, and whether it may leave the device.
#[derive(Clone, Debug)]
pub struct RouteRequest {
    /// What to answer.
    pub prompt: Prompt,
    /// How to answer.
    pub options: GenerateOptions,
    /// Keeps the request on the device whatever the policy says: no socket is opened and no name resolved for it.
    pub on_device_only: bool,
}

/// A conversation or a text. Its `Debug` output holds neither.
#[derive(Clone, PartialEq, Eq)]
pub enum Prompt {
    /// The whole conversation, the last message being the one to answer.
    Chat(Vec<Message>),
    /// A text to continue. Models on the device read it with what their tokenizers put before a text.
    Text(String),
    /// A text to continue, in tokens of the one tokenizer that all models on the device share here.
    Tokens {
        /// The tokens.
        tokens: Vec<u32>,
        /// The text, for who reads no tokens.
        text: String,
    },
}

/// Which of the two a prompt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptKind {
    /// A conversation.
    Chat,
    /// A text to continue.
    Plain,
}

impl Prompt {
    /// Which of the two it is.
    pub fn kind(&self) -> PromptKind {
        match self {
            Prompt::Chat(_) => PromptKind::Chat,
            Prompt::Text(_) | Prompt::Tokens { .. } => PromptKind::Plain,
        }
    }
}

impl fmt::Debug for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Prompt::Chat(messages) => f.debug_tuple("Chat").field(messages).finish(),
            Prompt::Text(text) => f
                .debug_struct("Text")
                .field("text_bytes", &text.len())
                .finish(),
            Prompt::Tokens { tokens, .. } => f
                .debug_struct("Tokens")
                .field("count", &tokens.len())
                .finish(),
        }
    }
}
