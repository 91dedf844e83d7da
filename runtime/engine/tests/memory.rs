//! The memory plan is kept by the process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

#[path = "../../bundle/tests/synthetic/mod.rs"]
mod synthetic;

use niwaki::{Engine, LogitsFor, OpenOptions};
use niwaki_kernels::MatrixFormat;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use synthetic::{Decoder, Random};

/// Names the bundle to the child that is measured: this process has made bundles and is no measure.
const BUNDLE: &str = "NIWAKI_MEASURED_BUNDLE";
fn options() -> OpenOptions {
    OpenOptions::default().with_threads(2)
}

/// Anonymous resident memory of this process.
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .unwrap();
    line.trim()
        .strip_suffix(" kB")
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

/// Fills a session's context and answers by how much anonymous memory grew at most.
fn measure(bundle: &Path) -> u64 {
    let before = anonymous_bytes();
    let done = Arc::new(AtomicBool::new(false));
    let watcher = std::thread::spawn({
        let done = done.clone();
        move || {
            let mut peak = 0;
            while !done.load(Ordering::Relaxed) {
                peak = peak.max(anonymous_bytes());
                std::thread::sleep(Duration::from_micros(500));
            }
            peak
        }
    });
    let engine = Engine::open(bundle, &options()).unwrap();
    let context = engine.context_tokens();
    let tokens = Random(1).tokens(context, engine.token_ids());
    let mut session = engine.session().unwrap();
    let (prompt, rest) = tokens.split_at(context - 20);
    session.append(prompt, LogitsFor::LastToken).unwrap();
    for token in rest {
        session.append(&[*token], LogitsFor::LastToken).unwrap();
    }
    done.store(true, Ordering::Relaxed);
    watcher.join().unwrap() - before
}

/// The measured side of the tests below; does nothing when run by itself.
#[test]
fn measured_in_a_process_of_its_own() {
    if let Some(bundle) = std::env::var_os(BUNDLE) {
        println!("grew by {}", measure(Path::new(&bundle)));
    }
}

fn measured(bundle: &Path) -> u64 {
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "measured_in_a_process_of_its_own",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(BUNDLE, bundle)
        .output()
        .unwrap();
    let output = String::from_utf8(child.stdout).unwrap();
    let line = output
        .lines()
        .find_map(|line| line.split_once("grew by "))
        .unwrap_or_else(|| panic!("{output}"));
    line.1.trim().parse().unwrap()
}

fn check(decoder: &Decoder, tokenizer: Option<Vec<u8>>, slack: f64) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.niwaki");
    decoder.write_with(&path, 1, |writer| {
        tokenizer
            .into_iter()
            .for_each(|json| writer.set_tokenizer(json))
    });
    let plan = Engine::plan(&path, &options()).unwrap();
    let (planned, grown) = (plan.anonymous_bytes() as f64, measured(&path) as f64);
    let ratio = grown / planned;
    println!(
        "{plan}\nmeasured {:.2} MiB, {ratio:.3} of the plan",
        grown / f64::from(1 << 20)
    );
    assert!(
        ratio < 1.0 + slack,
        "the process took {ratio:.3} of what was planned\n{plan}"
    );
    assert!(
        ratio > 1.0 - slack,
        "the plan is too large: {ratio:.3} of it was used\n{plan}"
    );
}

#[test]
fn a_long_context_takes_what_was_planned() {
    let decoder = Decoder {
        vocabulary: 4000,
        context_tokens: 4096,
        hidden: 384,
        layers: 4,
        heads: 6,
        kv_heads: 6,
        head_dim: 64,
        ffn: 1024,
        format: MatrixFormat::INT4,
        refined: 0,
        window: None,
    };
    check(&decoder, None, 0.08);
}

#[test]
fn sliding_windows_and_activations_take_what_was_planned() {
    let decoder = Decoder {
        vocabulary: 2000,
        context_tokens: 2048,
        hidden: 1024,
        layers: 4,
        heads: 8,
        kv_heads: 8,
        head_dim: 128,
        ffn: 2816,
        format: MatrixFormat::INT4,
        refined: 32,
        window: Some(256),
    };
    check(&decoder, None, 0.08);
}

#[test]
fn a_deep_graph_takes_what_was_planned() {
    let decoder = Decoder {
        vocabulary: 16,
        context_tokens: 64,
        hidden: 16,
        layers: 1000,
        heads: 1,
        kv_heads: 1,
        head_dim: 16,
        ffn: 16,
        format: MatrixFormat::INT4,
        refined: 0,
        window: None,
    };
    check(&decoder, None, 0.1);
}

/// A byte-pair tokenizer of all words of up to three letters.
fn large_tokenizer() -> Vec<u8> {
    let letters: Vec<String> = ('a'..='z').map(String::from).collect();
    let pairs: Vec<String> = letters
        .iter()
        .flat_map(|a| letters.iter().map(move |b| format!("{a}{b}")))
        .collect();
    let triples = pairs
        .iter()
        .flat_map(|a| letters.iter().map(move |b| format!("{a}{b}")));
    let merges = letters
        .iter()
        .flat_map(|a| letters.iter().map(move |b| [a.clone(), b.clone()]));
    let merges: Vec<_> = merges
        .chain(
            pairs
                .iter()
                .flat_map(|a| letters.iter().map(move |b| [a.clone(), b.clone()])),
        )
        .collect();
    let words = letters
        .iter()
        .cloned()
        .chain(pairs.iter().cloned())
        .chain(triples);
    let vocabulary: std::collections::BTreeMap<String, usize> =
        words.enumerate().map(|(id, word)| (word, id)).collect();
    let mut json: serde_json::Value = serde_json::from_str(synthetic::TOKENIZER).unwrap();
    json["added_tokens"] = serde_json::json!([]);
    json["model"]["vocab"] = serde_json::json!(vocabulary);
    json["model"]["merges"] = serde_json::json!(merges);
    serde_json::to_vec_pretty(&json).unwrap()
}

#[test]
fn a_tokenizer_takes_no_more_than_was_planned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.niwaki");
    Decoder::TINY.write_with(&path, 1, |writer| writer.set_tokenizer(large_tokenizer()));
    let plan = Engine::plan(&path, &options()).unwrap();
    let ratio = measured(&path) as f64 / plan.anonymous_bytes() as f64;
    println!("{plan}\nmeasured {ratio:.3} of the plan");
    assert!(
        (0.5..1.1).contains(&ratio),
        "the process took {ratio:.3} of what was planned\n{plan}"
    );
}
