//! What a bundle holds, and what it says of itself.

use super::*;
use crate::onnx::{WeightLocation, write_model};
use crate::plan::{MatrixKind, Reason};
use crate::quantize::{QuantizeOptions, quantize_model};
use niwaki_bundle::{Bundle, ElementKind, Verify};
use std::path::PathBuf;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo-model/onnx")
}

fn zoo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/zoo")
        .join(name)
}

/// The bundle of an export, and what was said of it.
fn built(export: &Path, wishes: impl Into<Wishes>) -> (Bundle, Built) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.niwaki");
    let built = build(export, None, &path, wishes, &mut |_| ()).unwrap();
    (Bundle::open(&path, Verify::Full).unwrap(), built)
}

fn provenance(bundle: &Bundle) -> Vec<(&str, &str)> {
    let options = bundle.manifest().provenance.options.iter();
    options
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

#[test]
fn the_plan_names_every_matrix_and_the_provenance_what_was_done() {
    let (bundle, built) = built(&demo(), Wishes::default());
    let lines = built.plan.lines();
    let kinds: Vec<_> = lines.iter().map(|line| (line.kind, line.count)).collect();
    assert_eq!(
        kinds,
        [
            (MatrixKind::EmbeddingAndHead, 1),
            (MatrixKind::Qkv, 6),
            (MatrixKind::AttentionOutput, 6),
            (MatrixKind::GateUp, 6),
            (MatrixKind::Down, 6),
        ]
    );
    for (planned, stored) in built
        .plan
        .matrices
        .iter()
        .zip(&bundle.weight_table().matrices)
    {
        assert_eq!(planned.name, stored.name);
        assert_eq!((planned.rows, planned.columns), (stored.rows, stored.cols));
        assert_eq!(
            (planned.format.as_str(), planned.method),
            ("int4, block 32", "RTN")
        );
        assert_eq!(stored.element, ElementKind::Int4);
    }
    assert_eq!(
        provenance(&bundle),
        [("quantizer", "RTN"), ("weights", "int4")]
    );
    assert!(
        built.notes.is_empty() && built.missing.is_empty(),
        "{built:?}"
    );
}

#[test]
fn an_embedding_of_its_own_is_told_of_apart() {
    let wishes = Wishes {
        weights: Some(Weights::Int4),
        embedding: Some(Weights::Int8),
        ..Wishes::default()
    };
    let (bundle, built) = built(&demo(), wishes);
    assert_eq!(built.plan.matrices[0].format, "int8, block 32");
    assert_eq!(bundle.weight_table().matrices[0].element, ElementKind::Int8);
    assert_eq!(bundle.weight_table().matrices[1].element, ElementKind::Int4);
    let expected = [
        ("embedding", "int8"),
        ("quantizer", "RTN"),
        ("weights", "int4"),
    ];
    assert_eq!(provenance(&bundle), expected);
}

/// The demo model with its projections quantized and its embedding in floats.
fn with_float_embedding(folder: &Path) {
    let export = Export::open(&demo()).unwrap();
    let model = OnnxModel::open(&export.model).unwrap();
    let options = QuantizeOptions {
        wishes: Wishes {
            weights: Some(Weights::Int4),
            embedding: Some(Weights::AsStored),
            ..Wishes::default()
        },
        facts: export.facts(),
        ..QuantizeOptions::default()
    };
    let (quantized, _) = quantize_model(&model, &options, &mut |_| ()).unwrap();
    write_model(
        &quantized,
        &folder.join("model.onnx"),
        WeightLocation::Inline,
    )
    .unwrap();
    std::fs::copy(demo().join("config.json"), folder.join("config.json")).unwrap();
}

#[test]
fn a_float_embedding_beside_quantized_matrices_is_not_quantized_unless_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    with_float_embedding(folder.path());
    for weights in [None, Some(Weights::Int4), Some(Weights::Int8)] {
        let wishes = Wishes {
            weights,
            embedding: None,
            ..Wishes::default()
        };
        let (bundle, built) = built(folder.path(), wishes);
        let embedding = &built.plan.matrices[0];
        assert_eq!(embedding.kind, MatrixKind::EmbeddingAndHead);
        assert_eq!(
            (embedding.format.as_str(), &embedding.reason),
            ("f32", &Reason::LeftByTheExport)
        );
        assert_eq!(bundle.weight_table().matrices[0].element, ElementKind::F32);
        assert!(
            built.plan.matrices[1..]
                .iter()
                .all(|matrix| matrix.reason == Reason::Quantized)
        );
        assert_eq!(
            provenance(&bundle),
            [("weights", "as-stored")],
            "nothing was rounded"
        );
    }
    let wishes = Wishes {
        weights: None,
        embedding: Some(Weights::Int8),
        ..Wishes::default()
    };
    let (bundle, _) = built(folder.path(), wishes);
    assert_eq!(bundle.weight_table().matrices[0].element, ElementKind::Int8);
    let expected = [
        ("embedding", "int8"),
        ("quantizer", "RTN"),
        ("weights", "as-stored"),
    ];
    assert_eq!(provenance(&bundle), expected);
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    for (index, export) in [demo(), zoo("llama--genai--int4")].iter().enumerate() {
        for wishes in [
            Wishes::default(),
            Weights::F16.into(),
            Weights::AsStored.into(),
        ] {
            let bytes = [1, 3].map(|threads| {
                let path = folder.path().join(format!("{index}-{threads}.niwaki"));
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                pool.unwrap()
                    .install(|| build(export, None, &path, wishes, &mut |_| ()))
                    .unwrap();
                std::fs::read(path).unwrap()
            });
            assert!(bytes[0] == bytes[1], "{}: {wishes:?}", export.display());
        }
    }
}

