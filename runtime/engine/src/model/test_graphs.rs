//! Small graphs for tests.

use niwaki_bundle::graph::{
    Activation, Columns, Graph, Input, InputKind, Node, NormKind, Op, Output,
};

const WIDTH: usize = 8;

/// Nodes of one width, from operators and the nodes they read.
pub(super) fn graph(nodes: &[(Op, &[usize])]) -> Graph {
    let nodes: Vec<Node> = nodes
        .iter()
        .map(|(op, inputs)| Node {
            name: String::new(),
            op: op.clone(),
            inputs: inputs
                .iter()
                .map(|node| Columns {
                    node: *node,
                    offset: 0,
                    width: WIDTH,
                })
                .collect(),
            width: WIDTH,
        })
        .collect();
    Graph {
        context_tokens: 1,
        inputs: vec![Input {
            name: "input_ids".to_owned(),
            kind: InputKind::TokenIds { count: WIDTH },
        }],
        layers: vec![],
        ropes: vec![],
        outputs: vec![Output::logits(nodes.len() - 1)],
        nodes,
    }
}

pub(super) fn embed() -> Op {
    Op::Embed {
        input: 0,
        table: 0,
        scale: 1.0,
    }
}

pub(super) fn norm() -> Op {
    Op::Norm {
        kind: NormKind::Rms,
        epsilon: 1e-5,
        group: WIDTH,
        weight: None,
        bias: None,
    }
}

pub(super) fn linear() -> Op {
    Op::Linear {
        weight: 0,
        bias: None,
    }
}

pub(super) fn gate() -> Op {
    Op::Gate {
        activation: Activation::Silu,
    }
}

pub(super) fn add(scale: f32) -> Op {
    Op::Add { scale }
}

/// A feed-forward block: 0 embeds, 1 normalises, 2 and 3 are gate and up, 5 comes down, 6 adds.
pub(super) fn feed_forward() -> Graph {
    graph(&[
        (embed(), &[]),
        (norm(), &[0]),
        (linear(), &[1]),
        (linear(), &[1]),
        (gate(), &[2, 3]),
        (linear(), &[4]),
        (add(0.5), &[0, 5]),
    ])
}

/// Nodes of these widths that nothing is fused with.
pub(super) fn graph_of_widths(widths: &[usize], inputs: &[&[usize]]) -> Graph {
    let nodes: Vec<(Op, &[usize])> = inputs
        .iter()
        .map(|inputs| (Op::Softcap { cap: 1.0 }, *inputs))
        .collect();
    let mut graph = graph(&nodes);
    for (node, width) in graph.nodes.iter_mut().zip(widths) {
        node.width = *width;
        for input in &mut node.inputs {
            input.width = widths[input.node];
        }
    }
    graph
}
