//! Work on a matrix in runs of rows: on all threads, with the results in order.

use rayon::prelude::*;
use std::ops::Range;

/// Rows that are worked on at a time. A multiple of 16, which the kernels' layout groups rows by; small, so that
/// matrices of small models have several panels for several threads.
pub const PANEL_ROWS: usize = 64;

/// Panels for each thread that are in memory before their results are handed on.
const PANELS_PER_THREAD: usize = 4;

/// The panels of so many rows.
pub fn panels(rows: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
    (0..rows.div_ceil(PANEL_ROWS)).map(move |panel| {
        let first = panel * PANEL_ROWS;
        first..(first + PANEL_ROWS).min(rows)
    })
}

/// Calls `work` for each panel on the threads of rayon's current pool, and `take` with the results in order, while the
/// next ones are worked on. `done` hears of the rows that were taken.
///
/// # Errors
/// The error of the first panel that has one, whatever the number of threads.
pub fn each_panel<T: Send, E: Send>(
    rows: usize,
    work: impl Fn(Range<usize>) -> Result<T, E> + Sync,
    mut take: impl FnMut(T) -> Result<(), E> + Send,
    done: &mut dyn FnMut(usize),
) -> Result<(), E> {
    let all: Vec<Range<usize>> = panels(rows).collect();
    let windows = all.chunks(PANELS_PER_THREAD * rayon::current_num_threads().max(1));
    let compute = |window: &[Range<usize>]| -> Vec<Result<T, E>> {
        window.par_iter().cloned().map(&work).collect()
    };
    let mut take_all =
        |ready: Vec<Result<T, E>>| ready.into_iter().try_for_each(|result| take(result?));
    let mut ready = vec![];
    let mut ready_rows = 0;
    for window in windows {
        let (taken, computed) = rayon::join(|| take_all(ready), || compute(window));
        taken?;
        done(ready_rows);
        ready = computed;
        ready_rows = window.iter().map(Range::len).sum();
    }
    take_all(ready)?;
    done(ready_rows);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// What came out, and how many rows were done, on so many threads.
    fn on_threads(threads: usize, rows: usize) -> (Vec<usize>, usize) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(|| {
            let (mut taken, mut rows_done) = (vec![], 0);
            let work = |panel: Range<usize>| Ok::<_, ()>(panel.collect::<Vec<usize>>());
            let take = |panel: Vec<usize>| {
                taken.extend(panel);
                Ok(())
            };
            each_panel(rows, work, take, &mut |rows| rows_done += rows).unwrap();
            (taken, rows_done)
        })
    }

    #[test]
    fn every_row_comes_once_and_in_order_on_any_number_of_threads() {
        for rows in [0, 1, PANEL_ROWS, PANEL_ROWS + 1, 50 * PANEL_ROWS + 7] {
            let expected = ((0..rows).collect::<Vec<_>>(), rows);
            for threads in [1, 3] {
                assert_eq!(on_threads(threads, rows), expected, "{rows} rows");
            }
        }
    }

    #[test]
    fn the_first_error_is_the_one_that_is_told() {
        let work = |panel: Range<usize>| {
            if panel.start >= 3 * PANEL_ROWS {
                Err(panel.start)
            } else {
                Ok(())
            }
        };
        for _ in 0..20 {
            let told = each_panel(100 * PANEL_ROWS, work, |()| Ok(()), &mut |_| ());
            assert_eq!(told, Err(3 * PANEL_ROWS));
        }
    }
}
