//! Parts of a model taken out, so that file and time shrink in proportion: channels of the feed-forward, key/value heads with
//! their query heads, whole layers.
//!
//! - `halves`: what a lowered layer computes in parts, and the projection that reads them
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
mod refit;
mod surgery;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use configuration::Removed;

use super::PruneError;
use super::measure::{Origin, UpdatedRows, round};
use super::products::{Reads, weighted};
use crate::calibrate::{Calibration, MatrixInput, Replacements, SideBySide, stream_similarities};
use crate::lower::{Lowered, Matrix, ModelFacts, Rounding, lower};
use crate::memory::give_back_freed;
use crate::onnx::{DataType, FloatRows, OnnxModel, release_all};
use crate::plan::{LeftNode, MatrixKind, kinds};
use halves::{Half, HalfKind, halves, joint};
use layers::LayerNodes;
use niwaki_bundle::graph::{MatrixId, Op};
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
    /// Those that were not, and why.
    pub left: Vec<LeftNode>,
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
        left: fitted.left.clone(),
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

/// What goes.
struct Plan {
    halves: Vec<Half>,
    removed: Removed,
    /// Parts that stay of the halves of this kind.
    kept: Kept,
}

/// How much stays of a half.
enum Kept {
    /// So many channels of the feed-forwards, by the index of the half.
    Channels(BTreeMap<usize, usize>),
    /// So many key/value heads of every attention.
    Heads(usize),
    /// All of those that are not in layers that go: the indices of the halves that do.
    AllBut(BTreeSet<usize>),
}

impl Plan {
    fn of(
        lowered: &Lowered,
        options: &RemoveOptions<'_>,
        progress: &mut (dyn FnMut(f64) + Send),
    ) -> Result<Plan, PruneError> {
        let halves = halves(lowered);
        let of_kind = |attention: bool| -> Vec<&Half> {
            let is = |half: &&Half| matches!(half.kind, HalfKind::Attention { .. }) == attention;
            halves.iter().filter(is).collect()
        };
        let too_little = |what: &str, of: usize| PruneError::NothingPruned {
            reason: format!(
                "a share of {} is less than half {what} of {of}",
                options.share
            ),
        };
        let (removed, kept) = match options.part {
            Part::FfnChannels => {
                let before = parts_of(lowered, &of_kind(false), MatrixKind::Down)?;
                let unit = if before.is_multiple_of(CHANNELS) {
                    CHANNELS
                } else {
                    1
                };
                let layers = of_kind(false).len();
                let all = layers * (before / unit);
                let count = all - staying(all, options.share);
                if count == 0 {
                    return Err(too_little(
                        &format!("a block of {unit} channels"),
                        layers * before,
                    ));
                }
                // A layer loses at most three times its share, and never all.
                let most = (3.0 * options.share * (before / unit) as f64).ceil() as usize;
                let most = most.clamp(1, (before / unit).saturating_sub(1).max(1));
                let costs = channel_costs(
                    lowered,
                    &halves,
                    options.calibration,
                    (unit, most),
                    progress,
                )?;
                let blocks = cheapest(&costs, count);
                let kept: BTreeMap<usize, usize> = blocks
                    .into_iter()
                    .map(|(half, blocks)| (half, before - blocks * unit))
                    .collect();
                let after = kept.values().copied().collect();
                (Removed::FfnChannels { before, after }, Kept::Channels(kept))
            }
            Part::Heads => {
                let attentions = of_kind(true);
                let before = parts_of(lowered, &attentions, MatrixKind::AttentionOutput)?;
                let after = staying(before, options.share);
                if after == before {
                    return Err(too_little("a key/value head", before));
                }
                let Some(HalfKind::Attention {
                    layer,
                    query_heads_per_part,
                }) = attentions.first().map(|half| half.kind)
                else {
                    return Err(too_little("a key/value head", before));
                };
                let removed = Removed::Heads {
                    before,
                    after,
                    query_heads_each: query_heads_per_part,
                    head_dim: lowered.graph.layers[layer].head_dim,
                };
                (removed, Kept::Heads(after))
            }
            Part::Layers => {
                let stretches = stretches(lowered, &halves)?;
                let before = stretches.len();
                let count = before - staying(before, options.share);
                if count == 0 {
                    return Err(too_little("a layer", before));
                }
                let removed =
                    most_alike(lowered, options.calibration, &stretches, count, progress)?;
                let halves = removed.iter().flat_map(|layer| [2 * layer, 2 * layer + 1]);
                let kept = Kept::AllBut(halves.collect());
                (Removed::Layers { before, removed }, kept)
            }
        };
        Ok(Plan {
            halves,
            removed,
            kept,
        })
    }

