//! A router over a list of backends: who is asked, in which order, what is recorded, and what is read.
#![allow(clippy::unwrap_used)]

use niwaki::{
    Cancellation, ContextEnd, FinishReason, GenerateError, GenerateOptions, Message, SessionError,
    Token,
};
use niwaki_route::{
    Backend, BackendAnswer, BackendFailure, BackendId, BackendKind, Capabilities, CloudError,
    Decision, Policy, Prompt, PromptKind, PromptSize, Reason, Refusal, RouteFailure, RouteRequest,
    Router, RoutingMode, Unanswered,
};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

const WORDS: &str = "the user's own words";

/// What a backend does after the tokens it says.
#[derive(Clone)]
enum End {
    Complete,
    Fails(BackendFailure),
    Panics,
    /// Says its last word again and again.
    Never,
}

/// A backend that does what a test says.
struct Scripted {
    name: &'static str,
    capabilities: Capabilities,
    prompt_tokens: Option<usize>,
    says: Vec<Token>,
    end: End,
    asked: AtomicUsize,
    measured: AtomicUsize,
}

fn says(texts: &[&str]) -> Vec<Token> {
    let ids = 1..;
    ids.zip(texts)
        .map(|(id, text)| Token {
            id: Some(id),
            text: (*text).to_owned(),
            log_probs: None,
        })
        .collect()
}

fn scripted(name: &'static str, kind: BackendKind, end: End) -> Scripted {
    Scripted {
        name,
        capabilities: Capabilities {
            kind,
            chats: true,
            plain_prompts: kind == BackendKind::Local,
            context_tokens: (kind == BackendKind::Local).then_some(100),
        },
        prompt_tokens: (kind == BackendKind::Local).then_some(10),
        says: match end {
            End::Fails(_) => Vec::new(),
            _ => says(&["by ", name]),
        },
        end,
        asked: AtomicUsize::new(0),
        measured: AtomicUsize::new(0),
    }
}

fn local(name: &'static str, end: End) -> Scripted {
    scripted(name, BackendKind::Local, end)
}

fn cloud(name: &'static str, end: End) -> Scripted {
    scripted(name, BackendKind::Cloud, end)
}

fn broken() -> End {
    End::Fails(GenerateError::Session(SessionError::NoTokens).into())
}

fn unreachable() -> End {
    End::Fails(
        CloudError::Refused {
            host: "box.local".into(),
        }
        .into(),
    )
}

impl Backend for Scripted {
    fn name(&self) -> &str {
        self.name
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn measure(&self, _: &Prompt) -> Result<Option<PromptSize>, BackendFailure> {
        self.measured.fetch_add(1, Ordering::SeqCst);
        Ok(self.prompt_tokens.map(|tokens| PromptSize {
            tokens,
            computed_tokens: 0,
        }))
    }

    fn answer(
        &self,
        _: &RouteRequest,
        cancellation: &Cancellation,
        on_token: &mut dyn FnMut(Token) -> ControlFlow<()>,
    ) -> Result<BackendAnswer, Unanswered> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        for token in &self.says {
            if on_token(token.clone()).is_break() {
                return Ok(BackendAnswer::ended(FinishReason::Cancelled));
            }
        }
        match &self.end {
            End::Complete => Ok(BackendAnswer::ended(FinishReason::EndOfText)),
            End::Fails(failure) => Err(failure.clone().into()),
            End::Panics => panic!("as it should not"),
            End::Never => {
                while !cancellation.is_cancelled() {
                    let last = self.says.last().unwrap().clone();
                    if on_token(last).is_break() {
                        break;
                    }
                }
                Ok(BackendAnswer::ended(FinishReason::Cancelled))
            }
        }
    }
}

