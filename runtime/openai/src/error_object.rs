//! How a server reports a failure.

use crate::lenient::null_as_default;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// An error code longer than this is text, not a code.
const MAX_CODE_BYTES: usize = 64;

/// Body of a failed response, and data of an event that reports a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What failed.
    pub error: ErrorObject,
}

/// What failed. Servers quote requests in their messages, so its debug output leaves the message out.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorObject {
    /// For a person.
    #[serde(default, deserialize_with = "null_as_default")]
    pub message: String,
    /// A kind of failure, such as `invalid_request_error`.
    #[serde(rename = "type", default, deserialize_with = "null_as_default")]
    pub kind: String,
    /// The field of the request that is to blame.
    pub param: Option<String>,
    /// A name for the failure, such as `context_length_exceeded`.
    pub code: Option<String>,
}

impl ErrorBody {
    /// The code in the body of a failed response, if it holds one: `code`, else `type`, where these are short names and
    /// no text. Whatever else servers put there is passed over.
    pub fn code_in(json: &[u8]) -> Option<String> {
        let body: Value = serde_json::from_slice(json).ok()?;
        code_of(body.get("error")?)
    }
}

impl fmt::Debug for ErrorObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ErrorObject")
            .field("code", &self.code.as_ref().filter(|code| is_code(code)))
            .finish_non_exhaustive()
    }
}

/// The code of an error object.
pub(crate) fn code_of(error: &Value) -> Option<String> {
    ["code", "type"]
        .into_iter()
        .find_map(|field| match error.get(field)? {
            Value::String(code) if is_code(code) => Some(code.clone()),
            Value::Number(code) => Some(code.to_string()),
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
    fn of_a_failed_response_only_its_code_is_kept() {
        for (body, code) in [
            (
                r#"{"error":{"code":"context_length_exceeded"}}"#,
                Some("context_length_exceeded"),
            ),
            (
                r#"{"error":{"message":"my secret","type":"server_error","code":null}}"#,
                Some("server_error"),
            ),
            (r#"{"error":{"code":429}}"#, Some("429")),
            (r#"{"error":{"code":"a text: my secret"}}"#, None),
            (r#"{"error":"my secret"}"#, None),
            ("my secret", None),
            ("", None),
        ] {
            assert_eq!(
                ErrorBody::code_in(body.as_bytes()).as_deref(),
                code,
                "{body}"
            );
        }
    }

    #[test]
    fn an_error_is_read_as_it_was_written_and_prints_no_message() {
        let body = ErrorBody {
            error: ErrorObject {
                message: "my secret".into(),
                kind: "invalid_request_error".into(),
                param: None,
                code: Some("some_code".into()),
            },
        };
        let json = serde_json::to_string(&body).unwrap();
        assert_eq!(
            json,
            r#"{"error":{"message":"my secret","type":"invalid_request_error","param":null,"code":"some_code"}}"#
        );
        assert_eq!(serde_json::from_str::<ErrorBody>(&json).unwrap(), body);
        assert_eq!(
            ErrorBody::code_in(json.as_bytes()).as_deref(),
            Some("some_code")
        );
        let printed = format!("{body:?}");
        assert!(printed.contains("some_code") && !printed.contains("secret"));
    }
}
