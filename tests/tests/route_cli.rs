//! `niwaki run` between the device and an endpoint.
#![allow(clippy::unwrap_used)]

mod endpoint;

use endpoint::{Endpoint, dead_port, good_answer, status};
use niwaki_convert::build::Weights;
use niwaki_tests::{build_demo, niwaki};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;
use tempfile::TempDir;

const WORDS: &str = "Once upon a time there was a king";

static BUILT: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    build_demo(&folder.path().join("demo.niwaki"), Weights::Int4).unwrap();
    folder
});

fn model() -> PathBuf {
    BUILT.path().join("demo.niwaki")
}

/// `niwaki run` with an endpoint.
fn run(url: &str) -> assert_cmd::Command {
    let mut command = niwaki!(
        "run",
        model(),
        WORDS,
        "--max-new-tokens",
        "8",
        "--cloud-endpoint",
        url,
        "--cloud-model",
        "some-model"
    );
    command.env("NIWAKI_CLOUD_API_KEY", "sk-test");
    command
}

fn output(command: &mut assert_cmd::Command) -> (Option<i32>, String, String) {
    let output = command.output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn a_prompt_over_the_limit_goes_to_the_endpoint_and_one_under_it_stays() {
    let endpoint = Endpoint::answering(good_answer(&["from ", "afar"]));
    let (code, text, explained) =
        output(run(&endpoint.url()).args(["--max-local-prompt-tokens", "3", "--explain"]));
    assert_eq!((code, text.as_str()), (Some(0), "from afar\n"));
    assert!(
        explained.contains("answered by: the endpoint"),
        "{explained}"
    );
    assert!(explained.contains("more than the 3"), "{explained}");
    let sent = &endpoint.requests()[0];
    assert!(
        sent.contains("Bearer sk-test") && sent.contains(WORDS),
        "{sent}"
    );

    let (code, text, explained) =
        output(run(&endpoint.url()).args(["--max-local-prompt-tokens", "100", "--explain"]));
    assert_eq!((code, endpoint.accepted()), (Some(0), 1));
    assert_ne!(text, "from afar\n");
    assert!(explained.contains("answered by: the device"), "{explained}");
}

#[test]
fn the_decision_is_in_the_json() {
    let endpoint = Endpoint::answering(good_answer(&["from afar"]));
    let (_, json, stderr) =
        output(run(&endpoint.url()).args(["--max-local-prompt-tokens", "3", "--json"]));
    let outcome: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(stderr, "");
    assert_eq!(outcome["text"], "from afar");
    let decision = &outcome["decision"];
    assert_eq!(decision["answered_by"]["kind"], "cloud");
    assert_eq!(decision["answered_by"]["name"], "endpoint");
    assert_eq!(decision["reason"]["kind"], "prompt_over_limit");
    assert_eq!(decision["prompt_tokens"], outcome["prompt_tokens"]);
    assert!(!decision.to_string().contains("king"));
}

#[test]
fn a_dead_endpoint_is_said_clearly_or_made_up_for() {
    let dead = format!("http://127.0.0.1:{}", dead_port());
    let (code, text, stderr) = output(run(&dead).args(["--max-local-prompt-tokens", "3"]));
    assert_eq!((code, text.as_str()), (Some(1), ""));
    assert!(stderr.contains("refused the connection"), "{stderr}");

    let (code, text, explained) =
        output(run(&dead).args(["--routing", "prefer-cloud", "--explain"]));
    assert_eq!(code, Some(0));
    assert!(text.len() > 1, "{text}");
    assert!(explained.contains("tried the endpoint"), "{explained}");
    assert!(explained.contains("answered by: the device"), "{explained}");
}

#[test]
fn a_refused_key_is_said_with_where_it_belongs() {
    let endpoint = Endpoint::answering(status("401 Unauthorized", "", ""));
    let (code, _, stderr) = output(run(&endpoint.url()).args(["--routing", "cloud-only"]));
    assert_eq!(code, Some(1));
    assert!(stderr.contains("NIWAKI_CLOUD_API_KEY"), "{stderr}");
    assert!(!stderr.contains("sk-test"), "{stderr}");
}

#[test]
fn plaintext_to_another_machine_is_refused_before_anything_is_sent() {
    let (code, _, stderr) = output(run("http://api.example.com").args(["--on-device-only"]));
    assert_eq!(code, Some(1));
    assert!(stderr.contains("unencrypted"), "{stderr}");
    assert!(stderr.contains("--cloud-allow-plaintext"), "{stderr}");
}

#[test]
fn a_port_that_is_none_is_an_error_and_no_other_port() {
    for port in ["99999", "0", "", "http"] {
        let (code, text, stderr) =
            output(run(&format!("https://127.0.0.1:{port}")).args(["--routing", "cloud-only"]));
        assert_eq!((code, text.as_str()), (Some(1), ""), "{port:?}");
        assert!(
            stderr.contains("its port is not a number from 1 to 65535"),
            "{stderr}"
        );
    }
}

/// Sockets a run opens, connects and sends over, watched from outside; `None` where that cannot be watched.
fn network_calls(arguments: &[&str], url: &str) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let mut watched = Command::new("strace");
    watched
        .args(["-f", "-qq", "-e", "signal=none", "-e"])
        .arg("trace=socket,connect,bind,sendto,sendmsg,sendmmsg")
        .arg("-o")
        .arg(&trace)
        .arg(assert_cmd::cargo::cargo_bin!("niwaki-under-test"))
        .arg("run")
        .arg(model())
        .args([
            WORDS,
            "--max-new-tokens",
            "4",
            "--cloud-model",
            "some-model",
        ])
        .args(["--cloud-endpoint", url])
        .args(arguments);
    if !watched.output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: strace is not installed, or may not watch");
        return None;
    }
    Some(std::fs::read_to_string(&trace).unwrap())
}

#[test]
fn on_device_only_opens_no_socket_and_resolves_no_name() {
    let endpoint = Endpoint::answering(good_answer(&["from afar"]));
    let over_the_limit = ["--max-local-prompt-tokens", "1"];
    // The watch sees a connection where there is one.
    let Some(calls) = network_calls(&over_the_limit, &endpoint.url()) else {
        return;
    };
    assert!(calls.contains("connect("), "{calls}");
    assert_eq!(endpoint.accepted(), 1);

    let on_device_only = [&over_the_limit[..], &["--on-device-only"]].concat();
    for url in [&*endpoint.url(), "https://niwaki.invalid"] {
        for mode in ["local-only", "prefer-local", "prefer-cloud"] {
            let arguments = [&on_device_only[..], &["--routing", mode]].concat();
            assert_eq!(
                network_calls(&arguments, url),
                Some(String::new()),
                "{mode}"
            );
        }
    }
    assert_eq!(endpoint.accepted(), 1);
}
