//! What sampling promises.
#![allow(clippy::unwrap_used)]

use niwaki::{
    Candidates, Random, RepetitionPenalty, SampleError, Sampler, Sampling, SamplingStep, Stage,
};
use proptest::prelude::*;
use std::sync::{Arc, Mutex};

fn logits() -> impl Strategy<Value = Vec<f32>> {
    proptest::collection::vec(-20f32..20.0, 1..300)
}

fn sampling() -> impl Strategy<Value = Sampling> {
    (
        0.05f32..3.0,
        proptest::option::of(1usize..50),
        proptest::option::of(0.01f32..=1.0),
        any::<u64>(),
    )
        .prop_map(|(temperature, top_k, top_p, seed)| {
            Sampling::GREEDY
                .with_temperature(temperature)
                .with_top_k(top_k)
                .with_top_p(top_p)
                .with_seed(seed)
        })
}

/// Ids in the order of their logits, the best first.
fn ranking(logits: &[f32]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.sort_by(|a, b| {
        logits[*b as usize]
            .total_cmp(&logits[*a as usize])
            .then(a.cmp(b))
    });
    ids
}

fn draws(sampling: &Sampling, logits: &[f32], count: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(sampling).unwrap();
    (0..count)
        .map(|_| sampler.sample(logits).unwrap())
        .collect()
}

