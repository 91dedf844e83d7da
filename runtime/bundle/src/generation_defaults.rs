//! How a model wants to be sampled when the caller does not say.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The generation defaults section, from an export's generation_config.json.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GenerationDefaults {
    /// Token that begins a text, when the model wants one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos_token: Option<u32>,
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
