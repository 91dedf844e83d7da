//! Weights of other operators than products of two matrices, in bodies, of other types, and out of reach of scales.

use super::noise;
use crate::onnx::{
    DataType, OnnxModel,
    proto::{GraphProto, NodeProto, TensorProto},
    small_models::*,
};
use crate::plan::{Fate, Reason};
use crate::quantize::{Code, QuantizeOptions, QuantizeReport, quantize_model};
use half::f16;

fn run(model: &OnnxModel, code: Code) -> (OnnxModel, QuantizeReport) {
    quantize_model(model, &QuantizeOptions::new(code), &mut |_| ()).unwrap()
}

fn operators(graph: &GraphProto) -> Vec<&str> {
    graph.node.iter().map(NodeProto::op_type).collect()
}

fn with_opset(weights: TensorProto, reader: NodeProto, opset: i64) -> OnnxModel {
    let mut proto = proto(graph(&["x"], vec![weights], vec![reader], &["y"]));
    proto.opset_import[0].version = Some(opset);
    OnnxModel::from_bytes(prost::Message::encode_to_vec(&proto)).unwrap()
}

/// What `DequantizeLinear` along `axis` makes of the only quantized tensor.
fn dequantized(model: &OnnxModel, axis: usize) -> Vec<f32> {
    let node = model
        .graph()
        .node
        .iter()
        .find(|node| node.is("DequantizeLinear"))
        .unwrap();
    assert_eq!(node.int("axis"), Some(axis as i64));
    let integers = model.tensor(&node.input[0]).unwrap().unwrap();
    let scales = model.tensor(&node.input[1]).unwrap().unwrap();
    assert_eq!(scales.dims, [integers.dims[axis]]);
    let scales = scales.to_f32().unwrap();
    let apart: usize = integers.dims[axis + 1..].iter().product();
    let integers = integers.to_i8().unwrap();
    let values = integers.iter().enumerate();
    values
        .map(|(index, &integer)| f32::from(integer) * scales[index / apart % scales.len()])
        .collect()
}

/// Each weight is within half a step of its channel, and channels differ so much that another axis would be far off.
fn assert_half_a_step(decoded: &[f32], weights: &[f32], channel: impl Fn(usize) -> usize) {
    let mut largest = std::collections::HashMap::<usize, f32>::new();
    for (index, weight) in weights.iter().enumerate() {
        let held = largest.entry(channel(index)).or_default();
        *held = held.max(weight.abs());
    }
    for (index, (decoded, weight)) in decoded.iter().zip(weights).enumerate() {
        let step = largest[&channel(index)] / 127.0;
        assert!(
            (decoded - weight).abs() <= step * 0.501,
            "weight {index}: {decoded}, {weight}"
        );
    }
}

/// Weights of which each channel is ten times as large as the one before.
fn uneven(count: usize, channel: impl Fn(usize) -> usize) -> Vec<f32> {
    let weights = noise(count, 5).into_iter().enumerate();
    weights
        .map(|(index, weight)| weight * 10f32.powi(channel(index) as i32 % 6 - 3))
        .collect()
}

#[test]
fn kernels_have_a_scale_for_each_output_channel() {
    let by_first = |index: usize| index / (8 * 9);
    let by_second = |index: usize| index / 9 % 8;
    let weights = uneven(16 * 8 * 9, by_first);
    let tensor = float_tensor("w", &[16, 8, 3, 3], &weights);
    let (conv, report) = run(
        &with_opset(tensor, node("Conv", &["x", "w"], &["y"]), 18),
        Code::Int4,
    );
    assert_eq!(operators(conv.graph()), ["DequantizeLinear", "Conv"]);
    assert_half_a_step(&dequantized(&conv, 0), &weights, by_first);
    assert_eq!(conv.opset("com.microsoft"), None);
    assert!(report.left.is_empty(), "{:?}", report.left);
    assert_eq!(
        (report.quantized[0].rows, report.quantized[0].columns),
        (16, 72)
    );

    let weights = uneven(16 * 8 * 9, by_second);
    let tensor = float_tensor("w", &[16, 8, 3, 3], &weights);
    let transposed = node("ConvTranspose", &["x", "w"], &["y"]);
    let (conv, _) = run(&with_opset(tensor, transposed, 18), Code::Int8);
    assert_half_a_step(&dequantized(&conv, 1), &weights, by_second);
}

#[test]
fn operator_sets_without_an_axis_get_a_product_with_scales() {
    let tensor = float_tensor("w", &[16, 8, 3, 3], &noise(16 * 8 * 9, 3));
    let (old, _) = run(
        &with_opset(tensor, node("Conv", &["x", "w"], &["y"]), 11),
        Code::Int8,
    );
    assert_eq!(operators(old.graph()), ["Cast", "Mul", "Conv"]);
    let scales = &old.graph().node[1].input[1];
    assert_eq!(old.initializer(scales).unwrap().dims, [16, 1, 1, 1]);
}

#[test]
fn the_axis_is_that_of_the_stored_tensor() {
    let by_column = |index: usize| index % 24;
    let weights = uneven(64 * 24, by_column);
    let einsum = NodeProto {
        attribute: vec![string("equation", "bd,hd->bh")],
        ..node("Einsum", &["x", "turned"], &["y"])
    };
    let nodes = vec![node("Transpose", &["w"], &["turned"]), einsum];
    let stored = vec![float_tensor("w", &[64, 24], &weights)];
    let (quantized, _) = run(&model(graph(&["x"], stored, nodes, &["y"])), Code::Int8);
    assert_eq!(
        operators(quantized.graph()),
        ["DequantizeLinear", "Transpose", "Einsum"]
    );
    assert_half_a_step(&dequantized(&quantized, 1), &weights, by_column);
}

