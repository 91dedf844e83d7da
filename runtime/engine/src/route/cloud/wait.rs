//! Waiting for an endpoint without waiting for too long.

use super::error::{CloudError, TimeoutPhase};
use crate::Cancellation;
use crate::route::transport::{Exchange, ResponseEvent};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// How often a wait looks whether it was cancelled.
const CANCELLATION_POLL: Duration = Duration::from_millis(20);

/// How long each wait may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloudTimeouts {
    /// For finding the host, connecting and the TLS handshake.
    pub connect: Duration,
    /// From the connection to the head of the response. A server that reads a long prompt before it answers
    /// takes its time here.
    pub first_byte: Duration,
    /// Between two lines of the stream; comments that say that a server is alive count, single bytes do not.
    pub idle: Duration,
    /// For the whole answer, retries and the waits between them included.
    pub total: Duration,
}

impl Default for CloudTimeouts {
    fn default() -> Self {
        CloudTimeouts {
            connect: Duration::from_secs(10),
            first_byte: Duration::from_secs(60),
            idle: Duration::from_secs(30),
            total: Duration::from_secs(600),
        }
    }
}

/// A moment until which something may take, and what it means when it does not.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    at: Option<Instant>,
    phase: TimeoutPhase,
    after: Duration,
}

impl Deadline {
    pub(super) fn new(phase: TimeoutPhase, after: Duration) -> Deadline {
        Deadline {
            at: Instant::now().checked_add(after),
            phase,
            after,
        }
    }

    /// The sooner of the two.
    pub(super) fn or(self, other: Deadline) -> Deadline {
        match (self.at, other.at) {
            (None, Some(_)) => other,
            (Some(this), Some(that)) if that < this => other,
            _ => self,
        }
    }

    /// Time left, `None` when it is over.
    pub(super) fn left(&self) -> Option<Duration> {
        match self.at {
            Some(at) => at
                .checked_duration_since(Instant::now())
                .filter(|left| !left.is_zero()),
            None => Some(Duration::MAX),
        }
    }

    pub(super) fn error(&self) -> CloudError {
        CloudError::Timeout {
            phase: self.phase,
            after: self.after,
        }
    }
}

/// A request under way. Dropped, its connection is closed.
pub(super) struct Response<'a> {
    pub(super) exchange: Box<dyn Exchange>,
    pub(super) events: Receiver<ResponseEvent>,
    pub(super) cancellation: &'a Cancellation,
}

impl Response<'_> {
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
        self.exchange.cancel();
    }
}

/// Waits.
///
/// # Errors
/// [`CloudError::Cancelled`].
pub(super) fn pause(duration: Duration, cancellation: &Cancellation) -> Result<(), CloudError> {
    let end = Deadline::new(TimeoutPhase::Total, duration);
    while let Some(left) = end.left() {
        if cancellation.is_cancelled() {
            return Err(CloudError::Cancelled);
        }
        thread::sleep(left.min(CANCELLATION_POLL));
    }
    Ok(())
}
