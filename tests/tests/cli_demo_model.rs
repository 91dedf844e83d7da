//! The commands end to end, on the demo model.
#![allow(clippy::unwrap_used)]

use niwaki_tests::{demo_export, demo_held_out_text, niwaki, zoo};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use tempfile::TempDir;

/// The demo model built once to int4 by the command itself.
static BUILT: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    niwaki!(
        "build",
        demo_export(),
        "-o",
        folder.path().join("int4.niwaki"),
        "--weights",
        "int4",
        "--method",
        "rtn"
    )
    .assert()
    .success();
    folder
});

fn int4() -> PathBuf {
    BUILT.path().join("int4.niwaki")
}

fn stdout(command: &mut assert_cmd::Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.stderr.is_empty(),
        "a pipe hears nothing: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn json(command: &mut assert_cmd::Command) -> Value {
    serde_json::from_str(&stdout(command.arg("--json"))).unwrap()
}

#[test]
fn a_build_leaves_one_file_smaller_than_the_export() {
    assert_eq!(fs::read_dir(BUILT.path()).unwrap().count(), 1);
    let export = fs::metadata(demo_export().join("model.onnx"))
        .unwrap()
        .len();
    let bundle = fs::metadata(int4()).unwrap().len();
    assert!(bundle * 6 < export, "{bundle} of {export} bytes");
}

#[test]
fn two_builds_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let again = folder.path().join("again.niwaki");
    let mut build = niwaki!("build", demo_export(), "-o", &again, "--weights", "int4");
    build.args(["--method", "rtn"]).assert().success();
    assert!(fs::read(again).unwrap() == fs::read(int4()).unwrap());
}

#[test]
fn the_same_seed_tells_the_same_story_and_another_one_another() {
    let story = |seed| {
        stdout(&mut niwaki!(
            "run",
            int4(),
            "Once upon a time",
            "--seed",
            seed,
            "--max-new-tokens",
            "40"
        ))
    };
    let first = story("7");
    assert_eq!(first, story("7"));
    assert_ne!(first, story("8"));
    assert!(first.split_whitespace().count() > 15, "{first}");
}

#[test]
fn scalar_kernels_tell_the_same_story() {
    let run = || {
        niwaki!(
            "run",
            int4(),
            "There was a king",
            "--seed",
            "3",
            "--max-new-tokens",
            "12"
        )
    };
    assert_eq!(
        stdout(&mut run()),
        stdout(run().env("NIWAKI_ISA", "scalar"))
    );
}

#[test]
fn greedy_needs_no_seed() {
    let run = |seed| {
        stdout(&mut niwaki!(
            "run",
            int4(),
            "The wolf",
            "--temperature",
            "0",
            "--seed",
            seed,
            "--max-new-tokens",
            "16"
        ))
    };
    assert_eq!(run("1"), run("2"));
}

#[test]
fn prompts_of_any_script_give_whole_characters() {
    for prompt in [
        "",
        "a",
        "Der König sprach: »Ei!«",
        "昔々、あるところに",
        "🐉🐉🐉",
        "\n\t",
        "e\u{301}",
    ] {
        let output = json(&mut niwaki!("run", int4(), prompt, "--max-new-tokens", "8"));
        assert!(output["text"].is_string(), "{prompt:?}: {output}");
    }
}

#[test]
fn a_prompt_from_stdin_is_the_prompt() {
    let run = |prompt| niwaki!("run", int4(), prompt, "--max-new-tokens", "8");
    assert_eq!(
        stdout(run("-").write_stdin("Once upon a time")),
        stdout(&mut run("Once upon a time"))
    );
}

#[test]
fn the_json_of_a_run_counts_its_tokens() {
    let output = json(&mut niwaki!(
        "run",
        int4(),
        "Once upon a time",
        "--max-new-tokens",
        "8"
    ));
    assert_eq!(output["tokens"].as_array().unwrap().len(), 8);
    assert_eq!(output["finish_reason"], "max_new_tokens");
    // The beginning-of-text token stands before the prompt's own.
    let without = json(&mut niwaki!(
        "run",
        int4(),
        "Once upon a time",
        "--max-new-tokens",
        "8",
        "--no-bos"
    ));
    assert_eq!(
        output["prompt_tokens"].as_u64().unwrap(),
        without["prompt_tokens"].as_u64().unwrap() + 1
    );
}

