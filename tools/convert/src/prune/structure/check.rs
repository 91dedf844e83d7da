//! Whether a rewritten model lowers to what was meant.

use super::plan::{Kept, Plan};
use super::{CannotRemove, Fitted, rows_that_go};
use crate::lower::{Lowered, ModelFacts, Rounding, lower};
use crate::onnx::{FloatRows, OnnxModel};
use crate::prune::PruneError;
use niwaki_bundle::graph::{Node, Op};
use std::collections::BTreeSet;
use std::mem::discriminant;

/// Compares every projection and every attention of the rewritten model with what should have become of it.
pub(super) fn check(
    model: &OnnxModel,
    facts: &ModelFacts,
    before: &Lowered,
    plan: &Plan,
    fitted: &Fitted,
) -> Result<(), PruneError> {
    let after = lower(model, facts, Rounding::Niwaki).map_err(PruneError::Rewritten)?;
    let wrong = |node: &str, reason: &str| Err(CannotRemove::new(node, reason).into());
    let stays =
        |(id, node): &(usize, &Node)| !plan.drops(before, *id) && !matches!(node.op, Op::LastRows);
    let olds: Vec<(usize, &Node)> = before
        .graph
        .nodes
        .iter()
        .enumerate()
        .filter(stays)
        .collect();
    let news: Vec<&Node> = after
        .graph
        .nodes
        .iter()
        .filter(|node| !matches!(node.op, Op::LastRows))
        .collect();
    if olds.len() != news.len() {
        return wrong("the graph", "what was cut changes what the others compute");
    }
    let gone = rows_that_go(plan, fitted);
    let none = BTreeSet::new();
    for ((id, old), new) in olds.iter().zip(news) {
        if discriminant(&old.op) != discriminant(&new.op) {
            return wrong(&old.name, "what was cut changes what it computes");
        }
        match (&old.op, &new.op) {
            (
                Op::Linear {
                    weight: old_weight,
                    bias: old_bias,
                },
                Op::Linear { weight, bias },
            ) => {
                let gone = gone.get(id).unwrap_or(&none);
                let old_matrix = &before.parts.matrices[*old_weight];
                let rows: Vec<usize> = (0..old_matrix.rows())
                    .filter(|row| !gone.contains(row))
                    .collect();
                let half = plan.halves.iter().position(|half| half.reader == *id);
                let half = half.filter(|half| fitted.rows.contains_key(half));
                let (expected, columns): (&dyn FloatRows, Vec<usize>) = match half {
                    None => (old_matrix, (0..old_matrix.cols()).collect()),
                    Some(index) => (
                        &fitted.rows[&index],
                        plan.halves[index].columns_of(&fitted.kept[&index]),
                    ),
                };
                let matrix = &after.parts.matrices[*weight];
                if !holds(matrix, expected, &rows, &columns)? {
                    return wrong(&old.name, "its weights do not become what they should");
                }
                let of = |lowered: &Lowered, bias: &Option<usize>| {
                    bias.map(|bias| lowered.parts.vectors[bias].1.clone())
                };
                let expected = of(before, old_bias)
                    .map(|bias| rows.iter().map(|row| bias[*row]).collect::<Vec<f32>>());
                if expected != of(&after, bias) {
                    return wrong(&old.name, "its bias does not become what it should");
                }
            }
            (
                Op::Attention {
                    heads: old_heads,
                    scale: old_scale,
                    layer: old_layer,
                    ..
                },
                Op::Attention {
                    heads,
                    scale,
                    layer,
                    ..
                },
            ) => {
                let (old_kv, kv) = (before.graph.layers[*old_layer], after.graph.layers[*layer]);
                let kept = match plan.kept {
                    Kept::Heads(kept) => kept,
                    _ => old_kv.kv_heads,
                };
                let each = old_heads / old_kv.kv_heads.max(1);
                if (*heads, kv.kv_heads, kv.head_dim) != (kept * each, kept, old_kv.head_dim)
                    || scale != old_scale
                    || kv.window != old_kv.window
                {
                    return wrong(&old.name, "its heads do not become what they should");
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a matrix is these rows and columns of another.
fn holds(
    matrix: &dyn FloatRows,
    of: &dyn FloatRows,
    rows: &[usize],
    columns: &[usize],
) -> Result<bool, PruneError> {
    if (matrix.rows(), matrix.columns()) != (rows.len(), columns.len()) {
        return Ok(false);
    }
    let (mut held, mut expected) = (vec![0.0f32; columns.len()], vec![0.0f32; of.columns()]);
    for (index, row) in rows.iter().enumerate() {
        matrix.read(index..index + 1, &mut held)?;
        of.read(*row..row + 1, &mut expected)?;
        let mut pairs = held.iter().zip(columns);
        if !pairs.all(|(held, column)| held.to_bits() == expected[*column].to_bits()) {
            return Ok(false);
        }
    }
    matrix.release(0..matrix.rows());
    of.release(0..of.rows());
    Ok(true)
}
