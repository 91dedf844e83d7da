//! Steps that convert models say what they did: a success means that something happened, and a bundle claims nothing else.
#![allow(clippy::unwrap_used)]

use niwaki_convert::export::Export;
use niwaki_convert::onnx::{OnnxModel, WeightLocation, write_model};
use niwaki_convert::plan::{Weights, Wishes};
use niwaki_convert::quantize::{QuantizeOptions, quantize_model};
use niwaki_tests::{demo_export, niwaki, workspace};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tempfile::TempDir;

/// The demo model with its projections quantized and its embedding, which is its head as well, in floats.
static HALF_QUANTIZED: LazyLock<TempDir> = LazyLock::new(|| {
    let wishes = Wishes {
        weights: Some(Weights::Int8),
        embedding: Some(Weights::AsStored),
        ..Wishes::default()
    };
    quantized(wishes)
});

/// The demo model with everything quantized.
static QUANTIZED: LazyLock<TempDir> = LazyLock::new(|| quantized(Weights::Int8.into()));

fn quantized(wishes: Wishes) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let export = Export::open(&demo_export()).unwrap();
    let model = OnnxModel::open(&export.model).unwrap();
    let options = QuantizeOptions {
        wishes,
        facts: export.facts(),
        ..QuantizeOptions::default()
    };
    let (quantized, _) = quantize_model(&model, &options, &mut |_| ()).unwrap();
    let path = folder.path().join("model.onnx");
    write_model(&quantized, &path, WeightLocation::Inline).unwrap();
    for name in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        fs::copy(demo_export().join(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn calibration() -> PathBuf {
    demo_export()
        .parent()
        .unwrap()
        .join("texts/calibration.txt")
}

/// What a command that succeeds says on stdout.
fn said(command: &mut assert_cmd::Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.is_empty(), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a command that fails says on stderr.
fn refused(command: &mut assert_cmd::Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

fn json(command: &mut assert_cmd::Command) -> Value {
    serde_json::from_str(&said(command.arg("--json"))).unwrap()
}

/// The provenance of a bundle, as `inspect` shows it.
fn provenance(bundle: &Path) -> Vec<String> {
    let text = said(&mut niwaki!("inspect", bundle));
    let lines = text.lines().filter(|line| line.contains(" = "));
    lines.map(|line| line.trim().to_owned()).collect()
}

#[test]
fn a_build_says_of_every_kind_of_matrix_how_it_is_stored_and_why() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("model.niwaki");
    let text = said(&mut niwaki!("build", demo_export(), "-o", &bundle));
    for kind in ["embedding, head", "q/k/v", "o", "gate/up", "down"] {
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{kind} ")));
        let line = line.unwrap_or_else(|| panic!("no {kind} in:\n{text}"));
        for word in ["codebook4, block 32", "GPTQ", "float in the export"] {
            assert!(line.contains(word), "{line}");
        }
    }
    assert!(text.contains("held-out tokens: KL 0.0"), "{text}");
    assert!(!text.contains("warning:"), "{text}");
    let told = provenance(&bundle);
    let words = [
        "activations = outlier channels first, in two terms: ",
        "calibration = 6656 tokens that the model wrote",
        "on 1533 held-out tokens",
        "quantizer = GPTQ, damping 0.05",
        "weights = codebook4",
    ];
    assert_eq!(told.len(), words.len(), "{told:?}");
    for (line, word) in told.iter().zip(words) {
        assert!(line.contains(word), "no {word} in {line}");
    }

    let int8 = said(&mut niwaki!(
        "build",
        demo_export(),
        "-o",
        &bundle,
        "--weights",
        "int8"
    ));
    assert!(!int8.contains("warning:"), "{int8}");
    let report = json(&mut niwaki!("build", demo_export(), "-o", &bundle));
    let matrices = report["matrices"].as_array().unwrap();
    assert_eq!(matrices[0]["kind"], "embedding_and_head");
    assert!(
        matrices
            .iter()
            .all(|matrix| matrix["reason"] == "float in the export")
    );
    assert!(report["warnings"].as_array().unwrap().is_empty());
    assert!(report["quality"]["kl_nats"].as_f64().unwrap() > 0.0);
}

#[test]
fn four_bits_by_rounding_alone_are_warned_about() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("model.niwaki");
    let text = said(niwaki!("build", demo_export(), "-o", &bundle).args(["--method", "rtn"]));
    let warning = text
        .lines()
        .find(|line| line.starts_with("warning: 4 bits"))
        .unwrap();
    assert!(
        warning.contains("niwaki eval") && warning.contains("--reference"),
        "{warning}"
    );
}

#[test]
fn a_calibration_text_is_named_and_a_budget_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("model.niwaki");
    let text = demo_export().join("../texts/calibration.txt");
    let size_bytes = 2_000_000;
    let said = said(niwaki!("build", demo_export(), "-o", &bundle).args([
        "--target-size",
        "2MB",
        "--calibration",
        text.to_str().unwrap(),
        "--calibration-tokens",
        "4096",
    ]));
    assert!(fs::metadata(&bundle).unwrap().len() <= size_bytes);
    assert!(said.contains("worth its bytes"), "{said}");
    let told = provenance(&bundle);
    let calibration = told.iter().find(|line| line.starts_with("calibration = "));
    assert!(
        calibration.is_some_and(|line| line.ends_with("tokens of calibration.txt")),
        "{told:?}"
    );
    let entries: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(entries.len(), 1, "something is left beside the bundle");

    let error = refused(niwaki!("build", demo_export(), "-o", &bundle).args([
        "--max-perplexity-increase",
        "0%",
        "--weights",
        "codebook4",
    ]));
    assert!(error.contains("0.00 % are allowed"), "{error}");
    let error =
        refused(niwaki!("build", demo_export(), "-o", &bundle).args(["--target-size", "1MB"]));
    assert!(error.contains("is not enough"), "{error}");
}

#[test]
fn a_build_that_was_killed_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, stopped] = ["whole.niwaki", "stopped.niwaki"].map(|name| folder.path().join(name));
    said(&mut niwaki!("build", demo_export(), "-o", &whole));
    let mut command =
        std::process::Command::new(assert_cmd::cargo::cargo_bin!("niwaki-under-test"));
    command.args([
        "build".as_ref(),
        demo_export().as_os_str(),
        "-o".as_ref(),
        stopped.as_os_str(),
    ]);
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    let shelf = folder.path().join("stopped.niwaki.unfinished");
    let matrices = || fs::read_dir(&shelf).map_or(0, |entries| entries.count());
    while matrices() < 5 {
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before it was killed"
        );
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!stopped.exists());
    let text = said(&mut niwaki!("build", demo_export(), "-o", &stopped));
    assert!(
        text.contains("matrices that a build before this one had quantized"),
        "{text}"
    );
    assert!(
        fs::read(&whole).unwrap() == fs::read(&stopped).unwrap(),
        "the bundles differ"
    );
    assert!(!shelf.exists());
}

