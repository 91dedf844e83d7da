//! What an app's own sampling steps can rely on.
#![allow(clippy::unwrap_used)]

use niwaki::{
    Candidate, Candidates, GenerateOptions, Random, RepetitionPenalty, SampleError, Sampler,
    Sampling, SamplingStep, SamplingSteps, Stage,
};
use proptest::prelude::*;
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

fn sampling() -> impl Strategy<Value = Sampling> {
    let temperature = prop_oneof![Just(0f32), Just(1e-30), Just(1.0), Just(1e30), 0.05f32..3.0];
    let top_k = prop_oneof![Just(None), Just(Some(1)), (1usize..40).prop_map(Some)];
    let share = || {
        prop_oneof![
            Just(None),
            Just(Some(f32::MIN_POSITIVE)),
            Just(Some(0.5)),
            Just(Some(1.0)),
            (0.01f32..1.0).prop_map(Some)
        ]
    };
    let factor = prop_oneof![Just(1e-30f32), Just(1e30), 0.5f32..2.0];
    let penalty = (factor, proptest::option::of(0usize..6)).prop_map(|(factor, last_tokens)| {
        RepetitionPenalty {
            factor,
            last_tokens,
        }
    });
    (
        temperature,
        top_k,
        share(),
        share(),
        proptest::option::of(penalty),
        any::<u64>(),
    )
        .prop_map(
            |(temperature, top_k, top_p, min_p, repetition_penalty, seed)| Sampling {
                temperature,
                top_k,
                top_p,
                min_p,
                repetition_penalty,
                seed,
            },
        )
}

fn logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -20f32..20.0,
        2 => (-3i8..3).prop_map(f32::from),
        1 => any::<f32>(),
        1 => prop_oneof![Just(f32::NAN), Just(f32::INFINITY), Just(f32::NEG_INFINITY)],
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
        context in proptest::collection::vec(0u32..60, 0..10), forced in any::<bool>()
    ) {
        let mut forbidden = best(&logits, count);
        forbidden.extend(others);
        let mut sampler = Sampler::new(&sampling).unwrap();
        sampler.push(forbidding(stage, way, &forbidden));
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
    let mut sampler = Sampler::new(&Sampling {
        temperature: 0.5,
        top_k: Some(1),
        repetition_penalty: Some(RepetitionPenalty {
            factor: 2.0,
            last_tokens: None,
        }),
        ..Sampling::GREEDY
    })
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
    let draw = Sampling {
        temperature: 1.0,
        top_p: Some(0.9),
        min_p: Some(0.1),
        ..Sampling::GREEDY
    };
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

/// No two tokens come again in the same order, those of the prompt included.
#[derive(Clone, Default)]
struct NoRepeatedPair(Vec<u32>);

impl SamplingStep for NoRepeatedPair {
    fn stage(&self) -> Stage {
        Stage::Constraint
    }

    fn apply(&mut self, candidates: &mut Candidates) {
        let last = self.0.last();
        let pairs = self.0.windows(2).filter(|pair| Some(&pair[0]) == last);
        candidates.forbid(&pairs.map(|pair| pair[1]).collect::<Vec<_>>());
    }

    fn read_prompt(&mut self, tokens: &[u32]) {
        self.0.extend(tokens);
    }

    fn accept(&mut self, token: u32) {
        self.0.push(token);
    }

    fn rollback(&mut self, count: usize) {
        self.0.truncate(self.0.len() - count);
    }

    fn fork(&self) -> Box<dyn SamplingStep> {
        Box::new(self.clone())
    }
}

/// A grammar of brackets: 0 opens, 1 closes, nothing else may come at depth 0, and the prompt is no part of it.
#[derive(Clone)]
struct Brackets {
    /// After each token.
    depths: Vec<usize>,
}

impl Brackets {
    fn new() -> Brackets {
        Brackets { depths: vec![0] }
    }

    fn depth(&self) -> usize {
        self.depths[self.depths.len() - 1]
    }
}

impl SamplingStep for Brackets {
    fn stage(&self) -> Stage {
        Stage::Constraint
    }

    fn apply(&mut self, candidates: &mut Candidates) {
        match self.depth() {
            0 => candidates.retain(|candidate| candidate.token == 0),
            3 => candidates.forbid(&[0]),
            _ => {}
        }
    }

    fn accept(&mut self, token: u32) {
        self.depths.push(match token {
            0 => self.depth() + 1,
            1 => self.depth().saturating_sub(1),
            _ => self.depth(),
        });
    }

    fn rollback(&mut self, count: usize) {
        self.depths.truncate(self.depths.len() - count);
    }

    fn fork(&self) -> Box<dyn SamplingStep> {
        Box::new(self.clone())
    }
}

/// What can be done with a sampler.
#[derive(Clone, Debug)]
enum Action {
    Sample,
    /// Sample and accept.
    Choose,
    /// Accept a token that another model proposed, say.
    Accept(u32),
}

/// A way that leads nowhere, and how one comes back from it.
#[derive(Clone, Debug)]
enum Detour {
    Rollback(Vec<Action>),
    /// Two checkpoints, one after the other.
    RollbackTwice(Vec<Action>, Vec<Action>),
    /// A fork goes there.
    Fork(Vec<Action>),
    /// The sampler goes there, and a fork goes on.
    GoOnWithFork(Vec<Action>),
    /// A fork goes back to a checkpoint of the sampler it is of.
    ForkBack(Vec<Action>),
}

const VOCABULARY: u32 = 8;

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        1 => Just(Action::Sample),
        4 => Just(Action::Choose),
        1 => (0..VOCABULARY).prop_map(Action::Accept)
    ]
}

