//! Feeds a prompt of made-up tokens and decodes greedily: the smallest program that costs what a model costs.
//!
//! `cargo run --release -p niwaki --example decode -- MODEL.niwaki PROMPT_TOKENS NEW_TOKENS [THREADS]`
//!
//! Two runs that differ only in one of the numbers, under an instruction counter, give the cost of one token.

use niwaki::{Engine, LogitsFor, OpenOptions, Verify};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "decode MODEL.niwaki PROMPT_TOKENS NEW_TOKENS [THREADS]";
    let model = arguments.next().ok_or(usage)?;
    let mut number = || arguments.next().map(|number| number.parse::<usize>());
    let prompt_tokens = number().ok_or(usage)??;
    let new_tokens = number().ok_or(usage)??;
    let threads = number().transpose()?.unwrap_or(1);

    let options = OpenOptions {
        threads,
        verify: Verify::Structure,
        ..OpenOptions::default()
    };
    let engine = Engine::open(model, &options)?;
    let vocabulary = engine.graph().vocabulary as u32;
    let prompt: Vec<u32> = (0..prompt_tokens as u32)
        .map(|index| index * 7919 % vocabulary)
        .collect();
    let mut session = engine.session()?;
    let mut logits = session.append(&prompt, LogitsFor::LastToken)?;
    for _ in 0..new_tokens {
        let best = (0u32..)
            .zip(logits.last())
            .max_by(|a, b| a.1.total_cmp(b.1));
        let token = best.map_or(0, |(token, _)| token);
        logits = session.append(&[token], LogitsFor::LastToken)?;
    }
    Ok(())
}
