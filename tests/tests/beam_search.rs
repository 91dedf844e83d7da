//! Beam search finds what transformers finds, and what follows from it.
#![allow(clippy::unwrap_used)]

use niwaki::{
    BeamOptions, Cancellation, ContextEnd, EarlyStopping, Engine, FinishReason, GenerateError,
    GenerateOptions, InvalidBeams, LogitsFor, OpenOptions, RepetitionPenalty, Sampling,
    SessionError,
};
use niwaki_convert::build::Weights;
use niwaki_tests::{build_demo, niwaki};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;
use tempfile::TempDir;

/// Made by `beam_search/record.py`.
#[derive(serde::Deserialize)]
struct References {
    prompt: Vec<u32>,
    cases: Vec<Case>,
}

#[derive(Debug, serde::Deserialize)]
struct Case {
    width: usize,
    groups: usize,
    diversity_penalty: f32,
    length_penalty: f32,
    early_stopping: String,
    max_new_tokens: usize,
    stop_tokens: Vec<u32>,
    banned_tokens: Vec<u32>,
    no_repeat_ngram: Option<usize>,
    repetition_penalty: Option<f32>,
    hypotheses: Vec<Reference>,
}

#[derive(Debug, serde::Deserialize)]
struct Reference {
    tokens: Vec<u32>,
    ended: bool,
    /// Transformers gives none for a single beam.
    score: Option<f64>,
}

fn references() -> References {
    serde_json::from_str(include_str!("beam_search/references.json")).unwrap()
}

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    build_demo(&folder.path().join("model.niwaki"), Weights::AsExported).unwrap();
    folder
});

fn bundle() -> PathBuf {
    FOLDER.path().join("model.niwaki")
}

fn engine(options: OpenOptions) -> Engine {
    let options = options.with_kv(niwaki::KvElement::F32);
    Engine::open(bundle(), &options).unwrap()
}

fn few() -> GenerateOptions {
    GenerateOptions::default().with_max_new_tokens(8)
}

#[test]
fn the_hypotheses_and_scores_are_those_of_transformers() {
    let references = references();
    let engine = engine(OpenOptions::default());
    assert!(references.cases.len() > 10);
    for case in &references.cases {
        let penalty = case.repetition_penalty.map(RepetitionPenalty::new);
        let options = GenerateOptions::default()
            .with_max_new_tokens(case.max_new_tokens)
            .with_stop_tokens(case.stop_tokens.clone())
            .with_sampling(
                Sampling::GREEDY
                    .with_banned_tokens(case.banned_tokens.clone())
                    .with_no_repeat_ngram(case.no_repeat_ngram)
                    .with_repetition_penalty(penalty),
            );
        let early_stopping = match case.early_stopping.as_str() {
            "false" => EarlyStopping::Unlikely,
            "true" => EarlyStopping::WhenFull,
            _ => EarlyStopping::Never,
        };
        let beams = BeamOptions::new(case.width)
            .with_groups(case.groups)
            .with_diversity_penalty(case.diversity_penalty)
            .with_length_penalty(case.length_penalty)
            .with_early_stopping(early_stopping)
            .with_n_best(case.width);
        let mut session = engine.session().unwrap();
        let found = session
            .beam_search(&references.prompt, &beams, &options, None)
            .unwrap();
        assert_eq!(session.tokens(), references.prompt);
        assert_eq!(found.len(), case.hypotheses.len(), "{case:?}");
        for (found, reference) in found.iter().zip(&case.hypotheses) {
            assert_eq!(found.tokens, reference.tokens, "{case:?}");
            let ended = found.finish_reason != FinishReason::MaxTokens;
            assert_eq!(ended, reference.ended, "{case:?}");
            if let Some(score) = reference.score {
                assert!(
                    (found.score - score).abs() < 2e-4 * score.abs().max(1.0),
                    "{found:?} {score}"
                );
            }
        }
    }
}

