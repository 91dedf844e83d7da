//! Rounding to nearest, and the graph it leaves behind.

use half::{bf16, f16};
use proptest::prelude::*;
use prost::Message;

use super::noise;
use crate::onnx::Floats;
use crate::onnx::{
    DataType, OnnxModel,
    proto::{NodeProto, TensorProto},
    small_models::*,
};
use crate::plan::{MatrixKind, Reason, Weights, Wishes};
use crate::quantize::{
    BLOCK, Code, QuantizeError, QuantizeOptions, QuantizeReport, QuantizedRows, Quantizer,
    RoundToNearest, ScaleGrid, Target, quantize_model,
};

fn quantize_rows(
    columns: usize,
    values: &[f32],
    code: Code,
    grid: ScaleGrid,
) -> Result<QuantizedRows, QuantizeError> {
    let weights = Floats::new("w", columns, values.to_vec());
    RoundToNearest.quantize(&weights, None, Target { code, grid })
}

fn quantize(values: &[f32], code: Code) -> QuantizedRows {
    quantize_rows(values.len(), values, code, ScaleGrid::F16).unwrap()
}

#[test]
fn eight_bits_span_the_block_and_zero_stays_zero() {
    let mut values = vec![0.0f32; 64];
    values[3] = -2.0;
    values[5] = 1.0;
    let quantized = quantize(&values, Code::Int8);
    assert_eq!(
        (quantized.codes[3], quantized.codes[5], quantized.codes[0]),
        (-127, 64, 0)
    );
    assert_eq!(quantized.scales, [f16::from_f32(2.0 / 127.0).to_f32(), 0.0]);
}

#[test]
fn four_bits_take_the_better_of_two_scales() {
    // All values are multiples of 1/8 of the extreme: with the extreme at -8 nothing is lost.
    let exact: Vec<f32> = (0..BLOCK).map(|index| -(index as f32 % 9.0)).collect();
    let quantized = quantize(&exact, Code::Int4);
    assert_eq!(quantized.scales, [1.0]);
    assert_eq!(quantized.codes[8], -8);
    // The same with the other sign takes a negative scale.
    let mirrored: Vec<f32> = exact.iter().map(|value| -value).collect();
    assert_eq!(quantize(&mirrored, Code::Int4).scales, [-1.0]);
    // Both ends are alike: clipping one of them costs more than a coarser step.
    let symmetric: Vec<f32> = (0..BLOCK)
        .map(|index| (index as f32 % 15.0) - 7.0)
        .collect();
    let quantized = quantize(&symmetric, Code::Int4);
    assert_eq!(
        (quantized.scales[0], quantized.codes[0], quantized.codes[14]),
        (1.0, -7, 7)
    );
}

#[test]
fn a_short_last_block_has_a_scale_of_its_own() {
    let values: Vec<f32> = (0..2 * 40)
        .map(|index| if index % 40 < 32 { 1.0 } else { 100.0 })
        .collect();
    let quantized = quantize_rows(40, &values, Code::Int8, ScaleGrid::F16).unwrap();
    assert_eq!((quantized.scales.len(), quantized.codes.len()), (4, 80));
    assert!(quantized.codes.iter().all(|&integer| integer == 127));
}

#[test]
fn weights_that_no_scale_reaches_are_refused() {
    let refusal = |value: f32| {
        let mut values = [0.0; 64];
        values[40] = value;
        quantize_rows(32, &values, Code::Int4, ScaleGrid::F16).unwrap_err()
    };
    assert!(matches!(
        refusal(f32::NAN),
        QuantizeError::NotFinite { row: 1, .. }
    ));
    assert!(matches!(
        refusal(f32::INFINITY),
        QuantizeError::NotFinite { row: 1, .. }
    ));
    assert!(matches!(
        refusal(1e30),
        QuantizeError::TooLarge {
            row: 1,
            value: 1e30,
            ..
        }
    ));
}