/// The ids and the pieces of a prompt.
fn prompt_ids(command: &mut assert_cmd::Command) -> (Vec<u32>, Vec<String>) {
    let output = json(command.arg("--print-ids"));
    let list = |name: &str| output[name].clone();
    (
        serde_json::from_value(list("ids")).unwrap(),
        serde_json::from_value(list("pieces")).unwrap(),
    )
}

#[test]
fn the_tokens_of_a_prompt_are_printed_with_their_pieces() {
    let run = || niwaki!("run", int4(), "Once upon\na König");
    insta::assert_snapshot!(stdout(run().arg("--print-ids")));
    let (ids, pieces) = prompt_ids(&mut run());
    assert_eq!((ids[0], pieces[0].as_str()), (0, "<|endoftext|>"));
    let (without, _) = prompt_ids(run().arg("--no-bos"));
    assert_eq!(ids[1..], without);
    let prompt_tokens = &json(run().args(["--max-new-tokens", "1"]))["prompt_tokens"];
    assert_eq!(*prompt_tokens, ids.len());
    // As the export says, and as a prompt from stdin.
    assert_eq!(
        prompt_ids(&mut niwaki!("run", demo_export(), "Once upon\na König")).0,
        ids
    );
    let mut piped = niwaki!("run", int4(), "-");
    assert_eq!(prompt_ids(piped.write_stdin("Once upon\na König")).0, ids);
}

#[test]
fn an_empty_prompt_is_the_token_that_begins_texts() {
    let (ids, _) = prompt_ids(&mut niwaki!("run", int4()));
    assert_eq!(ids, [0]);
    let mut without = niwaki!("run", int4(), "", "--no-bos", "--print-ids");
    without.assert().failure();
}

/// SmolLM2's tokenizer, for example, puts nothing before a text, though its configuration names a token that could.
#[test]
fn a_text_begins_with_a_token_only_where_the_export_says_so() {
    for (post_processor, add_bos_token, begins) in [
        (true, Value::Null, true),
        (true, Value::Bool(false), true),
        (false, Value::Bool(true), true),
        (false, Value::Bool(false), false),
        (false, Value::Null, false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let export = folder.path().join("export");
        fs::create_dir(&export).unwrap();
        for entry in fs::read_dir(demo_export()).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), export.join(entry.file_name())).unwrap();
        }
        let change = |name: &str, key: &str, value: Value| {
            let path = export.join(name);
            let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            json[key] = value;
            fs::write(path, json.to_string()).unwrap();
        };
        if !post_processor {
            change("tokenizer.json", "post_processor", Value::Null);
        }
        if !add_bos_token.is_null() {
            change("tokenizer_config.json", "add_bos_token", add_bos_token);
        }
        let bundle = folder.path().join("model.niwaki");
        niwaki!("build", &export, "-o", &bundle).assert().success();
        for model in [&export, &bundle] {
            let (ids, _) = prompt_ids(&mut niwaki!("run", model, "Once"));
            assert_eq!(ids.first() == Some(&0), begins, "{model:?}: {ids:?}");
        }
        let mut eval = niwaki!("eval", &bundle, "--text", demo_held_out_text());
        let figures = json(eval.args(["--max-windows", "1", "--window", "8"]));
        assert_eq!(figures["bos"], if begins { "window" } else { "none" });
        // There is nothing else to start from.
        assert_eq!(prompt_ids(&mut niwaki!("run", &bundle)).0, [0]);
    }
}

#[test]
fn inspect_tells_manifest_graph_weights_and_memory() {
    let output = json(&mut niwaki!("inspect", int4()));
    assert_eq!(output["manifest"]["architecture"], "llama");
    assert_eq!(output["graph"]["layers"].as_array().unwrap().len(), 6);
    let ids = serde_json::json!({"token_ids": {"count": 2048}});
    assert_eq!(output["graph"]["inputs"][0]["kind"], ids);
    assert_eq!(output["graph"]["outputs"][0]["name"], "logits");
    let matrices = output["weights"]["matrices"].as_array().unwrap();
    assert!(
        matrices.iter().all(|matrix| matrix["element"] == "int4"),
        "{matrices:?}"
    );
    assert!(output["memory"]["anonymous_bytes"].as_u64().unwrap() > 0);
    let text = stdout(&mut niwaki!("inspect", int4(), "--nodes"));
    for word in [
        "llama",
        "input          input_ids: token ids below 2 048",
        "output         logits: 2 048 numbers for every token that is asked for",
        "int4, block 32",
        "attention",
        "keys and values",
        "anonymous",
    ] {
        assert!(text.contains(word), "no {word} in:\n{text}");
    }
}

