//! Why something could not be read.

/// Why bytes are no part of the API. No variant holds text of users: of what a server says about a failure only its
/// code is kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// More bytes than the reader takes.
    #[error("it is larger than {limit_bytes} bytes")]
    TooLarge {
        /// The bound.
        limit_bytes: usize,
    },
    /// Not JSON, or not with the fields that belong there.
    #[error("line {line}, column {column} holds something else than the API has there")]
    Malformed {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// JSON without any choice to read: another object of the API, or of another one.
    #[error("it is no chat completion: it holds no choices")]
    NoChoices,
    /// The server reports a failure instead.
    #[error("the server reported a failure{}", .code.as_deref().map(|code| format!(", {code}")).unwrap_or_default())]
    Reported {
        /// The server's code for it.
        code: Option<String>,
    },
}

impl From<serde_json::Error> for ReadError {
    /// Keeps the place only: the message quotes what it did not expect.
    fn from(error: serde_json::Error) -> ReadError {
        ReadError::Malformed {
            line: error.line(),
            column: error.column(),
        }
    }
}

/// Refuses more bytes than are taken.
///
/// # Errors
/// [`ReadError::TooLarge`].
pub(crate) fn check_size(bytes: &[u8], limit_bytes: usize) -> Result<(), ReadError> {
    match bytes.len() <= limit_bytes {
        true => Ok(()),
        false => Err(ReadError::TooLarge { limit_bytes }),
    }
}
