//! Threads that share the tasks of one kernel.
#![allow(unsafe_code)]

mod ahead;

use ahead::{Ahead, Cursor};
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an idle thread looks for work before it sleeps. Kernels of one token follow each other
/// within a few microseconds; waking a thread costs more than that.
const SPIN: Duration = Duration::from_micros(100);

/// How often a thread that spins looks before it offers its CPU to others: a few microseconds.
const SPINS_PER_YIELD: u32 = 128;

/// A fixed set of threads.
///
/// Between jobs a worker looks for the next one for 100 microseconds, then it sleeps: it neither misses a token
/// nor burns a battery. An app in the background computes nothing, so all workers sleep and nothing holds a lock.
/// Several sessions share a pool: while one's job runs, the others' run on their own threads.
///
/// Results never depend on the number of threads: tasks write disjoint outputs.
#[derive(Debug)]
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs. A second job at the same time runs on its own thread alone.
    running: Mutex<()>,
}

/// The job of the moment, as the threads see it.
///
/// `state` is `epoch << 32 | open << 31 | joined`: a worker may touch `job` only after it counted itself
/// into `joined` while the job was open; the job's owner closes it and waits for `joined == 0`.
struct Shared {
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    /// The tasks of each thread, the caller's first.
    queues: Box<[Queue]>,
    /// What a job after this one reads.
    ahead: Ahead,
    panicked: AtomicBool,
    stop: AtomicBool,
    /// Threads that sleep or are about to.
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

#[derive(Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize) + Sync),
}

/// Consecutive tasks, `end << 32 | next`: their owner takes them from the front, others steal from the back.
/// So each thread reads one stretch of a matrix, and whoever is done first helps.
///
/// On cache lines of its own.
#[repr(align(128))]
struct Queue(AtomicU64);

impl Queue {
    fn set(&self, tasks: Range<u32>) {
        let tasks = u64::from(tasks.end) << 32 | u64::from(tasks.start);
        // Published by the job's state.
        self.0.store(tasks, Ordering::Relaxed);
    }

    fn pop_front(&self) -> Option<u32> {
        self.pop(|tasks| (tasks.start, tasks.start + 1..tasks.end))
    }

    fn pop_back(&self) -> Option<u32> {
        self.pop(|tasks| (tasks.end - 1, tasks.start..tasks.end - 1))
    }

    /// The task and the tasks left that `take` answers for those that are there.
    fn pop(&self, take: impl Fn(Range<u32>) -> (u32, Range<u32>)) -> Option<u32> {
        let mut packed = self.0.load(Ordering::Relaxed);
        loop {
            let tasks = packed as u32..(packed >> 32) as u32;
            if tasks.is_empty() {
                return None;
            }
            let (task, left) = take(tasks);
            let left = u64::from(left.end) << 32 | u64::from(left.start);
            // What a task reads and writes is ordered by joining and leaving the job.
            match self
                .0
                .compare_exchange_weak(packed, left, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Some(task),
                Err(now) => packed = now,
            }
        }
    }
}

const OPEN: u64 = 1 << 31;
const JOINED: u64 = OPEN - 1;

// SAFETY: `job` is written only while no worker can read it (closed and nobody joined) and read only by
// workers that joined; the pointer in it is to a `Sync` closure that outlives the job.
unsafe impl Sync for Shared {}
// SAFETY: as for Sync: the raw pointer is the only member that is not Send by itself.
unsafe impl Send for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl ThreadPool {
    /// A pool of `threads` threads, one of them the caller's; zero counts as one.
    ///
    /// If the system refuses a thread, the pool has fewer.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            queues: (0..threads.max(1))
                .map(|_| Queue(AtomicU64::new(0)))
                .collect(),
            ahead: Ahead::default(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        let spawn = |index| {
            let shared = Arc::clone(&shared);
            let name = format!("niwaki-{index}");
            std::thread::Builder::new()
                .name(name)
                .spawn(move || shared.work(index))
                .ok()
        };
        let workers = (1..threads).map_while(spawn).collect();
        Self {
            shared,
            workers,
            running: Mutex::new(()),
        }
    }

