//! From an export to a bundle: lower the graph, decide of its matrices, quantize and pack them, write the file.
//!
//! - `formats`: the [plan](crate::plan) of a lowered graph
//! - `optimize`: matrices quantized by what a text does inside the model
//! - `layers`: the layer that a matrix is in
//! - `pack`: a matrix as the plan says
//! - `manifest`: what the bundle says of itself; `report`: of its quality

mod error;
mod formats;
mod layers;
mod manifest;
mod optimize;
mod pack;
mod report;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use crate::plan::{Weights, Wishes};
pub use error::BuildError;
pub use manifest::source_file;
pub use optimize::{Continuation, Damage, Quality, Tried};
pub use report::{Made, PrunedBefore, QualityReport, StoredMatrices, StoredMatrix};

use crate::calibrate::Calibration;
use crate::export::Export;
use crate::lora::{self, Adapter};
use crate::lower::{self, LowerError, Lowered};
use crate::memory::give_back_freed;
use crate::onnx::{OnnxModel, release_all};
use crate::plan::{Code, Fate, Plan};
use crate::quantize::{Gptq, Quantizer, RoundToNearest, Shelf};
use crate::refine::{self, Refined};
use formats::{Assignment, Lattices};
use niwaki_bundle::graph::Output;
use niwaki_bundle::write::BundleWriter;
use optimize::{Optimizer, Outcome};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
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
    /// How the model was read, where a person should know: what is not computed as the export computes it.
    pub notes: Vec<String>,
    /// What the export lacks, and what of it was not read.
    pub missing: Vec<String>,
    /// The export itself returns the logits of the last token only.
    pub last_token_only: bool,
    /// What quantization changes, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality: Option<Quality>,
    /// What was measured on the way.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tried: Vec<Tried>,
    /// Quantized matrices that a build before this one had left on the shelf.
    pub resumed: usize,
}

/// Tokens that see each other in a calibration text.
pub const WINDOW_TOKENS: usize = 512;

/// The share of multiply-adds for finer activations where nothing else is said.
pub const REFINE_SHARE: f64 = 0.03;

/// The text that quantizers are calibrated on.
#[derive(Clone, Copy, Debug)]
pub enum Text<'a> {
    /// Token sequences that do not see each other.
    Given(&'a [Vec<u32>]),
    /// The model writes it.
    Own {
        /// About so many tokens.
        tokens: usize,
    },
}

/// How a bundle is made.
#[derive(Clone)]
pub struct BuildOptions<'a> {
    /// What weights become.
    pub wishes: Wishes,
    /// By which method; of several the one is taken that costs least on tokens that are held out of the text. Where none is
    /// given it is GPTQ if anything gets 4 bits, and else rounding to nearest, which costs next to nothing with 8.
    pub quantizers: &'a [&'a dyn Quantizer],
    /// The text that methods are calibrated on, if they want one.
    pub text: Text<'a>,
    /// How large the bundle may be: matrices that gain most by it get more bits than `wishes` say.
    pub budget: Option<Budget>,
    /// By which share perplexity may rise; where it rises more, the build fails and says what would help.
    pub max_perplexity_increase: Option<f64>,
    /// By which share multiply-adds may grow for activations that 8 bits are coarse for, which a text shows; see
    /// [`Matrix::refined`](niwaki_kernels::Matrix::refined). If nothing is said, [`REFINE_SHARE`] where a text is run through
    /// the model anyway, and nothing elsewhere.
    pub refine_share: Option<f64>,
    /// A folder for quantized matrices: a build that is stopped and begun again with the same goes on where it was.
    pub shelf: Option<&'a Path>,
    /// Threads that calibration computes with; 0 takes the number of fast cores. The bundle does not depend on it.
    pub threads: usize,
    /// Measure what quantization costs, and tell it in the bundle, also where nothing has to be chosen by it.
    pub measures: bool,
    /// LoRA adapters that are merged into the float weights first, each with its strength.
    pub adapters: &'a [(&'a Adapter, f32)],
    /// What was done before, for the bundle's provenance.
    pub provenance: BTreeMap<String, String>,
    /// How it is made, for the quality report; the export's files are added.
    pub made: Made,
}

impl<'a> BuildOptions<'a> {
    /// Rounds to nearest.
    pub fn new(wishes: impl Into<Wishes>) -> BuildOptions<'a> {
        BuildOptions {
            wishes: wishes.into(),
            quantizers: &[&RoundToNearest],
            text: Text::Own { tokens: 0 },
            budget: None,
            max_perplexity_increase: None,
            refine_share: None,
            shelf: None,
            threads: 0,
            measures: false,
            adapters: &[],
            provenance: BTreeMap::new(),
            made: Made::default(),
        }
    }

    /// Whether a text is needed.
    fn calibrates(&self) -> bool {
        let wants = |quantizer: &&dyn Quantizer| quantizer.wants().is_anything();
        self.quantizers.iter().any(wants)
            || self.quantizers.len() > 1
            || self.chooses_formats()
            || self.measures
            || self.refine_share.is_some_and(|share| share > 0.0)
    }

    /// Whether some matrices may get more bits than others.
    fn chooses_formats(&self) -> bool {
        self.budget.is_some() || self.max_perplexity_increase.is_some()
    }
}