#[test]
fn a_quantize_says_the_same_of_onnx() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model.onnx");
    let model = demo_export().join("model.onnx");
    let text = said(&mut niwaki!("quantize", &model, "-o", &output));
    for words in [
        "embedding, head",
        "gate/up",
        "int4, block 32",
        "warning: 4 bits",
    ] {
        assert!(text.contains(words), "no {words} in:\n{text}");
    }
    let report = json(&mut niwaki!(
        "quantize",
        &model,
        "-o",
        &output,
        "--weights",
        "int8"
    ));
    assert!(report["warnings"].as_array().unwrap().is_empty());
}

#[test]
fn a_quantize_by_a_text_says_what_the_text_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model.onnx");
    let model = demo_export().join("model.onnx");
    let quantize = || niwaki!("quantize", &model, "-o", &output);
    let text = said(
        quantize()
            .args([
                "--method",
                "gptq",
                "--calibration-tokens",
                "512",
                "--calibration",
            ])
            .arg(calibration()),
    );
    for kind in ["q/k/v", "o ", "gate/up", "down"] {
        let line = text.lines().find(|line| line.starts_with(kind)).unwrap();
        assert!(line.contains("GPTQ"), "{line}");
    }
    let error = refused(quantize().args(["--method", "gptq"]));
    assert!(error.contains("--calibration"), "{error}");
    let error = refused(quantize().arg("--calibration").arg(calibration()));
    assert!(error.contains("leave out --calibration"), "{error}");
}

#[test]
fn floats_beside_quantized_matrices_are_not_quantized_silently() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("model.niwaki");
    for weights in [&[][..], &["--weights", "int4"]] {
        let text = said(niwaki!("build", HALF_QUANTIZED.path(), "-o", &bundle).args(weights));
        let line = text
            .lines()
            .find(|line| line.starts_with("embedding, head"))
            .unwrap();
        assert!(
            line.contains("f32") && line.contains("left in floats by the export"),
            "{line}"
        );
        assert!(text.contains("warning: the embedding stays"), "{text}");
        assert_eq!(provenance(&bundle), ["weights = as-stored"]);
    }
    let text =
        said(niwaki!("build", HALF_QUANTIZED.path(), "-o", &bundle).args(["--embedding", "int8"]));
    assert!(!text.contains("warning:"), "{text}");
    assert_eq!(
        provenance(&bundle),
        ["embedding = int8", "quantizer = RTN", "weights = as-stored"]
    );
}

