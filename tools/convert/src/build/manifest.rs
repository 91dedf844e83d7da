//! What a bundle says of itself: the model's name, how it was made, how to generate.

use super::BuildError;
use crate::export::Export;
use crate::onnx::OnnxModel;
use crate::plan::{Fate, FloatType, MatrixKind, Plan, PlannedMatrix, Weights, Wishes};
use niwaki_bundle::{GenerationDefaults, Manifest, Provenance, SourceFile};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The manifest of a bundle that was made of `export` as the plan says. `options` say what was done before.
pub(super) fn manifest(
    export: &Export,
    plan: &Plan,
    wishes: &Wishes,
    quantizer: &str,
    parameters: u64,
    mut options: BTreeMap<String, String>,
) -> Result<Manifest, BuildError> {
    options.extend(done(plan, wishes, quantizer));
    Ok(Manifest {
        name: model_name(export),
        architecture: export.architecture(),
        parameters,
        weights: most(plan),
        licences: export.licences(),
        provenance: Provenance {
            tool: concat!("niwaki ", env!("CARGO_PKG_VERSION")).to_owned(),
            options,
            sources: vec![source_file(&export.model)?],
        },
    })
}

/// How most weights are stored.
fn most(plan: &Plan) -> String {
    let mut stored: BTreeMap<&str, u64> = BTreeMap::new();
    for matrix in &plan.matrices {
        *stored.entry(&matrix.format).or_default() += matrix.weights();
    }
    stored
        .into_iter()
        .max_by_key(|(_, weights)| *weights)
        .map_or("none", |(format, _)| format)
        .to_owned()
}

/// What was done to the weights, which is not what was asked for where nothing could be done.
fn done(plan: &Plan, wishes: &Wishes, quantizer: &str) -> BTreeMap<String, String> {
    let apart = |matrix: &&PlannedMatrix| wishes.embedding.is_some() && matrix.kind.is_table();
    let matrices = plan.matrices.iter();
    let weights = changes(matrices.clone().filter(|matrix| !apart(matrix)));
    let embedding = changes(matrices.filter(apart));
    let weights = match wishes.weights {
        Some(Weights::AsExported) => Weights::AsExported.name().to_owned(),
        _ if weights.is_empty() => Weights::AsStored.name().to_owned(),
        _ => weights,
    };
    let mut done = BTreeMap::from([("weights".to_owned(), weights)]);
    if !embedding.is_empty() {
        done.insert("embedding".to_owned(), embedding);
    }
    if plan.quantizes() {
        done.insert("quantizer".to_owned(), quantizer.to_owned());
    }
    done
}

/// What matrices became: `int4`.
fn changes<'a>(matrices: impl Iterator<Item = &'a PlannedMatrix>) -> String {
    let names: BTreeSet<&str> = matrices
        .filter(|matrix| matrix.kind != MatrixKind::PositionTable)
        .filter_map(|matrix| match matrix.fate {
            Fate::Quantize(code) => Some(code.name()),
            Fate::Float(FloatType::F16) => Some("f16"),
            Fate::Float(FloatType::F32) => Some("f32"),
            Fate::Keep => None,
        })
        .collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

pub(super) fn generation_defaults(export: &Export) -> GenerationDefaults {
    let search = &export.genai_config["search"];
    let config = &export.generation_config;
    let sampled = config["do_sample"]
        .as_bool()
        .or(search["do_sample"].as_bool());
    let number = |name: &str| {
        config[name]
            .as_f64()
            .or(search[name].as_f64())
            .map(|value| value as f32)
    };
    GenerationDefaults {
        bos_token: export.begin_token_id(),
        add_bos_token: export.adds_begin_token(),
        eos_tokens: export.end_token_ids(),
        temperature: if sampled == Some(false) {
            Some(0.0)
        } else {
            number("temperature")
        },
        top_k: config["top_k"]
            .as_u64()
            .or(search["top_k"].as_u64())
            .and_then(|k| usize::try_from(k).ok()),
        top_p: number("top_p"),
        min_p: number("min_p"),
        repetition_penalty: number("repetition_penalty").filter(|factor| *factor != 1.0),
        special_tokens: export.special_tokens(),
    }
}

fn model_name(export: &Export) -> String {
    let own = export.config["_name_or_path"]
        .as_str()
        .filter(|name| !name.is_empty() && !name.contains('/'));
    own.map(str::to_owned)
        .or_else(|| export.folder_name())
        .unwrap_or_else(|| export.architecture())
}

/// An ONNX model and the files that hold its large tensors.
pub(super) fn source_files(model: &Path) -> Result<Vec<SourceFile>, BuildError> {
    let mut files = vec![source_file(model)?];
    for path in OnnxModel::open(model)?.external_files()? {
        files.push(source_file(&path)?);
    }
    Ok(files)
}

/// What was read beside a model.
pub(super) fn companion_files(export: &Export) -> Result<Vec<SourceFile>, BuildError> {
    let files = export.files_beside();
    files.iter().map(|path| source_file(path)).collect()
}

/// The name, size and hash of a file.
///
/// # Errors
/// When it cannot be read.
pub fn source_file(path: &Path) -> Result<SourceFile, BuildError> {
    let failed = |source| BuildError::Read {
        path: path.to_owned(),
        source,
    };
    let mut hasher = blake3::Hasher::new();
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let size_bytes = std::io::copy(&mut file, &mut hasher).map_err(failed)?;
    Ok(SourceFile {
        name: path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        size_bytes,
        blake3: hasher.finalize().to_hex().to_string(),
    })
}
