//! Builds that are calibrated: what they cost, what they choose, and that they can be stopped.

use crate::build::{
    Budget, BuildError, BuildOptions, Built, Phase, Text, Weights, Wishes, build_from,
};
use crate::export::Export;
use crate::lower::{Rounding, lower, split_values};
use crate::onnx::OnnxModel;
use crate::plan::{Code, Fate};
use crate::quantize::{Gptq, Quantizer, RoundToNearest, ScaleSearch};
use niwaki::{Engine, LogitsFor, OpenOptions};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn demo() -> Export {
    Export::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo-model/onnx")).unwrap()
}

/// Few tokens, which the demo model writes quickly.
fn options<'a>(weights: Weights) -> BuildOptions<'a> {
    let mut options = BuildOptions::new(weights);
    options.quantizers = &[&Gptq::USUAL];
    options.text = Text::Own { tokens: 3072 };
    options
}

fn build(options: &BuildOptions<'_>) -> Result<(Built, Vec<u8>), BuildError> {
    let (export, folder) = (demo(), tempfile::tempdir().unwrap());
    let path = folder.path().join("model.niwaki");
    let built = build_from(&export, &export.model, &path, options, &mut |_, _| ())?;
    Ok((built, fs::read(path).unwrap()))
}

fn quality(built: &Built) -> f64 {
    built.quality.as_ref().unwrap().kl_nats
}

#[test]
fn of_several_methods_the_best_one_is_kept_and_all_are_told() {
    let mut options = options(Weights::Codebook4);
    options.quantizers = &[&RoundToNearest, &Gptq::USUAL, &ScaleSearch];
    let (built, _) = build(&options).unwrap();
    assert_eq!(built.tried.len(), 3);
    let least = built
        .tried
        .iter()
        .min_by(|a, b| a.kl_nats.total_cmp(&b.kl_nats));
    let least = least.unwrap();
    assert_eq!(quality(&built), least.kl_nats);
    assert!(
        least.what.starts_with(built.plan.matrices[0].method),
        "{}",
        least.what
    );
    assert_ne!(least.what, "RTN");
}

#[test]
fn without_a_method_four_bits_are_calibrated_and_eight_are_rounded() {
    for (weights, method) in [(Weights::Int4, "GPTQ"), (Weights::Int8, "RTN")] {
        let mut options = options(weights);
        options.quantizers = &[];
        let (built, _) = build(&options).unwrap();
        assert_eq!(built.plan.matrices[0].method, method);
        assert_eq!(built.quality.is_some(), method == "GPTQ");
    }
}

#[test]
fn a_build_that_was_stopped_goes_on_to_the_same_bytes_with_any_number_of_threads() {
    let shelf = tempfile::tempdir().unwrap();
    let mut options = options(Weights::Codebook4);
    options.shelf = Some(shelf.path());
    options.threads = 1;
    let (first, whole) = build(&options).unwrap();
    assert_eq!(first.resumed, 0);
    let mut files: Vec<PathBuf> = fs::read_dir(shelf.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some())
        .collect();
    files.sort();
    assert_eq!(files.len(), first.plan.matrices.len());
    // One is gone, another was only half written.
    fs::remove_file(&files[3]).unwrap();
    let bytes = fs::read(&files[5]).unwrap();
    fs::write(&files[5], &bytes[..bytes.len() / 2]).unwrap();
    options.threads = 3;
    let (second, again) = build(&options).unwrap();
    assert_eq!(second.resumed, files.len() - 2);
    assert!(whole == again, "the bundles differ");
    // Of another text nothing is taken.
    options.text = Text::Own { tokens: 2560 };
    assert_eq!(build(&options).unwrap().0.resumed, 0);
}

#[test]
fn a_build_says_what_it_is_at() {
    let (export, folder) = (demo(), tempfile::tempdir().unwrap());
    let path = folder.path().join("model.niwaki");
    let mut phases: Vec<Phase> = vec![];
    let mut last = 0.0;
    build_from(
        &export,
        &export.model,
        &path,
        &options(Weights::Codebook4),
        &mut |phase, share| {
            assert!((0.0..=1.0).contains(&share), "{phase:?}: {share}");
            if phases.last() != Some(&phase) {
                phases.push(phase);
                last = 0.0;
            }
            assert!(share >= last, "{phase:?} goes back");
            last = share;
        },
    )
    .unwrap();
    use Phase::{Building, Calibrating, Measuring, Writing};
    assert_eq!(phases, [Writing, Calibrating, Measuring, Building]);
}