#[test]
fn perplexity_of_int4_is_close_to_that_of_fp32() {
    let output = json(&mut niwaki!(
        "eval",
        int4(),
        "--text",
        demo_held_out_text(),
        "--max-windows",
        "8",
        "--bos",
        "passage",
        "--reference",
        demo_export()
    ));
    let reference = &output["reference"];
    let change = reference["perplexity_ratio"].as_f64().unwrap() - 1.0;
    assert!(change.abs() < 0.03, "{output}");
    let agreement = reference["top1_agreement"].as_f64().unwrap();
    assert!(agreement > 0.8, "{output}");
}

#[test]
fn logits_of_the_calls_are_written_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (calls, output) = (
        folder.path().join("calls.json"),
        folder.path().join("out.npz"),
    );
    fs::write(
        &calls,
        r#"[{"name": "whole", "ids": [0, 5, 9, 100], "reset": true},
            {"name": "first", "ids": [0, 5], "reset": true},
            {"name": "rest", "ids": [9, 100]}]"#,
    )
    .unwrap();
    assert_eq!(
        stdout(&mut niwaki!(
            "logits",
            int4(),
            "--calls",
            &calls,
            "-o",
            &output
        )),
        ""
    );
    let logits = zoo::read_logits(&output).unwrap();
    assert_eq!(
        logits.keys().collect::<Vec<_>>(),
        ["first", "rest", "whole"]
    );
    assert!(logits.values().all(|array| array.width == 2048));
    let parts = [logits["first"].values.as_slice(), &logits["rest"].values].concat();
    assert!(
        parts == logits["whole"].values,
        "a call without reset goes on where the last one ended"
    );
}

#[test]
fn a_quantized_model_packs_to_what_a_build_gives() {
    let folder = tempfile::tempdir().unwrap();
    let (onnx, bundle) = (
        folder.path().join("int4.onnx"),
        folder.path().join("packed.niwaki"),
    );
    let report = json(&mut niwaki!(
        "quantize",
        demo_export().join("model.onnx"),
        "-o",
        &onnx
    ));
    assert!(!report["quantized"].as_array().unwrap().is_empty());
    assert_eq!(
        report["size_bytes"].as_u64().unwrap(),
        fs::metadata(&onnx).unwrap().len()
    );
    niwaki!("pack", &onnx, "-o", &bundle, "--config", demo_export())
        .assert()
        .success();
    let story = |model: PathBuf| {
        stdout(&mut niwaki!(
            "run",
            model,
            "Once upon a time",
            "--seed",
            "7",
            "--max-new-tokens",
            "24"
        ))
    };
    assert_eq!(story(bundle), story(int4()));
}

