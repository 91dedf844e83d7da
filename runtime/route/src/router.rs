//! One request, many backends.

use crate::backend::{Backend, BackendFailure, BackendKind};
use crate::cloud::CloudAnswer;
use crate::decision::{BackendId, Decision, Refusal};
use crate::policy::Policy;
use crate::request::RouteRequest;
use crate::run::Run;
use crate::speed::PrefillSpeed;
use niwaki::{Cancellation, FinishReason, Token};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Answers requests on the device or from endpoints, as its policy says, and tells why.
///
/// ```no_run
/// use niwaki::{Engine, GenerateOptions, Message, OpenOptions};
/// use niwaki_http::HttpsTransport;
/// use niwaki_route::{CloudClient, CloudOptions, LocalModel, Policy, Prompt, RouteRequest, Router};
/// use std::num::NonZeroUsize;
/// use std::sync::Arc;
///
/// let engine = Engine::open("model.niwaki", &OpenOptions::default())?;
/// let cloud = CloudClient::new(
///     CloudOptions::new("https://api.example.com", "large-model"),
///     Arc::new(HttpsTransport::new()),
///     Arc::new(|| std::env::var("API_KEY").ok()),
/// )?;
/// let policy = Policy { max_local_prompt_tokens: Some(2000), ..Policy::default() };
/// let router = Arc::new(
///     Router::new(policy)
///         .with_backend(Arc::new(LocalModel::new(&engine)?))
///         .with_backend(Arc::new(cloud)),
/// );
///
/// let request = RouteRequest {
///     prompt: Prompt::Chat(vec![Message::user("Why is the sky blue?")]),
///     options: GenerateOptions::default(),
///     on_device_only: false,
/// };
/// let mut answer = router.stream(request, NonZeroUsize::MIN)?;
/// for token in answer.by_ref() {
///     print!("{}", token.text);
/// }
/// let answer = answer.into_end()?;
/// println!("\nanswered by {:?}", answer.decision.answered_by);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Router {
    policy: Policy,
    backends: Vec<Asked>,
}

/// A backend and how fast it was seen to be.
pub(crate) struct Asked {
    pub(crate) backend: Arc<dyn Backend>,
    speed: Mutex<PrefillSpeed>,
}

/// An answer that ended. Its text was given out before.
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
    /// The router or a backend failed in a way it should not.
    #[error("the answer failed in a way it should not; please report it")]
    Panicked,
}

fn name(failure: &BackendFailure, what: &str) -> String {
    match failure {
        BackendFailure::Local(_) | BackendFailure::Busy { .. } => {
            format!("the model on the device {what}")
        }
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
            backends: Vec::new(),
        }
    }

    /// Asks this one too. Of those on the device the first that was added is preferred, and of those off it as well; give
    /// each a name of its own.
    #[must_use]
    pub fn with_backend(mut self, backend: Arc<dyn Backend>) -> Router {
        self.backends.push(Asked {
            backend,
            speed: Mutex::default(),
        });
        self
    }

    /// What it goes by.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// How long the first model on the device is expected to take to the first token of such a prompt, by the speed of
    /// the prompts before; `None` before the first.
    pub fn predict_first_token_ms(&self, prompt_tokens: usize) -> Option<u64> {
        self.first_local()?.speed().predict_ms(prompt_tokens)
    }

    /// Answers a request, handing every token to `on_token` as it comes, with the record so far: who answers and why is
    /// known with the first. Breaking off there cancels. The thread waits. A backend that fails before its first text is
    /// followed by the next one where the policy allows it; after its first text never.
    ///
    /// # Errors
    /// [`RouteError`]. A cancelled answer is none: it ends with [`FinishReason::Cancelled`].
    pub fn answer(
        &self,
        request: &RouteRequest,
        cancellation: &Cancellation,
        on_token: &mut dyn FnMut(Token, &Decision) -> ControlFlow<()>,
    ) -> Result<RoutedAnswer, RouteError> {
        Run::new(self, request, cancellation, on_token).answer()
    }

    pub(crate) fn backends(&self) -> &[Asked] {
        &self.backends
    }

    pub(crate) fn first_local(&self) -> Option<&Asked> {
        self.backends
            .iter()
            .find(|asked| asked.backend.capabilities().kind == BackendKind::Local)
    }

    /// The record of a request before anything is known.
    pub(crate) fn undecided(&self, request: &RouteRequest) -> Decision {
        let local = self.first_local();
        Decision {
            answered_by: None,
            reason: None,
            tried: Vec::new(),
            mode: self.policy.mode,
            on_device_only: request.on_device_only,
            prompt_tokens: None,
            context_tokens: local.and_then(|local| local.backend.capabilities().context_tokens),
            max_local_prompt_tokens: self.policy.max_local_prompt_tokens,
            predicted_first_token_ms: None,
            first_text_ms: None,
        }
    }
}

impl Asked {
    pub(crate) fn id(&self) -> BackendId {
        BackendId {
            name: self.backend.name().to_owned(),
            kind: self.backend.capabilities().kind,
        }
    }

    pub(crate) fn speed(&self) -> MutexGuard<'_, PrefillSpeed> {
        self.speed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backends: Vec<BackendId> = self.backends.iter().map(Asked::id).collect();
        f.debug_struct("Router")
            .field("policy", &self.policy)
            .field("backends", &backends)
            .finish()
    }
}
