//! Sampling settings do what transformers' processors do, and what the papers of the others define.
#![allow(clippy::unwrap_used)]

use niwaki::{
    Candidates, Dry, LogProbs, Mirostat, RepetitionPenalty, SampleError, Sampler, Sampling,
    SamplingStep, Stage, Xtc,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Made by `decoding/record.py`.
#[derive(serde::Deserialize)]
struct References {
    prompt: Vec<u32>,
    generated: Vec<u32>,
    logits: Vec<f32>,
    left: HashMap<String, Vec<Option<f32>>>,
    mirostat: MirostatReference,
    log_probs: Vec<f32>,
}

#[derive(serde::Deserialize)]
struct MirostatReference {
    chosen: Vec<u32>,
    left: Vec<Vec<u32>>,
}

fn references() -> References {
    serde_json::from_str(include_str!("decoding/references.json")).unwrap()
}

/// Comes last and notes what it is given.
#[derive(Clone, Default)]
struct Last(Arc<Mutex<Vec<(u32, f32)>>>);

impl SamplingStep for Last {
    fn stage(&self) -> Stage {
        Stage::Truncation
    }

    fn apply(&mut self, candidates: &mut Candidates) {
        let candidates = candidates.as_slice().iter();
        *self.0.lock().unwrap() = candidates.map(|left| (left.token, left.logit)).collect();
    }

    fn fork(&self) -> Box<dyn SamplingStep> {
        Box::new(self.clone())
    }
}

/// What the settings leave of the logits, by token.
fn left(references: &References, sampling: &Sampling) -> Vec<Option<f32>> {
    let last = Last::default();
    let mut sampler = Sampler::new(sampling).unwrap();
    sampler.push(Box::new(last.clone()));
    sampler.read_prompt(&references.prompt);
    for token in &references.generated {
        sampler.accept(*token);
    }
    sampler.sample(&references.logits).unwrap();
    let mut left = vec![None; references.logits.len()];
    for (token, logit) in last.0.lock().unwrap().iter() {
        left[*token as usize] = Some(*logit);
    }
    left
}

#[test]
fn each_setting_leaves_what_its_reference_leaves() {
    let references = references();
    let plain = Sampling::GREEDY.with_temperature(1.0);
    let dry = |allowed_length, breakers: &[u32]| {
        let mut dry = Dry::new(0.8);
        dry.allowed_length = allowed_length;
        dry.breakers = breakers.to_vec();
        plain.clone().with_dry(dry)
    };
    let at = |temperature| plain.clone().with_temperature(temperature);
    let cases = [
        ("temperature", at(0.7)),
        ("top_k", plain.clone().with_top_k(7)),
        ("top_p", plain.clone().with_top_p(0.83)),
        ("min_p", plain.clone().with_min_p(0.06)),
        ("typical_p", plain.clone().with_typical_p(0.6)),
        (
            "repetition_penalty",
            (plain.clone()).with_repetition_penalty(RepetitionPenalty::new(1.3)),
        ),
        ("no_repeat_ngram", plain.clone().with_no_repeat_ngram(3)),
        ("no_repeat_unigram", plain.clone().with_no_repeat_ngram(1)),
        (
            "logit_bias",
            plain.clone().with_logit_bias([(4, 2.5), (17, -3.0)]),
        ),
        ("banned", plain.clone().with_banned_tokens([6, 30])),
        (
            "frequency_presence",
            (plain.clone())
                .with_frequency_penalty(0.5)
                .with_presence_penalty(0.75),
        ),
        ("dry", dry(2, &[])),
        ("dry_breaker", dry(1, &[9])),
        ("top_n_sigma", plain.clone().with_top_n_sigma(1.1)),
        ("xtc", plain.clone().with_xtc(Xtc::new(1.0, 0.07))),
    ];
    assert_eq!(cases.len(), references.left.len());
    for (name, sampling) in cases {
        let expected = &references.left[name];
        let mut found = left(&references, &sampling);
        if name == "temperature" {
            // Ours makes the best logit 0, which is the same distribution.
            let best = expected.iter().flatten().copied().fold(f32::MIN, f32::max);
            for logit in found.iter_mut().flatten() {
                *logit += best;
            }
        }
        for (token, pair) in found.iter().zip(expected).enumerate() {
            let same = match pair {
                (Some(found), Some(expected)) => (found - expected).abs() < 2e-6,
                (found, expected) => found.is_none() && expected.is_none(),
            };
            assert!(same, "{name}, token {token}: {pair:?}");
        }
    }
}

#[test]
fn mirostat_cuts_where_the_paper_does() {
    let references = references();
    let sampling = Sampling::GREEDY
        .with_temperature(1.0)
        .with_mirostat(Mirostat::new(1.5, 1.0));
    let mut sampler = Sampler::new(&sampling).unwrap();
    let MirostatReference { chosen, left } = &references.mirostat;
    for (chosen, left) in chosen.iter().zip(left) {
        // Of many draws, all that are left come up, and nothing else; then the one that the reference chose.
        let mut drawn = Vec::new();
        let mut as_chosen = None;
        for _ in 0..3000 {
            let token = sampler.sample(&references.logits).unwrap();
            drawn.push(token);
            if token == *chosen {
                as_chosen = Some(sampler.checkpoint());
            }
        }
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn, *left);
        sampler.rollback(&as_chosen.unwrap()).unwrap();
        sampler.accept(*chosen);
    }
}

