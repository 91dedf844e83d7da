//! The demo model's logits, to the bit: the same on every CPU, with every instruction set, for every number of
//! threads, and however the tokens are fed.
//!
//! A hash here changes only when the arithmetic contract (docs/arithmetic.md), a quantizer or the model
//! changes; the change belongs into CHANGELOG.md.
#![allow(clippy::unwrap_used)]

use niwaki::{Engine, GenerateOptions, Isa, LogitsFor, OpenOptions, Sampling};
use niwaki_tests::build_demo;
use std::path::Path;
use std::sync::LazyLock;
use tempfile::TempDir;

const INT4_LOGITS: &str = "a3b8d1263dd69d5284d1dc85217eee76722f2574e5a00a5210835b7921b6bbcb";
const INT8_LOGITS: &str = "0baa4a5ba83e7adc80b66ba6afeca3aab2f2398a891775edc3d01536ff56b39c";
/// What the int4 model writes after the prompt with seed 7.
const STORY: &str = " who had a daughter to wife, and was a very beautiful and beautiful daughter. The King was a great Queen, and";
const PROMPT: &str = "Once upon a time there was a king";

struct Bundles {
    folder: TempDir,
}

impl Bundles {
    fn path(&self, weights: &str) -> std::path::PathBuf {
        self.folder.path().join(format!("{weights}.niwaki"))
    }
}

static BUNDLES: LazyLock<Bundles> = LazyLock::new(|| {
    let bundles = Bundles {
        folder: tempfile::tempdir().unwrap(),
    };
    build_demo(&bundles.path("int4"), niwaki_convert::build::Weights::Int4).unwrap();
    build_demo(&bundles.path("int8"), niwaki_convert::build::Weights::Int8).unwrap();
    bundles
});

fn open(bundle: &Path, isa: Isa, threads: usize) -> Engine {
    Engine::open(
        bundle,
        &OpenOptions::default().with_isa(isa).with_threads(threads),
    )
    .unwrap()
}

/// Ids all over the vocabulary, more than a KV page and more than a prefill chunk would be if it were 64.
fn tokens() -> Vec<u32> {
    std::iter::once(0)
        .chain((1..100).map(|index| index * 613 % 2048))
        .collect()
}

/// Feeds the tokens in runs of these lengths, again and again, and hashes all logits.
fn logits_hash(engine: &Engine, runs: &[usize]) -> String {
    let tokens = tokens();
    let mut session = engine.session().unwrap();
    let mut hasher = blake3::Hasher::new();
    let mut left = tokens.as_slice();
    for run in runs.iter().cycle() {
        let (now, later) = left.split_at((*run).min(left.len()));
        for logit in session
            .append(now, LogitsFor::EveryToken)
            .unwrap()
            .as_slice()
        {
            hasher.update(&logit.to_le_bytes());
        }
        left = later;
        if left.is_empty() {
            return hasher.finalize().to_hex().to_string();
        }
    }
    unreachable!("runs are given");
}

#[test]
fn int4_logits_are_the_golden_bits_with_every_instruction_set() {
    for isa in Isa::available() {
        let hash = logits_hash(&open(&BUNDLES.path("int4"), isa, 2), &[100]);
        assert_eq!(hash, INT4_LOGITS, "{isa}");
    }
}

#[test]
fn int8_logits_are_the_golden_bits_with_every_instruction_set() {
    for isa in Isa::available() {
        let hash = logits_hash(&open(&BUNDLES.path("int8"), isa, 2), &[100]);
        assert_eq!(hash, INT8_LOGITS, "{isa}");
    }
}

#[test]
fn threads_and_the_way_tokens_are_fed_change_no_bit() {
    for (threads, runs) in [(1, &[1][..]), (3, &[7, 1, 40]), (2, &[64]), (5, &[33, 2])] {
        let hash = logits_hash(&open(&BUNDLES.path("int4"), Isa::detect(), threads), runs);
        assert_eq!(hash, INT4_LOGITS, "{threads} threads, runs of {runs:?}");
    }
}

#[test]
fn a_seed_tells_the_same_story_everywhere() {
    let engine = open(&BUNDLES.path("int4"), Isa::detect(), 2);
    let mut prompt = vec![0];
    prompt.extend(engine.tokenizer().unwrap().encode(PROMPT, false).unwrap());
    let options = GenerateOptions::default()
        .with_max_new_tokens(24)
        .with_sampling(
            Sampling::GREEDY
                .with_temperature(0.8)
                .with_top_k(40)
                .with_top_p(0.95)
                .with_seed(7),
        );
    let mut session = engine.session().unwrap();
    let story: String = session
        .generate(&prompt, &options)
        .map(|token| token.unwrap().text)
        .collect();
    assert_eq!(story, STORY);
}
