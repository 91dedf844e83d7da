//! A LoRA adapter that PEFT saved, merged at build, against transformers with the same adapter
//! (`tests/lora/record.py` recorded it).
#![allow(clippy::unwrap_used)]

use niwaki::{Engine, LogitsFor, OpenOptions};
use niwaki_convert::build::{BuildOptions, Weights, build_from};
use niwaki_convert::export::Export;
use niwaki_convert::lora::Adapter;
use niwaki_tests::{demo_export, workspace};
use serde::Deserialize;

#[derive(Deserialize)]
struct Recorded {
    tokens: Vec<u32>,
    /// Every eighth.
    logits: Vec<Vec<f32>>,
    without: Vec<Vec<f32>>,
}

fn recorded() -> Recorded {
    let path = workspace().join("tests/lora/logits.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Every eighth logit of the demo model with these adapters.
fn logits(adapters: &[(&Adapter, f32)], weights: Weights, tokens: &[u32]) -> Vec<Vec<f32>> {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("model.niwaki");
    let export = Export::open(&demo_export()).unwrap();
    let mut options = BuildOptions::new(weights);
    options.adapters = adapters;
    build_from(&export, &export.model, &bundle, &options, &mut |_, _| ()).unwrap();
    let engine = Engine::open(&bundle, &OpenOptions::default()).unwrap();
    let mut session = engine.session().unwrap();
    let all = session.append(tokens, LogitsFor::EveryToken).unwrap();
    let every_eighth = |row: &[f32]| row.iter().step_by(8).copied().collect();
    let rows = (0..all.rows()).filter_map(|row| all.row(row));
    rows.map(every_eighth).collect()
}

fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn adapter() -> Adapter {
    Adapter::open(&workspace().join("tests/lora/adapter")).unwrap()
}

#[test]
fn a_merged_adapter_computes_what_transformers_computes_with_it() {
    let recorded = recorded();
    let merged = logits(&[(&adapter(), 1.0)], Weights::F32, &recorded.tokens);
    assert!(largest_difference(&recorded.logits, &recorded.without) > 1.0);
    let difference = largest_difference(&merged, &recorded.logits);
    assert!(difference < 2e-3, "{difference}");
}

#[test]
fn without_strength_an_adapter_changes_nothing_and_two_halves_are_a_whole() {
    let recorded = recorded();
    let (adapter, tokens) = (adapter(), &recorded.tokens);
    let off = logits(&[(&adapter, 0.0)], Weights::F32, tokens);
    assert!(largest_difference(&off, &recorded.without) < 2e-3);
    let halves = logits(&[(&adapter, 0.5), (&adapter, 0.5)], Weights::F32, tokens);
    assert!(largest_difference(&halves, &recorded.logits) < 2e-3);
}

#[test]
fn what_is_quantized_is_the_merged_model() {
    let recorded = recorded();
    let merged = logits(&[(&adapter(), 1.0)], Weights::Int8, &recorded.tokens);
    assert!(largest_difference(&merged, &recorded.logits) < 0.5);
}
