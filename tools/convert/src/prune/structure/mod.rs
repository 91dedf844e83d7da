//! Parts of a model taken out, so that file and time shrink in proportion: channels of the feed-forward, key/value heads with
//! their query heads, whole layers.
//!
//! - `halves`: what a lowered layer computes in parts, and the projection that reads them; `plan`: how many of them go
//! - `choice`: which parts go; `refit`: the projection fitted to do without
//! - `surgery`: rows and columns taken out of the ONNX tensors, `layers`: whole layers out of the graph
//! - `check`: what came out lowers to what was meant; `configuration`: what `config.json` says of it
//!
//! The text goes through the model as it is and, beside it, as it becomes. In each layer the projections that join the
//! stream, of attention and of the feed-forward, are fitted by least squares to what the stream lacks there: what the parts
//! that went would have given, and what was lost before.

mod check;
mod choice;
mod configuration;
mod halves;
mod layers;
mod plan;
mod refit;
mod surgery;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use configuration::Removed;

use super::PruneError;
use super::measure::{UpdatedRows, round};
use super::products::{Reads, weighted};
use crate::calibrate::{Calibration, MatrixInput, Origin, Replacements, SideBySide};
use crate::lower::{Lowered, ModelFacts, Rounding, lower};
use crate::memory::give_back_freed;
use crate::onnx::{DataType, FloatRows, OnnxModel, release_all};
use crate::plan::kinds;
use layers::LayerNodes;
use niwaki_bundle::graph::{MatrixId, Op};
use plan::{Kept, Plan, read_finite};
use refit::{Fit, Moments};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use surgery::Cuts;

/// Channels stay in multiples of this, which blocks of quantized weights fill.
const CHANNELS: usize = 32;

/// What is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Channels of the feed-forward: more in layers where they matter less.
    FfnChannels,
    /// Key/value heads with the query heads that read them: as many in every layer.
    Heads,
    /// Layers: those whose output is most like their input (Men et al., 2024).
    Layers,
}

/// What to take out, and how much of it.
#[derive(Clone, Debug)]
pub struct RemoveOptions<'a> {
    /// What.
    pub part: Part,
    /// Which share of it, above 0 and below 1.
    pub share: f64,
    /// The text on which importance is measured and what stays is fitted.
    pub calibration: Calibration<'a>,
}

/// What was done to a model.
#[derive(Clone, Debug, Serialize)]
pub struct RemoveReport {
    /// The parts that went.
    pub removed: Removed,
    /// Weights of the projections inside the layers before.
    pub weights_before: u64,
    /// And after.
    pub weights_after: u64,
    /// Projections that were fitted to what stayed.
    pub fitted: usize,
}

/// An export is not of a form that can be rewritten.
#[derive(Debug, thiserror::Error)]
#[error("{node}: {reason}")]
pub struct CannotRemove {
    node: String,
    reason: String,
}

impl CannotRemove {
    fn new(node: &str, reason: &str) -> CannotRemove {
        CannotRemove {
            node: node.to_owned(),
            reason: reason.to_owned(),
        }
    }
}

/// Takes parts out of a decoder and fits what stays. `progress` is told the share that is done.
///
/// The graph keeps its form, tensors keep their types. Exports whose graph holds the sizes of what goes in a way that is not
/// known are refused, and so is a result that does not lower to what was meant.
///
/// # Errors
/// When the model does not lower, is not of a form that can be rewritten, nothing would go, or the text does not run.
pub fn remove_parts(
    model: &OnnxModel,
    facts: &ModelFacts,
    options: &RemoveOptions<'_>,
    progress: &mut (dyn FnMut(f64) + Send),
) -> Result<(OnnxModel, RemoveReport), PruneError> {
    let share = options.share;
    // Not a number is no share either.
    if !(share > 0.0 && share < 1.0) {
        return Err(PruneError::Sparsity(share));
    }
    let mut inlined = model.derive(model.proto().clone())?;
    inlined.inline_functions()?;
    let lowered = lower(&inlined, facts, Rounding::Niwaki)?;
    release_all();
    give_back_freed();
    let plan = Plan::of(&lowered, options, progress)?;
    let stored = stored_types(&inlined)?;
    let fitted = fit(&lowered, &plan, options.calibration, &stored, progress)?;
    let cut = rewrite(&inlined, &lowered, &plan, &fitted)?;
    let mut new_facts = facts.clone();
    if let Removed::Heads { after, .. } = plan.removed {
        new_facts.kv_heads = new_facts.kv_heads.map(|_| after);
    }
    check::check(&cut, &new_facts, &lowered, &plan, &fitted)?;
    let after = lower(&cut, &new_facts, Rounding::Niwaki)?;
    let report = RemoveReport {
        removed: plan.removed.clone(),
        weights_before: weights(&lowered),
        weights_after: weights(&after),
        fitted: fitted.rows.len(),
    };
    Ok((cut, report))
}

/// Weights of the projections inside the layers.
fn weights(lowered: &Lowered) -> u64 {
    let inside = kinds(&lowered.graph)
        .into_iter()
        .filter(|(_, kind)| kind.is_inside_layers());
    inside
        .map(|(id, _)| {
            let matrix = &lowered.parts.matrices[id];
            (matrix.rows() * matrix.cols()) as u64
        })
        .sum()
}

/// The types in which the tensors are stored that nodes multiply by.
fn stored_types(model: &OnnxModel) -> Result<BTreeMap<String, DataType>, PruneError> {
    let products = weighted(model)?.into_iter();
    Ok(products
        .filter_map(|weighted| match weighted.reads {
            Reads::Product(rows) => Some((
                weighted.node.name_or_output().to_owned(),
                rows.matrix.stored().data_type,
            )),
            _ => None,
        })
        .collect())
}

