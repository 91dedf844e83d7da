//! What a person reads when something is wrong, and the exit code a script sees.
#![allow(clippy::unwrap_used)]

use niwaki_tests::{build_demo, demo_export, niwaki};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const FAILURE: i32 = 1;
const USAGE: i32 = 2;

/// A folder with files that look like models and are none.
struct Folder {
    folder: TempDir,
}

impl Folder {
    fn new() -> Folder {
        Folder {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// What the command says on stderr, with the folder's name taken out.
    fn failure(&self, command: &mut assert_cmd::Command, exit_code: i32) -> String {
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(exit_code), "{stderr}");
        assert!(
            output.stdout.is_empty(),
            "a failure prints nothing to stdout"
        );
        stderr.replace(self.folder.path().to_str().unwrap(), "DIR")
    }

    /// File names in the folder.
    fn names(&self) -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| {
            entry.unwrap().file_name().into_string().unwrap()
        };
        let mut names: Vec<String> = fs::read_dir(self.folder.path())
            .unwrap()
            .map(name)
            .collect();
        names.sort();
        names
    }
}

fn demo_bundle(path: &Path) {
    build_demo(path, niwaki_convert::build::Weights::Int4).unwrap();
}

#[test]
fn a_missing_model_is_named() {
    let folder = Folder::new();
    let said = folder.failure(
        &mut niwaki!("run", folder.path("model.niwaki"), "hello"),
        FAILURE,
    );
    insta::assert_snapshot!(said);
}

#[test]
fn a_file_that_is_no_model_is_refused_with_what_would_be_one() {
    let folder = Folder::new();
    let file = folder.file("notes.txt", "These are notes.");
    insta::assert_snapshot!(folder.failure(&mut niwaki!("inspect", file), FAILURE));
}

#[test]
fn a_bundle_in_name_only_is_refused() {
    let folder = Folder::new();
    let file = folder.file("model.niwaki", "These are notes.");
    insta::assert_snapshot!(folder.failure(&mut niwaki!("inspect", file), FAILURE));
}

#[test]
fn a_truncated_bundle_is_refused() {
    let folder = Folder::new();
    let bundle = folder.path("model.niwaki");
    demo_bundle(&bundle);
    let bytes = fs::read(&bundle).unwrap();
    fs::write(&bundle, &bytes[..bytes.len() / 2]).unwrap();
    let said = folder.failure(&mut niwaki!("run", bundle, "hello"), FAILURE);
    assert!(said.contains("truncated"), "{said}");
}

#[test]
fn a_bundle_with_one_changed_bit_is_refused_with_the_section_named() {
    let folder = Folder::new();
    let bundle = folder.path("model.niwaki");
    demo_bundle(&bundle);
    let mut bytes = fs::read(&bundle).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&bundle, bytes).unwrap();
    let said = folder.failure(&mut niwaki!("run", bundle, "hello"), FAILURE);
    assert!(
        said.contains("section weights") && said.contains("does not match its hash"),
        "{said}"
    );
}

#[test]
fn an_onnx_file_that_is_none_is_refused() {
    let folder = Folder::new();
    let file = folder.file("model.onnx", "These are notes.");
    insta::assert_snapshot!(folder.failure(
        &mut niwaki!("eval", file, "--text", folder.file("text.txt", "a")),
        FAILURE
    ));
}

#[test]
fn a_folder_without_a_model_is_refused() {
    let folder = Folder::new();
    folder.file("config.json", "{}");
    let output = tempfile::tempdir().unwrap();
    let target = output.path().join("model.niwaki");
    let mut command = niwaki!("build", folder.folder.path(), "-o", &target);
    insta::assert_snapshot!(folder.failure(&mut command, FAILURE));
}

