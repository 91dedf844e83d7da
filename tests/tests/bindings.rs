//! The bindings behave as the apps behind them expect.
#![allow(clippy::unwrap_used)]

mod synthetic;

use niwaki_bindings::{
    FinishReason, GenerationOptions, Model, ModelOptions, NiwakiError, TokenListener, memory_plan,
};
use std::path::Path;
use std::sync::{Arc, Mutex};
use synthetic::Decoder;

/// Collects text, and stops after so many pieces.
struct Collector {
    pieces: Mutex<Vec<String>>,
    most: usize,
}

impl Collector {
    fn new(most: usize) -> Arc<Collector> {
        Arc::new(Collector {
            pieces: Mutex::default(),
            most,
        })
    }
}

impl TokenListener for Collector {
    fn on_text(&self, text: String) -> bool {
        let mut pieces = self.pieces.lock().unwrap();
        pieces.push(text);
        pieces.len() < self.most
    }
}

fn model_options() -> ModelOptions {
    ModelOptions {
        threads: 1,
        memory_limit_bytes: None,
        context_tokens: None,
        verify_weights: true,
    }
}

fn generation_options(max_new_tokens: u32) -> GenerationOptions {
    GenerationOptions {
        max_new_tokens,
        temperature: 1.0,
        top_k: None,
        top_p: None,
        seed: 3,
    }
}

fn write_model(folder: &Path) -> String {
    let path = folder.join("model.niwaki");
    // As many tokens as the tokenizer has.
    let decoder = Decoder {
        vocabulary: 8,
        ..Decoder::TINY
    };
    decoder.write_with(&path, 1, |writer| {
        writer.set_tokenizer(synthetic::TOKENIZER.as_bytes().to_vec())
    });
    path.to_str().unwrap().to_owned()
}

#[test]
fn text_comes_piece_by_piece_and_the_same_for_a_seed() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::open(write_model(folder.path()), model_options()).unwrap();
    assert_eq!(
        (model.name().as_str(), model.context_tokens()),
        ("synthetic", 400)
    );
    let run = || {
        let collector = Collector::new(usize::MAX);
        let reason = model
            .generate("abc".into(), generation_options(30), collector.clone())
            .unwrap();
        assert_eq!(reason, FinishReason::MaxTokens);
        let pieces = collector.pieces.lock().unwrap().clone();
        assert!(pieces.len() > 1);
        pieces
    };
    assert_eq!(run(), run());
}

#[test]
fn a_listener_can_stop() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::open(write_model(folder.path()), model_options()).unwrap();
    let collector = Collector::new(2);
    let reason = model
        .generate("abc".into(), generation_options(100), collector.clone())
        .unwrap();
    assert_eq!(
        (reason, collector.pieces.lock().unwrap().len()),
        (FinishReason::Stopped, 2)
    );
}

#[test]
fn errors_come_in_the_kinds_an_app_can_act_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_model(folder.path());
    let missing = Model::open("/nowhere/model.niwaki".into(), model_options());
    assert!(matches!(
        missing.err().unwrap(),
        NiwakiError::InvalidBundle(_)
    ));
    let plan = memory_plan(path.clone(), model_options()).unwrap();
    assert_eq!(
        plan.anonymous_bytes,
        plan.parts
            .iter()
            .filter(|p| !p.file_backed)
            .map(|p| p.size_bytes)
            .sum::<u64>()
    );
    let limited = ModelOptions {
        memory_limit_bytes: Some(1000),
        ..model_options()
    };
    assert!(matches!(
        Model::open(path.clone(), limited).err().unwrap(),
        NiwakiError::NotEnoughMemory(_)
    ));
    let short = Model::open(
        path,
        ModelOptions {
            context_tokens: Some(3),
            ..model_options()
        },
    )
    .unwrap();
    let error = short
        .generate("abcabcabc".into(), generation_options(1), Collector::new(9))
        .unwrap_err();
    assert!(matches!(error, NiwakiError::ContextFull(_)), "{error}");
    let nonsense = GenerationOptions {
        temperature: -1.0,
        ..generation_options(1)
    };
    let error = short
        .generate("a".into(), nonsense, Collector::new(9))
        .unwrap_err();
    assert!(matches!(error, NiwakiError::InvalidArgument(_)), "{error}");
    assert!(
        error.to_string().contains("temperature -1"),
        "the cause is told: {error}"
    );
}
