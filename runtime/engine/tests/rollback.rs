//! Samplers and their steps go back, and go on in two.
#![allow(clippy::unwrap_used)]

mod settings;

use niwaki::{Candidates, Random, SampleError, Sampler, Sampling, SamplingStep, Stage};
use proptest::prelude::*;
use settings::sampling;

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
        has_brackets in any::<bool>(), forced in proptest::collection::vec(0..VOCABULARY, 0..3),
        run in proptest::option::of(2usize..4)
    ) {
        let sampling = sampling.with_forced_tokens(forced).with_no_repeat_ngram(run);
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
