//! What goes on in every generation, whoever owns its session.

use super::choose::{LogProbs, SampleError, Sampler};
use super::filter::FilterChain;
use super::options::{ContextEnd, GenerateOptions};
use super::outcome::{FinishReason, GenerateError, Token};
use crate::cancellation::Cancellation;
use crate::session::{LogitsFor, Session, SessionError};
use crate::text::Detokenizer;
use std::time::{Duration, Instant};

/// A generation without its session.
pub(super) struct Run {
    /// Tokens that are not in the context yet: the prompt, then the last token.
    pending: Vec<u32>,
    left: usize,
    max_time: Option<Duration>,
    /// When the first token was asked for, where time counts.
    begun: Option<Instant>,
    log_probs: Option<usize>,
    end_tokens: Vec<u32>,
    stop_tokens: Vec<u32>,
    context_end: ContextEnd,
    sampler: Sampler,
    detokenizer: Option<Detokenizer>,
    filters: FilterChain,
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
        for step in options.steps.forks() {
            sampler.push(step);
        }
        sampler.read_prompt(session.tokens());
        sampler.read_prompt(pending);
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
            max_time: options.max_time,
            begun: None,
            log_probs: options.log_probs,
            end_tokens: engine.generation_defaults().eos_tokens.clone(),
            stop_tokens: options.stop_tokens.clone(),
            context_end: options.context_end,
            sampler,
            detokenizer,
            filters: FilterChain::new(&options.filters, &options.stop_strings),
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
            Ok(token) => token.map(Ok),
            Err(GenerateError::Session(SessionError::Cancelled)) => {
                self.finish_reason = Some(FinishReason::Cancelled);
                None
            }
            Err(error) => {
                self.finish_reason = Some(FinishReason::Failed);
                Some(Err(error))
            }
        }
    }

    /// One token, or none where it ends before another one; the reason is set then.
    fn step(&mut self, session: &mut Session) -> Result<Option<Token>, GenerateError> {
        if self.left == 0 {
            self.finish_reason = Some(FinishReason::MaxTokens);
            return Ok(None);
        }
        if let Some(max_time) = self.max_time
            && self.begun.get_or_insert_with(Instant::now).elapsed() >= max_time
        {
            return Ok(self.end_before_token(FinishReason::MaxTime));
        }
        self.make_room(session)?;
        let logits =
            session.append_cancellable(&self.pending, LogitsFor::LastToken, &self.cancellation)?;
        self.pending.clear();
        let id = match self.sampler.sample(logits.last()) {
            Ok(id) => id,
            Err(SampleError::NothingAllowed) => {
                return Ok(self.end_before_token(FinishReason::NothingAllowed));
            }
            Err(SampleError::NotFinite { token }) => {
                return Err(GenerateError::NotFinite { token });
            }
        };
        if self.end_tokens.contains(&id) {
            return Ok(self.end_before_token(FinishReason::EndOfText));
        }
        if self.stop_tokens.contains(&id) {
            return Ok(self.end_before_token(FinishReason::StopToken));
        }
        let log_probs = self
            .log_probs
            .and_then(|count| LogProbs::of(logits.last(), id, count));
        self.left -= 1;
        self.pending.push(id);
        self.sampler.accept(id);
        let piece = self.detokenizer.as_mut().map(|text| text.push(id));
        let mut passed = self.filters.push(piece.unwrap_or_default());
        let full = session.len() >= session.engine().context_tokens();
        if passed.end.is_some() {
            self.finish_reason = passed.end;
        } else if self.left == 0 {
            passed.text.push_str(&self.rest(FinishReason::MaxTokens));
        } else if full && self.context_end != ContextEnd::ForgetOldest {
            passed.text.push_str(&self.rest(FinishReason::ContextFull));
        }
        Ok(Some(Token {
            id: Some(id),
            text: passed.text,
            log_probs,
        }))
    }

    /// Ends for this reason with a token that is not given out, or none; the text that was held back is.
    fn end_before_token(&mut self, reason: FinishReason) -> Option<Token> {
        let text = self.rest(reason);
        (!text.is_empty()).then_some(Token {
            id: None,
            text,
            log_probs: None,
        })
    }

    /// What was held back, now that nothing follows for this reason. Where a filter finds that the text ended in it, as
    /// a stop string does in what another filter held back, that came first and is the reason.
    fn rest(&mut self, reason: FinishReason) -> String {
        let unfinished = self.detokenizer.as_mut().map(Detokenizer::finish);
        let passed = self.filters.finish(unfinished.unwrap_or_default());
        self.finish_reason = Some(passed.end.unwrap_or(reason));
        passed.text
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
