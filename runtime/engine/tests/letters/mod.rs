//! A model of a few letters, small enough to be made in every test.
// Each test binary uses its own part.
#![allow(dead_code, unreachable_pub)]

use crate::synthetic::{Decoder, TOKENIZER};
use niwaki::{Engine, GenerateError, GenerateOptions, OpenOptions, Sampling};
use std::path::Path;

/// Every letter of it is in the tokenizer's vocabulary.
pub const TEMPLATE: &str = "{% for message in messages %}{{ {'system': 'ab', 'user': 'c', 'assistant': 'a'}[message.role] \
     }}{{ message.content }}{% endfor %}{% if add_generation_prompt %}bb{% endif %}";

/// A model of a few letters with random weights, which chats.
pub struct Model {
    pub folder: tempfile::TempDir,
}

impl Model {
    pub fn new(window: Option<usize>) -> Model {
        Model::with(Decoder {
            vocabulary: 8,
            window,
            ..Decoder::TINY
        })
    }

    pub fn with(decoder: Decoder) -> Model {
        let folder = tempfile::tempdir().unwrap();
        decoder.write_with(&Model::path(folder.path()), 1, |writer| {
            writer.set_tokenizer(TOKENIZER.as_bytes().to_vec());
            writer.set_chat_template(TEMPLATE);
        });
        Model { folder }
    }

    pub fn path(folder: &Path) -> std::path::PathBuf {
        folder.join("model.niwaki")
    }

    pub fn open(&self, context_tokens: Option<usize>) -> Engine {
        let options = OpenOptions::default()
            .with_threads(1)
            .with_context_tokens(context_tokens);
        Engine::open(Model::path(self.folder.path()), &options).unwrap()
    }
}

/// Draws of temperature 1, always the same.
pub fn options(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions::default()
        .with_max_new_tokens(max_new_tokens)
        .with_sampling(Sampling::GREEDY.with_temperature(1.0).with_seed(5))
}

/// All text of a generation that does not fail.
pub fn text(items: impl Iterator<Item = Result<niwaki::Token, GenerateError>>) -> String {
    items.map(|token| token.unwrap().text).collect()
}
