//! What an app's own sampling steps can rely on.
#![allow(clippy::unwrap_used)]

mod settings;

use niwaki::{
    Candidate, Candidates, GenerateOptions, RepetitionPenalty, SampleError, Sampler, Sampling,
    SamplingStep, SamplingSteps, Stage,
};
use proptest::prelude::*;
use settings::sampling;
use std::sync::{Arc, Mutex};

/// A step without memory.
#[derive(Clone)]
struct Apply<F> {
    stage: Stage,
    apply: F,
}

impl<F: Fn(&mut Candidates) + Clone + Send + Sync + 'static> Apply<F> {
    fn at(stage: Stage, apply: F) -> Box<dyn SamplingStep> {
        Box::new(Apply { stage, apply })
    }
}

impl<F: Fn(&mut Candidates) + Clone + Send + Sync + 'static> SamplingStep for Apply<F> {
    fn stage(&self) -> Stage {
        self.stage
    }

    fn apply(&mut self, candidates: &mut Candidates) {
        (self.apply)(candidates);
    }

    fn fork(&self) -> Box<dyn SamplingStep> {
        Box::new(self.clone())
    }
}

/// The ways to make tokens impossible.
#[derive(Clone, Copy, Debug)]
enum Way {
    Retain,
    Forbid,
    Adjust,
    AdjustToken,
    /// By arithmetic, which is no different.
    Overflow,
}

/// Forbids tokens in one of these ways.
fn forbidding(stage: Stage, way: Way, forbidden: &[u32]) -> Box<dyn SamplingStep> {
    let forbidden = forbidden.to_vec();
    let logit_of = move |forbidden: &[u32], candidate: Candidate, low: f32| match forbidden
        .contains(&candidate.token)
    {
        true => low,
        false => candidate.logit,
    };
    Apply::at(stage, move |candidates| match way {
        Way::Retain => candidates.retain(|candidate| !forbidden.contains(&candidate.token)),
        Way::Forbid => candidates.forbid(&forbidden),
        Way::Adjust => {
            candidates.adjust(|candidate| logit_of(&forbidden, candidate, f32::NEG_INFINITY));
        }
        Way::AdjustToken => {
            for token in &forbidden {
                candidates.adjust_token(*token, |_| f32::NEG_INFINITY);
            }
        }
        Way::Overflow => {
            candidates.adjust(|candidate| logit_of(&forbidden, candidate, f32::MIN) * 2.0);
        }
    })
}

fn logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -20f32..20.0,
        2 => (-3i8..3).prop_map(f32::from),
        1 => any::<f32>().prop_filter("finite", |logit| logit.is_finite()),
        1 => prop_oneof![Just(f32::MAX), Just(f32::MIN)],
    ]
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![
        Just(Way::Retain),
        Just(Way::Forbid),
        Just(Way::Adjust),
        Just(Way::AdjustToken),
        Just(Way::Overflow)
    ]
}

fn stage() -> impl Strategy<Value = Stage> {
    prop_oneof![
        Just(Stage::Constraint),
        Just(Stage::Penalty),
        Just(Stage::Temperature),
        Just(Stage::Truncation)
    ]
}

