//! A client that asks an endpoint once, with short waits, and a test that fails instead of hanging.
#![allow(dead_code, unreachable_pub)]

use super::{Endpoint, HUNG};
use niwaki::{Cancellation, GenerateOptions, Message, Sampling};
use niwaki_http::{HttpsTransport, Transport};
use niwaki_route::{
    ApiKeySource, CloudAnswer, CloudClient, CloudError, CloudFailure, CloudOptions, CloudTimeouts,
    RetryPolicy,
};
use std::ops::ControlFlow;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

pub const KEY: &str = "sk-test-0123456789";
pub const WORDS: &str = "the user's own words";
pub const SHORT: Duration = Duration::from_millis(300);

/// Once, with short waits where a test does not say otherwise.
pub fn options(url: &str) -> CloudOptions {
    CloudOptions {
        timeouts: CloudTimeouts {
            connect: Duration::from_secs(10),
            first_byte: Duration::from_secs(10),
            idle: Duration::from_secs(10),
            total: Duration::from_secs(20),
        },
        retry: RetryPolicy::NEVER,
        ..CloudOptions::new(url, "some-model")
    }
}

pub fn retrying(url: &str) -> CloudOptions {
    CloudOptions {
        retry: RetryPolicy {
            max_retries: 2,
            backoff: Duration::from_millis(20),
            max_wait: Duration::from_secs(5),
        },
        ..options(url)
    }
}

pub fn client_over(options: CloudOptions, transport: Arc<dyn Transport>) -> CloudClient {
    let key: Arc<dyn ApiKeySource> = Arc::new(|| Some(KEY.to_owned()));
    CloudClient::new(options, transport, key).unwrap()
}

pub fn client(options: CloudOptions) -> CloudClient {
    client_over(options, Arc::new(HttpsTransport::new()))
}

/// Asks, and fails the test instead of hanging. Neither errors nor what they print hold text or key.
pub fn ask(client: CloudClient) -> (String, Result<CloudAnswer, CloudFailure>) {
    ask_until(client, Cancellation::new())
}

pub fn ask_until(
    client: CloudClient,
    cancellation: Cancellation,
) -> (String, Result<CloudAnswer, CloudFailure>) {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut text = String::new();
        let result = client.stream(
            &[Message::system("Be brief."), Message::user(WORDS)],
            &GenerateOptions::default()
                .with_max_new_tokens(7)
                .with_sampling(
                    Sampling::GREEDY
                        .with_temperature(0.5)
                        .with_top_p(0.5)
                        .with_seed(3),
                ),
            &cancellation,
            &mut |piece| {
                text.push_str(piece);
                ControlFlow::Continue(())
            },
        );
        let printed = format!("{client:?} {result:?}");
        assert!(
            !printed.contains(KEY) && !printed.contains(WORDS),
            "{printed}"
        );
        let _ = sender.send((text, result));
    });
    receiver.recv_timeout(HUNG).unwrap()
}

pub fn error_of(options: CloudOptions) -> CloudError {
    ask(client(options)).1.unwrap_err().error
}

/// What an endpoint that answers with these bytes leads to.
pub fn answered_with(bytes: impl Into<Vec<u8>>) -> (String, Result<CloudAnswer, CloudFailure>) {
    let endpoint = Endpoint::answering(bytes);
    ask(client(options(&endpoint.url())))
}
