//! `niwaki eval` and `niwaki logits`: figures that other tools confirm, and models that cannot be measured.
#![allow(clippy::unwrap_used)]

use niwaki_convert::build::Weights;
use niwaki_tests::{build_demo, demo_export, demo_held_out_text, niwaki, workspace, zoo};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tempfile::TempDir;

/// The demo model at 8 bits.
static BUILT: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    build_demo(&folder.path().join("int8.niwaki"), Weights::Int8).unwrap();
    folder
});

fn int8() -> PathBuf {
    BUILT.path().join("int8.niwaki")
}

/// A command's stdout.
fn stdout(command: &mut assert_cmd::Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The figures of `niwaki eval` with these options.
fn eval(model: &Path, options: &[&str]) -> Value {
    let mut command = niwaki!("eval", model, "--text", demo_held_out_text(), "--json");
    serde_json::from_str(&stdout(command.args(options))).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

/// What `niwaki eval` of a small text says when it fails, with the names of folders taken out.
fn failure(folder: &Path, model: &Path, options: &[&str]) -> String {
    let text = folder.join("text.txt");
    if !text.exists() {
        fs::write(&text, "Once upon a time there was a king.\n").unwrap();
    }
    let mut command = niwaki!("eval", model, "--text", text);
    let output = command.args(options).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let stderr = String::from_utf8(output.stderr).unwrap();
    stderr
        .replace(folder.to_str().unwrap(), "DIR")
        .replace(workspace().to_str().unwrap(), "WORKSPACE")
}

/// A copy of the demo model's export, with one file changed.
fn changed_export(folder: &Path, file: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let export = folder.join("export");
    fs::create_dir(&export).unwrap();
    for entry in fs::read_dir(demo_export()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), export.join(entry.file_name())).unwrap();
    }
    let mut bytes = fs::read(export.join(file)).unwrap();
    change(&mut bytes);
    fs::write(export.join(file), bytes).unwrap();
    export
}

/// onnxruntime 1.32 on the same export, tokens and windows; the third and fourth as llama.cpp's perplexity and the guide of
/// transformers count, with their windows of 512 and 256 tokens.
#[test]
fn perplexity_is_what_onnxruntime_finds_however_the_text_is_cut() {
    for (options, scored_tokens, expected) in [
        ("--max-windows 4", 2048, 47.880_418_434_845_886),
        ("--max-windows 4 --bos none", 2048, 47.196_709_901_553_93),
        (
            "--max-windows 4 --window 511 --stride 512 --min-context 257",
            1020,
            40.278_793_514_871_076,
        ),
        (
            "--max-windows 6 --window 255 --stride 128 --bos text",
            895,
            49.791_096_079_895_32,
        ),
        (
            "--max-windows 16 --window 256 --bos passage",
            4096,
            36.735_768_978_170_51,
        ),
    ] {
        let options: Vec<&str> = options.split_whitespace().collect();
        let figures = eval(&demo_export(), &options);
        let found = number(&figures["perplexity"]);
        assert!(
            (found / expected - 1.0).abs() < 1e-6,
            "{options:?}: {found}"
        );
        assert_eq!(figures["scored_tokens"], scored_tokens, "{options:?}");
    }
}

#[test]
fn at_8_bits_little_changes_and_the_figures_say_how_little() {
    let export = demo_export();
    let options = ["--max-windows", "8", "--reference"];
    let figures = eval(
        &int8(),
        &[&options[..], &[export.to_str().unwrap()]].concat(),
    );
    let reference = &figures["reference"];
    let kl = &reference["kl_nats"];
    let ratio = number(&figures["perplexity"]) / number(&reference["perplexity"]);
    assert!((number(&reference["perplexity_ratio"]) - ratio).abs() < 1e-9);
    assert!((ratio - 1.0).abs() < 0.003, "{figures}");
    assert!(number(&reference["top1_agreement"]) > 0.97, "{figures}");
    assert!((1e-4..2e-3).contains(&number(&kl["mean"])), "{figures}");
    let order = ["median", "mean", "p99", "max"].map(|name| number(&kl[name]));
    assert!(order.is_sorted(), "{figures}");
    for (error, limit) in [
        (&kl["mean_standard_error"], 2e-4),
        (&reference["top1_agreement_standard_error"], 0.01),
        (&reference["perplexity_ratio_standard_error"], 0.002),
    ] {
        assert!((1e-7..limit).contains(&number(error)), "{figures}");
    }
    // Two models on one text are told apart far better than one model's perplexity is known.
    let alone = number(&figures["perplexity_standard_error"]) / number(&figures["perplexity"]);
    assert!(alone > 10.0 * number(&reference["perplexity_ratio_standard_error"]));
}