proptest! {
    #[test]
    fn every_weight_is_within_half_a_step_or_clipped_at_the_far_end(
        values in prop::collection::vec(-4.0f32..4.0, 1..100),
        eight in any::<bool>(),
        brain in any::<bool>(),
    ) {
        let (code, grid) = (if eight { Code::Int8 } else { Code::Int4 }, if brain { ScaleGrid::Bf16 } else { ScaleGrid::F16 });
        let quantized = quantize_rows(values.len(), &values, code, grid).unwrap();
        for (index, (&value, &integer)) in values.iter().zip(&quantized.codes).enumerate() {
            let scale = quantized.scales[index / BLOCK];
            prop_assert_eq!(f16::from_f32(scale).to_f32(), scale, "the scale is not an f16");
            prop_assert!(!brain || bf16::from_f32(scale).to_f32() == scale, "the scale is not a bf16");
            let limits = if eight { -127..=127 } else { -8..=7 };
            prop_assert!(limits.contains(&integer));
            // At the ends of the range the rounding of the scale, or the clipping of the lesser end, adds to the error.
            let steps = ((value - f32::from(integer) * scale) / if scale == 0.0 { 1.0 } else { scale }).abs();
            prop_assert!(steps <= if integer.abs() >= 7 { 1.05 } else { 0.5001 }, "{} steps", steps);
        }
    }
}

fn options(code: Code) -> QuantizeOptions {
    QuantizeOptions::new(code)
}

fn run(model: &OnnxModel, code: Code) -> (OnnxModel, QuantizeReport) {
    quantize_model(model, &options(code), &mut |_| ()).unwrap()
}

fn operators(model: &OnnxModel) -> Vec<&str> {
    model.graph().node.iter().map(NodeProto::op_type).collect()
}

fn find<'a>(model: &'a OnnxModel, op_type: &str) -> &'a NodeProto {
    model
        .graph()
        .node
        .iter()
        .find(|node| node.op_type() == op_type)
        .unwrap()
}

/// What the operator computes with: rows by columns, decoded as onnxruntime's documentation of the operators says.
fn decoded(model: &OnnxModel, node: &NodeProto, rows: usize, columns: usize) -> Vec<f32> {
    let code = node.int("bits").unwrap();
    let block = node.int("block_size").unwrap() as usize;
    let mut source = node
        .input
        .iter()
        .find_map(|name| model.initializer(name))
        .unwrap()
        .name()
        .to_owned();
    let is_lookup = node.op_type() == "GatherBlockQuantized";
    if is_lookup {
        source = match model
            .graph()
            .node
            .iter()
            .find(|other| other.output[0] == node.input[0])
        {
            Some(reshape) => reshape.input[0].clone(),
            None => node.input[0].clone(),
        };
    }
    let bytes = model.tensor(&source).unwrap().unwrap();
    let scales = model
        .tensor(&node.input[2])
        .unwrap()
        .unwrap()
        .to_f32()
        .unwrap();
    let row_bytes = bytes.data.len() / rows;
    let mut values = Vec::new();
    for row in 0..rows {
        let row_data = &bytes.data[row * row_bytes..][..row_bytes];
        for column in 0..columns {
            let stored = if code == 8 {
                i32::from(row_data[column]) - 128
            } else {
                i32::from(row_data[column / 2] >> (4 * (column % 2)) & 15) - 8
            };
            values.push(stored as f32 * scales[row * columns.div_ceil(block) + column / block]);
        }
    }
    values
}

fn assert_close(decoded: &[f32], wanted: &[f32], code: Code) {
    let step = if code == Code::Int4 { 0.1 } else { 0.006 };
    assert_eq!(decoded.len(), wanted.len());
    for (index, (decoded, wanted)) in decoded.iter().zip(wanted).enumerate() {
        assert!(
            (decoded - wanted).abs() < step,
            "weight {index}: {decoded} instead of {wanted}"
        );
    }
}

