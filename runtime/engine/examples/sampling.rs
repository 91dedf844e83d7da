//! What choosing a token costs beside computing its logits.
//!
//! `cargo run --release -p niwaki --example sampling`
//!
//! Prints microseconds per token for vocabularies of small models, with made-up logits: a few stand out.

use niwaki::{InvalidSampling, Random, RepetitionPenalty, Sampler, Sampling};
use std::time::Instant;

const DRAWS: usize = 101;
/// Tokens of the context, which the repetition penalty looks at.
const CONTEXT_TOKENS: u32 = 1000;

fn main() -> Result<(), InvalidSampling> {
    let draw = Sampling {
        temperature: 0.8,
        ..Sampling::GREEDY
    };
    let top_p = Sampling {
        top_p: Some(0.9),
        ..draw
    };
    let settings = [
        ("greedy", Sampling::GREEDY),
        ("temperature", draw),
        (
            "min-p",
            Sampling {
                min_p: Some(0.05),
                ..draw
            },
        ),
        (
            "top-k",
            Sampling {
                top_k: Some(40),
                ..draw
            },
        ),
        ("top-p", top_p),
        (
            "top-p and repetition penalty",
            Sampling {
                repetition_penalty: Some(RepetitionPenalty {
                    factor: 1.1,
                    last_tokens: None,
                }),
                ..top_p
            },
        ),
    ];
    for vocabulary in [49_152, 151_936] {
        let logits = logits(vocabulary);
        for (name, sampling) in &settings {
            let mut sampler = Sampler::new(sampling)?;
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
