//! Pruning of the demo model: where the zeros are, and what calibration sees.

use super::measure::{Projections, StoredRows, Verdict};
use super::{Method, Pattern, PruneError, PruneOptions, PruneReport, prune_model};
use crate::calibrate::{CalibrateError, Calibration, Follow, Pass, Replacements, SquareSums};
use crate::export::Export;
use crate::lower::{Lowered, Rounding, lower};
use crate::onnx::OnnxModel;
use crate::quantize::{Code, QuantizeOptions, quantize_model};
use std::path::Path;

fn demo() -> (OnnxModel, Export) {
    let export =
        Export::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo-model/onnx")).unwrap();
    (OnnxModel::open(&export.model).unwrap(), export)
}

fn sequences() -> Vec<Vec<u32>> {
    (0..3)
        .map(|sequence| {
            (0..40)
                .map(|token| (sequence * 131 + token * 37) % 1000 + 5)
                .collect()
        })
        .collect()
}

fn prune(
    pattern: Pattern,
    method: Method,
    sequences: Option<&[Vec<u32>]>,
) -> (OnnxModel, PruneReport) {
    let (model, export) = demo();
    let scratch = tempfile::tempdir().unwrap();
    let options = PruneOptions {
        pattern,
        method,
        calibration: sequences.map(|sequences| Calibration {
            sequences,
            scratch: scratch.path(),
            threads: 1,
        }),
    };
    prune_model(&model, &export.facts(), &options, &mut |_| ()).unwrap()
}

fn lowered(model: &OnnxModel) -> Lowered {
    lower(model, &demo().1.facts(), Rounding::Niwaki).unwrap()
}

#[test]
fn every_projection_in_the_layers_is_pruned_and_nothing_else_changes() {
    let (before, _) = demo();
    for (method, sequences) in [
        (Method::Magnitude, None),
        (Method::Wanda, Some(sequences())),
        (Method::SparseGpt, Some(sequences())),
    ] {
        let pattern = Pattern::Unstructured(0.5);
        let (after, report) = prune(pattern, method, sequences.as_deref());
        assert!(report.left.is_empty(), "{:?}", report.left);
        let graph = lowered(&before).graph;
        let layers = graph.layers.len();
        assert_eq!(
            report.pruned.len(),
            7 * layers,
            "q, k, v, o, gate, up and down of each layer"
        );
        for matrix in &report.pruned {
            let weights = (matrix.rows * matrix.columns) as u64;
            assert_eq!(matrix.zeros, weights / 2, "{}", matrix.node);
        }
        let mut changed = 0;
        for tensor in &before.graph().initializer {
            let (old, new) = (
                before.view(tensor).unwrap(),
                after.tensor(tensor.name()).unwrap().unwrap(),
            );
            assert_eq!((old.data_type, &old.dims), (new.data_type, &new.dims));
            let differs = old.data != new.data;
            changed += usize::from(differs);
            // Without an update, what stays is as it was, to the bit.
            for (old, new) in old.data.chunks(4).zip(new.data.chunks(4)) {
                assert!(old == new || new == [0; 4] || method == Method::SparseGpt);
            }
        }
        assert_eq!(changed, report.pruned.len());
    }
}

#[test]
fn two_of_every_four_weights_along_the_input_stay() {
    for method in [Method::Wanda, Method::SparseGpt] {
        two_of_four_stay(method);
    }
}

fn two_of_four_stay(method: Method) {
    let sequences = sequences();
    let (after, _) = prune(Pattern::TWO_OF_FOUR, method, Some(&sequences));
    let lowered = lowered(&after);
    let pruned = lowered.parts.matrices.iter().filter(|matrix| {
        let mut row = vec![0.0; matrix.cols()];
        matrix.read_row(0, &mut row);
        row.contains(&0.0)
    });
    let mut count = 0;
    for matrix in pruned {
        count += 1;
        let mut row = vec![0.0; matrix.cols()];
        for index in 0..matrix.rows() {
            matrix.read_row(index, &mut row);
            for four in row.chunks(4) {
                assert_eq!(
                    four.iter().filter(|weight| **weight != 0.0).count(),
                    2,
                    "{}",
                    matrix.name
                );
            }
        }
    }
    assert!(count >= 4 * lowered.graph.layers.len());
}