/// How large a bundle may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// The whole file.
    SizeBytes(u64),
    /// Bits for each weight, scales included.
    BitsPerWeight(f64),
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Budget::SizeBytes(size_bytes) => write!(f, "{:.1} MB", *size_bytes as f64 / 1e6),
            Budget::BitsPerWeight(bits) => write!(f, "{bits} bits for each weight"),
        }
    }
}

/// What a build is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The model writes a text.
    Writing,
    /// A text runs through the model, and matrices are quantized.
    Calibrating,
    /// Bundles are compared with the float model.
    Measuring,
    /// The bundle is written.
    Building,
}

/// Builds the bundle at `output` from the export at `path` (its folder or ONNX file), weights rounded to nearest.
/// Configuration and tokenizer come from `companions` where given, else from beside the model. `progress` is told the share
/// that is done.
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
    progress: &mut (dyn FnMut(f64) + Send),
) -> Result<Built, BuildError> {
    let mut export = Export::open(path)?;
    if let Some(companions) = companions {
        export = export.with_companions(companions)?;
    }
    let graph = export.model.clone();
    let options = BuildOptions::new(wishes);
    build_from(&export, &graph, output, &options, &mut |_, share| {
        progress(share);
    })
}

/// Builds the bundle of an export from a form of its model, the ONNX file at `graph`. `progress` is told what the build is
/// at and the share of it that is done.
///
/// # Errors
/// [`BuildError`]; `output` is then as it was before.
pub fn build_from(
    export: &Export,
    graph: &Path,
    output: &Path,
    options: &BuildOptions<'_>,
    progress: &mut (dyn FnMut(Phase, f64) + Send),
) -> Result<Built, BuildError> {
    let mut model = OnnxModel::open(graph)?;
    model.inline_functions()?;
    let mut lowered = lowered(&model, export, &options.wishes)?;
    for (adapter, strength) in options.adapters {
        lora::merge(&mut lowered, adapter, *strength)?;
    }
    if options.chooses_formats() {
        lower::split_values(&mut lowered);
    }
    let lattices = formats::lattices(&lowered, &options.wishes)?;
    let base = Assignment::default();
    let plan = formats::plan(&lowered, &options.wishes, &lattices, &base, "").0;
    let mut options = options.clone();
    if options.quantizers.is_empty() {
        options.quantizers = match plan.rounds_to_four_bits() {
            true => &[&Gptq::USUAL],
            false => &[&RoundToNearest],
        };
    }
    let options = &options;
    // A model that predicts no tokens writes no text either.
    let is_silent =
        matches!(options.text, Text::Own { .. }) && lowered.graph.output(Output::LOGITS).is_none();
    let has_to_measure = options.measures || plan.rounds();
    if !options.calibrates() || !has_to_measure || is_silent {
        let outcome = Outcome {
            lattices,
            ..Outcome::default()
        };
        return write(export, &lowered, output, options, None, outcome, progress);
    }
    let scratch = tempfile::tempdir().map_err(BuildError::Scratch)?;
    let writer = Optimizer::new(export, &lowered, options, &lattices, scratch.path());
    let text = writer.text(&mut |share| progress(Phase::Writing, share))?;
    let refined = refined(&mut lowered, options, &lattices, &text.seen, scratch.path())?;
    let mut optimizer = Optimizer::new(export, &lowered, options, &lattices, scratch.path());
    optimizer.refined = refined;
    let own_shelf = scratch.path().join("quantized");
    let folder = options.shelf.unwrap_or(&own_shelf);
    let label = optimize::label(graph, options, &text.seen)?;
    let shelf = Shelf::open(folder, &label)?;
    optimizer.fill_shelf(&shelf, &text.seen, &mut |share| {
        progress(Phase::Calibrating, share);
    })?;
    optimizer.shelf = Some(&shelf);
    let mut outcome = optimizer.choose(&text.held_out, progress)?;
    if let Text::Own { .. } = options.text {
        let tokens: usize = text.seen.iter().map(Vec::len).sum();
        outcome.text = Some(format!("{tokens} tokens that the model wrote"));
    }
    write(
        export,
        &lowered,
        output,
        options,
        Some(&shelf),
        outcome,
        progress,
    )
}

