//! A client of chat completions.

use super::endpoint::Endpoint;
use super::error::{CloudError, ProtocolProblem, TimeoutPhase, TooLarge};
use super::retry::{RetryPolicy, retry_after};
use super::wait::{CloudTimeouts, Deadline, pause};
use niwaki::{Cancellation, GenerateOptions, Message, Role};
use niwaki_http::{HttpHeader, HttpRequest, Method, Part, Response, ResponseError, Transport};
use niwaki_openai::{
    Chunk, CompletionRequest, ErrorBody, Event, EventDecoder, StreamOptions, Usage, is_event_stream,
};
use std::cell::Cell;
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Of a failed response's body no more is read than this, and for no longer.
const MAX_ERROR_BODY_BYTES: usize = 16 << 10;
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(2);

/// An endpoint and how to use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudOptions {
    /// Its name in records.
    pub name: String,
    /// Base URL of an OpenAI-compatible API, with or without `/v1` at its end.
    pub endpoint: String,
    /// The model to ask for, as the endpoint calls it.
    pub model: String,
    /// How long each wait may be.
    pub timeouts: CloudTimeouts,
    /// How often a request is sent again.
    pub retry: RetryPolicy,
    /// Whether text and key may travel unencrypted to another machine than this one.
    pub allow_plaintext: bool,
    /// Whether a text that is to be continued goes to the endpoint as the message of a user. Without this such prompts
    /// never go there: it answers conversations.
    pub text_as_message: bool,
    /// Most bytes of one event of the stream.
    pub max_event_bytes: NonZeroUsize,
    /// Most bytes of a response.
    pub max_response_bytes: usize,
}

impl CloudOptions {
    /// The usual options.
    pub fn new(endpoint: impl Into<String>, model: impl Into<String>) -> CloudOptions {
        CloudOptions {
            name: "endpoint".into(),
            endpoint: endpoint.into(),
            model: model.into(),
            timeouts: CloudTimeouts::default(),
            retry: RetryPolicy::default(),
            allow_plaintext: false,
            text_as_message: false,
            max_event_bytes: NonZeroUsize::MIN.saturating_add((1 << 20) - 1),
            max_response_bytes: 32 << 20,
        }
    }
}

/// Gives out the API key when a request is about to be sent. The library never keeps it.
pub trait ApiKeySource: Send + Sync {
    /// The key; `None` for an endpoint that wants none. It may block: the wait for the response has begun.
    ///
    /// # Errors
    /// [`KeyUnavailable`]; nothing is sent then.
    fn api_key(&self) -> Result<Option<String>, KeyUnavailable>;
}

/// There should be a key, but it cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the API key cannot be had")]
pub struct KeyUnavailable;

impl<F: Fn() -> Option<String> + Send + Sync> ApiKeySource for F {
    fn api_key(&self) -> Result<Option<String>, KeyUnavailable> {
        Ok(self())
    }
}

/// Streams chat completions from an endpoint.
pub struct CloudClient {
    endpoint: Endpoint,
    options: CloudOptions,
    transport: Arc<dyn Transport>,
    api_key: Arc<dyn ApiKeySource>,
}

/// An answer that came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudAnswer {
    /// Why it ended, in the endpoint's words: `stop`, `length`, `content_filter`.
    pub finish_reason: Option<String>,
    /// Tokens, if the endpoint counted them.
    pub usage: Option<Usage>,
    /// How often the request was sent.
    pub sent: u32,
}

/// An answer that did not come, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct CloudFailure {
    /// Why.
    pub error: CloudError,
    /// How often the request was sent: not at all without a key.
    pub sent: u32,
    /// Whether text of the answer was given out before.
    pub text_given: bool,
}

impl CloudClient {
    /// A client over `transport`. Nothing is opened or resolved before the first request.
    ///
    /// # Errors
    /// [`CloudError::InvalidEndpoint`], [`CloudError::PlaintextForbidden`].
    pub fn new(
        options: CloudOptions,
        transport: Arc<dyn Transport>,
        api_key: Arc<dyn ApiKeySource>,
    ) -> Result<CloudClient, CloudError> {
        Ok(CloudClient {
            endpoint: Endpoint::parse(&options.endpoint, options.allow_plaintext)?,
            options,
            transport,
            api_key,
        })
    }

    /// Host, and port if one was given, of the endpoint.
    pub fn host(&self) -> &str {
        &self.endpoint.host
    }

    /// How it is used.
    pub fn options(&self) -> &CloudOptions {
        &self.options
    }

    /// The model that is asked for.
    pub fn model(&self) -> &str {
        &self.options.model
    }

