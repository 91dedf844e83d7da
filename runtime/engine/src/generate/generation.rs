//! A stream of tokens from a borrowed session.

use super::options::GenerateOptions;
use super::outcome::{FinishReason, GenerateError, Token};
use super::run::{Beginning, Run};
use crate::cancellation::Cancellation;
use crate::session::Session;

/// Generates tokens as it is iterated. Made by [`Session::generate`].
///
/// The session's context then holds the prompt and every token that was given out but the last: a token is
/// computed on only when the next one is wanted. Cancelled in the middle, the context holds what it held when
/// the last token was given out.
pub struct Generation<'a> {
    session: &'a mut Session,
    /// What runs the stream, or why it cannot begin.
    run: Result<Run, Option<GenerateError>>,
    cancellation: Cancellation,
}

impl Session {
    /// Adds `prompt` to the context and generates what follows. Nothing is computed before the first token
    /// is asked for; errors come as items.
    pub fn generate(&mut self, prompt: &[u32], options: &GenerateOptions) -> Generation<'_> {
        let run = Run::new(self, prompt, Beginning::SameText, options);
        Generation::new(self, run)
    }
}

impl<'a> Generation<'a> {
    fn new(session: &'a mut Session, run: Result<Run, GenerateError>) -> Generation<'a> {
        let cancellation = match &run {
            Ok(run) => run.cancellation().clone(),
            Err(_) => Cancellation::new(),
        };
        Generation {
            session,
            run: run.map_err(Some),
            cancellation,
        }
    }

    /// Ends when `cancellation` is cancelled, instead of a cancellation of its own.
    #[must_use]
    pub fn with_cancellation(mut self, cancellation: Cancellation) -> Self {
        if let Ok(run) = &mut self.run {
            run.set_cancellation(cancellation.clone());
        }
        self.cancellation = cancellation;
        self
    }

    /// What cancels it: clone it into the thread or the button that does.
    pub fn cancellation(&self) -> &Cancellation {
        &self.cancellation
    }

    /// Why it ended; `None` while it goes on.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        match &self.run {
            Ok(run) => run.finish_reason(),
            Err(Some(_)) => None,
            Err(None) => Some(FinishReason::Failed),
        }
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Token, GenerateError>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.run {
            Ok(run) => run.next(self.session),
            Err(error) => error.take().map(Err),
        }
    }
}