#[test]
fn a_wish_that_changes_nothing_is_said_to() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("model.niwaki");
    let build = || niwaki!("build", QUANTIZED.path(), "-o", &bundle);
    let text = said(build().args(["--weights", "int4", "--embedding", "f16"]));
    assert!(text.contains("--weights int4 changed nothing"), "{text}");
    assert!(text.contains("--embedding f16 changed nothing"), "{text}");
    assert_eq!(provenance(&bundle), ["weights = as-stored"]);
    assert!(!said(&mut build()).contains("warning:"));
}

#[test]
fn quantizing_what_is_quantized_is_refused_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model.onnx");
    let model = QUANTIZED.path().join("model.onnx");
    let error = refused(&mut niwaki!("quantize", &model, "-o", &output));
    assert!(error.contains("nothing can be quantized"), "{error}");
    let half = HALF_QUANTIZED.path().join("model.onnx");
    let error = refused(&mut niwaki!("quantize", &half, "-o", &output));
    assert!(error.contains("--embedding"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn pruning_what_is_quantized_is_refused_also_on_the_way_to_a_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model.onnx");
    let bundle = folder.path().join("model.niwaki");
    let prune = niwaki!(
        "prune",
        QUANTIZED.path(),
        "-o",
        &output,
        "--method",
        "magnitude"
    );
    let build = niwaki!(
        "build",
        QUANTIZED.path(),
        "-o",
        &bundle,
        "--prune",
        "magnitude"
    );
    for mut command in [prune, build] {
        let error = refused(&mut command);
        assert!(error.contains("prune before quantizing"), "{error}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_calibration_that_nothing_measures_on_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let model = demo_export().join("model.onnx");
    let error = refused(
        niwaki!(
            "prune",
            &model,
            "-o",
            &output,
            "--method",
            "magnitude",
            "--calibration"
        )
        .arg(calibration()),
    );
    assert!(error.contains("measures on a text"), "{error}");
    for unused in [
        &["--prune", "magnitude", "--weights", "int8"][..],
        &["--method", "rtn"],
        &["--weights", "f16"],
    ] {
        let error = refused(
            niwaki!(
                "build",
                demo_export(),
                "-o",
                &output,
                "--calibration-tokens",
                "9"
            )
            .args(unused),
        );
        assert!(error.contains("measures on a text"), "{error}");
    }
    let error = refused(&mut niwaki!(
        "build",
        demo_export(),
        "-o",
        &output,
        "--sparsity",
        "0.5"
    ));
    assert!(error.contains("--prune METHOD is missing"), "{error}");
}

#[test]
fn parts_are_not_taken_out_beside_the_model_or_by_a_pattern() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.onnx");
    let model = demo_export().join("model.onnx");
    let layers = ["--method", "layers", "--calibration"];
    let beside = demo_export().join("out.onnx");
    let error = refused(
        niwaki!("prune", &model, "-o", &beside)
            .args(layers)
            .arg(calibration()),
    );
    assert!(error.contains("write it into another folder"), "{error}");
    let error = refused(
        niwaki!("prune", &model, "-o", &output, "--keep", "2:4")
            .args(layers)
            .arg(calibration()),
    );
    assert!(error.contains("sets no weights to zero"), "{error}");
    let error = refused(&mut niwaki!(
        "prune", &model, "-o", &output, "--method", "layers"
    ));
    assert!(error.contains("layers needs a text"), "{error}");
    let error = refused(
        niwaki!("prune", &model, "-o", &output, "--sparsity", "0.01")
            .args(layers)
            .arg(calibration()),
    );
    assert!(error.contains("less than half a layer of 6"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_a_pruning_measured_on_is_said_and_claimed_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("model.niwaki");
    let text = folder.path().join("short.txt");
    fs::write(&text, "Once upon a time there was a king.").unwrap();
    let said = said(
        niwaki!(
            "build",
            demo_export(),
            "-o",
            &bundle,
            "--prune",
            "wanda",
            "--calibration"
        )
        .arg(&text),
    );
    assert!(said.contains("by wanda 0.5"), "{said}");
    assert!(
        said.contains("it has no more, 8 192 were asked for"),
        "{said}"
    );
    let provenance = provenance(&bundle);
    assert!(
        provenance.contains(&"prune = wanda 0.5".to_owned()),
        "{provenance:?}"
    );
    let claimed = provenance
        .iter()
        .find(|line| line.starts_with("calibration = "))
        .unwrap();
    let tokens = claimed.strip_prefix("calibration = ").unwrap();
    let tokens = tokens.strip_suffix(" tokens of short.txt").unwrap();
    assert!(
        said.contains(&format!("measured on {tokens} tokens")),
        "{claimed}, {said}"
    );
}

#[test]
fn a_model_in_a_folder_called_onnx_keeps_what_lies_above_it() {
    let folder = tempfile::tempdir().unwrap();
    let export = folder.path().join("tales");
    fs::create_dir_all(export.join("onnx")).unwrap();
    for entry in fs::read_dir(demo_export()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        let target = match name.to_str() {
            Some("model.onnx") => export.join("onnx/model_fp32.onnx"),
            _ => export.join(name),
        };
        fs::copy(entry.path(), target).unwrap();
    }
    let bundle = folder.path().join("model.niwaki");
    let text = said(&mut niwaki!(
        "build",
        export.join("onnx/model_fp32.onnx"),
        "-o",
        &bundle
    ));
    assert!(!text.contains("note:"), "{text}");
    let inspected = json(&mut niwaki!("inspect", &bundle));
    assert_eq!(inspected["has_tokenizer"], true);
    assert_eq!(inspected["manifest"]["architecture"], "llama");
    assert_eq!(inspected["graph"]["context_tokens"], 512);
}

#[test]
fn what_an_export_lacks_is_said() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(
        demo_export().join("model.onnx"),
        folder.path().join("model.onnx"),
    )
    .unwrap();
    fs::write(folder.path().join("tokenizer.model"), "").unwrap();
    let bundle = folder.path().join("model.niwaki");
    for command in ["build", "pack"] {
        let text = said(&mut niwaki!(command, folder.path(), "-o", &bundle));
        for words in [
            "no config.json",
            "no tokenizer.json",
            "tokenizer.model is there",
        ] {
            assert!(text.contains(words), "no {words} in:\n{text}");
        }
    }
}

#[test]
fn a_folder_for_the_configuration_that_has_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("model.niwaki");
    for missing in [folder.path().to_owned(), folder.path().join("missing")] {
        let error =
            refused(niwaki!("pack", demo_export(), "-o", &bundle, "--config").arg(&missing));
        assert!(error.contains("holds none of config.json"), "{error}");
    }
}

#[test]
fn weights_that_are_not_where_the_model_says_are_an_error_that_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let model = OnnxModel::open(demo_export().join("model.onnx")).unwrap();
    let path = folder.path().join("model.onnx");
    write_model(&model, &path, WeightLocation::External).unwrap();
    fs::remove_file(folder.path().join("model.onnx.data")).unwrap();
    let target = tempfile::tempdir().unwrap();
    let commands = [
        niwaki!("build", folder.path(), "-o", target.path().join("a.niwaki")),
        niwaki!("pack", folder.path(), "-o", target.path().join("b.niwaki")),
        niwaki!("quantize", &path, "-o", target.path().join("c.onnx")),
        niwaki!(
            "prune",
            &path,
            "-o",
            target.path().join("d.onnx"),
            "--method",
            "magnitude"
        ),
    ];
    for mut command in commands {
        let error = refused(&mut command);
        assert!(error.contains("model.onnx.data"), "{error}");
    }
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0);
}

/// An export that rounds activations around attention and projections, which is not all kept.
#[test]
fn roundings_that_are_not_kept_are_said_by_whatever_computes_without_them() {
    let export = workspace().join("tests/exports/static-qdq");
    let folder = tempfile::tempdir().unwrap();
    let (bundle, logits) = (folder.path().join("a.niwaki"), folder.path().join("b.npz"));
    let with_own = "quantizes with fixed scales are quantized per block instead";
    for command in ["build", "pack"] {
        let text = said(&mut niwaki!(command, &export, "-o", &bundle));
        assert!(text.contains(with_own), "{text}");
    }
    assert!(said(&mut niwaki!("inspect", &export)).contains(with_own));
    let calls = export.join("calls.json");
    let text = said(&mut niwaki!(
        "logits", &export, "--calls", &calls, "-o", &logits
    ));
    assert!(
        text.contains("not rounded as the export rounds them") && !text.contains(with_own),
        "{text}"
    );
}
