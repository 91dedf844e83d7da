//! What each graph operator does, in terms of the kernels.

use super::plan::Shared;
use super::steps::{Step, Sum};
use super::turn::Turn;
use super::value_pool::Slot;
use super::weights::Weights;
use niwaki_bundle::graph::{
    self, Columns, Graph, Levels, Node, NormKind, Op, Pooling, RowSet, VectorId,
};
use niwaki_kernels::{
    AttentionOptions, MatmulInput, Matrix, Norm, Residual, Rows, RowsMut, mean_row,
};
use tract_core::internal::*;

/// Computes the value of `step`: the first columns of the tensor of its slot.
pub(super) fn compute(
    step: &Step,
    slot: Slot,
    kind: RowSet,
    model: &Shared,
    turn: &mut Turn,
    inputs: &[TValue],
) -> TractResult<Arc<Tensor>> {
    let Shared {
        graph,
        weights,
        kernels,
    } = model;
    let node = node_of(graph, step.node)?;
    let rows = turn.rows().of(kind);
    let mut output = turn.values.take(slot, rows)?;
    let mut view = Arc::get_mut(&mut output)
        .context("a value in use")?
        .try_as_plain_ram_mut()?;
    ensure!(node.width <= slot.columns, "a value wider than its slot");
    let mut out = RowsMut::new(view.as_slice_mut::<f32>()?, rows, slot.columns, node.width);
    let out = &mut out;
    match &node.op {
        Op::Embed { table, scale, .. } => {
            let ids = inputs
                .first()
                .context("no ids")?
                .try_as_plain_ram()?
                .as_slice::<u32>()?;
            let table = matrix(weights, *table)?;
            for (row, id) in ids.iter().enumerate() {
                let out = out.row(row);
                ensure!(
                    (*id as usize) < table.rows(),
                    "id {id} has no row in its table"
                );
                table.read_row(*id as usize, out);
                if *scale != 1.0 {
                    out.iter_mut().for_each(|value| *value *= scale);
                }
            }
        }
        Op::Rows { .. } => bail!("rows that are given are not computed"),
        Op::PositionEmbed { table, offset } => {
            let table = matrix(weights, *table)?;
            for sequence in &turn.sequences {
                let first = sequence.cache.len() + offset;
                ensure!(
                    first + sequence.rows.len() <= table.rows(),
                    "position {} has no row",
                    table.rows()
                );
                for (position, row) in (first..).zip(sequence.rows.clone()) {
                    table.read_row(position, out.row(row));
                }
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
            let weight = optional_vector(weights, *weight)?;
            let bias = optional_vector(weights, *bias)?;
            match kind {
                NormKind::Rms => kernels.norm_rms(&x, *group, weight, bias, *epsilon, out),
                NormKind::Layer => kernels.norm_layer(&x, *group, weight, bias, *epsilon, out),
            }
        }
        Op::Linear { weight, bias } => {
            let matrix = matrix(weights, *weight)?;
            let bias = optional_vector(weights, *bias)?;
            let residual = step.sum.map(|sum| residual(&sum, inputs)).transpose()?;
            let residual = residual.as_ref().map(|(rows, scale)| Residual {
                rows,
                scale: *scale,
            });
            if matrix.format().is_quantized() {
                quantize(step, node, matrix.refined(), model, turn, inputs)?;
                let x = MatmulInput::Quantized(&turn.quantized);
                kernels.matmul_add(&matrix, x, bias, residual, out);
            } else {
                let x = input(node, inputs, 0)?;
                kernels.matmul_add(&matrix, MatmulInput::Float(&x), bias, residual, out);
            }
        }
        Op::Rope { table, head_dim } => {
            let x = input(node, inputs, 0)?;
            let pairs = graph.ropes.get(*table).context("no rotary table")?.pairs;
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
            let state = graph.layers.get(*layer).context("no such layer")?;
            let scratch = &mut turn.attention;
            for sequence in &mut turn.sequences {
                let rows = sequence.rows.clone();
                let cache = &mut sequence.cache;
                let (keys, values) = (keys.part(rows.clone()), values.part(rows.clone()));
                cache.write(kernels, *layer, &keys, &values)?;
                let (kv, pages) = cache.layer(*layer).context("no such layer")?;
                let options = AttentionOptions {
                    kv,
                    heads: *heads,
                    first_position: cache.len(),
                    scale: *scale,
                    softcap: *softcap,
                    window: state.window,
                    whole: (!state.causal).then_some(cache.len() + rows.len()),
                };
                let queries = queries.part(rows.clone());
                kernels.attention(&options, &queries, pages, scratch, &mut out.part(rows));
            }
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
                // Each sequence is a call of its own.
                Levels::Dynamic => {
                    for rows in turn.ranges(kind) {
                        let x = x.part(rows.clone());
                        niwaki_kernels::round_dynamic(&x, &mut out.part(rows));
                    }
                }
                Levels::Static {
                    scale,
                    zero_point,
                    low,
                    high,
                } => {
                    let scales = vector(weights, *scale)?;
                    niwaki_kernels::round_static(scales, *zero_point, *low, *high, &x, out);
                }
            }
        }
        Op::LastRows => {
            let x = input(node, inputs, 0)?;
            let mut row = 0;
            for sequence in &turn.sequences {
                let last = sequence.rows.clone().rev().take(sequence.wanted).rev();
                for from in last {
                    out.row(row).copy_from_slice(x.row(from));
                    row += 1;
                }
            }
        }
        Op::Pool { pooling } => {
            let x = input(node, inputs, 0)?;
            for (row, sequence) in turn.sequences.iter().enumerate() {
                let rows = x.part(sequence.rows.clone());
                let one = match pooling {
                    Pooling::Mean => {
                        mean_row(&rows, out.row(row));
                        continue;
                    }
                    Pooling::First => 0,
                    Pooling::Last => rows.rows().saturating_sub(1),
                };
                ensure!(one < rows.rows(), "a sequence without rows");
                out.row(row).copy_from_slice(rows.row(one));
            }
        }
    }
    turn.values.keep(slot, output.clone());
    Ok(output)
}

