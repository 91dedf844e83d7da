//! A profile, summed by kind of operator.

use niwaki::Profile;
use niwaki_bundle::graph::{Graph, MatrixId, Node, Op};
use niwaki_bundle::{ElementKind, WeightTable};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Everything around the operators: tract's plan, the session, copies of logits.
const AROUND: &str = "tract and session";

/// Time of one kind of operator.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OperatorTime {
    /// The kind; matrix products by shape, `columns -> rows` of the matrix.
    pub operator: String,
    /// Nodes of that kind.
    pub nodes: usize,
    /// Microseconds of all of them per token.
    pub us_per_token: f64,
    /// Share of the whole, 0 to 1.
    pub share: f64,
}

/// Where the time of `tokens` tokens went, the longest first, and last what is around the operators.
pub fn operator_times(
    profile: &Profile,
    graph: &Graph,
    weights: &WeightTable,
    tokens: usize,
) -> Vec<OperatorTime> {
    let mut kinds: BTreeMap<String, (usize, Duration)> = BTreeMap::new();
    for (index, (node, time)) in graph.nodes.iter().zip(&profile.nodes).enumerate() {
        let kind = kind(node, graph.is_output(index), weights);
        let (nodes, sum) = kinds.entry(kind).or_default();
        *nodes += 1;
        *sum += *time;
    }
    let operators: Duration = profile.nodes.iter().sum();
    let line = |operator: String, nodes: usize, time: Duration| OperatorTime {
        operator,
        nodes,
        us_per_token: time.as_secs_f64() * 1e6 / tokens.max(1) as f64,
        share: time.as_secs_f64() / profile.total.as_secs_f64().max(f64::MIN_POSITIVE),
    };
    let mut lines: Vec<OperatorTime> = kinds
        .into_iter()
        .map(|(operator, (nodes, time))| line(operator, nodes, time))
        .collect();
    lines.sort_by(|a, b| b.us_per_token.total_cmp(&a.us_per_token));
    lines.push(line(
        AROUND.to_owned(),
        0,
        profile.total.saturating_sub(operators),
    ));
    lines
}

fn kind(node: &Node, is_logits: bool, weights: &WeightTable) -> String {
    match &node.op {
        Op::Linear { weight, .. } => {
            let what = if is_logits { "logits" } else { "linear" };
            format!("{what} {}", shape(*weight, weights))
        }
        Op::Embed { .. } => "embed".to_owned(),
        Op::PositionEmbed { .. } => "position embed".to_owned(),
        Op::Norm { .. } => "norm".to_owned(),
        Op::Rope { .. } => "rope".to_owned(),
        Op::Attention { .. } => "attention".to_owned(),
        Op::Gate { .. } => "gate".to_owned(),
        Op::Activate { .. } => "activation".to_owned(),
        Op::Add { .. } => "add".to_owned(),
        Op::Scale { .. } => "scale".to_owned(),
        Op::Softcap { .. } => "softcap".to_owned(),
        Op::Round { .. } => "round".to_owned(),
        Op::LastRows => "last rows".to_owned(),
        Op::Rows { .. } => "given rows".to_owned(),
        Op::Pool { .. } => "pool".to_owned(),
    }
}

fn shape(weight: MatrixId, weights: &WeightTable) -> String {
    let Some(matrix) = weights.matrices.get(weight) else {
        return String::new();
    };
    let element = match matrix.element {
        ElementKind::F32 => "f32",
        ElementKind::F16 => "f16",
        ElementKind::Int8 => "int8",
        ElementKind::Int4 => "int4",
        ElementKind::Codebook4 => "codebook4",
    };
    format!("{} -> {} {element}", matrix.cols, matrix.rows)
}
