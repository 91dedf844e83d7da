//! What choosing a token costs beside computing its logits.
//!
//! `cargo bench --workspace --bench sampling`
//!
//! Prints microseconds per token for vocabularies of small models, with made-up logits: a few stand out.

use niwaki::{
    Candidates, InvalidSampling, Random, RepetitionPenalty, Sampler, Sampling, SamplingStep, Stage,
};
use std::time::Instant;

const DRAWS: usize = 101;
/// Tokens of the context, which the repetition penalty looks at.
const CONTEXT_TOKENS: u32 = 1000;

/// Lets every second token come, as a grammar might.
struct EverySecond;

impl SamplingStep for EverySecond {
    fn stage(&self) -> Stage {
        Stage::Constraint
    }

    fn apply(&mut self, candidates: &mut Candidates) {
        candidates.retain(|candidate| candidate.token % 2 == 0);
    }

    fn fork(&self) -> Box<dyn SamplingStep> {
        Box::new(EverySecond)
    }
}

fn main() -> Result<(), InvalidSampling> {
    let draw = || Sampling::GREEDY.with_temperature(0.8);
    let top_p = draw().with_top_p(0.9);
    let penalized = top_p
        .clone()
        .with_repetition_penalty(RepetitionPenalty::new(1.1));
    let settings = [
        ("greedy", Sampling::GREEDY, false),
        ("temperature", draw(), false),
        ("min-p", draw().with_min_p(0.05), false),
        ("top-k", draw().with_top_k(40), false),
        ("top-p", top_p, false),
        ("typical", draw().with_typical_p(0.9), false),
        ("top-n-sigma", draw().with_top_n_sigma(1.0), false),
        ("top-p and repetition penalty", penalized.clone(), false),
        ("both under a constraint", penalized, true),
        ("greedy under a constraint", Sampling::GREEDY, true),
    ];
    for vocabulary in [49_152, 151_936] {
        let logits = logits(vocabulary);
        for (name, sampling, is_constrained) in &settings {
            let mut sampler = Sampler::new(sampling)?;
            if *is_constrained {
                sampler.push(Box::new(EverySecond));
            }
            sampler.read_prompt(&Vec::from_iter(0..CONTEXT_TOKENS));
            let mut times_us: Vec<f64> = (0..DRAWS)
                .map(|_| {
                    let start = Instant::now();
                    // Which one does not matter here.
                    let _ = std::hint::black_box(sampler.sample(&logits));
                    start.elapsed().as_secs_f64() * 1e6
                })
                .collect();
            times_us.sort_by(f64::total_cmp);
            println!("{vocabulary} tokens, {name}: {:.0} us", times_us[DRAWS / 2]);
        }
    }
    Ok(())
}

/// About normal ones, and one in 5000 that stands out.
fn logits(vocabulary: usize) -> Vec<f32> {
    let mut random = Random::new(1);
    let mut logit = || {
        let sum: f64 = (0..12).map(|_| random.next_unit()).sum();
        let above = if random.next_unit() < 0.0002 {
            9.0
        } else {
            0.0
        };
        ((sum - 6.0) * 3.0 + above) as f32
    };
    (0..vocabulary).map(|_| logit()).collect()
}
