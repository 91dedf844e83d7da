//! A request on a thread of its own, and what comes back.

use super::error::{CloudError, TooLarge};
use super::wait::{CANCELLATION_POLL, Deadline};
use crate::Cancellation;
use crate::route::transport::{Exchange, HttpRequest, ResponseHead, Transport};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How many pieces of a body wait to be read. A slow reader holds the transport back.
const WAITING_PIECES: usize = 16;

/// What came back.
pub(super) enum ResponseEvent {
    Head(ResponseHead),
    Data(Vec<u8>),
    End,
    Failed(CloudError),
}

/// What is sent, and how.
pub(super) struct Outgoing<F> {
    pub(super) transport: Arc<dyn Transport>,
    /// The endpoint's host.
    pub(super) host: String,
    pub(super) connect_timeout: Duration,
    /// Most bytes of the body of the response.
    pub(super) max_response_bytes: usize,
    /// Makes the request. It may ask the app, which may take its time.
    pub(super) request: F,
    /// Counts one more when the request is sent.
    pub(super) sent: Arc<AtomicU32>,
}

/// A request under way. Dropped, its connection is closed.
///
/// Whatever the transport does, it does on another thread. One that never returns keeps that thread; the client
/// goes on at its deadline.
pub(super) struct Response<'a> {
    events: Receiver<ResponseEvent>,
    state: Arc<State>,
    cancellation: &'a Cancellation,
}

/// The request in the hands of whoever may cancel it.
#[derive(Default)]
struct State(Mutex<Progress>);

#[derive(Default)]
enum Progress {
    #[default]
    Preparing,
    Open(Arc<dyn Exchange>),
    Over,
}

impl<'a> Response<'a> {
    pub(super) fn to<F>(outgoing: Outgoing<F>, cancellation: &'a Cancellation) -> Response<'a>
    where
        F: FnOnce() -> Result<HttpRequest, CloudError> + Send + 'static,
    {
        let (sender, events) = sync_channel(WAITING_PIECES);
        let state = Arc::new(State::default());
        let response = Response {
            events,
            state: state.clone(),
            cancellation,
        };
        let host = outgoing.host.clone();
        let unsent = sender.clone();
        let spawned = thread::Builder::new()
            .name("niwaki-http".into())
            .spawn(move || {
                let carried = catch_unwind(AssertUnwindSafe(|| outgoing.carry(&state, &sender)));
                if carried.is_err() {
                    // It fails when nobody waits any more.
                    let _ = sender.send(ResponseEvent::Failed(CloudError::Transport));
                }
            });
        if spawned.is_err() {
            // There is room for one: nobody else sends.
            let _ = unsent.try_send(ResponseEvent::Failed(CloudError::Unreachable { host }));
        }
        response
    }

    /// What comes next; `None`: the transport went away without a word.
    ///
    /// # Errors
    /// [`CloudError::Timeout`] at the deadline, [`CloudError::Cancelled`].
    pub(super) fn next(&self, deadline: &Deadline) -> Result<Option<ResponseEvent>, CloudError> {
        loop {
            if self.cancellation.is_cancelled() {
                return Err(CloudError::Cancelled);
            }
            // What has come already is taken even when its reader was slow.
            let left = deadline.left().unwrap_or_default();
            match self.events.recv_timeout(left.min(CANCELLATION_POLL)) {
                Ok(event) => return Ok(Some(event)),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Err(deadline.error()),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => (),
            }
        }
    }
}

impl Drop for Response<'_> {
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

impl<F: FnOnce() -> Result<HttpRequest, CloudError>> Outgoing<F> {
    /// Hands everything on until the end, or until nobody wants more.
    fn carry(self, state: &State, events: &SyncSender<ResponseEvent>) {
        let (host, connect_timeout) = (self.host, self.connect_timeout);
        let failed = |error| {
            ResponseEvent::Failed(CloudError::from_transport(error, &host, connect_timeout))
        };
        let last = match (self.request)() {
            Err(error) => ResponseEvent::Failed(error),
            Ok(request) => match self.transport.exchange(request) {
                Err(error) => failed(error),
                Ok(exchange) if state.begin(&exchange, &self.sent) => {
                    read(&*exchange, self.max_response_bytes, events).unwrap_or_else(failed)
                }
                // It was cancelled: nothing was sent, nobody waits.
                Ok(_) => return,
            },
        };
        // One that has not ended by itself stays open until it is cancelled: nobody else closes its connection.
        if matches!(last, ResponseEvent::End) {
            state.end();
        }
        // It fails when nobody waits any more.
        let _ = events.send(last);
    }
}

/// Reads a response and hands it on; gives the last event.
fn read(
    exchange: &dyn Exchange,
    max_bytes: usize,
    events: &SyncSender<ResponseEvent>,
) -> Result<ResponseEvent, crate::route::TransportError> {
    let mut left_bytes = max_bytes;
    let mut wanted = events.send(ResponseEvent::Head(exchange.send()?)).is_ok();
    while wanted {
        let Some(bytes) = exchange.read()? else {
            break;
        };
        let Some(left) = left_bytes.checked_sub(bytes.len()) else {
            return Ok(ResponseEvent::Failed(CloudError::TooLarge {
                what: TooLarge::Response,
                limit_bytes: max_bytes,
            }));
        };
        left_bytes = left;
        wanted = events.send(ResponseEvent::Data(bytes)).is_ok();
    }
    Ok(ResponseEvent::End)
}

impl State {
    /// Whether the exchange may begin, and counts it then: nobody has cancelled it.
    fn begin(&self, exchange: &Arc<dyn Exchange>, sent: &AtomicU32) -> bool {
        let mut progress = self.progress();
        let begins = matches!(*progress, Progress::Preparing);
        if begins {
            *progress = Progress::Open(exchange.clone());
            sent.fetch_add(1, Ordering::Relaxed);
        }
        begins
    }

    fn end(&self) -> Progress {
        std::mem::replace(&mut *self.progress(), Progress::Over)
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
