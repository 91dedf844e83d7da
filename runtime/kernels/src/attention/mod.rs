//! Grouped-query attention over pages of the KV cache: causal, or over a sequence as a whole.
//!
//! Keys are walked in chunks of 64 absolute positions, which are the pages. A chunk gives the largest
//! score, the sum of `e^(score - largest)` and the values weighted by it; chunks are combined in
//! ascending order (the online softmax of Milakov & Gimelshein, 2018). What a query computes depends on
//! nothing but its own position, so tokens may come one by one or in batches, and several threads may
//! compute chunks of one query.
//!
//! On a chunk, attention is two matrix products with a softmax between them: queries times keys, weights
//! times values. Queries that share a key/value head go together, so that what is loaded is used several times.

mod chunk;
mod float;
mod integer;
mod plan;
mod walk;

use crate::kv::{KvFormat, PAGE_TOKENS};
use std::ops::Range;

pub use plan::AttentionScratch;
pub(crate) use plan::{Tasks, partial_width};
pub(crate) use walk::{Attend, Gather, Pages, Partials, Target};

/// What attention of one layer needs besides queries and pages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionOptions {
    /// Shape of the pages.
    pub kv: KvFormat,
    /// Number of query heads: a multiple of the key/value heads.
    pub heads: usize,
    /// Absolute position of the first query row; row `i` is at `first_position + i`.
    pub first_position: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Scores become `softcap * tanh(score / softcap)`.
    pub softcap: Option<f32>,
    /// A query at position `p` sees positions `p - window + 1 ..= p`; all of `..= p` when absent.
    pub window: Option<usize>,
    /// Every query sees so many positions, whatever its own: a sequence that is seen as a whole. Causal when absent.
    pub whole: Option<usize>,
}

impl AttentionOptions {
    /// Query heads that read the same keys and values.
    #[inline(always)]
    fn shared_heads(&self) -> usize {
        self.heads / self.kv.kv_heads
    }

    /// Positions that the query of row `row` sees.
    #[inline(always)]
    fn visible(&self, row: usize) -> Range<usize> {
        let end = match self.whole {
            Some(positions) => positions,
            None => self.first_position + row + 1,
        };
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// Slots of a page that the query of row `row` sees.
    #[inline(always)]
    fn visible_slots(&self, row: usize, page: usize) -> Range<usize> {
        let visible = self.visible(row);
        let start = page * PAGE_TOKENS;
        let slot = |position: usize| position.saturating_sub(start).min(PAGE_TOKENS);
        slot(visible.start)..slot(visible.end)
    }

    /// Pages that at least one query of these rows sees.
    fn visible_pages(&self, rows: Range<usize>) -> Range<usize> {
        let last = self.visible(rows.end - 1);
        self.visible(rows.start).start / PAGE_TOKENS..last.end.div_ceil(PAGE_TOKENS)
    }
}
