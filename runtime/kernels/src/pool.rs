//! Threads that share the tasks of one kernel.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an idle thread looks for work before it sleeps. Kernels of one token follow each other
/// within a few microseconds; waking a thread costs more than that.
const SPIN: Duration = Duration::from_micros(100);

/// A fixed set of threads.
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
    next_task: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

#[derive(Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize) + Sync),
    tasks: usize,
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
            next_task: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
        });
        let spawn = |index| {
            let shared = Arc::clone(&shared);
            let name = format!("niwaki-{index}");
            std::thread::Builder::new()
                .name(name)
                .spawn(move || shared.work())
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

    /// Calls `task` with each number below `tasks`, in any order, on several threads; returns when all
    /// calls have returned. A call from inside a task runs on that thread alone.
    ///
    /// # Panics
    /// If a task panics.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        let alone = || (0..tasks).for_each(&task);
        if tasks < 2 || self.workers.is_empty() {
            return alone();
        }
        let Ok(_running) = self.running.try_lock() else {
            return alone();
        };
        let run: &(dyn Fn(usize) + Sync) = &task;
        // SAFETY: only the lifetime is erased. Workers use the pointer between joining and leaving the
        // job, and `finish` returns only after the last one left, before `task` is dropped.
        let run: *const (dyn Fn(usize) + Sync + 'static) = unsafe { std::mem::transmute(run) };
        let job = Job { run, tasks };
        self.shared.start(job);
        // SAFETY: `task` is alive: it is an argument of this call.
        let result = catch_unwind(AssertUnwindSafe(|| unsafe { self.shared.run_tasks(job) }));
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
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn start(&self, job: Job) {
        // SAFETY: the pool's `running` lock is held, the last job was closed and everybody left it, so
        // nobody reads `job`.
        unsafe { *self.job.get() = Some(job) };
        self.next_task.store(0, Ordering::Relaxed);
        self.panicked.store(false, Ordering::Relaxed);
        let epoch = (self.state.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        // SeqCst pairs with `sleep`: either the worker sees the new epoch or we see the sleeper.
        self.state.store(epoch << 32 | OPEN, Ordering::SeqCst);
        self.wake_all();
    }

    fn finish(&self) {
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while self.state.load(Ordering::Acquire) & JOINED != 0 {
            spins += 1;
            if spins < 2000 {
                std::hint::spin_loop()
            } else {
                std::thread::yield_now()
            }
        }
    }

    fn wake_all(&self) {
        let sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        if *sleepers > 0 {
            self.wake.notify_all();
        }
    }

    /// # Safety
    /// The closure of `job` must be alive.
    unsafe fn run_tasks(&self, job: Job) {
        // SAFETY: the caller's promise.
        let run = unsafe { &*job.run };
        loop {
            let index = self.next_task.fetch_add(1, Ordering::Relaxed);
            if index >= job.tasks {
                return;
            }
            run(index);
        }
    }

    /// The life of a worker.
    fn work(&self) {
        let mut seen = 0;
        while let Some(state) = self.next_job(seen) {
            seen = state >> 32;
            if !self.join(state) {
                continue;
            }
            // SAFETY: having joined, the job cannot be replaced and its closure cannot be dropped before
            // this thread leaves.
            let result = catch_unwind(AssertUnwindSafe(|| unsafe {
                if let Some(job) = *self.job.get() {
                    self.run_tasks(job);
                }
            }));
            if result.is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.state.fetch_sub(1, Ordering::Release);
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

    /// The state of a job newer than `seen`: spins, then sleeps. `None` when the pool is dropped.
    fn next_job(&self, seen: u64) -> Option<u64> {
        let fresh = || {
            let state = self.state.load(Ordering::SeqCst);
            (state >> 32 != seen).then_some(state)
        };
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                if self.stop.load(Ordering::Acquire) {
                    return None;
                }
                if let Some(state) = fresh() {
                    return Some(state);
                }
                std::hint::spin_loop();
            }
            if start.elapsed() > SPIN {
                break;
            }
        }
        let mut sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        *sleepers += 1;
        let state = loop {
            if self.stop.load(Ordering::Acquire) {
                break None;
            }
            if let Some(state) = fresh() {
                break Some(state);
            }
            sleepers = self
                .wake
                .wait(sleepers)
                .unwrap_or_else(PoisonError::into_inner);
        };
        *sleepers -= 1;
        state
    }
}
