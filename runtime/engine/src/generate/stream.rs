//! A generation on a thread of its own.

use super::chat::Chat;
use super::options::GenerateOptions;
use super::outcome::{FinishReason, GenerateError, Token};
use crate::session::{Cancellation, Session};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// So many tokens may wait to be read before the generation waits too.
const WAITING_TOKENS: usize = 32;

type Item = Result<Token, GenerateError>;

/// A generation on a thread of its own; tokens come out by iterating. Made by [`Session::into_stream`] and
/// [`Chat::into_stream`].
///
/// Dropping it cancels the generation, which then ends within one layer's work. It does not wait for that end;
/// [`into_inner`](Self::into_inner) does, and gives the session or chat back.
#[derive(Debug)]
pub struct TokenStream<T> {
    /// `None` once the stream is no longer read.
    tokens: Option<Receiver<Item>>,
    cancellation: Cancellation,
    worker: Option<JoinHandle<(T, Option<FinishReason>)>>,
    finished: Option<(Option<T>, FinishReason)>,
    /// Why there is no thread.
    failed: Option<GenerateError>,
}

impl Session {
    /// As [`generate`](Self::generate), on a thread of its own.
    pub fn into_stream(self, prompt: Vec<u32>, options: GenerateOptions) -> TokenStream<Session> {
        TokenStream::start(self, move |session, cancellation, tokens| {
            let mut generation = session
                .generate(&prompt, &options)
                .with_cancellation(cancellation);
            forward(&mut generation, tokens);
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
        TokenStream::start(self, move |chat, cancellation, tokens| {
            let mut reply = chat
                .reply(message, &options)
                .with_cancellation(cancellation);
            forward(&mut reply, tokens);
            reply.finish_reason()
        })
    }
}

/// Passes tokens on until there are no more, or nobody reads them.
fn forward(generation: &mut dyn Iterator<Item = Item>, tokens: &SyncSender<Item>) {
    for token in generation {
        if tokens.send(token).is_err() {
            return;
        }
    }
}

impl<T: Send + 'static> TokenStream<T> {
    fn start(
        mut owner: T,
        work: impl FnOnce(&mut T, Cancellation, &SyncSender<Item>) -> Option<FinishReason>
        + Send
        + 'static,
    ) -> TokenStream<T> {
        let cancellation = Cancellation::new();
        let (sender, tokens) = sync_channel(WAITING_TOKENS);
        let theirs = cancellation.clone();
        let worker = std::thread::Builder::new()
            .name("niwaki generation".into())
            .spawn(move || {
                let reason = work(&mut owner, theirs, &sender);
                (owner, reason)
            });
        let (worker, failed) = match worker {
            Ok(worker) => (Some(worker), None),
            Err(error) => (None, Some(GenerateError::Thread(error))),
        };
        TokenStream {
            tokens: Some(tokens),
            cancellation,
            worker,
            finished: None,
            failed,
        }
    }

    /// What cancels it: clone it into the thread or the button that does.
    pub fn cancellation(&self) -> &Cancellation {
        &self.cancellation
    }

    /// Why it ended; `None` until the last token was read.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finished.as_ref().map(|(_, reason)| *reason)
    }

    /// Cancels what is still going on, waits until it has ended, and gives the session or chat back. `None` when
    /// no thread could be started, or the generation panicked.
    pub fn into_inner(mut self) -> Option<T> {
        self.cancellation.cancel();
        self.finish();
        self.finished.take().and_then(|(owner, _)| owner)
    }

    fn finish(&mut self) {
        // A worker that waits for a reader must not wait for ever.
        self.tokens = None;
        if self.finished.is_none() {
            let ended = self.worker.take().and_then(|worker| worker.join().ok());
            self.finished = Some(match ended {
                Some((owner, reason)) => (Some(owner), reason.unwrap_or(FinishReason::Cancelled)),
                None => (None, FinishReason::Failed),
            });
        }
    }
}

impl<T: Send + 'static> Iterator for TokenStream<T> {
    type Item = Item;

    /// Waits for the next token.
    fn next(&mut self) -> Option<Item> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        match self.tokens.as_ref()?.recv() {
            Ok(token) => Some(token),
            Err(_) => {
                self.finish();
                None
            }
        }
    }
}

impl<T> Drop for TokenStream<T> {
    fn drop(&mut self) {
        self.cancellation.cancel();
    }
}
