//! The messages of a conversation.

use serde::{Deserialize, Deserializer, Serialize, de};
use std::fmt;

/// Who a message is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Role {
    /// The app: how the model shall behave.
    System,
    /// The same, as newer clients call it.
    Developer,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// A function that the model called.
    Tool,
}

/// One message of a conversation: `{"role": "user", "content": "..."}`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who it is from.
    pub role: Role,
    /// Its text. A list of parts is read as the text of all of them; a part that is no text is an error. Absent, it is
    /// empty.
    #[serde(default, deserialize_with = "text")]
    pub content: String,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("role", &self.role)
            .field("content_bytes", &self.content.len())
            .finish()
    }
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Content {
        Text(String),
        Parts(Vec<Part>),
    }
    #[derive(Deserialize)]
    struct Part {
        #[serde(rename = "type")]
        kind: String,
        text: Option<String>,
    }
    match Option::deserialize(deserializer)? {
        None => Ok(String::new()),
        Some(Content::Text(text)) => Ok(text),
        Some(Content::Parts(parts)) => parts
            .into_iter()
            .map(|part| match part.kind.as_str() {
                "text" => Ok(part.text.unwrap_or_default()),
                _ => Err(de::Error::custom("a part that is no text")),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_a_text_its_parts_or_nothing() {
        for (json, content) in [
            (r#"{"role":"user","content":"Hi"}"#, "Hi"),
            (r#"{"role":"assistant","content":null}"#, ""),
            (r#"{"role":"assistant","tool_calls":[]}"#, ""),
            (
                r#"{"role":"user","name":"x","content":[{"type":"text","text":"H"},{"type":"text","text":"i"}]}"#,
                "Hi",
            ),
        ] {
            let message: Message = serde_json::from_str(json).unwrap();
            assert_eq!(message.content, content, "{json}");
        }
        for json in [
            r#"{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:"}}]}"#,
            r#"{"role":"user","content":7}"#,
            r#"{"role":"somebody","content":"Hi"}"#,
            r#"{"content":"Hi"}"#,
        ] {
            assert!(serde_json::from_str::<Message>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn a_message_prints_no_text() {
        let message = Message {
            role: Role::User,
            content: "my secret".into(),
        };
        assert!(!format!("{message:?}").contains("secret"));
    }
}
