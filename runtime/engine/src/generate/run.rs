//! What goes on in every generation, whoever owns its session.

use super::options::{ContextEnd, FinishReason, GenerateError, GenerateOptions, Token};
use super::sampler::Sampler;
use super::stop_strings::StopStrings;
use crate::session::{Cancellation, LogitsFor, Session, SessionError};
use crate::text::Detokenizer;

/// A generation without its session.
pub(super) struct Run {
    /// Tokens that are not in the context yet: the prompt, then the last token.
    pending: Vec<u32>,
    left: usize,
    end_tokens: Vec<u32>,
    stop_tokens: Vec<u32>,
    stop_strings: StopStrings,
    context_end: ContextEnd,
    sampler: Sampler,
    detokenizer: Option<Detokenizer>,
    cancellation: Cancellation,
    finish_reason: Option<FinishReason>,
}

/// What a prompt is to the text that is generated after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    /// The first part of the same text: a character may begin in its last token.
    SameText,
    /// Another text: a message that is answered.
    NewText,
}

impl Run {
    /// Prepares generating after `session`'s context and `pending`.
    pub(super) fn new(
        session: &Session,
        pending: &[u32],
        beginning: Beginning,
        options: &GenerateOptions,
    ) -> Result<Run, GenerateError> {
        let engine = session.engine();
        let room_tokens = engine.context_tokens().saturating_sub(session.len());
        // The last token needs no room of its own.
        let needed = pending
            .len()
            .saturating_add(options.max_new_tokens.saturating_sub(1));
        if options.context_end == ContextEnd::Refuse && needed > room_tokens {
            return Err(GenerateError::DoesNotFit {
                prompt_tokens: pending.len(),
                max_new_tokens: options.max_new_tokens,
                room_tokens,
            });
        }
        let mut sampler = Sampler::new(&options.sampling)?;
        for token in session.tokens().iter().chain(pending) {
            sampler.accept(*token);
        }
        let mut detokenizer = engine
            .tokenizer()
            .map(|tokenizer| tokenizer.detokenizer(true))
            .transpose()?;
        if let Some(detokenizer) = detokenizer
            .as_mut()
            .filter(|_| beginning == Beginning::SameText)
        {
            for token in pending {
                detokenizer.push(*token);
            }
        }
        Ok(Run {
            pending: pending.to_vec(),
            left: options.max_new_tokens,
            end_tokens: engine.generation_defaults().eos_tokens.clone(),
            stop_tokens: options.stop_tokens.clone(),
            stop_strings: StopStrings::new(&options.stop_strings),
            context_end: options.context_end,
            sampler,
            detokenizer,
            cancellation: Cancellation::new(),
            finish_reason: None,
        })
    }

    /// Also ends at this token.
    pub(super) fn end_at(&mut self, token: u32) {
        self.end_tokens.push(token);
    }

    pub(super) fn cancellation(&self) -> &Cancellation {
        &self.cancellation
    }

    pub(super) fn set_cancellation(&mut self, cancellation: Cancellation) {
        self.cancellation = cancellation;
    }

    pub(super) fn finish_reason(&self) -> Option<FinishReason> {
        self.finish_reason
    }

    /// The next token; `None` when it has ended.
    pub(super) fn next(&mut self, session: &mut Session) -> Option<Result<Token, GenerateError>> {
        if self.finish_reason.is_some() {
            return None;
        }
        match self.step(session) {
            Ok(Some(token)) => Some(Ok(token)),
            Ok(None) => {
                self.finish_reason.get_or_insert(FinishReason::Failed);
                None
            }
            Err(GenerateError::Session(SessionError::Cancelled)) => {
                self.end(FinishReason::Cancelled)
            }
            Err(error) => {
                self.finish_reason = Some(FinishReason::Failed);
                Some(Err(error))
            }
        }
    }

    fn end(&mut self, reason: FinishReason) -> Option<Result<Token, GenerateError>> {
        self.finish_reason = Some(reason);
        None
    }

    fn step(&mut self, session: &mut Session) -> Result<Option<Token>, GenerateError> {
        if self.left == 0 {
            self.finish_reason = Some(FinishReason::MaxTokens);
            return Ok(None);
        }
        self.make_room(session)?;
        let logits =
            session.append_cancellable(&self.pending, LogitsFor::LastToken, &self.cancellation)?;
        self.pending.clear();
        let Some(id) = self.sampler.sample(logits.last()) else {
            return Ok(None);
        };
        let end = if self.end_tokens.contains(&id) {
            Some(FinishReason::EndOfText)
        } else if self.stop_tokens.contains(&id) {
            Some(FinishReason::StopToken)
        } else {
            None
        };
        if let Some(reason) = end {
            self.finish_reason = Some(reason);
            let text = self.rest();
            return Ok((!text.is_empty()).then_some(Token { id: None, text }));
        }
        self.left -= 1;
        self.pending.push(id);
        self.sampler.accept(id);
        let (text, stopped) = match &mut self.detokenizer {
            Some(detokenizer) => self.stop_strings.push(&detokenizer.push(id)),
            None => (String::new(), false),
        };
        let mut token = Token { id: Some(id), text };
        let full = session.len() >= session.engine().context_tokens();
        if stopped {
            self.finish_reason = Some(FinishReason::StopString);
        } else if self.left == 0 {
            self.finish_reason = Some(FinishReason::MaxTokens);
            token.text.push_str(&self.rest());
        } else if full && self.context_end != ContextEnd::ForgetOldest {
            self.finish_reason = Some(FinishReason::ContextFull);
            token.text.push_str(&self.rest());
        }
        Ok(Some(token))
    }

    /// What was held back, now that nothing follows. It may hold a stop string at its very end no more: that
    /// would have been found.
    fn rest(&mut self) -> String {
        let unfinished = self
            .detokenizer
            .as_mut()
            .map(Detokenizer::finish)
            .unwrap_or_default();
        self.stop_strings.finish() + &unfinished
    }

    /// Forgets the older half of the context when that is asked for and needed.
    fn make_room(&mut self, session: &mut Session) -> Result<(), SessionError> {
        let context_tokens = session.engine().context_tokens();
        let len = session.len() + self.pending.len();
        if self.context_end != ContextEnd::ForgetOldest || len <= context_tokens {
            return Ok(());
        }
        let all: Vec<u32> = session
            .tokens()
            .iter()
            .chain(&self.pending)
            .copied()
            .collect();
        let newer = (context_tokens / 2).max(1);
        let bos = session.engine().generation_defaults().bos_token;
        self.pending = match all.first() {
            Some(first) if bos == Some(*first) && newer > 1 => vec![*first],
            _ => Vec::new(),
        };
        let from = all.len().saturating_sub(newer);
        self.pending.extend(all.iter().skip(from));
        session.reset()
    }
}