/// The best ones first, so that what is forbidden is most often what would be chosen.
fn best(logits: &[f32], count: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    ids.truncate(count);
    ids
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_step_that_forbids_a_token_makes_it_impossible_under_every_setting(
        logits in proptest::collection::vec(logit(), 1..60), sampling in sampling(), stage in stage(), way in way(),
        count in 0usize..60, others in proptest::collection::vec(0u32..70, 0..10),
        context in proptest::collection::vec(0u32..60, 0..10), forced in any::<bool>(), setting in any::<bool>()
    ) {
        let mut forbidden = best(&logits, count);
        forbidden.extend(others);
        // By the setting, or by a step.
        let banned = if setting { forbidden.clone() } else { Vec::new() };
        let mut sampler = Sampler::new(&sampling.with_banned_tokens(banned)).unwrap();
        if !setting {
            sampler.push(forbidding(stage, way, &forbidden));
        }
        if forced {
            // Nothing that comes later brings a token back, nor does what was sorted before change a thing.
            sampler.push(Apply::at(stage, |candidates| {
                candidates.best(3);
                candidates.adjust(|_| f32::INFINITY);
            }));
        }
        sampler.read_prompt(&context);
        let allowed = (0..logits.len() as u32).filter(|token| !forbidden.contains(token)).count();
        for _ in 0..5 {
            match sampler.sample(&logits) {
                Ok(token) => {
                    prop_assert!((token as usize) < logits.len() && !forbidden.contains(&token), "{}", token);
                    sampler.accept(token);
                }
                Err(error) => {
                    prop_assert_eq!(error, SampleError::NothingAllowed);
                    // A cut may have left nothing but what a later step forbids; one that comes first leaves what there is.
                    // Doubled, logits that are no numbers are forbidden too.
                    prop_assert!(allowed == 0 || stage == Stage::Truncation || matches!(way, Way::Overflow));
                }
            }
        }
    }

    #[test]
    fn what_is_forbidden_first_counts_nowhere(
        logits in proptest::collection::vec(-20f32..20.0, 2..60), sampling in sampling(), way in way(),
        count in 1usize..60
    ) {
        let count = count.min(logits.len() - 1);
        let forbidden = best(&logits, count);
        // Settings that name tokens would name others in the smaller vocabulary.
        let mut sampling = sampling.with_logit_bias([]);
        if let Some(dry) = &mut sampling.dry {
            dry.breakers.clear();
        }
        let mut constrained = Sampler::new(&sampling).unwrap();
        constrained.push(forbidding(Stage::Constraint, way, &forbidden));
        // As if the vocabulary had never had them. Doubled logits are what that way gives the others.
        let kept: Vec<u32> = (0..logits.len() as u32).filter(|token| !forbidden.contains(token)).collect();
        let scale = if matches!(way, Way::Overflow) { 2.0 } else { 1.0 };
        let fewer: Vec<f32> = kept.iter().map(|token| logits[*token as usize] * scale).collect();
        let mut free = Sampler::new(&sampling).unwrap();
        for _ in 0..5 {
            let token = free.sample(&fewer).unwrap();
            prop_assert_eq!(constrained.sample(&logits), Ok(kept[token as usize]));
            constrained.accept(kept[token as usize]);
            free.accept(token);
        }
    }
}

#[test]
fn steps_work_in_the_order_of_their_stages_and_within_one_in_that_they_were_added_in() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = |stage: Stage, name: &'static str| {
        let seen = seen.clone();
        Apply::at(stage, move |candidates: &mut Candidates| {
            let logits = candidates
                .as_slice()
                .iter()
                .map(|candidate| candidate.logit);
            seen.lock()
                .unwrap()
                .push((name, logits.collect::<Vec<_>>()));
        })
    };
    let mut sampler = Sampler::new(
        &Sampling::GREEDY
            .with_temperature(0.5)
            .with_top_k(1)
            .with_repetition_penalty(RepetitionPenalty::new(2.0)),
    )
    .unwrap();
    sampler.push(record(Stage::Truncation, "cut"));
    sampler.push(record(Stage::Temperature, "warm"));
    sampler.push(record(Stage::Constraint, "mask"));
    sampler.push(record(Stage::Penalty, "bias"));
    sampler.push(record(Stage::Constraint, "second mask"));
    sampler.read_prompt(&[1]);
    sampler.sample(&[2.0, 8.0]).unwrap();
    assert_eq!(
        *seen.lock().unwrap(),
        [
            ("mask", vec![2.0, 8.0]),
            ("second mask", vec![2.0, 8.0]),
            ("bias", vec![2.0, 4.0]),
            ("warm", vec![-4.0, 0.0]),
            ("cut", vec![0.0]),
        ]
    );
}

#[test]
fn steps_are_asked_only_while_there_is_a_candidate() {
    let asked = Arc::new(Mutex::new(0));
    let counts = asked.clone();
    let mut sampler = Sampler::new(&Sampling::GREEDY).unwrap();
    sampler.push(Apply::at(Stage::Constraint, |candidates| {
        candidates.retain(|_| false);
    }));
    sampler.push(Apply::at(Stage::Penalty, move |candidates| {
        assert!(!candidates.is_empty());
        *counts.lock().unwrap() += 1;
    }));
    assert_eq!(
        sampler.sample(&[1.0, 2.0]),
        Err(SampleError::NothingAllowed)
    );
    assert_eq!(*asked.lock().unwrap(), 0);
}