fn detour() -> impl Strategy<Value = Detour> {
    let actions = || proptest::collection::vec(action(), 0..12);
    prop_oneof![
        actions().prop_map(Detour::Rollback),
        (actions(), actions()).prop_map(|(one, other)| Detour::RollbackTwice(one, other)),
        actions().prop_map(Detour::Fork),
        actions().prop_map(Detour::GoOnWithFork),
        actions().prop_map(Detour::ForkBack),
    ]
}

/// Everything that is sampled on a way, with logits that are others every time but depend on the place alone.
fn walk(sampler: &mut Sampler, from: u64, actions: &[Action]) -> Vec<Result<u32, SampleError>> {
    let mut sampled = Vec::new();
    for (place, action) in (from..).zip(actions) {
        let mut random = Random::new(place);
        let logits: Vec<f32> = (0..VOCABULARY)
            .map(|_| (random.next_unit() * 4.0 - 2.0) as f32)
            .collect();
        let accepted = match action {
            Action::Accept(token) => Some(*token),
            Action::Sample | Action::Choose => {
                let token = sampler.sample(&logits);
                sampled.push(token);
                token.ok().filter(|_| matches!(action, Action::Choose))
            }
        };
        if let Some(token) = accepted {
            sampler.accept(token);
        }
    }
    sampled
}

