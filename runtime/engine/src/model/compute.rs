//! What each graph operator does, in terms of the kernels.

use super::steps::{Step, Sum};
use super::turn::Turn;
use super::value_pool::Slot;
use niwaki_bundle::Bundle;
use niwaki_bundle::graph::{self, Columns, Levels, Node, NormKind, Op, VectorId};
use niwaki_kernels::{
    AttentionOptions, Kernels, MatmulInput, Matrix, Norm, Residual, Rows, RowsMut,
};
use tract_core::internal::*;

/// Computes the value of `step`: the first columns of the tensor of its slot.
pub(super) fn compute(
    step: &Step,
    slot: Slot,
    bundle: &Bundle,
    kernels: &Kernels,
    turn: &mut Turn,
    inputs: &[TValue],
) -> TractResult<Arc<Tensor>> {
    let node = node_of(bundle, step.node)?;
    let available = inputs
        .first()
        .and_then(|input| input.shape().first())
        .copied()
        .context("no input")?;
    let rows = match node.op {
        Op::LastRows => turn.wanted_rows.min(available),
        _ => available,
    };
    let mut output = turn.values.take(slot, rows)?;
    let mut view = Arc::get_mut(&mut output)
        .context("a value in use")?
        .try_as_plain_ram_mut()?;
    ensure!(node.width <= slot.columns, "a value wider than its slot");
    let mut out = RowsMut::new(view.as_slice_mut::<f32>()?, rows, slot.columns, node.width);
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
            let weight = optional_vector(bundle, *weight)?;
            let bias = optional_vector(bundle, *bias)?;
            match kind {
                NormKind::Rms => kernels.norm_rms(&x, *group, weight, bias, *epsilon, out),
                NormKind::Layer => kernels.norm_layer(&x, *group, weight, bias, *epsilon, out),
            }
        }
        Op::Linear { weight, bias } => {
            let matrix = matrix(bundle, *weight)?;
            let bias = optional_vector(bundle, *bias)?;
            let residual = step.sum.map(|sum| residual(&sum, inputs)).transpose()?;
            let residual = residual.as_ref().map(|(rows, scale)| Residual {
                rows,
                scale: *scale,
            });
            if matrix.format().is_quantized() {
                quantize(step, node, bundle, kernels, turn, inputs)?;
                let x = MatmulInput::Quantized(&turn.quantized);
                kernels.matmul_add(&matrix, x, bias, residual, out);
            } else {
                let x = input(node, inputs, 0)?;
                kernels.matmul_add(&matrix, MatmulInput::Float(&x), bias, residual, out);
            }
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
            let (keys, values) = (input(node, inputs, 1)?, input(node, inputs, 2)?);
            turn.cache.write(kernels, *layer, &keys, &values)?;
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
            kernels.attention(&options, &queries, pages, &mut turn.attention, out);
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
    turn.values.keep(slot, output.clone());
    Ok(output)
}

/// Quantizes the input of the matrix product `node`, if the product before did not read the same.
fn quantize(
    step: &Step,
    node: &Node,
    bundle: &Bundle,
    kernels: &Kernels,
    turn: &mut Turn,
    inputs: &[TValue],
) -> TractResult<()> {
    let columns = node.inputs.first().copied();
    if columns.is_some() && turn.quantized_columns == columns {
        return Ok(());
    }
    turn.quantized_columns = None;
    let out = &mut turn.quantized;
    let source = step.source.map(|id| node_of(bundle, id)).transpose()?;
    match source.map(|source| (source, &source.op)) {
        None => kernels.quantize(&input(node, inputs, 0)?, out),
        Some((
            source,
            Op::Norm {
                kind,
                epsilon,
                weight,
                bias,
                ..
            },
        )) => {
            let norm = match kind {
                NormKind::Rms => Norm::Rms,
                NormKind::Layer => Norm::Layer,
            };
            let x = input(source, inputs, 0)?;
            let weight = optional_vector(bundle, *weight)?;
            let bias = optional_vector(bundle, *bias)?;
            kernels.quantize_norm(norm, &x, weight, bias, *epsilon, out);
        }
        Some((source, Op::Gate { activation })) => {
            let (gate, up) = (input(source, inputs, 0)?, input(source, inputs, 1)?);
            kernels.quantize_gate(kernel_activation(*activation), &gate, &up, out);
        }
        Some((_, op)) => bail!("{op:?} is not quantized as it is computed"),
    }
    turn.quantized_columns = columns;
    Ok(())
}

/// What a product is added to, the last input of its step, and the factor on the product.
fn residual<'a>(sum: &Sum, inputs: &'a [TValue]) -> TractResult<(Rows<'a>, f32)> {
    let value = inputs.last().context("too few inputs")?;
    Ok((columns(value, &sum.residual)?, sum.scale))
}

/// The columns that input `index` of `node` reads, in place.
fn input<'a>(node: &Node, inputs: &'a [TValue], index: usize) -> TractResult<Rows<'a>> {
    let wanted = node.inputs.get(index).context("too few inputs")?;
    columns(inputs.get(index).context("too few inputs")?, wanted)
}

fn columns<'a>(value: &'a TValue, columns: &Columns) -> TractResult<Rows<'a>> {
    let Columns { offset, width, .. } = *columns;
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

fn optional_vector(bundle: &Bundle, id: Option<VectorId>) -> TractResult<Option<&[f32]>> {
    id.map(|id| vector(bundle, id)).transpose()
}

fn node_of(bundle: &Bundle, id: usize) -> TractResult<&Node> {
    bundle.graph().nodes.get(id).context("no such node")
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
