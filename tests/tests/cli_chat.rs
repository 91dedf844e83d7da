//! `niwaki chat` for scripts, and what `niwaki run` stops at.
#![allow(clippy::unwrap_used)]

use niwaki_tests::{build_demo, niwaki};
use serde_json::Value;
use std::path::PathBuf;
use tempfile::TempDir;

const TEMPLATE: &str = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:";

struct Demo {
    folder: TempDir,
}

impl Demo {
    fn new() -> Demo {
        let folder = tempfile::tempdir().unwrap();
        let demo = Demo { folder };
        build_demo(
            &demo.path("demo.niwaki"),
            niwaki_convert::build::Weights::Int4,
        )
        .unwrap();
        std::fs::write(demo.path("template.jinja"), TEMPLATE).unwrap();
        demo
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn chat(&self, lines: &str, options: &[&str]) -> String {
        let mut command = niwaki!(
            "chat",
            self.path("demo.niwaki"),
            "--template",
            self.path("template.jinja")
        );
        let output = command.args(options).write_stdin(lines).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn a_script_gets_one_object_per_reply_and_later_turns_reuse_earlier_ones() {
    let options = [
        "--json",
        "--max-new-tokens",
        "12",
        "--seed",
        "3",
        "--system",
        "Tell a tale.",
    ];
    let demo = Demo::new();
    let said = demo.chat(
        "Who lived in the forest?\n\nWhat did the fox say?\n",
        &options,
    );
    let replies: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(replies.len(), 2, "{said}");
    assert_eq!(replies[0]["reused_tokens"], 0);
    let reused = replies[1]["reused_tokens"].as_u64().unwrap();
    assert!(reused >= replies[0]["prompt_tokens"].as_u64().unwrap() - 1);
    assert!(reused < replies[1]["prompt_tokens"].as_u64().unwrap());
    assert!(!replies[0]["reply"].as_str().unwrap().is_empty());
}

#[test]
fn a_reply_streams_as_plain_text() {
    let demo = Demo::new();
    let said = demo.chat("Who lived in the forest?\n", &["--max-new-tokens", "12"]);
    assert!(said.trim().len() > 5 && said.ends_with('\n'), "{said}");
}

#[test]
fn a_model_without_a_chat_template_says_what_is_missing() {
    let demo = Demo::new();
    let output = niwaki!("chat", demo.path("demo.niwaki")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("no chat template") && stderr.contains("--template FILE"),
        "{stderr}"
    );
}

#[test]
fn run_ends_at_a_stop_text() {
    let demo = Demo::new();
    let run = |options: &[&str]| {
        let mut command = niwaki!(
            "run",
            demo.path("demo.niwaki"),
            "Once upon a time",
            "--json"
        );
        let output = command
            .args(["--temperature", "0"])
            .args(options)
            .output()
            .unwrap();
        let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
        (
            outcome["text"].as_str().unwrap().to_owned(),
            outcome["finish_reason"].clone(),
        )
    };
    let (free, _) = run(&["--max-new-tokens", "40"]);
    let stop: String = free.chars().skip(20).take(5).collect();
    let (stopped, reason) = run(&["--max-new-tokens", "40", "--stop", &stop]);
    assert_eq!(stopped, free[..free.find(&stop).unwrap()]);
    assert_eq!(reason, "stop_string");
}
