//! The router between a model and an endpoint: who answers, what is tried, what is recorded, what never leaves.
#![allow(clippy::unwrap_used)]

mod endpoint;

use endpoint::{Endpoint, HUNG, STREAM_HEAD, dead_port, good_answer, piece, status};
use niwaki::{
    Cancellation, FinishReason, GenerateError, GenerateOptions, Message, SessionError, Token,
};
use niwaki_http::{
    Exchange, HttpHeader, HttpRequest, HttpsTransport, ResponseHead, Transport, TransportError,
};
use niwaki_route::{
    Backend, BackendAnswer, BackendFailure, BackendKind, Capabilities, CloudClient, CloudError,
    CloudOptions, Decision, Policy, Prompt, PromptSize, Reason, Refusal, RetryPolicy, RouteError,
    RouteFailure, RouteRequest, RoutedAnswer, Router, RoutingMode, Unanswered,
};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const WORDS: &str = "the user's own words";
const KEY: &str = "sk-test-0123456789";

/// A model on the device that does what a test says.
struct Model {
    prompt_tokens: usize,
    says: &'static [&'static str],
    /// Fails instead of saying the piece with this number.
    fails_at: Option<usize>,
    prefill: Duration,
}

impl Model {
    const GOOD: Model = Model {
        prompt_tokens: 10,
        says: &["on ", "device"],
        fails_at: None,
        prefill: Duration::from_millis(10),
    };
}

impl Backend for Model {
    fn name(&self) -> &str {
        "device"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            kind: BackendKind::Local,
            chats: true,
            plain_prompts: false,
            context_tokens: Some(100),
        }
    }

    fn measure(&self, _: &Prompt) -> Result<Option<PromptSize>, BackendFailure> {
        Ok(Some(PromptSize {
            tokens: self.prompt_tokens,
            computed_tokens: 0,
        }))
    }

    fn answer(
        &self,
        _: &RouteRequest,
        cancellation: &Cancellation,
        on_token: &mut dyn FnMut(Token) -> ControlFlow<()>,
    ) -> Result<BackendAnswer, Unanswered> {
        let mut answer = BackendAnswer {
            prefill: Some((self.prompt_tokens, self.prefill)),
            ..BackendAnswer::ended(FinishReason::Cancelled)
        };
        for number in 0..=self.says.len() {
            if self.fails_at == Some(number) {
                return Err(GenerateError::Session(SessionError::NoTokens).into());
            }
            if cancellation.is_cancelled() {
                return Ok(answer);
            }
            let Some(text) = self.says.get(number) else {
                break;
            };
            let token = Token {
                id: Some(1),
                text: (*text).to_owned(),
                log_probs: None,
            };
            if on_token(token).is_break() {
                return Ok(answer);
            }
        }
        answer.finish_reason = FinishReason::EndOfText;
        Ok(answer)
    }
}

/// A transport that must not be touched.
#[derive(Default)]
struct Untouched(AtomicUsize);

impl Transport for Untouched {
    fn exchange(&self, _: HttpRequest) -> Result<Arc<dyn Exchange>, TransportError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("the transport was touched");
    }
}

/// An app's own HTTP stack, answering from memory.
struct InMemory(Arc<Mutex<Vec<String>>>);

/// What is still to be read.
struct Memory(Mutex<Vec<String>>);

impl Transport for InMemory {
    fn exchange(&self, request: HttpRequest) -> Result<Arc<dyn Exchange>, TransportError> {
        self.0.lock().unwrap().push(request.url.to_string());
        let parts = vec![endpoint::ending(), piece("memory"), piece("in ")];
        Ok(Arc::new(Memory(Mutex::new(parts))))
    }
}

impl Exchange for Memory {
    fn send(&self) -> Result<ResponseHead, TransportError> {
        Ok(ResponseHead {
            status: 200,
            headers: vec![HttpHeader {
                name: "Content-Type".into(),
                value: "text/event-stream".into(),
            }],
        })
    }

