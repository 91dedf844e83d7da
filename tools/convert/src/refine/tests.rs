//! A reordered model computes what it did, and second terms go where they pay.

use super::*;
use crate::calibrate::{Follow, Pass, Replacements, Samples};
use crate::export::Export;
use crate::lower::{ChannelOrder, Rounding, lower};
use crate::onnx::OnnxModel;
use niwaki_bundle::graph::Op;
use niwaki_kernels::ACTIVATION_BLOCK;
use std::path::Path;

fn demo() -> Lowered {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo-model/onnx");
    let export = Export::open(&folder).unwrap();
    let model = OnnxModel::open(&export.model).unwrap();
    lower(&model, &export.facts(), Rounding::Niwaki).unwrap()
}

fn all(lowered: &Lowered, share: f64) -> Choice {
    Choice {
        quantized: (0..lowered.parts.matrices.len()).collect(),
        in_blocks: BTreeSet::new(),
        fixed: BTreeSet::new(),
        share,
    }
}

fn text() -> Vec<Vec<u32>> {
    let sequence = |first: u32| (0..60).map(|at| (first + at * 37) % 1000 + 5).collect();
    vec![sequence(1), sequence(300)]
}

fn refined(lowered: &mut Lowered, choice: &Choice) -> Refined {
    let scratch = tempfile::tempdir().unwrap();
    let calibration = Calibration {
        sequences: &text(),
        scratch: scratch.path(),
        threads: 1,
    };
    refine(lowered, choice, calibration).unwrap()
}

/// What every matrix is multiplied with, in the order that its columns had in the export.
fn inputs(lowered: &Lowered) -> BTreeMap<MatrixId, Vec<f32>> {
    let scratch = tempfile::tempdir().unwrap();
    let (text, matrices) = (text(), (0..lowered.parts.matrices.len()).collect());
    let pass = Pass {
        lowered,
        calibration: Calibration {
            sequences: &text,
            scratch: scratch.path(),
            threads: 1,
        },
        matrices: &matrices,
        follow: Follow::Original,
    };
    let mut inputs = BTreeMap::new();
    let mut keep = |matrix: MatrixId, samples: Samples| {
        let columns = lowered.parts.matrices[matrix].cols();
        let mut values = samples.values().to_vec();
        if let Some(order) = &lowered.parts.matrices[matrix].order.columns {
            for row in values.chunks_exact_mut(columns) {
                let moved = row.to_vec();
                let places = order.iter().zip(moved);
                places.for_each(|(from, value)| row[*from] = value);
            }
        }
        inputs.insert(matrix, values);
    };
    pass.run(
        |input| Ok::<_, CalibrateError>(Samples::new(input.columns, 120)),
        |seen| {
            seen.into_iter()
                .for_each(|(input, samples)| keep(input.matrix, samples));
            Ok(Replacements::new())
        },
        &mut |_| {},
    )
    .unwrap();
    inputs
}

/// Every matrix is multiplied with what it was, but for rounding.
fn assert_inputs(lowered: &Lowered, before: &BTreeMap<MatrixId, Vec<f32>>) {
    let after = inputs(lowered);
    assert_eq!(before.len(), after.len());
    for (matrix, rows) in before {
        let largest = rows.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for (one, other) in rows.iter().zip(&after[matrix]) {
            assert!((one - other).abs() <= largest * 1e-4, "matrix {matrix}");
        }
    }
}

#[test]
fn a_reordered_model_computes_the_same() {
    let mut lowered = demo();
    let before = inputs(&lowered);
    let choice = all(&lowered, 0.2);
    let refined = refined(&mut lowered, &choice);
    assert!(!refined.is_empty());
    let moved = |order: &ChannelOrder| (order.rows.is_some(), order.columns.is_some());
    for node in &lowered.graph.nodes {
        let order = |id: MatrixId| moved(&lowered.parts.matrices[id].order);
        match (&node.op, node.name.as_str()) {
            // Of a table rows are tokens.
            (Op::Embed { table, .. }, _) => assert_eq!(order(*table), (false, true)),
            (Op::Linear { weight, .. }, name) if name.contains("q_proj") => {
                assert_eq!(order(*weight), (false, true), "{name}");
            }
            // What attention gives stays head by head.
            (Op::Linear { weight, .. }, name) if name.contains("o_proj") => {
                assert_eq!(order(*weight), (true, false), "{name}");
            }
            (Op::Linear { weight, .. }, name) if name.contains("down_proj") => {
                assert!(order(*weight).0, "{name}");
            }
            _ => {}
        }
    }
    assert_inputs(&lowered, &before);
}

#[test]
fn second_terms_cost_no_more_than_they_may_and_inputs_that_are_shared_agree() {
    for share in [0.0, 0.01, 0.05, 0.3] {
        let mut lowered = demo();
        let choice = all(&lowered, share);
        let refined = refined(&mut lowered, &choice);
        let mut spent = 0.0;
        let mut of_inputs = std::collections::HashMap::new();
        for node in &lowered.graph.nodes {
            let Op::Linear { weight, .. } = node.op else {
                continue;
            };
            let blocks = refined.get(&weight).copied().unwrap_or(0);
            let matrix = &lowered.parts.matrices[weight];
            assert!(blocks * ACTIVATION_BLOCK <= matrix.cols());
            spent += (blocks * ACTIVATION_BLOCK * matrix.rows()) as f64;
            let columns = node.inputs[0];
            let held = *of_inputs.entry(columns).or_insert(blocks);
            assert_eq!(held, blocks, "{}", node.name);
        }
        let all = choose::multiply_adds(&lowered);
        assert!(spent <= share * all);
        assert!((choose::share(&lowered, &refined) - spent / all).abs() < 1e-9);
        assert_eq!(refined.is_empty(), share == 0.0);
    }
}

#[test]
fn what_may_not_change_keeps_all_that_it_is_joined_with_in_place() {
    let mut lowered = demo();
    let mut choice = all(&lowered, 0.2);
    let table = lowered.graph.nodes.iter().find_map(|node| match node.op {
        Op::Embed { table, .. } => Some(table),
        _ => None,
    });
    choice.fixed.extend(table);
    let refined = refined(&mut lowered, &choice);
    // The residual stream is in one order everywhere; what lies between gate and down is another matter.
    assert!(!refined.is_empty());
    for node in &lowered.graph.nodes {
        if let Op::Linear { weight, .. } = node.op {
            let matrix = &lowered.parts.matrices[weight];
            let is_down = node.name.contains("down_proj");
            assert!(is_down || !refined.contains_key(&weight));
            assert!(is_down || matrix.order.columns.is_none());
        }
    }
}

#[test]
fn columns_that_share_a_scale_of_four_bits_move_together() {
    let mut lowered = demo();
    let mut choice = all(&lowered, 0.2);
    choice.in_blocks = choice.quantized.clone();
    let before = inputs(&lowered);
    assert!(!refined(&mut lowered, &choice).is_empty());
    let orders = lowered.parts.matrices.iter().filter_map(|matrix| {
        let order = matrix.order.columns.as_ref()?;
        Some(order.to_vec())
    });
    let orders: Vec<Vec<usize>> = orders.collect();
    assert!(!orders.is_empty());
    for block in orders
        .iter()
        .flat_map(|order| order.chunks(ACTIVATION_BLOCK))
    {
        assert!(block[0].is_multiple_of(ACTIVATION_BLOCK));
        assert!(block.windows(2).all(|pair| pair[1] == pair[0] + 1));
    }
    assert_inputs(&lowered, &before);
}
