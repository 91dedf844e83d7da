//! Why an endpoint gave no answer.

use super::endpoint::EndpointProblem;
use niwaki_http::TransportError;
use niwaki_openai::ReadError;
use std::time::Duration;

/// Which wait was too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutPhase {
    /// Finding the host, connecting, the TLS handshake.
    Connect,
    /// From the request to the head of the response.
    FirstByte,
    /// Between two lines of the stream. Single bytes that trickle in do not count.
    Idle,
    /// The whole request, retries included.
    Total,
}

/// What an endpoint sent that is no stream of chat completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolProblem {
    /// Not even HTTP.
    NotHttp,
    /// A status that no chat completion has.
    Status(u16),
    /// The response is not `text/event-stream`.
    NotEventStream,
    /// An event whose data is not a completion chunk in JSON.
    NotCompletionChunk,
}

/// What was larger than allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooLarge {
    /// One event of the stream.
    Event,
    /// The whole response.
    Response,
}

/// Why an endpoint gave no answer, or not all of it. No variant holds text of users: of what an endpoint says
/// about an error only its code is kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloudError {
    /// The endpoint is no URL that can be used.
    #[error("the endpoint is not usable: {problem}; give a URL such as https://api.example.com")]
    InvalidEndpoint {
        /// What is wrong with it.
        problem: EndpointProblem,
    },
    /// The text would travel unencrypted to another machine.
    #[error(
        "{host} is another machine, and http would send the text and the key unencrypted; use https, or allow \
         plaintext"
    )]
    PlaintextForbidden {
        /// The endpoint's host.
        host: String,
    },
    /// The prompt is a text to continue, and the endpoint answers conversations.
    #[error(
        "this prompt cannot go to the endpoint: it is a text to continue, and the endpoint answers chats"
    )]
    PlainPrompt,
    /// The key holds characters that no header can.
    #[error("the API key holds characters that a key cannot have; is there a line break in it?")]
    InvalidKey,
    /// The app did not give out its key.
    #[error("the app has no API key to give out: its key source failed")]
    KeyUnavailable,
    /// Nothing listens at the endpoint.
    #[error("{host} refused the connection; is the server running, and the port right?")]
    Refused {
        /// The endpoint's host.
        host: String,
    },
    /// No way to the endpoint.
    #[error("{host} cannot be reached; is the device online?")]
    Unreachable {
        /// The endpoint's host.
        host: String,
    },
    /// The endpoint's name has no address.
    #[error("the name {host} cannot be resolved; is it spelled right, and the device online?")]
    Dns {
        /// The endpoint's host.
        host: String,
    },
    /// The endpoint's identity is not proven.
    #[error("no trusted TLS connection to {host}: {reason}")]
    Tls {
        /// The endpoint's host.
        host: String,
        /// What the TLS library says.
        reason: String,
    },
    /// It took too long.
    #[error("{}", phase.message(.after))]
    Timeout {
        /// Which wait.
        phase: TimeoutPhase,
        /// How long it was allowed to be.
        after: Duration,
    },
    /// The endpoint does not accept the key (401), or not for this (403).
    #[error("the endpoint did not accept the API key (status {status}{})", in_words(.code))]
    Unauthorized {
        /// 401 or 403.
        status: u16,
        /// The endpoint's code for it.
        code: Option<String>,
    },
    /// The endpoint has had enough requests for now (429).
    #[error("the endpoint accepts no more requests for now (status 429{}){}", in_words(.code), retry_in_words(.retry_after))]
    RateLimited {
        /// When to try again, if the endpoint says so.
        retry_after: Option<Duration>,
        /// The endpoint's code for it.
        code: Option<String>,
    },
    /// The endpoint failed (5xx, or 408).
    #[error("the endpoint failed (status {status}{})", in_words(.code))]
    Server {
        /// Its status.
        status: u16,
        /// The endpoint's code for it.
        code: Option<String>,
    },
    /// The endpoint does not know the path or the model (404).
    #[error("the endpoint knows no such path or model (status 404{})", in_words(.code))]
    NotFound {
        /// The endpoint's code for it.
        code: Option<String>,
    },
    /// The endpoint does not accept the request (other 4xx).
    #[error("the endpoint did not accept the request (status {status}{})", in_words(.code))]
    BadRequest {
        /// Its status.
        status: u16,
        /// The endpoint's code for it.
        code: Option<String>,
    },
    /// The endpoint sends the request elsewhere. It is not followed: the key and the text are for this endpoint.
    #[error(
        "the endpoint redirects (status {status}), which is not followed; give the URL it redirects to"
    )]
    Redirected {
        /// 3xx.
        status: u16,
    },
    /// What came is no stream of chat completions.
    #[error("the endpoint does not stream chat completions: {}", .0.message())]
    Protocol(ProtocolProblem),
    /// More came than is accepted.
    #[error("{} is larger than {limit_bytes} bytes", what.name())]
    TooLarge {
        /// What was too large.
        what: TooLarge,
        /// The bound.
        limit_bytes: usize,
    },
    /// The endpoint reported a failure within its stream.
    #[error("the endpoint reported a failure in its stream{}", in_words(.code))]
    Reported {
        /// The endpoint's code for it.
        code: Option<String>,
    },
    /// The app's own transport failed in a way that it has no name for.
    #[error("the app's transport failed")]
    Transport,
    /// The connection ended before the answer did.
    #[error("the connection broke before the answer was complete")]
    InterruptedStream,
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl CloudError {
    pub(super) fn from_transport(
        error: TransportError,
        host: &str,
        connect_timeout: Duration,
    ) -> CloudError {
        let host = host.to_owned();
        match error {
            TransportError::Refused => CloudError::Refused { host },
            TransportError::Unreachable => CloudError::Unreachable { host },
            TransportError::Dns => CloudError::Dns { host },
            TransportError::Tls { reason } => CloudError::Tls { host, reason },
            TransportError::ConnectTimeout => CloudError::Timeout {
                phase: TimeoutPhase::Connect,
                after: connect_timeout,
            },
            TransportError::Interrupted => CloudError::InterruptedStream,
            TransportError::NotHttp => CloudError::Protocol(ProtocolProblem::NotHttp),
            _ => CloudError::Transport,
        }
    }

    /// What it means that the stream of an answer cannot be read.
    pub(super) fn from_stream(error: ReadError) -> CloudError {
        match error {
            ReadError::TooLarge { limit_bytes } => CloudError::TooLarge {
                what: TooLarge::Event,
                limit_bytes,
            },
            ReadError::Reported { code } => CloudError::Reported { code },
            _ => CloudError::Protocol(ProtocolProblem::NotCompletionChunk),
        }
    }

    /// A name for it that stays the same over versions.
    pub fn code(&self) -> &'static str {
        match self {
            CloudError::InvalidEndpoint { .. } => "invalid_endpoint",
            CloudError::PlaintextForbidden { .. } => "plaintext_forbidden",
            CloudError::PlainPrompt => "plain_prompt",
            CloudError::InvalidKey => "invalid_key",
            CloudError::KeyUnavailable => "key_unavailable",
            CloudError::Refused { .. } => "refused",
            CloudError::Unreachable { .. } => "unreachable",
            CloudError::Dns { .. } => "dns",
            CloudError::Tls { .. } => "tls",
            CloudError::Timeout { phase, .. } => match phase {
                TimeoutPhase::Connect => "connect_timeout",
                TimeoutPhase::FirstByte => "first_byte_timeout",
                TimeoutPhase::Idle => "idle_timeout",
                TimeoutPhase::Total => "total_timeout",
            },
            CloudError::Unauthorized { .. } => "unauthorized",
            CloudError::RateLimited { .. } => "rate_limited",
            CloudError::Server { .. } => "server",
            CloudError::NotFound { .. } => "not_found",
            CloudError::BadRequest { .. } => "bad_request",
            CloudError::Redirected { .. } => "redirected",
            CloudError::Protocol(_) => "protocol",
            CloudError::TooLarge { .. } => "too_large",
            CloudError::Reported { .. } => "reported",
            CloudError::Transport => "transport",
            CloudError::InterruptedStream => "interrupted_stream",
            CloudError::Cancelled => "cancelled",
        }
    }

    /// Whether the same request may succeed if it is sent again.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            CloudError::Refused { .. }
            | CloudError::Unreachable { .. }
            | CloudError::Dns { .. }
            | CloudError::RateLimited { .. }
            | CloudError::InterruptedStream => true,
            CloudError::Timeout { phase, .. } => *phase == TimeoutPhase::Connect,
            // 501 and 505: it will never know how.
            CloudError::Server { status, .. } => !matches!(status, 501 | 505),
            _ => false,
        }
    }
}

