//! Answers from the device or from an endpoint.

use crate::chat::Message;
use crate::decision::Decision;
use crate::endpoint::{ApiKeySource, Endpoint, client, failed};
use crate::engine::Engine;
use crate::error::NiwakiError;
use crate::options::GenerateOptions;
use crate::policy::RoutingPolicy;
use crate::stream::{AHEAD, FinishReason, ToldOnce, no_thread};
use crate::transport::Transport;
use niwaki::bundle::GenerationDefaults;
use niwaki_route::{self as route, BackendFailure, RouteFailure};
use std::sync::Arc;

/// Answers requests on the device or from an endpoint, as its policy says, and tells why.
///
/// On the device it is one conversation: requests are answered one after the other, and what a prompt has in
/// common with the one before is not computed again.
#[derive(uniffi::Object)]
pub struct Router {
    router: Arc<route::Router>,
    /// Of the model on the device.
    defaults: GenerationDefaults,
}

/// What to answer, and whether it may leave the device.
#[derive(Clone, PartialEq, uniffi::Record)]
pub struct RouteRequest {
    /// The whole conversation.
    pub messages: Vec<Message>,
    /// How to answer.
    pub options: GenerateOptions,
    /// Keeps the request on the device whatever the policy says: the transport is not touched for it.
    pub on_device_only: bool,
}

/// How a routed answer ended.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct RoutedFinish {
    /// Why.
    pub reason: FinishReason,
    /// Why, in the endpoint's words: `stop`, `length`, `content_filter`. Absent on the device.
    pub cloud_reason: Option<String>,
    /// Tokens of the prompt as the endpoint counted them; absent on the device.
    pub cloud_prompt_tokens: Option<u64>,
    /// Tokens of the answer as the endpoint counted them; absent on the device.
    pub cloud_new_tokens: Option<u64>,
}

impl RoutedFinish {
    fn failed() -> RoutedFinish {
        RoutedFinish {
            reason: FinishReason::Failed,
            cloud_reason: None,
            cloud_prompt_tokens: None,
            cloud_new_tokens: None,
        }
    }
}

#[uniffi::export]
impl Router {
    /// A router between a model and an endpoint; either may be missing. Nothing is opened or resolved before the
    /// first request that goes to the endpoint. Without a transport the library's own HTTPS is used, in builds
    /// that have it.
    ///
    /// # Errors
    /// [`NiwakiError::NoChat`] when the model has no chat template that works, [`NiwakiError::InvalidArgument`]
    /// for an endpoint that is no URL, that would send text unencrypted, or that no transport leads to.
    #[uniffi::constructor]
    pub fn new(
        policy: RoutingPolicy,
        engine: Option<Arc<Engine>>,
        endpoint: Option<Endpoint>,
        api_key: Option<Arc<dyn ApiKeySource>>,
        transport: Option<Arc<dyn Transport>>,
    ) -> Result<Arc<Router>, NiwakiError> {
        let mut router = route::Router::new(policy.into());
        let mut defaults = GenerationDefaults::default();
        if let Some(engine) = engine {
            defaults = engine.engine().generation_defaults().clone();
            router = router.with_backend(Arc::new(route::LocalModel::new(engine.engine())?));
        }
        if let Some(endpoint) = endpoint {
            router = router.with_backend(Arc::new(client(endpoint, api_key, transport)?));
        }
        Ok(Arc::new(Router {
            router: Arc::new(router),
            defaults,
        }))
    }

    /// Answers a request. Errors come from the stream.
    ///
    /// # Errors
    /// [`NiwakiError::Internal`] when the system has no thread left.
    pub fn answer(&self, request: RouteRequest) -> Result<Arc<RoutedStream>, NiwakiError> {
        let request = route::RouteRequest {
            prompt: route::Prompt::Chat(request.messages.into_iter().map(Into::into).collect()),
            options: request.options.for_model(&self.defaults),
            on_device_only: request.on_device_only,
        };
        Ok(Arc::new(RoutedStream {
            stream: self.router.stream(request, AHEAD).map_err(no_thread)?,
            error: ToldOnce::default(),
        }))
    }

    /// How long the device is expected to take to the first token of such a prompt, by the speed of the prompts
    /// before; absent before the first.
    pub fn predict_first_token_ms(&self, prompt_tokens: u64) -> Option<u64> {
        let prompt_tokens = usize::try_from(prompt_tokens).unwrap_or(usize::MAX);
        self.router.predict_first_token_ms(prompt_tokens)
    }
}

/// A routed answer as it comes, read by a thread that is at most one piece of text ahead of its reader. Dropping
/// the stream cancels it.
#[derive(uniffi::Object)]
pub struct RoutedStream {
    stream: route::RoutedStream,
    error: ToldOnce,
}

#[uniffi::export]
impl RoutedStream {
    /// Waits for the next piece of text; absent when the stream has ended and nothing is done for it any more.
    ///
    /// # Errors
    /// [`NiwakiError`], once; then the stream has ended.
    pub fn next(&self) -> Result<Option<String>, NiwakiError> {
        // Tokens whose text comes with a later one are passed over.
        while let Some(token) = self.stream.read() {
            if !token.text.is_empty() {
                return Ok(Some(token.text));
            }
        }
        self.error.tell(self.stream.cancellation(), || {
            Some(self.stream.end()?.err()?.failure.into())
        })
    }

    /// Stops the work on the device within one layer's time, and closes the connection to the endpoint. Does not
    /// wait for that; [`next`](Self::next) does.
    pub fn cancel(&self) {
        self.stream.cancellation().cancel();
    }

    /// Who answers and why, from the first piece of text on; after the end or the error it is complete.
    pub fn decision(&self) -> Option<Decision> {
        self.stream.decision().as_ref().map(Decision::from)
    }

    /// How it ended; absent while it goes on.
    pub fn finish(&self) -> Option<RoutedFinish> {
        Some(match self.stream.end()? {
            Ok(answer) => RoutedFinish::from(answer),
            Err(_) => RoutedFinish::failed(),
        })
    }
}

impl From<route::RoutedAnswer> for RoutedFinish {
    fn from(answer: route::RoutedAnswer) -> Self {
        let usage = answer.cloud.as_ref().and_then(|cloud| cloud.usage);
        RoutedFinish {
            reason: Some(answer.finish_reason).into(),
            cloud_prompt_tokens: usage.map(|usage| usage.prompt_tokens),
            cloud_new_tokens: usage.map(|usage| usage.completion_tokens),
            cloud_reason: answer.cloud.and_then(|cloud| cloud.finish_reason),
        }
    }
}

impl From<RouteFailure> for NiwakiError {
    fn from(failure: RouteFailure) -> Self {
        let broke_off = matches!(failure, RouteFailure::BrokeOff(_));
        match &failure {
            RouteFailure::Refused(refusal) => (*refusal).into(),
            RouteFailure::Failed(backend) | RouteFailure::BrokeOff(backend) => match backend {
                BackendFailure::Local(error) => (&**error).into(),
                BackendFailure::Cloud(error) => failed(error, broke_off),
                BackendFailure::Busy { .. } => NiwakiError::Busy,
                _ => NiwakiError::Internal {
                    details: failure.to_string(),
                },
            },
            RouteFailure::Panicked => NiwakiError::panicked(),
            _ => NiwakiError::Internal {
                details: failure.to_string(),
            },
        }
    }
}
