//! What the cloud client sends, to whom and how often: retries, redirects, trust, keys, cancellation.
#![allow(clippy::unwrap_used)]

mod endpoint;

use endpoint::asking::{
    WORDS, answered_with, ask, ask_until, client, client_over, error_of, options, retrying,
};
use endpoint::{Certificate, Connection, Endpoint, HUNG, STREAM_HEAD, good_answer, piece, status};
use niwaki::{Cancellation, GenerateOptions, Message};
use niwaki_http::HttpsTransport;
use niwaki_route::{CloudClient, CloudError};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

#[test]
fn a_failure_that_passes_is_tried_again() {
    for failure in [
        status("408 Request Timeout", "", ""),
        status("429 Too Many Requests", "", ""),
        status("429 Too Many Requests", "retry-after: 0\r\n", ""),
        status("500 Internal Server Error", "", ""),
        status("503 Service Unavailable", "retry-after: 1\r\n", ""),
        STREAM_HEAD.to_owned(),
        String::new(),
    ] {
        let first = failure.clone();
        let endpoint = Endpoint::serve(move |connection| match connection.number {
            0 => connection.send(&first),
            _ => connection.send(good_answer(&["yes"])),
        });
        let (text, answer) = ask(client(retrying(&endpoint.url())));
        assert_eq!(
            (text.as_str(), answer.unwrap().sent),
            ("yes", 2),
            "{failure:?}"
        );
    }
}

#[test]
fn tries_end() {
    let endpoint = Endpoint::answering(status("503 Service Unavailable", "", ""));
    let failure = ask(client(retrying(&endpoint.url()))).1.unwrap_err();
    assert_eq!((failure.sent, endpoint.accepted()), (3, 3));
}

#[test]
fn an_endpoint_that_asks_for_a_long_wait_is_not_waited_for() {
    let endpoint =
        Endpoint::answering(status("429 Too Many Requests", "Retry-After: 3600\r\n", ""));
    let failure = ask(client(retrying(&endpoint.url()))).1.unwrap_err();
    assert_eq!(
        (failure.error, failure.sent),
        (
            CloudError::RateLimited {
                retry_after: Some(Duration::from_secs(3600)),
                code: None
            },
            1
        )
    );
}

#[test]
fn what_will_not_pass_and_what_has_begun_is_not_sent_twice() {
    for response in [
        status("400 Bad Request", "", ""),
        status("401 Unauthorized", "", ""),
        status("404 Not Found", "", ""),
        format!("{STREAM_HEAD}data: <html>\n\n"),
        format!("{STREAM_HEAD}{}", piece("half")),
    ] {
        let endpoint = Endpoint::answering(response.clone());
        let failure = ask(client(retrying(&endpoint.url()))).1.unwrap_err();
        assert_eq!((failure.sent, endpoint.accepted()), (1, 1), "{response:?}");
    }
}

#[test]
fn a_redirect_is_not_followed_and_the_key_not_passed_on() {
    let elsewhere = Endpoint::answering(good_answer(&["stolen"]));
    for line in [
        "301 Moved",
        "302 Found",
        "303 See Other",
        "307 Temporary",
        "308 Permanent",
    ] {
        let location = format!("location: {}/v1/chat/completions\r\n", elsewhere.url());
        let (_, answer) = answered_with(status(line, &location, ""));
        assert_eq!(
            answer.unwrap_err().error,
            CloudError::Redirected {
                status: line[..3].parse().unwrap()
            }
        );
    }
    assert_eq!(elsewhere.accepted(), 0);
}

#[test]
fn a_certificate_is_trusted_only_by_its_own_root() {
    let certificate = Certificate::for_localhost();
    let endpoint = Endpoint::serve_tls(&certificate, |connection| {
        connection.send(good_answer(&["hello"]));
    });
    let url = endpoint.localhost_url();
    let error = error_of(options(&url));
    assert!(matches!(error, CloudError::Tls { .. }), "{error}");

    let trusting = HttpsTransport::with_roots(certificate.pem.as_bytes()).unwrap();
    let (text, answer) = ask(client_over(options(&url), Arc::new(trusting.clone())));
    assert_eq!((text.as_str(), answer.is_ok()), ("hello", true));

    let wrong_name = ask(client_over(options(&endpoint.url()), Arc::new(trusting))).1;
    let error = wrong_name.unwrap_err().error;
    assert!(matches!(error, CloudError::Tls { .. }), "{error}");
    // Without trust no request was sent, and no key.
    assert_eq!(endpoint.requests().len(), 1);
}