proptest! {
    #[test]
    fn temperature_zero_takes_the_best_and_the_first_of_equals(logits in logits(), seed in any::<u64>()) {
        let greedy = Sampling::GREEDY.with_seed(seed);
        prop_assert_eq!(draws(&greedy, &logits, 1)[0], ranking(&logits)[0]);
        prop_assert_eq!(draws(&greedy, &vec![1.5; logits.len()], 1)[0], 0);
    }

    #[test]
    fn top_1_takes_the_best(logits in logits(), temperature in 0.1f32..5.0, seed in any::<u64>()) {
        let sampling = Sampling::GREEDY.with_temperature(temperature).with_top_k(1).with_seed(seed);
        prop_assert_eq!(draws(&sampling, &logits, 3), vec![ranking(&logits)[0]; 3]);
    }

    #[test]
    fn top_k_draws_from_the_k_best(logits in logits(), k in 1usize..20, seed in any::<u64>()) {
        let sampling = Sampling::GREEDY.with_temperature(2.0).with_top_k(k).with_seed(seed);
        let ranking = ranking(&logits);
        let best = &ranking[..k.min(ranking.len())];
        prop_assert!(draws(&sampling, &logits, 50).iter().all(|id| best.contains(id)));
    }

    #[test]
    fn top_p_draws_from_the_fewest_that_reach_p(logits in logits(), p in 0.01f32..0.99, seed in any::<u64>()) {
        let sampling = Sampling::GREEDY.with_temperature(1.0).with_top_p(p).with_seed(seed);
        let ranking = ranking(&logits);
        let best = f64::from(logits[ranking[0] as usize]);
        let weight = |id: &u32| (f64::from(logits[*id as usize]) - best).exp();
        let total: f64 = ranking.iter().map(weight).sum();
        let mut reached = 0.0;
        // A little more than p: rounding may go either way at the edge.
        let kept: Vec<u32> = ranking.iter().copied().take_while(|id| {
            let wanted = reached < (f64::from(p) + 1e-9) * total;
            reached += weight(id);
            wanted
        }).collect();
        prop_assert!(draws(&sampling, &logits, 50).iter().all(|id| kept.contains(id)));
    }

    #[test]
    fn min_p_draws_from_those_with_a_share_of_the_best(logits in logits(), p in 0.001f32..=1.0, seed in any::<u64>()) {
        let sampling = Sampling::GREEDY.with_temperature(1.0).with_min_p(p).with_seed(seed);
        let best = f64::from(logits[ranking(&logits)[0] as usize]);
        // Rounding may go either way at the edge.
        let kept = |id: &u32| (f64::from(logits[*id as usize]) - best).exp() >= f64::from(p) * (1.0 - 1e-9);
        prop_assert!(draws(&sampling, &logits, 50).iter().all(kept));
    }

    #[test]
    fn min_p_keeps_all_that_have_that_share(
        logits in logits(), p in prop_oneof![Just(0f32), Just(1f32), 0.001f32..=1.0]
    ) {
        #[derive(Clone)]
        struct Record(Arc<Mutex<Vec<u32>>>);
        impl SamplingStep for Record {
            fn stage(&self) -> Stage {
                Stage::Truncation
            }
            fn fork(&self) -> Box<dyn SamplingStep> {
                Box::new(self.clone())
            }
            fn apply(&mut self, candidates: &mut Candidates) {
                let tokens = candidates.as_slice().iter().map(|candidate| candidate.token);
                *self.0.lock().unwrap() = tokens.collect();
            }
        }
        let sampling = Sampling::GREEDY.with_temperature(1.0).with_min_p(p);
        let kept = Arc::new(Mutex::new(Vec::new()));
        let mut sampler = Sampler::new(&sampling).unwrap();
        sampler.push(Box::new(Record(kept.clone())));
        sampler.sample(&logits).unwrap();
        let kept = kept.lock().unwrap();
        let best = f64::from(logits[ranking(&logits)[0] as usize]);
        for (id, logit) in (0u32..).zip(&logits) {
            let share = (f64::from(*logit) - best).exp();
            // Rounding may go either way at the edge.
            if (share - f64::from(p)).abs() > 1e-9 {
                prop_assert_eq!(kept.contains(&id), share > f64::from(p), "{} of {}", share, p);
            }
        }
    }

    #[test]
    fn the_repetition_penalty_is_that_of_transformers(
        logits in logits(), factor in 0.5f32..3.0, context in proptest::collection::vec(0u32..300, 0..20),
        last_tokens in proptest::option::of(0usize..10)
    ) {
        let penalty = RepetitionPenalty::new(factor).with_last_tokens(last_tokens);
        let sampling = Sampling::GREEDY.with_repetition_penalty(penalty);
        let mut sampler = Sampler::new(&sampling).unwrap();
        // It makes no difference which of them are the prompt's.
        let (prompt, chosen) = context.split_at(context.len() / 2);
        sampler.read_prompt(prompt);
        chosen.iter().for_each(|token| sampler.accept(*token));
        // RepetitionPenaltyLogitsProcessor: score < 0 is multiplied, others are divided; once per token.
        let mut expected = logits.clone();
        let from = context.len() - last_tokens.unwrap_or(context.len()).min(context.len());
        for (id, logit) in (0u32..).zip(&mut expected) {
            if context[from..].contains(&id) {
                *logit = if *logit < 0.0 { *logit * factor } else { *logit / factor };
            }
        }
        prop_assert_eq!(sampler.sample(&logits), Ok(ranking(&expected)[0]));
    }

    #[test]
    fn greedy_finds_the_first_of_the_best_wherever_it_is(
        len in 1usize..5000, at in any::<prop::sample::Index>(), lowest in any::<prop::sample::Index>()
    ) {
        let (at, lowest) = (at.index(len), lowest.index(len));
        let mut logits: Vec<f32> = (0..len).map(|i| -((i * 7919 % 4093) as f32)).collect();
        logits[lowest] = f32::MIN;
        logits[at] = 1.0;
        logits[len - 1] = 1.0;
        prop_assert_eq!(draws(&Sampling::GREEDY, &logits, 1)[0] as usize, at);
    }

    #[test]
    fn a_seed_always_draws_the_same(logits in logits(), sampling in sampling()) {
        prop_assert_eq!(draws(&sampling, &logits, 20), draws(&sampling, &logits, 20));
    }

    #[test]
    fn any_logits_at_all_give_a_token_that_exists(
        logits in proptest::collection::vec(any::<f32>(), 1..50), sampling in sampling()
    ) {
        let logits: Vec<f32> =
            logits.iter().map(|logit| if logit.is_finite() { *logit } else { f32::MAX }).collect();
        prop_assert!((draws(&sampling, &logits, 1)[0] as usize) < logits.len());
    }
}