    fn read(&self) -> Result<Option<Vec<u8>>, TransportError> {
        Ok(self.0.lock().unwrap().pop().map(String::into_bytes))
    }

    fn cancel(&self) {}
}

fn cloud_over(url: &str, transport: Arc<dyn Transport>) -> Arc<CloudClient> {
    let options = CloudOptions {
        retry: RetryPolicy::NEVER,
        ..CloudOptions::new(url, "some-model")
    };
    Arc::new(CloudClient::new(options, transport, Arc::new(|| Some(KEY.to_owned()))).unwrap())
}

fn cloud(url: &str) -> Arc<CloudClient> {
    cloud_over(url, Arc::new(HttpsTransport::new()))
}

fn policy(mode: RoutingMode) -> Policy {
    Policy {
        mode,
        max_local_prompt_tokens: Some(50),
        max_first_token_ms: Some(1000),
    }
}

fn request() -> RouteRequest {
    RouteRequest {
        prompt: Prompt::Chat(vec![Message::user(WORDS)]),
        options: GenerateOptions::default(),
        on_device_only: false,
    }
}

/// Who answered.
fn kind(decision: &Decision) -> Option<BackendKind> {
    decision.answered_by.as_ref().map(|backend| backend.kind)
}

/// Asks, and fails the test instead of hanging. No record holds text or key.
fn ask(router: Router, request: RouteRequest) -> (String, Result<RoutedAnswer, RouteError>) {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut text = String::new();
        let answer = router.answer(&request, &Cancellation::new(), &mut |piece, _| {
            text.push_str(&piece.text);
            ControlFlow::Continue(())
        });
        let decision = match &answer {
            Ok(answer) => &answer.decision,
            Err(error) => &error.decision,
        };
        let printed = format!(
            "{router:?} {answer:?} {}",
            serde_json::to_string(decision).unwrap()
        );
        for secret in [WORDS, KEY, "on device", "from afar"] {
            assert!(!printed.contains(secret), "{printed}");
        }
        let _ = sender.send((text, answer));
    });
    receiver.recv_timeout(HUNG).unwrap()
}

#[test]
fn a_prompt_over_the_limit_goes_to_the_endpoint_and_one_under_it_stays() {
    let endpoint = Endpoint::answering(good_answer(&["from ", "afar"]));
    let route = |prompt_tokens| {
        let router = Router::new(policy(RoutingMode::PreferLocal))
            .with_backend(Arc::new(Model {
                prompt_tokens,
                ..Model::GOOD
            }))
            .with_backend(cloud(&endpoint.url()));
        let (text, answer) = ask(router, request());
        (text, answer.unwrap())
    };
    let (text, answer) = route(50);
    assert_eq!((text.as_str(), endpoint.accepted()), ("on device", 0));
    assert_eq!(kind(&answer.decision), Some(BackendKind::Local));
    assert_eq!(answer.decision.reason, Some(Reason::Mode));

    let (text, answer) = route(51);
    assert_eq!((text.as_str(), endpoint.accepted()), ("from afar", 1));
    assert_eq!(kind(&answer.decision), Some(BackendKind::Cloud));
    assert_eq!(
        answer.decision.reason,
        Some(Reason::PromptOverLimit {
            prompt_tokens: 51,
            max_local_prompt_tokens: 50
        })
    );
    assert_eq!(answer.cloud.unwrap().finish_reason.as_deref(), Some("stop"));
}

