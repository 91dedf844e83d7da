//! What a client asks for.

use crate::error::{ReadError, check_size};
use crate::lenient::{any_integer, null_as_default, one_or_many};
use crate::message::Message;
use serde::{Deserialize, Serialize};

/// Body of `POST /v1/chat/completions`. What is absent is left to the server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompletionRequest {
    /// The model, as the server calls it.
    pub model: String,
    /// The conversation, the last message being the one to answer.
    pub messages: Vec<Message>,
    /// Whether the answer comes as a stream of events.
    #[serde(default, deserialize_with = "null_as_default")]
    pub stream: bool,
    /// What else comes in the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<StreamOptions>,
    /// How many answers; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u32>,
    /// Most tokens of the answer, as every server understands it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// Most tokens of the answer, as newer clients call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_completion_tokens: Option<u64>,
    /// How daring the choice of tokens is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Only the most likely tokens whose probabilities reach this together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Seed of the random numbers. A negative one is read as its two's complement.
    #[serde(
        default,
        deserialize_with = "any_integer",
        skip_serializing_if = "Option::is_none"
    )]
    pub seed: Option<u64>,
    /// Texts that end the answer. One of them may come without a list around it.
    #[serde(
        default,
        deserialize_with = "one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub stop: Vec<String>,
}

/// What else comes in a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamOptions {
    /// A last chunk without choices that tells the [`Usage`](crate::Usage).
    #[serde(default, deserialize_with = "null_as_default")]
    pub include_usage: bool,
}

impl CompletionRequest {
    /// Reads a body of at most `max_bytes`.
    ///
    /// # Errors
    /// [`ReadError::TooLarge`], [`ReadError::Malformed`].
    pub fn read(json: &[u8], max_bytes: usize) -> Result<CompletionRequest, ReadError> {
        check_size(json, max_bytes)?;
        Ok(serde_json::from_slice(json)?)
    }

    /// The body. A number that JSON has no form for becomes `null`, which leaves it to the server.
    pub fn to_json(&self) -> Vec<u8> {
        // Strings and numbers always have a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Most tokens of the answer, by whatever name.
    pub fn max_answer_tokens(&self) -> Option<u64> {
        self.max_completion_tokens.or(self.max_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Role;
    use proptest::prelude::*;

    const MAX_BYTES: usize = 1 << 16;

    #[test]
    fn requests_of_known_clients_are_read() {
        let full = r#"{"model":"m","messages":[{"role":"developer","content":"Be brief."},
            {"role":"user","content":[{"type":"text","text":"Hi"}]}],"stream":true,
            "stream_options":{"include_usage":true},"max_completion_tokens":9,"temperature":0.5,"top_p":1,
            "seed":-1,"stop":"\n","presence_penalty":0,"logit_bias":{},"tools":[],"user":"somebody"}"#;
        let request = CompletionRequest::read(full.as_bytes(), MAX_BYTES).unwrap();
        assert_eq!(
            (
                request.messages[0].role,
                request.messages[1].content.as_str()
            ),
            (Role::Developer, "Hi")
        );
        assert_eq!(
            (
                request.max_answer_tokens(),
                request.seed,
                request.temperature
            ),
            (Some(9), Some(u64::MAX), Some(0.5))
        );
        assert_eq!(request.stop, ["\n"]);
        assert!(request.stream && request.stream_options.unwrap().include_usage);

        let sparse = r#"{"model":"m","messages":[],"stream":null,"stop":null,"seed":null,"max_tokens":null}"#;
        let request = CompletionRequest::read(sparse.as_bytes(), MAX_BYTES).unwrap();
        assert_eq!(
            request,
            CompletionRequest {
                model: "m".into(),
                ..CompletionRequest::default()
            }
        );
    }

    #[test]
    fn what_is_no_request_is_refused_without_being_quoted() {
        for json in [
            "",
            "secret",
            "[]",
            "{}",
            r#"{"model":"m"}"#,
            r#"{"model":"m","messages":"secret"}"#,
            r#"{"model":"m","messages":[{"role":"secret"}]}"#,
            r#"{"model":"m","messages":[],"max_tokens":-1}"#,
            r#"{"model":"m","messages":[],"stop":[7]}"#,
        ] {
            let error = CompletionRequest::read(json.as_bytes(), MAX_BYTES).unwrap_err();
            assert!(matches!(error, ReadError::Malformed { .. }), "{json}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
        let nested = "[".repeat(MAX_BYTES);
        assert!(CompletionRequest::read(nested.as_bytes(), MAX_BYTES).is_err());
        assert_eq!(
            CompletionRequest::read(&[b' '; 11], 10),
            Err(ReadError::TooLarge { limit_bytes: 10 })
        );
    }

    fn requests() -> impl Strategy<Value = CompletionRequest> {
        let role = proptest::sample::select(vec![Role::System, Role::User, Role::Assistant]);
        let message = (role, any::<String>()).prop_map(|(role, content)| Message { role, content });
        (
            any::<String>(),
            proptest::collection::vec(message, 0..5),
            any::<(bool, Option<bool>, Option<u32>, Option<u64>, Option<u64>)>(),
            proptest::option::of(0.0f32..2.0),
            proptest::collection::vec(any::<String>(), 0..4),
        )
            .prop_map(|(model, messages, settings, temperature, stop)| {
                let (stream, usage, n, max_tokens, seed) = settings;
                CompletionRequest {
                    model,
                    messages,
                    stream,
                    stream_options: usage.map(|include_usage| StreamOptions { include_usage }),
                    n,
                    max_tokens,
                    temperature,
                    seed,
                    stop,
                    ..CompletionRequest::default()
                }
            })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(request in requests()) {
            let json = request.to_json();
            prop_assert_eq!(CompletionRequest::read(&json, json.len()), Ok(request));
        }
    }
}
