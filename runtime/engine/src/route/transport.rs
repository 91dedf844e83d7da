//! What carries a request to an endpoint: the library's own HTTPS, or an app's HTTP stack.
//!
//! A transport moves bytes and knows nothing of chat completions, retries or policy. Deadlines after the
//! connection is up, size bounds and the reading of the response are the client's, so every transport gets them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

/// Moves one HTTP request out and its response in.
///
/// Implement it to use an app's own stack (`URLSession`, OkHttp) with its proxies, trust store and metrics.
pub trait Transport: Send + Sync {
    /// Begins to send `request` and returns at once; what comes back goes to `response`, from any thread.
    ///
    /// A transport sends a `POST` once, follows no redirect, retries nothing, caches nothing and logs neither
    /// headers nor bodies: they hold a key and a user's text. It gives up connecting after
    /// [`HttpRequest::connect_timeout`].
    fn start(&self, request: HttpRequest, response: Arc<ResponseSink>) -> Box<dyn Exchange>;
}

/// A request under way.
pub trait Exchange: Send + Sync {
    /// Closes the connection. It does not wait, may come from any thread, and may come after the end.
    fn cancel(&self);
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
}

/// Takes in a response. Every method may be called from any thread, one call at a time.
pub struct ResponseSink {
    events: Sender<ResponseEvent>,
    left_bytes: AtomicUsize,
}

/// What a transport reported.
#[derive(Debug)]
pub(super) enum ResponseEvent {
    Head {
        status: u16,
        headers: Vec<HttpHeader>,
    },
    Data(Vec<u8>),
    TooLarge,
    End,
    Failed(TransportError),
}

impl ResponseSink {
    /// A sink that takes at most `max_bytes` of body, and the other end of it.
    pub(super) fn new(max_bytes: usize) -> (Arc<ResponseSink>, Receiver<ResponseEvent>) {
        let (events, receiver) = mpsc::channel();
        let sink = ResponseSink {
            events,
            left_bytes: AtomicUsize::new(max_bytes),
        };
        (Arc::new(sink), receiver)
    }

    /// Status and headers came. `false`: nobody wants the rest, close the connection.
    pub fn head(&self, status: u16, headers: Vec<HttpHeader>) -> bool {
        self.send(ResponseEvent::Head { status, headers })
    }

    /// A part of the body came, decoded from any transfer encoding. `false`: nobody wants the rest, or it is
    /// more than the client accepts; close the connection.
    pub fn data(&self, bytes: &[u8]) -> bool {
        let taken = self
            .left_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(bytes.len())
            });
        match taken {
            Ok(_) => self.send(ResponseEvent::Data(bytes.to_vec())),
            Err(_) => {
                self.send(ResponseEvent::TooLarge);
                false
            }
        }
    }

    /// The body is complete.
    pub fn end(&self) {
        self.send(ResponseEvent::End);
    }

    /// The request or its response failed.
    pub fn fail(&self, error: TransportError) {
        self.send(ResponseEvent::Failed(error));
    }

    fn send(&self, event: ResponseEvent) -> bool {
        self.events.send(event).is_ok()
    }
}

impl fmt::Debug for ResponseSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseSink").finish_non_exhaustive()
    }
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
        };
        let printed = format!("{request:?}");
        assert!(printed.contains("authorization"), "{printed}");
        assert!(!printed.contains("secret"), "{printed}");
        assert!(!printed.contains("words"), "{printed}");
    }

    #[test]
    fn a_body_beyond_the_bound_is_refused_and_not_kept() {
        let (sink, events) = ResponseSink::new(3);
        assert!(sink.data(b"abc"));
        assert!(!sink.data(b"d"));
        assert!(matches!(events.recv(), Ok(ResponseEvent::Data(bytes)) if bytes == b"abc"));
        assert!(matches!(events.recv(), Ok(ResponseEvent::TooLarge)));
    }

    #[test]
    fn a_transport_learns_that_nobody_listens_any_more() {
        let (sink, events) = ResponseSink::new(3);
        drop(events);
        assert!(!sink.head(200, Vec::new()));
        assert!(!sink.data(b"a"));
    }
}
