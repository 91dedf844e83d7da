//! A stream of tokens.

use super::sampling::{InvalidSampling, Sampler, Sampling};
use crate::engine::{LogitsFor, Session, SessionError};
use crate::text::{Detokenizer, TextError};

/// When to stop and how to choose.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Tokens that end the generation, besides the model's own end-of-text tokens.
    pub stop_tokens: Vec<u32>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_new_tokens: 256,
            sampling: Sampling::GREEDY,
            stop_tokens: Vec::new(),
        }
    }
}

/// Why a generation broke off.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The options describe no distribution.
    #[error("the sampling options make no sense")]
    Sampling(#[from] InvalidSampling),
    /// The tokens cannot be turned into text.
    #[error("the tokens cannot be turned into text")]
    Text(#[from] TextError),
    /// The model could not be run.
    #[error("the next token cannot be computed")]
    Session(#[from] SessionError),
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// As many tokens as were asked for.
    MaxTokens,
    /// The model ended its text.
    EndOfText,
    /// One of the stop tokens came.
    StopToken,
    /// The context is full.
    ContextFull,
    /// It broke off with an error.
    Failed,
}

/// A generated token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The text it completes: never half a character, empty where the character goes on in the next token.
    pub text: String,
}

/// Generates tokens as it is iterated. Made by [`Session::generate`].
///
/// The session's context then holds the prompt and every token that was given out but the last: a token is
/// computed on only when the next one is wanted.
pub struct Generation<'a> {
    session: &'a mut Session,
    /// Tokens that are not in the context yet: the prompt, then the last token.
    pending: Vec<u32>,
    left: usize,
    stop_tokens: Vec<u32>,
    /// What runs the stream, or why it cannot begin.
    parts: Result<Parts, Option<GenerateError>>,
    finish_reason: Option<FinishReason>,
}

struct Parts {
    sampler: Sampler,
    detokenizer: Option<Detokenizer>,
}

impl Session {
    /// Adds `prompt` to the context and generates what follows. Nothing is computed before the first token
    /// is asked for; errors come as items.
    pub fn generate(&mut self, prompt: &[u32], options: &GenerateOptions) -> Generation<'_> {
        let parts = Parts::new(self, prompt, options);
        Generation {
            session: self,
            pending: prompt.to_vec(),
            left: options.max_new_tokens,
            stop_tokens: options.stop_tokens.clone(),
            parts: parts.map_err(Some),
            finish_reason: None,
        }
    }
}

impl Parts {
    fn new(
        session: &Session,
        prompt: &[u32],
        options: &GenerateOptions,
    ) -> Result<Parts, GenerateError> {
        let sampler = Sampler::new(&options.sampling)?;
        let mut detokenizer = session
            .engine()
            .tokenizer()
            .map(|tokenizer| tokenizer.detokenizer(true))
            .transpose()?;
        if let Some(detokenizer) = &mut detokenizer {
            // What follows continues the prompt's text: its space is not the start of a text, and a
            // character may begin in the prompt's last token.
            for token in prompt {
                detokenizer.push(*token);
            }
        }
        Ok(Parts {
            sampler,
            detokenizer,
        })
    }
}

impl Generation<'_> {
    /// Why it ended; `None` while it goes on.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish_reason
    }

    fn step(&mut self) -> Result<Option<Token>, GenerateError> {
        let parts = match &mut self.parts {
            Ok(parts) => parts,
            Err(error) => return error.take().map_or(Ok(None), Err),
        };
        let full = |session: &Session| session.len() >= session.engine().context_tokens();
        let reason = match self.left {
            0 => Some(FinishReason::MaxTokens),
            _ if full(self.session) => Some(FinishReason::ContextFull),
            _ => None,
        };
        if let Some(reason) = reason {
            self.finish_reason = Some(reason);
            return Ok(None);
        }
        let logits = self.session.append(&self.pending, LogitsFor::LastToken)?;
        self.pending.clear();
        let Some(id) = parts.sampler.sample(logits.last()) else {
            return Ok(None);
        };
        if self
            .session
            .engine()
            .generation_defaults()
            .eos_tokens
            .contains(&id)
        {
            self.finish_reason = Some(FinishReason::EndOfText);
            return Ok(None);
        }
        if self.stop_tokens.contains(&id) {
            self.finish_reason = Some(FinishReason::StopToken);
            return Ok(None);
        }
        self.left -= 1;
        self.pending.push(id);
        let text = parts
            .detokenizer
            .as_mut()
            .map(|detokenizer| detokenizer.push(id))
            .unwrap_or_default();
        Ok(Some(Token { id, text }))
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Token, GenerateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finish_reason.is_some() {
            return None;
        }
        match self.step() {
            Ok(Some(token)) => Some(Ok(token)),
            Ok(None) => {
                self.finish_reason.get_or_insert(FinishReason::Failed);
                None
            }
            Err(error) => {
                self.finish_reason = Some(FinishReason::Failed);
                Some(Err(error))
            }
        }
    }
}
