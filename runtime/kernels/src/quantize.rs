//! Activations on their way into an integer matrix product: what makes them and their quantization in one
//! pass, so that the floats in between are never written.

use crate::dispatch::Work;
use crate::format::ACTIVATION_BLOCK;
use crate::functions::{self, Activation};
use crate::kernels::{Kernels, check_same, with_activation};
use crate::lanes::{Simd, load_at};
use crate::norm::{Norm, NormFactor};
use crate::quantized::{ActivationTile, QuantizedRow, QuantizedRows};
use crate::rows::Rows;
use std::ops::Range;

/// Columns that a task handles at least: below it, starting a thread costs more than it saves.
const COLUMNS_PER_TASK: usize = 16 * 1024;

/// The same for columns with an activation function, which costs about eight times as much.
const GATED_COLUMNS_PER_TASK: usize = 2 * 1024;

impl Kernels {
    /// Quantizes activations to 8 bits in blocks of 32 columns, the first `refined` blocks in two terms.
    ///
    /// # Panics
    /// If there are fewer whole blocks, or `refined` is above [`MAX_REFINED`](crate::MAX_REFINED); so do the others.
    pub fn quantize(&self, x: &Rows<'_>, refined: usize, out: &mut QuantizedRows) {
        out.resize(x.rows(), x.width(), refined);
        self.by_blocks(out, COLUMNS_PER_TASK, |row, columns, out| {
            let x = &x.row(row)[columns];
            self.isa.run(Quantize { x, out });
        });
    }

    /// [`norm_rms`](Self::norm_rms) or [`norm_layer`](Self::norm_layer) over whole rows, quantized. `weight` and `bias` are
    /// a row long.
    #[allow(clippy::too_many_arguments)]
    pub fn quantize_norm(
        &self,
        norm: Norm,
        x: &Rows<'_>,
        weight: Option<&[f32]>,
        bias: Option<&[f32]>,
        epsilon: f32,
        refined: usize,
        out: &mut QuantizedRows,
    ) {
        for (what, vector) in [("weight", weight), ("bias", bias)] {
            let len = vector.map_or(x.width(), <[f32]>::len);
            assert_eq!(len, x.width(), "length of the {what}");
        }
        out.resize(x.rows(), x.width(), refined);
        // A norm needs the whole row.
        let columns = COLUMNS_PER_TASK.max(x.width());
        self.by_blocks(out, columns, |row, _, out| {
            self.isa.run(QuantizeNorm {
                norm,
                x: x.row(row),
                weight,
                bias,
                epsilon,
                out,
            });
        });
    }

    /// [`gate`](Self::gate), quantized.
    pub fn quantize_gate(
        &self,
        activation: Activation,
        gate: &Rows<'_>,
        up: &Rows<'_>,
        refined: usize,
        out: &mut QuantizedRows,
    ) {
        check_same(gate, up);
        out.resize(gate.rows(), gate.width(), refined);
        self.by_blocks(out, GATED_COLUMNS_PER_TASK, |row, columns, out| {
            self.isa.run(QuantizeGate {
                activation,
                gate: &gate.row(row)[columns.clone()],
                up: &up.row(row)[columns],
                out,
            });
        });
    }

    /// Calls `compute` with rows, columns and the place for their integers, on several threads if there are
    /// more than `columns_per_task`. Rows are cut at whole blocks, and only if they are longer than that.
    fn by_blocks(
        &self,
        out: &mut QuantizedRows,
        columns_per_task: usize,
        compute: impl Fn(usize, Range<usize>, QuantizedRow<'_>) + Sync,
    ) {
        let (rows, width) = (out.rows(), out.width());
        let part = columns_per_task.next_multiple_of(ACTIVATION_BLOCK);
        let parts = width.div_ceil(part);
        let rows_per_task = (part / width.max(1)).max(1);
        let shared = out.shared();
        self.pool()
            .run(rows.div_ceil(rows_per_task) * parts, |task| {
                let (first, columns) = (task / parts * rows_per_task, task % parts * part);
                let columns = columns..(columns + part).min(width);
                let blocks =
                    columns.start / ACTIVATION_BLOCK..columns.end.div_ceil(ACTIVATION_BLOCK);
                for row in first..(first + rows_per_task).min(rows) {
                    // SAFETY: each task has its own rows, or its own blocks of a row.
                    #[allow(unsafe_code)]
                    let out = unsafe { shared.row(row, blocks.clone()) };
                    compute(row, columns.clone(), out);
                }
            });
        self.isa.run(Interleave(out));
    }
}

/// Interleaves rows for the instruction sets that read them so.
struct Interleave<'a>(&'a mut QuantizedRows);

impl Work for Interleave<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        if S::INTERLEAVED && self.0.rows() >= ActivationTile::ROWS {
            self.0.interleave();
        }
    }
}

/// Quantizes one row.
pub(crate) struct Quantize<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) out: QuantizedRow<'a>,
}

impl Work for Quantize<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, out } = self;
        for (start, block) in (0..).step_by(ACTIVATION_BLOCK).zip(out.blocks()) {
            let half = |start| load_at(simd, x, start, 0.0);
            block.set(simd, half(start), half(start + 16));
        }
    }
}

struct QuantizeNorm<'a> {
    norm: Norm,
    x: &'a [f32],
    weight: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
    epsilon: f32,
    out: QuantizedRow<'a>,
}

impl Work for QuantizeNorm<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self {
            norm,
            x,
            weight,
            bias,
            epsilon,
            out,
        } = self;
        let NormFactor { mean, factor } = NormFactor::of(simd, norm, x, epsilon);
        // Columns that are missing at the end become 0.
        let fill = mean.unwrap_or(0.0);
        let (mean, factor) = (mean.map(|mean| simd.splat(mean)), simd.splat(factor));
        /// The half block at `$start`.
        macro_rules! half {
            ($start:expr) => {{
                let x = load_at(simd, x, $start, fill);
                let mut y = mean.map_or(x, |mean| x - mean) * factor;
                if let Some(weight) = weight {
                    y = y * load_at(simd, weight, $start, 0.0);
                }
                if let Some(bias) = bias {
                    y = y + load_at(simd, bias, $start, 0.0);
                }
                y
            }};
        }
        for (start, block) in (0..).step_by(ACTIVATION_BLOCK).zip(out.blocks()) {
            block.set(simd, half!(start), half!(start + 16));
        }
    }
}

struct QuantizeGate<'a> {
    activation: Activation,
    gate: &'a [f32],
    up: &'a [f32],
    out: QuantizedRow<'a>,
}

impl Work for QuantizeGate<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self {
            activation,
            gate,
            up,
            out,
        } = self;
        // Columns that are missing at the end are activation(0) * 0 = 0.
        with_activation!(activation, |function| {
            for (start, block) in (0..).step_by(ACTIVATION_BLOCK).zip(out.blocks()) {
                let first =
                    function(load_at(simd, gate, start, 0.0)) * load_at(simd, up, start, 0.0);
                let start = start + 16;
                let second =
                    function(load_at(simd, gate, start, 0.0)) * load_at(simd, up, start, 0.0);
                block.set(simd, first, second);
            }
        });
    }
}