#[test]
fn on_device_only_touches_no_transport_and_no_socket_in_any_mode() {
    let endpoint = Endpoint::answering(good_answer(&["from afar"]));
    for mode in [
        RoutingMode::LocalOnly,
        RoutingMode::PreferLocal,
        RoutingMode::PreferCloud,
        RoutingMode::CloudOnly,
    ] {
        for (prompt_tokens, fails_at) in [(10, None), (60, None), (100, None), (10, Some(0))] {
            let untouched = Arc::new(Untouched::default());
            let transports: [Arc<dyn Transport>; 2] =
                [untouched.clone(), Arc::new(HttpsTransport::new())];
            for transport in transports {
                let router = Router::new(policy(mode))
                    .with_backend(Arc::new(Model {
                        prompt_tokens,
                        fails_at,
                        ..Model::GOOD
                    }))
                    .with_backend(cloud_over(&endpoint.url(), transport));
                let (_, answer) = ask(
                    router,
                    RouteRequest {
                        on_device_only: true,
                        ..request()
                    },
                );
                let answered_by = match answer {
                    Ok(answer) => kind(&answer.decision),
                    Err(error) => kind(&error.decision),
                };
                assert_ne!(answered_by, Some(BackendKind::Cloud));
            }
            assert_eq!(untouched.0.load(Ordering::SeqCst), 0);
        }
    }
    assert_eq!(endpoint.accepted(), 0);
}

#[test]
fn a_dead_endpoint_leads_back_to_the_device_where_that_may_answer() {
    let dead = format!("http://127.0.0.1:{}", dead_port());
    let router = Router::new(policy(RoutingMode::PreferCloud))
        .with_backend(Arc::new(Model::GOOD))
        .with_backend(cloud(&dead));
    let (text, answer) = ask(router, request());
    let decision = answer.unwrap().decision;
    assert_eq!(
        (text.as_str(), kind(&decision)),
        ("on device", Some(BackendKind::Local))
    );
    let tried = &decision.tried[0];
    assert_eq!((tried.backend.kind, tried.sent), (BackendKind::Cloud, 1));
    assert!(
        matches!(
            &tried.failure,
            BackendFailure::Cloud(CloudError::Refused { .. })
        ),
        "{tried:?}"
    );
    let record = serde_json::to_value(&decision).unwrap();
    assert_eq!(record["tried"][0]["failure"]["code"], "refused");

    // Over the limit the device is not asked: the failure is the answer.
    let router = Router::new(policy(RoutingMode::PreferLocal))
        .with_backend(Arc::new(Model {
            prompt_tokens: 51,
            ..Model::GOOD
        }))
        .with_backend(cloud(&dead));
    let (text, answer) = ask(router, request());
    let error = answer.unwrap_err();
    assert!(
        matches!(
            &error.failure,
            RouteFailure::Failed(BackendFailure::Cloud(CloudError::Refused { .. }))
        ),
        "{error:?}"
    );
    assert_eq!((text.as_str(), kind(&error.decision)), ("", None));
}

#[test]
fn a_model_that_fails_before_its_first_text_is_followed_by_the_endpoint() {
    let endpoint = Endpoint::answering(good_answer(&["from afar"]));
    let router = Router::new(policy(RoutingMode::PreferLocal))
        .with_backend(Arc::new(Model {
            fails_at: Some(0),
            ..Model::GOOD
        }))
        .with_backend(cloud(&endpoint.url()));
    let (text, answer) = ask(router, request());
    let decision = answer.unwrap().decision;
    assert_eq!(
        (text.as_str(), kind(&decision)),
        ("from afar", Some(BackendKind::Cloud))
    );
    assert_eq!(decision.tried[0].backend.kind, BackendKind::Local);
}

#[test]
fn an_answer_that_has_begun_is_never_begun_anew() {
    let endpoint = Endpoint::answering(good_answer(&["from afar"]));
    let router = Router::new(policy(RoutingMode::PreferLocal))
        .with_backend(Arc::new(Model {
            fails_at: Some(1),
            ..Model::GOOD
        }))
        .with_backend(cloud(&endpoint.url()));
    let (text, answer) = ask(router, request());
    let error = answer.unwrap_err();
    assert!(
        matches!(
            &error.failure,
            RouteFailure::BrokeOff(BackendFailure::Local(_))
        ),
        "{error:?}"
    );
    assert_eq!((text.as_str(), endpoint.accepted()), ("on ", 0));

    let breaking = Endpoint::answering(format!("{STREAM_HEAD}{}", piece("from ")));
    let router = Router::new(policy(RoutingMode::PreferCloud))
        .with_backend(Arc::new(Model::GOOD))
        .with_backend(cloud(&breaking.url()));
    let (text, answer) = ask(router, request());
    let error = answer.unwrap_err();
    assert!(
        matches!(
            &error.failure,
            RouteFailure::BrokeOff(BackendFailure::Cloud(CloudError::InterruptedStream))
        ),
        "{error:?}"
    );
    assert_eq!(
        (text.as_str(), kind(&error.decision)),
        ("from ", Some(BackendKind::Cloud))
    );
}