/// An `If` whose branches multiply: one by a matrix of its own, the other by one of the graph around it.
fn branches() -> OnnxModel {
    let own = float_tensor("w", &[64, 64], &noise(64 * 64, 1));
    let of_branch = |name: &str, weights: Vec<TensorProto>| {
        graph(
            &[],
            weights,
            vec![node("MatMul", &["x", name], &["inner"])],
            &["inner"],
        )
    };
    let branches = with_attributes(
        node("If", &["condition"], &["y"]),
        vec![
            graph_attribute("then_branch", of_branch("w", vec![own])),
            graph_attribute("else_branch", of_branch("outer", vec![])),
        ],
    );
    let outer = float_tensor("outer", &[64, 64], &noise(64 * 64, 2));
    model(graph(
        &["x", "condition"],
        vec![outer],
        vec![branches],
        &["y"],
    ))
}

#[test]
fn products_in_bodies_are_quantized_wherever_their_weights_are_stored() {
    let (quantized, report) = run(&branches(), Code::Int4);
    let graph = quantized.graph();
    for body in graph.node[0].subgraphs() {
        assert_eq!(operators(body), ["MatMulNBits"]);
        assert!(body.initializer.is_empty());
        let reads = |name: &String| quantized.initializer(name).is_some();
        assert!(body.node[0].input[1..].iter().all(reads));
    }
    assert_ne!(
        graph.node[0].subgraphs().next().unwrap().node[0].input[1],
        graph.node[0].subgraphs().nth(1).unwrap().node[0].input[1],
    );
    assert_eq!(report.quantized.len(), 2);
    assert!(report.left.is_empty() && quantized.initializer("outer").is_none());
}

#[test]
fn doubles_are_multiplied_in_f32_and_stay_doubles_outside() {
    let weights = noise(64 * 64, 4);
    let bytes = weights
        .iter()
        .flat_map(|&weight| f64::from(weight).to_le_bytes());
    let tensor = raw_tensor("w", DataType::Double, &[64, 64], bytes.collect());
    let product = node("MatMul", &["x", "w"], &["y"]);
    let (quantized, _) = run(&with_opset(tensor, product, 18), Code::Int8);
    assert_eq!(
        operators(quantized.graph()),
        ["Cast", "MatMulNBits", "Cast"]
    );
    let cast = &quantized.graph().node[2];
    assert_eq!(
        (cast.int("to"), cast.output[0].as_str()),
        (Some(DataType::Double as i64), "y")
    );
}

#[test]
fn blocks_out_of_reach_of_f16_scales_are_computed_in_f32() {
    let mut weights = noise(64 * 64, 4);
    // Every sixty-fourth value, of one output channel, is too small for an f16 scale.
    weights
        .iter_mut()
        .step_by(64)
        .for_each(|weight| *weight = 1e-6);
    let bytes = weights
        .iter()
        .flat_map(|&weight| f16::from_f32(weight).to_le_bytes());
    let tensor = raw_tensor("w", DataType::Float16, &[64, 64], bytes.collect());
    let product = node("MatMul", &["x", "w"], &["y"]);
    let (quantized, report) = run(&with_opset(tensor, product, 18), Code::Int8);
    assert_eq!(
        operators(quantized.graph()),
        ["Cast", "MatMulNBits", "Cast"]
    );
    let scales = quantized
        .tensor(&quantized.graph().node[1].input[2])
        .unwrap()
        .unwrap();
    assert_eq!(scales.data_type, DataType::Float);
    assert!(scales.to_f32().unwrap().iter().all(|scale| *scale > 0.0));
    assert_eq!(report.plan.matrices[0].reason, Reason::OutOfReach);
}

#[test]
fn weights_that_no_scale_reaches_stay_floats_and_are_listed() {
    let tiny = |name: &str, dims: &[i64], value: f32| {
        let count = dims.iter().product::<i64>() as usize;
        float_tensor(name, dims, &vec![value; count])
    };
    let doubles = vec![1e-60f64; 64 * 64];
    let doubles = doubles
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let stored = vec![
        float_tensor("w", &[64, 64], &noise(64 * 64, 4)),
        tiny("lost", &[64, 64], 1e-41),
        tiny("kernels", &[64, 64, 1], -1e-41),
        raw_tensor("double", DataType::Double, &[64, 64], doubles),
        tiny("table", &[64, 64], 1e-41),
    ];
    let nodes = vec![
        node("MatMul", &["x", "w"], &["a"]),
        node("MatMul", &["a", "lost"], &["b"]),
        node("Conv", &["b", "kernels"], &["c"]),
        node("MatMul", &["c", "double"], &["d"]),
        node("Gather", &["table", "input_ids"], &["e"]),
        node("Concat", &["d", "e"], &["y"]),
    ];
    let model = model(graph(&["x", "input_ids"], stored, nodes, &["y"]));
    for code in [Code::Int4, Code::Int8] {
        let (quantized, report) = run(&model, code);
        let left: Vec<&str> = report.left.iter().map(|left| left.name.as_str()).collect();
        assert_eq!(
            left,
            ["lost", "kernels", "double", "table"],
            "{:?}",
            report.left
        );
        assert!(
            report
                .left
                .iter()
                .all(|left| left.reason.contains("too small for a scale"))
        );
        assert!(
            left.iter()
                .all(|name| quantized.initializer(name).is_some())
        );
        let fates = report.plan.matrices.iter().map(|matrix| matrix.fate);
        assert_eq!(fates.filter(|fate| *fate == Fate::Keep).count(), 4);
        assert_eq!(report.quantized.len(), 1);
    }
}