/// A router, and who it can ask.
fn router(mode: RoutingMode, list: Vec<Scripted>) -> (Arc<Router>, Vec<Arc<Scripted>>) {
    let list: Vec<Arc<Scripted>> = list.into_iter().map(Arc::new).collect();
    let policy = Policy {
        mode,
        max_local_prompt_tokens: Some(50),
        max_first_token_ms: None,
    };
    let mut router = Router::new(policy);
    for backend in &list {
        router = router.with_backend(backend.clone());
    }
    (Arc::new(router), list)
}

fn chat() -> RouteRequest {
    RouteRequest {
        prompt: Prompt::Chat(vec![Message::user(WORDS)]),
        options: GenerateOptions::default(),
        on_device_only: false,
    }
}

fn text() -> RouteRequest {
    RouteRequest {
        prompt: Prompt::Text(WORDS.to_owned()),
        ..chat()
    }
}

const AHEAD: NonZeroUsize = NonZeroUsize::MIN;

/// What was said, the failure if there was one, and the record, which holds no text.
fn ask(router: &Arc<Router>, request: RouteRequest) -> (String, Option<RouteFailure>, Decision) {
    let mut stream = router.stream(request, AHEAD).unwrap();
    let said: String = stream.by_ref().map(|token| token.text).collect();
    let decision = stream.decision().unwrap();
    let end = stream.into_end();
    let printed = format!(
        "{end:?} {router:?} {}",
        serde_json::to_string(&decision).unwrap()
    );
    assert!(
        !printed.contains(WORDS) && !printed.contains("by "),
        "{printed}"
    );
    (said, end.err().map(|error| error.failure), decision)
}

fn names(decision: &Decision) -> Vec<&str> {
    let tried = decision
        .tried
        .iter()
        .map(|tried| tried.backend.name.as_str());
    tried.collect()
}

#[test]
fn failures_before_the_first_text_lead_down_the_list() {
    let (router, list) = router(
        RoutingMode::PreferLocal,
        vec![
            cloud("edge", unreachable()),
            local("small", broken()),
            local("large", End::Fails(BackendFailure::Busy { waiting: 7 })),
            cloud("far", End::Complete),
        ],
    );
    let (said, failure, decision) = ask(&router, chat());
    assert_eq!((said.as_str(), failure.is_none()), ("by far", true));
    assert_eq!(names(&decision), ["small", "large", "edge"]);
    let codes: Vec<&str> = decision
        .tried
        .iter()
        .map(|tried| tried.failure.code())
        .collect();
    assert_eq!(codes, ["session", "busy", "refused"]);
    assert_eq!(
        decision.answered_by,
        Some(BackendId {
            name: "far".into(),
            kind: BackendKind::Cloud
        })
    );
    let asked = list
        .iter()
        .map(|backend| backend.asked.load(Ordering::SeqCst));
    assert_eq!(asked.collect::<Vec<_>>(), [1, 1, 1, 1]);
    let record = serde_json::to_value(&decision).unwrap();
    assert_eq!(
        record["answered_by"],
        serde_json::json!({"name": "far", "kind": "cloud"})
    );
    assert_eq!(record["tried"][1]["backend"]["name"], "large");
    assert_eq!(record["tried"][1]["failure"]["code"], "busy");
}

#[test]
fn all_failing_is_the_last_failure_and_the_record_of_all() {
    let (router, _) = router(
        RoutingMode::PreferCloud,
        vec![local("small", broken()), cloud("far", unreachable())],
    );
    let (said, failure, decision) = ask(&router, chat());
    assert_eq!(
        (said.as_str(), names(&decision)),
        ("", vec!["far", "small"])
    );
    assert!(
        matches!(
            failure,
            Some(RouteFailure::Failed(BackendFailure::Local(_)))
        ),
        "{failure:?}"
    );
    assert_eq!(decision.answered_by, None);
}

