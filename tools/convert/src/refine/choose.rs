//! The order of channels, and how many blocks of an input get a second term.

use super::Refined;
use super::inputs::{Input, square_sums};
use super::reorder::Orders;
use super::spaces::SpaceId;
use crate::lower::Lowered;
use niwaki_bundle::graph::{MatrixId, Op};
use niwaki_kernels::{ACTIVATION_BLOCK, MAX_REFINED};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// From which multiple of the root mean square of all channels on a channel is an outlier. In SmolLM2-135M five of 576 are
/// above, the largest ten times as large as the mean; moving 32 in place of those changed nothing for activations.
const OUTLIER: f64 = 2.0;

/// Multiply-adds of a token that goes through all matrices.
pub(super) fn multiply_adds(lowered: &Lowered) -> f64 {
    let matrices = &lowered.parts.matrices;
    let nodes = lowered.graph.nodes.iter();
    nodes
        .filter_map(|node| match node.op {
            Op::Linear { weight, .. } => matrices.get(weight),
            _ => None,
        })
        .map(|matrix| matrix.rows() as f64 * matrix.cols() as f64)
        .sum()
}

/// How much more arithmetic second terms are: multiply-adds of a token that they take, as a share of those that it takes anyway.
pub(super) fn share(lowered: &Lowered, refined: &Refined) -> f64 {
    let matrices = &lowered.parts.matrices;
    let nodes = lowered.graph.nodes.iter();
    let second_terms: f64 = nodes
        .filter_map(|node| match node.op {
            Op::Linear { weight, .. } => Some((matrices.get(weight)?, refined.get(&weight)?)),
            _ => None,
        })
        .map(|(matrix, blocks)| (matrix.rows() * blocks * ACTIVATION_BLOCK) as f64)
        .sum();
    second_terms / multiply_adds(lowered).max(1.0)
}

/// For each space, its channels in a new order: outliers first. The inputs follow. Where a matrix `in_blocks` reads them,
/// they move with their whole block.
pub(super) fn orders(inputs: &mut [Input], in_blocks: &BTreeSet<MatrixId>) -> Orders {
    let mut sizes: BTreeMap<SpaceId, Vec<Vec<f64>>> = BTreeMap::new();
    let mut units: BTreeMap<SpaceId, usize> = BTreeMap::new();
    for input in inputs.iter() {
        let sizes = sizes.entry(input.space).or_default();
        sizes.push(relative_sizes(input));
        let unit = units.entry(input.space).or_insert(1);
        if input.matrices.iter().any(|id| in_blocks.contains(id)) {
            *unit = ACTIVATION_BLOCK;
        }
    }
    let orders: Orders = sizes
        .into_iter()
        .map(|(space, sizes)| (space, outliers_first(&means(&sizes), units[&space])))
        .collect();
    for input in inputs {
        let order = &orders[&input.space];
        let before = std::mem::take(&mut input.rows);
        let rows = before.chunks_exact(input.columns.max(1));
        input.rows = rows
            .flat_map(|row| order.iter().map(|from| row[*from]))
            .collect();
        input.weights = order.iter().map(|from| input.weights[*from]).collect();
    }
    orders
}

/// The root mean square of each column, as a multiple of that of all of them.
fn relative_sizes(input: &Input) -> Vec<f64> {
    let squares = square_sums(&input.rows, input.columns);
    let mean = squares.iter().sum::<f64>() / input.columns.max(1) as f64;
    let relative = |square: &f64| {
        if mean > 0.0 {
            (square / mean).sqrt()
        } else {
            0.0
        }
    };
    squares.iter().map(relative).collect()
}

/// Column by column, the means of lists that are equally long.
fn means(lists: &[Vec<f64>]) -> Vec<f64> {
    let columns = lists.first().map_or(0, Vec::len);
    let mean = |at| lists.iter().map(|list: &Vec<f64>| list[at]).sum::<f64>() / lists.len() as f64;
    (0..columns).map(mean).collect()
}

/// Outliers, or units of channels with one, change places with the first; all others stay where they are. In the order that
/// channels end in, where each was.
fn outliers_first(sizes: &[f64], unit: usize) -> Arc<[usize]> {
    let units: Vec<f64> = sizes
        .chunks_exact(unit)
        .map(|unit| unit.iter().copied().fold(0.0, f64::max))
        .collect();
    let mut outliers: Vec<usize> = (0..units.len())
        .filter(|at| units[*at] >= OUTLIER)
        .collect();
    outliers.sort_by(|a, b| units[*b].total_cmp(&units[*a]).then(a.cmp(b)));
    outliers.truncate(MAX_REFINED * ACTIVATION_BLOCK / unit);
    let mut order: Vec<usize> = (0..units.len()).collect();
    let mut place_of = order.clone();
    for (place, outlier) in outliers.iter().copied().enumerate() {
        let (displaced, from) = (order[place], place_of[outlier]);
        order.swap(place, from);
        (place_of[outlier], place_of[displaced]) = (place, from);
    }
    let channels = order.iter().flat_map(|from| from * unit..(from + 1) * unit);
    // What is left of a last unit stays.
    channels.chain(units.len() * unit..sizes.len()).collect()
}

/// How many blocks of each input are refined, so that second terms take at most `most` multiply-adds of a token: one block
/// after the other, each time the one that takes away most for its cost.
pub(super) fn blocks(inputs: &[Input], most: f64) -> Refined {
    let gains: Vec<Vec<f64>> = inputs.iter().map(gains).collect();
    let mut counts = vec![0; inputs.len()];
    let mut left = most;
    let cost = |input: &Input| (ACTIVATION_BLOCK * input.outputs) as f64;
    loop {
        let next = (0..inputs.len())
            .filter_map(|at| Some((at, *gains[at].get(counts[at])? / cost(&inputs[at]))))
            .filter(|(at, gain)| *gain > 0.0 && cost(&inputs[*at]) <= left)
            .max_by(|(a, one), (b, other)| one.total_cmp(other).then(b.cmp(a)));
        let Some((at, _)) = next else {
            break;
        };
        counts[at] += 1;
        left -= cost(&inputs[at]);
    }
    let refined = inputs.iter().zip(counts).filter(|(_, count)| *count > 0);
    refined
        .flat_map(|(input, count)| input.matrices.iter().map(move |id| (*id, count)))
        .collect()
}

/// For each of the first blocks, the error of products that its rounding makes, as a share of their energy: a second term
/// takes practically all of it away.
fn gains(input: &Input) -> Vec<f64> {
    let blocks = (input.columns / ACTIVATION_BLOCK).min(MAX_REFINED);
    let mut gains = vec![0.0; blocks];
    let weights = input.weights.chunks_exact(ACTIVATION_BLOCK);
    let weights: Vec<f64> = weights.map(|block| block.iter().sum()).collect();
    for row in input.rows.chunks_exact(input.columns.max(1)) {
        let blocks = row.chunks_exact(ACTIVATION_BLOCK);
        for ((gain, block), weight) in gains.iter_mut().zip(blocks).zip(&weights) {
            let step = f64::from(block.iter().fold(0.0f32, |most, x| most.max(x.abs()))) / 127.0;
            // Rounding to steps errs by their width over the root of 12.
            *gain += step * step / 12.0 * weight;
        }
    }
    gains
}
