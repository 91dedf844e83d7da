//! What a bundle tells of its quality, and recipes that make the same bundle again.
#![allow(clippy::unwrap_used)]

use niwaki_bundle::write::BundleWriter;
use niwaki_bundle::{Bundle, Verify};
use niwaki_convert::plan::Weights;
use niwaki_kernels::{MatrixFormat, pack_float};
use niwaki_tests::{build_demo, demo_export, niwaki};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tempfile::TempDir;

/// A bundle of the demo model that a recipe made, with its page beside it.
static REPORTED: LazyLock<(TempDir, Value)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let text = demo_export().join("../texts/calibration.txt");
    fs::copy(text, folder.path().join("some text.txt")).unwrap();
    let recipe = folder.path().join("recipe.toml");
    let lines = "preset = \"phone\"\nbits = 4.6\ncalibration = \"some text.txt\"\ncalibration-tokens = 4096\n";
    fs::write(&recipe, lines).unwrap();
    let mut build = niwaki!(
        "build",
        demo_export(),
        "-o",
        folder.path().join("model.niwaki")
    );
    build.arg("--recipe").arg(recipe);
    build.arg("--report").arg(folder.path().join("page.html"));
    let built = told_as_json(build.args(["--method", "search"]));
    (folder, built)
});

fn bundle() -> PathBuf {
    REPORTED.0.path().join("model.niwaki")
}

/// What a command that succeeds says on stdout.
fn said(command: &mut assert_cmd::Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a command that fails says on stderr.
fn refused(command: &mut assert_cmd::Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

fn told_as_json(command: &mut assert_cmd::Command) -> Value {
    serde_json::from_str(&said(command.arg("--json"))).unwrap()
}

#[test]
fn a_report_tells_what_the_build_measured() {
    let report = said(niwaki!("inspect", bundle()).arg("--report"));
    for words in [
        "# Quality of",
        "KL to the float model",
        "| int8 activations add |",
        "| layer | error |",
        "| norms, biases |",
        "| scale search",
        "in int8 | 0.",
        "| Once upon a time, a small boat |",
        " tokens of some text.txt",
        "| model.onnx | 12.8 MB | ef9bc6e1",
        "| some text.txt |",
        "    niwaki build onnx -o model.niwaki --bits 4.6 --calibration 'some text.txt' --calibration-tokens 4096 --method search \
         --preset phone --weights codebook4\n",
        "    calibration-tokens = 4096\n",
        "| /model/layers.0/self_attn/o_proj/MatMul | o | 192 x 192 |",
    ] {
        let (report, words) = (report.to_lowercase(), words.to_lowercase());
        assert!(report.contains(&words), "no {words} in:\n{report}");
    }
    let told = told_as_json(niwaki!("inspect", bundle()).arg("--report"));
    let built = &REPORTED.1;
    assert_eq!(told["quality"], built["quality"]);
    assert_eq!(told["tried"], built["tried"]);
    let damage: f64 = ["weights_nats", "activations_nats", "cache_nats"]
        .iter()
        .map(|step| told["damage"][step].as_f64().unwrap())
        .sum();
    assert!((damage - told["quality"]["kl_nats"].as_f64().unwrap()).abs() < 1e-9);
    let matrices = told["matrices"].as_array().unwrap();
    assert_eq!(matrices.len(), built["matrices"].as_array().unwrap().len());
    for matrix in matrices {
        let error = matrix["relative_error"].as_f64().unwrap();
        // Of 4 bits some percent of a product are lost, of 8 some thousandths.
        let of_format = match matrix["format"].as_str().unwrap() {
            "codebook4, block 32" => 0.01..0.2,
            _ => 0.0005..0.01,
        };
        assert!(of_format.contains(&error), "{matrix}");
    }
}

#[test]
fn a_bundle_names_no_folder_and_holds_no_text_that_it_was_calibrated_on() {
    let bytes = fs::read(bundle()).unwrap();
    let holds = |text: &str| {
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    assert!(holds("some text.txt"));
    assert!(!holds(REPORTED.0.path().to_str().unwrap()));
    assert!(!holds(demo_export().parent().unwrap().to_str().unwrap()));
    let text = fs::read_to_string(REPORTED.0.path().join("some text.txt")).unwrap();
    for line in text.lines().filter(|line| line.len() > 30) {
        assert!(!holds(line), "{line}");
    }
}

#[test]
fn the_command_in_a_report_makes_the_same_bundle_again() {
    let told = told_as_json(niwaki!("inspect", bundle()).arg("--report"));
    let folder = tempfile::tempdir().unwrap();
    let again = folder.path().join("again.niwaki");
    let mut build = niwaki!("build", demo_export(), "-o", &again);
    build.current_dir(REPORTED.0.path());
    for (name, value) in told["made"]["recipe"].as_object().unwrap() {
        build.args([&format!("--{name}"), value.as_str().unwrap()]);
    }
    said(&mut build);
    assert!(fs::read(bundle()).unwrap() == fs::read(again).unwrap());
}

#[test]
fn a_page_is_written_by_the_build_and_from_the_bundle_alike() {
    let page = fs::read_to_string(REPORTED.0.path().join("page.html")).unwrap();
    for words in [
        "<svg",
        "prefers-color-scheme: dark",
        "width=device-width",
        "Once upon a time",
    ] {
        assert!(page.contains(words), "no {words}");
    }
    let again = REPORTED.0.path().join("again.html");
    let inspect = said(&mut niwaki!(
        "inspect",
        bundle(),
        "--report",
        "--html",
        &again
    ));
    assert_eq!(inspect, "");
    assert_eq!(fs::read_to_string(again).unwrap(), page);
    let nowhere = REPORTED.0.path().join("none/page.html");
    let error = refused(&mut niwaki!(
        "inspect",
        bundle(),
        "--report",
        "--html",
        &nowhere
    ));
    assert!(error.contains("the folder has to exist"), "{error}");
}

#[test]
fn what_was_not_measured_has_no_report_unless_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let rounded = folder.path().join("rounded.niwaki");
    let build = || {
        niwaki!(
            "build",
            demo_export(),
            "-o",
            &rounded,
            "--preset",
            "max-quality"
        )
    };
    said(&mut build());
    let error = refused(niwaki!("inspect", &rounded).arg("--report"));
    assert!(error.contains("has no quality report"), "{error}");
    let page = folder.path().join("page.html");
    said(
        build()
            .arg("--report")
            .arg(&page)
            .args(["--calibration-tokens", "3072"]),
    );
    assert!(
        fs::read_to_string(&page)
            .unwrap()
            .contains("Same most likely token")
    );
    let told = told_as_json(niwaki!("inspect", &rounded).arg("--report"));
    assert_eq!(told["chosen"], "RTN");
    assert!(told["quality"]["kl_nats"].as_f64().unwrap() < 0.01);
    let mut floats = niwaki!("build", demo_export(), "-o", &rounded, "--weights", "f16");
    said(
        floats
            .arg("--report")
            .arg(&page)
            .args(["--calibration-tokens", "3072"]),
    );
    let told = told_as_json(niwaki!("inspect", &rounded).arg("--report"));
    // The float model's cache is not one of floats.
    assert!(told["damage"]["weights_nats"].as_f64().unwrap() < 1e-5);
    assert!(told["matrices"][0]["relative_error"].is_null());
}

#[test]
fn a_recipe_that_is_not_understood_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    let output = folder.path().join("model.niwaki");
    let build = || niwaki!("build", demo_export(), "-o", &output, "--recipe", &recipe);
    fs::write(&recipe, "weights = \"int4\"\nbitz = 5\n").unwrap();
    let error = refused(&mut build());
    assert!(
        error.contains("line 2") && error.contains("`bitz`"),
        "{error}"
    );
    fs::remove_file(&recipe).unwrap();
    let error = refused(&mut build());
    assert!(
        error.contains("cannot read") && error.contains("recipe.toml"),
        "{error}"
    );
    assert!(!output.exists());
}

#[test]
fn pruning_is_told_in_the_report() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model.niwaki");
    let mut build = niwaki!(
        "build",
        demo_export(),
        "-o",
        &output,
        "--prune",
        "magnitude"
    );
    said(build.args(["--sparsity", "0.25", "--calibration-tokens", "3072"]));
    let told = told_as_json(niwaki!("inspect", &output).arg("--report"));
    let pruned = &told["made"]["pruned"];
    let summary = pruned["summary"].as_str().unwrap();
    assert!(summary.ends_with("by magnitude 0.25"), "{summary}");
    assert_eq!(pruned["matrices"].as_object().unwrap().len(), 42);
    let page = folder.path().join("page.html");
    said(&mut niwaki!(
        "inspect", &output, "--report", "--html", &page
    ));
    assert!(fs::read_to_string(page).unwrap().contains(summary));
}

