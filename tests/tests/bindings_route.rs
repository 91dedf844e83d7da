//! Routing as the apps behind the bindings see it.
#![allow(clippy::unwrap_used)]

mod endpoint;
#[path = "../../runtime/bundle/tests/synthetic/mod.rs"]
mod synthetic;

use endpoint::{
    Endpoint as Server, HUNG, STREAM_HEAD, dead_port, ending, good_answer, piece, status,
};
use niwaki_bindings::{
    ApiKeySource, Backend, BundleSource, ContextEnd, Decision, Endpoint, EndpointFailure,
    EndpointRetry, EndpointTimeouts, Engine, Exchange, FinishReason, GenerateOptions, HttpHeader,
    HttpRequest, Message, NiwakiError, OpenOptions, ResponseHead, Role, RouteRequest, RoutedStream,
    Router, RoutingMode, RoutingPolicy, RoutingReason, RoutingRefusal, Transport, TransportError,
};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use synthetic::Decoder;

const KEY: &str = "sk-test-0123456789";
const TEMPLATE: &str = "{% for m in messages %}{{ m.content }}{% endfor %}";
/// Tokens that a prompt may have on the device.
const LIMIT: u64 = 20;

fn engine() -> Arc<Engine> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.niwaki");
    let decoder = Decoder {
        vocabulary: 8,
        ..Decoder::TINY
    };
    decoder.write_with(&path, 1, |writer| {
        writer.set_tokenizer(synthetic::TOKENIZER.as_bytes().to_vec());
        writer.set_chat_template(TEMPLATE);
    });
    let source = BundleSource::Path {
        path: path.to_str().unwrap().to_owned(),
    };
    let options = OpenOptions {
        threads: 1,
        memory_limit_bytes: None,
        context_tokens: None,
        kv: None,
        verify_weights: true,
    };
    Engine::open(source, options).unwrap()
}

fn policy(mode: RoutingMode) -> RoutingPolicy {
    RoutingPolicy {
        mode,
        max_local_prompt_tokens: Some(LIMIT),
        max_first_token_ms: None,
    }
}

fn at(url: &str) -> Endpoint {
    Endpoint {
        url: url.to_owned(),
        model: "some-model".into(),
        timeouts: EndpointTimeouts {
            connect_ms: 300,
            first_byte_ms: 300,
            idle_ms: 300,
            total_ms: 10_000,
        },
        retry: EndpointRetry {
            max_retries: 0,
            backoff_ms: 0,
            max_wait_ms: 0,
        },
        allow_plaintext: false,
    }
}

fn request(letters: usize) -> RouteRequest {
    RouteRequest {
        messages: vec![Message {
            role: Role::User,
            content: "a".repeat(letters),
        }],
        options: GenerateOptions {
            max_new_tokens: 8,
            sampling: None,
            seed: 3,
            max_time_ms: None,
            log_probs: None,
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
            context_end: ContextEnd::Stop,
        },
        on_device_only: false,
    }
}

/// With the library's own HTTPS.
fn router(mode: RoutingMode, url: &str) -> Arc<Router> {
    Router::new(
        policy(mode),
        Some(engine()),
        Some(at(url)),
        Some(Arc::new(Key)),
        None,
    )
    .unwrap()
}

struct Key;

impl ApiKeySource for Key {
    fn api_key(&self) -> Result<Option<String>, NiwakiError> {
        Ok(Some(KEY.into()))
    }
}

fn read(stream: &RoutedStream) -> Result<String, NiwakiError> {
    let mut text = String::new();
    while let Some(piece) = stream.next()? {
        assert!(stream.decision().unwrap().answered_by.is_some());
        text.push_str(&piece);
    }
    Ok(text)
}

fn ask(router: &Router, request: RouteRequest) -> (Result<String, NiwakiError>, Decision) {
    let stream = router.answer(request).unwrap();
    let text = read(&stream);
    assert!(stream.finish().is_some());
    (text, stream.decision().unwrap())
}

