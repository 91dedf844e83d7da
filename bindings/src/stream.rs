//! Tokens from a thread that generates to one that reads.

use crate::error::NiwakiError;
use niwaki::{Cancellation, GenerateError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A generated token.
#[derive(Clone, PartialEq, Eq, uniffi::Record)]
pub struct Token {
    /// Its id; absent for text that comes after the last token.
    pub id: Option<u32>,
    /// The text that is certain with it: never half a character. Often empty.
    pub text: String,
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

impl Ended for Finish {
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
    stream: Stream<Token, Finish>,
}

#[uniffi::export]
impl TokenStream {
    /// Waits for the next token; `None` when the stream has ended and nothing is computed for it any more.
    ///
    /// # Errors
    /// [`NiwakiError`], once; then the stream has ended.
    pub fn next(&self) -> Result<Option<Token>, NiwakiError> {
        self.stream.next()
    }

    /// Stops the work, which ends within one layer's time, in prefill as in decode. Does not wait for that;
    /// [`next`](Self::next) does.
    pub fn cancel(&self) {
        self.stream.cancel();
    }

    /// How it ended; `None` while it goes on.
    pub fn finish(&self) -> Option<Finish> {
        self.stream.finish()
    }

    /// Operators that were begun for it: how much was computed, in a measure that no machine's speed changes.
    pub fn operators_begun(&self) -> u64 {
        self.stream.shared.cancellation.operators_begun()
    }
}

impl TokenStream {
    /// Runs `work` on a thread of its own.
    pub(crate) fn start(
        work: impl FnOnce(&Feed<Token, Finish>) -> Result<Finish, NiwakiError> + Send + 'static,
    ) -> Result<Arc<TokenStream>, NiwakiError> {
        let stream = Stream::start(work)?;
        Ok(Arc::new(TokenStream { stream }))
    }

    /// Whether it has neither ended nor been cancelled.
    pub(crate) fn goes_on(&self) -> bool {
        self.stream.goes_on()
    }
}

/// How a stream ends, also when it fails.
pub(crate) trait Ended: Clone + Send + 'static {
    fn failed() -> Self;
}

/// Items from a thread that is at most one of them ahead of its reader. Dropping the stream cancels it.
pub(crate) struct Stream<I, F> {
    shared: Arc<Shared<I, F>>,
}

struct Shared<I, F> {
    cancellation: Cancellation,
    state: Mutex<State<I, F>>,
    changed: Condvar,
}

struct State<I, F> {
    /// The item that waits to be read, or the error.
    waiting: Option<Result<I, NiwakiError>>,
    /// Set when nothing more will come, last of all.
    finish: Option<F>,
}

impl<I: Send + 'static, F: Ended> Stream<I, F> {
    /// Runs `work` on a thread of its own.
    pub(crate) fn start(
        work: impl FnOnce(&Feed<I, F>) -> Result<F, NiwakiError> + Send + 'static,
    ) -> Result<Stream<I, F>, NiwakiError> {
        let shared = Arc::new(Shared {
            cancellation: Cancellation::new(),
            state: Mutex::new(State {
                waiting: None,
                finish: None,
            }),
            changed: Condvar::new(),
        });
        let feed = Feed {
            shared: shared.clone(),
        };
        std::thread::Builder::new()
            .name("niwaki".into())
            .spawn(move || {
                let result = catch_unwind(AssertUnwindSafe(|| work(&feed)));
                feed.end(result.unwrap_or_else(|_| Err(NiwakiError::panicked())));
            })
            .map_err(|error| NiwakiError::Internal {
                details: format!("no thread can be started: {error}"),
            })?;
        Ok(Stream { shared })
    }

    /// Waits for the next item; `None` when the stream has ended.
    pub(crate) fn next(&self) -> Result<Option<I>, NiwakiError> {
        let mut state = self.shared.state();
        loop {
            if let Some(item) = state.waiting.take() {
                self.shared.changed.notify_all();
                return item.map(Some);
            }
            if state.finish.is_some() {
                return Ok(None);
            }
            state = self.shared.wait(state);
        }
    }

    pub(crate) fn finish(&self) -> Option<F> {
        self.shared.state().finish.clone()
    }

    fn goes_on(&self) -> bool {
        let state = self.shared.state();
        state.finish.is_none() && !self.shared.cancellation.is_cancelled()
    }
}

impl<I, F> Stream<I, F> {
    pub(crate) fn cancel(&self) {
        let mut state = self.shared.state();
        self.shared.cancellation.cancel();
        state.waiting = None;
        self.shared.changed.notify_all();
    }
}

impl<I, F> Drop for Stream<I, F> {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// The end of a stream that items go in at.
pub(crate) struct Feed<I, F> {
    shared: Arc<Shared<I, F>>,
}

impl<I, F> Feed<I, F> {
    /// What the reader cancels.
    pub(crate) fn cancellation(&self) -> &Cancellation {
        &self.shared.cancellation
    }

    /// Waits until the item was read. False: nobody will.
    pub(crate) fn put(&self, item: I) -> bool {
        let mut state = self.shared.state();
        if self.shared.cancellation.is_cancelled() {
            return false;
        }
        state.waiting = Some(Ok(item));
        self.shared.changed.notify_all();
        while state.waiting.is_some() {
            state = self.shared.wait(state);
        }
        !self.shared.cancellation.is_cancelled()
    }
}

impl<I, F: Ended> Feed<I, F> {
    fn end(&self, result: Result<F, NiwakiError>) {
        let mut state = self.shared.state();
        state.finish = Some(result.unwrap_or_else(|error| {
            if !self.shared.cancellation.is_cancelled() {
                state.waiting = Some(Err(error));
            }
            F::failed()
        }));
        self.shared.changed.notify_all();
    }
}

impl Feed<Token, Finish> {
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
            };
            if !self.put(token) {
                break;
            }
        }
        Ok(count)
    }
}

impl<I, F> Shared<I, F> {
    fn state(&self) -> MutexGuard<'_, State<I, F>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<I, F>>) -> MutexGuard<'a, State<I, F>> {
        let woken = self.changed.wait(state);
        woken.unwrap_or_else(PoisonError::into_inner)
    }
}
