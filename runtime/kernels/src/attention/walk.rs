//! Walking the pages, and combining what the chunks give.

use super::AttentionOptions;
use super::chunk::{self, Head, Products, Statistics};
use super::float::Float;
use super::integer::Integer;
use super::plan::{Span, TILE};
use crate::dispatch::{Supported, Work};
use crate::format::ROWS;
use crate::functions::exp;
use crate::kv::KvElement;
use crate::lanes::{Lanes, Simd, store_part};
use crate::quantize::Quantize;
use crate::quantized::QuantizedRows;
use crate::rows::{Rows, SharedRows};
use std::array::from_fn;
use std::cell::Cell;
use std::ops::Range;

/// Queries that are computed at once, at most: what is loaded of a page is used by all of them.
const AT_ONCE: usize = 4;

/// What a thread keeps from task to task, so that tasks allocate nothing.
#[derive(Default)]
struct Scratch {
    queries: QuantizedRows,
    totals: Vec<[f32; ROWS]>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// The pages of one layer, whatever holds them: attention is compiled once, and not for every kind of holder.
pub(crate) trait Pages: Sync {
    /// The bytes of a page.
    fn get(&self, page: usize) -> Option<&[u8]>;
}

impl<P: AsRef<[u8]> + Sync> Pages for &[P] {
    fn get(&self, page: usize) -> Option<&[u8]> {
        <[P]>::get(self, page).map(AsRef::as_ref)
    }
}

/// A task of attention.
pub(crate) struct Attend<'a> {
    pub(crate) options: &'a AttentionOptions,
    pub(crate) queries: &'a Rows<'a>,
    pub(crate) pages: &'a dyn Pages,
    pub(crate) span: Span,
    /// What the same thread computes after it.
    pub(crate) next: Option<Span>,
    pub(crate) target: Target<'a>,
}

/// Where a task writes. No two tasks write to the same columns of a row.
#[derive(Clone, Copy)]
pub(crate) enum Target<'a> {
    /// The outputs of its queries.
    Outputs(SharedRows<'a>),
    /// What its chunks give, of the only query row.
    Partials(Partials<'a>),
}

/// Chunks of one query row: row `head * pages + page - first_page` has the weighted values, then the largest
/// score and the sum.
#[derive(Clone, Copy)]
pub(crate) struct Partials<'a> {
    pub(crate) rows: SharedRows<'a>,
    pub(crate) first_page: usize,
    pub(crate) pages: usize,
}

impl Attend<'_> {
    /// Does the task: one function for each kind of stored numbers, or compilers would take minutes over it.
    pub(crate) fn run_on(self, isa: Supported) {
        match self.options.kv.element {
            KvElement::F32 => isa.run(AttendFloat::<false>(self)),
            KvElement::F16 => isa.run(AttendFloat::<true>(self)),
            KvElement::I8 => isa.run(AttendInteger(self)),
        }
    }
}

struct AttendFloat<'a, const F16: bool>(Attend<'a>);

impl<const F16: bool> Work for AttendFloat<'_, F16> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut scratch = SCRATCH.take();
        let queries = self.0.floats();
        let products = Float::<F16> { queries };
        self.0.walk(simd, &products, &mut scratch.totals);
        SCRATCH.set(scratch);
    }
}

struct AttendInteger<'a>(Attend<'a>);

impl Work for AttendInteger<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut scratch = SCRATCH.take();
        let queries = &mut scratch.queries;
        queries.resize(self.0.span.queries.len(), self.0.options.kv.head_dim, 0);
        for index in 0..queries.rows() {
            let x = self.0.query(index);
            let out = queries.row_mut(index);
            Quantize { x, out }.run(simd);
        }
        self.0.walk(simd, &Integer { queries }, &mut scratch.totals);
        SCRATCH.set(scratch);
    }
}

