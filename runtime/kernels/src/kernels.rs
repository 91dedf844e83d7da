//! The kernels as the engine calls them: shapes checked, instruction set chosen, threads shared.

use crate::attention::{
    Attend, AttentionOptions, AttentionScratch, Gather, Pages, Partials, Target, Tasks,
    partial_width,
};
use crate::dispatch::{Supported, Work};
use crate::format::{Matrix, ROWS};
use crate::functions::{self, Activation};
use crate::isa::Isa;
use crate::kv::{self, KvFormat, PAGE_TOKENS};
use crate::lanes::{Lanes, Simd, map, map2, update};
use crate::matmul::{float_groups, quantized_groups};
use crate::norm::{Norm, normalize};
use crate::pool::ThreadPool;
use crate::quantized::QuantizedRows;
use crate::rope::{PairLayout, RopeTables, rotate_row};
use crate::rows::{Rows, RowsMut, SharedRows};
use std::ops::Range;
use std::sync::Arc;
use thiserror::Error;

/// The kernels for one instruction set, on one thread pool.
///
/// All methods panic when shapes do not fit together: the caller checks what comes from files.
/// Results are the same bits for every instruction set and number of threads, and for a row whether it
/// is computed alone or with others, as long as no infinity or NaN appears.
#[derive(Clone, Debug)]
pub struct Kernels {
    pub(crate) isa: Supported,
    pool: Arc<ThreadPool>,
}

/// An instruction set that this CPU does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("this CPU has no {0} instructions")]
pub struct UnsupportedIsa(pub Isa);

/// Numbers that an elementwise task handles: below it, starting a thread costs more than it saves.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// Multiply-adds that a matrix task handles at least, for the same reason.
const PRODUCTS_PER_TASK: usize = 64 * 1024;

/// Parts of a thread's share of a matrix: what another thread can take over when it is done before.
const TASKS_PER_THREAD: usize = 4;

impl Kernels {
    /// Kernels for `isa`.
    ///
    /// # Errors
    /// If this CPU does not support it.
    pub fn new(isa: Isa, pool: Arc<ThreadPool>) -> Result<Self, UnsupportedIsa> {
        let isa = Supported::new(isa).ok_or(UnsupportedIsa(isa))?;
        Ok(Self { isa, pool })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa.isa()
    }

    /// The threads in use.
    pub fn pool(&self) -> &Arc<ThreadPool> {
        &self.pool
    }

    /// `out = x matrix^T + bias`: quantizes `x` into `scratch` first if the matrix is quantized.
    pub fn matmul(
        &self,
        matrix: &Matrix<'_>,
        x: &Rows<'_>,
        bias: Option<&[f32]>,
        scratch: &mut QuantizedRows,
        out: &mut RowsMut<'_>,
    ) {
        if matrix.format().is_quantized() {
            self.quantize(x, matrix.refined(), scratch);
            return self.matmul_quantized(matrix, scratch, bias, out);
        }
        self.matmul_add(matrix, MatmulInput::Float(x), bias, None, out);
    }

    /// `out = x matrix^T + bias` for activations that were quantized before, of a quantized matrix.
    /// Several matrices can share one quantization of their input.
    pub fn matmul_quantized(
        &self,
        matrix: &Matrix<'_>,
        x: &QuantizedRows,
        bias: Option<&[f32]>,
        out: &mut RowsMut<'_>,
    ) {
        self.matmul_add(matrix, MatmulInput::Quantized(x), bias, None, out);
    }