#[test]
fn logits_that_are_not_finite_are_an_error_and_no_logits_nothing_to_choose() {
    for broken in [f32::NAN, -f32::NAN, f32::NEG_INFINITY, f32::INFINITY] {
        for sampling in [
            Sampling::GREEDY,
            Sampling::GREEDY.with_banned_tokens([37]),
            Sampling::GREEDY.with_temperature(1.0).with_top_p(0.5),
        ] {
            let mut logits = vec![1.0; 50];
            logits[37..40].fill(broken);
            let error = Sampler::new(&sampling)
                .unwrap()
                .sample(&logits)
                .unwrap_err();
            assert_eq!(error, SampleError::NotFinite { token: 37 });
            assert!(error.to_string().ends_with("the bundle is broken"));
        }
    }
    assert_eq!(
        Sampler::new(&Sampling::GREEDY).unwrap().sample(&[]),
        Err(SampleError::NothingAllowed)
    );
}

#[test]
fn tokens_come_as_often_as_their_probability_says() {
    // Probabilities 1/2, 1/4, 1/4 at temperature 1; 1/6 of the rest is cut by top-k.
    let logits = [2f32.ln(), 0.0, -9.0, 0.0];
    let sampling = Sampling::GREEDY
        .with_temperature(1.0)
        .with_top_k(3)
        .with_seed(5);
    let draws = draws(&sampling, &logits, 20_000);
    let share =
        |id: u32| draws.iter().filter(|drawn| **drawn == id).count() as f64 / draws.len() as f64;
    assert!((share(0) - 0.5).abs() < 0.015, "{}", share(0));
    assert!((share(1) - 0.25).abs() < 0.015, "{}", share(1));
    assert_eq!(share(2), 0.0);
}

#[test]
fn a_higher_temperature_spreads_the_draws() {
    let logits = [1.0, 0.0];
    let firsts = |temperature: f32| {
        let sampling = Sampling::GREEDY.with_temperature(temperature).with_seed(9);
        draws(&sampling, &logits, 5_000)
            .iter()
            .filter(|id| **id == 0)
            .count()
    };
    assert!(firsts(0.2) > firsts(1.0) && firsts(1.0) > firsts(5.0));
}

#[test]
fn a_seed_gives_the_tokens_it_gave_in_every_version_so_far() {
    // FNV-1a over the tokens of all settings.
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut random = Random::new(99);
    for temperature in [0.0, 0.3, 1.0, 2.5] {
        for top_k in [None, Some(5), Some(40)] {
            for (top_p, min_p) in [
                (None, None),
                (Some(0.9), None),
                (Some(1.0), Some(0.01)),
                (None, Some(0.05)),
                (Some(0.7), Some(0.1)),
            ] {
                for penalty in [None, Some((1.3, None)), Some((0.8, Some(7)))] {
                    let sampling = Sampling::GREEDY
                        .with_temperature(temperature)
                        .with_top_k(top_k)
                        .with_top_p(top_p)
                        .with_min_p(min_p)
                        .with_repetition_penalty(penalty.map(|(factor, last_tokens)| {
                            RepetitionPenalty::new(factor).with_last_tokens(last_tokens)
                        }))
                        .with_seed(11);
                    let mut sampler = Sampler::new(&sampling).unwrap();
                    for _ in 0..20 {
                        let mut logits: Vec<f32> = (0..700)
                            .map(|_| ((random.next_unit() - 0.6) * 16.0) as f32)
                            .collect();
                        // Equal ones, and the lowest.
                        logits.copy_within(..100, 300);
                        logits[5..8].fill(f32::MIN);
                        let token = sampler.sample(&logits).unwrap();
                        sampler.accept(token);
                        hash = (hash ^ u64::from(token)).wrapping_mul(0x100_0000_01b3);
                    }
                }
            }
        }
    }
    assert_eq!(hash, 9_967_927_417_059_301_835);
}
