//! The cloud client over transports of an app that fail in every way: each ends in its own error within its
//! deadline, and the connection is closed when nobody wants more.
#![allow(clippy::unwrap_used)]

mod endpoint;

use endpoint::asking::{SHORT, ask, ask_until, options};
use endpoint::{HUNG, ending, piece};
use niwaki::Cancellation;
use niwaki_http::{Exchange, HttpHeader, HttpRequest, ResponseHead, Transport, TransportError};
use niwaki_route::{
    ApiKeySource, CloudAnswer, CloudClient, CloudError, CloudFailure, CloudOptions, KeyUnavailable,
    ProtocolProblem, TimeoutPhase, TooLarge,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// What a script does next with the response.
type Read = Box<dyn Fn(usize) -> Result<Option<Vec<u8>>, TransportError> + Send + Sync>;

/// A transport that does what a test says.
struct Script {
    /// Of `exchange`.
    prepare: fn() -> Result<(), TransportError>,
    send: fn() -> Result<ResponseHead, TransportError>,
    /// Gets the number of the call.
    read: Read,
    cancel: fn(),
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    prepared: AtomicUsize,
    reads: AtomicUsize,
    cancelled: AtomicUsize,
    request: Mutex<Option<HttpRequest>>,
}

impl Script {
    fn reading(
        read: impl Fn(usize) -> Result<Option<Vec<u8>>, TransportError> + Send + Sync + 'static,
    ) -> Script {
        Script {
            prepare: || Ok(()),
            send: || Ok(head(200)),
            read: Box::new(read),
            cancel: || (),
            seen: Arc::default(),
        }
    }

    fn good() -> Script {
        Script::reading(|call| {
            let parts = [piece("from "), piece("afar"), ending()];
            Ok(parts.get(call).map(|part| part.clone().into_bytes()))
        })
    }
}

struct Scripted {
    script: Arc<Script>,
}

struct Running(Arc<Script>);

impl Transport for Scripted {
    fn exchange(&self, request: HttpRequest) -> Result<Arc<dyn Exchange>, TransportError> {
        let seen = &self.script.seen;
        seen.prepared.fetch_add(1, Ordering::SeqCst);
        *seen.request.lock().unwrap() = Some(request);
        (self.script.prepare)()?;
        Ok(Arc::new(Running(self.script.clone())))
    }
}

impl Exchange for Running {
    fn send(&self) -> Result<ResponseHead, TransportError> {
        (self.0.send)()
    }

    fn read(&self) -> Result<Option<Vec<u8>>, TransportError> {
        let call = self.0.seen.reads.fetch_add(1, Ordering::SeqCst);
        (self.0.read)(call)
    }

    fn cancel(&self) {
        self.0.seen.cancelled.fetch_add(1, Ordering::SeqCst);
        (self.0.cancel)();
    }
}

fn head(status: u16) -> ResponseHead {
    ResponseHead {
        status,
        headers: vec![HttpHeader {
            name: "Content-Type".into(),
            value: "text/event-stream".into(),
        }],
    }
}

/// Never returns.
fn hang() -> ! {
    loop {
        thread::sleep(HUNG);
    }
}

fn short_options() -> CloudOptions {
    let mut options = options("https://api.example.com");
    options.timeouts.connect = SHORT;
    options.timeouts.first_byte = SHORT;
    options.timeouts.idle = SHORT;
    options
}

fn client_with(
    options: CloudOptions,
    script: Script,
    api_key: Arc<dyn ApiKeySource>,
) -> CloudClient {
    let transport = Scripted {
        script: Arc::new(script),
    };
    CloudClient::new(options, Arc::new(transport), api_key).unwrap()
}

fn ask_over(script: Script) -> (String, Result<CloudAnswer, CloudFailure>) {
    ask(client_with(short_options(), script, Arc::new(|| None)))
}

fn error_over(script: Script) -> CloudError {
    ask_over(script).1.unwrap_err().error
}

fn eventually(holds: impl Fn() -> bool) {
    let end = Instant::now() + HUNG;
    while !holds() {
        assert!(Instant::now() < end);
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn an_answer_comes_over_any_transport_which_is_told_what_it_needs() {
    let script = Script::good();
    let seen = script.seen.clone();
    let (text, answer) = ask(client_with(
        short_options(),
        script,
        Arc::new(|| Some("sk-1".to_owned())),
    ));
    assert_eq!((text.as_str(), answer.unwrap().sent), ("from afar", 1));
    let request = seen.request.lock().unwrap().take().unwrap();
    assert_eq!(
        request.url.to_string(),
        "https://api.example.com/v1/chat/completions"
    );
    let value = |name: &str| {
        let mut named = request.headers.iter().filter(|header| header.name == name);
        named.next().map(|header| header.value.as_str())
    };
    assert_eq!(value("authorization"), Some("Bearer sk-1"));
    assert_eq!(value("content-type"), Some("application/json"));
    assert_eq!(request.connect_timeout, SHORT);
    assert!(request.read_timeout > SHORT + SHORT);
}

#[test]
fn what_never_returns_holds_nobody_up() {
    let preparing = Script {
        prepare: || hang(),
        ..Script::good()
    };
    let sending = Script {
        send: || hang(),
        ..Script::good()
    };
    for script in [preparing, sending] {
        let began = Instant::now();
        assert_eq!(
            error_over(script),
            CloudError::Timeout {
                phase: TimeoutPhase::FirstByte,
                after: SHORT + SHORT
            }
        );
        assert!(began.elapsed() < Duration::from_secs(5));
    }
    // Nor does a transport that cannot be cancelled.
    let reading = Script {
        cancel: || hang(),
        ..Script::reading(|call| match call {
            0 => Ok(Some(piece("half").into_bytes())),
            _ => hang(),
        })
    };
    let (text, answer) = ask_over(reading);
    assert_eq!(text, "half");
    assert_eq!(
        answer.unwrap_err().error,
        CloudError::Timeout {
            phase: TimeoutPhase::Idle,
            after: SHORT
        }
    );
    let key = || -> Option<String> { hang() };
    let error = ask(client_with(short_options(), Script::good(), Arc::new(key)))
        .1
        .unwrap_err()
        .error;
    assert!(
        matches!(
            error,
            CloudError::Timeout {
                phase: TimeoutPhase::FirstByte,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn every_failure_of_a_transport_has_its_error() {
    let host = || "api.example.com".to_owned();
    for (failure, error) in [
        (
            TransportError::Refused,
            CloudError::Refused { host: host() },
        ),
        (
            TransportError::Unreachable,
            CloudError::Unreachable { host: host() },
        ),
        (TransportError::Dns, CloudError::Dns { host: host() }),
        (
            TransportError::ConnectTimeout,
            CloudError::Timeout {
                phase: TimeoutPhase::Connect,
                after: SHORT,
            },
        ),
        (TransportError::Interrupted, CloudError::InterruptedStream),
        (
            TransportError::NotHttp,
            CloudError::Protocol(ProtocolProblem::NotHttp),
        ),
        (TransportError::Failed, CloudError::Transport),
    ] {
        let failing = failure.clone();
        let (text, answer) = ask_over(Script::reading(move |call| match call {
            0 => Ok(Some(piece("half").into_bytes())),
            _ => Err(failing.clone()),
        }));
        assert_eq!(
            (text.as_str(), answer.unwrap_err().error),
            ("half", error),
            "{failure}"
        );
    }
    let panicking = Script {
        send: || panic!("a transport of the app fails"),
        ..Script::good()
    };
    // A backtrace takes its time.
    let options = options("https://api.example.com");
    let error = ask(client_with(options, panicking, Arc::new(|| None)))
        .1
        .unwrap_err()
        .error;
    assert_eq!(error, CloudError::Transport);
    let refusing = Script {
        prepare: || Err(TransportError::Unreachable),
        ..Script::good()
    };
    assert_eq!(
        error_over(refusing),
        CloudError::Unreachable { host: host() }
    );
}

#[test]
fn nonsense_from_a_transport_is_no_answer() {
    for (send, error) in [
        (
            (|| Ok(head(999))) as fn() -> _,
            CloudError::Protocol(ProtocolProblem::Status(999)),
        ),
        (
            || Ok(head(0)),
            CloudError::Protocol(ProtocolProblem::Status(0)),
        ),
        (
            || {
                Ok(ResponseHead {
                    status: 200,
                    headers: Vec::new(),
                })
            },
            CloudError::Protocol(ProtocolProblem::NotEventStream),
        ),
    ] {
        let script = Script {
            send,
            ..Script::good()
        };
        assert_eq!(error_over(script), error);
    }
    let garbage = Script::reading(|_| Ok(Some(b"\xff\xfe\0data: {]\n\n".to_vec())));
    assert!(matches!(
        error_over(garbage),
        CloudError::TooLarge { .. } | CloudError::Protocol(_) | CloudError::Timeout { .. }
    ));
    // Pieces without an end, and without anything in them: held back, and given up.
    let empty = Script::reading(|_| Ok(Some(Vec::new())));
    assert_eq!(
        error_over(empty),
        CloudError::Timeout {
            phase: TimeoutPhase::Idle,
            after: SHORT
        }
    );
    let huge = Script::reading(|_| Ok(Some(vec![b'\n'; 40 << 20])));
    assert_eq!(
        error_over(huge),
        CloudError::TooLarge {
            what: TooLarge::Response,
            limit_bytes: 32 << 20
        }
    );
}

#[test]
fn a_connection_is_cancelled_once_and_only_when_more_may_come() {
    // After [DONE] nobody asks whether the connection has more.
    let complete = Script::good();
    let seen = complete.seen.clone();
    ask_over(complete).1.unwrap();
    thread::sleep(Duration::from_millis(50));
    assert!(seen.cancelled.load(Ordering::SeqCst) <= 1);

    let endless = Script::reading(|_| {
        thread::sleep(Duration::from_millis(1));
        Ok(Some(piece("x").into_bytes()))
    });
    let seen = endless.seen.clone();
    let cancellation = Cancellation::new();
    let (begun, wait) = mpsc::channel();
    thread::spawn({
        let (cancellation, seen) = (cancellation.clone(), seen.clone());
        move || {
            eventually(|| seen.reads.load(Ordering::SeqCst) > 3);
            cancellation.cancel();
            let _ = begun.send(());
        }
    });
    let answer = ask_until(
        client_with(short_options(), endless, Arc::new(|| None)),
        cancellation,
    )
    .1;
    wait.recv_timeout(HUNG).unwrap();
    assert_eq!(answer.unwrap_err().error, CloudError::Cancelled);
    eventually(|| seen.cancelled.load(Ordering::SeqCst) == 1);
    // Nothing is read for nobody.
    let reads = seen.reads.load(Ordering::SeqCst);
    thread::sleep(Duration::from_millis(100));
    assert!(seen.reads.load(Ordering::SeqCst) <= reads + 20);
}

#[test]
fn a_slow_reader_holds_the_transport_back() {
    let endless = Script::reading(|_| Ok(Some(piece("x").into_bytes())));
    let seen = endless.seen.clone();
    let client = client_with(short_options(), endless, Arc::new(|| None));
    let mut texts = 0;
    client
        .stream(
            &[niwaki::Message::user("?")],
            &niwaki::GenerateOptions::default(),
            &Cancellation::new(),
            &mut |_| {
                texts += 1;
                thread::sleep(Duration::from_millis(50));
                match texts {
                    5 => std::ops::ControlFlow::Break(()),
                    _ => std::ops::ControlFlow::Continue(()),
                }
            },
        )
        .unwrap_err();
    assert!(seen.reads.load(Ordering::SeqCst) < 50);
}

#[test]
fn without_its_key_nothing_is_sent() {
    struct NoKey;
    impl ApiKeySource for NoKey {
        fn api_key(&self) -> Result<Option<String>, KeyUnavailable> {
            Err(KeyUnavailable)
        }
    }
    let script = Script::good();
    let seen = script.seen.clone();
    let failure = ask(client_with(short_options(), script, Arc::new(NoKey)))
        .1
        .unwrap_err();
    assert_eq!(
        (failure.error, failure.sent),
        (CloudError::KeyUnavailable, 0)
    );
    assert_eq!(seen.prepared.load(Ordering::SeqCst), 0);
}