    /// `out = x matrix^T + bias`, then `out = residual + scale * out`, rounded as
    /// [`add_scaled`](Self::add_scaled) does.
    pub fn matmul_add(
        &self,
        matrix: &Matrix<'_>,
        x: MatmulInput<'_>,
        bias: Option<&[f32]>,
        residual: Option<Residual<'_>>,
        out: &mut RowsMut<'_>,
    ) {
        let (rows, width, quantized) = match x {
            MatmulInput::Float(x) => (x.rows(), x.width(), false),
            MatmulInput::Quantized(x) => (x.rows(), x.width(), true),
        };
        assert_eq!(
            matrix.format().is_quantized(),
            quantized,
            "a quantized matrix takes quantized activations, a float matrix floats"
        );
        assert_eq!(width, matrix.cols(), "columns of the activations");
        assert_eq!(out.rows(), rows, "rows of the output");
        assert_eq!(out.width(), matrix.rows(), "columns of the output");
        if let Some(bias) = bias {
            assert_eq!(bias.len(), matrix.rows(), "length of the bias");
        }
        if let Some(Residual { rows, .. }) = residual {
            let shape = (rows.rows(), rows.width());
            assert_eq!(shape, (out.rows(), out.width()), "shape of the residual");
        }
        let groups = matrix.groups();
        let out = out.shared();
        // Shares are even to a pair of groups: a thread more or less would wait for the last.
        let pairs = groups.div_ceil(2);
        let products = rows * matrix.cols() * groups * ROWS;
        let threads = self.pool.threads();
        let tasks = (products / PRODUCTS_PER_TASK).min(threads * TASKS_PER_THREAD);
        let tasks = (tasks / threads * threads).clamp(1, pairs.max(1));
        let boundary = |task: usize| (pairs * task / tasks * 2).min(groups);
        self.pool.run(tasks, |task| {
            let groups = boundary(task)..boundary(task + 1);
            self.isa.run(MatmulGroups {
                matrix,
                input: x,
                bias,
                residual,
                out,
                groups,
            });
        });
    }

    /// Says that the matrix product after the next one is with `matrix`, so that threads that have nothing to do
    /// in between fetch it from memory.
    pub fn announce(&self, matrix: &Matrix<'_>) {
        // As `matmul_add` shares them out.
        let pairs = matrix.groups().div_ceil(2);
        let bytes = matrix.groups_bytes(0..matrix.groups());
        self.pool
            .announce(bytes, pairs, bytes.len() / matrix.groups() * 2);
    }

    /// `x / sqrt(mean(x^2) + epsilon)` over every `group` consecutive columns (Zhang & Sennrich, 2019),
    /// times `weight`, plus `bias`, which are `group` or a whole row long.
    pub fn norm_rms(
        &self,
        x: &Rows<'_>,
        group: usize,
        weight: Option<&[f32]>,
        bias: Option<&[f32]>,
        epsilon: f32,
        out: &mut RowsMut<'_>,
    ) {
        self.norm(Norm::Rms, x, group, weight, bias, epsilon, out);
    }

    /// `(x - mean(x)) / sqrt(var(x) + epsilon)` over every `group` consecutive columns (Ba et al., 2016),
    /// times `weight`, plus `bias`, which are `group` or a whole row long.
    pub fn norm_layer(
        &self,
        x: &Rows<'_>,
        group: usize,
        weight: Option<&[f32]>,
        bias: Option<&[f32]>,
        epsilon: f32,
        out: &mut RowsMut<'_>,
    ) {
        self.norm(Norm::Layer, x, group, weight, bias, epsilon, out);
    }

    #[allow(clippy::too_many_arguments)]
    fn norm(
        &self,
        norm: Norm,
        x: &Rows<'_>,
        group: usize,
        weight: Option<&[f32]>,
        bias: Option<&[f32]>,
        epsilon: f32,
        out: &mut RowsMut<'_>,
    ) {
        let width = x.width();
        assert!(
            group > 0 && width.is_multiple_of(group),
            "groups of {group} in {width} columns"
        );
        for (what, vector) in [("weight", weight), ("bias", bias)] {
            let len = vector.map_or(group, <[f32]>::len);
            assert!(len == group || len == width, "length {len} of the {what}");
        }
        /// The part of a vector for one group: the same for all if it is one group long.
        fn part(vector: &[f32], group: Range<usize>) -> &[f32] {
            if vector.len() == group.len() {
                vector
            } else {
                &vector[group]
            }
        }
        self.by_row(x.rows(), out, width, |isa, row, out| {
            let x = x.row(row);
            for start in (0..width).step_by(group) {
                let columns = start..start + group;
                let weight = weight.map(|weight| part(weight, columns.clone()));
                let bias = bias.map(|bias| part(bias, columns.clone()));
                let out = &mut out[columns.clone()];
                NormGroup {
                    norm,
                    x: &x[columns],
                    weight,
                    bias,
                    epsilon,
                    out,
                }
                .run_on(isa);
            }
        });
    }

