//! A way to stop work from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Stops work that another thread does. Clones share it: cancelling one cancels all, for good.
///
/// Work looks at it between any two operators of the graph, in prefill as in decode, so it ends within one
/// layer's work.
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

#[derive(Debug, Default)]
struct Shared {
    cancelled: AtomicBool,
    operators: AtomicU64,
}

impl Cancellation {
    /// One that is not cancelled.
    pub fn new() -> Cancellation {
        Cancellation::default()
    }

    /// Asks the work to end. It ends soon after, not before this returns.
    pub fn cancel(&self) {
        self.shared.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.shared.cancelled.load(Ordering::Relaxed)
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