impl TimeoutPhase {
    fn message(self, after: &Duration) -> String {
        let seconds = after.as_secs_f32();
        match self {
            TimeoutPhase::Connect => format!("no connection within {seconds} s"),
            TimeoutPhase::FirstByte => format!("no response within {seconds} s"),
            TimeoutPhase::Idle => format!("nothing more came for {seconds} s"),
            TimeoutPhase::Total => format!("no complete answer within {seconds} s"),
        }
    }
}

impl ProtocolProblem {
    fn message(self) -> String {
        match self {
            ProtocolProblem::NotHttp => "the response is not HTTP".to_owned(),
            ProtocolProblem::Status(status) => format!("it answered with status {status}"),
            ProtocolProblem::NotEventStream => "the response is not an event stream".to_owned(),
            ProtocolProblem::NotCompletionChunk => "an event is not a completion chunk".to_owned(),
        }
    }
}

impl TooLarge {
    fn name(self) -> &'static str {
        match self {
            TooLarge::Event => "an event of the endpoint's stream",
            TooLarge::Response => "the endpoint's response",
        }
    }
}

fn in_words(code: &Option<String>) -> String {
    code.as_deref()
        .map(|code| format!(", {code}"))
        .unwrap_or_default()
}

fn retry_in_words(retry_after: &Option<Duration>) -> String {
    retry_after
        .map(|wait| format!("; it says to try again in {} s", wait.as_secs_f32()))
        .unwrap_or_default()
}