    /// How many parts stay of a half; `None` where it goes with its layer.
    fn staying(&self, index: usize) -> Option<usize> {
        let half = &self.halves[index];
        match (&self.kept, half.kind) {
            (Kept::Channels(kept), HalfKind::FeedForward) => {
                Some(kept.get(&index).copied().unwrap_or(half.parts))
            }
            (Kept::Heads(kept), HalfKind::Attention { .. }) => Some(*kept),
            (Kept::AllBut(gone), _) if gone.contains(&index) => None,
            _ => Some(half.parts),
        }
    }

    /// Whether a node of the lowered graph goes with its layer.
    fn drops(&self, lowered: &Lowered, node: usize) -> bool {
        let Kept::AllBut(gone) = &self.kept else {
            return false;
        };
        gone.iter().any(|index| {
            joint(&lowered.graph.nodes, &self.halves[*index])
                .is_some_and(|(before, end)| node > before && node <= end)
        })
    }
}

fn no_parts() -> PruneError {
    PruneError::NothingPruned {
        reason:
            "it has no layers of an attention and a feed-forward with parts that can be told apart"
                .to_owned(),
    }
}

/// What stays of so many, at least one.
fn staying(count: usize, share: f64) -> usize {
    ((count as f64 * (1.0 - share)).round() as usize).clamp(1, count.max(1))
}

/// The parts of each half of a kind, which are as many in all of them.
fn parts_of(lowered: &Lowered, halves: &[&Half], kind: MatrixKind) -> Result<usize, PruneError> {
    let kinds = kinds(&lowered.graph);
    let known: BTreeSet<MatrixId> = halves.iter().map(|half| half.matrix).collect();
    let unknown = kinds
        .iter()
        .find(|(id, of)| **of == kind && !known.contains(*id));
    if let Some((id, _)) = unknown {
        let matrix = &lowered.parts.matrices[*id];
        let reason = if matrix.is_quantized() {
            "its weights are not plain floats: prune before quantizing"
        } else {
            "what it reads cannot be told apart"
        };
        return Err(CannotRemove::new(&matrix.name, reason).into());
    }
    let Some(first) = halves.first() else {
        return Err(no_parts());
    };
    if let Some(other) = halves.iter().find(|half| half.parts != first.parts) {
        let name = &lowered.parts.matrices[other.matrix].name;
        let reason = "its layer has another size than the first one";
        return Err(CannotRemove::new(name, reason).into());
    }
    Ok(first.parts)
}

/// What it costs when so many channels at a time go from a feed-forward, at most so many times, by the index of the half.
fn channel_costs(
    lowered: &Lowered,
    halves: &[Half],
    calibration: Calibration<'_>,
    (at_a_time, times): (usize, usize),
    progress: &mut (dyn FnMut(f64) + Send),
) -> Result<BTreeMap<usize, Vec<f64>>, PruneError> {
    let index_of: BTreeMap<MatrixId, usize> = halves
        .iter()
        .enumerate()
        .filter(|(_, half)| half.kind == HalfKind::FeedForward)
        .map(|(index, half)| (half.matrix, index))
        .collect();
    let matrices: BTreeSet<MatrixId> = index_of.keys().copied().collect();
    let mut all = BTreeMap::new();
    let pass = SideBySide {
        lowered,
        calibration,
        matrices: &matrices,
    };
    pass.run(
        |input, wanted| Moments::new(input, wanted, None),
        |seen| {
            for (input, moments) in seen {
                let index = index_of[&input.matrix];
                let matrix = &lowered.parts.matrices[input.matrix];
                let weights = read_finite(matrix)?;
                let costs = moments.costs(&halves[index], &weights, at_a_time, times);
                let costs = costs.ok_or_else(|| PruneError::NotPositive {
                    matrix: matrix.name.clone(),
                })?;
                all.insert(index, costs);
            }
            Ok::<_, PruneError>(Replacements::new())
        },
        &mut |share| progress(0.4 * share),
    )?;
    Ok(all)
}

