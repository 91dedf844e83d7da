//! Which rows values have.

use super::{Graph, Node, Op};

/// Which rows a value has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowSet {
    /// One per token of the run.
    Tokens,
    /// One per token that a result was asked for.
    Wanted,
    /// One per sequence of the run.
    Sequences,
}

/// What an operator does to the rows of its inputs.
enum Rule {
    /// It has no inputs: a row per token begins here.
    Begins,
    /// It works on each row alone.
    Keeps,
    /// It works on the rows of tokens, whose positions it needs.
    NeedsTokens,
    /// It gives other rows than the tokens that it reads.
    Turns(RowSet),
}

impl Op {
    fn rows(&self) -> Rule {
        match self {
            Op::Embed { .. } | Op::PositionEmbed { .. } | Op::Rows { .. } => Rule::Begins,
            Op::Norm { .. }
            | Op::Linear { .. }
            | Op::Gate { .. }
            | Op::Activate { .. }
            | Op::Add { .. }
            | Op::Scale { .. }
            | Op::Softcap { .. }
            | Op::Round { .. } => Rule::Keeps,
            Op::Rope { .. } | Op::Attention { .. } => Rule::NeedsTokens,
            Op::LastRows => Rule::Turns(RowSet::Wanted),
            Op::Pool { .. } => Rule::Turns(RowSet::Sequences),
        }
    }
}

impl RowSet {
    fn in_words(self) -> &'static str {
        match self {
            RowSet::Tokens => "a row per token",
            RowSet::Wanted => "only the rows whose results are wanted",
            RowSet::Sequences => "a row per sequence",
        }
    }

    /// Which rows the value of `node` has, given those of the nodes before it.
    pub(super) fn of(node: &Node, before: &[RowSet]) -> Result<RowSet, String> {
        let mut inputs = node
            .inputs
            .iter()
            .filter_map(|input| before.get(input.node))
            .copied();
        let first = inputs.next();
        if let (Some(first), Some(other)) = (first, inputs.find(|rows| Some(*rows) != first)) {
            return Err(format!(
                "one input has {} and another {}",
                first.in_words(),
                other.in_words()
            ));
        }
        let rows = first.unwrap_or(RowSet::Tokens);
        match node.op.rows() {
            Rule::Begins | Rule::Keeps => Ok(rows),
            Rule::NeedsTokens | Rule::Turns(_) if rows != RowSet::Tokens => Err(format!(
                "it needs a row per token, and its input has {}",
                rows.in_words()
            )),
            Rule::NeedsTokens => Ok(rows),
            Rule::Turns(rows) => Ok(rows),
        }
    }
}

impl Graph {
    /// Which rows each node's value has.
    ///
    /// # Errors
    /// The node whose inputs do not fit, and why.
    pub fn row_sets(&self) -> Result<Vec<RowSet>, (usize, String)> {
        let mut row_sets = Vec::with_capacity(self.nodes.len());
        for (index, node) in self.nodes.iter().enumerate() {
            let rows = RowSet::of(node, &row_sets).map_err(|problem| (index, problem))?;
            row_sets.push(rows);
        }
        Ok(row_sets)
    }
}