    /// Sends the messages and hands every piece of the answer to `on_text`, until it is complete. Of `options`
    /// the endpoint gets what its API has a name for: the number of tokens, temperature, top-p, seed and stop
    /// strings. The thread waits; cancelling or breaking off closes the connection.
    ///
    /// # Errors
    /// [`CloudFailure`]. Before any text was given out the request has been sent again as
    /// [`CloudOptions::retry`] says, after it never.
    pub fn stream(
        &self,
        messages: &[Message],
        options: &GenerateOptions,
        cancellation: &Cancellation,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<CloudAnswer, CloudFailure> {
        let total = Deadline::new(TimeoutPhase::Total, self.options.timeouts.total);
        let body = self.body(messages, options);
        // An attempt that ends before the transport is asked to send anything, such as one without a key, sends nothing.
        let sent = Cell::new(0);
        let mut attempts = 0;
        let mut text_given = false;
        loop {
            attempts += 1;
            let mut attempt = Attempt {
                client: self,
                cancellation,
                total,
                sent: &sent,
                retry_after: None,
                on_text: &mut |text: &str| {
                    text_given = true;
                    on_text(text)
                },
            };
            let error = match attempt.run(body.clone()) {
                Ok(mut answer) => {
                    answer.sent = sent.get();
                    return Ok(answer);
                }
                Err(error) => error,
            };
            let retry_after = attempt.retry_after;
            let wait = match text_given {
                true => None,
                false => self.options.retry.wait(&error, retry_after, attempts),
            };
            let waited = match wait.filter(|wait| total.left().is_some_and(|left| *wait < left)) {
                Some(wait) => pause(wait, cancellation),
                None => Err(error),
            };
            if let Err(error) = waited {
                return Err(CloudFailure {
                    error,
                    sent: sent.get(),
                    text_given,
                });
            }
        }
    }

    fn body(&self, messages: &[Message], options: &GenerateOptions) -> Vec<u8> {
        let request = CompletionRequest {
            model: self.options.model.clone(),
            messages: messages.iter().map(on_the_wire).collect(),
            stream: true,
            stream_options: Some(StreamOptions {
                include_usage: true,
            }),
            max_tokens: Some(options.max_new_tokens as u64),
            temperature: Some(options.sampling.temperature),
            top_p: options.sampling.top_p,
            seed: Some(options.sampling.seed),
            stop: options.stop_strings.clone(),
            ..CompletionRequest::default()
        };
        request.to_json()
    }
}

impl fmt::Debug for CloudClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudClient")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// A request that is sent once.
struct Attempt<'a> {
    client: &'a CloudClient,
    cancellation: &'a Cancellation,
    total: Deadline,
    /// How often anything was sent.
    sent: &'a Cell<u32>,
    /// What a failed response asked for.
    retry_after: Option<Duration>,
    on_text: &'a mut dyn FnMut(&str) -> ControlFlow<()>,
}