#[test]
fn after_the_first_text_nobody_else_is_asked() {
    let half = Scripted {
        says: says(&["half"]),
        ..local("small", broken())
    };
    let (router, list) = router(
        RoutingMode::PreferLocal,
        vec![
            half,
            local("large", End::Complete),
            cloud("far", End::Complete),
        ],
    );
    let (said, failure, decision) = ask(&router, chat());
    assert_eq!(said, "half");
    assert!(
        matches!(failure, Some(RouteFailure::BrokeOff(_))),
        "{failure:?}"
    );
    assert_eq!(decision.answered_by.unwrap().name, "small");
    for other in &list[1..] {
        assert_eq!(other.asked.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn tokens_without_text_are_nobodys_answer_yet() {
    let silent = |end| Scripted {
        says: says(&["", ""]),
        ..local("small", end)
    };
    let read = |list| {
        let (router, _) = router(RoutingMode::LocalOnly, list);
        let stream = router.stream(chat(), AHEAD).unwrap();
        stream
            .map(|token| (token.id, token.text))
            .collect::<Vec<_>>()
    };
    // Those of an attempt that failed are not part of the answer that follows, whose own are.
    let large = Scripted {
        says: says(&["", "a", "", "b"]),
        ..local("large", End::Complete)
    };
    let token = |id, text: &str| (Some(id), text.to_owned());
    assert_eq!(
        read(vec![silent(broken()), large]),
        [token(1, ""), token(2, "a"), token(3, ""), token(4, "b")]
    );
    assert_eq!(
        read(vec![silent(End::Complete)]),
        [token(1, ""), token(2, "")]
    );
}

#[test]
fn what_may_not_leave_the_device_touches_nobody_off_it() {
    for mode in [
        RoutingMode::LocalOnly,
        RoutingMode::PreferLocal,
        RoutingMode::PreferCloud,
        RoutingMode::CloudOnly,
    ] {
        for end in [End::Complete, broken()] {
            let (router, list) = router(
                mode,
                vec![
                    cloud("edge", End::Complete),
                    local("small", end.clone()),
                    local("large", end),
                    cloud("far", End::Complete),
                ],
            );
            for request in [chat(), text()] {
                let request = RouteRequest {
                    on_device_only: true,
                    ..request
                };
                let (_, failure, decision) = ask(&router, request);
                if mode == RoutingMode::CloudOnly {
                    assert!(matches!(
                        failure,
                        Some(RouteFailure::Refused(Refusal::OnDeviceOnly))
                    ));
                }
                assert!(decision.on_device_only);
            }
            for backend in [&list[0], &list[3]] {
                assert_eq!(backend.asked.load(Ordering::SeqCst), 0);
                assert_eq!(backend.measured.load(Ordering::SeqCst), 0);
            }
        }
    }
}

#[test]
fn a_longer_context_further_down_the_list_takes_what_the_first_has_no_room_for() {
    let small = Scripted {
        prompt_tokens: Some(200),
        ..local("small", End::Complete)
    };
    let large = Scripted {
        capabilities: Capabilities {
            context_tokens: Some(1000),
            ..small.capabilities
        },
        prompt_tokens: Some(45),
        ..local("large", End::Complete)
    };
    let (router, list) = router(
        RoutingMode::PreferLocal,
        vec![small, large, cloud("far", End::Complete)],
    );
    let (said, _, decision) = ask(&router, chat());
    assert_eq!(said, "by large");
    assert_eq!(
        decision.reason,
        Some(Reason::PromptOverContext {
            prompt_tokens: 200,
            context_tokens: 100
        })
    );
    assert_eq!(
        (decision.prompt_tokens, decision.context_tokens),
        (Some(200), Some(100))
    );
    assert_eq!(list[0].asked.load(Ordering::SeqCst), 0);
    // Leaving turns out is for those who find room nowhere else.
    let forgetting = RouteRequest {
        options: GenerateOptions::default().with_context_end(ContextEnd::ForgetOldest),
        ..chat()
    };
    assert_eq!(ask(&router, forgetting).0, "by large");
}

#[test]
fn a_text_to_continue_stays_with_who_continues_texts() {
    let (both, list) = router(
        RoutingMode::PreferCloud,
        vec![cloud("far", End::Complete), local("small", End::Complete)],
    );
    let (said, _, decision) = ask(&both, text());
    assert_eq!(said, "by small");
    assert_eq!(
        decision.reason,
        Some(Reason::NotTaken {
            by: BackendKind::Cloud,
            prompt: PromptKind::Plain
        })
    );
    assert_eq!(list[0].asked.load(Ordering::SeqCst), 0);
    assert_eq!(ask(&both, chat()).0, "by far");

    let (endpoint, _) = router(RoutingMode::PreferLocal, vec![cloud("far", End::Complete)]);
    let (_, failure, _) = ask(&endpoint, text());
    let failure = failure.unwrap();
    assert!(
        matches!(failure, RouteFailure::Refused(Refusal::NotTaken { .. })),
        "{failure:?}"
    );
    assert_eq!(
        failure.to_string(),
        "this prompt cannot go to the endpoint: it is a text to continue, and the endpoint answers chats"
    );
}

#[test]
fn cancelling_and_dropping_a_stream_end_the_work() {
    let (router, list) = router(
        RoutingMode::PreferLocal,
        vec![local("small", End::Never), cloud("far", End::Complete)],
    );
    let stream = router.stream(chat(), AHEAD).unwrap();
    assert_eq!(stream.read().unwrap().text, "by ");
    assert_eq!(
        stream.decision().unwrap().answered_by.unwrap().name,
        "small"
    );
    assert!(stream.end().is_none());
    stream.cancellation().cancel();
    assert_eq!(stream.read(), None);
    let answer = stream.end().unwrap().unwrap();
    assert_eq!(answer.finish_reason, FinishReason::Cancelled);

    let stream = router.stream(chat(), AHEAD).unwrap();
    stream.read().unwrap();
    let (sender, cancelled) = mpsc::channel();
    let _call = stream
        .cancellation()
        .on_cancel(move || sender.send(()).unwrap());
    drop(stream);
    cancelled.recv().unwrap();
    assert_eq!(list[1].asked.load(Ordering::SeqCst), 0);
}

#[test]
fn a_failure_of_what_was_cancelled_asks_nobody_else() {
    let half = Scripted {
        says: says(&[""]),
        ..local("small", broken())
    };
    let (router, list) = router(
        RoutingMode::PreferLocal,
        vec![half, cloud("far", End::Complete)],
    );
    let cancellation = Cancellation::new();
    cancellation.cancel();
    let answer = router.answer(
        &chat(),
        &cancellation,
        &mut |_, _| ControlFlow::Continue(()),
    );
    assert_eq!(answer.unwrap().finish_reason, FinishReason::Cancelled);
    assert_eq!(list[1].asked.load(Ordering::SeqCst), 0);
}

#[test]
fn a_backend_that_panics_ends_its_stream_with_an_error_and_the_router_goes_on() {
    let panicking = Scripted {
        says: Vec::new(),
        ..local("small", End::Panics)
    };
    let (router, _) = router(RoutingMode::PreferLocal, vec![panicking]);
    for _ in 0..2 {
        let stream = router.stream(chat(), AHEAD).unwrap();
        assert_eq!(stream.read(), None);
        assert!(stream.decision().is_none());
        let error = stream.end().unwrap().unwrap_err();
        assert!(matches!(error.failure, RouteFailure::Panicked), "{error:?}");
        assert_eq!(error.decision.mode, RoutingMode::PreferLocal);
    }
}

#[test]
fn breaking_off_ends_the_answer_as_cancelled() {
    let (router, _) = router(RoutingMode::LocalOnly, vec![local("small", End::Never)]);
    let mut given = 0;
    let answer = router.answer(&chat(), &Cancellation::new(), &mut |_, _| {
        given += 1;
        match given {
            5 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    });
    assert_eq!(answer.unwrap().finish_reason, FinishReason::Cancelled);
    assert_eq!(given, 5);
}