#[test]
fn a_prompt_over_the_limit_goes_to_the_endpoint_and_one_under_it_stays() {
    let server = Server::answering(good_answer(&["from ", "afar"]));
    let router = router(RoutingMode::PreferLocal, &server.url());
    let (text, decision) = ask(&router, request(5));
    assert!(!text.unwrap().is_empty());
    assert_eq!(
        (decision.answered_by, decision.reason, server.accepted()),
        (Some(Backend::Local), Some(RoutingReason::Mode), 0)
    );
    assert!(router.predict_first_token_ms(100).is_some());

    let stream = router.answer(request(30)).unwrap();
    assert_eq!(read(&stream).unwrap(), "from afar");
    let decision = stream.decision().unwrap();
    assert_eq!(decision.answered_by, Some(Backend::Cloud));
    assert_eq!(
        decision.reason,
        Some(RoutingReason::PromptOverLimit {
            prompt_tokens: decision.prompt_tokens.unwrap(),
            max_local_prompt_tokens: LIMIT
        })
    );
    let finish = stream.finish().unwrap();
    assert_eq!(
        (
            finish.reason,
            finish.cloud_reason.as_deref(),
            finish.cloud_new_tokens
        ),
        (FinishReason::EndOfText, Some("stop"), Some(2))
    );
    let sent = server.requests().concat().to_lowercase();
    assert!(sent.contains(&format!("authorization: bearer {KEY}")));
}

#[test]
fn on_device_only_touches_neither_transport_nor_key() {
    struct Untouched(AtomicUsize);
    impl Transport for Untouched {
        fn exchange(&self, _: HttpRequest) -> Result<Arc<dyn Exchange>, TransportError> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Err(TransportError::Failed)
        }
    }
    impl ApiKeySource for Untouched {
        fn api_key(&self) -> Result<Option<String>, NiwakiError> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(None)
        }
    }
    let untouched = Arc::new(Untouched(AtomicUsize::new(0)));
    for mode in [
        RoutingMode::LocalOnly,
        RoutingMode::PreferLocal,
        RoutingMode::PreferCloud,
        RoutingMode::CloudOnly,
    ] {
        let router = Router::new(
            policy(mode),
            Some(engine()),
            Some(at("https://api.example.com")),
            Some(untouched.clone()),
            Some(untouched.clone()),
        )
        .unwrap();
        let (text, decision) = ask(
            &router,
            RouteRequest {
                on_device_only: true,
                ..request(30)
            },
        );
        assert!(decision.on_device_only);
        match mode {
            RoutingMode::CloudOnly => assert!(matches!(
                text.unwrap_err(),
                NiwakiError::NotRouted {
                    refusal: RoutingRefusal::OnDeviceOnly,
                    ..
                }
            )),
            _ => assert_eq!(decision.answered_by, Some(Backend::Local)),
        }
    }
    assert_eq!(untouched.0.load(Ordering::SeqCst), 0);
}

#[test]
fn a_dead_endpoint_is_said_quickly_and_led_back_from_where_that_is_allowed() {
    let dead = format!("http://127.0.0.1:{}", dead_port());
    let began = Instant::now();
    let (text, decision) = ask(&router(RoutingMode::CloudOnly, &dead), request(5));
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(
        matches!(
            text.as_ref().unwrap_err(),
            NiwakiError::Endpoint {
                failure: EndpointFailure::Refused,
                broke_off: false,
                ..
            }
        ),
        "{text:?}"
    );
    assert_eq!(decision.answered_by, None);

    let (text, decision) = ask(&router(RoutingMode::PreferCloud, &dead), request(5));
    assert!(text.is_ok());
    assert_eq!(decision.answered_by, Some(Backend::Local));
    let tried = &decision.tried[0];
    assert_eq!(
        (tried.backend, tried.code.as_str(), tried.sent),
        (Backend::Cloud, "refused", 1)
    );
}