#[test]
fn a_budget_is_kept_and_spent_where_it_gains() {
    let (four_bits, bytes) = build(&options(Weights::Codebook4)).unwrap();
    let mut options = options(Weights::Codebook4);
    let size_bytes = bytes.len() as u64 + 200_000;
    options.budget = Some(Budget::SizeBytes(size_bytes));
    let (built, bytes) = build(&options).unwrap();
    assert!(bytes.len() as u64 <= size_bytes + 4096, "{}", bytes.len());
    assert!(quality(&built) < quality(&four_bits));
    let codes: BTreeSet<Code> = built
        .plan
        .matrices
        .iter()
        .filter_map(|matrix| match matrix.fate {
            Fate::Quantize(code) => Some(code),
            _ => None,
        })
        .collect();
    assert_eq!(codes, BTreeSet::from([Code::Codebook4, Code::Int8]));
    assert!(
        built
            .tried
            .iter()
            .any(|tried| tried.what.contains("v of the"))
    );

    options.budget = Some(Budget::SizeBytes(1_000_000));
    let refused = build(&options).unwrap_err().to_string();
    assert!(refused.contains("1.0 MB is not enough"), "{refused}");
    options.budget = Some(Budget::BitsPerWeight(4.1));
    let refused = build(&options).unwrap_err().to_string();
    assert!(
        refused.contains("4.1 bits for each weight is not enough"),
        "{refused}"
    );
}

#[test]
fn a_limit_that_is_not_met_says_what_would_meet_it() {
    let mut options = options(Weights::Codebook4);
    options.max_perplexity_increase = Some(10.0);
    let (built, _) = build(&options).unwrap();
    let increase = built.quality.unwrap().perplexity_increase();
    options.max_perplexity_increase = Some(increase / 2.0);
    let refused = build(&options).unwrap_err().to_string();
    assert!(refused.contains("--target-size"), "{refused}");
    options.max_perplexity_increase = Some(0.0);
    options.quantizers = &[&RoundToNearest as &dyn Quantizer];
    let refused = build(&options).unwrap_err();
    assert!(
        matches!(refused, BuildError::PerplexityIncrease { .. }),
        "{refused}"
    );
}

#[test]
fn formats_need_a_text_to_measure_on() {
    let mut options = options(Weights::Codebook4);
    options.budget = Some(Budget::BitsPerWeight(5.0));
    let sequences = vec![vec![1, 2, 3, 4]; 4];
    options.text = Text::Given(&sequences);
    assert!(matches!(build(&options), Err(BuildError::NothingHeldOut)));
}

#[test]
fn values_apart_change_no_bit() {
    let (export, folder) = (demo(), tempfile::tempdir().unwrap());
    let model = OnnxModel::open(&export.model).unwrap();
    let lowered = || lower(&model, &export.facts(), Rounding::Niwaki).unwrap();
    let (joined, mut apart) = (lowered(), lowered());
    split_values(&mut apart);
    let layers = joined.graph.layers.len();
    assert_eq!(apart.graph.nodes.len(), joined.graph.nodes.len() + layers);
    let options = BuildOptions::new(Wishes::from(Weights::Int8));
    let logits = [joined, apart].map(|lowered| {
        let path = folder.path().join("model.niwaki");
        let outcome = super::Outcome::default();
        crate::build::write(
            &export,
            &lowered,
            &path,
            &options,
            None,
            outcome,
            &mut |_, _| (),
        )
        .unwrap();
        let engine = Engine::open(&path, &OpenOptions::default()).unwrap();
        let mut session = engine.session().unwrap();
        let tokens: Vec<u32> = (5..90).collect();
        let logits = session.append(&tokens, LogitsFor::EveryToken).unwrap();
        logits
            .as_slice()
            .iter()
            .map(|x| x.to_bits())
            .collect::<Vec<u32>>()
    });
    assert!(logits[0] == logits[1], "the logits differ");
}
