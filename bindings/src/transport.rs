//! An app's own HTTP stack.

use niwaki_http as http;
use std::sync::Arc;
use std::time::Duration;

/// A `POST`. It holds a key and a user's text: neither belongs into a log.
#[derive(Clone, PartialEq, Eq, uniffi::Record)]
pub struct HttpRequest {
    /// Absolute URL, `https` unless plaintext was allowed.
    pub url: String,
    /// Headers, among them the authorization.
    pub headers: Vec<HttpHeader>,
    /// The body, JSON.
    pub body: Vec<u8>,
    /// How long finding the host, connecting and the TLS handshake may take together.
    pub connect_timeout_ms: u64,
    /// How long the response may stay silent. The library's own deadlines come first: it is for stacks that would
    /// give up sooner unless they are told.
    pub read_timeout_ms: u64,
}

/// A header of a request or a response.
#[derive(Clone, PartialEq, Eq, uniffi::Record)]
pub struct HttpHeader {
    /// Its name, in any case.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// Status and headers of a response.
#[derive(Clone, PartialEq, Eq, uniffi::Record)]
pub struct ResponseHead {
    /// The status.
    pub status: u16,
    /// The headers. Those that are needed are `content-type` and `retry-after`.
    pub headers: Vec<HttpHeader>,
}

/// Why a transport could not carry a request or its response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, uniffi::Error)]
pub enum TransportError {
    /// Nothing listens at the address.
    #[error("refused")]
    Refused,
    /// The network or the host cannot be reached.
    #[error("unreachable")]
    Unreachable,
    /// The host's name has no address.
    #[error("the name has no address")]
    Dns,
    /// No trusted connection: an unknown issuer, an expired certificate, a wrong name.
    #[error("not trusted: {reason}")]
    Tls {
        /// What the HTTP stack says. It holds no text of users.
        reason: String,
    },
    /// Connecting took too long.
    #[error("connecting took too long")]
    ConnectTimeout,
    /// The connection broke, or was closed.
    #[error("interrupted")]
    Interrupted,
    /// What came is not HTTP.
    #[error("not HTTP")]
    NotHttp,
    /// Anything else; also an exception that is none of these.
    #[error("failed")]
    Failed,
}

/// Carries HTTP requests for a router.
///
/// A transport sends a `POST` once, follows no redirect, retries nothing, caches nothing and logs neither headers
/// nor bodies. Deadlines, retries and the reading of the stream are the library's.
#[uniffi::export(with_foreign)]
pub trait Transport: Send + Sync {
    /// Prepares a request. Nothing is opened or resolved before [`Exchange::send`].
    ///
    /// # Errors
    /// [`TransportError`] when it cannot be sent at all.
    fn exchange(&self, request: HttpRequest) -> Result<Arc<dyn Exchange>, TransportError>;
}

/// One request and its response. `send` and `read` block; they are called one after the other, from a thread of
/// the library that does nothing else. One that never returns keeps that thread, but no answer.
#[uniffi::export(with_foreign)]
pub trait Exchange: Send + Sync {
    /// Connects, sends the request and waits for status and headers of the response.
    ///
    /// # Errors
    /// [`TransportError`].
    fn send(&self) -> Result<ResponseHead, TransportError>;

    /// Waits for more of the body; absent at its end. It hands on what has come without waiting for a whole
    /// buffer of it.
    ///
    /// # Errors
    /// [`TransportError`].
    fn read(&self) -> Result<Option<Vec<u8>>, TransportError>;

    /// Closes the connection: a call that waits returns. Comes from another thread, once at most, when nobody
    /// wants the rest of the response.
    ///
    /// # Errors
    /// None that matter.
    fn cancel(&self) -> Result<(), TransportError>;
}

/// Longest reason that is kept of what an HTTP stack says.
const MAX_REASON_CHARS: usize = 200;

/// An app's transport, as the engine wants it.
pub(crate) struct AppTransport(pub(crate) Arc<dyn Transport>);

struct AppExchange(Arc<dyn Exchange>);

impl http::Transport for AppTransport {
    fn exchange(
        &self,
        request: http::HttpRequest,
    ) -> Result<Arc<dyn http::Exchange>, http::TransportError> {
        if request.method != http::Method::POST {
            return Err(http::TransportError::InvalidRequest {
                problem: "an app's transport carries POST only",
            });
        }
        let exchange = self.0.exchange(HttpRequest {
            url: request.url.to_string(),
            headers: request.headers.into_iter().map(HttpHeader::from).collect(),
            body: request.body.unwrap_or_default(),
            connect_timeout_ms: millis(request.connect_timeout),
            read_timeout_ms: millis(request.read_timeout),
        })?;
        Ok(Arc::new(AppExchange(exchange)))
    }
}

impl http::Exchange for AppExchange {
    fn send(&self) -> Result<http::ResponseHead, http::TransportError> {
        let head = self.0.send()?;
        Ok(http::ResponseHead {
            status: head.status,
            headers: head
                .headers
                .into_iter()
                .map(http::HttpHeader::from)
                .collect(),
        })
    }

    fn read(&self) -> Result<Option<Vec<u8>>, http::TransportError> {
        Ok(self.0.read()?)
    }

    fn cancel(&self) {
        // It was for the connection's sake; nobody is left to tell.
        let _ = self.0.cancel();
    }
}

impl From<http::HttpHeader> for HttpHeader {
    fn from(header: http::HttpHeader) -> Self {
        HttpHeader {
            name: header.name,
            value: header.value,
        }
    }
}

impl From<HttpHeader> for http::HttpHeader {
    fn from(header: HttpHeader) -> Self {
        http::HttpHeader {
            name: header.name,
            value: header.value,
        }
    }
}

impl From<TransportError> for http::TransportError {
    fn from(error: TransportError) -> Self {
        match error {
            TransportError::Refused => http::TransportError::Refused,
            TransportError::Unreachable => http::TransportError::Unreachable,
            TransportError::Dns => http::TransportError::Dns,
            TransportError::Tls { reason } => http::TransportError::Tls {
                reason: reason.chars().take(MAX_REASON_CHARS).collect(),
            },
            TransportError::ConnectTimeout => http::TransportError::ConnectTimeout,
            TransportError::Interrupted => http::TransportError::Interrupted,
            TransportError::NotHttp => http::TransportError::NotHttp,
            TransportError::Failed => http::TransportError::Failed,
        }
    }
}

/// An exception that the app's transport does not declare.
impl From<uniffi::UnexpectedUniFFICallbackError> for TransportError {
    fn from(_: uniffi::UnexpectedUniFFICallbackError) -> Self {
        TransportError::Failed
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