#[test]
fn forced_tokens_come_first_and_a_ban_is_stronger() {
    let logits = [0.0, 5.0, 1.0];
    let forced = Sampling::GREEDY.with_forced_tokens([2, 0]);
    let mut sampler = Sampler::new(&forced).unwrap();
    sampler.read_prompt(&[1, 1]);
    let mut chosen = Vec::new();
    for _ in 0..4 {
        let token = sampler.sample(&logits).unwrap();
        sampler.accept(token);
        chosen.push(token);
    }
    assert_eq!(chosen, [2, 0, 1, 1]);
    let mut sampler = Sampler::new(&forced.with_banned_tokens([2])).unwrap();
    assert_eq!(sampler.sample(&logits), Err(SampleError::NothingAllowed));
}

#[test]
fn xtc_comes_as_often_as_it_is_asked_to() {
    let logits = [2.0, 2.0, 1.9, -3.0];
    let sampling = Sampling::GREEDY
        .with_temperature(1.0)
        .with_xtc(Xtc::new(0.3, 0.1));
    let last = Last::default();
    let mut sampler = Sampler::new(&sampling).unwrap();
    sampler.push(Box::new(last.clone()));
    let mut cut = 0;
    for _ in 0..4000 {
        let token = sampler.sample(&logits).unwrap();
        cut += usize::from(last.0.lock().unwrap().len() == 2);
        sampler.accept(token);
    }
    assert!((1080..1320).contains(&cut), "{cut} of 4000");
}

#[test]
fn log_probabilities_are_of_the_models_own_distribution() {
    let references = references();
    let log_probs = LogProbs::of(&references.logits, 5, 4).unwrap();
    assert!((log_probs.chosen - references.log_probs[5]).abs() < 1e-6);
    assert_eq!(log_probs.best.len(), 4);
    for pair in log_probs.best.windows(2) {
        assert!(pair[0].1 >= pair[1].1);
    }
    let best = references
        .log_probs
        .iter()
        .copied()
        .fold(f32::MIN, f32::max);
    assert!((log_probs.best[0].1 - best).abs() < 1e-6);
    for (token, log_prob) in log_probs.best {
        assert!((log_prob - references.log_probs[token as usize]).abs() < 1e-6);
    }
    assert_eq!(LogProbs::of(&references.logits, 40, 1), None);
    assert_eq!(LogProbs::of(&[f32::NAN], 0, 1), None);
}

#[test]
fn settings_out_of_range_are_refused() {
    let plain = Sampling::GREEDY;
    let mut dry = Dry::new(0.8);
    dry.base = 0.5;
    for (sampling, message) in [
        (
            plain.clone().with_typical_p(0.0),
            "typical-p 0 is not above 0 and at most 1",
        ),
        (
            plain.clone().with_top_n_sigma(-1.0),
            "top-n-sigma -1 is not a number above 0",
        ),
        (
            plain.clone().with_xtc(Xtc::new(1.5, 0.1)),
            "XTC probability 1.5 is not from 0 to 1",
        ),
        (
            plain.clone().with_dry(dry),
            "DRY base 0.5 is not a number from 1 on",
        ),
        (
            plain.clone().with_no_repeat_ngram(0),
            "no-repeat n-gram 0 is not 1 or more",
        ),
        (
            plain.clone().with_frequency_penalty(f32::NAN),
            "frequency penalty NaN is not a number",
        ),
        (
            plain.clone().with_logit_bias([(1, f32::INFINITY)]),
            "logit bias inf is not a number, or minus infinity",
        ),
        (
            plain.clone().with_mirostat(Mirostat::new(5.0, 0.0)),
            "mirostat eta 0 is not a number above 0",
        ),
    ] {
        assert_eq!(Sampler::new(&sampling).err().unwrap().to_string(), message);
    }
}
