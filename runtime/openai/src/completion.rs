//! An answer in one piece.

use crate::error::{ReadError, check_size};
use crate::error_object::code_of;
use crate::lenient::null_as_default;
use crate::message::Message;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Body of a response that is no stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "object", rename = "chat.completion")]
pub struct Completion {
    /// The server's name for this answer.
    #[serde(default, deserialize_with = "null_as_default")]
    pub id: String,
    /// When it was made, in seconds since 1970.
    #[serde(default, deserialize_with = "null_as_default")]
    pub created: u64,
    /// The model that answered.
    #[serde(default, deserialize_with = "null_as_default")]
    pub model: String,
    /// The answers.
    #[serde(default, deserialize_with = "null_as_default")]
    pub choices: Vec<Choice>,
    /// What was counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// Its number, from 0.
    #[serde(default, deserialize_with = "null_as_default")]
    pub index: u32,
    /// The answer.
    pub message: Message,
    /// Why it ended: `stop`, `length`, `content_filter` and what servers add.
    #[serde(default)]
    pub finish_reason: Option<String>,
}

/// Tokens that the server counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Of the prompt, in its chat template.
    #[serde(default, deserialize_with = "null_as_default")]
    pub prompt_tokens: u64,
    /// Of the answer.
    #[serde(default, deserialize_with = "null_as_default")]
    pub completion_tokens: u64,
    /// Both.
    #[serde(default, deserialize_with = "null_as_default")]
    pub total_tokens: u64,
}

impl Usage {
    /// Of a prompt and its answer.
    pub fn new(prompt_tokens: u64, completion_tokens: u64) -> Usage {
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
        }
    }
}

impl Completion {
    /// Reads a body of at most `max_bytes`.
    ///
    /// # Errors
    /// [`ReadError`]; [`ReadError::Reported`] when it reports a failure.
    pub fn read(json: &[u8], max_bytes: usize) -> Result<Completion, ReadError> {
        #[derive(Deserialize)]
        struct Reported {
            error: Option<Value>,
        }
        check_size(json, max_bytes)?;
        let reported: Reported = serde_json::from_slice(json)?;
        if let Some(error) = reported.error {
            return Err(ReadError::Reported {
                code: code_of(&error),
            });
        }
        let completion: Completion = serde_json::from_slice(json)?;
        match completion.choices.is_empty() {
            true => Err(ReadError::NoChoices),
            false => Ok(completion),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Role;

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        let completion = Completion {
            id: "1".into(),
            created: 5,
            model: "m".into(),
            choices: vec![Choice {
                index: 0,
                message: Message {
                    role: Role::Assistant,
                    content: "Hi".into(),
                },
                finish_reason: Some("stop".into()),
            }],
            usage: Some(Usage::new(7, 2)),
        };
        let json = serde_json::to_vec(&completion).unwrap();
        assert!(json.starts_with(br#"{"object":"chat.completion","id":"1""#));
        assert_eq!(Completion::read(&json, json.len()), Ok(completion));
    }

    #[test]
    fn sparse_answers_are_read_and_failures_told() {
        let sparse =
            br#"{"choices":[{"message":{"role":"assistant","content":"Hi"}}],"usage":null}"#;
        let completion = Completion::read(sparse, 1000).unwrap();
        assert_eq!(completion.choices[0].message.content, "Hi");
        for (json, error) in [
            ("{}", ReadError::NoChoices),
            (r#"{"choices":[]}"#, ReadError::NoChoices),
            (
                r#"{"error":{"message":"my secret","code":"overloaded"}}"#,
                ReadError::Reported {
                    code: Some("overloaded".into()),
                },
            ),
            ("7", ReadError::Malformed { line: 1, column: 1 }),
        ] {
            assert_eq!(
                Completion::read(json.as_bytes(), 1000),
                Err(error),
                "{json}"
            );
        }
    }
}