#[test]
fn each_projection_is_pruned_by_what_the_pruned_model_before_it_computes() {
    let sequences = sequences();
    let scratch = tempfile::tempdir().unwrap();
    let calibration = Calibration {
        sequences: &sequences,
        scratch: scratch.path(),
        threads: 1,
    };
    let pattern = Pattern::Unstructured(0.5);
    let (before, _) = demo();
    let dense = lowered(&before);
    let verdicts = Projections::of(&dense)
        .measure(
            calibration,
            pattern,
            Method::Wanda,
            &StoredRows::new(),
            &mut |_| (),
        )
        .unwrap();
    let (after, _) = prune(pattern, Method::Wanda, Some(&sequences));
    let pruned = lowered(&after);
    let matrices = Projections::of(&pruned).matrices();
    let pass = Pass {
        lowered: &pruned,
        calibration,
        matrices: &matrices,
        follow: Follow::Original,
    };
    let mut found = 0;
    pass.run(
        |input| Ok::<_, CalibrateError>(SquareSums::new(input.columns)),
        |seen| {
            for (input, sums) in seen {
                for origin in Projections::of(&pruned).names(input.matrix) {
                    assert_eq!(verdicts[origin], Verdict::Driven(sums.norms()));
                    found += 1;
                }
            }
            Ok(Replacements::new())
        },
        &mut |_| (),
    )
    .unwrap();
    assert_eq!(found, 7 * dense.graph.layers.len());
}