#[test]
fn progress_grows_to_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut shares = vec![];
    let path = folder.path().join("model.niwaki");
    build(&demo(), None, &path, Weights::Int8, &mut |share| {
        shares.push(share)
    })
    .unwrap();
    assert!(
        shares.is_sorted() && shares.last() == Some(&1.0),
        "{shares:?}"
    );
}

#[test]
fn an_export_without_tokenizer_and_configuration_says_so() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(demo().join("model.onnx"), folder.path().join("model.onnx")).unwrap();
    let (bundle, built) = built(folder.path(), Weights::Int4);
    assert!(bundle.tokenizer_json().unwrap().is_none());
    let missing = built.missing.join("\n");
    assert!(
        missing.contains("config.json") && missing.contains("tokenizer.json"),
        "{missing}"
    );
}

/// The demo model with every projection moved to the nearest point of a 4-bit grid, in floats.
fn on_a_grid(folder: &Path) {
    let model = OnnxModel::open(&Export::open(&demo()).unwrap().model).unwrap();
    let mut proto = model.proto().clone();
    let graph = proto.graph.as_mut().unwrap();
    for tensor in &mut graph.initializer {
        // Products are by [inputs, outputs].
        let [inputs, outputs] = tensor.dims[..] else {
            continue;
        };
        let (inputs, outputs) = (inputs as usize, outputs as usize);
        if inputs > 1000 {
            continue;
        }
        let bytes = tensor.raw_data.clone().unwrap();
        let mut values: Vec<f32> = bytes
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect();
        for output in 0..outputs {
            for first in (0..inputs).step_by(32) {
                let at = |input: usize| input * outputs + output;
                let block = first..(first + 32).min(inputs);
                let largest = block.clone().map(|input| values[at(input)].abs());
                let scale = half::f16::from_f32(largest.fold(0.0, f32::max) / 7.0).to_f32();
                for input in block {
                    let value = &mut values[at(input)];
                    *value = (*value / scale).round_ties_even().clamp(-8.0, 7.0) * scale;
                }
            }
        }
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        tensor.raw_data = Some(bytes.into());
    }
    let model = model.derive(proto).unwrap();
    write_model(&model, &folder.join("model.onnx"), WeightLocation::Inline).unwrap();
    std::fs::copy(demo().join("config.json"), folder.join("config.json")).unwrap();
}

#[test]
fn second_terms_of_activations_are_written_and_pay() {
    let export = Export::open(&demo()).unwrap();
    let text: Vec<Vec<u32>> = (0..10u32)
        .map(|first| {
            (0..200)
                .map(|at| (first * 91 + at * 37) % 2000 + 5)
                .collect()
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let built = |share: f64| {
        let path = folder.path().join("model.niwaki");
        let mut options = BuildOptions::new(Weights::Int8);
        options.refine_share = Some(share);
        options.measures = true;
        options.text = Text::Given(&text);
        let built = build_from(&export, &export.model, &path, &options, &mut |_, _| ()).unwrap();
        let bundle = Bundle::open(&path, Verify::Full).unwrap();
        let refined = |matrix: &niwaki_bundle::MatrixEntry| matrix.refined;
        let told = provenance(&bundle);
        let told = told
            .iter()
            .any(|(name, text)| *name == "activations" && text.contains("two terms"));
        assert_eq!(told, share > 0.0);
        let refined: usize = bundle.weight_table().matrices.iter().map(refined).sum();
        (refined, built.quality.unwrap().kl_nats)
    };
    let (none, before) = built(0.0);
    let (some, after) = built(0.05);
    assert_eq!(none, 0);
    assert!(some > 0);
    assert!(
        after < before,
        "{after} with second terms, {before} without"
    );
}

#[test]
fn what_training_left_on_a_grid_is_kept_to_the_last_bit() {
    let folder = tempfile::tempdir().unwrap();
    on_a_grid(folder.path());
    for weights in [Weights::Codebook4, Weights::Int4, Weights::Int8] {
        let (bundle, built) = built(folder.path(), weights);
        let (exact, _) = self::built(folder.path(), Weights::F32);
        let kept = built.plan.matrices.iter().enumerate().skip(1);
        for (id, matrix) in kept {
            assert_eq!(matrix.method, "kept codes", "{}", matrix.name);
            assert!(
                matrix
                    .reason
                    .to_string()
                    .starts_with("trained for 4 bits: "),
                "{}",
                matrix.reason
            );
            let (mut row, mut expected) = (vec![0.0; matrix.columns], vec![0.0; matrix.columns]);
            for index in [0, matrix.rows / 2, matrix.rows - 1] {
                bundle.matrix(id).unwrap().read_row(index, &mut row);
                exact.matrix(id).unwrap().read_row(index, &mut expected);
                assert_eq!(row, expected, "{}", matrix.name);
            }
        }
    }
}
