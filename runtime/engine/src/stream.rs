//! Work on a thread of its own, and what comes of it piece by piece.

use crate::cancellation::{Cancellation, OnCancel};
use std::collections::VecDeque;
use std::io;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Items from work on a thread of its own, and how that ended. Tokens of a generation, pieces of a routed answer, whatever
/// an app or a server hands on as it comes.
///
/// The work is never more than a few items ahead of its reader. Cancelling wakes both sides: the work ends soon after, and
/// what it had ready is not given out any more. Dropping the stream cancels it without waiting for the end.
///
/// ```
/// use niwaki::Stream;
/// use std::num::NonZeroUsize;
///
/// let mut squares = Stream::start(NonZeroUsize::MIN, |feed| {
///     for number in 0u64.. {
///         if feed.put(number * number).is_break() {
///             return number;
///         }
///     }
///     0
/// })?;
/// assert_eq!(squares.by_ref().take(3).collect::<Vec<_>>(), [0, 1, 4]);
/// assert!(squares.into_end().is_some_and(|begun| begun >= 2));
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Stream<I, F> {
    shared: Arc<Shared<I>>,
    end: Arc<Mutex<Option<Result<F, Panicked>>>>,
    _wakes: OnCancel,
}

/// The end of a stream that items go in at.
pub struct Feed<I> {
    shared: Arc<Shared<I>>,
}

/// The work panicked. What it said then is not kept: it may hold anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the work on the stream's thread failed in a way it should not; please report it")]
pub struct Panicked;

struct Shared<I> {
    /// So many items may wait to be read while the work goes on.
    ahead: NonZeroUsize,
    cancellation: Cancellation,
    state: Mutex<State<I>>,
    changed: Condvar,
}

struct State<I> {
    waiting: VecDeque<I>,
    /// Nothing more will come.
    over: bool,
}

impl<I: Send + 'static, F: Send + 'static> Stream<I, F> {
    /// Runs `work` on a thread of its own. It goes on while fewer than `ahead` items wait to be read.
    ///
    /// # Errors
    /// When the system would not start a thread.
    pub fn start(
        ahead: NonZeroUsize,
        work: impl FnOnce(&Feed<I>) -> F + Send + 'static,
    ) -> io::Result<Stream<I, F>> {
        let shared = Arc::new(Shared {
            ahead,
            cancellation: Cancellation::new(),
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                over: false,
            }),
            changed: Condvar::new(),
        });
        let end = Arc::new(Mutex::new(None));
        let (feed, ended) = (
            Feed {
                shared: shared.clone(),
            },
            end.clone(),
        );
        std::thread::Builder::new()
            .name("niwaki".into())
            .spawn(move || {
                let result = catch_unwind(AssertUnwindSafe(|| work(&feed)));
                *ended.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(result.map_err(|_| Panicked));
                feed.shared.change(|state| state.over = true);
            })?;
        let woken = shared.clone();
        Ok(Stream {
            _wakes: shared.cancellation.on_cancel(move || {
                woken.change(|state| state.waiting.clear());
            }),
            shared,
            end,
        })
    }

    /// Cancels what is still going on, waits until it has ended, and gives out how; `None` when it panicked.
    pub fn into_end(self) -> Option<F> {
        self.cancel();
        while self.read().is_some() {}
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.take().and_then(Result::ok)
    }

    /// How it ended; `None` before the last item was read, or while cancelled work is still going on.
    pub fn end(&self) -> Option<Result<F, Panicked>>
    where
        F: Clone,
    {
        if !self.is_over() {
            return None;
        }
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.clone()
    }
}

impl<I, F> Stream<I, F> {
    /// Waits for the next item; `None` when there is none any more and the work has ended.
    pub fn read(&self) -> Option<I> {
        let mut state = self.shared.state();
        loop {
            if let Some(item) = state.waiting.pop_front() {
                self.shared.changed.notify_all();
                return Some(item);
            }
            if state.over {
                return None;
            }
            state = self.shared.wait(state);
        }
    }

    /// What cancels it: clone it into the thread or the button that does.
    pub fn cancellation(&self) -> &Cancellation {
        &self.shared.cancellation
    }

    /// Cancels it. Does not wait for the end of the work; [`read`](Self::read) does.
    pub fn cancel(&self) {
        self.shared.cancellation.cancel();
    }

    /// Whether the work has ended and everything was read.
    pub fn is_over(&self) -> bool {
        let state = self.shared.state();
        state.over && state.waiting.is_empty()
    }
}

impl<I, F> Iterator for Stream<I, F> {
    type Item = I;

    fn next(&mut self) -> Option<I> {
        self.read()
    }
}