    /// Rotates each head of `head_dim` columns by its row's angles; columns after the pairs pass.
    pub fn rope(
        &self,
        x: &Rows<'_>,
        head_dim: usize,
        layout: PairLayout,
        tables: &RopeTables<'_>,
        out: &mut RowsMut<'_>,
    ) {
        let (cos, sin) = (&tables.cos, &tables.sin);
        assert!(
            head_dim > 0 && x.width().is_multiple_of(head_dim),
            "heads of {head_dim} columns"
        );
        assert_eq!(
            (cos.rows(), sin.rows()),
            (x.rows(), x.rows()),
            "rows of the rotary tables"
        );
        assert_eq!(cos.width(), sin.width(), "pairs of the rotary tables");
        assert!(
            cos.width() <= head_dim / 2,
            "{} pairs in {head_dim} columns",
            cos.width()
        );
        self.by_row(x.rows(), out, x.width(), |isa, row, out| {
            let (cos, sin) = (cos.row(row), sin.row(row));
            RopeRow {
                x: x.row(row),
                head_dim,
                layout,
                cos,
                sin,
                out,
            }
            .run_on(isa);
        });
    }

    /// `activation(x)`.
    pub fn activation(&self, activation: Activation, x: &Rows<'_>, out: &mut RowsMut<'_>) {
        self.by_row(x.rows(), out, x.width(), |isa, row, out| {
            ActivationRow {
                activation,
                x: x.row(row),
                out,
            }
            .run_on(isa);
        });
    }

    /// `activation(gate) * up`.
    pub fn gate(
        &self,
        activation: Activation,
        gate: &Rows<'_>,
        up: &Rows<'_>,
        out: &mut RowsMut<'_>,
    ) {
        check_same(gate, up);
        self.by_row(gate.rows(), out, gate.width(), |isa, row, out| {
            GateRow {
                activation,
                gate: gate.row(row),
                up: up.row(row),
                out,
            }
            .run_on(isa);
        });
    }

    /// `a + scale * b`, rounded once.
    pub fn add_scaled(&self, a: &Rows<'_>, b: &Rows<'_>, scale: f32, out: &mut RowsMut<'_>) {
        check_same(a, b);
        self.by_row(a.rows(), out, a.width(), |isa, row, out| {
            AddRow {
                a: a.row(row),
                b: b.row(row),
                scale,
                out,
            }
            .run_on(isa);
        });
    }

    /// `factor * x`.
    pub fn scale(&self, factor: f32, x: &Rows<'_>, out: &mut RowsMut<'_>) {
        self.by_row(x.rows(), out, x.width(), |isa, row, out| {
            ScaleRow {
                factor,
                x: x.row(row),
                out,
            }
            .run_on(isa);
        });
    }

    /// `cap * tanh(x / cap)`.
    pub fn softcap(&self, cap: f32, x: &Rows<'_>, out: &mut RowsMut<'_>) {
        self.by_row(x.rows(), out, x.width(), |isa, row, out| {
            SoftcapRow {
                cap,
                x: x.row(row),
                out,
            }
            .run_on(isa);
        });
    }

    /// Stores the keys and values of the token at position `slot` of a page, as its format says. `key` and
    /// `value` are `kv_heads * head_dim` long.
    ///
    /// # Panics
    /// If `slot` is not below [`PAGE_TOKENS`] or a length is wrong.
    pub fn write_kv(
        &self,
        format: &KvFormat,
        page: &mut [u8],
        slot: usize,
        key: &[f32],
        value: &[f32],
    ) {
        assert!(slot < PAGE_TOKENS, "slot {slot} of a page of {PAGE_TOKENS}");
        assert_eq!(Some(page.len()), format.page_bytes(), "length of the page");
        let width = format.kv_heads * format.head_dim;
        assert_eq!(
            (key.len(), value.len()),
            (width, width),
            "length of key and value"
        );
        WriteKv {
            format,
            page,
            slot,
            key,
            value,
        }
        .run_on(self.isa);
    }

    /// Attention of `queries`, `[tokens, heads * head_dim]`, to the keys and values in `pages`, which
    /// hold all positions up to the last query's. Query head `h` reads key/value head
    /// `h / (heads / kv_heads)`. Pages that lie before every query's window are not read.
    /// With one query row and several threads its chunks are computed in `scratch`.
    pub fn attention<P: AsRef<[u8]> + Sync>(
        &self,
        options: &AttentionOptions,
        queries: &Rows<'_>,
        pages: &[P],
        scratch: &mut AttentionScratch,
        out: &mut RowsMut<'_>,
    ) {
        self.attend(options, queries, &pages, scratch, out);
    }