impl Attempt<'_> {
    fn run(&mut self, body: Vec<u8>) -> Result<CloudAnswer, CloudError> {
        if self.cancellation.is_cancelled() {
            return Err(CloudError::Cancelled);
        }
        let timeouts = self.client.options.timeouts;
        let first_byte = self.deadline(
            TimeoutPhase::FirstByte,
            timeouts.connect.saturating_add(timeouts.first_byte),
        );
        let url = self.client.endpoint.url.clone();
        let api_key = self.client.api_key.clone();
        let make = move || {
            Ok(HttpRequest {
                method: Method::POST,
                url,
                headers: headers(&*api_key)?,
                body: Some(body),
                connect_timeout: timeouts.connect,
                read_timeout: timeouts.longest_silence(),
            })
        };
        let max_bytes = self.client.options.max_response_bytes as u64;
        let response = Response::to(self.client.transport.clone(), max_bytes, make);
        let _closes = self.cancellation.on_cancel(response.canceller());
        let answer = self.read(&response, &first_byte);
        self.sent
            .set(self.sent.get() + u32::from(response.was_sent()));
        answer
    }

    fn read(
        &mut self,
        response: &Response<CloudError>,
        first_byte: &Deadline,
    ) -> Result<CloudAnswer, CloudError> {
        let head = match self.next(response, first_byte)? {
            Part::Head(head) => head,
            part => return Err(broken(part)),
        };
        let status = head.status;
        if status == 200 {
            let content_type = head.header("content-type").unwrap_or_default();
            if !is_event_stream(content_type) {
                return Err(CloudError::Protocol(ProtocolProblem::NotEventStream));
            }
            return self.read_answer(response);
        }
        self.retry_after = head
            .header("retry-after")
            .and_then(|value| retry_after(value, SystemTime::now()));
        let code = self.read_error_code(response)?;
        Err(self.refusal(status, code))
    }

    fn deadline(&self, phase: TimeoutPhase, after: Duration) -> Deadline {
        Deadline::new(phase, after).or(self.total)
    }

    /// What comes next, until the deadline.
    fn next(
        &self,
        response: &Response<CloudError>,
        deadline: &Deadline,
    ) -> Result<Part, CloudError> {
        response.next(deadline.at()).map_err(|error| match error {
            ResponseError::NotMade(error) => error,
            ResponseError::Transport(error) => CloudError::from_transport(
                error,
                &self.client.endpoint.host,
                self.client.options.timeouts.connect,
            ),
            ResponseError::TooLarge { .. } => CloudError::TooLarge {
                what: TooLarge::Response,
                limit_bytes: self.client.options.max_response_bytes,
            },
            ResponseError::Late => deadline.error(),
            ResponseError::Cancelled => CloudError::Cancelled,
        })
    }

    fn read_answer(&mut self, response: &Response<CloudError>) -> Result<CloudAnswer, CloudError> {
        let mut events = EventDecoder::new(self.client.options.max_event_bytes);
        let mut answer = CloudAnswer {
            finish_reason: None,
            usage: None,
            sent: 0,
        };
        let idle = self.client.options.timeouts.idle;
        let mut deadline = self.deadline(TimeoutPhase::Idle, idle);
        loop {
            let data = match self.next(response, &deadline)? {
                Part::Data(data) => data,
                // Some servers leave [DONE] out. An answer that has said why it ends is complete.
                Part::End if answer.finish_reason.is_some() => return Ok(answer),
                part => return Err(broken(part)),
            };
            let mut bytes = data.as_slice();
            while let Some(event) = events.next(&mut bytes).map_err(CloudError::from_stream)? {
                match event {
                    Event::Chunk(chunk) => self.take(chunk, &mut answer)?,
                    // A server that gives a request up for another one says it is done, but not why.
                    Event::Done if answer.finish_reason.is_some() => return Ok(answer),
                    Event::Done => return Err(CloudError::InterruptedStream),
                }
            }
            if data.iter().any(|byte| b"\r\n".contains(byte)) {
                deadline = self.deadline(TimeoutPhase::Idle, idle);
            }
        }
    }

    fn take(&mut self, chunk: Chunk, answer: &mut CloudAnswer) -> Result<(), CloudError> {
        if self.cancellation.is_cancelled() {
            return Err(CloudError::Cancelled);
        }
        for text in chunk.text().filter(|text| !text.is_empty()) {
            if (self.on_text)(text).is_break() {
                return Err(CloudError::Cancelled);
            }
        }
        if let Some(reason) = chunk.finish_reason() {
            answer.finish_reason = Some(reason.to_owned());
        }
        answer.usage = chunk.usage.or(answer.usage);
        Ok(())
    }

    /// Reads a bounded part of a failed response. Whatever goes wrong with it, the status says enough.
    fn read_error_code(
        &self,
        response: &Response<CloudError>,
    ) -> Result<Option<String>, CloudError> {
        let deadline = self.deadline(TimeoutPhase::Idle, ERROR_BODY_TIMEOUT);
        let mut body = Vec::new();
        loop {
            match self.next(response, &deadline) {
                Ok(Part::Data(data)) if body.len() + data.len() <= MAX_ERROR_BODY_BYTES => {
                    body.extend_from_slice(&data);
                }
                Err(CloudError::Cancelled) => return Err(CloudError::Cancelled),
                _ => return Ok(ErrorBody::code_in(&body)),
            }
        }
    }

    fn refusal(&self, status: u16, code: Option<String>) -> CloudError {
        match status {
            300..=399 => CloudError::Redirected { status },
            401 | 403 => CloudError::Unauthorized { status, code },
            404 => CloudError::NotFound { code },
            408 | 500..=599 => CloudError::Server { status, code },
            429 => CloudError::RateLimited {
                retry_after: self.retry_after,
                code,
            },
            400..=499 => CloudError::BadRequest { status, code },
            _ => CloudError::Protocol(ProtocolProblem::Status(status)),
        }
    }
}

/// What a part that is not the one to come means.
fn broken(part: Part) -> CloudError {
    match part {
        // The head comes first, and once.
        Part::Head(_) | Part::Data(_) => CloudError::Protocol(ProtocolProblem::NotHttp),
        Part::End => CloudError::InterruptedStream,
    }
}

fn on_the_wire(message: &Message) -> niwaki_openai::Message {
    niwaki_openai::Message {
        role: match message.role {
            Role::System => niwaki_openai::Role::System,
            Role::Assistant => niwaki_openai::Role::Assistant,
            // The engine has no others.
            _ => niwaki_openai::Role::User,
        },
        content: message.content.clone(),
    }
}

fn headers(api_key: &dyn ApiKeySource) -> Result<Vec<HttpHeader>, CloudError> {
    let header = |name: &str, value: String| HttpHeader {
        name: name.to_owned(),
        value,
    };
    let mut headers = vec![
        header("content-type", "application/json".to_owned()),
        header("accept", "text/event-stream".to_owned()),
    ];
    let key = api_key.api_key();
    if let Some(key) = key.map_err(|KeyUnavailable| CloudError::KeyUnavailable)? {
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(CloudError::InvalidKey);
        }
        headers.push(header("authorization", format!("Bearer {key}")));
    }
    Ok(headers)
}
