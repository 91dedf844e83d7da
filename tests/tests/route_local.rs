//! The router's local backend with a real model: the demo model and a chat template.
#![allow(clippy::unwrap_used)]

mod endpoint;

use endpoint::{Endpoint, good_answer};
use niwaki::{
    Cancellation, ChatRequest, ChatTemplate, Engine, FinishReason, GenerateOptions, Message,
    OpenOptions, Sampling,
};
use niwaki_http::HttpsTransport;
use niwaki_route::{
    Backend, CloudClient, CloudOptions, Decision, LocalChat, LocalModel, Policy, Reason,
    RetryPolicy, RouteRequest, RoutedAnswer, Router,
};
use niwaki_tests::build_demo;
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

fn local() -> Arc<LocalChat> {
    let session = ENGINE.session().unwrap();
    Arc::new(LocalChat::with_template(session, template()))
}

fn request(messages: Vec<Message>) -> RouteRequest {
    RouteRequest {
        chat: ChatRequest {
            messages,
            options: GenerateOptions::default()
                .with_max_new_tokens(12)
                .with_sampling(Sampling::GREEDY.with_temperature(1.0).with_seed(7)),
        },
        on_device_only: false,
    }
}

/// The text, the record with its first piece, and the answer.
fn ask(router: &Router, request: &RouteRequest) -> (String, Decision, RoutedAnswer) {
    let (mut text, mut first) = (String::new(), None);
    let answer = router
        .answer(request, &Cancellation::new(), &mut |piece, decision| {
            text.push_str(piece);
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
    let options = request(Vec::new()).chat.options;
    let said: String = chat
        .reply(question, &options)
        .map(|token| token.unwrap().text)
        .collect();

    let router = Router::new(Policy::default()).with_local(local());
    let (text, first, answer) = ask(&router, &request(vec![Message::user(question)]));
    assert_eq!(text, said);
    assert_eq!(answer.finish_reason, FinishReason::MaxTokens);
    let decision = answer.decision;
    assert_eq!(
        (decision.answered_by, decision.reason),
        (Some(Backend::Local), Some(Reason::NoEndpoint))
    );
    assert_eq!(decision.context_tokens, Some(ENGINE.context_tokens()));
    assert!(decision.prompt_tokens.unwrap() > 5);
    assert_eq!(
        (first.answered_by, first.reason, first.first_text_ms),
        (
            decision.answered_by,
            decision.reason,
            decision.first_text_ms
        )
    );
}

#[test]
fn a_turn_that_follows_is_measured_and_computed_without_what_came_before() {
    let local = local();
    let router = Router::new(Policy::default()).with_local(local.clone());
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
    let size = local.measure(&next.chat).unwrap();
    assert!(
        size.computed_tokens > 30 && size.computed_tokens < size.tokens,
        "{size:?}"
    );
    let again = ask(&router, &next).0;
    // What is reused changes nothing.
    let fresh = Router::new(Policy::default()).with_local(self::local());
    assert_eq!(ask(&fresh, &next).0, again);
}

#[test]
fn a_limit_is_in_the_models_own_tokens() {
    let endpoint = Endpoint::answering(good_answer(&["from afar"]));
    let local = local();
    let request = request(vec![Message::user("Once upon a time there was a king.")]);
    let tokens = local.measure(&request.chat).unwrap().tokens;
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
        .with_local(local.clone())
        .with_cloud(Arc::new(cloud))
    };
    let (_, _, answer) = ask(&router(tokens), &request);
    assert_eq!(answer.decision.answered_by, Some(Backend::Local));
    assert_eq!(endpoint.accepted(), 0);
    let (text, _, answer) = ask(&router(tokens - 1), &request);
    assert_eq!(
        (text.as_str(), answer.decision.answered_by),
        ("from afar", Some(Backend::Cloud))
    );
}

#[test]
fn cancelling_leaves_a_model_that_answers_the_next_request() {
    let router = Router::new(Policy::default()).with_local(local());
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
    let fresh = Router::new(Policy::default()).with_local(local());
    assert_eq!(ask(&fresh, &request).0, text);
}