fn go_astray(sampler: &mut Sampler, detour: &Detour) {
    let before = sampler.checkpoint();
    match detour {
        Detour::Rollback(way) => {
            walk(sampler, 1000, way);
            sampler.rollback(&before).unwrap();
        }
        Detour::RollbackTwice(one, other) => {
            walk(sampler, 1000, one);
            let further = sampler.checkpoint();
            walk(sampler, 2000, other);
            sampler.rollback(&further).unwrap();
            sampler.rollback(&before).unwrap();
        }
        Detour::Fork(way) => {
            walk(&mut sampler.fork(), 1000, way);
        }
        Detour::GoOnWithFork(way) => {
            let fork = sampler.fork();
            walk(sampler, 1000, way);
            *sampler = fork;
        }
        Detour::ForkBack(way) => {
            walk(sampler, 1000, way);
            let mut fork = sampler.fork();
            walk(&mut fork, 2000, way);
            fork.rollback(&before).unwrap();
            *sampler = fork;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_way_that_was_taken_back_or_gone_by_a_fork_leaves_no_trace(
        sampling in sampling(), prompt in proptest::collection::vec(0..VOCABULARY, 0..6),
        way in proptest::collection::vec((action(), detour()), 1..20), has_pairs in any::<bool>(),
        has_brackets in any::<bool>()
    ) {
        let mut straight = Sampler::new(&sampling).unwrap();
        if has_pairs {
            straight.push(Box::new(NoRepeatedPair::default()));
        }
        if has_brackets {
            straight.push(Box::new(Brackets::new()));
        }
        straight.read_prompt(&prompt);
        let mut astray = straight.fork();
        for (place, (action, detour)) in (0..).zip(&way) {
            go_astray(&mut astray, detour);
            let action = std::slice::from_ref(action);
            prop_assert_eq!(walk(&mut astray, place, action), walk(&mut straight, place, action));
        }
        prop_assert_eq!(astray.checkpoint(), straight.checkpoint());
        let end = vec![Action::Choose; 30];
        prop_assert_eq!(walk(&mut astray, 500, &end), walk(&mut straight, 500, &end));
    }
}

#[test]
fn a_grammar_sees_what_is_generated_and_not_the_prompt() {
    let mut sampler = Sampler::new(&Sampling::GREEDY).unwrap();
    sampler.push(Box::new(Brackets::new()));
    sampler.read_prompt(&[0, 0, 5]);
    let logits = [0.0, 1.0, 3.0];
    assert_eq!(sampler.sample(&logits), Ok(0), "nothing is open");
    sampler.accept(0);
    assert_eq!(sampler.sample(&logits), Ok(2));
    sampler.accept(1);
    assert_eq!(sampler.sample(&logits), Ok(0));
    assert_eq!(
        sampler.sample(&logits[..0]),
        Err(SampleError::NothingAllowed)
    );
}

#[test]
fn a_step_takes_back_no_token_from_before_it_was_added() {
    let mut sampler = Sampler::new(&Sampling::GREEDY).unwrap();
    let start = sampler.checkpoint();
    sampler.accept(0);
    sampler.accept(0);
    // It panics when more is taken back than it knows.
    sampler.push(Box::new(Brackets::new()));
    sampler.accept(0);
    sampler.rollback(&start).unwrap();
    assert_eq!(sampler.sample(&[0.0, 1.0]), Ok(0));
}

#[test]
fn a_sampler_goes_back_only() {
    let mut sampler = Sampler::new(&Sampling::GREEDY).unwrap();
    let start = sampler.checkpoint();
    sampler.accept(3);
    let later = sampler.checkpoint();
    sampler.rollback(&start).unwrap();
    let error = sampler.rollback(&later).unwrap_err();
    assert_eq!((error.accepted_tokens, error.checkpoint_tokens), (0, 1));
    assert_eq!(
        error.to_string(),
        "a sampler that has accepted 0 tokens cannot go back to a checkpoint of 1: it was made further on, or by \
         another sampler"
    );
    sampler.rollback(&start).unwrap();
}

#[test]
fn options_are_equal_when_they_hold_the_same_steps_and_show_no_more_than_stages() {
    let mut options = GenerateOptions::default();
    assert_eq!(options, GenerateOptions::default());
    options.steps.push(NoRepeatedPair(vec![424_242]));
    assert_eq!(options, options.clone());
    let mut other = GenerateOptions::default();
    other.steps.push(NoRepeatedPair(vec![424_242]));
    assert_ne!(options, other);
    assert_ne!(options, GenerateOptions::default());
    assert_eq!(options.steps.len(), 1);
    assert!(!options.steps.is_empty() && SamplingSteps::default().is_empty());
    let printed = format!("{options:?}");
    assert!(printed.contains("[Constraint]"), "{printed}");
    assert!(!printed.contains("424242"), "{printed}");
}
