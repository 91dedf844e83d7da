//! How well a model predicts a text, in one call: the perplexity of a file that fits into the context.
//!
//! `cargo run --release --workspace --example score -- MODEL.niwaki TEXT.txt`

use niwaki::{Engine, LogitsFor, OpenOptions};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "score MODEL.niwaki TEXT.txt";
    let (model, text) = (
        arguments.next().ok_or(usage)?,
        arguments.next().ok_or(usage)?,
    );
    let engine = Engine::open(model, &OpenOptions::default())?;
    let tokenizer = engine.tokenizer().ok_or("the bundle has no tokenizer")?;
    let mut tokens = tokenizer.encode(&std::fs::read_to_string(text)?, true)?;
    tokens.truncate(engine.context_tokens());
    let (Some((_, inputs)), Some((_, targets))) = (tokens.split_last(), tokens.split_first())
    else {
        return Err("the text has no tokens".into());
    };

    let logits = engine.session()?.append(inputs, LogitsFor::EveryToken)?;
    let mut nats = 0.0;
    for (index, target) in targets.iter().enumerate() {
        let row = logits.row(index).ok_or("a row is missing")?;
        let target = *row.get(*target as usize).ok_or("a token without a logit")?;
        let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row
            .iter()
            .map(|logit| f64::from(logit - highest).exp())
            .sum();
        nats += sum.ln() - f64::from(target - highest);
    }
    let perplexity = (nats / targets.len() as f64).exp();
    println!("{} tokens, perplexity {perplexity:.2}", targets.len());
    Ok(())
}