#[test]
fn plaintext_does_not_leave_the_machine() {
    let error = CloudClient::new(
        options("http://api.example.com"),
        Arc::new(HttpsTransport::new()),
        Arc::new(|| None),
    )
    .unwrap_err();
    assert_eq!(
        error,
        CloudError::PlaintextForbidden {
            host: "api.example.com".into()
        }
    );
}

#[test]
fn a_key_that_would_forge_headers_is_not_sent() {
    let endpoint = Endpoint::answering(good_answer(&["?"]));
    let client = CloudClient::new(
        options(&endpoint.url()),
        Arc::new(HttpsTransport::new()),
        Arc::new(|| Some("key\r\nx-evil: 1".to_owned())),
    )
    .unwrap();
    assert_eq!(ask(client).1.unwrap_err().error, CloudError::InvalidKey);
    assert_eq!(endpoint.accepted(), 0);
}

#[test]
fn cancelling_closes_the_connection_wherever_it_waits() {
    let silent = |_: &mut Connection| ();
    let streaming = |connection: &mut Connection| {
        connection.send(format!("{STREAM_HEAD}{}", piece("some")));
    };
    let scripts: [fn(&mut Connection); 2] = [silent, streaming];
    for script in scripts {
        let cancellation = Cancellation::new();
        let closed = Arc::new(AtomicBool::new(false));
        let (arrived, wait) = mpsc::channel();
        let endpoint = Endpoint::serve({
            let (closed, arrived) = (closed.clone(), std::sync::Mutex::new(arrived));
            let cancellation = cancellation.clone();
            move |connection| {
                script(connection);
                cancellation.cancel();
                closed.store(connection.wait_for_close(), Ordering::SeqCst);
                let _ = arrived.lock().unwrap().send(());
            }
        });
        let failure = ask_until(client(retrying(&endpoint.url())), cancellation)
            .1
            .unwrap_err();
        assert_eq!((failure.error, failure.sent), (CloudError::Cancelled, 1));
        wait.recv_timeout(HUNG).unwrap();
        assert!(closed.load(Ordering::SeqCst));
    }
}

#[test]
fn cancelling_ends_the_wait_between_two_tries() {
    let cancellation = Cancellation::new();
    let endpoint = Endpoint::serve({
        let cancellation = cancellation.clone();
        move |connection| {
            connection.send(status("503 Service Unavailable", "retry-after: 25\r\n", ""));
            cancellation.cancel();
        }
    });
    let mut options = retrying(&endpoint.url());
    options.retry.max_wait = Duration::from_secs(60);
    options.timeouts.total = Duration::from_secs(60);
    let failure = ask_until(client(options), cancellation).1.unwrap_err();
    assert_eq!(failure.error, CloudError::Cancelled);
}

#[test]
fn breaking_off_closes_the_connection() {
    let (closed, wait) = mpsc::channel();
    let closed = std::sync::Mutex::new(closed);
    let endpoint = Endpoint::serve(move |connection| {
        connection.send(format!("{STREAM_HEAD}{}{}", piece("one"), piece("two")));
        let _ = closed.lock().unwrap().send(connection.wait_for_close());
    });
    let mut pieces = 0;
    let failure = client(options(&endpoint.url()))
        .stream(
            &[Message::user(WORDS)],
            &GenerateOptions::default(),
            &Cancellation::new(),
            &mut |_| {
                pieces += 1;
                ControlFlow::Break(())
            },
        )
        .unwrap_err();
    assert_eq!((failure.error, pieces), (CloudError::Cancelled, 1));
    assert!(wait.recv_timeout(HUNG).unwrap());
}
