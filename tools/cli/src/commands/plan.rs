//! What `niwaki build` and `niwaki quantize` say of matrices: what happened to which, and what to beware of.

use crate::terminal::{self, Table};
use niwaki_convert::plan::{LeftNode, Plan, Weights, Wishes};
use std::path::Path;

/// Matrices of one kind that fare alike, line by line.
pub(super) fn table(plan: &Plan) -> Table {
    let mut table = Table::new(["matrices", "count", "weights", "stored as", "by", "because"])
        .words(3)
        .words(4)
        .words(5);
    for line in plan.lines() {
        table.row([
            line.kind.name().to_owned(),
            line.count.to_string(),
            terminal::count(line.weights),
            line.format.to_owned(),
            line.method.to_owned(),
            line.reason,
        ]);
    }
    table
}

/// What was asked for and did not happen, or happened and should be looked at. `output` was made of `input`; `measured` says
/// whether what that cost is known.
pub(super) fn warnings(
    plan: &Plan,
    wishes: &Wishes,
    measured: bool,
    input: &Path,
    output: &Path,
) -> Vec<String> {
    let mut warnings = vec![];
    if let Some(weights) = wishes.weights
        && !plan.changes_anything()
    {
        warnings.push(format!(
            "--weights {} changed nothing: the export holds every matrix quantized, and that is kept",
            weights.name()
        ));
    }
    if let Some(embedding) = wishes.embedding
        && embedding != Weights::AsStored
        && !plan.changes_tables()
    {
        warnings.push(format!(
            "--embedding {} changed nothing: there is no float embedding that could become that",
            embedding.name()
        ));
    }
    if plan.leaves_tables() {
        warnings.push(
            "the embedding stays as the export stores it; --embedding int8 makes it smaller"
                .to_owned(),
        );
    }
    if plan.leaves_projections() {
        warnings.push(
            "projections in floats stay as the export stores them; --weights quantizes them too"
                .to_owned(),
        );
    }
    if !measured && plan.rounds_to_four_bits() {
        warnings.push(format!(
            "4 bits were taken and what that costs was not measured: niwaki eval {} --text TEXT --reference {}",
            output.display(),
            input.display()
        ));
    }
    warnings
}

/// A line for each reason why nodes were left as they are.
pub(super) fn left(nodes: &[LeftNode]) -> String {
    let mut reasons: Vec<(&str, &str, usize)> = vec![];
    for node in nodes {
        match reasons
            .iter_mut()
            .find(|(_, reason, _)| *reason == node.reason)
        {
            Some((_, _, others)) => *others += 1,
            None => reasons.push((&node.node, &node.reason, 0)),
        }
    }
    let line = |(node, reason, others): (&str, &str, usize)| match others {
        0 => format!("left as it is: {node}: {reason}\n"),
        others => format!("left as they are: {node} and {others} more: {reason}\n"),
    };
    reasons.into_iter().map(line).collect()
}
