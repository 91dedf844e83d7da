//! From an export to a bundle: lower the graph, decide of its matrices, quantize and pack them, write the file.
//!
//! - `formats`: the [plan](crate::plan) of a lowered graph
//! - `pack`: a matrix as the plan says
//! - `manifest`: what the bundle says of itself

mod error;
mod formats;
mod manifest;
mod pack;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use crate::plan::{Weights, Wishes};
pub use error::BuildError;

use crate::export::Export;
use crate::lower::{self, LowerError, Lowered};
use crate::memory::give_back_freed;
use crate::onnx::{OnnxModel, release_all};
use crate::plan::Plan;
use crate::quantize::{Quantizer, rtn::RoundToNearest};
use niwaki_bundle::write::BundleWriter;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// What was built.
#[derive(Clone, Debug, Serialize)]
pub struct Built {
    /// Size of the bundle.
    pub size_bytes: u64,
    /// Number of weights.
    pub parameters: u64,
    /// How most weights are stored.
    pub weights: String,
    /// What happened to which matrix.
    #[serde(rename = "matrices")]
    pub plan: Plan,
    /// How the export was read, and what it lacks, where a person should know.
    pub notes: Vec<String>,
    /// The export itself returns the logits of the last token only.
    pub last_token_only: bool,
}

/// Builds the bundle at `output` from the export at `path` (its folder or ONNX file). Configuration and tokenizer
/// come from `companions` where given, else from beside the model. `progress` is told the share that is done.
///
/// Works on the threads of rayon's current pool; the bundle does not depend on their number.
///
/// # Errors
/// [`BuildError`]; `output` is then as it was before.
pub fn build(
    path: &Path,
    companions: Option<&Path>,
    output: &Path,
    wishes: impl Into<Wishes>,
    progress: &mut dyn FnMut(f64),
) -> Result<Built, BuildError> {
    let mut export = Export::open(path)?;
    if let Some(companions) = companions {
        export = export.with_companions(companions)?;
    }
    let graph = export.model.clone();
    build_from(&export, &graph, output, wishes, BTreeMap::new(), progress)
}

/// Builds the bundle of an export from another form of its model, the ONNX file at `graph`. `options` say how that was
/// made, for the bundle's provenance.
///
/// # Errors
/// [`BuildError`]; `output` is then as it was before.
pub fn build_from(
    export: &Export,
    graph: &Path,
    output: &Path,
    wishes: impl Into<Wishes>,
    options: BTreeMap<String, String>,
    progress: &mut dyn FnMut(f64),
) -> Result<Built, BuildError> {
    let wishes = wishes.into();
    let mut model = OnnxModel::open(graph)?;
    model.inline_functions()?;
    let lowered = lowered(&model, export, &wishes)?;
    write(
        export,
        &lowered,
        output,
        &wishes,
        &RoundToNearest,
        options,
        progress,
    )
}

fn lowered(model: &OnnxModel, export: &Export, wishes: &Wishes) -> Result<Lowered, BuildError> {
    let facts = export.facts();
    let with_own_rounding = || lower::lower(model, &facts, lower::Rounding::Niwaki);
    if wishes.weights != Some(Weights::AsExported) {
        return Ok(with_own_rounding()?);
    }
    match lower::lower(model, &facts, lower::Rounding::Export) {
        Err(LowerError::NotLowered(left)) => {
            let mut lowered = with_own_rounding()?;
            if let Some(last) = left.last() {
                lowered.notes.push(format!(
                    "activations are not rounded as the export rounds them: `{}`: {}",
                    last.node, last.reason
                ));
            }
            Ok(lowered)
        }
        result => Ok(result?),
    }
}

fn write(
    export: &Export,
    lowered: &Lowered,
    output: &Path,
    wishes: &Wishes,
    quantizer: &dyn Quantizer,
    options: BTreeMap<String, String>,
    progress: &mut dyn FnMut(f64),
) -> Result<Built, BuildError> {
    let (plan, stored) = formats::plan(lowered, wishes, quantizer.name());
    // Lowering and planning have read some matrices, and lowering has computed much that is not needed any more.
    release_all();
    give_back_freed();
    let mut writer = BundleWriter::create(output)?;
    let total: u64 = plan.matrices.iter().map(|matrix| matrix.weights()).sum();
    let mut done = 0u64;
    for (matrix, stored) in lowered.parts.matrices.iter().zip(stored) {
        pack::write_matrix(&mut writer, matrix, stored, quantizer, &mut |rows| {
            done += (rows * matrix.cols()) as u64;
            progress(done as f64 / total.max(1) as f64);
        })?;
    }
    for (name, values) in &lowered.parts.vectors {
        writer.add_vector(name.clone(), values)?;
    }
    if let Some(tokenizer) = &export.tokenizer {
        writer.set_tokenizer(tokenizer.clone());
    }
    if let Some(template) = &export.chat_template {
        writer.set_chat_template(template);
    }
    writer.set_generation_defaults(&manifest::generation_defaults(export))?;
    let vectors = lowered.parts.vectors.iter();
    let parameters = total + vectors.map(|(_, values)| values.len() as u64).sum::<u64>();
    let manifest =
        manifest::manifest(export, &plan, wishes, quantizer.name(), parameters, options)?;
    let size_bytes = writer.finish(&manifest, &lowered.graph)?;
    let notes = lowered.notes.iter().cloned().chain(export.notes());
    Ok(Built {
        size_bytes,
        parameters,
        weights: manifest.weights,
        plan,
        notes: notes.collect(),
        last_token_only: lowered.last_token_only,
    })
}
