//! The JSON of chat completions, as OpenAI's API reference has it and compatible servers follow it.

use super::error::{CloudError, ProtocolProblem};
use crate::Message;
use serde::{Deserialize, Serialize};

/// An error code longer than this is text, not a code.
const MAX_CODE_BYTES: usize = 64;

/// Body of `POST /v1/chat/completions`.
#[derive(Serialize)]
pub(super) struct CompletionRequest<'a> {
    pub(super) model: &'a str,
    pub(super) messages: &'a [Message],
    pub(super) stream: bool,
    pub(super) stream_options: StreamOptions,
    pub(super) max_tokens: usize,
    pub(super) temperature: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) top_p: Option<f32>,
    pub(super) seed: u64,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub(super) stop: &'a [String],
}

#[derive(Serialize)]
pub(super) struct StreamOptions {
    pub(super) include_usage: bool,
}

/// Tokens that the endpoint counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct CloudUsage {
    /// Of the prompt, in its chat template.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Of the answer.
    #[serde(default)]
    pub completion_tokens: u64,
}

/// What one event of the stream says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) text: String,
    pub(super) finish_reason: Option<String>,
    pub(super) usage: Option<CloudUsage>,
}

#[derive(Deserialize)]
struct RawChunk {
    choices: Option<Vec<RawChoice>>,
    usage: Option<CloudUsage>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct RawChoice {
    #[serde(default)]
    index: u32,
    #[serde(default)]
    delta: RawDelta,
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct RawDelta {
    content: Option<String>,
}

impl Chunk {
    /// Reads the data of an event.
    ///
    /// # Errors
    /// [`CloudError::Reported`] when it reports a failure, [`CloudError::Protocol`] when it is something else.
    pub(super) fn parse(data: &str) -> Result<Chunk, CloudError> {
        let no_chunk = CloudError::Protocol(ProtocolProblem::NotCompletionChunk);
        let raw: RawChunk = serde_json::from_str(data).map_err(|_| no_chunk.clone())?;
        if let Some(error) = raw.error.filter(|error| !error.is_null()) {
            return Err(CloudError::Reported {
                code: code_in(&error),
            });
        }
        if raw.choices.is_none() && raw.usage.is_none() {
            return Err(no_chunk);
        }
        let mut chunk = Chunk {
            usage: raw.usage,
            ..Chunk::default()
        };
        let first = raw.choices.into_iter().flatten();
        for choice in first.filter(|choice| choice.index == 0) {
            chunk
                .text
                .push_str(&choice.delta.content.unwrap_or_default());
            chunk.finish_reason = choice.finish_reason.or(chunk.finish_reason);
        }
        Ok(chunk)
    }
}

/// The error code in the body of a failed response, `{"error": {"code": ..., "type": ...}}`.
pub(super) fn error_code(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    code_in(body.get("error")?)
}

/// The code of an error object. Messages are left out: servers quote requests in them.
fn code_in(error: &serde_json::Value) -> Option<String> {
    ["code", "type"]
        .into_iter()
        .find_map(|field| match error.get(field)? {
            serde_json::Value::String(code) if is_code(code) => Some(code.clone()),
            serde_json::Value::Number(code) => Some(code.to_string()),
            _ => None,
        })
}

fn is_code(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_CODE_BYTES
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_of_known_servers_are_read() {
        let openai = r#"{"id":"1","object":"chat.completion.chunk","created":1,"model":"m",
            "choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},"logprobs":null,"finish_reason":null}],
            "usage":null}"#;
        assert_eq!(Chunk::parse(openai).unwrap().text, "Hi");
        let last = r#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#;
        let last = Chunk::parse(last).unwrap();
        assert_eq!(
            (last.text.as_str(), last.finish_reason.as_deref()),
            ("", Some("length"))
        );
        let usage =
            r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}"#;
        assert_eq!(
            Chunk::parse(usage).unwrap().usage,
            Some(CloudUsage {
                prompt_tokens: 7,
                completion_tokens: 2
            })
        );
        let filter = r#"{"choices":[],"prompt_filter_results":[]}"#;
        assert_eq!(Chunk::parse(filter), Ok(Chunk::default()));
        let other_choice = r#"{"choices":[{"index":1,"delta":{"content":"no"}}]}"#;
        assert_eq!(Chunk::parse(other_choice).unwrap().text, "");
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        for data in [
            "",
            "7",
            "{}",
            "[]",
            "{\"choices\": 7}",
            "<html>",
            "{\"choices\":",
        ] {
            assert_eq!(
                Chunk::parse(data),
                Err(CloudError::Protocol(ProtocolProblem::NotCompletionChunk)),
                "{data}"
            );
        }
    }

    #[test]
    fn of_an_error_only_its_code_is_kept() {
        let said = r#"{"error":{"message":"cannot answer 'my secret'","type":"server_error","code":null}}"#;
        assert_eq!(
            Chunk::parse(said),
            Err(CloudError::Reported {
                code: Some("server_error".into())
            })
        );
        for (body, code) in [
            (
                r#"{"error":{"code":"context_length_exceeded"}}"#,
                Some("context_length_exceeded"),
            ),
            (r#"{"error":{"code":429}}"#, Some("429")),
            (r#"{"error":{"code":"a text: my secret"}}"#, None),
            (r#"{"error":"my secret"}"#, None),
            ("my secret", None),
        ] {
            assert_eq!(error_code(body.as_bytes()).as_deref(), code, "{body}");
        }
    }
}
