//! What a configuration says of the parts that went.

use crate::export::Export;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "part", rename_all = "snake_case")]
pub enum Removed {
    /// Channels of the feed-forward.
    FfnChannels {
        /// How many there were in every layer.
        before: usize,
        /// How many there are in each layer.
        after: Vec<usize>,
    },
    /// Key/value heads with the query heads that read them, in every layer.
    Heads {
        /// Key/value heads there were.
        before: usize,
        /// Key/value heads there are.
        after: usize,
        /// Query heads that read one.
        query_heads_each: usize,
        /// Columns of a head.
        head_dim: usize,
    },
    /// Whole layers.
    Layers {
        /// How many there were.
        before: usize,
        /// Those that went, counted from zero.
        removed: Vec<usize>,
    },
}

impl Removed {
    /// Makes an export's configuration say what the model has now.
    pub fn describe_in(&self, export: &mut Export) {
        if let Value::Object(config) = &mut export.config {
            match config.get_mut("text_config") {
                Some(Value::Object(of_text)) => self.change_config(of_text),
                _ => self.change_config(config),
            }
        }
        let decoder = export.genai_config.pointer_mut("/model/decoder");
        if let Some(Value::Object(decoder)) = decoder {
            self.change_genai(decoder);
        }
    }

    fn change_config(&self, config: &mut Map<String, Value>) {
        match self {
            Removed::FfnChannels { after, .. } => {
                // Layers of several sizes are a list, as in configurations that know such.
                let same = after.windows(2).all(|pair| pair[0] == pair[1]);
                let sizes = match after.first() {
                    Some(size) if same => json!(size),
                    _ => json!(after),
                };
                for name in ["intermediate_size", "n_inner", "ffn_dim"] {
                    if let Some(field) = config.get_mut(name).filter(|field| field.is_number()) {
                        *field = sizes.clone();
                    }
                }
            }
            Removed::Heads {
                after,
                query_heads_each,
                head_dim,
                ..
            } => {
                let heads = after * query_heads_each;
                set(config, &["num_key_value_heads"], *after);
                set(config, &["num_attention_heads", "n_head"], heads);
                // Without it, it would be taken to be the width over the heads.
                config.insert("head_dim".to_owned(), json!(head_dim));
            }
            Removed::Layers { before, removed } => {
                let after = before - removed.len();
                set(config, &["num_hidden_layers", "n_layer"], after);
                for list in config.values_mut().filter_map(Value::as_array_mut) {
                    if list.len() == *before {
                        let mut layer = 0..;
                        list.retain(|_| layer.next().is_none_or(|layer| !removed.contains(&layer)));
                    }
                }
            }
        }
    }

    fn change_genai(&self, decoder: &mut Map<String, Value>) {
        match self {
            Removed::FfnChannels { .. } => {}
            Removed::Heads {
                after,
                query_heads_each,
                ..
            } => {
                set(decoder, &["num_key_value_heads"], *after);
                set(decoder, &["num_attention_heads"], after * query_heads_each);
            }
            Removed::Layers { before, removed } => {
                set(decoder, &["num_hidden_layers"], before - removed.len());
            }
        }
    }
}

/// Changes those of the fields that are there.
fn set(fields: &mut Map<String, Value>, names: &[&str], value: usize) {
    for name in names {
        if let Some(field) = fields.get_mut(*name).filter(|field| field.is_number()) {
            *field = json!(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(removed: &Removed) -> Export {
        let mut export = Export::default();
        export.config = json!({
            "intermediate_size": 1536, "num_attention_heads": 9, "num_hidden_layers": 3,
            "num_key_value_heads": 3, "layer_types": ["a", "b", "c"], "hidden_size": 576
        });
        export.genai_config = json!({ "model": { "decoder": {
            "num_attention_heads": 9, "num_hidden_layers": 3, "num_key_value_heads": 3
        } } });
        removed.describe_in(&mut export);
        export
    }

    #[test]
    fn a_configuration_says_what_is_there_now() {
        let channels = described(&Removed::FfnChannels {
            before: 1536,
            after: vec![1376; 3],
        });
        assert_eq!(channels.config["intermediate_size"], 1376);
        assert_eq!(channels.config["hidden_size"], 576);
        let channels = described(&Removed::FfnChannels {
            before: 1536,
            after: vec![1376, 1408, 1536],
        });
        assert_eq!(
            channels.config["intermediate_size"],
            json!([1376, 1408, 1536])
        );

        let heads = described(&Removed::Heads {
            before: 3,
            after: 2,
            query_heads_each: 3,
            head_dim: 64,
        });
        assert_eq!(heads.config["num_key_value_heads"], 2);
        assert_eq!(heads.config["num_attention_heads"], 6);
        assert_eq!(heads.config["head_dim"], 64);
        assert_eq!(
            heads.genai_config["model"]["decoder"]["num_attention_heads"],
            6
        );

        let layers = described(&Removed::Layers {
            before: 3,
            removed: vec![1],
        });
        assert_eq!(layers.config["num_hidden_layers"], 2);
        assert_eq!(layers.config["layer_types"], json!(["a", "c"]));
        assert_eq!(
            layers.genai_config["model"]["decoder"]["num_hidden_layers"],
            2
        );
    }
}
