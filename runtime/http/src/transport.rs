//! What carries a request to an endpoint: the library's own HTTPS, or an app's HTTP stack.
//!
//! A transport moves bytes and knows nothing of chat completions, retries or policy. Deadlines, size bounds and
//! the reading of the response are the client's, so every transport gets them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Carries HTTP requests.
///
/// Implement it to use an app's own stack (`URLSession`, OkHttp) with its proxies, trust store and metrics.
///
/// A transport sends a `POST` once, follows no redirect, retries nothing, caches nothing and logs neither headers
/// nor bodies: they hold a key and a user's text.
pub trait Transport: Send + Sync {
    /// Prepares a request. Nothing is opened or resolved before [`Exchange::send`].
    ///
    /// # Errors
    /// [`TransportError`] when it cannot be sent at all.
    fn exchange(&self, request: HttpRequest) -> Result<Arc<dyn Exchange>, TransportError>;
}

/// One request and its response.
///
/// [`send`](Self::send) and [`read`](Self::read) block. They come one after the other from a thread that does
/// nothing else; one that never returns keeps that thread, but not the client, which gives up at its deadline.
pub trait Exchange: Send + Sync {
    /// Connects, sends the request and waits for status and headers of the response.
    ///
    /// # Errors
    /// [`TransportError`].
    fn send(&self) -> Result<ResponseHead, TransportError>;

    /// Waits for more of the body, decoded from any transfer encoding; `None` at its end. It hands on what has
    /// come without waiting for a whole buffer of it.
    ///
    /// # Errors
    /// [`TransportError`].
    fn read(&self) -> Result<Option<Vec<u8>>, TransportError>;

    /// Closes the connection: a call that waits returns. Comes from another thread, once at most, when nobody
    /// wants the rest of the response.
    fn cancel(&self);
}

/// Status and headers of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// The status.
    pub status: u16,
    /// The headers. Those that are needed are `content-type` and `retry-after`.
    pub headers: Vec<HttpHeader>,
}

/// A `POST`. Its `Debug` output holds neither header values nor the body.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpRequest {
    /// Absolute URL, `https` unless plaintext was allowed.
    pub url: String,
    /// Headers, among them the authorization.
    pub headers: Vec<HttpHeader>,
    /// The body, JSON.
    pub body: Vec<u8>,
    /// How long finding the host, connecting and the TLS handshake may take together.
    pub connect_timeout: Duration,
    /// How long the response may stay silent. The client's own deadlines come first: it is for stacks that would
    /// give up sooner unless they are told.
    pub read_timeout: Duration,
}

/// A header of a request or a response.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpHeader {
    /// Its name, in any case.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl fmt::Debug for HttpRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpRequest")
            .field("url", &self.url)
            .field("headers", &self.headers)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for HttpHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HttpHeader")
            .field(&self.name)
            .finish_non_exhaustive()
    }
}

/// Why a transport could not carry a request or its response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// Nothing listens at the address.
    #[error("the connection was refused")]
    Refused,
    /// The network or the host cannot be reached.
    #[error("the host cannot be reached")]
    Unreachable,
    /// The host's name has no address.
    #[error("the host's name cannot be resolved")]
    Dns,
    /// No trusted connection: an unknown issuer, an expired certificate, a wrong name.
    #[error("no trusted TLS connection: {reason}")]
    Tls {
        /// What the TLS library says. It holds no text of users.
        reason: String,
    },
    /// Connecting took too long.
    #[error("connecting took too long")]
    ConnectTimeout,
    /// The connection broke while it was used.
    #[error("the connection broke")]
    Interrupted,
    /// What came is not HTTP.
    #[error("the response is not HTTP")]
    NotHttp,
    /// The transport itself failed: an exception that nobody expected.
    #[error("the transport failed")]
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_prints_neither_its_key_nor_its_text() {
        let request = HttpRequest {
            url: "https://example.org/v1/chat/completions".into(),
            headers: vec![HttpHeader {
                name: "authorization".into(),
                value: "Bearer secret".into(),
            }],
            body: b"a user's words".to_vec(),
            connect_timeout: Duration::from_secs(1),
            read_timeout: Duration::from_secs(1),
        };
        let printed = format!("{request:?}");
        assert!(printed.contains("authorization"), "{printed}");
        assert!(!printed.contains("secret"), "{printed}");
        assert!(!printed.contains("words"), "{printed}");
    }
}