fn transposed(rows: usize, columns: usize, values: &[f32]) -> Vec<f32> {
    (0..columns)
        .flat_map(|column| (0..rows).map(move |row| values[row * columns + column]))
        .collect()
}

#[test]
fn a_product_by_a_constant_matrix_becomes_a_quantized_one() {
    for code in [Code::Int4, Code::Int8] {
        // 40 input channels: the second block is filled up.
        let weights = noise(40 * 300, 1);
        let product = node("MatMul", &["x", "w"], &["y"]);
        let (quantized, report) = run(
            &model(graph(
                &["x"],
                vec![float_tensor("w", &[40, 300], &weights)],
                vec![product],
                &["y"],
            )),
            code,
        );
        let node = find(&quantized, "MatMulNBits");
        assert_eq!(
            (node.int("K"), node.int("N"), node.int("block_size")),
            (Some(40), Some(300), Some(32))
        );
        assert_eq!(
            (
                node.domain(),
                node.input[0].as_str(),
                node.output[0].as_str()
            ),
            ("com.microsoft", "x", "y")
        );
        assert_eq!(node.int("accuracy_level"), None);
        assert_eq!(
            quantized.initializer(&node.input[1]).unwrap().dims,
            [300, 2, code.bits() as i64 * 4]
        );
        assert_close(
            &decoded(&quantized, node, 300, 40),
            &transposed(40, 300, &weights),
            code,
        );
        assert_eq!(quantized.opset("com.microsoft"), Some(1));
        assert!(
            quantized.initializer("w").is_none(),
            "the float weights are still there"
        );
        assert!(
            report.left.is_empty()
                && report.quantized[0].rows == 300
                && report.quantized[0].columns == 40
        );
        assert!(report.quantized[0].relative_error < if code == Code::Int4 { 0.12 } else { 0.01 });
    }
}

#[test]
fn a_gemm_keeps_its_bias_and_its_factor() {
    let weights = noise(64 * 32, 2);
    let gemm = with_attributes(
        node("Gemm", &["x", "w", "b"], &["y"]),
        vec![int("transB", 1), float("alpha", 0.5), float("beta", 1.0)],
    );
    let bias = float_tensor("b", &[64], &noise(64, 3));
    let (quantized, _) = run(
        &model(graph(
            &["x"],
            vec![float_tensor("w", &[64, 32], &weights), bias],
            vec![gemm],
            &["y"],
        )),
        Code::Int8,
    );
    assert_eq!(operators(&quantized), ["MatMulNBits", "Add"]);
    let halves: Vec<f32> = weights.iter().map(|weight| weight * 0.5).collect();
    assert_close(
        &decoded(&quantized, find(&quantized, "MatMulNBits"), 64, 32),
        &halves,
        Code::Int8,
    );
    let add = find(&quantized, "Add");
    assert_eq!(
        (add.input[0].as_str(), add.input[1].as_str()),
        (find(&quantized, "MatMulNBits").output[0].as_str(), "b")
    );
    assert_eq!(add.output[0], "y");
}

#[test]
fn weights_are_found_behind_transposes_casts_and_constants() {
    let weights = noise(32 * 96, 4);
    let half: Vec<u8> = weights
        .iter()
        .flat_map(|&weight| f16::from_f32(weight).to_le_bytes())
        .collect();
    let mut value = int("value", 0);
    value.i = None;
    value.t = Some(raw_tensor("w", DataType::Float16, &[96, 32], half));
    let nodes = vec![
        with_attributes(node("Constant", &[], &["constant"]), vec![value]),
        node("Identity", &["constant"], &["same"]),
        with_attributes(
            node("Cast", &["same"], &["wide"]),
            vec![int("to", DataType::Float as i64)],
        ),
        node("Transpose", &["wide"], &["turned"]),
        node("MatMul", &["x", "turned"], &["y"]),
    ];
    let (quantized, _) = run(&model(graph(&["x"], vec![], nodes, &["y"])), Code::Int4);
    assert_eq!(operators(&quantized), ["MatMulNBits"]);
    assert_close(
        &decoded(&quantized, &quantized.graph().node[0], 96, 32),
        &weights,
        Code::Int4,
    );
    assert_eq!(
        quantized
            .tensor(&quantized.graph().node[0].input[2])
            .unwrap()
            .unwrap()
            .data_type,
        DataType::Float
    );
}

