//! What each graph operator does, in terms of the kernels.

use super::turn::Turn;
use crate::bundle::Bundle;
use crate::graph::{self, Columns, Levels, Node, NormKind, Op, VectorId};
use niwaki_kernels::{AttentionOptions, Kernels, Matrix, Rows, RowsMut};
use tract_core::internal::*;

/// Computes the value of `node`: `[rows, width]`.
pub(super) fn compute(
    node: &Node,
    bundle: &Bundle,
    kernels: &Kernels,
    turn: &mut Turn,
    inputs: &[TValue],
) -> TractResult<Arc<Tensor>> {
    let available = inputs
        .first()
        .and_then(|input| input.shape().first())
        .copied()
        .context("no input")?;
    let rows = match node.op {
        Op::LastRows => turn.wanted_rows.min(available),
        _ => available,
    };
    let mut output = turn.values.take(rows, node.width)?;
    let mut view = Arc::get_mut(&mut output)
        .context("a value in use")?
        .try_as_plain_ram_mut()?;
    let mut out = RowsMut::contiguous(view.as_slice_mut::<f32>()?, rows, node.width);
    let out = &mut out;
    match &node.op {
        Op::Embed { table, scale } => {
            let tokens = inputs
                .first()
                .context("no tokens")?
                .try_as_plain_ram()?
                .as_slice::<u32>()?;
            let table = matrix(bundle, *table)?;
            for (row, token) in tokens.iter().enumerate() {
                let out = out.row(row);
                ensure!(
                    (*token as usize) < table.rows(),
                    "token {token} is not in the vocabulary"
                );
                table.read_row(*token as usize, out);
                if *scale != 1.0 {
                    out.iter_mut().for_each(|value| *value *= scale);
                }
            }
        }
        Op::PositionEmbed { table, offset } => {
            let table = matrix(bundle, *table)?;
            let first = turn.cache.len() + offset;
            ensure!(
                first + rows <= table.rows(),
                "position {} has no row",
                table.rows()
            );
            for row in 0..rows {
                table.read_row(first + row, out.row(row));
            }
        }
        Op::Norm {
            kind,
            epsilon,
            group,
            weight,
            bias,
        } => {
            let x = input(node, inputs, 0)?;
            let weight = weight.map(|id| vector(bundle, id)).transpose()?;
            let bias = bias.map(|id| vector(bundle, id)).transpose()?;
            match kind {
                NormKind::Rms => kernels.norm_rms(&x, *group, weight, bias, *epsilon, out),
                NormKind::Layer => kernels.norm_layer(&x, *group, weight, bias, *epsilon, out),
            }
        }
        Op::Linear { weight, bias } => {
            let x = input(node, inputs, 0)?;
            let bias = bias.map(|id| vector(bundle, id)).transpose()?;
            kernels.matmul(&matrix(bundle, *weight)?, &x, bias, &mut turn.scratch, out);
        }
        Op::Rope { table, head_dim } => {
            let x = input(node, inputs, 0)?;
            let pairs = bundle
                .graph()
                .ropes
                .get(*table)
                .context("no rotary table")?
                .pairs;
            let tables = turn.rope(*table).context("no rotary angles")?;
            kernels.rope(&x, *head_dim, pair_layout(pairs), &tables, out);
        }
        Op::Attention {
            layer,
            heads,
            scale,
            softcap,
        } => {
            let queries = input(node, inputs, 0)?;
            turn.cache
                .write(*layer, &input(node, inputs, 1)?, &input(node, inputs, 2)?)?;
            let (kv, pages) = turn.cache.layer(*layer).context("no such layer")?;
            let options = AttentionOptions {
                kv,
                heads: *heads,
                first_position: turn.cache.len(),
                scale: *scale,
                softcap: *softcap,
                window: bundle
                    .graph()
                    .layers
                    .get(*layer)
                    .context("no such layer")?
                    .window,
            };
            kernels.attention(&options, &queries, pages, out);
        }
        Op::Gate { activation } => {
            let (gate, up) = (input(node, inputs, 0)?, input(node, inputs, 1)?);
            kernels.gate(kernel_activation(*activation), &gate, &up, out);
        }
        Op::Activate { activation } => {
            kernels.activation(
                kernel_activation(*activation),
                &input(node, inputs, 0)?,
                out,
            );
        }
        Op::Add { scale } => {
            kernels.add_scaled(
                &input(node, inputs, 0)?,
                &input(node, inputs, 1)?,
                *scale,
                out,
            );
        }
        Op::Scale { factor } => kernels.scale(*factor, &input(node, inputs, 0)?, out),
        Op::Softcap { cap } => kernels.softcap(*cap, &input(node, inputs, 0)?, out),
        Op::Round { levels } => {
            let x = input(node, inputs, 0)?;
            match levels {
                Levels::Dynamic => niwaki_kernels::round_dynamic(&x, out),
                Levels::Static {
                    scale,
                    zero_point,
                    low,
                    high,
                } => {
                    let scales = vector(bundle, *scale)?;
                    niwaki_kernels::round_static(scales, *zero_point, *low, *high, &x, out);
                }
            }
        }
        Op::LastRows => {
            let x = input(node, inputs, 0)?;
            for row in 0..rows {
                out.row(row).copy_from_slice(x.row(available - rows + row));
            }
        }
    }
    turn.values.keep(output.clone());
    Ok(output)
}

/// The columns that input `index` of `node` reads, in place.
fn input<'a>(node: &Node, inputs: &'a [TValue], index: usize) -> TractResult<Rows<'a>> {
    let Columns { offset, width, .. } = *node.inputs.get(index).context("too few inputs")?;
    let value = inputs.get(index).context("too few inputs")?;
    let &[rows, stride] = value.shape() else {
        bail!("an input of rank {}", value.rank())
    };
    let data = value.try_as_plain_ram()?.as_slice::<f32>()?;
    // No rows, no data: then there is nothing at `offset` either.
    let data = data.get(offset..).unwrap_or_default();
    ensure!(offset + width <= stride, "columns outside of the input");
    Ok(Rows::new(data, rows, stride, width))
}

fn matrix(bundle: &Bundle, id: graph::MatrixId) -> TractResult<Matrix<'_>> {
    bundle.matrix(id).context("no such matrix")
}

fn vector(bundle: &Bundle, id: VectorId) -> TractResult<&[f32]> {
    bundle.vector(id).context("no such vector")
}

fn pair_layout(pairs: graph::PairLayout) -> niwaki_kernels::PairLayout {
    match pairs {
        graph::PairLayout::Halves => niwaki_kernels::PairLayout::Halves,
        graph::PairLayout::Interleaved => niwaki_kernels::PairLayout::Interleaved,
    }
}

fn kernel_activation(activation: graph::Activation) -> niwaki_kernels::Activation {
    match activation {
        graph::Activation::Silu => niwaki_kernels::Activation::Silu,
        graph::Activation::GeluErf => niwaki_kernels::Activation::GeluErf,
        graph::Activation::GeluTanh => niwaki_kernels::Activation::GeluTanh,
        graph::Activation::GeluSigmoid => niwaki_kernels::Activation::GeluSigmoid,
        graph::Activation::Relu => niwaki_kernels::Activation::Relu,
        graph::Activation::ReluSquared => niwaki_kernels::Activation::ReluSquared,
    }
}
