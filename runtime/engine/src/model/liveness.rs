//! How much of the values is alive at once while a plan runs.

use crate::graph::Graph;

/// One step of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The graph node it computes.
    pub(crate) node: usize,
    /// Its value has rows only for wanted logits.
    pub(crate) wanted: bool,
}

/// Columns alive at the worst step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LiveColumns {
    /// Of values with a row per token.
    pub(crate) per_token: usize,
    /// Of values with a row per wanted logits.
    pub(crate) per_wanted: usize,
}

/// The step at which most columns are alive, for `tokens` tokens and `wanted` rows of logits: a value lives
/// from its step to the end of the last step that reads it.
pub(crate) fn live_columns_at_peak(
    graph: &Graph,
    steps: &[Step],
    tokens: usize,
    wanted: usize,
) -> LiveColumns {
    let mut last_use = vec![0; graph.nodes.len()];
    for (at, step) in steps.iter().enumerate() {
        for input in &graph.nodes[step.node].inputs {
            last_use[input.node] = at;
        }
    }
    if let Some(logits) = last_use.get_mut(graph.logits) {
        *logits = usize::MAX;
    }
    let mut dying: Vec<Vec<Step>> = vec![Vec::new(); steps.len()];
    for step in steps {
        if let Some(dying) = dying.get_mut(last_use[step.node]) {
            dying.push(*step);
        }
    }
    let size = |live: LiveColumns| {
        live.per_token as u128 * tokens as u128 + live.per_wanted as u128 * wanted as u128
    };
    let (mut live, mut peak) = (LiveColumns::default(), LiveColumns::default());
    for (step, dying) in steps.iter().zip(&dying) {
        let columns = |live: &mut LiveColumns, step: &Step, sign: isize| {
            let field = if step.wanted {
                &mut live.per_wanted
            } else {
                &mut live.per_token
            };
            *field = field.saturating_add_signed(sign * graph.nodes[step.node].width as isize);
        };
        columns(&mut live, step, 1);
        if size(live) > size(peak) {
            peak = live;
        }
        for dead in dying {
            columns(&mut live, dead, -1);
        }
    }
    peak
}
