//! Pruning of the demo model: where the zeros are, and what calibration sees.

use super::measure::{Importance, Projections};
use super::{Pattern, PruneError, PruneOptions, PruneReport, prune_model};
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

fn prune(pattern: Pattern, sequences: Option<&[Vec<u32>]>) -> (OnnxModel, PruneReport) {
    let (model, export) = demo();
    let scratch = tempfile::tempdir().unwrap();
    let options = PruneOptions {
        pattern,
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
    for sequences in [None, Some(sequences())] {
        let (after, report) = prune(Pattern::Unstructured(0.5), sequences.as_deref());
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
            // What stays is as it was, to the bit.
            for (old, new) in old.data.chunks(4).zip(new.data.chunks(4)) {
                assert!(old == new || new == [0; 4]);
            }
        }
        assert_eq!(changed, report.pruned.len());
    }
}

#[test]
fn two_of_every_four_weights_along_the_input_stay() {
    let sequences = sequences();
    let (after, _) = prune(Pattern::TWO_OF_FOUR, Some(&sequences));
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
    let importances = Projections::of(&dense)
        .measure(calibration, pattern, &mut |_| ())
        .unwrap();
    let (after, _) = prune(pattern, Some(&sequences));
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
                    assert_eq!(importances[origin], Importance::Driven(sums.norms()));
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
    let with = |pattern, calibration| PruneOptions {
        pattern,
        calibration,
    };
    let prune = |options| prune_model(&model, &export.facts(), &options, &mut |_| ());
    for sparsity in [1.0, 0.0, -0.1, f64::NAN] {
        let refused = prune(with(Pattern::Unstructured(sparsity), None)).unwrap_err();
        assert!(matches!(refused, PruneError::Sparsity(_)), "{sparsity}");
    }
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
