//! Answers that are read piece by piece.

use crate::decision::Decision;
use crate::request::RouteRequest;
use crate::router::{RouteError, RouteFailure, RoutedAnswer, Router};
use niwaki::{Cancellation, Panicked, Stream, Token};
use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An answer on a thread of its own; its tokens come out by reading or iterating. Made by [`Router::stream`].
///
/// Dropping it cancels the answer: work on the device ends within one layer's work, a connection is closed.
pub struct RoutedStream {
    stream: Stream<Token, Result<RoutedAnswer, RouteError>>,
    record: Arc<Record>,
}

/// The decision as far as it is known.
struct Record {
    decision: Mutex<Recorded>,
}

struct Recorded {
    decision: Decision,
    /// Whether a text came, or the end.
    known: bool,
}

impl Router {
    /// Answers a request on a thread of its own, which is never more than `ahead` tokens ahead of their reader.
    ///
    /// # Errors
    /// When the system would not start a thread.
    pub fn stream(
        self: &Arc<Router>,
        request: RouteRequest,
        ahead: NonZeroUsize,
    ) -> io::Result<RoutedStream> {
        let router = self.clone();
        let record = Arc::new(Record {
            decision: Mutex::new(Recorded {
                decision: self.undecided(&request),
                known: false,
            }),
        });
        let stream = Stream::start(ahead, {
            let record = record.clone();
            move |feed| {
                let cancellation = feed.cancellation().clone();
                let answer = router.answer(&request, &cancellation, &mut |token, decision| {
                    record.begin(decision);
                    feed.put(token)
                });
                record.end(match &answer {
                    Ok(answer) => &answer.decision,
                    Err(error) => &error.decision,
                });
                answer
            }
        })?;
        Ok(RoutedStream { stream, record })
    }
}

impl RoutedStream {
    /// Waits for the next token; `None` when the stream has ended and nothing is done for it any more.
    pub fn read(&self) -> Option<Token> {
        self.stream.read()
    }

    /// What cancels it: clone it into the thread or the button that does.
    pub fn cancellation(&self) -> &Cancellation {
        self.stream.cancellation()
    }

    /// Who answers and why, from the first text on; after the end or the error it is complete.
    pub fn decision(&self) -> Option<Decision> {
        let record = self.record.lock();
        record.known.then(|| record.decision.clone())
    }

    /// Cancels what is still going on, waits until it has ended, and gives out how.
    ///
    /// # Errors
    /// [`RouteError`].
    pub fn into_end(self) -> Result<RoutedAnswer, RouteError> {
        self.stream
            .into_end()
            .unwrap_or_else(|| Err(panicked(&self.record)))
    }

    /// How it ended; `None` before the last token was read, or while cancelled work is still going on.
    pub fn end(&self) -> Option<Result<RoutedAnswer, RouteError>> {
        let end = self.stream.end()?;
        Some(end.unwrap_or_else(|Panicked| Err(panicked(&self.record))))
    }
}

fn panicked(record: &Record) -> RouteError {
    RouteError {
        failure: RouteFailure::Panicked,
        decision: Box::new(record.lock().decision.clone()),
    }
}

impl Iterator for RoutedStream {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        self.read()
    }
}

impl Record {
    /// A text came: from the first on it is known who answers.
    fn begin(&self, decision: &Decision) {
        let mut record = self.lock();
        if !record.known {
            *record = Recorded {
                decision: decision.clone(),
                known: true,
            };
        }
    }

    fn end(&self, decision: &Decision) {
        *self.lock() = Recorded {
            decision: decision.clone(),
            known: true,
        };
    }

    fn lock(&self) -> MutexGuard<'_, Recorded> {
        self.decision.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
