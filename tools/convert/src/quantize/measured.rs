//! Matrices quantized by what a text tells of their inputs, layer by layer as the text comes by.

use super::decisions::{Decisions, Found, ToBlocks};
use super::rewrite::Work;
use super::{QuantizeError, Quantizer, RoundToNearest};
use crate::calibrate::{
    CalibrateError, Calibration, Follow, Origin, Pass, Replacements, Statistics,
};
use crate::lower::{Matrix, Rounding, lower};
use crate::onnx::{ChannelRows, FloatRows, OnnxError, OnnxModel};
use crate::panels::panels;
use niwaki_bundle::graph::{MatrixId, Op};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Quantizes the products that the text tells something of, and leaves the others among the decisions, to be rounded.
pub(super) fn blocks(
    work: &mut Work<'_>,
    quantizer: &dyn Quantizer,
    model: &OnnxModel,
    calibration: Calibration<'_>,
    found: &Found<'_>,
    decisions: &mut Decisions,
) -> Result<(), QuantizeError> {
    let lowered = lower(model, &work.options.facts, Rounding::Niwaki)
        .map_err(|error| QuantizeError::Lower(Box::new(error)))?;
    let matrices = &lowered.parts.matrices;
    let blocks = std::mem::take(&mut decisions.blocks);
    let of_node: HashMap<&str, usize> = blocks
        .iter()
        .enumerate()
        .map(|(index, to)| (index, &found.candidates[to.candidate]))
        .filter(|(_, candidate)| candidate.at.0 == 0 && !candidate.use_of.is_lookup())
        .map(|(index, candidate)| (candidate.node.name_or_output(), index))
        .collect();
    let mut readers: BTreeMap<MatrixId, Vec<(Origin, usize)>> = BTreeMap::new();
    for node in &lowered.graph.nodes {
        if let Op::Linear { weight, .. } = node.op {
            let origins = Origin::of(&node.name, &matrices[weight]).into_iter();
            let known = origins.filter_map(|origin| {
                let index = *of_node.get(origin.node.as_str())?;
                Some((origin, index))
            });
            readers.entry(weight).or_default().extend(known);
        }
    }
    readers.retain(|_, origins| !origins.is_empty());
    let observed: BTreeSet<MatrixId> = readers.keys().copied().collect();
    let pass = Pass {
        lowered: &lowered,
        calibration,
        matrices: &observed,
        follow: Follow::Original,
    };
    let wants = quantizer.wants();
    let mut done = HashSet::new();
    pass.run(
        |input| Ok(Statistics::new(input.columns, wants).map_err(CalibrateError::from)?),
        |seen: Vec<(_, Statistics)>| {
            for (input, statistics) in seen {
                for (origin, index) in readers.get(&input.matrix).into_iter().flatten() {
                    let to = &blocks[*index];
                    let stored = &found.candidates[to.candidate].rows;
                    if is_stored(&matrices[input.matrix], origin, stored)? && done.insert(*index) {
                        work.block(quantizer, found, decisions, to, Some(&statistics))?;
                    }
                }
            }
            Ok::<_, QuantizeError>(Replacements::new())
        },
        &mut |_| (),
    )?;
    let measured: HashSet<usize> = done.iter().map(|index| blocks[*index].planned).collect();
    let rest = blocks.into_iter().enumerate();
    let rest = rest.filter(|(index, _)| !done.contains(index));
    decisions.blocks = rest.map(|(_, to)| to).collect();
    for ToBlocks { planned, .. } in &decisions.blocks {
        if !measured.contains(planned) {
            decisions.plan.matrices[*planned].method = RoundToNearest.name();
        }
    }
    Ok(())
}

/// Whether the graph multiplies by the rows that the model stores: then what it multiplies is what the node reads.
fn is_stored(matrix: &Matrix, origin: &Origin, stored: &ChannelRows) -> Result<bool, OnnxError> {
    let columns = matrix.cols();
    if (stored.rows(), stored.columns()) != (origin.rows.len(), columns) {
        return Ok(false);
    }
    for panel in panels(stored.rows()) {
        let mut of_graph = vec![0.0; panel.len() * columns];
        let mut of_model = of_graph.clone();
        let rows = origin.rows.start + panel.start..origin.rows.start + panel.end;
        matrix.read(rows.clone(), &mut of_graph)?;
        matrix.release(rows);
        stored.read(panel, &mut of_model)?;
        let mut pairs = of_graph.iter().zip(&of_model);
        if pairs.any(|(graph, model)| graph.to_bits() != model.to_bits()) {
            return Ok(false);
        }
    }
    Ok(true)
}