#[test]
fn both_failing_says_why_of_both() {
    let endpoint = Endpoint::answering(status("401 Unauthorized", "", ""));
    let router = Router::new(policy(RoutingMode::PreferLocal))
        .with_backend(Arc::new(Model {
            fails_at: Some(0),
            ..Model::GOOD
        }))
        .with_backend(cloud(&endpoint.url()));
    let error = ask(router, request()).1.unwrap_err();
    let tried: Vec<BackendKind> = error
        .decision
        .tried
        .iter()
        .map(|tried| tried.backend.kind)
        .collect();
    assert_eq!(tried, [BackendKind::Local, BackendKind::Cloud]);
    assert!(
        matches!(
            &error.failure,
            RouteFailure::Failed(BackendFailure::Cloud(CloudError::Unauthorized { .. }))
        ),
        "{error:?}"
    );
}

#[test]
fn a_device_that_was_seen_to_be_slow_lets_the_endpoint_go_first() {
    let endpoint = Endpoint::answering(good_answer(&["from afar"]));
    let router = Router::new(policy(RoutingMode::PreferLocal))
        .with_backend(Arc::new(Model {
            prefill: Duration::from_secs(2),
            ..Model::GOOD
        }))
        .with_backend(cloud(&endpoint.url()));
    let answer = |router: &Router| {
        router
            .answer(&request(), &Cancellation::new(), &mut |_, _| {
                ControlFlow::Continue(())
            })
            .unwrap()
            .decision
    };
    let first = answer(&router);
    assert_eq!(
        (kind(&first), first.predicted_first_token_ms),
        (Some(BackendKind::Local), None)
    );
    let second = answer(&router);
    assert_eq!(
        (kind(&second), second.reason),
        (
            Some(BackendKind::Cloud),
            Some(Reason::TooSlow {
                predicted_ms: 2000,
                max_first_token_ms: 1000
            })
        )
    );
}

#[test]
fn cancelling_ends_either_backend_and_asks_no_other() {
    let endpoint = Endpoint::answering(format!("{STREAM_HEAD}{}", piece("from ")));
    for mode in [RoutingMode::PreferLocal, RoutingMode::PreferCloud] {
        let router = Router::new(policy(mode))
            .with_backend(Arc::new(Model::GOOD))
            .with_backend(cloud(&endpoint.url()));
        let mut pieces = 0;
        let answer = router
            .answer(&request(), &Cancellation::new(), &mut |_, _| {
                pieces += 1;
                ControlFlow::Break(())
            })
            .unwrap();
        assert_eq!((answer.finish_reason, pieces), (FinishReason::Cancelled, 1));
        assert!(answer.decision.tried.is_empty());
    }
}

#[test]
fn nobody_to_ask_is_said() {
    let (_, answer) = ask(Router::new(Policy::default()), request());
    assert!(matches!(
        answer.unwrap_err().failure,
        RouteFailure::Refused(Refusal::NoEndpoint)
    ));
}

#[test]
fn an_app_brings_its_own_http_stack() {
    let urls = Arc::new(Mutex::new(Vec::new()));
    let transport = Arc::new(InMemory(urls.clone()));
    let router = Router::new(policy(RoutingMode::CloudOnly))
        .with_backend(cloud_over("https://api.example.com/v1", transport));
    let (text, answer) = ask(router, request());
    assert_eq!(
        (text.as_str(), answer.unwrap().finish_reason),
        ("in memory", FinishReason::EndOfText)
    );
    assert_eq!(
        *urls.lock().unwrap(),
        ["https://api.example.com/v1/chat/completions"]
    );
}
