//! Tokens from a thread that generates to one that reads.

use crate::error::NiwakiError;
use niwaki::{Cancellation, GenerateError, Panicked, Stream};
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A generated token.
#[derive(Clone, PartialEq, uniffi::Record)]
pub struct Token {
    /// Its id; absent for text that comes after the last token.
    pub id: Option<u32>,
    /// The text that is certain with it: never half a character. Often empty.
    pub text: String,
    /// How likely the model found it, where that was asked for.
    pub log_probs: Option<LogProbs>,
}

/// Natural logarithms of the model's own probabilities, before penalties, temperature and cuts.
#[derive(Clone, PartialEq, uniffi::Record)]
pub struct LogProbs {
    /// Of the chosen token.
    pub chosen: f32,
    /// Of the most likely tokens, best first.
    pub best: Vec<TokenLogProb>,
}

/// A token and the logarithm of its probability.
#[derive(Clone, Copy, PartialEq, uniffi::Record)]
pub struct TokenLogProb {
    /// The token.
    pub token: u32,
    /// Its logarithm.
    pub log_prob: f32,
}

impl From<niwaki::LogProbs> for LogProbs {
    fn from(log_probs: niwaki::LogProbs) -> Self {
        let best = log_probs.best.into_iter();
        LogProbs {
            chosen: log_probs.chosen,
            best: best
                .map(|(token, log_prob)| TokenLogProb { token, log_prob })
                .collect(),
        }
    }
}

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// Tokens of the prompt, all earlier turns included.
    pub prompt_tokens: u64,
    /// Tokens of the prompt that were in the context already.
    pub reused_tokens: u64,
    /// Tokens that were generated.
    pub new_tokens: u64,
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum FinishReason {
    /// As many tokens as were asked for.
    MaxTokens,
    /// As much time as was given.
    MaxTime,
    /// The model ended its text.
    EndOfText,
    /// One of the stop strings came.
    StopString,
    /// The context is full.
    ContextFull,
    /// No token was allowed to follow.
    NothingAllowed,
    /// A filter ended the text.
    Filtered,
    /// It was cancelled.
    Cancelled,
    /// It broke off with an error.
    Failed,
}

impl From<Option<niwaki::FinishReason>> for FinishReason {
    fn from(reason: Option<niwaki::FinishReason>) -> Self {
        match reason {
            Some(niwaki::FinishReason::MaxTokens) => FinishReason::MaxTokens,
            Some(niwaki::FinishReason::MaxTime) => FinishReason::MaxTime,
            Some(niwaki::FinishReason::EndOfText | niwaki::FinishReason::StopToken) => {
                FinishReason::EndOfText
            }
            Some(niwaki::FinishReason::StopString) => FinishReason::StopString,
            Some(niwaki::FinishReason::ContextFull) => FinishReason::ContextFull,
            Some(niwaki::FinishReason::NothingAllowed) => FinishReason::NothingAllowed,
            Some(niwaki::FinishReason::Filtered) => FinishReason::Filtered,
            // One that nobody reads to its end.
            Some(niwaki::FinishReason::Cancelled) | None => FinishReason::Cancelled,
            // And what has no name here yet: nobody shall take it for a good end.
            Some(_) => FinishReason::Failed,
        }
    }
}

impl Finish {
    fn failed() -> Finish {
        Finish {
            reason: FinishReason::Failed,
            prompt_tokens: 0,
            reused_tokens: 0,
            new_tokens: 0,
        }
    }
}

/// Tokens as they are generated, by a thread that is at most one token ahead of its reader. Dropping the stream
/// cancels it.
#[derive(uniffi::Object)]
pub struct TokenStream {
    stream: Stream<Token, Result<Finish, NiwakiError>>,
    error: ToldOnce,
}

#[uniffi::export]
impl TokenStream {
    /// Waits for the next token; `None` when the stream has ended and nothing is computed for it any more.
    ///
    /// # Errors
    /// [`NiwakiError`], once; then the stream has ended.
    pub fn next(&self) -> Result<Option<Token>, NiwakiError> {
        match self.stream.read() {
            Some(token) => Ok(Some(token)),
            None => self
                .error
                .tell(self.stream.cancellation(), || self.end()?.err()),
        }
    }

    /// Stops the work, which ends within one layer's time, in prefill as in decode. Does not wait for that;
    /// [`next`](Self::next) does.
    pub fn cancel(&self) {
        self.stream.cancel();
    }

    /// How it ended; `None` while it goes on.
    pub fn finish(&self) -> Option<Finish> {
        Some(self.end()?.unwrap_or_else(|_| Finish::failed()))
    }

    /// Operators that were begun for it: how much was computed, in a measure that no machine's speed changes.
    pub fn operators_begun(&self) -> u64 {
        self.stream.cancellation().operators_begun()
    }
}

impl TokenStream {
    /// Runs `work` on a thread of its own.
    pub(crate) fn start(
        work: impl FnOnce(&Feed<'_>) -> Result<Finish, NiwakiError> + Send + 'static,
    ) -> Result<Arc<TokenStream>, NiwakiError> {
        let stream = Stream::start(AHEAD, |feed| work(&Feed(feed))).map_err(no_thread)?;
        Ok(Arc::new(TokenStream {
            stream,
            error: ToldOnce::default(),
        }))
    }

    /// Whether it has neither ended nor been cancelled.
    pub(crate) fn goes_on(&self) -> bool {
        !self.stream.is_over() && !self.stream.cancellation().is_cancelled()
    }

    fn end(&self) -> Option<Result<Finish, NiwakiError>> {
        let end = self.stream.end()?;
        Some(end.unwrap_or_else(|Panicked| Err(NiwakiError::panicked())))
    }
}

/// A thread goes on when what it made was read.
pub(crate) const AHEAD: NonZeroUsize = NonZeroUsize::MIN;

pub(crate) fn no_thread(error: io::Error) -> NiwakiError {
    NiwakiError::Internal {
        details: format!("no thread can be started: {error}"),
    }
}

/// The error at the end of a stream: told once, and not to whoever cancelled.
#[derive(Default)]
pub(crate) struct ToldOnce(AtomicBool);

impl ToldOnce {
    pub(crate) fn tell<T>(
        &self,
        cancellation: &Cancellation,
        error: impl FnOnce() -> Option<NiwakiError>,
    ) -> Result<Option<T>, NiwakiError> {
        if self.0.swap(true, Ordering::SeqCst) || cancellation.is_cancelled() {
            return Ok(None);
        }
        error().map_or(Ok(None), Err)
    }
}

/// The end of a stream that tokens go in at.
pub(crate) struct Feed<'a>(&'a niwaki::Feed<Token>);

impl Feed<'_> {
    /// What the reader cancels.
    pub(crate) fn cancellation(&self) -> &Cancellation {
        self.0.cancellation()
    }

    /// Passes tokens on until there are no more or nobody reads them, and counts them.
    pub(crate) fn forward(
        &self,
        tokens: impl Iterator<Item = Result<niwaki::Token, GenerateError>>,
    ) -> Result<u64, NiwakiError> {
        let mut count = 0;
        for token in tokens {
            let token = token?;
            count += u64::from(token.id.is_some());
            let token = Token {
                id: token.id,
                text: token.text,
                log_probs: token.log_probs.map(LogProbs::from),
            };
            if self.0.put(token).is_break() {
                break;
            }
        }
        Ok(count)
    }
}