/// Puts the channels of the model in the order in which 8-bit activations are finest, and says where they get second terms.
fn refined(
    lowered: &mut Lowered,
    options: &BuildOptions<'_>,
    lattices: &Lattices,
    text: &[Vec<u32>],
    scratch: &Path,
) -> Result<Refined, BuildError> {
    let share = options.refine_share.unwrap_or(REFINE_SHARE);
    if share <= 0.0 {
        return Ok(Refined::new());
    }
    let base = Assignment::default();
    let (_, stored) = formats::plan(lowered, &options.wishes, lattices, &base, "");
    let mut choice = refine::Choice {
        share,
        ..refine::Choice::default()
    };
    for (id, (matrix, stored)) in lowered.parts.matrices.iter().zip(&stored).enumerate() {
        if let Fate::Quantize(code) = stored.fate {
            choice.quantized.insert(id);
            if code != Code::Int8 {
                choice.in_blocks.insert(id);
            }
        }
        if matrix.is_quantized() || lattices.contains_key(&id) {
            choice.fixed.insert(id);
        }
    }
    let mut tokens = 0;
    let text = text.iter().take_while(|sequence| {
        let is_wanted = tokens < refine::TEXT_TOKENS;
        tokens += sequence.len();
        is_wanted
    });
    let text: Vec<Vec<u32>> = text.cloned().collect();
    let calibration = Calibration {
        sequences: &text,
        scratch,
        threads: options.threads,
    };
    Ok(refine::refine(lowered, &choice, calibration)?)
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
            // With float weights nothing is quantized per block either.
            lowered
                .notes
                .retain(|note| !note.ends_with(lower::QUANTIZED_PER_BLOCK));
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
    options: &BuildOptions<'_>,
    shelf: Option<&Shelf>,
    outcome: Outcome,
    progress: &mut (dyn FnMut(Phase, f64) + Send),
) -> Result<Built, BuildError> {
    let BuildOptions {
        wishes, quantizers, ..
    } = options;
    let Outcome {
        assignment,
        quality,
        tried,
        text,
        lattices,
        refined,
        details,
    } = outcome;
    let quantizer = *quantizers
        .get(assignment.quantizer)
        .ok_or(BuildError::NoQuantizer)?;
    let (mut plan, stored) =
        formats::plan(lowered, wishes, &lattices, &assignment, quantizer.name());
    // Lowering and planning have read some matrices, and lowering has computed much that is not needed any more.
    release_all();
    give_back_freed();
    let source = optimize::Source {
        quantizer,
        lattices: &lattices,
        refined: &refined,
        shelf,
    };
    let mut writer = BundleWriter::create(output)?;
    let total: u64 = plan.matrices.iter().map(|matrix| matrix.weights()).sum();
    let mut done = 0u64;
    let mut sizes_bytes = vec![];
    let matrices = lowered.parts.matrices.iter().zip(stored).enumerate();
    for (id, (matrix, stored)) in matrices {
        let format = pack::write_matrix(&mut writer, id, matrix, stored, &source, &mut |rows| {
            done += (rows * matrix.cols()) as u64;
            progress(Phase::Building, done as f64 / total.max(1) as f64);
        })?;
        plan.matrices[id].stored_as(&format);
        sizes_bytes.push(format.size_bytes(matrix.rows(), matrix.cols()).unwrap_or(0) as u64);
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
    if let (Some(quality), Some(details)) = (&quality, details) {
        let layers = layers::layers(&lowered.graph, &plan);
        let report = QualityReport {
            quality: quality.clone(),
            damage: details.damage,
            chosen: quantizer.description(),
            tried: tried.clone(),
            matrices: report::stored(&plan, &sizes_bytes, &layers, &details),
            continuations: details.continuations,
            notes: lowered
                .notes
                .iter()
                .cloned()
                .chain(export.missing())
                .collect(),
            made: report::made_of(export, &options.made)?,
        };
        writer.set_quality_report(&serde_json::json!(report))?;
    }
    let mut provenance = options.provenance.clone();
    provenance.extend(text.map(|text| ("calibration".to_owned(), text)));
    provenance.extend(
        refine::description(lowered, &refined).map(|done| ("activations".to_owned(), done)),
    );
    provenance.extend(
        quality
            .as_ref()
            .map(|quality| ("quality".to_owned(), quality.to_string())),
    );
    let manifest = manifest::manifest(
        export,
        &plan,
        wishes,
        &quantizer.description(),
        parameters,
        provenance,
    )?;
    let size_bytes = writer.finish(&manifest, &lowered.graph)?;
    Ok(Built {
        size_bytes,
        parameters,
        weights: manifest.weights,
        plan,
        notes: lowered.notes.clone(),
        missing: export.missing(),
        last_token_only: lowered.last_token_only,
        quality,
        tried,
        resumed: shelf.map_or(0, Shelf::found),
    })
}