/// The demo model in a bundle whose quality report is this.
fn with_report(report: &Value, path: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.niwaki");
    build_demo(&whole, Weights::F32).unwrap();
    let bundle = Bundle::open(&whole, Verify::Full).unwrap();
    let mut writer = BundleWriter::create(path).unwrap();
    let table = bundle.weight_table();
    for (id, entry) in table.matrices.iter().enumerate() {
        let (rows, columns) = (entry.rows, entry.cols);
        let mut values = vec![0.0; rows * columns];
        for (row, values) in values.chunks_mut(columns).enumerate() {
            bundle.matrix(id).unwrap().read_row(row, values);
        }
        let mut matrix = writer
            .begin_matrix(entry.name.clone(), MatrixFormat::F32, rows, columns)
            .unwrap();
        matrix
            .write(&pack_float(MatrixFormat::F32, rows, columns, &values).unwrap())
            .unwrap();
        matrix.finish().unwrap();
    }
    for (id, entry) in table.vectors.iter().enumerate() {
        writer
            .add_vector(entry.name.clone(), bundle.vector(id).unwrap())
            .unwrap();
    }
    writer.set_quality_report(report).unwrap();
    writer.finish(bundle.manifest(), bundle.graph()).unwrap();
}

#[test]
fn a_report_that_is_none_is_refused_and_one_that_lies_stays_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.niwaki");
    let page = folder.path().join("page.html");
    let inspect = || niwaki!("inspect", &path, "--report", "--html", &page);
    for report in [json!({"quality": 1}), json!([]), json!(null)] {
        with_report(&report, &path);
        let error = refused(&mut inspect());
        assert!(error.contains("cannot be read"), "{error}");
        assert!(!page.exists());
    }
    let mut report = told_as_json(niwaki!("inspect", bundle()).arg("--report"));
    report["chosen"] = json!("<script>alert(1)</script>");
    report["continuations"][0]["bundle"] = json!("</div><img src=x onerror=alert(1)>");
    report["matrices"][0]["layer"] = json!(u64::MAX);
    report["matrices"][0]["relative_error"] = json!(f64::MAX);
    with_report(&report, &path);
    said(&mut inspect());
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("&lt;script&gt;") && page.contains("&lt;img src=x"));
    assert!(!page.contains("<script") && !page.contains("<img"));
}
