//! The cloud client against a server that nobody here wrote. `tests/cloud/check_llama_server` starts one and runs
//! this; without one there is nothing to test.
#![allow(clippy::unwrap_used)]

use niwaki::{Cancellation, GenerateOptions, Message, Sampling};
use niwaki_http::HttpsTransport;
use niwaki_route::{CloudClient, CloudError, CloudOptions, RetryPolicy};
use std::ops::ControlFlow;
use std::sync::Arc;

struct Server {
    url: String,
    model: String,
    key: String,
}

/// What the environment names; `None` when it names nothing.
fn server() -> Option<Server> {
    let Ok(url) = std::env::var("NIWAKI_TEST_ENDPOINT") else {
        eprintln!("skipped: NIWAKI_TEST_ENDPOINT names no server");
        return None;
    };
    Some(Server {
        url,
        model: std::env::var("NIWAKI_TEST_MODEL").unwrap(),
        key: std::env::var("NIWAKI_TEST_KEY").unwrap(),
    })
}

fn client(server: &Server, key: &str) -> CloudClient {
    let key = key.to_owned();
    CloudClient::new(
        CloudOptions {
            retry: RetryPolicy::NEVER,
            ..CloudOptions::new(&server.url, &server.model)
        },
        Arc::new(HttpsTransport::new()),
        Arc::new(move || Some(key.clone())),
    )
    .unwrap()
}

fn options(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions::default()
        .with_max_new_tokens(max_new_tokens)
        .with_sampling(Sampling::GREEDY.with_temperature(1.0).with_seed(7))
}

fn messages() -> [Message; 2] {
    [
        Message::system("Tell folk tales."),
        Message::user("Once upon a time"),
    ]
}

#[test]
fn an_answer_streams_in_pieces() {
    let Some(server) = server() else { return };
    let mut pieces = Vec::new();
    let answer = client(&server, &server.key)
        .stream(
            &messages(),
            &options(24),
            &Cancellation::new(),
            &mut |piece| {
                pieces.push(piece.to_owned());
                ControlFlow::Continue(())
            },
        )
        .unwrap();
    assert!(pieces.len() > 4, "{pieces:?}");
    let reason = answer.finish_reason.unwrap();
    assert!(["length", "stop"].contains(&reason.as_str()), "{reason}");
}

#[test]
fn a_wrong_key_is_unauthorized() {
    let Some(server) = server() else { return };
    let failure = client(&server, "wrong")
        .stream(&messages(), &options(4), &Cancellation::new(), &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap_err();
    assert!(
        matches!(failure.error, CloudError::Unauthorized { status: 401, .. }),
        "{failure}"
    );
}

#[test]
fn a_prompt_beyond_the_servers_context_is_an_error_and_no_empty_answer() {
    let Some(server) = server() else { return };
    let failure = client(&server, &server.key)
        .stream(
            &[Message::user("tale ".repeat(9000))],
            &options(4),
            &Cancellation::new(),
            &mut |_| ControlFlow::Continue(()),
        )
        .unwrap_err();
    // llama-cpp-python breaks its stream off; other servers say why.
    assert!(
        matches!(
            failure.error,
            CloudError::InterruptedStream
                | CloudError::BadRequest { .. }
                | CloudError::Reported { .. }
        ),
        "{failure:?}"
    );
    assert!(!format!("{failure:?}").contains("tale "));
}

#[test]
fn the_server_answers_the_next_request_after_a_cancelled_one() {
    let Some(server) = server() else { return };
    let client = client(&server, &server.key);
    let cancellation = Cancellation::new();
    let failure = client
        .stream(&messages(), &options(1500), &cancellation, &mut |_| {
            cancellation.cancel();
            ControlFlow::Continue(())
        })
        .unwrap_err();
    assert_eq!(
        (failure.error, failure.text_given),
        (CloudError::Cancelled, true)
    );
    client
        .stream(&messages(), &options(2), &Cancellation::new(), &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap();
}