#[test]
fn one_beam_is_the_greedy_text_with_its_log_probability() {
    let engine = engine(OpenOptions::default());
    let prompt = references().prompt;
    let mut session = engine.session().unwrap();
    let greedy: Vec<_> = session
        .generate(&prompt, &few().with_log_probs(0))
        .map(Result::unwrap)
        .collect();
    let mut session = engine.session().unwrap();
    let found = session
        .beam_search(&prompt, &BeamOptions::new(1), &few(), None)
        .unwrap();
    let tokens: Vec<u32> = greedy.iter().filter_map(|token| token.id).collect();
    assert_eq!(found[0].tokens, tokens);
    let text: String = greedy.iter().map(|token| token.text.as_str()).collect();
    assert_eq!(found[0].text, text);
    let log_probs = greedy.iter().filter_map(|token| token.log_probs.as_ref());
    let sum: f64 = log_probs.map(|log_probs| f64::from(log_probs.chosen)).sum();
    assert_eq!(found[0].log_prob, sum);
}

#[test]
fn the_threads_change_no_bit_of_the_scores() {
    let prompt = references().prompt;
    let beams = BeamOptions::new(6)
        .with_groups(2)
        .with_diversity_penalty(0.5)
        .with_n_best(6);
    let found = [1, 3].map(|threads| {
        let mut session = engine(OpenOptions::default().with_threads(threads))
            .session()
            .unwrap();
        session.beam_search(&prompt, &beams, &few(), None).unwrap()
    });
    assert_eq!(found[0], found[1]);
}

#[test]
fn beams_go_on_from_a_context_and_leave_it_as_a_prompt_would() {
    let engine = engine(OpenOptions::default());
    let prompt = references().prompt;
    let beams = BeamOptions::new(3).with_n_best(3);
    let whole = engine
        .session()
        .unwrap()
        .beam_search(&prompt, &beams, &few(), None)
        .unwrap();
    let mut session = engine.session().unwrap();
    session.append(&prompt[..4], LogitsFor::LastToken).unwrap();
    let found = session
        .beam_search(&prompt[4..], &beams, &few(), None)
        .unwrap();
    assert_eq!(found, whole);
    let after = session
        .append(&found[1].tokens, LogitsFor::LastToken)
        .unwrap();
    let all: Vec<u32> = prompt.iter().chain(&found[1].tokens).copied().collect();
    let fresh = engine
        .session()
        .unwrap()
        .append(&all, LogitsFor::LastToken)
        .unwrap();
    assert_eq!(after, fresh);
}

#[test]
fn what_is_forbidden_comes_in_no_beam_and_a_dead_end_is_no_hypothesis() {
    let mut session = engine(OpenOptions::default()).session().unwrap();
    let prompt = references().prompt;
    let beams = BeamOptions::new(4).with_n_best(4);
    let free = session.beam_search(&prompt, &beams, &few(), None).unwrap();
    let banned = free[0].tokens[0];
    session.reset().unwrap();
    let options = few().with_sampling(Sampling::GREEDY.with_banned_tokens([banned]));
    let found = session
        .beam_search(&prompt, &beams, &options, None)
        .unwrap();
    assert_eq!(found.len(), 4);
    assert!(found.iter().all(|found| !found.tokens.contains(&banned)));
    session.reset().unwrap();
    let options = few().with_sampling(
        Sampling::GREEDY
            .with_forced_tokens([banned])
            .with_banned_tokens([banned]),
    );
    assert_eq!(
        session
            .beam_search(&prompt, &beams, &options, None)
            .unwrap(),
        []
    );
}

#[test]
fn the_context_ends_beams_or_refuses_them() {
    let prompt = references().prompt;
    let tokens = prompt.len() + 3;
    let engine = engine(OpenOptions::default().with_context_tokens(tokens));
    let mut session = engine.session().unwrap();
    let beams = BeamOptions::new(2).with_n_best(2);
    for found in session.beam_search(&prompt, &beams, &few(), None).unwrap() {
        // The last one needs no room.
        assert_eq!(found.tokens.len(), 4);
        assert_eq!(found.finish_reason, FinishReason::ContextFull);
    }
    session.reset().unwrap();
    let refuse = few().with_context_end(ContextEnd::Refuse);
    let error = session
        .beam_search(&prompt, &beams, &refuse, None)
        .unwrap_err();
    assert!(matches!(error, GenerateError::DoesNotFit { .. }), "{error}");
    assert!(session.is_empty());
}