#[test]
fn a_model_is_no_way_from_itself() {
    let bundle = int8();
    let options = [
        "--max-windows",
        "2",
        "--reference",
        bundle.to_str().unwrap(),
    ];
    let reference = &eval(&bundle, &options)["reference"];
    assert_eq!(reference["top1_agreement"], 1.0);
    assert_eq!(reference["perplexity_ratio"], 1.0);
    for name in ["mean", "mean_standard_error", "p99", "max"] {
        assert_eq!(reference["kl_nats"][name], 0.0, "{name}");
    }
}

#[test]
fn how_keys_and_values_are_kept_concerns_the_model_and_not_its_reference() {
    let bundle = int8();
    let reference = bundle.to_str().unwrap();
    let options = ["--max-windows", "1", "--kv", "i8", "--reference", reference];
    let figures = eval(&bundle, &options);
    assert!(
        number(&figures["reference"]["kl_nats"]["mean"]) > 0.0,
        "{figures}"
    );
}

#[test]
fn damage_is_told_apart_and_adds_up() {
    let export = demo_export();
    let options = [
        "--reference",
        export.to_str().unwrap(),
        "--max-windows",
        "4",
        "--kv",
        "i8",
        "--split-damage",
    ];
    let found = eval(&int8(), &options);
    let reference = &found["reference"];
    let damage = &reference["damage_nats"];
    let parts = ["weights", "activations", "cache"].map(|part| number(&damage[part]));
    assert!(parts.iter().all(|part| *part > 0.0), "{damage}");
    let sum: f64 = parts.iter().sum();
    assert!(
        (sum - number(&reference["kl_nats"]["mean"])).abs() < 1e-12,
        "{found}"
    );
    // Weights of floats have none, and activations and cache are floats then.
    let f32 = BUILT.path().join("f32.niwaki");
    build_demo(&f32, Weights::F32).unwrap();
    let damage = &eval(&f32, &[&options[..4], &options[6..]].concat())["reference"]["damage_nats"];
    for part in ["weights", "activations", "cache"] {
        assert_eq!(number(&damage[part]), 0.0, "{damage}");
    }
    let mut told = niwaki!("eval", int8(), "--text", demo_held_out_text());
    assert!(stdout(told.args(options)).contains("damage      weights 0.00"));
}

#[test]
fn one_window_gives_figures_without_errors() {
    let export = demo_export();
    let options = [
        "--max-windows",
        "1",
        "--reference",
        export.to_str().unwrap(),
    ];
    let figures = eval(&int8(), &options);
    assert_eq!(figures["windows"], 1);
    assert_eq!(figures["perplexity_standard_error"], Value::Null);
    let kl = &figures["reference"]["kl_nats"];
    assert!(kl["mean_standard_error"].is_null() && kl["mean"].is_number());
}

/// From the logits that `niwaki logits` writes, by the definitions.
#[test]
fn figures_are_what_the_definitions_give() {
    const WINDOW: usize = 24;
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    fs::write(
        &text,
        "The wolf said:\n\n  \"Open the door\",\nand knocked.\n".repeat(4),
    )
    .unwrap();
    let prompt = fs::read_to_string(&text).unwrap();
    let mut print_ids = niwaki!("run", int8(), prompt, "--no-bos", "--print-ids", "--json");
    let ids: Value = serde_json::from_str(&stdout(&mut print_ids)).unwrap();
    let ids: Vec<usize> = serde_json::from_value(ids["ids"].clone()).unwrap();

    let inputs = &ids[..ids.len() - 1];
    let calls: Vec<Value> = (inputs.chunks(WINDOW).enumerate())
        .map(|(index, ids)| json!({"name": format!("w{index:03}"), "ids": ids, "reset": true}))
        .collect();
    let calls_file = folder.path().join("calls.json");
    fs::write(&calls_file, Value::from(calls).to_string()).unwrap();
    let probabilities = |model: &Path| {
        let output = folder.path().join("out.npz");
        stdout(&mut niwaki!(
            "logits",
            model,
            "--calls",
            &calls_file,
            "-o",
            &output
        ));
        let windows = zoo::read_logits(&output).unwrap();
        let rows = windows
            .values()
            .flat_map(|array| array.values.chunks(array.width));
        rows.map(|row| {
            let weights: Vec<f64> = row.iter().map(|logit| f64::from(*logit).exp()).collect();
            let sum: f64 = weights.iter().sum();
            weights.into_iter().map(|weight| weight / sum).collect()
        })
        .collect::<Vec<Vec<f64>>>()
    };
    let (p, q) = (probabilities(&demo_export()), probabilities(&int8()));
    assert_eq!(p.len(), inputs.len());
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    let divergence = |(p, q): (&Vec<f64>, &Vec<f64>)| -> f64 {
        p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum()
    };
    let kl = mean(p.iter().zip(&q).map(divergence).collect());
    let nats = |rows: &[Vec<f64>]| {
        mean(
            rows.iter()
                .zip(&ids[1..])
                .map(|(row, id)| -row[*id].ln())
                .collect(),
        )
    };

    let mut command = niwaki!(
        "eval",
        int8(),
        "--text",
        &text,
        "--reference",
        demo_export()
    );
    let figures = stdout(command.args(["--window", "24", "--bos", "none", "--json"]));
    let figures: Value = serde_json::from_str(&figures).unwrap();
    for (found, expected) in [
        (&figures["reference"]["kl_nats"]["mean"], kl),
        (&figures["nats_per_token"], nats(&q)),
        (&figures["reference"]["perplexity"], nats(&p).exp()),
    ] {
        assert!(
            (number(found) / expected - 1.0).abs() < 1e-9,
            "{found} {expected}"
        );
    }
}

