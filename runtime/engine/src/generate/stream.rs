//! A generation on a thread of its own.

use super::chat::Chat;
use super::options::GenerateOptions;
use super::outcome::{FinishReason, GenerateError, Token};
use crate::cancellation::Cancellation;
use crate::session::Session;
use crate::stream::{Feed, Stream};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// So many tokens may wait to be read before the generation waits too.
const WAITING_TOKENS: NonZeroUsize = NonZeroUsize::new(32).unwrap();

type Item = Result<Token, GenerateError>;

/// A generation on a thread of its own; tokens come out by iterating. Made by [`Session::into_stream`] and
/// [`Chat::into_stream`].
///
/// Dropping it cancels the generation, which then ends within one layer's work. It does not wait for that end;
/// [`into_inner`](Self::into_inner) does, and gives the session or chat back.
pub struct TokenStream<T> {
    /// Or why there is no thread, until that was given out.
    stream: Result<Stream<Item, Option<FinishReason>>, Option<GenerateError>>,
    cancellation: Cancellation,
    /// The session or chat, when the generation has ended.
    owner: Arc<Mutex<Option<T>>>,
}

impl Session {
    /// As [`generate`](Self::generate), on a thread of its own.
    pub fn into_stream(self, prompt: Vec<u32>, options: GenerateOptions) -> TokenStream<Session> {
        TokenStream::start(self, move |session, feed| {
            let mut generation = session
                .generate(&prompt, &options)
                .with_cancellation(feed.cancellation().clone());
            forward(&mut generation, feed);
            generation.finish_reason()
        })
    }
}

impl Chat {
    /// As [`reply`](Self::reply), on a thread of its own.
    pub fn into_stream(
        self,
        message: impl Into<String>,
        options: GenerateOptions,
    ) -> TokenStream<Chat> {
        let message = message.into();
        TokenStream::start(self, move |chat, feed| {
            let mut reply = chat
                .reply(message, &options)
                .with_cancellation(feed.cancellation().clone());
            forward(&mut reply, feed);
            reply.finish_reason()
        })
    }
}

/// Passes tokens on until there are no more, or nobody reads them.
fn forward(generation: &mut dyn Iterator<Item = Item>, feed: &Feed<Item>) {
    for token in generation {
        if feed.put(token).is_break() {
            return;
        }
    }
}

impl<T: Send + 'static> TokenStream<T> {
    fn start(
        mut owner: T,
        work: impl FnOnce(&mut T, &Feed<Item>) -> Option<FinishReason> + Send + 'static,
    ) -> TokenStream<T> {
        let returned = Arc::new(Mutex::new(None));
        let stream = Stream::start(WAITING_TOKENS, {
            let returned = returned.clone();
            move |feed| {
                let reason = work(&mut owner, feed);
                *lock(&returned) = Some(owner);
                reason
            }
        });
        TokenStream {
            cancellation: match &stream {
                Ok(stream) => stream.cancellation().clone(),
                Err(_) => Cancellation::new(),
            },
            stream: stream.map_err(|error| Some(GenerateError::Thread(error))),
            owner: returned,
        }
    }

    /// What cancels it: clone it into the thread or the button that does. Tokens that wait to be read are then not given
    /// out any more.
    pub fn cancellation(&self) -> &Cancellation {
        &self.cancellation
    }

    /// Why it ended; `None` until the last token was read.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        match &self.stream {
            Ok(stream) => stream.end().map(|end| match end {
                Ok(reason) => reason.unwrap_or(FinishReason::Cancelled),
                Err(_) => FinishReason::Failed,
            }),
            Err(Some(_)) => None,
            Err(None) => Some(FinishReason::Failed),
        }
    }

    /// Cancels what is still going on, waits until it has ended, and gives the session or chat back. `None` when
    /// no thread could be started, or the generation panicked.
    pub fn into_inner(self) -> Option<T> {
        self.stream.ok()?.into_end()?;
        lock(&self.owner).take()
    }
}

impl<T> Iterator for TokenStream<T> {
    type Item = Item;

    /// Waits for the next token.
    fn next(&mut self) -> Option<Item> {
        match &mut self.stream {
            Ok(stream) => stream.next(),
            Err(error) => error.take().map(Err),
        }
    }
}

impl<T> std::fmt::Debug for TokenStream<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenStream")
            .field("cancellation", &self.cancellation)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