#[test]
fn the_demo_measures_three_forms_and_tells_a_story() {
    let output = json(&mut niwaki!("demo"));
    let figures = output["figures"].as_array().unwrap();
    let names: Vec<&str> = figures
        .iter()
        .map(|form| form["weights"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["fp32", "int8", "int4"]);
    let size = |index: usize| figures[index]["size_bytes"].as_u64().unwrap();
    assert!(size(0) > size(1) && size(1) > size(2));
    assert!(
        output["story"].as_str().unwrap().split_whitespace().count() > 40,
        "{output}"
    );
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    use std::process::{Command, Stdio};
    let mut run = Command::new(env!("CARGO_BIN_EXE_niwaki-under-test"))
        .args([
            "run".as_ref(),
            int4().as_os_str(),
            "Once upon a time".as_ref(),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(run.stdout.take());
    let output = run.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn bench_reports_every_combination_once() {
    let report = json(&mut niwaki!(
        "bench",
        int4(),
        "-p",
        "8,0",
        "-n",
        "3",
        "-d",
        "0,5",
        "-t",
        "1,2",
        "-r",
        "1",
        "--profile"
    ));
    let engines = report["engines"].as_array().unwrap();
    assert_eq!(engines.len(), 2);
    for (engine, threads) in engines.iter().zip([1, 2]) {
        assert_eq!(engine["threads"], threads);
        assert!(engine["planned_anonymous_bytes"].as_u64() > Some(0));
        let tests: Vec<_> = engine["tests"].as_array().unwrap().iter().collect();
        let described = tests
            .iter()
            .map(|test| format!("{} {} {}", test["test"], test["tokens"], test["depth"]))
            .collect::<Vec<_>>();
        assert_eq!(
            described,
            [
                "\"prefill\" 8 0",
                "\"decode\" 3 0",
                "\"prefill\" 8 5",
                "\"decode\" 3 5"
            ]
        );
        for test in tests {
            assert!(test["tokens_per_s"].as_f64() > Some(0.0));
            assert!(test["ms_per_token_p50"].as_f64() <= test["ms_per_token_p95"].as_f64());
            let operators = test["profile"].as_array().unwrap();
            let share: f64 = operators
                .iter()
                .map(|time| time["share"].as_f64().unwrap())
                .sum();
            assert!((share - 1.0).abs() < 1e-6, "{share}");
        }
    }
}

#[test]
fn a_pruned_build_says_so_and_has_zeros_where_the_unpruned_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("pruned.niwaki");
    let calibration = demo_export()
        .parent()
        .unwrap()
        .join("texts/calibration.txt");
    niwaki!("build", demo_export(), "-o", &bundle, "--prune", "wanda")
        .arg("--calibration")
        .arg(&calibration)
        .args(["--calibration-tokens", "256", "--keep", "2:4"])
        .assert()
        .success();
    let inspected = json(&mut niwaki!("inspect", &bundle));
    assert_eq!(
        inspected["manifest"]["provenance"]["options"]["prune"],
        "wanda 2:4"
    );
    assert_eq!(
        inspected["manifest"]["name"],
        json(&mut niwaki!("inspect", int4()))["manifest"]["name"]
    );
}

#[test]
fn a_build_without_channels_is_smaller_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("pruned.niwaki");
    let text = demo_export()
        .parent()
        .unwrap()
        .join("texts/calibration.txt");
    niwaki!(
        "build",
        demo_export(),
        "-o",
        &bundle,
        "--prune",
        "ffn-channels"
    )
    .arg("--calibration")
    .arg(&text)
    .args(["--calibration-tokens", "512", "--sparsity", "0.2"])
    .assert()
    .success();
    let inspected = json(&mut niwaki!("inspect", &bundle));
    let claimed = &inspected["manifest"]["provenance"]["options"]["prune"];
    let claimed = claimed.as_str().unwrap();
    assert!(claimed.starts_with("ffn-channels 0.2: "), "{claimed}");
    assert!(
        claimed.ends_with(" of 512 channels stay in each layer"),
        "{claimed}"
    );
    let size = |path: &PathBuf| fs::metadata(path).unwrap().len();
    assert!(size(&bundle) < size(&int4()));
    assert_eq!(
        inspected["manifest"]["name"],
        json(&mut niwaki!("inspect", int4()))["manifest"]["name"]
    );
}

#[test]
fn taking_layers_out_writes_a_whole_export_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model.onnx");
    let text = demo_export()
        .parent()
        .unwrap()
        .join("texts/calibration.txt");
    let report = json(
        niwaki!("prune", demo_export().join("model.onnx"), "-o", &output)
            .args(["--method", "layers", "--sparsity", "0.2"])
            .args(["--calibration-tokens", "512", "--calibration"])
            .arg(&text),
    );
    assert_eq!(report["removed"]["removed"].as_array().unwrap().len(), 1);
    let config = fs::read_to_string(folder.path().join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["num_hidden_layers"], 5);
    let bundle = folder.path().join("model.niwaki");
    niwaki!("build", folder.path(), "-o", &bundle)
        .assert()
        .success();
    niwaki!("run", &bundle, "Once upon a time", "--max-new-tokens", "4")
        .assert()
        .success();
}

#[test]
fn pruning_reports_what_it_did_and_what_it_cost() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model.onnx");
    let text = folder.path().join("text.txt");
    fs::write(
        &text,
        "Once upon a time there was a king who had a daughter.",
    )
    .unwrap();
    let report = json(
        niwaki!("prune", demo_export().join("model.onnx"), "-o", &output)
            .args(["--method", "magnitude", "--sparsity", "0.25"])
            .arg("--text")
            .arg(&text),
    );
    let (zeros, weights) = (
        report["zeros"].as_f64().unwrap(),
        report["weights"].as_f64().unwrap(),
    );
    assert!((zeros / weights - 0.25).abs() < 0.001, "{report}");
    let perplexity = &report["perplexity"];
    assert_ne!(perplexity["before"], perplexity["after"]);
    assert!(output.is_file());
    assert!(!report["pruned"].as_array().unwrap().is_empty());
}
