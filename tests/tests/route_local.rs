//! The router's local backend with a real model: the demo model and a chat template.
#![allow(clippy::unwrap_used)]

mod endpoint;

use endpoint::{Endpoint, good_answer};
use niwaki::{
    Cancellation, ChatTemplate, Engine, FinishReason, GenerateOptions, Message, OpenOptions,
    Sampling,
};
use niwaki_http::HttpsTransport;
use niwaki_route::{
    Backend, BackendFailure, BackendKind, CloudClient, CloudOptions, Decision, LocalModel, Policy,
    Prompt, Reason, RetryPolicy, RouteError, RouteFailure, RouteRequest, RoutedAnswer,
    RoutedStream, Router,
};
use niwaki_tests::build_demo;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::{Arc, LazyLock};

const TEMPLATE: &str = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:";

static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("demo.niwaki");
    build_demo(&bundle, niwaki_convert::build::Weights::Int4).unwrap();
    Engine::open(bundle, &OpenOptions::default()).unwrap()
});

fn template() -> ChatTemplate {
    ChatTemplate::new(
        TEMPLATE,
        ENGINE.generation_defaults().special_tokens.clone(),
    )
    .unwrap()
}

fn local() -> Arc<LocalModel> {
    let session = ENGINE.session().unwrap();
    Arc::new(LocalModel::with_template(session, template()))
}

fn request(messages: Vec<Message>) -> RouteRequest {
    RouteRequest {
        prompt: Prompt::Chat(messages),
        options: GenerateOptions::default()
            .with_max_new_tokens(12)
            .with_sampling(Sampling::GREEDY.with_temperature(1.0).with_seed(7)),
        on_device_only: false,
    }
}

/// Who answered.
fn kind(decision: &Decision) -> Option<BackendKind> {
    decision.answered_by.as_ref().map(|backend| backend.kind)
}

/// The text, the record with its first piece, and the answer.
fn ask(router: &Router, request: &RouteRequest) -> (String, Decision, RoutedAnswer) {
    let (mut text, mut first) = (String::new(), None);
    let answer = router
        .answer(request, &Cancellation::new(), &mut |piece, decision| {
            text.push_str(&piece.text);
            first.get_or_insert_with(|| decision.clone());
            ControlFlow::Continue(())
        })
        .unwrap();
    (text, first.unwrap(), answer)
}

#[test]
fn the_model_answers_as_a_chat_does_and_the_record_says_so_from_the_first_text_on() {
    let question = "Who lived in the forest?";
    let mut chat = niwaki::Chat::new(ENGINE.session().unwrap(), template());
    let options = request(Vec::new()).options;
    let said: String = chat
        .reply(question, &options)
        .map(|token| token.unwrap().text)
        .collect();

    let router = Router::new(Policy::default()).with_backend(local());
    let (text, first, answer) = ask(&router, &request(vec![Message::user(question)]));
    assert_eq!(text, said);
    assert_eq!(answer.finish_reason, FinishReason::MaxTokens);
    let decision = answer.decision;
    assert_eq!(
        (kind(&decision), decision.reason),
        (Some(BackendKind::Local), Some(Reason::NoEndpoint))
    );
    assert_eq!(decision.context_tokens, Some(ENGINE.context_tokens()));
    assert!(decision.prompt_tokens.unwrap() > 5);
    assert_eq!(
        (kind(&first), first.reason, first.first_text_ms),
        (kind(&decision), decision.reason, decision.first_text_ms)
    );
}

#[test]
fn a_turn_that_follows_is_measured_and_computed_without_what_came_before() {
    let local = local();
    let router = Router::new(Policy::default()).with_backend(local.clone());
    let mut messages = vec![
        Message::system("Tell tales. ".repeat(20)),
        Message::user("Who lived in the forest?"),
    ];
    assert_eq!(router.predict_first_token_ms(100), None);
    let (text, ..) = ask(&router, &request(messages.clone()));
    assert!(router.predict_first_token_ms(100).is_some());

    messages.push(Message::assistant(text));
    messages.push(Message::user("And then?"));
    let next = request(messages);
    let size = local.measure(&next.prompt).unwrap().unwrap();
    assert!(
        size.computed_tokens > 30 && size.computed_tokens < size.tokens,
        "{size:?}"
    );
    let again = ask(&router, &next).0;
    // What is reused changes nothing.
    let fresh = Router::new(Policy::default()).with_backend(self::local());
    assert_eq!(ask(&fresh, &next).0, again);
}