/// What was fitted.
struct Fitted {
    /// New weights of readers, with zeros where they read what goes, by the index of the half.
    rows: BTreeMap<usize, UpdatedRows>,
    /// Parts that stay, by the index of the half; all of them where nothing is said.
    kept: BTreeMap<usize, Vec<usize>>,
}

/// Chooses the parts that go and fits what reads the others, layer by layer.
fn fit(
    lowered: &Lowered,
    plan: &Plan,
    calibration: Calibration<'_>,
    stored: &BTreeMap<String, DataType>,
    progress: &mut (dyn FnMut(f64) + Send),
) -> Result<Fitted, PruneError> {
    let halves = &plan.halves;
    let matrices: BTreeSet<MatrixId> = halves.iter().map(|half| half.matrix).collect();
    let index_of: BTreeMap<MatrixId, usize> = halves
        .iter()
        .enumerate()
        .map(|(index, half)| (half.matrix, index))
        .collect();
    let mut fitted = Fitted {
        rows: BTreeMap::new(),
        kept: BTreeMap::new(),
    };
    let bias = |input: MatrixInput| {
        let half = &halves[index_of[&input.matrix]];
        let Op::Linear {
            bias: Some(bias), ..
        } = lowered.graph.nodes[half.reader].op
        else {
            return None;
        };
        Some(lowered.parts.vectors[bias].1.clone())
    };
    let pass = SideBySide {
        lowered,
        calibration,
        matrices: &matrices,
    };
    pass.run(
        |input, wanted| Moments::new(input, wanted, bias(input)),
        |seen| {
            let mut replacements = Replacements::new();
            for (input, moments) in seen {
                let index = index_of[&input.matrix];
                let half = &halves[index];
                let matrix = &lowered.parts.matrices[half.matrix];
                let columns = matrix.cols();
                let mut weights = read_finite(matrix)?;
                let Some(staying) = plan.staying(index) else {
                    let nothing =
                        UpdatedRows::of(&matrix.name, columns, &vec![0.0; weights.len()])?;
                    replacements.insert(half.matrix, Box::new(nothing) as Box<dyn FloatRows>);
                    continue;
                };
                let Some(Fit {
                    parts: kept,
                    weights: new,
                }) = moments.fit(half, &weights, staying)
                else {
                    return Err(PruneError::NotPositive {
                        matrix: matrix.name.clone(),
                    });
                };
                let kept_columns = half.columns_of(&kept);
                weights.fill(0.0);
                for (row, new) in weights
                    .chunks_mut(columns.max(1))
                    .zip(new.chunks(kept_columns.len().max(1)))
                {
                    for (column, value) in kept_columns.iter().zip(new) {
                        row[*column] = *value;
                    }
                }
                let node = &lowered.graph.nodes[half.reader].name;
                let data_type = stored.get(node).copied().unwrap_or(DataType::Float);
                round(&mut weights, data_type);
                let rows = UpdatedRows::of(&matrix.name, columns, &weights)?;
                replacements.insert(half.matrix, Box::new(rows.clone()));
                fitted.rows.insert(index, rows);
                fitted.kept.insert(index, kept);
            }
            Ok(replacements)
        },
        &mut |share| match plan.kept {
            Kept::AllBut(_) => progress((1.0 + 3.0 * share) / 4.0),
            Kept::Channels(_) => progress(0.4 + 0.6 * share),
            Kept::Heads(_) => progress(share),
        },
    )?;
    Ok(fitted)
}

/// Rows of the lowered projections that go, by their nodes.
fn rows_that_go(plan: &Plan, fitted: &Fitted) -> BTreeMap<usize, BTreeSet<usize>> {
    let mut gone: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for (index, half) in plan.halves.iter().enumerate() {
        let Some(kept) = fitted.kept.get(&index) else {
            continue;
        };
        for part in (0..half.parts).filter(|part| !kept.contains(part)) {
            for source in &half.sources {
                let first = source.first_row + part * source.rows_per_part;
                gone.entry(source.node)
                    .or_default()
                    .extend(first..first + source.rows_per_part);
            }
        }
    }
    gone
}

/// The ONNX model without what goes.
fn rewrite(
    model: &OnnxModel,
    lowered: &Lowered,
    plan: &Plan,
    fitted: &Fitted,
) -> Result<OnnxModel, PruneError> {
    let nodes = &lowered.graph.nodes;
    let mut cuts = Cuts::default();
    for (node, gone) in rows_that_go(plan, fitted) {
        let Op::Linear { weight, .. } = nodes[node].op else {
            continue;
        };
        let matrix = &lowered.parts.matrices[weight];
        for origin in Origin::of(&nodes[node].name, matrix) {
            let rows = origin.rows;
            let kept = rows.clone().filter(|row| !gone.contains(row));
            let kept: Vec<usize> = kept.map(|row| row - rows.start).collect();
            if kept.len() < rows.len() {
                cuts.rows.insert(origin.node, kept);
            }
        }
    }
    for (index, rows) in &fitted.rows {
        let half = &plan.halves[*index];
        let columns = half.columns_of(&fitted.kept[index]);
        let name = nodes[half.reader].name.clone();
        cuts.columns.insert(name, (columns, rows));
    }
    let cut = surgery::cut(model, &cuts)?;
    let (Kept::AllBut(_), Removed::Layers { removed, .. }) = (&plan.kept, &plan.removed) else {
        return Ok(cut);
    };
    let name = |half: usize| nodes[plan.halves[half].reader].name.clone();
    let layers: Vec<LayerNodes> = removed
        .iter()
        .map(|layer| LayerNodes {
            first: name(2 * layer),
            last: name(2 * layer + 1),
        })
        .collect();
    layers::drop_layers(&cut, &layers, &removed.iter().copied().collect())
}