impl Attend<'_> {
    /// Row and head of a query of this task.
    #[inline(always)]
    fn place(&self, query: usize) -> (usize, usize) {
        let shared = self.options.shared_heads();
        let query = self.span.queries.start + query;
        (query / shared, self.span.kv_head * shared + query % shared)
    }

    #[inline(always)]
    fn query(&self, query: usize) -> &[f32] {
        let head_dim = self.options.kv.head_dim;
        let (row, head) = self.place(query);
        &self.queries.row(row)[head * head_dim..][..head_dim]
    }

    /// Keys and values of a head in a page.
    #[inline(always)]
    fn head(&self, kv_head: usize, page: usize) -> Head<'_> {
        let page = self.pages.get(page).unwrap_or_default();
        self.options.kv.head(page, kv_head)
    }

    /// Keys and values that follow those of this task's `page`, here or in the next task.
    #[inline(always)]
    fn following(&self, page: usize) -> Head<'_> {
        match &self.next {
            _ if page + 1 < self.span.pages.end => self.head(self.span.kv_head, page + 1),
            Some(next) if !next.pages.is_empty() => self.head(next.kv_head, next.pages.start),
            _ => (&[], &[]),
        }
    }

    #[inline(always)]
    fn floats(&self) -> [&[f32]; TILE] {
        let count = self.span.queries.len();
        from_fn(|query| {
            if query < count {
                self.query(query)
            } else {
                &[]
            }
        })
    }

    #[inline(always)]
    fn walk<S: Simd>(&self, simd: S, products: &impl Products, totals: &mut Vec<[f32; ROWS]>) {
        let options = self.options;
        let groups = options.kv.padded_dim() / ROWS;
        let count = self.span.queries.len();
        totals.clear();
        totals.resize((count + AT_ONCE) * groups, [0.0; ROWS]);
        let (totals, chunks) = totals.split_at_mut(count * groups);
        let mut state = State::new(totals);
        let rows: [usize; TILE] = from_fn(|query| self.place(query).0);
        let rows = &rows[..count];
        for page in self.span.pages.clone() {
            let head = self.head(self.span.kv_head, page);
            let mut next = self.following(page);
            let mut query = 0;
            while query < count {
                let visible = options.visible_slots(rows[query], page);
                let mut at_once = 1;
                while at_once < AT_ONCE
                    && query + at_once < count
                    && options.visible_slots(rows[query + at_once], page) == visible
                {
                    at_once += 1;
                }
                if !visible.is_empty() {
                    /// Attends with so many queries.
                    macro_rules! step {
                        ($m:literal) => {
                            self.step::<S, $m>(
                                simd,
                                products,
                                [head, next],
                                page,
                                query,
                                &visible,
                                chunks,
                                &mut state,
                            )
                        };
                    }
                    match at_once {
                        1 => step!(1),
                        2 => step!(2),
                        3 => step!(3),
                        _ => step!(4),
                    }
                    // Once is enough.
                    next = (&[], &[]);
                }
                query += at_once;
            }
        }
        if let Target::Outputs(out) = self.target {
            let head_dim = options.kv.head_dim;
            for query in 0..count {
                let (row, head) = self.place(query);
                // SAFETY: each task has its own heads of its rows.
                #[allow(unsafe_code)]
                let out = unsafe { out.segment(row, head * head_dim, head_dim) };
                state.finish(simd, query, groups, out);
            }
        }
    }

    /// `M` queries from `query` on, which see the same slots of a page.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    fn step<S: Simd, const M: usize>(
        &self,
        simd: S,
        products: &impl Products,
        heads: [Head<'_>; 2],
        page: usize,
        query: usize,
        visible: &Range<usize>,
        chunks: &mut [[f32; ROWS]],
        state: &mut State<'_>,
    ) {
        let groups = self.options.kv.padded_dim() / ROWS;
        let chunks = &mut chunks[..M * groups];
        let mut ends: [Option<&mut [f32; ROWS]>; M] = from_fn(|_| None);
        let mut out = match self.target {
            Target::Outputs(_) => {
                let mut each = chunks.chunks_exact_mut(groups);
                from_fn(|_| each.next().unwrap_or_default())
            }
            Target::Partials(partials) => from_fn(|m| {
                let row = self.place(query + m).1 * partials.pages + page - partials.first_page;
                // SAFETY: each task has its own heads and pages.
                #[allow(unsafe_code)]
                let row = unsafe { partials.rows.segment(row, 0, (groups + 1) * ROWS) };
                let (out, end) = row.as_chunks_mut().0.split_at_mut(groups);
                ends[m] = end.first_mut();
                out
            }),
        };
        let statistics = chunk::attend::<S, M>(
            simd,
            self.options,
            products,
            heads,
            query,
            visible,
            &mut out,
        );
        match self.target {
            Target::Outputs(_) => state.combine(simd, query, &statistics, chunks),
            Target::Partials(_) => {
                for (m, end) in ends.into_iter().flatten().enumerate() {
                    end[..2].copy_from_slice(&[statistics.largest[m], statistics.sum[m]]);
                }
            }
        }
    }
}

