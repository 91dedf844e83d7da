//! Perplexity of a model on a text, and agreement of its choices with another model's.
//!
//! The text becomes one stream of tokens, the stream is cut into windows that do not see each other, and in
//! each window every token is predicted from the window's tokens before it.

use niwaki::{Engine, LogitsFor, SessionError, TextError, Tokenizer};

/// Tokens fed at once: bounds the memory that logits take, and changes no bit of them.
const CHUNK_TOKENS: usize = 64;

/// Where the model's beginning-of-text token stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginnings {
    /// Nowhere.
    None,
    /// Before each passage; passages are separated by empty lines.
    OfPassages(u32),
    /// At the start of each window, as tokenizers do that put it before every text.
    OfWindows(u32),
}

/// A text as tokens, ready to be cut into windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenStream {
    tokens: Vec<u32>,
    /// Begins each window.
    first: Option<u32>,
}

impl TokenStream {
    /// Encodes a text.
    ///
    /// # Errors
    /// When the tokenizer refuses it.
    pub fn encode(
        text: &str,
        tokenizer: &Tokenizer,
        beginnings: Beginnings,
    ) -> Result<TokenStream, TextError> {
        let (tokens, first) = match beginnings {
            Beginnings::None => (tokenizer.encode(text, false)?, None),
            Beginnings::OfWindows(bos) => (tokenizer.encode(text, false)?, Some(bos)),
            Beginnings::OfPassages(bos) => {
                let mut tokens = Vec::new();
                let passages = text.split("\n\n").map(|passage| passage.trim_matches('\n'));
                for passage in passages.filter(|passage| !passage.is_empty()) {
                    tokens.push(bos);
                    tokens.extend(tokenizer.encode(passage, false)?);
                }
                (tokens, None)
            }
        };
        Ok(TokenStream { tokens, first })
    }

    /// Windows of at most `size` (at least 1) inputs. An item holds a window's inputs and, after them, the token
    /// that the last input is to predict.
    ///
    /// Each token of the stream is predicted once, but for the very first when nothing stands before it.
    pub fn windows(&self, size: usize) -> impl ExactSizeIterator<Item = Vec<u32>> {
        let size = size.max(1);
        let predicted = match self.first {
            Some(_) => self.tokens.as_slice(),
            None => self.tokens.get(1..).unwrap_or_default(),
        };
        predicted
            .chunks(size)
            .enumerate()
            .map(move |(index, predicted)| {
                // What the window's first prediction looks at.
                let before = self
                    .first
                    .or_else(|| self.tokens.get(index * size).copied());
                before
                    .into_iter()
                    .chain(predicted.iter().copied())
                    .collect()
            })
    }
}

/// What one pass over a text found.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean of -ln(probability of the token that came), in nats.
    pub nats_per_token: f64,
    /// The most likely token at each scored position.
    pub choices: Vec<u32>,
}

impl Evaluation {
    /// `exp` of the mean loss: as if the model chose among this many equally likely tokens.
    pub fn perplexity(&self) -> f64 {
        self.nats_per_token.exp()
    }

    /// Share of positions, 0 to 1, where both models find the same token most likely.
    pub fn agreement(&self, reference: &Evaluation) -> f64 {
        let same = self
            .choices
            .iter()
            .zip(&reference.choices)
            .filter(|(a, b)| a == b)
            .count();
        same as f64 / self.choices.len().max(1) as f64
    }
}

/// Scores windows of a [`TokenStream`] with `engine`; `on_window` hears of each finished one.
///
/// # Errors
/// When the model refuses the tokens, for example because a window exceeds its context.
pub fn evaluate(
    engine: &Engine,
    windows: impl IntoIterator<Item = Vec<u32>>,
    mut on_window: impl FnMut(),
) -> Result<Evaluation, SessionError> {
    let mut session = engine.session()?;
    let mut nats = 0.0;
    let mut choices = Vec::new();
    for window in windows {
        session.reset()?;
        let (Some((_, inputs)), Some((_, targets))) = (window.split_last(), window.split_first())
        else {
            continue;
        };
        for (inputs, targets) in inputs
            .chunks(CHUNK_TOKENS)
            .zip(targets.chunks(CHUNK_TOKENS))
        {
            let logits = session.append(inputs, LogitsFor::EveryToken)?;
            let rows = logits.as_slice().chunks_exact(logits.width());
            for (row, &target) in rows.zip(targets) {
                nats += loss(row, target);
                choices.push(most_likely(row));
            }
        }
        on_window();
    }
    Ok(Evaluation {
        nats_per_token: nats / choices.len().max(1) as f64,
        choices,
    })
}

/// `-ln softmax(logits)[target]`, summed in f64; infinite for a token outside the vocabulary.
fn loss(logits: &[f32], target: u32) -> f64 {
    let Some(&target) = usize::try_from(target)
        .ok()
        .and_then(|target| logits.get(target))
    else {
        return f64::INFINITY;
    };
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|&logit| f64::from(logit - highest).exp())
        .sum();
    sum.ln() - f64::from(target - highest)
}

/// Index of the highest logit, the first of equals.
fn most_likely(logits: &[f32]) -> u32 {
    let mut best = 0;
    let mut highest = f32::NEG_INFINITY;
    for (token, &logit) in (0..).zip(logits) {
        if logit > highest {
            (best, highest) = (token, logit);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::{Evaluation, TokenStream, loss, most_likely};

    #[test]
    fn without_a_beginning_every_token_but_the_first_is_predicted_once() {
        for length in 0..40 {
            let stream = TokenStream {
                tokens: (0..length).collect(),
                first: None,
            };
            let windows: Vec<_> = stream.windows(8).collect();
            assert_eq!(windows.len(), stream.windows(8).len());
            let predicted: Vec<u32> = windows
                .iter()
                .flat_map(|window| &window[1..])
                .copied()
                .collect();
            assert_eq!(
                predicted,
                (1..length.max(1)).collect::<Vec<_>>(),
                "length {length}"
            );
            for window in &windows {
                assert!(
                    window.windows(2).all(|pair| pair[1] == pair[0] + 1),
                    "{window:?}"
                );
            }
        }
    }

    #[test]
    fn windows_that_begin_with_a_token_predict_the_whole_stream() {
        let stream = TokenStream {
            tokens: (10..15).collect(),
            first: Some(1),
        };
        let windows: Vec<_> = stream.windows(3).collect();
        assert_eq!(windows, [vec![1, 10, 11, 12], vec![1, 13, 14]]);
    }

    #[test]
    fn equal_logits_share_the_probability() {
        assert!((loss(&[1.5; 8], 3) - 8_f64.ln()).abs() < 1e-12);
        assert_eq!(loss(&[0.0; 8], 8), f64::INFINITY);
    }

    #[test]
    fn the_first_of_equal_logits_is_chosen() {
        assert_eq!(most_likely(&[0.0, 2.0, 2.0, -1.0]), 1);
    }

    #[test]
    fn agreement_counts_equal_choices() {
        let of = |choices: &[u32]| Evaluation {
            nats_per_token: 0.0,
            choices: choices.to_vec(),
        };
        assert_eq!(of(&[1, 2, 3, 4]).agreement(&of(&[1, 2, 0, 4])), 0.75);
    }
}