    fn attend(
        &self,
        options: &AttentionOptions,
        queries: &Rows<'_>,
        pages: &dyn Pages,
        scratch: &mut AttentionScratch,
        out: &mut RowsMut<'_>,
    ) {
        let (heads, kv) = (options.heads, options.kv);
        let head_dim = kv.head_dim;
        assert!(
            head_dim > 0 && kv.kv_heads > 0 && heads.is_multiple_of(kv.kv_heads),
            "{heads} heads in {kv:?}"
        );
        assert_eq!(queries.width(), heads * head_dim, "columns of the queries");
        assert_eq!(
            (out.rows(), out.width()),
            (queries.rows(), queries.width()),
            "output shape"
        );
        assert!(options.window != Some(0), "a window of no positions");
        if queries.rows() == 0 {
            return;
        }
        let tasks = Tasks::new(options, queries.rows(), self.pool.threads());
        let attend = |target: Target<'_>| {
            let products = 2 * PAGE_TOKENS * head_dim;
            let per_task = PRODUCTS_PER_TASK.div_ceil(tasks.visits_per_task() * products.max(1));
            self.pool.run(tasks.len().div_ceil(per_task), |task| {
                let spans = task * per_task..((task + 1) * per_task).min(tasks.len());
                let mut spans = spans.map(|task| tasks.get(options, task)).peekable();
                while let Some(span) = spans.next() {
                    let task = Attend {
                        options,
                        queries,
                        pages,
                        span,
                        next: spans.peek().cloned(),
                        target,
                    };
                    task.run_on(self.isa);
                }
            });
        };
        if !tasks.is_split() {
            return attend(Target::Outputs(out.shared()));
        }
        let seen = tasks.pages();
        let (rows, width) = (heads * seen.len(), partial_width(head_dim));
        scratch.0.resize(rows * width, 0.0);
        let mut partials = RowsMut::contiguous(&mut scratch.0, rows, width);
        attend(Target::Partials(Partials {
            rows: partials.shared(),
            first_page: seen.start,
            pages: seen.len(),
        }));
        self.isa.run(Gather {
            options,
            partials: &partials.as_rows(),
            out: out.row(0),
        });
    }

    /// Calls `compute` for each row of `out`, on several threads if there is enough work.
    fn by_row(
        &self,
        rows: usize,
        out: &mut RowsMut<'_>,
        width: usize,
        compute: impl Fn(Supported, usize, &mut [f32]) + Sync,
    ) {
        assert_eq!(
            (out.rows(), out.width()),
            (rows, width),
            "shape of the output"
        );
        let out = out.shared();
        let rows_per_task = ELEMENTS_PER_TASK.div_ceil(width.max(1)).max(1);
        self.pool.run(rows.div_ceil(rows_per_task), |task| {
            for row in task * rows_per_task..((task + 1) * rows_per_task).min(rows) {
                // SAFETY: each task has its own rows.
                #[allow(unsafe_code)]
                let out = unsafe { out.segment(row, 0, width) };
                compute(self.isa, row, out);
            }
        });
    }
}

pub(crate) fn check_same(a: &Rows<'_>, b: &Rows<'_>) {
    assert_eq!(
        (a.rows(), a.width()),
        (b.rows(), b.width()),
        "shapes of the operands"
    );
}

/// Activations of a matrix product.
#[derive(Clone, Copy, Debug)]
pub enum MatmulInput<'a> {
    /// For a float matrix.
    Float(&'a Rows<'a>),
    /// For a quantized matrix.
    Quantized(&'a QuantizedRows),
}

/// What the scaled result of a matrix product is added to.
#[derive(Clone, Copy, Debug)]
pub struct Residual<'a> {
    /// As many rows and columns as the result has.
    pub rows: &'a Rows<'a>,
    /// Factor on the result.
    pub scale: f32,
}

/// Row groups of a matrix product that no other task computes.
struct MatmulGroups<'a> {
    matrix: &'a Matrix<'a>,
    input: MatmulInput<'a>,
    bias: Option<&'a [f32]>,
    residual: Option<Residual<'a>>,
    out: SharedRows<'a>,
    groups: Range<usize>,
}