/// Combines the chunks of a query row that several tasks computed.
pub(crate) struct Gather<'a> {
    pub(crate) options: &'a AttentionOptions,
    pub(crate) partials: &'a Rows<'a>,
    pub(crate) out: &'a mut [f32],
}

impl Work for Gather<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self {
            options,
            partials,
            out,
        } = self;
        let groups = options.kv.padded_dim() / ROWS;
        let pages = partials.rows() / options.heads;
        let mut scratch = SCRATCH.take();
        for (head, out) in out.chunks_exact_mut(options.kv.head_dim).enumerate() {
            scratch.totals.clear();
            scratch.totals.resize(groups, [0.0; ROWS]);
            let mut state = State::new(&mut scratch.totals);
            for page in 0..pages {
                let row = partials.row(head * pages + page).as_chunks::<ROWS>().0;
                let (chunk, end) = row.split_at(groups);
                let statistics = Statistics {
                    largest: [end[0][0]],
                    sum: [end[0][1]],
                };
                state.combine(simd, 0, &statistics, chunk);
            }
            state.finish(simd, 0, groups, out);
        }
        SCRATCH.set(scratch);
    }
}

/// What the chunks so far give, of each query.
struct State<'a> {
    largest: [f32; TILE],
    sum: [f32; TILE],
    totals: &'a mut [[f32; ROWS]],
}

impl<'a> State<'a> {
    /// Before the first chunk; `totals` are zeros.
    #[inline(always)]
    fn new(totals: &'a mut [[f32; ROWS]]) -> Self {
        Self {
            largest: [f32::NEG_INFINITY; TILE],
            sum: [0.0; TILE],
            totals,
        }
    }

    /// Adds the next chunk of the `M` queries from `first` on.
    #[inline(always)]
    fn combine<S: Simd, const M: usize>(
        &mut self,
        simd: S,
        first: usize,
        chunk: &Statistics<M>,
        chunks: &[[f32; ROWS]],
    ) {
        let largest = &mut self.largest[first..][..M];
        let sum = &mut self.sum[first..][..M];
        // One exp for both factors of all queries.
        let mut factors = [0.0; 16];
        for m in 0..M {
            let new = if chunk.largest[m] > largest[m] {
                chunk.largest[m]
            } else {
                largest[m]
            };
            factors[m] = largest[m] - new;
            factors[AT_ONCE + m] = chunk.largest[m] - new;
            largest[m] = new;
        }
        exp(simd.load(&factors)).store(&mut factors);
        let groups = chunks.len() / M;
        let totals = &mut self.totals[first * groups..];
        let each = totals
            .chunks_exact_mut(groups)
            .zip(chunks.chunks_exact(groups));
        for (m, (totals, chunks)) in each.take(M).enumerate() {
            let (old_factor, chunk_factor) = (factors[m], factors[AT_ONCE + m]);
            sum[m] = sum[m].mul_add(old_factor, chunk.sum[m] * chunk_factor);
            let (old_factor, chunk_factor) = (simd.splat(old_factor), simd.splat(chunk_factor));
            for (total, chunk) in totals.iter_mut().zip(chunks) {
                let weighted = simd.load(chunk) * chunk_factor;
                simd.load(total).fma(old_factor, weighted).store(total);
            }
        }
    }

    /// Writes the output of a query.
    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, query: usize, groups: usize, out: &mut [f32]) {
        let inverse = simd.splat(1.0 / self.sum[query]);
        let totals = &self.totals[query * groups..];
        for (total, out) in totals.iter().zip(out.chunks_mut(ROWS)) {
            store_part(simd.load(total) * inverse, out);
        }
    }
}