#[test]
fn a_limit_is_in_the_models_own_tokens() {
    let endpoint = Endpoint::answering(good_answer(&["from afar"]));
    let local = local();
    let request = request(vec![Message::user("Once upon a time there was a king.")]);
    let tokens = local.measure(&request.prompt).unwrap().unwrap().tokens;
    let router = |max_local_prompt_tokens| {
        let options = CloudOptions {
            retry: RetryPolicy::NEVER,
            ..CloudOptions::new(endpoint.url(), "large")
        };
        let cloud =
            CloudClient::new(options, Arc::new(HttpsTransport::new()), Arc::new(|| None)).unwrap();
        Router::new(Policy {
            max_local_prompt_tokens: Some(max_local_prompt_tokens),
            ..Policy::default()
        })
        .with_backend(local.clone())
        .with_backend(Arc::new(cloud))
    };
    let (_, _, answer) = ask(&router(tokens), &request);
    assert_eq!(kind(&answer.decision), Some(BackendKind::Local));
    assert_eq!(endpoint.accepted(), 0);
    let (text, _, answer) = ask(&router(tokens - 1), &request);
    assert_eq!(
        (text.as_str(), kind(&answer.decision)),
        ("from afar", Some(BackendKind::Cloud))
    );
}

#[test]
fn cancelling_leaves_a_model_that_answers_the_next_request() {
    let router = Router::new(Policy::default()).with_backend(local());
    let request = request(vec![Message::user("Who lived in the forest?")]);
    let mut pieces = 0;
    let answer = router
        .answer(&request, &Cancellation::new(), &mut |_, _| {
            pieces += 1;
            match pieces {
                2 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        })
        .unwrap();
    assert_eq!(answer.finish_reason, FinishReason::Cancelled);
    let (text, ..) = ask(&router, &request);
    let fresh = Router::new(Policy::default()).with_backend(local());
    assert_eq!(ask(&fresh, &request).0, text);
}

/// Everything a stream gives, in order.
fn read(stream: RoutedStream) -> (String, RoutedAnswer) {
    let mut stream = stream;
    let text = stream.by_ref().map(|token| token.text).collect();
    (text, stream.into_end().unwrap())
}

/// Why a stream that says nothing ended.
fn failure(mut stream: RoutedStream) -> RouteError {
    assert_eq!(stream.next(), None);
    stream.into_end().unwrap_err()
}

/// Waits until so many requests wait for the model.
fn until_waiting(local: &LocalModel, count: usize) {
    while local.waiting() != count {
        std::thread::yield_now();
    }
}

/// A request that takes as long as its reader does.
fn endless() -> RouteRequest {
    let mut request = request(vec![Message::user("Who lived in the forest?")]);
    request.options.max_new_tokens = 400;
    request
}

const AHEAD: NonZeroUsize = NonZeroUsize::MIN;

#[test]
fn a_text_is_continued_as_a_session_does_whether_as_text_or_as_tokens() {
    let words = "Once upon a time";
    let options = request(Vec::new()).options;
    let tokens = ENGINE.tokenizer().unwrap().encode(words, true).unwrap();
    let said: Vec<niwaki::Token> = ENGINE
        .session()
        .unwrap()
        .generate(&tokens, &options)
        .map(Result::unwrap)
        .collect();
    let local = Arc::new(LocalModel::without_chats(&ENGINE).named("small"));
    let router = Arc::new(Router::new(Policy::default()).with_backend(local.clone()));
    let prompts = [
        Prompt::Text(words.to_owned()),
        Prompt::Tokens {
            tokens: tokens.clone(),
            text: words.to_owned(),
        },
    ];
    for prompt in prompts {
        assert!(!format!("{prompt:?}").contains(words));
        let size = local.measure(&prompt).unwrap().unwrap();
        assert_eq!((size.tokens, size.computed_tokens), (tokens.len(), 0));
        let request = RouteRequest {
            prompt,
            ..request(Vec::new())
        };
        let mut stream = router.stream(request, AHEAD).unwrap();
        assert_eq!(stream.by_ref().collect::<Vec<_>>(), said);
        let answer = stream.into_end().unwrap();
        assert_eq!(answer.decision.answered_by.unwrap().name, "small");
        assert_eq!(answer.decision.prompt_tokens, Some(tokens.len()));
    }
    // It has no template to write a conversation with.
    let chat = request(vec![Message::user(words)]);
    let error = failure(router.stream(chat, AHEAD).unwrap());
    assert!(error.to_string().contains("no chat template"), "{error}");
}

#[test]
fn requests_are_answered_in_the_order_in_which_they_came() {
    let local = local();
    let router = Arc::new(Router::new(Policy::default()).with_backend(local.clone()));
    let (sender, order) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let first = router.stream(endless(), AHEAD).unwrap();
        first.read().unwrap();
        for number in 0..6 {
            let (router, sender) = (&router, sender.clone());
            scope.spawn(move || {
                let mut begun = false;
                let request = request(vec![Message::user(format!("{number}?"))]);
                let answer = router.answer(&request, &Cancellation::new(), &mut |_, _| {
                    if !std::mem::replace(&mut begun, true) {
                        sender.send(number).unwrap();
                    }
                    ControlFlow::Continue(())
                });
                assert_eq!(answer.unwrap().finish_reason, FinishReason::MaxTokens);
            });
            until_waiting(&local, number + 1);
        }
        drop(first);
    });
    drop(sender);
    assert_eq!(order.iter().collect::<Vec<_>>(), (0..6).collect::<Vec<_>>());
}

