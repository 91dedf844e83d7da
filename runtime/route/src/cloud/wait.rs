//! Waiting for an endpoint without waiting for too long.

use super::error::{CloudError, TimeoutPhase};
use niwaki::Cancellation;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

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

impl CloudTimeouts {
    /// How long a response may stay silent, with some room so that no transport gives up before the client does.
    pub(super) fn longest_silence(&self) -> Duration {
        let longest = self.connect.saturating_add(self.first_byte).max(self.idle);
        longest.saturating_add(Duration::from_secs(5))
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

    /// The moment; `None` when no clock can tell it.
    pub(super) fn at(&self) -> Option<Instant> {
        self.at
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

/// Waits.
///
/// # Errors
/// [`CloudError::Cancelled`].
pub(super) fn pause(duration: Duration, cancellation: &Cancellation) -> Result<(), CloudError> {
    let (wake, woken) = sync_channel(1);
    let _wakes = cancellation.on_cancel(move || {
        // There is room for one, and only one comes.
        let _ = wake.try_send(());
    });
    match woken.recv_timeout(duration) {
        Err(RecvTimeoutError::Timeout) => Ok(()),
        Ok(()) | Err(RecvTimeoutError::Disconnected) => Err(CloudError::Cancelled),
    }
}
