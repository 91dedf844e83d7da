//! How a model wants to be sampled when the caller does not say.

use serde::{Deserialize, Serialize};

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
}