#[test]
fn scales_have_the_type_of_the_model() {
    let bytes = |round: fn(f32) -> [u8; 2]| {
        noise(64 * 32, 5)
            .into_iter()
            .flat_map(round)
            .collect::<Vec<u8>>()
    };
    let typed = [
        (
            DataType::Float16,
            bytes(|value| f16::from_f32(value).to_le_bytes()),
        ),
        (
            DataType::Bfloat16,
            bytes(|value| bf16::from_f32(value).to_le_bytes()),
        ),
    ];
    for (data_type, data) in typed {
        let weights = raw_tensor("w", data_type, &[64, 32], data);
        let (quantized, _) = run(
            &model(graph(
                &["x"],
                vec![weights],
                vec![node("MatMul", &["x", "w"], &["y"])],
                &["y"],
            )),
            Code::Int4,
        );
        let scales = &quantized.graph().node[0].input[2];
        assert_eq!(
            quantized.tensor(scales).unwrap().unwrap().data_type,
            data_type
        );
    }
}

fn tied(columns: usize, rows: usize) -> (Vec<f32>, OnnxModel) {
    let table = noise(rows * columns, 6);
    let nodes = vec![
        node("Gather", &["table", "input_ids"], &["embedded"]),
        node("Transpose", &["table"], &["head"]),
        node("MatMul", &["embedded", "head"], &["logits"]),
    ];
    let initializers = vec![float_tensor(
        "table",
        &[rows as i64, columns as i64],
        &table,
    )];
    (
        table,
        model(graph(&["input_ids"], initializers, nodes, &["logits"])),
    )
}

#[test]
fn an_embedding_tied_to_the_output_head_is_stored_once() {
    for code in [Code::Int4, Code::Int8] {
        let (table, model) = tied(64, 128);
        let (quantized, report) = run(&model, code);
        assert_eq!(
            operators(&quantized),
            ["Reshape", "GatherBlockQuantized", "MatMulNBits"]
        );
        let (lookup, product) = (
            find(&quantized, "GatherBlockQuantized"),
            find(&quantized, "MatMulNBits"),
        );
        assert_eq!(lookup.input[2], product.input[2]);
        let integers = quantized
            .graph()
            .initializer
            .iter()
            .filter(|tensor| tensor.data_type() == DataType::Uint8 as i32);
        assert_eq!(integers.count(), 1);
        assert_close(&decoded(&quantized, lookup, 128, 64), &table, code);
        assert_close(&decoded(&quantized, product, 128, 64), &table, code);
        assert_eq!(report.quantized.len(), 2);
        quantized.sorted_nodes().unwrap();
    }
}

#[test]
fn a_table_of_ragged_rows_is_stored_for_each_use() {
    let (table, model) = tied(72, 128);
    let (quantized, _) = run(&model, Code::Int4);
    assert_eq!(
        operators(&quantized),
        ["GatherBlockQuantized", "MatMulNBits"]
    );
    let lookup = find(&quantized, "GatherBlockQuantized");
    assert_eq!(
        quantized.initializer(&lookup.input[0]).unwrap().dims,
        [128, 36]
    );
    assert_close(&decoded(&quantized, lookup, 128, 72), &table, Code::Int4);
}

