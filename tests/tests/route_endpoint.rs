//! The cloud client against endpoints that fail in every way: each ends in its own error, none hangs.
#![allow(clippy::unwrap_used)]

mod endpoint;

use endpoint::asking::{KEY, SHORT, WORDS, answered_with, ask, client, error_of, options};
use endpoint::{
    Connection, Endpoint, HUNG, STREAM_HEAD, dead_port, ending, good_answer, piece, status,
};
use niwaki::{Cancellation, GenerateOptions, Message};
use niwaki_openai::Usage;
use niwaki_route::{CloudAnswer, CloudError, ProtocolProblem, TimeoutPhase, TooLarge};
use std::ops::ControlFlow;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

#[test]
fn an_answer_streams_and_says_why_it_ended() {
    let endpoint = Endpoint::answering(good_answer(&["Grüße ", "", "木\n"]));
    let (text, answer) = ask(client(options(&endpoint.url())));
    assert_eq!(text, "Grüße 木\n");
    assert_eq!(
        answer.unwrap(),
        CloudAnswer {
            finish_reason: Some("stop".into()),
            usage: Some(Usage {
                prompt_tokens: 3,
                completion_tokens: 2,
                total_tokens: 0
            }),
            sent: 1
        }
    );
    let requests = endpoint.requests();
    let (head, body) = requests[0].split_once("\r\n\r\n").unwrap();
    let head = head.to_lowercase();
    assert!(
        head.starts_with("post /v1/chat/completions http/1.1\r\n"),
        "{head}"
    );
    assert!(
        head.contains(&format!("\r\nauthorization: bearer {KEY}")),
        "{head}"
    );
    assert!(head.contains("\r\naccept: text/event-stream"), "{head}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(
        body,
        serde_json::json!({
            "model": "some-model",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": WORDS}
            ],
            "stream": true,
            "stream_options": {"include_usage": true},
            "max_tokens": 7,
            "temperature": 0.5,
            "top_p": 0.5,
            "seed": 3
        })
    );
}

