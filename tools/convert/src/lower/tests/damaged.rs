//! Damaged graphs are refused or lower; they never crash, hang or fill the memory.

use super::decoder::{Builder, lower_graph};
use crate::lower::LowerError;
use crate::onnx::proto::GraphProto;
use proptest::prelude::*;

fn decoder() -> GraphProto {
    let mut b = Builder::default();
    let x = b.embedded();
    let x = b.layer(&x, 2);
    let x = b.rms_norm(&x);
    b.finish(&x)
}

/// One change of a graph: what, where and with which number.
type Damage = (u8, usize, usize, i64);

fn damage(graph: &mut GraphProto, (what, at, other, number): Damage) {
    let count = graph.node.len();
    if count == 0 {
        return;
    }
    let (at, other) = (at % count, other % count);
    match what % 7 {
        0 => {
            graph.node.remove(at);
        }
        1 => {
            let node = &mut graph.node[at];
            let count = node.input.len().max(1);
            if node.input.len() > 1 {
                node.input.swap(0, other % count);
            }
        }
        2 => {
            let name = graph.node[other].output[0].clone();
            if let Some(input) = graph.node[at].input.first_mut() {
                *input = name;
            }
        }
        3 => {
            let count = graph.initializer.len();
            if let Some(dim) = graph.initializer[other % count].dims.first_mut() {
                *dim = number;
            }
        }
        4 => {
            for attribute in &mut graph.node[at].attribute {
                attribute.i = Some(number);
            }
        }
        5 => graph.node[at].op_type = graph.node[other].op_type.clone(),
        _ => graph.node[at].input.truncate(other % 3),
    }
}

fn numbers() -> impl Strategy<Value = i64> {
    prop_oneof![
        Just(0),
        Just(-1),
        Just(i64::MAX),
        Just(i64::MIN),
        -9..40i64,
        Just(1 << 40)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_damaged_graph_never_makes_lowering_crash(
        changes in prop::collection::vec((any::<u8>(), 0..64usize, 0..64usize, numbers()), 1..4),
    ) {
        let mut graph = decoder();
        for change in changes {
            damage(&mut graph, change);
        }
        prop_assert!(!matches!(lower_graph(graph), Err(LowerError::Internal)));
    }
}