#[test]
fn a_request_that_waits_can_be_cancelled_and_one_too_many_goes_to_the_endpoint() {
    let endpoint = Endpoint::answering(good_answer(&["from afar"]));
    let session = ENGINE.session().unwrap();
    let local = Arc::new(LocalModel::with_template(session, template()).with_max_waiting(1));
    let options = CloudOptions {
        retry: RetryPolicy::NEVER,
        ..CloudOptions::new(endpoint.url(), "large")
    };
    let cloud =
        CloudClient::new(options, Arc::new(HttpsTransport::new()), Arc::new(|| None)).unwrap();
    let router = Arc::new(
        Router::new(Policy::default())
            .with_backend(local.clone())
            .with_backend(Arc::new(cloud)),
    );
    let answering = router.stream(endless(), AHEAD).unwrap();
    answering.read().unwrap();
    let waiting = router.stream(endless(), AHEAD).unwrap();
    until_waiting(&local, 1);

    let (text, answer) = read(router.stream(endless(), AHEAD).unwrap());
    assert_eq!(
        (text.as_str(), kind(&answer.decision)),
        ("from afar", Some(BackendKind::Cloud))
    );
    let tried = &answer.decision.tried[0];
    assert_eq!(
        (tried.backend.name.as_str(), tried.failure.code()),
        ("device", "busy")
    );
    // Where nobody else may answer, that is the answer.
    let staying = RouteRequest {
        on_device_only: true,
        ..endless()
    };
    let error = failure(router.stream(staying, AHEAD).unwrap());
    assert_eq!(
        error.failure.to_string(),
        "the model on the device cannot answer"
    );
    assert!(matches!(
        error.failure,
        RouteFailure::Failed(BackendFailure::Busy { waiting: 1 })
    ));

    waiting.cancellation().cancel();
    assert_eq!(waiting.read(), None);
    let left = waiting.end().unwrap().unwrap();
    assert_eq!(left.finish_reason, FinishReason::Cancelled);
    assert_eq!(
        (kind(&left.decision), local.waiting()),
        (Some(BackendKind::Local), 0)
    );
    drop(answering);
}

#[test]
fn an_answer_that_panics_leaves_a_model_that_answers_the_next() {
    let local = local();
    let router = Arc::new(Router::new(Policy::default()).with_backend(local));
    let request = request(vec![Message::user("Who lived in the forest?")]);
    let (text, _) = read(router.stream(request.clone(), AHEAD).unwrap());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        router.answer(&request, &Cancellation::new(), &mut |_, _| {
            panic!("as it should not")
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(read(router.stream(request, AHEAD).unwrap()).0, text);
}