#[test]
fn a_failed_build_leaves_no_file() {
    let folder = Folder::new();
    folder.file("model.onnx", "These are notes.");
    folder.failure(
        &mut niwaki!(
            "build",
            folder.folder.path(),
            "-o",
            folder.path("model.niwaki")
        ),
        FAILURE,
    );
    assert_eq!(folder.names(), ["model.onnx"]);
}

#[test]
fn an_output_folder_that_does_not_exist_is_named() {
    let folder = Folder::new();
    let target = folder.path("missing/model.niwaki");
    insta::assert_snapshot!(
        folder.failure(&mut niwaki!("build", demo_export(), "-o", target), FAILURE)
    );
}

#[test]
fn calls_that_are_no_calls_are_refused_with_what_they_should_be() {
    let folder = Folder::new();
    let calls = folder.file("calls.json", r#"[{"name": "prefill", "tokens": [1]}]"#);
    let mut command = niwaki!(
        "logits",
        demo_export(),
        "--calls",
        calls,
        "-o",
        folder.path("out.npz")
    );
    insta::assert_snapshot!(folder.failure(&mut command, FAILURE));
}

#[test]
fn a_name_that_two_calls_share_is_refused() {
    let folder = Folder::new();
    let calls = folder.file(
        "calls.json",
        r#"[{"name": "a", "ids": [1]}, {"name": "a", "ids": [2]}]"#,
    );
    let mut command = niwaki!(
        "logits",
        demo_export(),
        "--calls",
        calls,
        "-o",
        folder.path("out.npz")
    );
    insta::assert_snapshot!(folder.failure(&mut command, FAILURE));
}

#[test]
fn a_token_beyond_the_vocabulary_is_refused_and_no_file_written() {
    let folder = Folder::new();
    let calls = folder.file("calls.json", r#"[{"name": "a", "ids": [1, 2048]}]"#);
    let mut command = niwaki!(
        "logits",
        demo_export(),
        "--calls",
        calls,
        "-o",
        folder.path("out.npz")
    );
    insta::assert_snapshot!(folder.failure(&mut command, FAILURE));
    assert_eq!(folder.names(), ["calls.json"]);
}

#[test]
fn text_that_is_not_utf8_is_refused_with_the_offset() {
    let folder = Folder::new();
    let text = folder.file("text.txt", b"once \xff upon");
    insta::assert_snapshot!(
        folder.failure(&mut niwaki!("eval", demo_export(), "--text", text), FAILURE)
    );
}

#[test]
fn an_empty_text_is_refused() {
    let folder = Folder::new();
    let text = folder.file("text.txt", "");
    insta::assert_snapshot!(
        folder.failure(&mut niwaki!("eval", demo_export(), "--text", text), FAILURE)
    );
}

#[test]
fn an_unknown_instruction_set_is_refused_with_the_known_ones() {
    let folder = Folder::new();
    let bundle = folder.path("model.niwaki");
    demo_bundle(&bundle);
    let mut command = niwaki!("run", bundle, "hello");
    insta::assert_snapshot!(folder.failure(command.env("NIWAKI_ISA", "mmx"), FAILURE));
}

#[test]
fn more_threads_than_the_system_could_start_are_refused() {
    let folder = Folder::new();
    let bundle = folder.path("model.niwaki");
    demo_bundle(&bundle);
    let mut command = niwaki!("run", bundle, "hello", "--threads", "100000");
    insta::assert_snapshot!(folder.failure(&mut command, FAILURE));
}

#[test]
fn a_wrong_option_is_a_usage_error() {
    let folder = Folder::new();
    for arguments in [
        &["run", "model.niwaki", "--temperature", "-1"][..],
        &["run", "model.niwaki", "--top-p", "1.5"],
        &["run", "model.niwaki", "--threads", "0"],
        &["build", "export", "-o", "model.niwaki", "--weights", "int3"],
        &["eval", "model.niwaki"],
        &["dance"],
    ] {
        let said = folder.failure(niwaki!().args(arguments), USAGE);
        assert!(said.starts_with("error: "), "{said}");
    }
}
