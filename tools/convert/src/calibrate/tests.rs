//! What observers see layer by layer is what the whole model computes.

use super::piece_bundle::{self, output_name};
use super::pieces::Pieces;
use super::*;
use crate::export::Export;
use crate::lower::{Lowered, Rounding, lower};
use crate::onnx::OnnxModel;
use crate::onnx::{FloatRows, Floats};
use crate::plan::kinds;
use niwaki::{Engine, Entries, KvElement, LogitsFor, OpenOptions};
use niwaki_bundle::graph::{MatrixId, WeightMut};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

fn demo() -> Lowered {
    let export =
        Export::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo-model/onnx")).unwrap();
    let model = OnnxModel::open(&export.model).unwrap();
    lower(&model, &export.facts(), Rounding::Niwaki).unwrap()
}

/// More than one run, and a Gram chunk that two sequences share.
fn sequences() -> Vec<Vec<u32>> {
    let sequence = |sequence: u32, length: u32| {
        (0..length)
            .map(|token| (sequence * 131 + token * 37) % 1000 + 5)
            .collect()
    };
    let mut sequences: Vec<Vec<u32>> = (0..9).map(|index| sequence(index, 130)).collect();
    sequences.insert(4, vec![]);
    sequences.push(sequence(77, 1));
    sequences
}

/// Every matrix that something is multiplied with.
fn all_products(lowered: &Lowered) -> BTreeSet<MatrixId> {
    let kinds = kinds(&lowered.graph);
    let products = kinds
        .into_iter()
        .filter(|(_, kind)| kind.name() != "embedding");
    products.map(|(matrix, _)| matrix).collect()
}

/// What each of the matrices is multiplied with, computed by one bundle of the whole model, token by token of the text.
fn inputs_of_whole_model(
    lowered: &Lowered,
    sequences: &[Vec<u32>],
) -> BTreeMap<MatrixId, Vec<f32>> {
    inputs_with(lowered, sequences, &Replacements::new())
}

/// The same with some matrices replaced from the start.
fn inputs_with(
    lowered: &Lowered,
    sequences: &[Vec<u32>],
    replacements: &Replacements<'_>,
) -> BTreeMap<MatrixId, Vec<f32>> {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("whole.niwaki");
    let pieces = Pieces::of(lowered).uncut();
    let products = pieces.products(&all_products(lowered));
    let nodes: BTreeSet<usize> = products.iter().map(|product| product.reads.node).collect();
    let nodes: Vec<usize> = nodes.into_iter().collect();
    piece_bundle::write(&pieces, None, &nodes, replacements, &path).unwrap();
    let options = OpenOptions::default()
        .with_threads(1)
        .with_kv(KvElement::F32);
    let engine = Engine::open(&path, &options).unwrap();
    let mut inputs: BTreeMap<MatrixId, Vec<f32>> = BTreeMap::new();
    for sequence in sequences.iter().filter(|sequence| !sequence.is_empty()) {
        let mut session = engine.session().unwrap();
        let outputs = session
            .run(&[Entries::Ids(sequence)], LogitsFor::EveryToken, None)
            .unwrap();
        for product in &products {
            let value = outputs.get(&output_name(product.reads.node)).unwrap();
            let columns = product.reads.offset..product.reads.offset + product.reads.width;
            for row in value.as_slice().chunks(value.width()) {
                let rows = inputs.entry(product.matrix).or_default();
                rows.extend_from_slice(&row[columns.clone()]);
            }
        }
    }
    inputs
}

/// Keeps all that it sees.
struct Everything(Vec<f32>);

impl Observer for Everything {
    fn observe(&mut self, rows: &[f32]) {
        self.0.extend_from_slice(rows);
    }
}