/// Quantizes the input of the matrix product `node`, `refined` blocks of it in two terms, if the product before did not
/// read the same.
fn quantize(
    step: &Step,
    node: &Node,
    refined: usize,
    model: &Shared,
    turn: &mut Turn,
    inputs: &[TValue],
) -> TractResult<()> {
    let Shared {
        graph,
        weights,
        kernels,
    } = model;
    let wanted = node.inputs.first().map(|columns| (*columns, refined));
    if wanted.is_some() && turn.quantized_input == wanted {
        return Ok(());
    }
    turn.quantized_input = None;
    let out = &mut turn.quantized;
    let source = step.source.map(|id| node_of(graph, id)).transpose()?;
    match source.map(|source| (source, &source.op)) {
        None => kernels.quantize(&input(node, inputs, 0)?, refined, out),
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
            let weight = optional_vector(weights, *weight)?;
            let bias = optional_vector(weights, *bias)?;
            kernels.quantize_norm(norm, &x, weight, bias, *epsilon, refined, out);
        }
        Some((source, Op::Gate { activation })) => {
            let (gate, up) = (input(source, inputs, 0)?, input(source, inputs, 1)?);
            kernels.quantize_gate(kernel_activation(*activation), &gate, &up, refined, out);
        }
        Some((_, op)) => bail!("{op:?} is not quantized as it is computed"),
    }
    turn.quantized_input = wanted;
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

fn matrix(weights: &Weights, id: graph::MatrixId) -> TractResult<Matrix<'_>> {
    weights.matrix(id).context("no such matrix")
}

fn vector(weights: &Weights, id: VectorId) -> TractResult<&[f32]> {
    weights.vector(id).context("no such vector")
}

fn optional_vector(weights: &Weights, id: Option<VectorId>) -> TractResult<Option<&[f32]>> {
    id.map(|id| vector(weights, id)).transpose()
}

fn node_of(graph: &Graph, id: usize) -> TractResult<&Node> {
    graph.nodes.get(id).context("no such node")
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