#[test]
fn text_is_given_out_as_it_comes() {
    let (seen, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let endpoint = Endpoint::serve(move |connection| {
        connection.send(format!("{STREAM_HEAD}{}", piece("first")));
        // The rest is not sent before the client has given the first piece out.
        wait.lock().unwrap().recv_timeout(HUNG).unwrap();
        connection.send(format!("{}{}", piece("second"), ending()));
    });
    let client = client(options(&endpoint.url()));
    let mut pieces = Vec::new();
    client
        .stream(
            &[Message::user(WORDS)],
            &GenerateOptions::default(),
            &Cancellation::new(),
            &mut |piece| {
                pieces.push(piece.to_owned());
                let _ = seen.send(());
                ControlFlow::Continue(())
            },
        )
        .unwrap();
    assert_eq!(pieces, ["first", "second"]);
}

#[test]
fn chunked_and_measured_bodies_are_read() {
    let events = format!("{}{}", piece("one"), ending());
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
    let mut chunked = format!("{head}transfer-encoding: chunked\r\n\r\n");
    for part in events.as_bytes().chunks(11) {
        chunked += &format!(
            "{:x}\r\n{}\r\n",
            part.len(),
            std::str::from_utf8(part).unwrap()
        );
    }
    chunked += "0\r\n\r\n";
    let measured = format!("{head}content-length: {}\r\n\r\n{events}", events.len());
    for response in [chunked, measured] {
        let (text, answer) = answered_with(response);
        assert!(answer.is_ok(), "{answer:?}");
        assert_eq!(text, "one");
    }
}

#[test]
fn an_answer_that_ended_needs_no_done() {
    let end = ending().replace("data: [DONE]\n\n", "");
    let (text, answer) = answered_with(format!("{STREAM_HEAD}{}{end}", piece("all")));
    assert_eq!((text.as_str(), answer.is_ok()), ("all", true));
}

#[test]
fn an_answer_that_is_done_without_a_reason_was_given_up() {
    let (text, answer) = answered_with(format!("{STREAM_HEAD}{}data: [DONE]\n\n", piece("half")));
    assert_eq!(text, "half");
    assert_eq!(answer.unwrap_err().error, CloudError::InterruptedStream);
}

#[test]
fn nobody_listens() {
    let host = format!("127.0.0.1:{}", dead_port());
    assert_eq!(
        error_of(options(&format!("http://{host}"))),
        CloudError::Refused { host }
    );
}

#[test]
fn a_name_that_does_not_exist() {
    let error = error_of(options("https://niwaki.invalid"));
    // Where no name server answers, even that takes its time.
    assert!(
        matches!(
            error,
            CloudError::Dns { .. }
                | CloudError::Timeout {
                    phase: TimeoutPhase::Connect,
                    ..
                }
        ),
        "{error}"
    );
}

#[test]
fn a_connection_that_stays_silent() {
    let endpoint = Endpoint::serve(|connection| assert!(connection.wait_for_close()));
    let mut options = options(&endpoint.url());
    options.timeouts.connect = Duration::ZERO.max(SHORT);
    options.timeouts.first_byte = SHORT;
    assert_eq!(
        error_of(options),
        CloudError::Timeout {
            phase: TimeoutPhase::FirstByte,
            after: SHORT + SHORT
        }
    );
}

#[test]
fn a_tls_server_that_never_shakes_hands() {
    let endpoint = Endpoint::serve(|connection| assert!(connection.wait_for_close()));
    let mut options = options(&endpoint.url().replace("http", "https"));
    options.timeouts.connect = SHORT;
    assert_eq!(
        error_of(options),
        CloudError::Timeout {
            phase: TimeoutPhase::Connect,
            after: SHORT
        }
    );
}

#[test]
fn a_stream_that_stops_and_one_that_drips_are_idle() {
    let stops = |connection: &mut Connection| {
        connection.send(format!("{STREAM_HEAD}{}", piece("some")));
        connection.wait_for_close();
    };
    let drips = |connection: &mut Connection| {
        connection.send(format!("{STREAM_HEAD}{}", piece("some")));
        // Bytes, but never a line.
        while connection.try_send("x") {
            thread::sleep(Duration::from_millis(20));
        }
    };
    for endpoint in [Endpoint::serve(stops), Endpoint::serve(drips)] {
        let mut options = options(&endpoint.url());
        options.timeouts.idle = SHORT;
        let (text, answer) = ask(client(options));
        let failure = answer.unwrap_err();
        assert_eq!((text.as_str(), failure.text_given), ("some", true));
        assert_eq!(
            failure.error,
            CloudError::Timeout {
                phase: TimeoutPhase::Idle,
                after: SHORT
            }
        );
    }
}

#[test]
fn signs_of_life_hold_until_the_whole_time_is_up() {
    let endpoint = Endpoint::serve(|connection| {
        connection.send(STREAM_HEAD);
        while connection.try_send(": still working\n\n") {
            thread::sleep(Duration::from_millis(20));
        }
    });
    let mut options = options(&endpoint.url());
    options.timeouts.idle = Duration::from_millis(600);
    options.timeouts.total = Duration::from_millis(1500);
    assert_eq!(
        error_of(options),
        CloudError::Timeout {
            phase: TimeoutPhase::Total,
            after: Duration::from_millis(1500)
        }
    );
}

#[test]
fn a_head_that_drips_is_no_response() {
    let endpoint = Endpoint::serve(|connection| {
        while connection.try_send("H") {
            thread::sleep(Duration::from_millis(20));
        }
    });
    let mut options = options(&endpoint.url());
    options.timeouts.connect = SHORT;
    options.timeouts.first_byte = SHORT;
    let error = error_of(options);
    assert!(
        matches!(
            error,
            CloudError::Timeout {
                phase: TimeoutPhase::FirstByte,
                ..
            } | CloudError::Protocol(ProtocolProblem::NotHttp)
        ),
        "{error}"
    );
}

#[test]
fn a_connection_that_breaks_before_and_within_the_answer() {
    for (sent, text_given) in [
        (String::new(), false),
        ("HTTP/1.1 200 OK\r\nconte".to_owned(), false),
        (STREAM_HEAD.to_owned(), false),
        (format!("{STREAM_HEAD}{}", piece("half")), true),
        (format!("{STREAM_HEAD}{}data: {{\"cho", piece("half")), true),
    ] {
        for reset in [false, true] {
            let bytes = sent.clone();
            let endpoint = Endpoint::serve(move |connection| {
                connection.send(&bytes);
                if reset {
                    connection.end_with_reset();
                }
            });
            let failure = ask(client(options(&endpoint.url()))).1.unwrap_err();
            // A reset may overtake what was sent before it.
            assert!(failure.text_given <= text_given, "{sent:?}");
            assert_eq!(failure.error, CloudError::InterruptedStream, "{sent:?}");
        }
    }
}

#[test]
fn a_body_shorter_than_announced() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
    for framing in ["content-length: 9999", "transfer-encoding: chunked"] {
        let (_, answer) = answered_with(format!("{head}{framing}\r\n\r\n"));
        assert_eq!(
            answer.unwrap_err().error,
            CloudError::InterruptedStream,
            "{framing}"
        );
    }
}