#[test]
fn a_model_that_cannot_answer_is_followed_by_the_endpoint_and_the_record_says_why() {
    let server = Server::answering(good_answer(&["from afar"]));
    let refusing = RouteRequest {
        options: GenerateOptions {
            max_new_tokens: 1000,
            context_end: ContextEnd::Refuse,
            ..request(5).options
        },
        ..request(5)
    };
    let (text, decision) = ask(&router(RoutingMode::PreferLocal, &server.url()), refusing);
    assert_eq!(text.unwrap(), "from afar");
    assert_eq!(decision.answered_by, Some(Backend::Cloud));
    let tried = &decision.tried[0];
    assert_eq!(
        (tried.backend, tried.code.as_str()),
        (Backend::Local, "does_not_fit")
    );
}

#[test]
fn failures_of_an_endpoint_come_with_what_an_app_can_act_on() {
    let body = "{\"error\":{\"message\":\"secret words\",\"code\":\"some_code\"}}";
    let busy = Server::answering(status("429 Too Many", "retry-after: 7\r\n", body));
    let (text, _) = ask(&router(RoutingMode::CloudOnly, &busy.url()), request(5));
    let error = text.unwrap_err();
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    let NiwakiError::Endpoint {
        failure,
        status,
        code,
        retry_after_ms,
        broke_off,
        ..
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(
        (failure, status, code.as_deref(), retry_after_ms, broke_off),
        (
            EndpointFailure::RateLimited,
            Some(429),
            Some("some_code"),
            Some(7000),
            false
        )
    );
    let breaking = Server::answering(format!("{STREAM_HEAD}{}", piece("half")));
    let (text, decision) = ask(
        &router(RoutingMode::PreferCloud, &breaking.url()),
        request(5),
    );
    assert!(
        matches!(
            text.as_ref().unwrap_err(),
            NiwakiError::Endpoint {
                failure: EndpointFailure::Interrupted,
                broke_off: true,
                ..
            }
        ),
        "{text:?}"
    );
    assert_eq!(decision.answered_by, Some(Backend::Cloud));
}

#[test]
fn routers_that_make_no_sense_are_refused() {
    for url in [
        "api.example.com",
        "http://api.example.com",
        "https://user:word@example.com",
        "https://api.example.com:99999",
    ] {
        let made = Router::new(
            policy(RoutingMode::CloudOnly),
            None,
            Some(at(url)),
            None,
            None,
        );
        let error = made.err().unwrap();
        assert!(
            matches!(error, NiwakiError::InvalidArgument { .. }),
            "{error:?}"
        );
    }
    let nobody = Router::new(policy(RoutingMode::PreferLocal), None, None, None, None).unwrap();
    let (text, decision) = ask(&nobody, request(5));
    assert!(matches!(
        text.unwrap_err(),
        NiwakiError::NotRouted {
            refusal: RoutingRefusal::NoEndpoint,
            ..
        }
    ));
    assert_eq!((decision.answered_by, decision.reason), (None, None));
}

#[test]
fn cancelling_and_dropping_close_the_connection() {
    for dropped in [false, true] {
        let (closed, wait) = mpsc::channel();
        let closed = Mutex::new(closed);
        let server = Server::serve(move |connection| {
            connection.send(format!("{STREAM_HEAD}{}", piece("some")));
            let _ = closed.lock().unwrap().send(connection.wait_for_close());
        });
        let mut endpoint = at(&server.url());
        endpoint.timeouts.idle_ms = 60_000;
        let mode = policy(RoutingMode::CloudOnly);
        let router = Router::new(mode, None, Some(endpoint), None, None).unwrap();
        let stream = router.answer(request(5)).unwrap();
        assert_eq!(stream.next().unwrap().as_deref(), Some("some"));
        if dropped {
            drop(stream);
        } else {
            stream.cancel();
            assert_eq!(stream.next().unwrap(), None);
            assert_eq!(stream.finish().unwrap().reason, FinishReason::Cancelled);
        }
        assert!(wait.recv_timeout(HUNG).unwrap());
    }
}

/// An app's own HTTP stack.
struct App {
    fails: Option<TransportError>,
    hangs: bool,
    cancelled: Arc<AtomicBool>,
}

struct AppExchange {
    parts: Mutex<Vec<String>>,
    hangs: bool,
    cancelled: Arc<AtomicBool>,
}

impl Transport for App {
    fn exchange(&self, request: HttpRequest) -> Result<Arc<dyn Exchange>, TransportError> {
        assert_eq!(request.url, "https://api.example.com/v1/chat/completions");
        if let Some(error) = &self.fails {
            return Err(error.clone());
        }
        Ok(Arc::new(AppExchange {
            parts: Mutex::new(vec![ending(), piece("app"), piece("by the ")]),
            hangs: self.hangs,
            cancelled: self.cancelled.clone(),
        }))
    }
}

impl Exchange for AppExchange {
    fn send(&self) -> Result<ResponseHead, TransportError> {
        let header = HttpHeader {
            name: "content-type".into(),
            value: "text/event-stream".into(),
        };
        Ok(ResponseHead {
            status: 200,
            headers: vec![header],
        })
    }

    fn read(&self) -> Result<Option<Vec<u8>>, TransportError> {
        while self.hangs && !self.cancelled.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(2));
        }
        Ok(self.parts.lock().unwrap().pop().map(String::into_bytes))
    }

    fn cancel(&self) -> Result<(), TransportError> {
        self.cancelled.store(true, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn an_app_brings_its_own_http_stack() {
    let over = |fails: Option<TransportError>, hangs: bool| {
        let cancelled = Arc::new(AtomicBool::new(false));
        let transport = App {
            fails,
            hangs,
            cancelled: cancelled.clone(),
        };
        let endpoint = at("https://api.example.com");
        let router = Router::new(
            policy(RoutingMode::CloudOnly),
            None,
            Some(endpoint),
            None,
            Some(Arc::new(transport)),
        );
        let (text, _) = ask(&router.unwrap(), request(5));
        let failure = text.as_ref().err().map(|error| match error {
            NiwakiError::Endpoint { failure, .. } => *failure,
            _ => panic!("{error:?}"),
        });
        (text.ok(), failure, cancelled)
    };
    assert_eq!(over(None, false).0.as_deref(), Some("by the app"));
    let reason = "x".repeat(10_000);
    for (error, failure) in [
        (TransportError::Unreachable, EndpointFailure::Unreachable),
        (TransportError::Tls { reason }, EndpointFailure::Tls),
        (TransportError::Failed, EndpointFailure::Transport),
    ] {
        assert_eq!(over(Some(error), false).1, Some(failure));
    }
    let (_, failure, cancelled) = over(None, true);
    assert_eq!(failure, Some(EndpointFailure::IdleTimeout));
    let end = Instant::now() + HUNG;
    while !cancelled.load(Ordering::SeqCst) {
        assert!(Instant::now() < end);
        thread::yield_now();
    }
}

#[test]
fn a_key_that_cannot_be_had_sends_nothing() {
    struct Locked;
    impl ApiKeySource for Locked {
        fn api_key(&self) -> Result<Option<String>, NiwakiError> {
            Err(NiwakiError::Busy)
        }
    }
    let server = Server::answering(good_answer(&["?"]));
    let router = Router::new(
        policy(RoutingMode::CloudOnly),
        None,
        Some(at(&server.url())),
        Some(Arc::new(Locked)),
        None,
    )
    .unwrap();
    let (text, decision) = ask(&router, request(5));
    assert!(matches!(
        text.unwrap_err(),
        NiwakiError::Endpoint {
            failure: EndpointFailure::KeyUnavailable,
            ..
        }
    ));
    let tried = &decision.tried[0];
    assert_eq!((tried.code.as_str(), tried.sent), ("key_unavailable", 0));
    assert_eq!(server.accepted(), 0);
}
