//! A request on a thread of its own, and what comes back.

use crate::request::HttpRequest;
use crate::transport::{Exchange, ResponseHead, Transport, TransportError};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How many pieces of a body wait to be read. A slow reader holds the transport back.
const WAITING_PIECES: usize = 16;

/// Longer than anybody waits at once.
const LONG: Duration = Duration::from_secs(3600);

/// A request under way. Dropped, its connection is closed.
///
/// Whatever the transport does, it does on another thread. One that never returns keeps that thread; the client
/// goes on at its deadline.
///
/// `E` is why the request could not be made, where making it can fail.
pub struct Response<E> {
    parts: Receiver<Carried<E>>,
    wake: SyncSender<Carried<E>>,
    state: Arc<State>,
    /// The end, or an error, was given out.
    over: Cell<bool>,
}

/// What comes back, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// Status and headers.
    Head(ResponseHead),
    /// A piece of the body.
    Data(Vec<u8>),
    /// The end of the body.
    End,
}

/// Why nothing more comes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError<E> {
    /// The request could not be made; nothing was sent.
    #[error("the request could not be made")]
    NotMade(E),
    /// The transport could not carry it.
    #[error(transparent)]
    Transport(TransportError),
    /// The body is larger than it may be.
    #[error("the response is larger than {limit_bytes} bytes")]
    TooLarge {
        /// The bound.
        limit_bytes: u64,
    },
    /// The time that the caller gave is over.
    #[error("the response took too long")]
    Late,
    /// It was cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// From the thread to the reader.
enum Carried<E> {
    Part(Part),
    Failed(ResponseError<E>),
    /// Somebody cancelled: nothing came.
    Woken,
}

/// The request in the hands of whoever may cancel it.
#[derive(Default)]
struct State {
    cancelled: AtomicBool,
    /// The transport was asked to send.
    sent: AtomicBool,
    progress: Mutex<Progress>,
}

#[derive(Default)]
enum Progress {
    #[default]
    Preparing,
    Open(Arc<dyn Exchange>),
    Over,
}

impl<E: Send + 'static> Response<E> {
    /// Makes a request and sends it, on a thread of its own: making it may ask an app for a key, which takes its time.
    /// Of the body of the response at most so many bytes are taken.
    pub fn to(
        transport: Arc<dyn Transport>,
        max_body_bytes: u64,
        make: impl FnOnce() -> Result<HttpRequest, E> + Send + 'static,
    ) -> Response<E> {
        let (sender, parts) = sync_channel(WAITING_PIECES);
        let state = Arc::new(State::default());
        let response = Response {
            parts,
            wake: sender.clone(),
            state: state.clone(),
            over: Cell::new(false),
        };
        let spawned = thread::Builder::new()
            .name("niwaki-http".into())
            .spawn(move || {
                let carried = catch_unwind(AssertUnwindSafe(|| {
                    carry(&*transport, max_body_bytes, make, &state, &sender)
                }));
                let last = carried.unwrap_or(Err(ResponseError::Transport(TransportError::Failed)));
                // It fails when nobody waits any more.
                let _ = sender.send(match last {
                    Ok(()) => Carried::Part(Part::End),
                    Err(error) => Carried::Failed(error),
                });
            });
        if spawned.is_err() {
            // There is room for one: nobody else sends.
            let unsent = ResponseError::Transport(TransportError::Unreachable);
            let _ = response.wake.try_send(Carried::Failed(unsent));
        }
        response
    }

    /// Waits for what comes next, until `deadline` if there is one. What has come already is given even after it.
    ///
    /// # Errors
    /// [`ResponseError`]; also when more is asked for after [`Part::End`] or an error.
    pub fn next(&self, deadline: Option<Instant>) -> Result<Part, ResponseError<E>> {
        if self.over.get() {
            return Err(ResponseError::Transport(TransportError::Interrupted));
        }
        let next = self.wait(deadline);
        self.over
            .set(!matches!(next, Ok(Part::Head(_) | Part::Data(_))));
        next
    }

    fn wait(&self, deadline: Option<Instant>) -> Result<Part, ResponseError<E>> {
        loop {
            if self.state.cancelled.load(Ordering::SeqCst) {
                return Err(ResponseError::Cancelled);
            }
            let left = match deadline {
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => LONG,
            };
            match self.parts.recv_timeout(left) {
                Ok(Carried::Part(part)) => return Ok(part),
                Ok(Carried::Failed(error)) => return Err(error),
                Err(RecvTimeoutError::Timeout) if deadline.is_some() => {
                    return Err(ResponseError::Late);
                }
                Ok(Carried::Woken) | Err(_) => (),
            }
        }
    }

    /// Whether the transport was asked to send the request. One that could not be made was not.
    pub fn was_sent(&self) -> bool {
        self.state.sent.load(Ordering::Relaxed)
    }

    /// What cancels it, from any thread: whoever waits for the response is told at once.
    pub fn canceller(&self) -> impl Fn() + Send + Sync + use<E> {
        let (state, wake) = (self.state.clone(), self.wake.clone());
        move || {
            state.cancelled.store(true, Ordering::SeqCst);
            // Without room for it nobody waits: there is something to read.
            let _ = wake.try_send(Carried::Woken);
        }
    }
}

impl<E> Drop for Response<E> {
    fn drop(&mut self) {
        let Progress::Open(exchange) = self.state.end() else {
            return;
        };
        // Not on this thread: an app's transport may take its time over that too. Without a thread for it the
        // connection lives until the transport itself gives up.
        let _ = thread::Builder::new()
            .name("niwaki-cancel".into())
            .spawn(move || exchange.cancel());
    }
}

/// Hands everything on until the end, or until nobody wants more.
fn carry<E>(
    transport: &dyn Transport,
    max_body_bytes: u64,
    make: impl FnOnce() -> Result<HttpRequest, E>,
    state: &State,
    parts: &SyncSender<Carried<E>>,
) -> Result<(), ResponseError<E>> {
    let request = make().map_err(ResponseError::NotMade)?;
    let exchange = transport
        .exchange(request)
        .map_err(ResponseError::Transport)?;
    if !state.begin(&exchange) {
        // Nothing was sent, nobody waits.
        return Err(ResponseError::Cancelled);
    }
    let give = |part| parts.send(Carried::Part(part)).is_ok();
    let head = exchange.send().map_err(ResponseError::Transport)?;
    let mut left_bytes = max_body_bytes;
    let mut wanted = give(Part::Head(head));
    while wanted {
        let Some(bytes) = exchange.read().map_err(ResponseError::Transport)? else {
            break;
        };
        left_bytes = left_bytes
            .checked_sub(bytes.len() as u64)
            .ok_or(ResponseError::TooLarge {
                limit_bytes: max_body_bytes,
            })?;
        wanted = give(Part::Data(bytes));
    }
    // One that has not ended by itself stays open until it is cancelled: nobody else closes its connection.
    state.end();
    Ok(())
}

impl State {
    /// Whether the exchange may begin: nobody has given it up.
    fn begin(&self, exchange: &Arc<dyn Exchange>) -> bool {
        let mut progress = self.progress();
        let begins = matches!(*progress, Progress::Preparing);
        if begins {
            *progress = Progress::Open(exchange.clone());
            self.sent.store(true, Ordering::Relaxed);
        }
        begins
    }

    fn end(&self) -> Progress {
        std::mem::replace(&mut *self.progress(), Progress::Over)
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
