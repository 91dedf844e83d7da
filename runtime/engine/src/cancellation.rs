//! A way to stop work from another thread.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Stops work that another thread does. Clones share it: cancelling one cancels all, for good.
///
/// Work looks at it between any two operators of the graph, in prefill as in decode, so it ends within one
/// layer's work. What waits is woken by [`on_cancel`](Self::on_cancel).
///
/// ```
/// use niwaki::Cancellation;
///
/// let cancellation = Cancellation::new();
/// let button = cancellation.clone();
/// std::thread::spawn(move || button.cancel()).join().unwrap();
/// assert!(cancellation.is_cancelled());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Cancellation {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    cancelled: AtomicBool,
    operators: AtomicU64,
    calls: Mutex<Calls>,
}

/// What is called when it is cancelled.
#[derive(Default)]
struct Calls {
    next: u64,
    waiting: Vec<(u64, Box<dyn FnOnce() + Send>)>,
}

/// What is called when a [`Cancellation`] is cancelled. Dropped, it is not called any more.
#[must_use = "dropped, it is not called"]
pub struct OnCancel {
    shared: Arc<Shared>,
    number: u64,
}

impl Cancellation {
    /// One that is not cancelled.
    pub fn new() -> Cancellation {
        Cancellation::default()
    }

    /// Asks the work to end. It ends soon after, not before this returns.
    pub fn cancel(&self) {
        self.shared.cancelled.store(true, Ordering::Relaxed);
        // Not under the lock: one of them may drop another.
        let calls = std::mem::take(&mut self.shared.calls().waiting);
        for (_, call) in calls {
            call();
        }
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.shared.cancelled.load(Ordering::Relaxed)
    }

    /// Has `call` called when it is cancelled, by the thread that cancels, as long as what is returned lives; at once
    /// when it is cancelled already. It is for waking a thread that waits: it should neither block nor fail.
    pub fn on_cancel(&self, call: impl FnOnce() + Send + 'static) -> OnCancel {
        let mut calls = self.shared.calls();
        let number = calls.next;
        calls.next += 1;
        // Whoever cancels sets the flag before it takes the calls: nothing comes in between.
        if self.is_cancelled() {
            drop(calls);
            call();
        } else {
            calls.waiting.push((number, Box::new(call)));
        }
        OnCancel {
            shared: self.shared.clone(),
            number,
        }
    }

    /// Operators that work under it has begun: how far it came, in a measure that no machine's speed changes.
    pub fn operators_begun(&self) -> u64 {
        self.shared.operators.load(Ordering::Relaxed)
    }

    /// Asked before every operator: whether to go on.
    pub(crate) fn begin_operator(&self) -> bool {
        let go_on = !self.is_cancelled();
        if go_on {
            self.shared.operators.fetch_add(1, Ordering::Relaxed);
        }
        go_on
    }
}

impl Shared {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("cancelled", &self.cancelled)
            .field("operators", &self.operators)
            .finish_non_exhaustive()
    }
}

impl Drop for OnCancel {
    fn drop(&mut self) {
        let mut calls = self.shared.calls();
        let place = calls
            .waiting
            .iter()
            .position(|(number, _)| *number == self.number);
        // What it holds is dropped when the lock is free again: it may hold another of these.
        let call = place.map(|place| calls.waiting.swap_remove(place));
        drop(calls);
        drop(call);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn what_waits_is_called_once_when_it_is_cancelled_or_at_once_after_it() {
        let cancellation = Cancellation::new();
        let (sender, called) = mpsc::channel();
        let say = |what: &'static str| {
            let sender = sender.clone();
            move || sender.send(what).unwrap()
        };
        let _first = cancellation.on_cancel(say("first"));
        drop(cancellation.on_cancel(say("dropped")));
        assert!(called.try_recv().is_err());
        cancellation.clone().cancel();
        cancellation.cancel();
        assert_eq!(called.try_iter().collect::<Vec<_>>(), ["first"]);
        let _late = cancellation.on_cancel(say("late"));
        assert_eq!(called.try_iter().collect::<Vec<_>>(), ["late"]);
    }

    #[test]
    fn no_thread_that_waits_is_forgotten_however_the_two_meet() {
        for _ in 0..200 {
            let cancellation = Cancellation::new();
            let (sender, woken) = mpsc::channel();
            std::thread::scope(|scope| {
                scope.spawn(|| cancellation.cancel());
                let _call = cancellation.on_cancel(move || sender.send(()).unwrap());
                woken.recv().unwrap();
            });
        }
    }
}
