//! One request, two backends.

use super::cloud::{CloudAnswer, CloudClient, CloudError};
use super::decision::{Backend, BackendFailure, Decision, Refusal, Tried};
use super::local::{LocalModel, PromptSize};
use super::policy::{Policy, RoutingMode, Situation};
use super::speed::PrefillSpeed;
use niwaki::{Cancellation, ChatRequest, ContextEnd, FinishReason, GenerateError};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Answers requests on the device or from an endpoint, as its policy says, and tells why.
///
/// ```no_run
/// use niwaki::{Cancellation, ChatRequest, Engine, GenerateOptions, Message, OpenOptions};
/// use niwaki_http::HttpsTransport;
/// use niwaki_route::{CloudClient, CloudOptions, LocalChat, Policy, RouteRequest, Router};
/// use std::ops::ControlFlow;
/// use std::sync::Arc;
///
/// let engine = Engine::open("model.niwaki", &OpenOptions::default())?;
/// let cloud = CloudClient::new(
///     CloudOptions::new("https://api.example.com", "large-model"),
///     Arc::new(HttpsTransport::new()),
///     Arc::new(|| std::env::var("API_KEY").ok()),
/// )?;
/// let policy = Policy { max_local_prompt_tokens: Some(2000), ..Policy::default() };
/// let router = Router::new(policy)
///     .with_local(Arc::new(LocalChat::new(&engine)?))
///     .with_cloud(Arc::new(cloud));
///
/// let request = RouteRequest {
///     chat: ChatRequest {
///         messages: vec![Message::user("Why is the sky blue?")],
///         options: GenerateOptions::default(),
///     },
///     on_device_only: false,
/// };
/// let answer = router.answer(&request, &Cancellation::new(), &mut |text, _decision| {
///     print!("{text}");
///     ControlFlow::Continue(())
/// })?;
/// println!("\nanswered by {:?}", answer.decision.answered_by);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Router {
    policy: Policy,
    local: Option<Arc<dyn LocalModel>>,
    cloud: Option<Arc<CloudClient>>,
    speed: Mutex<PrefillSpeed>,
}

/// What to answer, and whether it may leave the device.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteRequest {
    /// The conversation and how to answer.
    pub chat: ChatRequest,
    /// Keeps the request on the device whatever the policy says: no socket is opened and no name resolved for it.
    pub on_device_only: bool,
}

/// An answer that ended. Its text went to the callback.
#[derive(Clone, Debug)]
pub struct RoutedAnswer {
    /// Why it ended. An endpoint's `length` is [`FinishReason::MaxTokens`], its other reasons are
    /// [`FinishReason::EndOfText`]; [`cloud`](Self::cloud) has them in its words.
    pub finish_reason: FinishReason,
    /// Who answered, and why.
    pub decision: Decision,
    /// What the endpoint said about its answer.
    pub cloud: Option<CloudAnswer>,
}

/// A request that was not answered, or not to the end.
#[derive(Clone, Debug)]
pub struct RouteError {
    /// Why.
    pub failure: RouteFailure,
    /// What was decided and tried.
    pub decision: Box<Decision>,
}

/// Why a request was not answered.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RouteFailure {
    /// No backend may or can answer. Nothing was sent.
    #[error("{0}")]
    Refused(Refusal),
    /// Every backend that may answer failed before its first token; this is the last of them.
    #[error("{}", name(.0, "cannot answer"))]
    Failed(#[source] BackendFailure),
    /// The answer broke off after a part of it was given out.
    #[error("{}", name(.0, "broke off its answer"))]
    BrokeOff(#[source] BackendFailure),
}

fn name(failure: &BackendFailure, what: &str) -> String {
    match failure {
        BackendFailure::Local(_) => format!("the model on the device {what}"),
        BackendFailure::Cloud(_) => format!("the endpoint {what}"),
    }
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)
    }
}

impl std::error::Error for RouteError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.failure.source()
    }
}

impl Router {
    /// A router without backends.
    pub fn new(policy: Policy) -> Router {
        Router {
            policy,
            local: None,
            cloud: None,
            speed: Mutex::default(),
        }
    }

