//! The endpoint that a router may ask, and how it can fail.

use crate::error::{NiwakiError, chain};
use crate::transport::{AppTransport, Transport};
use niwaki_http as http;
use niwaki_route::{
    self as route, CloudClient, CloudError, CloudOptions, CloudTimeouts, TimeoutPhase,
};
use std::sync::Arc;
use std::time::Duration;

/// An endpoint that speaks OpenAI's chat completions.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct Endpoint {
    /// Its base URL, with or without `/v1` at its end.
    pub url: String,
    /// The model to ask for, as the endpoint calls it.
    pub model: String,
    /// How long each wait may be.
    pub timeouts: EndpointTimeouts,
    /// How often a request is sent again.
    pub retry: EndpointRetry,
    /// Whether text and key may travel unencrypted to another machine than this one.
    pub allow_plaintext: bool,
}

/// How long each wait may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Record)]
pub struct EndpointTimeouts {
    /// For finding the host, connecting and the TLS handshake.
    pub connect_ms: u64,
    /// From the connection to the head of the response.
    pub first_byte_ms: u64,
    /// Between two lines of the stream.
    pub idle_ms: u64,
    /// For the whole answer, retries and the waits between them included.
    pub total_ms: u64,
}

/// How often, and how soon, a request is sent again before its first text came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Record)]
pub struct EndpointRetry {
    /// Most times it is sent again.
    pub max_retries: u32,
    /// The longest wait before the first retry; it doubles with each.
    pub backoff_ms: u64,
    /// The longest wait. An endpoint that asks for more is not waited for.
    pub max_wait_ms: u64,
}

/// Gives out the API key when a request is about to be sent. The library never keeps it.
#[uniffi::export(with_foreign)]
pub trait ApiKeySource: Send + Sync {
    /// The key; absent for an endpoint that wants none. It may block, on a thread of the library.
    ///
    /// # Errors
    /// Any, when there should be a key but it cannot be had. Nothing is sent then.
    fn api_key(&self) -> Result<Option<String>, NiwakiError>;
}

/// What failed at an endpoint, or on the way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum EndpointFailure {
    /// The app's key source failed.
    KeyUnavailable,
    /// The key holds characters that no header can.
    InvalidKey,
    /// Nothing listens there.
    Refused,
    /// No network, or no route.
    Unreachable,
    /// The name has no address.
    Dns,
    /// Its identity is not proven.
    Tls,
    /// No connection in time.
    ConnectTimeout,
    /// No response in time.
    FirstByteTimeout,
    /// Nothing more came.
    IdleTimeout,
    /// No complete answer in time.
    TotalTimeout,
    /// It does not accept the key.
    Unauthorized,
    /// It accepts no more requests for now.
    RateLimited,
    /// It failed.
    Server,
    /// It knows no such path or model.
    NotFound,
    /// It does not accept the request.
    BadRequest,
    /// It redirects, which is not followed.
    Redirected,
    /// What it sends is no stream of chat completions.
    Protocol,
    /// It sends more than is accepted.
    TooLarge,
    /// It reported a failure within its stream.
    Reported,
    /// The connection ended before the answer did.
    Interrupted,
    /// The app's own transport failed.
    Transport,
}

/// A client of an endpoint, over the app's transport or the library's own.
pub(crate) fn client(
    endpoint: Endpoint,
    api_key: Option<Arc<dyn ApiKeySource>>,
    transport: Option<Arc<dyn Transport>>,
) -> Result<CloudClient, NiwakiError> {
    let transport = match transport {
        Some(transport) => Arc::new(AppTransport(transport)),
        None => own_transport()?,
    };
    let options = CloudOptions {
        timeouts: CloudTimeouts {
            connect: Duration::from_millis(endpoint.timeouts.connect_ms),
            first_byte: Duration::from_millis(endpoint.timeouts.first_byte_ms),
            idle: Duration::from_millis(endpoint.timeouts.idle_ms),
            total: Duration::from_millis(endpoint.timeouts.total_ms),
        },
        retry: route::RetryPolicy {
            max_retries: endpoint.retry.max_retries,
            backoff: Duration::from_millis(endpoint.retry.backoff_ms),
            max_wait: Duration::from_millis(endpoint.retry.max_wait_ms),
        },
        allow_plaintext: endpoint.allow_plaintext,
        ..CloudOptions::new(endpoint.url, endpoint.model)
    };
    CloudClient::new(options, transport, Arc::new(AppKey(api_key))).map_err(|error| {
        NiwakiError::InvalidArgument {
            details: chain(&error),
        }
    })
}