#[test]
fn the_figures_are_told_in_words() {
    let text = demo_held_out_text();
    let mut command = niwaki!("eval", int8(), "--text", text, "--reference", demo_export());
    insta::assert_snapshot!(stdout(command.args(["--max-windows", "8"])));
}

#[test]
fn numbers_that_are_none_are_an_error_of_the_model_that_has_them() {
    let folder = tempfile::tempdir().unwrap();
    // Wherever a weight begins, one of its NaNs lies in these bytes.
    let broken = changed_export(folder.path(), "model.onnx", |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle..middle + 8].fill(0xff);
    });
    let said = failure(folder.path(), &broken, &[]);
    insta::assert_snapshot!(said);
    let options = ["--reference", broken.to_str().unwrap()];
    assert_eq!(failure(folder.path(), &demo_export(), &options), said);
    let options = ["--reference", broken.to_str().unwrap(), "--json"];
    assert_eq!(failure(folder.path(), &int8(), &options), said);
}

#[test]
fn a_reference_that_reads_the_text_otherwise_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let other = changed_export(folder.path(), "tokenizer.json", |bytes| {
        let mut tokenizer: Value = serde_json::from_slice(bytes).unwrap();
        let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        let (a, b) = (vocabulary["Ġa"].clone(), vocabulary["Ġthe"].clone());
        vocabulary.insert("Ġa".to_owned(), b);
        vocabulary.insert("Ġthe".to_owned(), a);
        *bytes = serde_json::to_vec(&tokenizer).unwrap();
    });
    let options = ["--reference", other.to_str().unwrap()];
    insta::assert_snapshot!(failure(folder.path(), &demo_export(), &options));
}

#[test]
fn a_reference_with_another_vocabulary_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let other = workspace().join("tests/zoo/llama--genai--int4");
    let options = ["--reference", other.to_str().unwrap()];
    insta::assert_snapshot!(failure(folder.path(), &demo_export(), &options));
}

#[test]
fn a_window_that_is_longer_than_the_context_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(failure(folder.path(), &demo_export(), &["--window", "513"]));
}

#[test]
fn a_text_that_is_too_short_to_predict_anything_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(failure(
        folder.path(),
        &demo_export(),
        &["--min-context", "100"]
    ));
}

#[test]
fn arrays_of_logits_lie_in_the_file_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let (calls, output) = (
        folder.path().join("calls.json"),
        folder.path().join("out.npz"),
    );
    fs::write(&calls, r#"[{"name": "a", "ids": [0, 5, 9, 100]}]"#).unwrap();
    stdout(&mut niwaki!(
        "logits",
        int8(),
        "--calls",
        &calls,
        "-o",
        &output
    ));
    let logits = zoo::read_logits(&output).unwrap().remove("a").unwrap();
    let bytes: Vec<u8> = logits
        .values
        .iter()
        .flat_map(|logit| logit.to_le_bytes())
        .collect();
    let file = fs::read(&output).unwrap();
    assert!(file.windows(bytes.len()).any(|part| part == bytes));
}
