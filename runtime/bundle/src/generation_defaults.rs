//! How a model wants to be sampled when the caller does not say.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The generation defaults section, from an export's generation_config.json.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GenerationDefaults {
    /// The model's beginning-of-text token: it stands where a text has no other beginning, and before every text where
    /// the tokenizer or `add_bos_token` says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos_token: Option<u32>,
    /// Texts begin with `bos_token` though the tokenizer's post-processor may not put it there. Without it they begin as
    /// the post-processor says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub add_bos_token: bool,
    /// Tokens that end a text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub eos_tokens: Vec<u32>,
    /// Softmax temperature; 0 is greedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Keep the `top_k` most likely tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Keep the most likely tokens that together reach this probability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Keep tokens with at least this share of the most likely token's probability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Divides the logits of tokens that the context holds already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// Texts of the special tokens by the names that the chat template knows them by: `bos_token`, `eos_token`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub special_tokens: BTreeMap<String, String>,
}

impl GenerationDefaults {
    /// The token to put before every text that does not begin with it.
    pub fn first_token(&self) -> Option<u32> {
        self.bos_token.filter(|_| self.add_bos_token)
    }
}
