//! What an export lacks, and what of it is not read.

use super::Export;
use serde_json::Value;

/// Files with a tokenizer in forms that are not read.
const OTHER_TOKENIZERS: [&str; 4] = ["tokenizer.model", "spiece.model", "vocab.json", "vocab.txt"];

impl Export {
    /// What a person should know of what was not found, or found and not read.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = vec![];
        if self.config.is_null() && self.genai_config.is_null() {
            notes.push(
                "no config.json or genai_config.json was found: the architecture is unknown, and the length of the \
                 context is what the graph says, or 2048 tokens"
                    .to_owned(),
            );
        }
        if self.tokenizer.is_none() {
            let other = OTHER_TOKENIZERS.into_iter().find(|name| self.holds(name));
            let other = other.map_or(String::new(), |name| {
                format!(" ({name} is there, which is not read: convert it to tokenizer.json)")
            });
            notes.push(format!(
                "no tokenizer.json was found{other}: the bundle takes token ids, not text"
            ));
        }
        if self.chat_template.is_none() {
            notes.extend(self.unread_template());
        }
        notes
    }

    /// A chat template that is there in a form that is not read.
    fn unread_template(&self) -> Option<String> {
        if let Value::Array(named) = &self.tokenizer_config["chat_template"] {
            let names = named.iter().filter_map(|entry| entry["name"].as_str());
            let names: Vec<&str> = names.collect();
            return Some(format!(
                "none of the chat templates ({}) is called default: the bundle has none",
                names.join(", ")
            ));
        }
        self.holds("chat_template.json").then(|| {
            "chat_template.json is not read: the bundle has no chat template; put its text into chat_template.jinja"
                .to_owned()
        })
    }

    fn holds(&self, name: &str) -> bool {
        self.folders
            .iter()
            .any(|folder| folder.join(name).is_file())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nothing_is_said_of_an_export_that_has_everything() {
        let export = Export {
            config: json!({ "model_type": "llama" }),
            tokenizer: Some(b"{}".to_vec()),
            ..Export::default()
        };
        assert!(export.notes().is_empty());
    }

    #[test]
    fn what_is_missing_and_what_is_not_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["tokenizer.model", "chat_template.json"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let notes = Export::open(&folder.path().join("model.onnx"))
            .unwrap()
            .notes()
            .join("\n");
        for word in [
            "config.json",
            "tokenizer.model is there",
            "chat_template.json",
        ] {
            assert!(notes.contains(word), "no {word} in:\n{notes}");
        }
        let named = Export {
            tokenizer_config: json!({ "chat_template": [{ "name": "rag", "template": "" }] }),
            ..Export::default()
        };
        assert!(named.notes().join("\n").contains("(rag)"));
    }
}
