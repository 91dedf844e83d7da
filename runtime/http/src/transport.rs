//! What carries a request: the library's own HTTPS, or an app's HTTP stack.
//!
//! A transport moves bytes and knows nothing of what they say, of retries or policy. Deadlines, size bounds and the
//! reading of the response are the client's, so every transport gets them.

use crate::request::{HttpHeader, HttpRequest};
use std::sync::Arc;

/// Carries HTTP requests.
///
/// Implement it to use an app's own stack (`URLSession`, OkHttp) with its proxies, trust store and metrics.
///
/// A transport sends a request once, follows no redirect, retries nothing, caches nothing, hands bodies on as they come,
/// undoing no content encoding, and logs neither headers nor bodies: they hold a key and a user's text.
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
    /// The headers.
    pub headers: Vec<HttpHeader>,
}

impl ResponseHead {
    /// The value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value.as_str())
    }
}

/// Why a transport could not carry a request or its response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The request is none that the transport can send.
    #[error("the request cannot be sent: {problem}")]
    InvalidRequest {
        /// What is wrong with it.
        problem: &'static str,
    },
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