/// What is said of a model in which nothing can be quantized.
fn refusal(inputs: &[&str], initializers: Vec<TensorProto>, nodes: Vec<NodeProto>) -> String {
    let model = model(graph(inputs, initializers, nodes, &["y"]));
    let refused = quantize_model(&model, &options(Code::Int4), &mut |_| ()).unwrap_err();
    assert!(matches!(refused, QuantizeError::NothingQuantized { .. }));
    refused.to_string()
}

#[test]
fn a_model_in_which_all_is_sensitive_or_small_is_refused_with_the_reason() {
    let table = || vec![float_tensor("table", &[128, 64], &noise(128 * 64, 7))];
    let by_position = vec![node("Gather", &["table", "position_ids"], &["y"])];
    assert!(refusal(&["position_ids"], table(), by_position).contains("positions"));
    let by_computed = vec![
        node("Abs", &["x"], &["i"]),
        node("Gather", &["table", "i"], &["y"]),
    ];
    assert!(refusal(&["x"], table(), by_computed).contains("positions"));
}

#[test]
fn a_model_without_matrices_that_could_be_quantized_is_refused_with_the_reason() {
    let product = |a: &str, b: &str| vec![node("MatMul", &[a, b], &["y"])];
    assert!(refusal(&["x", "w"], vec![], product("x", "w")).contains("no matrices of floats"));
    let weights = || float_tensor("w", &[64, 64], &noise(64 * 64, 7));
    let added = vec![node("Add", &["x", "w"], &["y"])];
    assert!(refusal(&["x"], vec![weights()], added).contains("Add is not quantized"));
    let thin = float_tensor("w", &[2048, 2], &noise(4096, 7));
    let turned = with_attributes(
        node("Gemm", &["x", "w"], &["y"]),
        vec![int("transA", 1), int("transB", 1)],
    );
    assert!(refusal(&["x"], vec![thin], vec![turned]).contains("share a scale"));
    // A constant of a few numbers is no weight.
    let few = float_tensor("w", &[2, 8], &noise(16, 7));
    let conv = vec![node("Conv", &["x", "w"], &["y"])];
    assert!(refusal(&["x"], vec![few], conv).contains("no matrices of floats"));
}

#[test]
fn nodes_that_are_left_beside_quantized_ones_are_named() {
    let nodes = vec![
        node("MatMul", &["x", "w"], &["h"]),
        node("Add", &["h", "offsets"], &["y"]),
    ];
    let weights = ["w", "offsets"].map(|name| float_tensor(name, &[64, 64], &noise(64 * 64, 7)));
    let model = model(graph(&["x"], weights.to_vec(), nodes, &["y"]));
    let (_, report) = run(&model, Code::Int4);
    assert_eq!(report.quantized.len(), 1);
    assert_eq!(report.left.len(), 1, "{:?}", report.left);
    let left = &report.left[0];
    assert!(left.node.starts_with("Add"), "{left:?}");
    assert_eq!(
        (left.name.as_str(), left.size_bytes),
        ("offsets", 64 * 64 * 4)
    );
}

#[test]
fn a_quantized_model_is_refused_and_two_runs_give_the_same() {
    let (_, model) = tied(64, 128);
    let (once, _) = run(&model, Code::Int4);
    let refused = quantize_model(&once, &options(Code::Int8), &mut |_| ()).unwrap_err();
    assert!(
        refused.to_string().contains("quantized already"),
        "{refused}"
    );
    let (again, _) = run(&model, Code::Int4);
    assert_eq!(
        once.proto().encode_to_vec(),
        again.proto().encode_to_vec(),
        "two runs differ"
    );
}

