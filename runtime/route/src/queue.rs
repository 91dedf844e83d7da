//! Taking turns in the order of arrival.

use niwaki::Cancellation;
use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A value that is used by one after the other, whoever came first going first.
pub(crate) struct Queue<T> {
    value: Mutex<T>,
    line: Arc<Line>,
    max_waiting: usize,
}

/// Why it is nobody's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotServed {
    /// So many wait already.
    Full { waiting: usize },
    /// It was cancelled, and left the line.
    Cancelled,
}

/// The value, until this is dropped; also by a panic, which may leave anything in it.
pub(crate) struct Turn<'a, T> {
    // Dropped in this order: the next one in the line finds the value free.
    value: MutexGuard<'a, T>,
    _leaves: Leave<'a>,
}

/// Ends a turn.
struct Leave<'a>(&'a Line);

#[derive(Default)]
struct Line {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    /// It is somebody's turn.
    taken: bool,
    next_ticket: u64,
    waiting: VecDeque<u64>,
}

impl<T> Queue<T> {
    /// At most so many wait for their turn.
    pub(crate) fn new(value: T, max_waiting: usize) -> Queue<T> {
        Queue {
            value: Mutex::new(value),
            line: Arc::default(),
            max_waiting,
        }
    }

    pub(crate) fn set_max_waiting(&mut self, max_waiting: usize) {
        self.max_waiting = max_waiting;
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.line.state().waiting.len()
    }

    /// Looks at the value while it is nobody's turn.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.value.try_lock().ok().map(|value| look(&value))
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// [`NotServed`].
    pub(crate) fn enter(&self, cancellation: &Cancellation) -> Result<Turn<'_, T>, NotServed> {
        let line = self.line.clone();
        let _wakes = cancellation.on_cancel(move || line.move_on(|_| ()));
        let mut state = self.line.state();
        if cancellation.is_cancelled() {
            return Err(NotServed::Cancelled);
        }
        if state.taken || !state.waiting.is_empty() {
            let waiting = state.waiting.len();
            if waiting >= self.max_waiting {
                return Err(NotServed::Full { waiting });
            }
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.waiting.push_back(ticket);
            while state.taken || state.waiting.front() != Some(&ticket) {
                let woken = self.line.moved.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
                if cancellation.is_cancelled() {
                    state.waiting.retain(|other| *other != ticket);
                    // Whoever came after it may be the first now.
                    self.line.moved.notify_all();
                    return Err(NotServed::Cancelled);
                }
            }
            state.waiting.pop_front();
        }
        state.taken = true;
        drop(state);
        let leaves = Leave(&self.line);
        // Held by nobody, or for a look.
        let value = self.value.lock().unwrap_or_else(|panicked| {
            self.value.clear_poison();
            panicked.into_inner()
        });
        Ok(Turn {
            value,
            _leaves: leaves,
        })
    }
}

impl Line {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn move_on(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.moved.notify_all();
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.move_on(|state| state.taken = false);
    }
}

impl<T> Deref for Turn<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::thread;

    /// Waits until so many wait.
    fn until_waiting<T>(queue: &Queue<T>, count: usize) {
        while queue.waiting() != count {
            thread::yield_now();
        }
    }

    #[test]
    fn turns_come_in_the_order_of_arrival() {
        let queue = Queue::new(Vec::new(), 100);
        thread::scope(|scope| {
            let first = queue.enter(&Cancellation::new()).unwrap();
            for number in 0..20 {
                let queue = &queue;
                scope.spawn(move || {
                    let mut turn = queue.enter(&Cancellation::new()).unwrap();
                    turn.push(number);
                });
                until_waiting(queue, number + 1);
            }
            drop(first);
        });
        let order = queue.enter(&Cancellation::new()).unwrap();
        assert_eq!(*order, (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn nobody_starves_however_often_the_others_come_back() {
        const ROUNDS: usize = 200;
        let queue = Queue::new(Vec::new(), 100);
        thread::scope(|scope| {
            for name in 0..4 {
                let queue = &queue;
                scope.spawn(move || {
                    for _ in 0..ROUNDS {
                        let mut turn = queue.enter(&Cancellation::new()).unwrap();
                        turn.push(name);
                        // The others get in line meanwhile, as many as are not done.
                        while queue.waiting() < 3 && turn.len() < ROUNDS {
                            thread::yield_now();
                        }
                    }
                });
            }
        });
        let turns = queue.enter(&Cancellation::new()).unwrap();
        assert_eq!(turns.len(), 4 * ROUNDS);
        // While all four take part, nobody goes twice before each of the others went once.
        for four in turns[..ROUNDS].windows(4).skip(4) {
            let mut names = four.to_vec();
            names.sort_unstable();
            assert_eq!(names, [0, 1, 2, 3]);
        }
    }

    #[test]
    fn whoever_is_cancelled_leaves_the_line_and_the_others_move_on() {
        let queue = Queue::new(Vec::new(), 100);
        let cancellations: Vec<Cancellation> = (0..5).map(|_| Cancellation::new()).collect();
        thread::scope(|scope| {
            let first = queue.enter(&Cancellation::new()).unwrap();
            let waiting: Vec<_> = (0..5)
                .map(|number| {
                    let (queue, cancellation) = (&queue, &cancellations[number]);
                    let thread = scope.spawn(move || {
                        let mut turn = queue.enter(cancellation)?;
                        turn.push(number);
                        Ok(())
                    });
                    until_waiting(queue, number + 1);
                    thread
                })
                .collect();
            for number in [2, 0] {
                cancellations[number].cancel();
            }
            // They leave while it is still somebody else's turn.
            until_waiting(&queue, 3);
            drop(first);
            for (number, thread) in waiting.into_iter().enumerate() {
                let left = match [0, 2].contains(&number) {
                    true => Err(NotServed::Cancelled),
                    false => Ok(()),
                };
                assert_eq!(thread.join().unwrap(), left, "{number}");
            }
        });
        assert_eq!(*queue.enter(&Cancellation::new()).unwrap(), [1, 3, 4]);
        assert_eq!(
            queue.enter(&cancellations[0]).err(),
            Some(NotServed::Cancelled)
        );
    }

    #[test]
    fn a_line_that_is_full_takes_nobody() {
        let queue = Queue::new((), 1);
        thread::scope(|scope| {
            let first = queue.enter(&Cancellation::new()).unwrap();
            scope.spawn(|| queue.enter(&Cancellation::new()).map(drop).unwrap());
            until_waiting(&queue, 1);
            assert_eq!(
                queue.enter(&Cancellation::new()).err(),
                Some(NotServed::Full { waiting: 1 })
            );
            drop(first);
        });
        assert!(queue.enter(&Cancellation::new()).is_ok());
    }

    #[test]
    fn a_turn_that_panics_holds_nobody_up() {
        let queue = Queue::new(1, 10);
        thread::scope(|scope| {
            let first = queue.enter(&Cancellation::new()).unwrap();
            let next = scope.spawn(|| *queue.enter(&Cancellation::new()).unwrap());
            until_waiting(&queue, 1);
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                let _turn = first;
                panic!("as it should not");
            }));
            assert!(panicked.is_err());
            assert_eq!(next.join().unwrap(), 1);
        });
        assert_eq!(queue.look(|value| *value), Some(1));
    }

    #[test]
    fn a_look_does_not_wait() {
        let queue = Queue::new(7, 10);
        assert_eq!(queue.look(|value| *value), Some(7));
        let _turn = queue.enter(&Cancellation::new()).unwrap();
        assert_eq!(queue.look(|value| *value), None);
    }
}