#[test]
fn what_is_no_stream_of_completions() {
    let not_http = ProtocolProblem::NotHttp;
    let not_stream = ProtocolProblem::NotEventStream;
    let not_chunk = ProtocolProblem::NotCompletionChunk;
    for (response, problem) in [
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(), not_http),
        (
            "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n<html>".to_owned(),
            not_stream,
        ),
        (status("200 OK", "", "{\"choices\":[]}"), not_stream),
        ("HTTP/1.1 200 OK\r\n\r\n".to_owned(), not_stream),
        (format!("{STREAM_HEAD}data: <html>\n\n"), not_chunk),
        (format!("{STREAM_HEAD}data: {{}}\n\n"), not_chunk),
        (format!("{STREAM_HEAD}data: \u{1}\u{2}\n\n"), not_chunk),
        (
            status("204 No Content", "", ""),
            ProtocolProblem::Status(204),
        ),
    ] {
        let (_, answer) = answered_with(response.clone());
        assert_eq!(
            answer.unwrap_err().error,
            CloudError::Protocol(problem),
            "{response:?}"
        );
    }
    let mut binary = STREAM_HEAD.as_bytes().to_vec();
    binary.extend((0..4096u32).map(|i| (i * 31 % 251) as u8));
    assert!(answered_with(binary).1.is_err());
}

#[test]
fn a_line_without_end_and_a_body_without_end() {
    let line = Endpoint::serve(|connection| {
        connection.send(format!("{STREAM_HEAD}data: "));
        while connection.try_send([b'x'; 4096]) {}
    });
    let mut small = options(&line.url());
    small.max_event_bytes = 100_000.try_into().unwrap();
    assert_eq!(
        error_of(small),
        CloudError::TooLarge {
            what: TooLarge::Event,
            limit_bytes: 100_000
        }
    );
    let body = Endpoint::serve(|connection| {
        connection.send(STREAM_HEAD);
        let comments = ": nothing\n\n".repeat(400);
        while connection.try_send(&comments) {}
    });
    let mut small = options(&body.url());
    small.max_response_bytes = 1_000_000;
    assert_eq!(
        error_of(small),
        CloudError::TooLarge {
            what: TooLarge::Response,
            limit_bytes: 1_000_000
        }
    );
    let head = Endpoint::serve(|connection| {
        connection.send("HTTP/1.1 200 OK\r\n");
        while connection.try_send("x: ".to_owned() + &"y".repeat(4096) + "\r\n") {}
    });
    assert_eq!(
        error_of(options(&head.url())),
        CloudError::Protocol(ProtocolProblem::NotHttp)
    );
}

#[test]
fn an_error_within_the_stream() {
    for (error, code) in [
        (
            "{\"message\":\"of the user's own words\",\"code\":\"overloaded\"}",
            Some("overloaded"),
        ),
        ("\"the user's own words\"", None),
    ] {
        let (text, answer) = answered_with(format!(
            "{STREAM_HEAD}{}data: {{\"error\":{error}}}\n\n",
            piece("some")
        ));
        assert_eq!(text, "some");
        assert_eq!(
            answer.unwrap_err().error,
            CloudError::Reported {
                code: code.map(str::to_owned)
            }
        );
    }
}

#[test]
fn every_status_has_its_error() {
    let body = "{\"error\":{\"message\":\"the user's own words\",\"code\":\"some_code\"}}";
    let code = Some("some_code".to_owned());
    for (line, error) in [
        (
            "400 Bad Request",
            CloudError::BadRequest {
                status: 400,
                code: code.clone(),
            },
        ),
        (
            "401 Unauthorized",
            CloudError::Unauthorized {
                status: 401,
                code: code.clone(),
            },
        ),
        (
            "403 Forbidden",
            CloudError::Unauthorized {
                status: 403,
                code: code.clone(),
            },
        ),
        ("404 Not Found", CloudError::NotFound { code: code.clone() }),
        (
            "408 Request Timeout",
            CloudError::Server {
                status: 408,
                code: code.clone(),
            },
        ),
        (
            "413 Too Large",
            CloudError::BadRequest {
                status: 413,
                code: code.clone(),
            },
        ),
        (
            "429 Too Many Requests",
            CloudError::RateLimited {
                retry_after: None,
                code: code.clone(),
            },
        ),
        (
            "500 Internal Server Error",
            CloudError::Server {
                status: 500,
                code: code.clone(),
            },
        ),
        (
            "501 Not Implemented",
            CloudError::Server {
                status: 501,
                code: code.clone(),
            },
        ),
        (
            "503 Service Unavailable",
            CloudError::Server {
                status: 503,
                code: code.clone(),
            },
        ),
    ] {
        assert_eq!(
            answered_with(status(line, "", body)).1.unwrap_err().error,
            error
        );
    }
}

#[test]
fn the_body_of_a_failure_holds_nobody_up() {
    let endpoint = Endpoint::serve(|connection| {
        connection.send("HTTP/1.1 500 Oh\r\n\r\n");
        while connection.try_send("x") {
            thread::sleep(Duration::from_millis(20));
        }
    });
    assert_eq!(
        error_of(options(&endpoint.url())),
        CloudError::Server {
            status: 500,
            code: None
        }
    );
    let huge = Endpoint::serve(|connection| {
        connection.send("HTTP/1.1 500 Oh\r\n\r\n");
        while connection.try_send([b'x'; 4096]) {}
    });
    assert_eq!(
        error_of(options(&huge.url())),
        CloudError::Server {
            status: 500,
            code: None
        }
    );
}
