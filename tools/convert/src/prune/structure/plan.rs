//! What goes: how much of which half, or which layers.

use super::halves::{Half, HalfKind, halves, joint};
use super::refit::Moments;
use super::{CHANNELS, CannotRemove, Part, RemoveOptions, Removed};
use crate::calibrate::{Calibration, Replacements, SideBySide, stream_similarities};
use crate::lower::{Lowered, Matrix};
use crate::onnx::FloatRows;
use crate::plan::{MatrixKind, kinds};
use crate::prune::PruneError;
use niwaki_bundle::graph::{MatrixId, Op};
use std::collections::{BTreeMap, BTreeSet};

/// What goes.
pub(super) struct Plan {
    pub(super) halves: Vec<Half>,
    pub(super) removed: Removed,
    /// Parts that stay of the halves of this kind.
    pub(super) kept: Kept,
}

/// How much stays of a half.
pub(super) enum Kept {
    /// So many channels of the feed-forwards, by the index of the half.
    Channels(BTreeMap<usize, usize>),
    /// So many key/value heads of every attention.
    Heads(usize),
    /// All of those that are not in layers that go: the indices of the halves that do.
    AllBut(BTreeSet<usize>),
}

impl Plan {
    pub(super) fn of(
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
    pub(super) fn staying(&self, index: usize) -> Option<usize> {
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
    pub(super) fn drops(&self, lowered: &Lowered, node: usize) -> bool {
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
pub(super) fn cheapest(costs: &BTreeMap<usize, Vec<f64>>, count: usize) -> BTreeMap<usize, usize> {
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
pub(super) fn read_finite(matrix: &Matrix) -> Result<Vec<f32>, PruneError> {
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