#[cfg(feature = "https")]
fn own_transport() -> Result<Arc<dyn http::Transport>, NiwakiError> {
    Ok(Arc::new(http::HttpsTransport::new()))
}

#[cfg(not(feature = "https"))]
fn own_transport() -> Result<Arc<dyn http::Transport>, NiwakiError> {
    Err(NiwakiError::InvalidArgument {
        details: "this build has no HTTPS of its own; give the router a transport".into(),
    })
}

struct AppKey(Option<Arc<dyn ApiKeySource>>);

impl route::ApiKeySource for AppKey {
    fn api_key(&self) -> Result<Option<String>, route::KeyUnavailable> {
        match &self.0 {
            // What the app says may hold the key.
            Some(source) => source.api_key().map_err(|_| route::KeyUnavailable),
            None => Ok(None),
        }
    }
}

/// The error that a failure of the endpoint is.
pub(crate) fn failed(error: &CloudError, broke_off: bool) -> NiwakiError {
    let details = chain(error);
    let (failure, status, code, retry_after) = match error {
        CloudError::KeyUnavailable => (EndpointFailure::KeyUnavailable, None, &None, None),
        CloudError::InvalidKey => (EndpointFailure::InvalidKey, None, &None, None),
        CloudError::Refused { .. } => (EndpointFailure::Refused, None, &None, None),
        CloudError::Unreachable { .. } => (EndpointFailure::Unreachable, None, &None, None),
        CloudError::Dns { .. } => (EndpointFailure::Dns, None, &None, None),
        CloudError::Tls { .. } => (EndpointFailure::Tls, None, &None, None),
        CloudError::Timeout { phase, .. } => {
            let failure = match phase {
                TimeoutPhase::Connect => EndpointFailure::ConnectTimeout,
                TimeoutPhase::FirstByte => EndpointFailure::FirstByteTimeout,
                TimeoutPhase::Idle => EndpointFailure::IdleTimeout,
                TimeoutPhase::Total => EndpointFailure::TotalTimeout,
            };
            (failure, None, &None, None)
        }
        CloudError::Unauthorized { status, code } => {
            (EndpointFailure::Unauthorized, Some(*status), code, None)
        }
        CloudError::RateLimited { retry_after, code } => {
            (EndpointFailure::RateLimited, Some(429), code, *retry_after)
        }
        CloudError::Server { status, code } => (EndpointFailure::Server, Some(*status), code, None),
        CloudError::NotFound { code } => (EndpointFailure::NotFound, Some(404), code, None),
        CloudError::BadRequest { status, code } => {
            (EndpointFailure::BadRequest, Some(*status), code, None)
        }
        CloudError::Redirected { status } => {
            (EndpointFailure::Redirected, Some(*status), &None, None)
        }
        CloudError::Protocol(_) => (EndpointFailure::Protocol, None, &None, None),
        CloudError::TooLarge { .. } => (EndpointFailure::TooLarge, None, &None, None),
        CloudError::Reported { code } => (EndpointFailure::Reported, None, code, None),
        CloudError::Transport => (EndpointFailure::Transport, None, &None, None),
        CloudError::InterruptedStream => (EndpointFailure::Interrupted, None, &None, None),
        _ => return NiwakiError::Internal { details },
    };
    NiwakiError::Endpoint {
        failure,
        status,
        code: code.clone(),
        retry_after_ms: retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
        broke_off,
        details,
    }
}