/// How often channels go from each half, `count` times in all, where it costs least. `costs` are those of all times so far.
fn cheapest(costs: &BTreeMap<usize, Vec<f64>>, count: usize) -> BTreeMap<usize, usize> {
    let mut times: BTreeMap<usize, usize> = costs.keys().map(|half| (*half, 0)).collect();
    for _ in 0..count {
        let next = costs.iter().filter_map(|(half, costs)| {
            let done = times[half];
            let before = if done == 0 { 0.0 } else { costs[done - 1] };
            Some((*half, costs.get(done)? - before))
        });
        let Some((half, _)) = next.min_by(|(_, a), (_, b)| a.total_cmp(b)) else {
            break;
        };
        times.entry(half).and_modify(|times| *times += 1);
    }
    times
}

/// All weights of a matrix, row-major.
fn read_finite(matrix: &Matrix) -> Result<Vec<f32>, PruneError> {
    let (rows, columns) = (matrix.rows(), matrix.cols());
    let mut weights = vec![0.0; rows * columns];
    matrix.read(0..rows, &mut weights)?;
    matrix.release(0..rows);
    match weights.iter().position(|weight| !weight.is_finite()) {
        None => Ok(weights),
        Some(at) => Err(PruneError::NotFinite {
            matrix: matrix.name.clone(),
            row: at / columns.max(1),
        }),
    }
}

/// The stretches of the graph that layers are: an attention and a feed-forward after it, each joined to the stream.
fn stretches(lowered: &Lowered, halves: &[Half]) -> Result<Vec<(usize, usize)>, PruneError> {
    let nodes = &lowered.graph.nodes;
    let mut stretches = vec![];
    for pair in halves.chunks(2) {
        let (
            [
                first @ Half {
                    kind: HalfKind::Attention { .. },
                    ..
                },
                last @ Half {
                    kind: HalfKind::FeedForward,
                    ..
                },
            ],
            reader,
        ) = (pair, &nodes[pair[0].reader])
        else {
            let name = &nodes[pair[0].reader].name;
            let reason = "its layer is not an attention and a feed-forward after it";
            return Err(CannotRemove::new(name, reason).into());
        };
        for half in pair {
            if let Op::Linear { bias: Some(_), .. } = nodes[half.reader].op {
                let reason = "it adds a bias, which would have to go with the layer";
                return Err(CannotRemove::new(&nodes[half.reader].name, reason).into());
            }
        }
        match (joint(nodes, first), joint(nodes, last)) {
            (Some((before, middle)), Some((between, end))) if between == middle => {
                stretches.push((before, end));
            }
            _ => {
                let reason = "it does not join the stream in a way that is known";
                return Err(CannotRemove::new(&reader.name, reason).into());
            }
        }
    }
    if stretches.len() != lowered.graph.layers.len() {
        return Err(no_parts());
    }
    Ok(stretches)
}

/// The layers that change the stream least.
fn most_alike(
    lowered: &Lowered,
    calibration: Calibration<'_>,
    stretches: &[(usize, usize)],
    count: usize,
    progress: &mut (dyn FnMut(f64) + Send),
) -> Result<Vec<usize>, PruneError> {
    let similarities = stream_similarities(lowered, calibration, stretches, &mut |share| {
        progress(share / 4.0)
    })?;
    let mut order: Vec<usize> = (0..stretches.len()).collect();
    let similarity = |layer: usize| similarities[layer].unwrap_or(f64::NEG_INFINITY);
    order.sort_by(|a, b| similarity(*b).total_cmp(&similarity(*a)).then(a.cmp(b)));
    order.truncate(count);
    order.sort_unstable();
    Ok(order)
}

/// What was fitted.
struct Fitted {
    /// New weights of readers, with zeros where they read what goes, by the index of the half.
    rows: BTreeMap<usize, UpdatedRows>,
    /// Parts that stay, by the index of the half; all of them where nothing is said.
    kept: BTreeMap<usize, Vec<usize>>,
    left: Vec<LeftNode>,
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
        left: vec![],
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