/// What observers made by `make` saw, by matrix.
fn observe<O: Observer + Send>(
    lowered: &Lowered,
    threads: usize,
    follow: Follow,
    make: impl Fn(usize) -> O + Sync,
    replace: impl Fn(MatrixId) -> Option<Floats> + Sync,
) -> BTreeMap<MatrixId, O> {
    let sequences = sequences();
    let scratch = tempfile::tempdir().unwrap();
    let pass = Pass {
        lowered,
        calibration: Calibration {
            sequences: &sequences,
            scratch: scratch.path(),
            threads,
        },
        matrices: &all_products(lowered),
        follow,
    };
    let mut found = BTreeMap::new();
    pass.run(
        |input| Ok::<_, CalibrateError>(make(input.columns)),
        |seen| {
            let mut replacements = Replacements::new();
            for (input, observer) in seen {
                if let Some(floats) = replace(input.matrix) {
                    replacements.insert(input.matrix, Box::new(floats));
                }
                found.insert(input.matrix, observer);
            }
            Ok(replacements)
        },
        &mut |_| (),
    )
    .unwrap();
    found
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn bits64(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn layer_by_layer_sees_what_the_whole_model_computes_to_the_bit_on_any_number_of_threads() {
    let lowered = demo();
    let pieces = Pieces::of(&lowered);
    assert!(
        pieces.cuts() >= lowered.graph.layers.len(),
        "a cut before each layer"
    );
    let whole = inputs_of_whole_model(&lowered, &sequences());
    assert!(whole.len() > 4 * lowered.graph.layers.len());
    for threads in [1, 3] {
        let make = |_| Everything(vec![]);
        let seen = observe(&lowered, threads, Follow::Original, make, |_| None);
        assert_eq!(seen.len(), whole.len());
        for (matrix, rows) in &whole {
            assert!(bits(&seen[matrix].0) == bits(rows), "matrix {matrix}");
        }
    }
}

#[test]
fn statistics_are_those_of_a_plain_computation_to_the_bit_on_any_number_of_threads() {
    let lowered = demo();
    let whole = inputs_of_whole_model(&lowered, &sequences());
    let wanted = Wanted {
        square_sums: true,
        gram: true,
        ranges: true,
        samples: 100,
    };
    for threads in [1, 3] {
        let make = |columns| Statistics::new(columns, wanted).unwrap();
        let seen = observe(&lowered, threads, Follow::Original, make, |_| None);
        for (matrix, rows) in &whole {
            let columns = lowered.parts.matrices[*matrix].cols();
            let rows: Vec<&[f32]> = rows.chunks(columns).collect();
            let statistics = &seen[matrix];
            check_square_sums(statistics.square_sums.as_ref().unwrap(), &rows, columns);
            check_ranges(statistics.ranges.as_ref().unwrap(), &rows, columns);
            check_samples(statistics.samples.as_ref().unwrap(), &rows, 100);
            check_gram(statistics.gram.as_ref().unwrap(), &rows, columns);
        }
    }
}

fn check_square_sums(found: &SquareSums, rows: &[&[f32]], columns: usize) {
    let mut sums = vec![0.0f64; columns];
    for row in rows {
        for (sum, x) in sums.iter_mut().zip(*row) {
            *sum += f64::from(*x) * f64::from(*x);
        }
    }
    assert_eq!(bits64(found.sums()), bits64(&sums));
    assert_eq!(found.rows(), rows.len() as u64);
    let means = sums.iter().map(|sum| sum / rows.len() as f64);
    assert_eq!(found.means(), means.collect::<Vec<_>>());
    assert_eq!(found.norms()[0], sums[0].sqrt() as f32);
}

fn check_ranges(found: &Ranges, rows: &[&[f32]], columns: usize) {
    for column in 0..columns {
        let values = || rows.iter().map(|row| row[column]);
        assert_eq!(
            found.least()[column],
            values().fold(f32::INFINITY, f32::min)
        );
        assert_eq!(
            found.most()[column],
            values().fold(f32::NEG_INFINITY, f32::max)
        );
        let magnitude = values().map(f32::abs).fold(0.0, f32::max);
        assert_eq!(found.magnitudes()[column], magnitude);
    }
}

fn check_samples(found: &Samples, rows: &[&[f32]], most: usize) {
    // The smallest power of two that leaves few enough.
    let stride = (0..).map(|power| 1 << power);
    let stride = stride
        .clone()
        .find(|stride| rows.len().div_ceil(*stride) <= most)
        .unwrap();
    let expected: Vec<f32> = rows
        .iter()
        .step_by(stride)
        .flat_map(|row| row.iter())
        .copied()
        .collect();
    assert_eq!(bits(found.values()), bits(&expected));
    assert_eq!(
        (found.kept(), found.rows()),
        (rows.len().div_ceil(stride), rows.len() as u64)
    );
}

/// Chunks of 256 tokens in `f32` with one rounding for each token, and `f64` above them. Looks at some places only.
fn check_gram(found: &Gram, rows: &[&[f32]], columns: usize) {
    assert_eq!(
        (found.columns(), found.rows()),
        (columns, rows.len() as u64)
    );
    for step in 0..columns {
        let (i, j) = (step, (step * 7 + 3) % columns);
        let expected: f64 = rows
            .chunks(256)
            .map(|chunk| {
                f64::from(
                    chunk
                        .iter()
                        .fold(0.0f32, |sum, row| row[j].mul_add(row[i], sum)),
                )
            })
            .sum();
        assert_eq!(found.at(i, j).to_bits(), expected.to_bits(), "({i}, {j})");
        assert_eq!(found.at(j, i).to_bits(), expected.to_bits());
    }
}

#[test]
fn the_diagonal_of_a_gram_matrix_is_what_the_columns_square_sums_are() {
    let rows: Vec<f32> = (0..700 * 70)
        .map(|index| ((index * 37) % 101) as f32 / 50.0 - 1.0)
        .collect();
    let (mut gram, mut sums) = (Gram::new(70).unwrap(), SquareSums::new(70));
    for observer in [&mut gram as &mut dyn Observer, &mut sums] {
        observer.observe(&rows);
        observer.finish();
    }
    for (column, sum) in sums.sums().iter().enumerate() {
        assert!((gram.at(column, column) / sum - 1.0).abs() < 1e-5);
    }
}

proptest! {
    #[test]
    fn how_rows_are_cut_into_calls_changes_no_observer(
        cuts in prop::collection::vec(1usize..200, 1..12), most in 1usize..9
    ) {
        const COLUMNS: usize = 20;
        let rows: usize = cuts.iter().sum();
        let values: Vec<f32> = (0..rows * COLUMNS).map(|index| ((index * 31) % 97) as f32 / 48.0 - 1.0).collect();
        let wanted = Wanted { square_sums: true, gram: true, ranges: true, samples: most };
        let mut at_once = Statistics::new(COLUMNS, wanted).unwrap();
        at_once.observe(&values);
        at_once.finish();
        let mut in_pieces = Statistics::new(COLUMNS, wanted).unwrap();
        let mut rest = values.as_slice();
        for cut in cuts {
            let (piece, after) = rest.split_at(cut * COLUMNS);
            in_pieces.observe(piece);
            rest = after;
        }
        in_pieces.finish();
        prop_assert_eq!(&at_once.square_sums, &in_pieces.square_sums);
        prop_assert_eq!(&at_once.ranges, &in_pieces.ranges);
        prop_assert_eq!(&at_once.samples, &in_pieces.samples);
        let (a, b) = (at_once.gram.unwrap(), in_pieces.gram.unwrap());
        for i in 0..COLUMNS {
            for j in 0..COLUMNS {
                prop_assert_eq!(a.at(i, j).to_bits(), b.at(i, j).to_bits());
            }
        }
    }

    #[test]
    fn samples_are_never_more_than_asked_for_and_never_none(rows in 1usize..300, most in 1usize..20) {
        let mut samples = Samples::new(1, most);
        let values: Vec<f32> = (0..rows).map(|row| row as f32).collect();
        samples.observe(&values);
        prop_assert!(samples.kept() <= most && samples.kept() > 0);
        prop_assert!(rows <= most || 2 * samples.kept() > most, "{} of {most}", samples.kept());
        prop_assert_eq!(samples.values()[0], 0.0);
    }
}

/// All zeros, as large as a matrix.
fn zeros(lowered: &Lowered, matrix: MatrixId) -> Floats {
    let matrix = &lowered.parts.matrices[matrix];
    Floats::new(
        matrix.name(),
        matrix.cols(),
        vec![0.0; matrix.rows() * matrix.cols()],
    )
}

#[test]
fn what_follows_sees_replaced_matrices_as_far_as_was_asked_for() {
    let lowered = demo();
    let whole = inputs_of_whole_model(&lowered, &sequences());
    let of_kind = |name: &str| -> Vec<MatrixId> {
        let kinds = kinds(&lowered.graph).into_iter();
        kinds
            .filter(|(_, kind)| kind.name() == name)
            .map(|(id, _)| id)
            .collect()
    };
    let first_qkv = of_kind("q/k/v")[0];
    let seen_with = |follow| {
        let replace = |matrix| (matrix == first_qkv).then(|| zeros(&lowered, matrix));
        observe(&lowered, 1, follow, |_| Everything(vec![]), replace)
    };
    let unchanged = |seen: &BTreeMap<MatrixId, Everything>, matrix: MatrixId| {
        bits(&seen[&matrix].0) == bits(&whole[&matrix])
    };
    // Without values there is nothing for the first layer's output projection to see.
    let (first_o, next_qkv) = (of_kind("o")[0], of_kind("q/k/v")[1]);
    let original = seen_with(Follow::Original);
    assert!(unchanged(&original, first_o) && unchanged(&original, next_qkv));
    let pieces = seen_with(Follow::ReplacedPieces);
    assert!(unchanged(&pieces, first_o) && !unchanged(&pieces, next_qkv));
    let matrices = seen_with(Follow::ReplacedMatrices);
    assert!(matrices[&first_o].0.iter().all(|x| *x == 0.0));
    assert!(bits(&matrices[&next_qkv].0) == bits(&pieces[&next_qkv].0));
    assert!(unchanged(&matrices, first_qkv));
}

#[test]
fn weights_that_layers_share_stay_replaced() {
    let mut lowered = demo();
    let of_kind = |lowered: &Lowered, name: &str| -> Vec<MatrixId> {
        let kinds = kinds(&lowered.graph).into_iter();
        let ids = kinds.filter(|(_, kind)| kind.name() == name);
        ids.map(|(id, _)| id).collect()
    };
    let outputs = of_kind(&lowered, "o");
    for node in &mut lowered.graph.nodes {
        for weight in node.op.weights_mut() {
            if let WeightMut::Matrix(id) = weight
                && outputs.contains(id)
            {
                *id = outputs[0];
            }
        }
    }
    let replace = |matrix| (matrix == outputs[0]).then(|| zeros(&lowered, matrix));
    let make = |_| Everything(vec![]);
    let seen = observe(&lowered, 1, Follow::ReplacedPieces, make, replace);
    let mut zeroed = Replacements::new();
    zeroed.insert(outputs[0], Box::new(zeros(&lowered, outputs[0])));
    let whole = inputs_with(&lowered, &sequences(), &zeroed);
    let last = of_kind(&lowered, "q/k/v").pop().unwrap();
    assert!(bits(&seen[&last].0) == bits(&whole[&last]));
}

#[test]
fn a_text_without_tokens_and_values_that_are_no_numbers_are_refused() {
    let lowered = demo();
    let scratch = tempfile::tempdir().unwrap();
    let run = |sequences: &[Vec<u32>], replacement: f32| {
        let pass = Pass {
            lowered: &lowered,
            calibration: Calibration {
                sequences,
                scratch: scratch.path(),
                threads: 1,
            },
            matrices: &all_products(&lowered),
            follow: Follow::ReplacedPieces,
        };
        pass.run(
            |_| Ok::<_, CalibrateError>(Everything(vec![])),
            |seen| {
                let mut replacements = Replacements::new();
                for (input, _) in seen {
                    let matrix = &lowered.parts.matrices[input.matrix];
                    let values = vec![replacement; matrix.rows() * matrix.cols()];
                    let floats = Floats::new("huge", matrix.cols(), values);
                    replacements.insert(input.matrix, Box::new(floats));
                }
                Ok(replacements)
            },
            &mut |_| (),
        )
    };
    assert!(matches!(run(&[vec![]], 0.0), Err(CalibrateError::NoTokens)));
    let refused = run(&[vec![5, 6, 7]], f32::MAX).unwrap_err();
    assert!(
        matches!(refused, CalibrateError::NotFinite { .. }),
        "{refused}"
    );
}

#[test]
fn a_model_writes_the_same_text_again_and_another_by_another_seed() {
    let export = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo-model/onnx");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.niwaki");
    crate::build::build(
        &export,
        None,
        &path,
        crate::plan::Weights::Int8,
        &mut |_| (),
    )
    .unwrap();
    let written = |seed: u64, threads: usize| {
        let options = OpenOptions::default().with_threads(threads);
        let engine = Engine::open(&path, &options).unwrap();
        let wish = OwnText {
            tokens: 230,
            window_tokens: 50,
            seed,
        };
        let mut last = 0.0;
        let text = own_text(&engine, wish, &mut |share| {
            assert!(share >= last && share <= 1.0);
            last = share;
        });
        text.unwrap()
    };
    let text = written(1, 1);
    assert_eq!(text.iter().map(Vec::len).collect::<Vec<_>>(), [50; 5]);
    assert_eq!(text, written(1, 2));
    assert_ne!(text, written(2, 1));
}