#[test]
fn cancelled_or_out_of_time_the_context_is_as_it_was() {
    let mut session = engine(OpenOptions::default()).session().unwrap();
    let prompt = references().prompt;
    let cancellation = Cancellation::new();
    cancellation.cancel();
    let beams = BeamOptions::new(2);
    let error = session
        .beam_search(&prompt, &beams, &few(), Some(&cancellation))
        .unwrap_err();
    assert!(
        matches!(error, GenerateError::Session(SessionError::Cancelled)),
        "{error}"
    );
    assert!(session.is_empty());
    let no_time = few().with_max_time(Duration::ZERO);
    assert_eq!(
        session
            .beam_search(&prompt, &beams, &no_time, None)
            .unwrap(),
        []
    );
    assert!(session.is_empty());
}

#[test]
fn beams_that_make_no_sense_are_refused_before_anything_is_computed() {
    let mut session = engine(OpenOptions::default()).session().unwrap();
    let mut refused = |beams: BeamOptions, options: GenerateOptions| match session
        .beam_search(&[0, 1], &beams, &options, None)
        .unwrap_err()
    {
        GenerateError::Beams(invalid) => invalid,
        other => panic!("{other}"),
    };
    let two = BeamOptions::new(2);
    for width in [0, BeamOptions::MAX_WIDTH + 1, usize::MAX] {
        assert_eq!(
            refused(BeamOptions::new(width), few()),
            InvalidBeams::Width { width }
        );
    }
    for groups in [0, 2, 4] {
        let beams = BeamOptions::new(3).with_groups(groups);
        assert_eq!(
            refused(beams, few()),
            InvalidBeams::Groups { width: 3, groups }
        );
    }
    for n_best in [0, 3] {
        let beams = two.clone().with_n_best(n_best);
        assert_eq!(
            refused(beams, few()),
            InvalidBeams::NBest { n_best, width: 2 }
        );
    }
    for number in [f32::NAN, f32::INFINITY, -17.0] {
        let beams = two.clone().with_length_penalty(number);
        assert!(matches!(
            refused(beams, few()),
            InvalidBeams::LengthPenalty(_)
        ));
        let beams = two.clone().with_diversity_penalty(number);
        assert!(matches!(
            refused(beams, few()),
            InvalidBeams::DiversityPenalty(_)
        ));
    }
    for options in [
        few().with_stop_strings(["a"]),
        few().with_log_probs(1),
        few().with_context_end(ContextEnd::ForgetOldest),
    ] {
        assert!(matches!(
            refused(two.clone(), options),
            InvalidBeams::SingleText(_)
        ));
    }
    assert!(session.is_empty());
}

#[test]
fn the_command_prints_the_best_texts_with_their_scores() {
    let base = [
        "Once upon a time there was a king",
        "--beams",
        "4",
        "--max-new-tokens",
        "8",
    ];
    let run = |more: &[&str]| {
        let mut niwaki = niwaki!("run", bundle());
        let output = niwaki
            .args(base)
            .args(["--kv", "f32"])
            .args(more)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let mut session = engine(OpenOptions::default()).session().unwrap();
    let beams = BeamOptions::new(4).with_n_best(3);
    let found = session
        .beam_search(&references().prompt, &beams, &few(), None)
        .unwrap();
    assert_eq!(run(&[]), format!("{}\n", found[0].text));
    let lines: Vec<String> = found
        .iter()
        .map(|found| format!("{:.4}\t{}\n", found.score, found.text))
        .collect();
    assert_eq!(run(&["--n-best", "3"]), lines.concat());
    let json: serde_json::Value = serde_json::from_str(&run(&["--n-best", "3", "--json"])).unwrap();
    assert_eq!(
        json["hypotheses"][2]["tokens"],
        serde_json::json!(found[2].tokens)
    );
    assert_eq!(json["hypotheses"][2]["finish_reason"], "max_new_tokens");
    let mut niwaki = niwaki!("run", bundle());
    let refused = niwaki
        .args(base)
        .args(["--beam-groups", "3"])
        .assert()
        .failure();
    let stderr = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(stderr.contains("divisor"), "{stderr}");
}
