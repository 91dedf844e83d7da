//! Exports of several architectures and exporters, against the logits that onnxruntime computes.
#![allow(clippy::unwrap_used)]

use niwaki_tests::{niwaki, workspace, zoo};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn the_exports_in_this_folder_agree_with_onnxruntime() {
    let exports = zoo::exports(&workspace().join("tests/zoo")).unwrap();
    assert!(exports.len() >= 3, "fixtures are missing");
    agree(&exports);
}

#[test]
fn their_bundles_agree_with_onnxruntime() {
    for export in zoo::exports(&workspace().join("tests/zoo")).unwrap() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("model.niwaki");
        niwaki!("pack", &export.folder, "--output", &bundle)
            .assert()
            .success();
        if let Err(problem) = logits_agree(&export, &bundle) {
            panic!("{}: {problem}", export.name());
        }
    }
}

/// A larger collection of the same kind beside the checkout, or where NIWAKI_ZOO says.
#[test]
fn the_exports_of_the_large_zoo_agree_with_onnxruntime() {
    let folder = std::env::var_os("NIWAKI_ZOO")
        .map_or_else(|| workspace().join("../shared/zoo/models"), Into::into);
    if !folder.is_dir() {
        eprintln!(
            "skipped: there is no {}; set NIWAKI_ZOO to check a larger zoo",
            folder.display()
        );
        return;
    }
    agree(&zoo::exports(&folder).unwrap());
}

/// Runs `niwaki logits` on every export and reports all that fail.
fn agree(exports: &[zoo::Export]) {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(export) = exports.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(problem) = logits_agree(export, &export.folder) {
                        failures
                            .lock()
                            .unwrap()
                            .push(format!("{}: {problem}", export.name()));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    assert!(
        failures.is_empty(),
        "{} of {} exports fail:\n{}",
        failures.len(),
        exports.len(),
        failures.join("\n")
    );
}

fn logits_agree(export: &zoo::Export, model: &Path) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let calls = folder.path().join("calls.json");
    let output = folder.path().join("logits.npz");
    std::fs::write(&calls, export.calls_json().unwrap()).unwrap();
    let run = niwaki!(
        "logits",
        model,
        "--calls",
        &calls,
        "--output",
        &output,
        "--threads",
        "1"
    )
    .output()
    .unwrap();
    if !run.status.success() {
        return Err(String::from_utf8_lossy(&run.stderr).into_owned());
    }
    export.check(&zoo::read_logits(&output).unwrap())
}