    /// Answers with this model on the device.
    #[must_use]
    pub fn with_local(mut self, local: Arc<dyn LocalModel>) -> Router {
        self.local = Some(local);
        self
    }

    /// Answers with this endpoint.
    #[must_use]
    pub fn with_cloud(mut self, cloud: Arc<CloudClient>) -> Router {
        self.cloud = Some(cloud);
        self
    }

    /// What it goes by.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// How long the device is expected to take to the first token of such a prompt, by the speed of the prompts
    /// before; `None` before the first.
    pub fn predict_first_token_ms(&self, prompt_tokens: usize) -> Option<u64> {
        self.speed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .predict_ms(prompt_tokens)
    }

    /// Answers a request, handing every piece of text to `on_text` as it comes, with the record so far: who answers
    /// and why is known with the first piece. Breaking off there cancels. The thread waits. A backend that fails
    /// before its first text is followed by the other one where the policy allows it; after its first text never.
    ///
    /// # Errors
    /// [`RouteError`]. A cancelled answer is none: it ends with [`FinishReason::Cancelled`].
    pub fn answer(
        &self,
        request: &RouteRequest,
        cancellation: &Cancellation,
        on_text: &mut dyn FnMut(&str, &Decision) -> ControlFlow<()>,
    ) -> Result<RoutedAnswer, RouteError> {
        let mut run = Run {
            router: self,
            request,
            cancellation,
            on_text,
            start: Instant::now(),
            decision: self.undecided(request),
        };
        run.answer().map_err(|failure| RouteError {
            failure,
            decision: Box::new(run.decision),
        })
    }

    fn undecided(&self, request: &RouteRequest) -> Decision {
        Decision {
            answered_by: None,
            reason: None,
            tried: Vec::new(),
            mode: self.policy.mode,
            on_device_only: request.on_device_only,
            prompt_tokens: None,
            context_tokens: self.local.as_ref().map(|local| local.context_tokens()),
            max_local_prompt_tokens: self.policy.max_local_prompt_tokens,
            predicted_first_token_ms: None,
            first_text_ms: None,
        }
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("policy", &self.policy)
            .field("has_local", &self.local.is_some())
            .field("cloud", &self.cloud)
            .finish_non_exhaustive()
    }
}

/// A request on its way.
struct Run<'a> {
    router: &'a Router,
    request: &'a RouteRequest,
    cancellation: &'a Cancellation,
    on_text: &'a mut dyn FnMut(&str, &Decision) -> ControlFlow<()>,
    start: Instant,
    decision: Decision,
}

/// How one backend's turn ended without failing.
struct Ended {
    finish_reason: FinishReason,
    cloud: Option<CloudAnswer>,
}

/// How one backend's turn failed.
struct Broken {
    failure: BackendFailure,
    sent: u32,
}