#[test]
fn what_a_step_answers_is_a_number_or_forbids() {
    let draw = Sampling::GREEDY
        .with_temperature(1.0)
        .with_top_p(0.9)
        .with_min_p(0.1);
    let (any, nothing) = (None, Some(Err(SampleError::NothingAllowed)));
    for sampling in [Sampling::GREEDY, draw] {
        for stage in [Stage::Constraint, Stage::Penalty, Stage::Temperature] {
            for (answer, others, expected) in [
                // Forced, and banned.
                (f32::INFINITY, 0.0, Some(Ok(1))),
                (0.0, f32::NEG_INFINITY, Some(Ok(1))),
                (f32::NEG_INFINITY, f32::NEG_INFINITY, nothing),
                // The lowest number is not forbidden.
                (f32::NAN, f32::NEG_INFINITY, Some(Ok(1))),
                (f32::MIN, f32::NEG_INFINITY, Some(Ok(1))),
                (0.0, f32::NAN, Some(Ok(1))),
                (0.0, -f32::NAN, Some(Ok(1))),
                (f32::NAN, f32::NAN, any),
            ] {
                let mut sampler = Sampler::new(&sampling).unwrap();
                sampler.push(Apply::at(stage, move |candidates| {
                    candidates
                        .adjust(|candidate| if candidate.token == 1 { answer } else { others });
                    let logits = candidates.as_slice().iter();
                    assert!(logits.map(|candidate| candidate.logit).all(f32::is_finite));
                }));
                let chosen = sampler.sample(&[0.0, 0.0, 1.0]);
                match expected {
                    Some(expected) => assert_eq!(chosen, expected, "{answer} and {others}"),
                    None => assert!(chosen.unwrap() < 3),
                }
            }
        }
    }
}

#[test]
fn candidates_are_found_by_token_whatever_was_removed_or_sorted_before() {
    let mut sampler = Sampler::new(&Sampling::GREEDY).unwrap();
    sampler.push(Apply::at(Stage::Constraint, |candidates| {
        candidates.forbid(&[0, 3, 77]);
        candidates.best(2);
        // Gone, never there, and the lowest of those that are left.
        candidates.adjust_token(3, |_| 100.0);
        candidates.adjust_token(99, |_| 100.0);
        candidates.adjust_token(6, |logit| logit + 10.0);
        let best: Vec<u32> = candidates.best(2).iter().map(|best| best.token).collect();
        assert_eq!(best, [6, 1]);
        candidates.keep_best(3);
        candidates.forbid(&[6]);
        let mut left: Vec<u32> = candidates
            .as_slice()
            .iter()
            .map(|left| left.token)
            .collect();
        left.sort_unstable();
        assert_eq!(left, [1, 2]);
        assert_eq!(candidates.best_logit(), 6.0);
    }));
    assert_eq!(sampler.sample(&[7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]), Ok(1));
}

#[test]
fn options_are_equal_when_they_hold_the_same_steps_and_show_no_more_than_stages() {
    let apply = |token: u32| Apply {
        stage: Stage::Constraint,
        apply: move |candidates: &mut Candidates| candidates.forbid(&[token]),
    };
    let mut options = GenerateOptions::default();
    assert_eq!(options, GenerateOptions::default());
    options.steps.push(apply(424_242));
    assert_eq!(options, options.clone());
    let mut other = GenerateOptions::default();
    other.steps.push(apply(424_242));
    assert_ne!(options, other);
    assert_ne!(options, GenerateOptions::default());
    assert_eq!(options.steps.len(), 1);
    assert!(!options.steps.is_empty() && SamplingSteps::default().is_empty());
    let printed = format!("{options:?}");
    assert!(printed.contains("[Constraint]"), "{printed}");
    assert!(!printed.contains("424242"), "{printed}");
}
