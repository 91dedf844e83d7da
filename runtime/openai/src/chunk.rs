//! A piece of an answer that streams.

use crate::completion::Usage;
use crate::error::ReadError;
use crate::error_object::code_of;
use crate::lenient::null_as_default;
use crate::message::Role;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// Data of one event of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "object", rename = "chat.completion.chunk")]
pub struct Chunk {
    /// The server's name for the answer, the same in all of its chunks.
    #[serde(default, deserialize_with = "null_as_default")]
    pub id: String,
    /// When the answer was begun, in seconds since 1970.
    #[serde(default, deserialize_with = "null_as_default")]
    pub created: u64,
    /// The model that answers.
    #[serde(default, deserialize_with = "null_as_default")]
    pub model: String,
    /// What the answers go on with.
    #[serde(default, deserialize_with = "null_as_default")]
    pub choices: Vec<ChunkChoice>,
    /// What was counted: in a last chunk without choices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// What one answer goes on with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkChoice {
    /// The answer's number, from 0.
    #[serde(default, deserialize_with = "null_as_default")]
    pub index: u32,
    /// What is added.
    #[serde(default, deserialize_with = "null_as_default")]
    pub delta: Delta,
    /// Why the answer ended; absent before its end.
    #[serde(default)]
    pub finish_reason: Option<String>,
}

/// What is added to an answer.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// Who speaks: in the first chunk of an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

impl fmt::Debug for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delta")
            .field("role", &self.role)
            .field("content_bytes", &self.content.as_ref().map(String::len))
            .finish()
    }
}

impl Chunk {
    /// Reads the data of an event.
    ///
    /// # Errors
    /// [`ReadError::Reported`] when it reports a failure, [`ReadError::Malformed`] and [`ReadError::NoChoices`] when it
    /// is something else.
    pub fn read(data: &str) -> Result<Chunk, ReadError> {
        let raw: RawChunk = serde_json::from_str(data)?;
        if let Some(error) = raw.error {
            return Err(ReadError::Reported {
                code: code_of(&error),
            });
        }
        if raw.choices.is_none() && raw.usage.is_none() {
            return Err(ReadError::NoChoices);
        }
        Ok(Chunk {
            id: raw.id,
            created: raw.created,
            model: raw.model,
            choices: raw.choices.unwrap_or_default(),
            usage: raw.usage,
        })
    }

    /// What the first answer goes on with.
    pub fn text(&self) -> impl Iterator<Item = &str> {
        self.first()
            .filter_map(|choice| choice.delta.content.as_deref())
    }

    /// Why the first answer ended; `None` before its end.
    pub fn finish_reason(&self) -> Option<&str> {
        self.first()
            .filter_map(|choice| choice.finish_reason.as_deref())
            .last()
    }

    fn first(&self) -> impl Iterator<Item = &ChunkChoice> {
        self.choices.iter().filter(|choice| choice.index == 0)
    }
}

/// What an event may hold instead of a chunk, too.
#[derive(Deserialize)]
struct RawChunk {
    #[serde(default, deserialize_with = "null_as_default")]
    id: String,
    #[serde(default, deserialize_with = "null_as_default")]
    created: u64,
    #[serde(default, deserialize_with = "null_as_default")]
    model: String,
    choices: Option<Vec<ChunkChoice>>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(data: &str) -> String {
        Chunk::read(data).unwrap().text().collect()
    }

    #[test]
    fn chunks_of_known_servers_are_read() {
        let openai = r#"{"id":"1","object":"chat.completion.chunk","created":1,"model":"m",
            "choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},"logprobs":null,"finish_reason":null}],
            "usage":null}"#;
        assert_eq!(text(openai), "Hi");
        assert_eq!(Chunk::read(openai).unwrap().finish_reason(), None);
        let last = r#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#;
        assert_eq!(text(last), "");
        assert_eq!(Chunk::read(last).unwrap().finish_reason(), Some("length"));
        let usage =
            r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}"#;
        assert_eq!(Chunk::read(usage).unwrap().usage, Some(Usage::new(7, 2)));
        let filter = r#"{"choices":[],"prompt_filter_results":[]}"#;
        assert_eq!(Chunk::read(filter), Ok(Chunk::default()));
        let other_choice = r#"{"choices":[{"index":1,"delta":{"content":"no"}}]}"#;
        assert_eq!(text(other_choice), "");
        assert_eq!(text(r#"{"id":null,"choices":[{"delta":null}]}"#), "");
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        for data in ["", "7", "[]", "{\"choices\": 7}", "<html>", "{\"choices\":"] {
            let read = Chunk::read(data);
            assert!(matches!(read, Err(ReadError::Malformed { .. })), "{data}");
        }
        assert_eq!(Chunk::read("{}"), Err(ReadError::NoChoices));
    }

    #[test]
    fn of_an_error_only_its_code_is_kept() {
        let said = r#"{"error":{"message":"cannot answer 'my secret'","type":"server_error","code":null}}"#;
        assert_eq!(
            Chunk::read(said),
            Err(ReadError::Reported {
                code: Some("server_error".into())
            })
        );
    }

    #[test]
    fn a_chunk_is_written_as_servers_do_and_prints_no_text() {
        let chunk = Chunk {
            id: "1".into(),
            created: 5,
            model: "m".into(),
            choices: vec![ChunkChoice {
                delta: Delta {
                    role: Some(Role::Assistant),
                    content: Some("secret".into()),
                },
                ..ChunkChoice::default()
            }],
            usage: None,
        };
        assert_eq!(
            serde_json::to_string(&chunk).unwrap(),
            r#"{"object":"chat.completion.chunk","id":"1","created":5,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"secret"},"finish_reason":null}]}"#
        );
        assert!(!format!("{chunk:?}").contains("secret"));
    }
}