impl<I, F> Drop for Stream<I, F> {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl<I> Feed<I> {
    /// What the reader cancels.
    pub fn cancellation(&self) -> &Cancellation {
        &self.shared.cancellation
    }

    /// Hands an item on, and waits until there is room for the next. It breaks when nobody wants one.
    pub fn put(&self, item: I) -> ControlFlow<()> {
        let shared = &*self.shared;
        let mut state = shared.state();
        // Asked under the lock: whoever cancels clears what waits after it has said so.
        if shared.cancellation.is_cancelled() {
            return ControlFlow::Break(());
        }
        state.waiting.push_back(item);
        shared.changed.notify_all();
        while state.waiting.len() >= shared.ahead.get() {
            state = shared.wait(state);
        }
        match shared.cancellation.is_cancelled() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

impl<I> Shared<I> {
    fn state(&self) -> MutexGuard<'_, State<I>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State<I>)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<I>>) -> MutexGuard<'a, State<I>> {
        let woken = self.changed.wait(state);
        woken.unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    fn ahead(count: usize) -> NonZeroUsize {
        NonZeroUsize::new(count).unwrap()
    }

    /// Numbers without end; what was begun is counted.
    fn numbers(count: usize, begun: &Arc<AtomicUsize>) -> Stream<usize, &'static str> {
        let begun = begun.clone();
        Stream::start(ahead(count), move |feed| {
            loop {
                let number = begun.fetch_add(1, Ordering::SeqCst);
                if feed.put(number).is_break() {
                    return "cancelled";
                }
            }
        })
        .unwrap()
    }

    #[test]
    fn items_come_in_order_and_the_end_after_the_last() {
        for count in [1, 2, 100] {
            let mut stream = Stream::start(ahead(count), |feed| {
                for number in 0..20 {
                    assert!(feed.put(number).is_continue());
                }
                "done"
            })
            .unwrap();
            let read: Vec<i32> = stream.by_ref().take(19).collect();
            assert_eq!(read, (0..19).collect::<Vec<_>>());
            assert_eq!(stream.end(), None);
            assert_eq!((stream.next(), stream.next()), (Some(19), None));
            assert_eq!(stream.end(), Some(Ok("done")));
            assert_eq!(stream.into_end(), Some("done"));
        }
    }

    #[test]
    fn the_work_is_so_many_items_ahead_and_no_more() {
        for count in [1, 3] {
            let begun = Arc::new(AtomicUsize::new(0));
            let stream = numbers(count, &begun);
            for read in 1..5 {
                assert_eq!(stream.read(), Some(read - 1));
                // It comes so far, and then waits: more would have to be begun by the time that follows.
                while begun.load(Ordering::SeqCst) < read + count {
                    std::thread::yield_now();
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
                assert_eq!(begun.load(Ordering::SeqCst), read + count);
            }
        }
    }

    #[test]
    fn cancelling_wakes_work_that_waits_for_a_reader_and_gives_out_nothing_more() {
        for through_stream in [true, false] {
            let stream = numbers(2, &Arc::default());
            assert_eq!(stream.read(), Some(0));
            match through_stream {
                true => stream.cancel(),
                false => stream.cancellation().clone().cancel(),
            }
            assert_eq!(stream.read(), None);
            assert_eq!(stream.end(), Some(Ok("cancelled")));
        }
    }

    #[test]
    fn dropping_cancels() {
        let (sender, ended) = mpsc::channel();
        let stream = Stream::start(ahead(1), move |feed| {
            while feed.put(()).is_continue() {}
            sender.send(()).unwrap();
        })
        .unwrap();
        drop(stream);
        ended.recv().unwrap();
    }

    #[test]
    fn a_reader_that_waits_is_woken_by_the_end_of_cancelled_work() {
        for _ in 0..100 {
            let stream = Stream::<(), ()>::start(ahead(1), |feed| {
                let (sender, cancelled) = mpsc::channel();
                let _wakes = feed
                    .cancellation()
                    .on_cancel(move || sender.send(()).unwrap());
                cancelled.recv().unwrap();
            })
            .unwrap();
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| stream.read());
                stream.cancel();
                assert_eq!(reader.join().unwrap(), None);
            });
        }
    }

    #[test]
    fn work_that_panics_ends_its_stream_after_what_it_gave_out() {
        let stream = Stream::<i32, ()>::start(ahead(3), |feed| {
            let _ = feed.put(1);
            panic!("as it should not");
        })
        .unwrap();
        assert_eq!((stream.read(), stream.read()), (Some(1), None));
        assert_eq!(stream.end(), Some(Err(Panicked)));
        assert_eq!(stream.into_end(), None);
    }
}
