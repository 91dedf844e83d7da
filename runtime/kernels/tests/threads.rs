//! The thread pool: every task once, whatever else happens.
#![allow(clippy::expect_used)]

use niwaki_kernels::ThreadPool;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn counts(tasks: usize) -> Vec<AtomicUsize> {
    (0..tasks).map(|_| AtomicUsize::new(0)).collect()
}

fn all_once(counts: &[AtomicUsize]) -> bool {
    counts
        .iter()
        .all(|count| count.load(Ordering::Relaxed) == 1)
}

#[test]
fn every_task_runs_once() {
    for threads in [0, 1, 2, 5] {
        let pool = ThreadPool::new(threads);
        for tasks in [0, 1, 2, 7, 100] {
            for _ in 0..200 {
                let counts = counts(tasks);
                pool.run(tasks, |index| {
                    counts[index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(all_once(&counts), "{threads} threads, {tasks} tasks");
            }
        }
    }
}

#[test]
fn threads_that_slept_wake_up() {
    let pool = ThreadPool::new(3);
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(2));
        let counts = counts(10);
        pool.run(10, |index| {
            counts[index].fetch_add(1, Ordering::Relaxed);
        });
        assert!(all_once(&counts));
    }
}

#[test]
fn jobs_from_several_threads_and_from_inside_of_tasks_are_done() {
    let pool = Arc::new(ThreadPool::new(3));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let counts = counts(12);
                    pool.run(3, |outer| {
                        pool.run(4, |inner| {
                            counts[outer * 4 + inner].fetch_add(1, Ordering::Relaxed);
                        });
                    });
                    assert!(all_once(&counts));
                }
            });
        }
    });
}

#[test]
fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
    let pool = ThreadPool::new(3);
    for bad in 0..20 {
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(20, |index| {
                assert!(index != bad, "task {index} fails on purpose")
            });
        }));
        assert!(result.is_err());
        let counts = counts(20);
        pool.run(20, |index| {
            counts[index].fetch_add(1, Ordering::Relaxed);
        });
        assert!(all_once(&counts));
    }
}
