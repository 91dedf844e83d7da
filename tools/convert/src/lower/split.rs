//! Values apart from queries and keys, where they are to be stored in another format.

use super::Lowered;
use super::parts::{ChannelOrder, Matrix};
use niwaki_bundle::graph::{Columns, Node, Op};
use std::ops::Range;

/// Parts the projections that fusing joined so that what attention reads as values is a projection of its own. The function
/// stays what it is, to the bit.
pub fn split_values(lowered: &mut Lowered) {
    let cuts: Vec<Cut> = (0..lowered.graph.nodes.len())
        .filter_map(|node| Cut::of(lowered, node))
        .collect();
    for cut in cuts.into_iter().rev() {
        cut.make(lowered);
    }
}

/// A projection, and which of its columns are values.
struct Cut {
    node: usize,
    values: Range<usize>,
}

impl Cut {
    /// Where the projection at `node` can be cut.
    fn of(lowered: &Lowered, node: usize) -> Option<Cut> {
        let nodes = &lowered.graph.nodes;
        let Op::Linear { weight, .. } = nodes[node].op else {
            return None;
        };
        let mut values: Option<Range<usize>> = None;
        let mut others: Vec<Range<usize>> = vec![];
        for reader in nodes {
            for (index, columns) in reader.inputs.iter().enumerate() {
                if columns.node != node {
                    continue;
                }
                let range = columns.offset..columns.offset + columns.width;
                let reads_values = matches!(reader.op, Op::Attention { .. }) && index == 2;
                match &values {
                    _ if !reads_values => others.push(range),
                    None => values = Some(range),
                    Some(held) if *held == range => {}
                    Some(_) => return None,
                }
            }
        }
        let values = values?;
        let apart = |range: &Range<usize>| range.end <= values.start || range.start >= values.end;
        let outputs = lowered.graph.outputs.iter();
        let cuttable = values.len() < nodes[node].width
            && others.iter().all(apart)
            && outputs.into_iter().all(|output| output.node != node)
            && nodes
                .iter()
                .flat_map(|node| node.op.matrices())
                .filter(|matrix| *matrix == weight)
                .count()
                == 1;
        let mut ends = vec![0];
        for source in &lowered.parts.matrices[weight].stack {
            ends.push(ends[ends.len() - 1] + source.rows());
        }
        let at_ends = ends.contains(&values.start) && ends.contains(&values.end);
        (cuttable && at_ends).then_some(Cut { node, values })
    }

    fn make(self, lowered: &mut Lowered) {
        let Cut { node: at, values } = self;
        let Op::Linear { weight, bias } = lowered.graph.nodes[at].op else {
            return;
        };
        let parts = &mut lowered.parts;
        let (rest, taken) = cut(&parts.matrices[weight], &values);
        let names = (rest.name.clone(), taken.name.clone());
        parts.matrices[weight] = rest;
        parts.matrices.push(taken);
        let new_weight = parts.matrices.len() - 1;
        let biases = bias.map(|bias| {
            let all = parts.vectors[bias].1.clone();
            let mut rest = all[..values.start].to_vec();
            rest.extend(&all[values.end..]);
            let first = parts.vector(&format!("{}/bias", names.0), rest);
            let second = parts.vector(&format!("{}/bias", names.1), all[values.clone()].to_vec());
            (first, second)
        });
        let nodes = &mut lowered.graph.nodes;
        for node in nodes.iter_mut() {
            for columns in &mut node.inputs {
                *columns = moved(*columns, at, &values);
            }
        }
        for output in &mut lowered.graph.outputs {
            output.node += usize::from(output.node > at);
        }
        let whole = &mut nodes[at];
        let second = Node {
            name: names.1,
            op: Op::Linear {
                weight: new_weight,
                bias: biases.map(|(_, second)| second),
            },
            inputs: whole.inputs.clone(),
            width: values.len(),
        };
        whole.name = names.0;
        whole.width -= values.len();
        whole.op = Op::Linear {
            weight,
            bias: biases.map(|(first, _)| first),
        };
        nodes.insert(at + 1, second);
    }
}

/// Where columns are after the node after `at` was put in.
fn moved(columns: Columns, at: usize, values: &Range<usize>) -> Columns {
    let Columns {
        node,
        offset,
        width,
    } = columns;
    let (node, offset) = if node != at {
        (node + usize::from(node > at), offset)
    } else if offset < values.start {
        (at, offset)
    } else if offset < values.end {
        (at + 1, offset - values.start)
    } else {
        (at, offset - values.len())
    };
    Columns {
        node,
        offset,
        width,
    }
}

/// A matrix without these rows, and these rows, which begin and end where sources do.
fn cut(matrix: &Matrix, rows: &Range<usize>) -> (Matrix, Matrix) {
    let empty = || Matrix {
        name: String::new(),
        stack: vec![],
        origins: vec![],
        order: ChannelOrder::default(),
    };
    let (mut rest, mut taken) = (empty(), empty());
    let mut first = 0;
    for source in &matrix.stack {
        let part = if rows.contains(&first) {
            &mut taken
        } else {
            &mut rest
        };
        part.stack.push(source.clone());
        first += source.rows();
    }
    let mut first = 0;
    for origin in &matrix.origins {
        let part = if rows.contains(&first) {
            &mut taken
        } else {
            &mut rest
        };
        part.origins.push(origin.clone());
        first += origin.rows;
    }
    for part in [&mut rest, &mut taken] {
        let names: Vec<&str> = part
            .origins
            .iter()
            .map(|origin| origin.node.as_str())
            .collect();
        part.name = names.join(" + ");
        // Of one node the name says it.
        if part.origins.len() == 1 {
            part.origins.clear();
        }
    }
    (rest, taken)
}
