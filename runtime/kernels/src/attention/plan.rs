//! How attention is cut into tasks.

use super::AttentionOptions;
use crate::format::ROWS;
use std::ops::Range;

/// Queries of one key/value head that walk the pages together.
pub(super) const TILE: usize = 16;

/// Pages that a task of a split query walks at least.
const PAGES_PER_SPAN: usize = 4;

/// Tasks per thread that even out how long they take.
const TASKS_PER_THREAD: usize = 4;

/// Memory for the chunks of a query whose pages are shared out between threads; reusable.
#[derive(Clone, Debug, Default)]
pub struct AttentionScratch(pub(crate) Vec<f32>);

impl AttentionScratch {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Most bytes that `heads` heads of `head_dim` columns use when a query sees `pages` pages.
    pub fn size_bytes(heads: usize, head_dim: usize, pages: usize) -> usize {
        heads
            .saturating_mul(pages)
            .saturating_mul(partial_width(head_dim).saturating_mul(4))
    }
}

/// Numbers that a chunk of a split query takes: its weighted values, then largest score and sum.
pub(crate) fn partial_width(head_dim: usize) -> usize {
    head_dim.next_multiple_of(ROWS).saturating_add(ROWS)
}

/// The tasks of one call: key/value heads times tiles of queries times spans of pages.
pub(crate) struct Tasks {
    kv_heads: usize,
    queries: usize,
    shared_heads: usize,
    /// Pages of all queries.
    pages: Range<usize>,
    pages_per_span: usize,
}

/// What one task computes.
#[derive(Clone)]
pub(crate) struct Span {
    pub(super) kv_head: usize,
    /// Queries of that head: query `q` is row `q / shared_heads`.
    pub(super) queries: Range<usize>,
    /// Pages to walk; not all queries see all of them.
    pub(super) pages: Range<usize>,
}

impl Tasks {
    pub(crate) fn new(options: &AttentionOptions, rows: usize, threads: usize) -> Self {
        let shared_heads = options.shared_heads();
        let pages = options.visible_pages(0..rows);
        let mut tasks = Self {
            kv_heads: options.kv.kv_heads,
            queries: rows * shared_heads,
            shared_heads,
            pages_per_span: pages.len(),
            pages,
        };
        // Many rows are enough tasks without it.
        if rows == 1 && threads > 1 {
            let spans = (threads * TASKS_PER_THREAD).div_ceil(tasks.len());
            tasks.pages_per_span = tasks.pages.len().div_ceil(spans).max(PAGES_PER_SPAN);
        }
        tasks
    }

    /// Whether pages of a query are shared out; [`pages`](Self::pages) are then to be combined.
    pub(crate) fn is_split(&self) -> bool {
        self.spans() > 1
    }

    /// Pages of all queries.
    pub(crate) fn pages(&self) -> Range<usize> {
        self.pages.clone()
    }

    fn tiles(&self) -> usize {
        self.queries.div_ceil(TILE)
    }

    fn spans(&self) -> usize {
        self.pages.len().div_ceil(self.pages_per_span)
    }

    /// Queries times pages of a task, at most.
    pub(crate) fn visits_per_task(&self) -> usize {
        self.queries.min(TILE) * self.pages_per_span
    }

    pub(crate) fn len(&self) -> usize {
        self.kv_heads * self.tiles() * self.spans()
    }

    pub(crate) fn get(&self, options: &AttentionOptions, task: usize) -> Span {
        let (task, span) = (task / self.spans(), task % self.spans());
        let (kv_head, tile) = (task / self.tiles(), task % self.tiles());
        let queries = tile * TILE..((tile + 1) * TILE).min(self.queries);
        let rows = queries.start / self.shared_heads..queries.end.div_ceil(self.shared_heads);
        let seen = options.visible_pages(rows);
        let start = self.pages.start + span * self.pages_per_span;
        let pages = start.max(seen.start)..(start + self.pages_per_span).min(seen.end);
        Span {
            kv_head,
            queries,
            pages,
        }
    }
}
