//! Adapters that cannot be merged say why. What a merged one computes is compared with PEFT in `tests/tests/lora.rs`.

use super::*;
use crate::lower::{ModelFacts, Rounding, lower};
use crate::onnx::OnnxModel;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::error::Error;
use std::path::Path;
use tempfile::TempDir;

type Tensors = Vec<(String, [usize; 2])>;

fn of(module: &str, rank: usize, rows: usize, columns: usize) -> Tensors {
    let name = |part: &str| format!("base_model.model.{module}.{part}.weight");
    vec![
        (name("lora_A"), [rank, columns]),
        (name("lora_B"), [rows, rank]),
    ]
}

/// A folder with these tensors, all of the same value.
fn folder(config: &str, tensors: &Tensors, value: f32) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), config).unwrap();
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, [rows, columns])| value.to_le_bytes().repeat(rows * columns))
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape), bytes)| {
        (
            name.clone(),
            TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap(),
        )
    });
    let path = folder.path().join("adapter_model.safetensors");
    safetensors::serialize_to_file(views, None, &path).unwrap();
    folder
}

/// What is said of an adapter for the demo model.
fn refusal(config: &str, tensors: &Tensors, value: f32) -> String {
    let folder = folder(config, tensors, value);
    let adapter = match Adapter::open(folder.path()) {
        Ok(adapter) => adapter,
        Err(error) => return said(&error),
    };
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo-model/onnx/model.onnx");
    let mut model = OnnxModel::open(&demo).unwrap();
    model.inline_functions().unwrap();
    let mut lowered = lower(&model, &ModelFacts::default(), Rounding::Niwaki).unwrap();
    said(&merge(&mut lowered, &adapter, 1.0).unwrap_err())
}

fn said(error: &dyn Error) -> String {
    let source = error.source().map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default())
}

const PLAIN: &str = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4}"#;

#[test]
fn what_is_no_plain_lora_is_refused() {
    let tensors = of("model.layers.0.self_attn.q_proj", 2, 192, 192);
    for (config, reason) in [
        (
            r#"{"peft_type": "IA3", "r": 2, "lora_alpha": 4}"#,
            "\"IA3\" in place of LoRA",
        ),
        (r#"{"r": 2, "lora_alpha": 4, "use_dora": true}"#, "DoRA"),
        (
            r#"{"r": 2, "lora_alpha": 4, "bias": "all"}"#,
            "trained biases",
        ),
        (
            r#"{"r": 2, "lora_alpha": 4, "layer_replication": [[0, 2]]}"#,
            "layer_replication",
        ),
        (r#"{"r": 2}"#, "lora_alpha"),
        (r#"{"r": 3, "lora_alpha": 4}"#, "has rank 2"),
        (r#"{"r": 2, "lora_alpha": 1e39}"#, "scaled by inf"),
    ] {
        let said = refusal(config, &tensors, 0.1);
        assert!(said.contains(reason), "{config}: {said}");
    }
}

#[test]
fn tensors_that_cannot_be_used_are_named() {
    let q = || of("model.layers.0.self_attn.q_proj", 2, 192, 192);
    let alone = |part: usize| vec![q().swap_remove(part)];
    let saved = vec![("base_model.model.lm_head.weight".to_owned(), [8, 8])];
    for (tensors, value, reason) in [
        (
            alone(0),
            0.1,
            "has no `base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight`",
        ),
        (alone(1), 0.1, "has no lora_A beside it"),
        (
            saved,
            0.1,
            "`base_model.model.lm_head.weight`, which is neither lora_A nor lora_B",
        ),
        (vec![], 0.1, "changes nothing"),
        (q(), f32::NAN, "holds NaN at 0"),
    ] {
        let said = refusal(PLAIN, &tensors, value);
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    for (module, rows, columns, reason) in [
        (
            "model.layers.0.self_attn.q_proj",
            256,
            192,
            "256 x 192, and the model's has 192 x 192",
        ),
        (
            "model.layers.6.self_attn.q_proj",
            192,
            192,
            "no projection that it could be",
        ),
        (
            "model.layers.0.mlp.experts",
            192,
            192,
            "no projection that it could be",
        ),
        // Tied to the embedding.
        ("lm_head", 2048, 192, "only one of them would change"),
    ] {
        let said = refusal(PLAIN, &of(module, 2, rows, columns), 0.1);
        assert!(said.contains(reason), "{module}: {said}");
    }
}

#[test]
fn a_file_that_is_no_adapter_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let open = || said(&Adapter::open(folder.path()).unwrap_err());
    assert!(open().contains("as PEFT saves it"), "{}", open());
    std::fs::write(folder.path().join("adapter_config.json"), PLAIN).unwrap();
    std::fs::write(
        folder.path().join("adapter_model.safetensors"),
        "version https://git-lfs",
    )
    .unwrap();
    assert!(open().contains("is not a safetensors file"), "{}", open());
}