/// A quantized product between a float embedding and a float head.
fn half_quantized() -> OnnxModel {
    let weights = float_tensor("w", &[64, 64], &noise(64 * 64, 7));
    let product = vec![node("MatMul", &["x", "w"], &["h"])];
    let (once, _) = run(
        &model(graph(&["x"], vec![weights], product, &["h"])),
        Code::Int4,
    );
    let quantized = once.graph();
    let mut nodes = vec![node("Gather", &["table", "input_ids"], &["x"])];
    nodes.extend(quantized.node.iter().cloned());
    nodes.push(node("MatMul", &["h", "head"], &["y"]));
    let mut weights = quantized.initializer.clone();
    weights.push(float_tensor("table", &[128, 64], &noise(128 * 64, 8)));
    weights.push(float_tensor("head", &[64, 128], &noise(64 * 128, 9)));
    model(graph(&["input_ids"], weights, nodes, &["y"]))
}

#[test]
fn floats_beside_quantized_matrices_stay_unless_they_are_asked_for() {
    let model = half_quantized();
    let with = |wishes: Wishes| {
        let options = QuantizeOptions {
            wishes,
            ..QuantizeOptions::default()
        };
        quantize_model(&model, &options, &mut |_| ())
    };
    let refused = with(Wishes::default()).unwrap_err().to_string();
    assert!(
        refused.contains("left in floats by the export"),
        "{refused}"
    );

    let (after, report) = with(Weights::Int8.into()).unwrap();
    assert_eq!(operators(&after), ["Gather", "MatMulNBits", "MatMulNBits"]);
    let plan: Vec<_> = report
        .plan
        .matrices
        .iter()
        .map(|matrix| (matrix.kind, matrix.method, matrix.reason.clone()))
        .collect();
    assert_eq!(
        plan,
        [
            (MatrixKind::Embedding, "kept", Reason::LeftByTheExport),
            (MatrixKind::Other, "kept", Reason::Quantized),
            (MatrixKind::Head, "RTN", Reason::Float),
        ]
    );
    let (after, _) = with(Wishes {
        weights: None,
        embedding: Some(Weights::Int8),
        ..Wishes::default()
    })
    .unwrap();
    assert_eq!(
        operators(&after),
        ["GatherBlockQuantized", "MatMulNBits", "MatMul"]
    );
}

#[test]
fn weights_that_would_all_become_zero_are_refused() {
    let tiny: Vec<f32> = noise(64 * 64, 3)
        .iter()
        .map(|weight| weight * 1e-9)
        .collect();
    for code in [Code::Int4, Code::Int8] {
        let refused = quantize_rows(64, &tiny, code, ScaleGrid::F16).unwrap_err();
        assert!(
            matches!(refused, QuantizeError::TooSmall { .. }),
            "{refused}"
        );
    }
    let zeros = quantize_rows(64, &[0.0; 64 * 64], Code::Int4, ScaleGrid::F16).unwrap();
    assert!(zeros.scales.iter().all(|scale| *scale == 0.0));
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let weights = noise(1000 * 70, 4);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap()
            .install(|| quantize_rows(70, &weights, Code::Int4, ScaleGrid::F16).unwrap())
    };
    assert_eq!(on(1), on(3));
}

#[test]
fn the_accuracy_level_is_written_when_asked_for() {
    let (_, model) = tied(64, 128);
    let options = QuantizeOptions {
        accuracy_level: 4,
        ..options(Code::Int4)
    };
    let (quantized, _) = quantize_model(&model, &options, &mut |_| ()).unwrap();
    assert_eq!(
        find(&quantized, "MatMulNBits").int("accuracy_level"),
        Some(4)
    );
}

#[test]
fn broken_weights_are_an_error_that_names_them() {
    let mut values = noise(64 * 64, 9);
    values[777] = f32::NAN; // input channel 12, output channel 9
    let model = model(graph(
        &["x"],
        vec![float_tensor("w", &[64, 64], &values)],
        vec![node("MatMul", &["x", "w"], &["y"])],
        &["y"],
    ));
    let error = quantize_model(&model, &options(Code::Int4), &mut |_| ())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("\"w\": row 9 ") && error.contains("not finite"),
        "{error}"
    );
}
