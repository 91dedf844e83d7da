//! Texts that the float model and a bundle continue, to be read side by side.

use super::measure::Measure;
use crate::build::BuildError;
use niwaki::{Engine, GenerateOptions, Sampling};
use serde::{Deserialize, Serialize};

/// Beginnings that most language models have something to say to, and that are nobody's.
const PROMPTS: [&str; 3] = [
    "The water in the lake is clear because",
    "To bake a simple loaf of bread, first",
    "Once upon a time, a small boat",
];

/// Tokens of a continuation.
const TOKENS: usize = 24;

/// What two forms of a model say to the same, always taking the most likely token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Continuation {
    /// What was given.
    pub prompt: String,
    /// How the float model goes on.
    pub reference: String,
    /// How the bundle does.
    pub bundle: String,
    /// So many tokens are the same before the first that is not.
    pub equal_tokens: usize,
    /// Tokens of the float model's continuation.
    pub tokens: usize,
}

/// Continuations of the built-in prompts; none where there is no tokenizer, or a context is too short for one.
pub(super) fn continuations(
    measure: &Measure,
    engine: &Engine,
) -> Result<Vec<Continuation>, BuildError> {
    let Some(tokenizer) = engine.tokenizer() else {
        return Ok(vec![]);
    };
    let mut continuations = vec![];
    for prompt in PROMPTS {
        let Ok(tokens) = tokenizer.encode(prompt, true) else {
            continue;
        };
        if tokens.is_empty() || tokens.len() + TOKENS > engine.context_tokens() {
            continue;
        }
        let (reference, expected) = goes_on(measure.engine(), &tokens)?;
        let (bundle, found) = goes_on(engine, &tokens)?;
        let equal = expected.iter().zip(&found).take_while(|(a, b)| a == b);
        continuations.push(Continuation {
            prompt: prompt.to_owned(),
            reference,
            bundle,
            equal_tokens: equal.count(),
            tokens: expected.len(),
        });
    }
    Ok(continuations)
}

/// The text and the tokens that follow a prompt.
fn goes_on(engine: &Engine, prompt: &[u32]) -> Result<(String, Vec<u32>), BuildError> {
    let options = GenerateOptions::default()
        .with_max_new_tokens(TOKENS)
        .with_sampling(Sampling::GREEDY);
    let mut session = engine.session().map_err(BuildError::Session)?;
    let (mut text, mut tokens) = (String::new(), vec![]);
    for token in session.generate(prompt, &options) {
        let token = token.map_err(BuildError::Continue)?;
        text.push_str(&token.text);
        tokens.extend(token.id);
    }
    Ok((text, tokens))
}