impl Work for MatmulGroups<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self {
            matrix,
            input,
            bias,
            residual,
            out,
            groups,
        } = self;
        let columns = groups.start * ROWS..(groups.end * ROWS).min(matrix.rows());
        // SAFETY: tasks have disjoint groups, so disjoint columns.
        #[allow(unsafe_code)]
        unsafe {
            match input {
                MatmulInput::Float(x) => float_groups(simd, matrix, x, bias, &out, groups),
                MatmulInput::Quantized(x) => quantized_groups(simd, matrix, x, bias, &out, groups),
            }
        }
        if let Some(Residual { rows, scale }) = residual {
            let scale = simd.splat(scale);
            for row in 0..rows.rows() {
                let a = &rows.row(row)[columns.clone()];
                // SAFETY: as above, and the products are done with them.
                #[allow(unsafe_code)]
                let out = unsafe { out.segment(row, columns.start, columns.len()) };
                update!(simd, out, |product, a| product.fma(scale, a));
            }
        }
    }
}

/// Declares a piece of [`Work`]: its inputs, and what it computes from them.
macro_rules! work {
    ($name:ident<$lifetime:lifetime> { $($field:ident: $type:ty),+ } |$simd:ident| $body:expr) => {
        struct $name<$lifetime> { $($field: $type),+ }
        impl $name<'_> {
            fn run_on(self, isa: Supported) {
                isa.run(self);
            }
        }
        impl Work for $name<'_> {
            #[inline(always)]
            fn run<S: Simd>(self, $simd: S) {
                let Self { $($field),+ } = self;
                $body
            }
        }
    };
}

work!(NormGroup<'a> {
    norm: Norm, x: &'a [f32], weight: Option<&'a [f32]>, bias: Option<&'a [f32]>, epsilon: f32,
    out: &'a mut [f32]
} |simd| normalize(simd, norm, x, weight, bias, epsilon, out));

work!(RopeRow<'a> {
    x: &'a [f32], head_dim: usize, layout: PairLayout, cos: &'a [f32], sin: &'a [f32],
    out: &'a mut [f32]
} |simd| { let _ = simd; rotate_row(x, head_dim, layout, cos, sin, out) });

/// Runs `$map` with the function of `$activation`.
macro_rules! with_activation {
    ($activation:expr, |$function:ident| $map:expr) => {
        match $activation {
            Activation::Silu => with_activation!(silu, $function, $map),
            Activation::GeluErf => with_activation!(gelu_erf, $function, $map),
            Activation::GeluTanh => with_activation!(gelu_tanh, $function, $map),
            Activation::GeluSigmoid => with_activation!(gelu_sigmoid, $function, $map),
            Activation::Relu => with_activation!(relu, $function, $map),
            Activation::ReluSquared => with_activation!(relu_squared, $function, $map),
        }
    };
    ($name:ident, $function:ident, $map:expr) => {{
        use functions::$name as $function;
        $map
    }};
}
pub(crate) use with_activation;

work!(ActivationRow<'a> { activation: Activation, x: &'a [f32], out: &'a mut [f32] } |simd| {
    with_activation!(activation, |function| map!(simd, out, |x| function(x)))
});

work!(GateRow<'a> {
    activation: Activation, gate: &'a [f32], up: &'a [f32], out: &'a mut [f32]
} |simd| with_activation!(activation, |function| map2!(simd, out, |gate, up| function(gate) * up)));

work!(AddRow<'a> { a: &'a [f32], b: &'a [f32], scale: f32, out: &'a mut [f32] } |simd| {
    let scale = simd.splat(scale);
    map2!(simd, out, |a, b| b.fma(scale, a))
});

work!(ScaleRow<'a> { factor: f32, x: &'a [f32], out: &'a mut [f32] } |simd| {
    let factor = simd.splat(factor);
    map!(simd, out, |x| x * factor)
});

work!(SoftcapRow<'a> { cap: f32, x: &'a [f32], out: &'a mut [f32] } |simd| {
    map!(simd, out, |x| functions::softcap(x, cap))
});

work!(WriteKv<'a> {
    format: &'a KvFormat, page: &'a mut [u8], slot: usize, key: &'a [f32], value: &'a [f32]
} |simd| kv::write(simd, format, page, slot, key, value));