impl Run<'_> {
    fn answer(&mut self) -> Result<RoutedAnswer, RouteFailure> {
        let size = self.measure();
        let predicted = size.and_then(|size| {
            self.router
                .predict_first_token_ms(size.tokens.saturating_sub(size.computed_tokens))
        });
        self.decision.prompt_tokens = size.map(|size| size.tokens);
        self.decision.predicted_first_token_ms = predicted;
        let plan = self.router.policy.plan(&Situation {
            on_device_only: self.request.on_device_only,
            has_local: size.is_some(),
            has_cloud: self.router.cloud.is_some(),
            prompt_tokens: size.map_or(0, |size| size.tokens),
            context_tokens: self.decision.context_tokens.unwrap_or(0),
            may_forget: self.request.chat.options.context_end == ContextEnd::ForgetOldest,
            predicted_first_token_ms: predicted,
        });
        let plan = match (plan, self.decision.tried.last()) {
            (Ok(plan), _) => plan,
            // The model is there, but this prompt is nothing it can read: that is why.
            (Err(_), Some(tried)) => return Err(RouteFailure::Failed(tried.failure.clone())),
            (Err(refusal), _) => return Err(RouteFailure::Refused(refusal)),
        };
        self.decision.reason = Some(plan.reason);

        let mut next = Some(plan.first);
        let mut fallback = plan.fallback;
        let mut last = None;
        while let Some(backend) = next {
            let began = Instant::now();
            let broken = match self.ask(backend) {
                Ok(ended) => {
                    self.decision.answered_by = Some(backend);
                    return Ok(RoutedAnswer {
                        finish_reason: ended.finish_reason,
                        decision: self.decision.clone(),
                        cloud: ended.cloud,
                    });
                }
                Err(broken) => broken,
            };
            if self.decision.first_text_ms.is_some() {
                return Err(RouteFailure::BrokeOff(broken.failure));
            }
            let invalid = matches!(
                &broken.failure,
                BackendFailure::Local(error) if matches!(**error, GenerateError::Sampling(_))
            );
            last = Some(broken.failure.clone());
            self.decision.tried.push(Tried {
                backend,
                failure: broken.failure,
                sent: broken.sent,
                took_ms: millis(began.elapsed()),
            });
            // Another backend would get the same nonsense.
            next = fallback.take().filter(|_| !invalid);
        }
        Err(match last {
            Some(failure) => RouteFailure::Failed(failure),
            None => RouteFailure::Refused(Refusal::NoLocalModel),
        })
    }

    /// Counts the prompt; `None` when there is no model that can read it, or that may answer.
    fn measure(&mut self) -> Option<PromptSize> {
        let local = self.router.local.as_ref()?;
        if self.router.policy.mode == RoutingMode::CloudOnly {
            return None;
        }
        match local.measure(&self.request.chat) {
            Ok(size) => Some(size),
            Err(error) => {
                self.decision.tried.push(Tried {
                    backend: Backend::Local,
                    failure: BackendFailure::Local(Arc::new(error)),
                    sent: 1,
                    took_ms: millis(self.start.elapsed()),
                });
                None
            }
        }
    }

    fn ask(&mut self, backend: Backend) -> Result<Ended, Broken> {
        let router = self.router;
        match (backend, &router.local, &router.cloud) {
            (Backend::Local, Some(local), _) => self.ask_local(&**local),
            (Backend::Cloud, _, Some(cloud)) => self.ask_cloud(cloud),
            // The plan asks nobody who is not there.
            (Backend::Local, None, _) | (Backend::Cloud, _, None) => Ok(Ended {
                finish_reason: FinishReason::Failed,
                cloud: None,
            }),
        }
    }

    fn ask_local(&mut self, local: &dyn LocalModel) -> Result<Ended, Broken> {
        let (cancellation, request) = (self.cancellation, &self.request.chat);
        let answer = local
            .answer(request, cancellation, &mut |token| {
                self.give(Backend::Local, &token.text)
            })
            .map_err(|error| Broken {
                failure: BackendFailure::Local(Arc::new(error)),
                sent: 1,
            })?;
        if let Some((tokens, took)) = answer.prefill {
            self.router
                .speed
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .observe(tokens, took);
        }
        Ok(Ended {
            finish_reason: answer.finish_reason,
            cloud: None,
        })
    }

    fn ask_cloud(&mut self, cloud: &CloudClient) -> Result<Ended, Broken> {
        let (cancellation, request) = (self.cancellation, &self.request.chat);
        let answer = cloud.stream(
            &request.messages,
            &request.options,
            cancellation,
            &mut |text| self.give(Backend::Cloud, text),
        );
        match answer {
            Ok(answer) => Ok(Ended {
                finish_reason: match answer.finish_reason.as_deref() {
                    Some("length") => FinishReason::MaxTokens,
                    _ => FinishReason::EndOfText,
                },
                cloud: Some(answer),
            }),
            Err(failure) if failure.error == CloudError::Cancelled => Ok(Ended {
                finish_reason: FinishReason::Cancelled,
                cloud: None,
            }),
            Err(failure) => Err(Broken {
                failure: BackendFailure::Cloud(failure.error),
                sent: failure.sent,
            }),
        }
    }

    fn give(&mut self, backend: Backend, text: &str) -> ControlFlow<()> {
        if text.is_empty() {
            return ControlFlow::Continue(());
        }
        let start = self.start;
        self.decision
            .first_text_ms
            .get_or_insert_with(|| millis(start.elapsed()));
        self.decision.answered_by = Some(backend);
        (self.on_text)(text, &self.decision)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
