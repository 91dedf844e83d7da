//! Several sequences in one run: each gets the bits that it would get alone. Sessions fork, and go back.
#![allow(clippy::unwrap_used)]

#[path = "../../bundle/tests/synthetic/mod.rs"]
mod synthetic;

use niwaki::{
    BatchStep, Cancellation, Engine, Entries, KvElement, LogitsFor, OpenOptions, Session,
    SessionError,
};
use niwaki_kernels::MatrixFormat;
use proptest::prelude::*;
use synthetic::{Decoder, Random};

fn engine(decoder: &Decoder, options: &OpenOptions) -> Engine {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.niwaki");
    decoder.write(&path, 7);
    Engine::open(path, options).unwrap()
}

fn tiny(options: &OpenOptions) -> Engine {
    engine(&Decoder::TINY, options)
}

fn tokens(seed: u64, count: usize) -> Vec<u32> {
    Random(seed).tokens(count, Decoder::TINY.vocabulary)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Appends to each session what is given for it, in one batch; the logits of each.
fn batch(
    engine: &Engine,
    sessions: &mut [Session],
    given: &[&[u32]],
    logits_for: LogitsFor,
) -> Vec<Vec<u32>> {
    let entries: Vec<[Entries<'_>; 1]> = given.iter().map(|ids| [Entries::Ids(ids)]).collect();
    let mut steps: Vec<BatchStep<'_>> = sessions
        .iter_mut()
        .zip(&entries)
        .map(|(session, inputs)| BatchStep {
            session,
            inputs,
            logits_for,
        })
        .collect();
    let outputs = engine.run(&mut steps, None).unwrap();
    let logits = outputs.into_iter().map(|outputs| {
        let logits = outputs.get("logits").unwrap();
        bits(logits.as_slice())
    });
    logits.collect()
}

#[test]
fn a_batch_of_four_sequences_gives_the_bits_of_four_runs_alone() {
    let formats = [MatrixFormat::INT4, MatrixFormat::INT8, MatrixFormat::F32];
    for (format, window) in formats.into_iter().zip([Some(70), None, Some(70)]) {
        for threads in [1, 3] {
            let decoder = Decoder {
                format,
                window,
                ..Decoder::TINY
            };
            let options = OpenOptions::default()
                .with_threads(threads)
                .with_kv(KvElement::F16);
            let engine = engine(&decoder, &options);
            // Together more than one run takes, so that sequences are cut.
            let prompts = [tokens(1, 200), tokens(2, 1), tokens(3, 65), tokens(4, 129)];
            for logits_for in [
                LogitsFor::LastToken,
                LogitsFor::LastTokens(70),
                LogitsFor::EveryToken,
            ] {
                let mut alone: Vec<Session> = (0..4).map(|_| engine.session().unwrap()).collect();
                let mut together: Vec<Session> =
                    (0..4).map(|_| engine.session().unwrap()).collect();
                let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
                let found = batch(&engine, &mut together, &prompts, logits_for);
                for ((session, prompt), found) in alone.iter_mut().zip(&prompts).zip(&found) {
                    let expected = session.append(prompt, logits_for).unwrap();
                    assert_eq!(&bits(expected.as_slice()), found);
                }
                // And on from there, a token each.
                for step in 0..5 {
                    let next = tokens(50 + step, 4);
                    let given: Vec<&[u32]> = next.chunks(1).collect();
                    let found = batch(&engine, &mut together, &given, LogitsFor::LastToken);
                    for ((session, token), found) in alone.iter_mut().zip(&given).zip(&found) {
                        let expected = session.append(token, LogitsFor::LastToken).unwrap();
                        assert_eq!(&bits(expected.as_slice()), found);
                        assert_eq!(session.tokens().last(), token.first());
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn who_shares_a_batch_changes_nothing(
        counts in proptest::collection::vec(1usize..150, 1..6), last in 1usize..200, seed: u64,
    ) {
        let engine = tiny(&OpenOptions::default());
        let prompts: Vec<Vec<u32>> = (seed >> 8..).zip(&counts).map(|(seed, count)| tokens(seed, *count)).collect();
        let given: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let mut sessions: Vec<Session> = counts.iter().map(|_| engine.session().unwrap()).collect();
        let found = batch(&engine, &mut sessions, &given, LogitsFor::LastTokens(last));
        for ((prompt, found), session) in prompts.iter().zip(&found).zip(&sessions) {
            let mut alone = engine.session().unwrap();
            let all = alone.append(prompt, LogitsFor::EveryToken).unwrap();
            let from = prompt.len().saturating_sub(last) * all.width();
            prop_assert_eq!(&bits(&all.as_slice()[from..]), found);
            prop_assert_eq!(session.tokens(), prompt);
        }
    }
}

#[test]
fn a_batch_that_cannot_run_says_which_sequence_and_leaves_all_as_they_were() {
    let engine = tiny(&OpenOptions::default());
    let mut sessions: Vec<Session> = (0..3).map(|_| engine.session().unwrap()).collect();
    let prompt = tokens(1, 30);
    batch(
        &engine,
        &mut sessions,
        &[&prompt, &prompt, &prompt],
        LogitsFor::LastToken,
    );
    let too_many = tokens(2, 371);
    let mut other = tiny(&OpenOptions::default()).session().unwrap();
    let [first, second, third] = sessions.as_mut_slice() else {
        unreachable!()
    };
    type Case<'a> = (&'a [u32], &'a mut Session, fn(&SessionError) -> bool);
    let cases: [Case<'_>; 4] = [
        (&[1, 99], second, |error| {
            matches!(
                error,
                SessionError::UnknownToken {
                    token: 99,
                    index: 1,
                    ..
                }
            )
        }),
        (&[], third, |error| matches!(error, SessionError::NoTokens)),
        (&too_many, first, |error| {
            matches!(
                error,
                SessionError::ContextFull {
                    added: 371,
                    len: 30,
                    ..
                }
            )
        }),
        (&[1], &mut other, |error| {
            matches!(error, SessionError::OtherEngine)
        }),
    ];
    for (given, session, is_expected) in cases {
        let mut before = engine.session().unwrap();
        let error = engine
            .run(
                &mut [
                    BatchStep {
                        session: &mut before,
                        inputs: &[Entries::Ids(&[5, 6])],
                        logits_for: LogitsFor::LastToken,
                    },
                    BatchStep {
                        session,
                        inputs: &[Entries::Ids(given)],
                        logits_for: LogitsFor::LastToken,
                    },
                ],
                None,
            )
            .unwrap_err();
        assert_eq!(error.step, Some(1));
        assert!(is_expected(&error.source), "{error}");
        assert!(error.to_string().contains("sequence 1"), "{error}");
        assert!(before.is_empty());
    }
    assert!(sessions.iter().all(|session| session.tokens() == prompt));
    assert!(engine.run(&mut [], None).unwrap().is_empty());
}

#[test]
fn a_batch_that_is_cancelled_leaves_all_contexts_as_they_were() {
    let windowed = Decoder {
        window: Some(64),
        ..Decoder::TINY
    };
    let engine = engine(&windowed, &OpenOptions::default());
    let mut sessions: Vec<Session> = (0..2).map(|_| engine.session().unwrap()).collect();
    let (prompt, more) = (tokens(1, 60), tokens(2, 300));
    batch(
        &engine,
        &mut sessions,
        &[&prompt, &prompt],
        LogitsFor::LastToken,
    );
    let cancellation = Cancellation::new();
    cancellation.cancel();
    let mut steps: Vec<BatchStep<'_>> = sessions
        .iter_mut()
        .map(|session| BatchStep {
            session,
            inputs: &[],
            logits_for: LogitsFor::LastToken,
        })
        .collect();
    let entries = [Entries::Ids(&more)];
    steps.iter_mut().for_each(|step| step.inputs = &entries);
    let error = engine.run(&mut steps, Some(&cancellation)).unwrap_err();
    assert!(matches!(error.source, SessionError::Cancelled), "{error}");
    assert_eq!(error.step, None);
    drop(steps);
    let mut fresh = engine.session().unwrap();
    fresh.append(&prompt, LogitsFor::LastToken).unwrap();
    let expected = bits(
        fresh
            .append(&more, LogitsFor::LastToken)
            .unwrap()
            .as_slice(),
    );
    for session in &mut sessions {
        assert_eq!(session.tokens(), prompt);
        let found = session.append(&more, LogitsFor::LastToken).unwrap();
        assert_eq!(bits(found.as_slice()), expected);
    }
}

#[test]
fn a_fork_and_its_session_go_on_each_for_itself() {
    let engine = tiny(&OpenOptions::default());
    let mut session = engine.session().unwrap();
    let prompt = tokens(1, 100);
    session.append(&prompt, LogitsFor::LastToken).unwrap();
    let mut fork = session.fork();
    assert_eq!(fork.tokens(), prompt);
    let (left, right) = (tokens(2, 90), tokens(3, 90));
    let expected = |end: &[u32]| {
        let mut alone = engine.session().unwrap();
        alone.append(&prompt, LogitsFor::LastToken).unwrap();
        bits(alone.append(end, LogitsFor::EveryToken).unwrap().as_slice())
    };
    // One after the other in turns, so that each would see what the other wrote.
    let (mut of_session, mut of_fork) = (Vec::new(), Vec::new());
    for (left, right) in left.chunks(9).zip(right.chunks(9)) {
        of_session.extend(bits(
            session
                .append(left, LogitsFor::EveryToken)
                .unwrap()
                .as_slice(),
        ));
        of_fork.extend(bits(
            fork.append(right, LogitsFor::EveryToken)
                .unwrap()
                .as_slice(),
        ));
    }
    assert_eq!(of_session, expected(&left));
    assert_eq!(of_fork, expected(&right));
}

#[test]
fn going_back_to_a_checkpoint_is_as_never_having_gone_on_whatever_windows_dropped() {
    for window in [None, Some(64)] {
        let decoder = Decoder {
            window,
            ..Decoder::TINY
        };
        let engine = engine(&decoder, &OpenOptions::default());
        let mut session = engine.session().unwrap();
        let (prompt, other, next) = (tokens(1, 70), tokens(2, 250), tokens(3, 40));
        session.append(&prompt, LogitsFor::LastToken).unwrap();
        let checkpoint = session.checkpoint();
        let expected = bits(
            session
                .fork()
                .append(&next, LogitsFor::EveryToken)
                .unwrap()
                .as_slice(),
        );
        session.append(&other, LogitsFor::LastToken).unwrap();
        if window.is_some() {
            let forgotten = session.truncate(prompt.len());
            assert!(matches!(forgotten, Err(SessionError::Forgotten { .. })));
        }
        for _ in 0..2 {
            session.rewind(&checkpoint).unwrap();
            assert_eq!(session.tokens(), prompt);
            let found = session.append(&next, LogitsFor::EveryToken).unwrap();
            assert_eq!(bits(found.as_slice()), expected);
        }
        let mut other = tiny(&OpenOptions::default()).session().unwrap();
        assert!(matches!(
            other.rewind(&checkpoint),
            Err(SessionError::OtherEngine)
        ));
    }
}

#[test]
fn sessions_that_run_at_the_same_time_give_the_bits_of_each_alone() {
    let engine = tiny(&OpenOptions::default().with_threads(1));
    let expected = |seed: u64| {
        let mut alone = engine.session().unwrap();
        let all = alone.append(&tokens(seed, 120), LogitsFor::EveryToken);
        bits(all.unwrap().as_slice())
    };
    let expected: Vec<Vec<u32>> = (0..4).map(expected).collect();
    std::thread::scope(|scope| {
        for (seed, expected) in (0..).zip(&expected) {
            let engine = &engine;
            scope.spawn(move || {
                for _ in 0..5 {
                    let mut session = engine.session().unwrap();
                    let mut found = Vec::new();
                    for token in tokens(seed, 120).chunks(7) {
                        let logits = session.append(token, LogitsFor::EveryToken).unwrap();
                        found.extend(bits(logits.as_slice()));
                    }
                    assert_eq!(&found, expected);
                }
            });
        }
    });
}