    /// Threads that share a job, the caller's among them.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Says what the job after the next one will read: threads that wait for it fetch the beginning of their share
    /// into their caches meanwhile. The `items` of `item_bytes` bytes each from the start of `bytes` on are shared out
    /// as tasks are.
    pub(crate) fn announce(&self, bytes: &[u8], items: usize, item_bytes: usize) {
        if !self.workers.is_empty() {
            self.shared.ahead.set(bytes, items, item_bytes);
        }
    }

    /// Calls `task` with each number below `tasks`, in any order, on several threads; returns when all
    /// calls have returned. A call from inside a task runs on that thread alone.
    ///
    /// # Panics
    /// If a task panics.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        let alone = || (0..tasks).for_each(&task);
        let Ok(count) = u32::try_from(tasks) else {
            return alone();
        };
        if tasks < 2 || self.workers.is_empty() {
            return alone();
        }
        let _running = match self.running.try_lock() {
            Ok(running) => running,
            // A task panicked, which left nothing behind.
            Err(TryLockError::Poisoned(running)) => running.into_inner(),
            Err(TryLockError::WouldBlock) => return alone(),
        };
        let run: &(dyn Fn(usize) + Sync) = &task;
        // SAFETY: only the lifetime is erased. Workers use the pointer between joining and leaving the
        // job, and `finish` returns only after the last one left, before `task` is dropped.
        let run: *const (dyn Fn(usize) + Sync + 'static) = unsafe { std::mem::transmute(run) };
        let job = Job { run };
        self.shared.start(job, count, self.threads());
        // SAFETY: `task` is alive: it is an argument of this call.
        let result = catch_unwind(AssertUnwindSafe(|| unsafe {
            self.shared.run_tasks(job, 0)
        }));
        self.shared.finish();
        if let Err(panic) = result {
            resume_unwind(panic);
        }
        assert!(
            !self.shared.panicked.load(Ordering::Relaxed),
            "a task of the thread pool panicked"
        );
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        // SeqCst as for a job's state.
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn start(&self, job: Job, tasks: u32, threads: usize) {
        // SAFETY: the pool's `running` lock is held, the last job was closed and everybody left it, so
        // nobody reads `job`.
        unsafe { *self.job.get() = Some(job) };
        let share = |thread: usize| (u64::from(tasks) * thread as u64 / threads as u64) as u32;
        for (thread, queue) in self.queues.iter().take(threads).enumerate() {
            queue.set(share(thread)..share(thread + 1));
        }
        self.panicked.store(false, Ordering::Relaxed);
        let epoch = (self.state.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        // SeqCst pairs with `sleep`: either the worker sees the new epoch or we see the sleeper.
        self.state.store(epoch << 32 | OPEN, Ordering::SeqCst);
        self.wake_all();
    }

    fn finish(&self) {
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        loop {
            for _ in 0..SPINS_PER_YIELD {
                if self.state.load(Ordering::Acquire) & JOINED == 0 {
                    return;
                }
                std::hint::spin_loop();
            }
            // As in `next_job`.
            std::thread::yield_now();
        }
    }

    fn wake_all(&self) {
        // Between the kernels of a token nobody sleeps, and nothing is locked.
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // A thread that counted itself but does not wait yet holds the lock.
            drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
        }
    }

    /// # Safety
    /// The closure of `job` must be alive.
    unsafe fn run_tasks(&self, job: Job, thread: usize) {
        // SAFETY: the caller's promise.
        let run = unsafe { &*job.run };
        let (before, own) = self.queues.split_at(thread);
        if let Some(own) = own.first() {
            while let Some(task) = own.pop_front() {
                run(task as usize);
            }
        }
        for other in own.iter().skip(1).chain(before) {
            while let Some(task) = other.pop_back() {
                run(task as usize);
            }
        }
    }

    /// The life of a worker.
    fn work(&self, thread: usize) {
        let mut seen = 0;
        let mut cursor = Cursor::default();
        while let Some(state) = self.next_job(seen, || cursor.fetch()) {
            seen = state >> 32;
            if !self.join(state) {
                continue;
            }
            // SAFETY: having joined, the job cannot be replaced and its closure cannot be dropped before
            // this thread leaves.
            let result = catch_unwind(AssertUnwindSafe(|| unsafe {
                if let Some(job) = *self.job.get() {
                    self.run_tasks(job, thread);
                }
            }));
            if result.is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.state.fetch_sub(1, Ordering::Release);
            cursor.follow(&self.ahead, thread, self.queues.len());
        }
    }

    /// Counts this thread into the job of `state`, unless it closed in the meantime.
    fn join(&self, mut state: u64) -> bool {
        let epoch = state >> 32;
        loop {
            if state & OPEN == 0 || state >> 32 != epoch {
                return false;
            }
            match self.state.compare_exchange_weak(
                state,
                state + 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
    }

    /// The state of a job newer than `seen`: spins, then sleeps. `None` when the pool is dropped. While it spins it
    /// calls `meanwhile`, which says whether there was something to do.
    fn next_job(&self, seen: u64, mut meanwhile: impl FnMut() -> bool) -> Option<u64> {
        let fresh = || {
            let state = self.state.load(Ordering::SeqCst);
            (state >> 32 != seen).then_some(state)
        };
        let start = Instant::now();
        loop {
            for _ in 0..SPINS_PER_YIELD {
                if self.stop.load(Ordering::Acquire) {
                    return None;
                }
                if let Some(state) = fresh() {
                    return Some(state);
                }
                if !meanwhile() {
                    std::hint::spin_loop();
                }
            }
            if start.elapsed() > SPIN {
                break;
            }
            // The thread that makes the work may have no other CPU than this one.
            std::thread::yield_now();
        }
        let mut sleep = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let state = loop {
            if self.stop.load(Ordering::SeqCst) {
                break None;
            }
            if let Some(state) = fresh() {
                break Some(state);
            }
            sleep = self
                .wake
                .wait(sleep)
                .unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_threads_sleep() {
        let pool = ThreadPool::new(3);
        for _ in 0..3 {
            pool.run(30, |_| {});
            // Hangs if a thread goes on looking for work.
            while pool.shared.sleepers.load(Ordering::SeqCst) < 2 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn a_queue_gives_each_task_once_from_either_end() {
        let queue = Queue(AtomicU64::new(0));
        assert_eq!(queue.pop_front(), None);
        queue.set(3..6);
        let taken = [queue.pop_front(), queue.pop_back(), queue.pop_front()];
        assert_eq!(taken, [Some(3), Some(5), Some(4)]);
        assert_eq!((queue.pop_front(), queue.pop_back()), (None, None));
    }

    #[test]
    fn a_task_that_panicked_leaves_a_pool_that_works() {
        let pool = ThreadPool::new(2);
        let panics = || pool.run(8, |task| assert!(task != 3, "task 3"));
        for _ in 0..3 {
            assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
            // Each of two threads waits for the other: one alone would never be done.
            let started = AtomicUsize::new(0);
            pool.run(2, |_| {
                started.fetch_add(1, Ordering::SeqCst);
                while started.load(Ordering::SeqCst) < 2 {
                    std::thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn one_thread_that_is_held_up_does_not_hold_up_the_others() {
        let pool = ThreadPool::new(2);
        let others = AtomicUsize::new(0);
        // The caller's first task waits for all others, those behind it in its own queue among them: without
        // stealing it would wait for ever.
        pool.run(20, |task| {
            if task > 0 {
                others.fetch_add(1, Ordering::SeqCst);
            }
            while task == 0 && others.load(Ordering::SeqCst) < 19 {
                std::thread::yield_now();
            }
        });
    }
}