#[test]
fn what_cannot_be_pruned_is_refused_or_named() {
    let (model, export) = demo();
    fn with(pattern: Pattern, calibration: Option<Calibration<'_>>) -> PruneOptions<'_> {
        PruneOptions {
            pattern,
            method: match calibration {
                None => Method::Magnitude,
                Some(_) => Method::Wanda,
            },
            calibration,
        }
    }
    let prune =
        |options: PruneOptions<'_>| prune_model(&model, &export.facts(), &options, &mut |_| ());
    for sparsity in [1.0, 0.0, -0.1, f64::NAN] {
        let refused = prune(with(Pattern::Unstructured(sparsity), None)).unwrap_err();
        assert!(matches!(refused, PruneError::Sparsity(_)), "{sparsity}");
    }
    let unmeasured = PruneOptions {
        method: Method::SparseGpt,
        ..with(Pattern::TWO_OF_FOUR, None)
    };
    assert!(matches!(prune(unmeasured), Err(PruneError::NoCalibration)));
    let nothing = Calibration {
        sequences: &[vec![]],
        scratch: Path::new("."),
        threads: 1,
    };
    let refused = prune(with(Pattern::TWO_OF_FOUR, Some(nothing))).unwrap_err();
    assert!(matches!(
        refused,
        PruneError::Calibrate(CalibrateError::NoTokens)
    ));

    let (quantized, _) =
        quantize_model(&model, &QuantizeOptions::new(Code::Int8), &mut |_| ()).unwrap();
    let (sequences, scratch) = (sequences(), tempfile::tempdir().unwrap());
    for calibration in [None, Some(&sequences)] {
        let calibration = calibration.map(|sequences| Calibration {
            sequences,
            scratch: scratch.path(),
            threads: 1,
        });
        let options = with(Pattern::Unstructured(0.5), calibration);
        let refused = prune_model(&quantized, &export.facts(), &options, &mut |_| ()).unwrap_err();
        assert!(matches!(refused, PruneError::NothingPruned { .. }));
        let said = refused.to_string();
        assert!(said.contains("prune before quantizing"), "{said}");
    }
    // One of every matrix's rows would have to have two thousand columns.
    let options = with(Pattern::Unstructured(1e-9), None);
    let refused = prune_model(&model, &export.facts(), &options, &mut |_| ()).unwrap_err();
    assert!(
        refused.to_string().contains("less than one weight"),
        "{refused}"
    );
}

mod any_model {
    //! Models that are no decoders: what is pruned of them, and what is not.

    use super::*;
    use crate::lower::ModelFacts;
    use crate::onnx::proto::{GraphProto, NodeProto};
    use crate::onnx::small_models::{
        float_tensor, graph, graph_attribute, int, model, node, tensor_attribute, with_attributes,
    };

    /// Numbers of which none is zero and no two are equally far from it.
    fn numbers(count: usize) -> Vec<f32> {
        (0..count)
            .map(|index| {
                ((index * 7 + 3) % count + 1) as f32 * if index % 2 == 0 { 1.0 } else { -1.0 }
            })
            .collect()
    }

    fn tensor(name: &str, dims: &[i64]) -> crate::onnx::proto::TensorProto {
        let count = dims.iter().product::<i64>() as usize;
        float_tensor(name, dims, &numbers(count))
    }

    fn by_magnitude(
        graph: GraphProto,
        pattern: Pattern,
    ) -> Result<(OnnxModel, PruneReport), PruneError> {
        let options = PruneOptions {
            pattern,
            method: Method::Magnitude,
            calibration: None,
        };
        prune_model(&model(graph), &ModelFacts::default(), &options, &mut |_| ())
    }

    fn values(model: &OnnxModel, name: &str) -> Vec<f32> {
        model.tensor(name).unwrap().unwrap().to_f32().unwrap()
    }

    fn zeros(values: &[f32]) -> usize {
        values.iter().filter(|value| **value == 0.0).count()
    }

    fn convolutional() -> GraphProto {
        graph(
            &["image"],
            vec![
                tensor("kernels", &[8, 4, 3, 3]),
                tensor("hidden", &[8, 16]),
                tensor("classes", &[10, 16]),
                tensor("bias", &[10]),
            ],
            vec![
                node("Conv", &["image", "kernels"], &["features"]),
                node("GlobalAveragePool", &["features"], &["pooled"]),
                node("Flatten", &["pooled"], &["flat"]),
                node("MatMul", &["flat", "hidden"], &["inner"]),
                node("Relu", &["inner"], &["active"]),
                with_attributes(
                    node("Gemm", &["active", "classes", "bias"], &["scores"]),
                    vec![int("transB", 1)],
                ),
                node("Softmax", &["scores"], &["answer"]),
            ],
            &["answer"],
        )
    }

    #[test]
    fn convolutions_and_products_are_pruned_and_what_gives_the_answer_is_not() {
        let (after, report) = by_magnitude(convolutional(), Pattern::Unstructured(0.5)).unwrap();
        assert_eq!(zeros(&values(&after, "kernels")), 8 * 4 * 9 / 2);
        assert_eq!(zeros(&values(&after, "hidden")), 8 * 16 / 2);
        assert_eq!(values(&after, "classes"), numbers(160));
        assert_eq!(after.tensor("kernels").unwrap().unwrap().dims, [8, 4, 3, 3]);
        let shapes: Vec<_> = report.pruned.iter().map(|m| (m.rows, m.columns)).collect();
        assert_eq!(shapes, [(8, 36), (16, 8)]);
        assert_eq!(report.spared.len(), 1, "{:?}", report.spared);
        assert!(report.spared[0].node.contains("Gemm"));
        assert!(
            report.notes[0].contains("its layers are not known"),
            "{:?}",
            report.notes
        );
    }

    #[test]
    fn groups_lie_along_the_input_of_each_channel() {
        let (after, _) = by_magnitude(convolutional(), Pattern::TWO_OF_FOUR).unwrap();
        for four in values(&after, "kernels").chunks(4) {
            assert_eq!(zeros(four), 2);
        }
        // Stored with the input first.
        let hidden = values(&after, "hidden");
        for channel in 0..16 {
            let row: Vec<f32> = (0..8).map(|input| hidden[input * 16 + channel]).collect();
            for four in row.chunks(4) {
                assert_eq!(zeros(four), 2);
            }
        }
    }

    fn branch(weights: &str, product: &str) -> GraphProto {
        graph(
            &[],
            vec![tensor(weights, &[8, 8])],
            vec![
                node("MatMul", &["inner", weights], &[product]),
                node("Relu", &[product], &["chosen"]),
            ],
            &["chosen"],
        )
    }

    fn in_body(node: &NodeProto, attribute: &str) -> Vec<f32> {
        let body = node.graph(attribute).unwrap();
        let bytes = body.initializer[0].raw_data.clone().unwrap();
        bytes
            .chunks(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect()
    }

    #[test]
    fn weights_in_the_branches_of_an_if_are_pruned_though_they_have_one_name() {
        let mut other = branch("w", "p");
        other.initializer[0] = tensor("w", &[8, 4]);
        let both = graph(
            &["which", "x"],
            vec![tensor("first", &[4, 8])],
            vec![
                node("MatMul", &["x", "first"], &["inner"]),
                with_attributes(
                    node("If", &["which"], &["y"]),
                    vec![
                        graph_attribute("then_branch", branch("w", "p")),
                        graph_attribute("else_branch", other),
                    ],
                ),
            ],
            &["y"],
        );
        let (after, report) = by_magnitude(both, Pattern::Unstructured(0.5)).unwrap();
        assert_eq!(report.pruned.len(), 3, "{report:?}");
        let branches = &after.graph().node[1];
        for (attribute, count) in [("then_branch", 64), ("else_branch", 32)] {
            let values = in_body(branches, attribute);
            assert_eq!((values.len(), zeros(&values)), (count, count / 2));
        }
    }

    #[test]
    fn a_branch_that_gives_the_answer_is_spared() {
        let answer = |weights: &str| {
            let product = node("MatMul", &["inner", weights], &["chosen"]);
            graph(
                &[],
                vec![tensor(weights, &[8, 8])],
                vec![product],
                &["chosen"],
            )
        };
        let both = graph(
            &["which", "x"],
            vec![tensor("first", &[4, 8])],
            vec![
                node("MatMul", &["x", "first"], &["inner"]),
                with_attributes(
                    node("If", &["which"], &["y"]),
                    vec![
                        graph_attribute("then_branch", answer("a")),
                        graph_attribute("else_branch", answer("b")),
                    ],
                ),
            ],
            &["y"],
        );
        let (_, report) = by_magnitude(both, Pattern::Unstructured(0.5)).unwrap();
        assert_eq!(
            (report.pruned.len(), report.spared.len()),
            (1, 2),
            "{report:?}"
        );
    }

    #[test]
    fn tables_and_what_shares_weights_with_them_stay_whole() {
        let table = tensor("table", &[64, 32]);
        let constant = with_attributes(
            node("Constant", &[], &["constant"]),
            vec![tensor_attribute("value", tensor("", &[32, 32]))],
        );
        let tied = graph(
            &["ids"],
            vec![table],
            vec![
                constant,
                node("Gather", &["table", "ids"], &["x"]),
                node("MatMul", &["x", "constant"], &["inner"]),
                node("Transpose", &["table"], &["turned"]),
                node("MatMul", &["inner", "turned"], &["tied"]),
                node("Relu", &["tied"], &["y"]),
            ],
            &["y"],
        );
        let (after, report) = by_magnitude(tied, Pattern::Unstructured(0.25)).unwrap();
        assert_eq!(values(&after, "table"), numbers(64 * 32));
        let value = after.graph().node[0].tensor("value").unwrap();
        assert_eq!(zeros(&after.view(value).unwrap().to_f32().unwrap()), 256);
        assert_eq!(report.left.len(), 1, "{report:?}");
        assert!(report.spared[0].reason.contains("looked up"), "{report:?}");
    }

    #[test]
    fn what_was_left_is_named_with_its_reason() {
        let odd = graph(
            &["x"],
            vec![
                tensor("batched", &[2, 32, 32]),
                tensor("left", &[32, 32]),
                tensor("gates", &[1, 128, 32]),
                tensor("plain", &[32, 32]),
            ],
            vec![
                node("MatMul", &["x", "batched"], &["a"]),
                node("MatMul", &["left", "a"], &["b"]),
                node("LSTM", &["b", "gates", "gates"], &["c"]),
                node("MatMul", &["c", "plain"], &["d"]),
                node("Relu", &["d"], &["y"]),
            ],
            &["y"],
        );
        let (_, report) = by_magnitude(odd, Pattern::Unstructured(0.5)).unwrap();
        let reasons: Vec<&str> = report
            .left
            .iter()
            .map(|left| left.reason.as_str())
            .collect();
        assert_eq!(
            reasons,
            [
                "its weights have 3 dimensions",
                "its weights are the left factor",
                "the operator LSTM is not pruned",
                "the operator LSTM is not pruned",
            ]
        );
        assert_eq!(report.pruned.len(), 1);
    }

    #[test]
    fn a_model_with_nothing_to_prune_is_refused_and_so_is_measuring_in_one_that_does_not_lower() {
        let only_head = graph(
            &["x"],
            vec![tensor("w", &[32, 32])],
            vec![node("MatMul", &["x", "w"], &["y"])],
            &["y"],
        );
        let refused = by_magnitude(only_head, Pattern::Unstructured(0.5)).unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("it gives what the model answers"),
            "{refused}"
        );
        let none = graph(&["x"], vec![], vec![node("Relu", &["x"], &["y"])], &["y"]);
        let refused = by_magnitude(none, Pattern::Unstructured(0.5)).unwrap_err();
        assert!(
            refused.to_string().contains("it multiplies by no weights"),
            "{refused}"
        );
        let options = PruneOptions {
            pattern: Pattern::TWO_OF_FOUR,
            method: Method::Wanda,
            calibration: None,
        };
        let model = model(convolutional());
        let refused = prune_model(&model, &ModelFacts::default(), &options, &mut |_| ());
        assert!(matches!(refused, Err(PruneError::Lower(_))));
    }
}
