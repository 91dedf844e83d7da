//! `niwaki build`: export folder to bundle in one step.

use super::error::CommandError;
use super::model::EngineArgs;
use super::prune::{Method, PruneAmount, Pruned, calibration_tokens, prune_file};
use super::staging::{Scratch, Staging};
use super::{plan, print, print_json};
use crate::terminal::{self, Progress};
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use niwaki_convert::build::{
    Budget, BuildError, BuildOptions, Built, Phase, Quality, Text, WINDOW_TOKENS, Weights, Wishes,
    build, build_from,
};
use niwaki_convert::export::Export;
use niwaki_convert::memory::give_back_large_blocks;
use niwaki_convert::plan::Usual;
use niwaki_convert::quantize::{Gptq, Quantizer, RoundToNearest, ScaleSearch};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Turn an exported model into one .niwaki file.
///
/// Reads the export folder (model.onnx with its external data, config.json, tokenizer.json,
/// generation_config.json, the chat template), lowers the graph, prunes it if asked to, quantizes float weights
/// and packs everything. Weights that the export already holds quantized are kept exactly as they are. What its
/// quantizer left in floats is left so, unless --weights or --embedding ask for something else.
///
/// Four bits are calibrated: on --calibration, or on a text that the model writes itself. A part of it is held out, and
/// the summary says what quantization cost there, and of every kind of matrix how it is stored, and why.
///
/// A build that is stopped goes on where it was when the same command runs again. docs/quantization.md tells more.
#[derive(Args)]
pub(super) struct BuildArgs {
    /// Folder that the exporter wrote, or its .onnx file.
    #[arg(value_name = "EXPORT_DIR")]
    export: PathBuf,
    /// The bundle to write.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// How float weights are stored; codebook4 if nothing is said, or as they are in an export that holds quantized ones.
    #[arg(long, value_enum)]
    weights: Option<FloatWeights>,
    /// How a float embedding is stored; if nothing is said, as --weights says, or as it is in an export that holds
    /// quantized weights.
    #[arg(long, value_enum)]
    embedding: Option<FloatWeights>,
    /// How weights are quantized [default: gptq for 4 bits, rtn for 8].
    #[arg(long, value_enum)]
    method: Option<Quantization>,
    /// Give matrices that gain most by it 8 bits, as long as the file stays below this: 90MB.
    #[arg(long, value_name = "SIZE")]
    target_size: Option<ByteSize>,
    /// The same, up to so many bits for each weight, scales included: 5.0.
    #[arg(long, value_name = "BITS", value_parser = bits, conflicts_with = "target_size")]
    bits: Option<f64>,
    /// Fail if perplexity on held-out text rises by more, and say what would help: 2%.
    #[arg(long, value_name = "SHARE", value_parser = percent)]
    max_perplexity_increase: Option<f64>,
    /// Prune the layers first, as `niwaki prune` does.
    #[arg(long, value_enum, value_name = "METHOD")]
    prune: Option<Method>,
    #[command(flatten)]
    amount: PruneAmount,
    /// Print what was built as JSON.
    #[arg(long)]
    json: bool,
}

/// Methods of quantization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Quantization {
    /// Round to nearest: a second, and no text.
    Rtn,
    /// The scale of each block with the least error, weighted by how strongly its inputs are driven.
    Search,
    /// GPTQ: later columns make up for what rounding earlier ones does wrong.
    Gptq,
    /// Try the others, and keep the one that costs least on held-out text.
    Auto,
}

impl Quantization {
    fn quantizers(self) -> &'static [&'static dyn Quantizer] {
        match self {
            Quantization::Rtn => &[&RoundToNearest],
            Quantization::Search => &[&ScaleSearch],
            Quantization::Gptq => &[&Gptq::USUAL],
            Quantization::Auto => &[&Gptq::USUAL, &Gptq::CAUTIOUS, &ScaleSearch],
        }
    }
}

/// Bits for each weight.
fn bits(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(bits) if (4.0..=32.0).contains(&bits) => Ok(bits),
        _ => Err("give a number from 4 on, as in 5.0".to_owned()),
    }
}

/// A share: 2% or 0.02.
fn percent(text: &str) -> Result<f64, String> {
    let share = match text.strip_suffix('%') {
        Some(number) => number.trim().parse::<f64>().map(|number| number / 100.0),
        None => text.parse(),
    };
    match share {
        Ok(share) if (0.0..=10.0).contains(&share) => Ok(share),
        _ => Err("give a share, as in 2%".to_owned()),
    }
}

/// Stored form of weights that the export holds as floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FloatWeights {
    /// 4-bit codes of 16 values that are fitted to each matrix, one scale per block of 32.
    Codebook4,
    /// 4 bits, symmetric, one scale per block of 32.
    Int4,
    /// 8 bits, symmetric, one scale per block of 32.
    Int8,
    /// Half precision.
    F16,
    /// Full precision, for comparisons.
    F32,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Summary<'a> {
    #[serde(flatten)]
    built: &'a Built,
    #[serde(skip_serializing_if = "Option::is_none")]
    pruned: Option<&'a Pruned>,
    warnings: &'a [String],
}

pub(super) fn run(args: &BuildArgs) -> Result<(), CommandError> {
    let wishes = Wishes {
        weights: args.weights.map(Weights::from),
        embedding: args.embedding.map(Weights::from),
        usual: Usual::Codebook4,
    };
    let scratch = Scratch::new().map_err(CommandError::write(&std::env::temp_dir()))?;
    let pruned = match args.prune {
        None if args.amount.is_given() => return Err(CommandError::AmountWithoutMethod),
        None if args.amount.names_calibration() && !args.quantizes_by_text() => {
            return Err(CommandError::UnusedCalibration);
        }
        None => None,
        Some(method) => {
            let model = scratch.path().join("model.onnx");
            let engine = EngineArgs::default();
            let mut amount = args.amount.clone();
            if !method.measures() && args.quantizes_by_text() {
                amount.leave_out_calibration();
            }
            let pruned = prune_file(&args.export, &model, method, &amount, &engine)?;
            Some((model, pruned))
        }
    };
    let mut export = Export::open(&args.export).map_err(|source| CommandError::Build {
        path: args.export.clone(),
        source: Box::new(source.into()),
    })?;
    if let Some(removed) = pruned.as_ref().and_then(|(_, pruned)| pruned.removed()) {
        removed.describe_in(&mut export);
    }
    let calibration = args.amount.calibration.as_deref();
    let text = calibration
        .map(|path| {
            let tokens = args.amount.wanted_tokens();
            calibration_tokens(&export, &args.export, path, tokens, WINDOW_TOKENS)
        })
        .transpose()?;
    let graph = match &pruned {
        Some((model, _)) => model,
        None => &export.model,
    };
    let mut options = BuildOptions::new(wishes);
    options.quantizers = args.method.map_or(&[], Quantization::quantizers);
    options.budget = args
        .target_size
        .map(|size| Budget::SizeBytes(size.as_u64()))
        .or(args.bits.map(Budget::BitsPerWeight));
    options.max_perplexity_increase = args.max_perplexity_increase;
    // Stays when the build is stopped, so that it can go on.
    let shelf = shelf_of(&args.output);
    options.shelf = Some(&shelf);
    options.text = match &text {
        Some(sequences) => Text::Given(sequences),
        None => Text::Own {
            tokens: args.amount.wanted_tokens(),
        },
    };
    options.provenance = pruned
        .as_ref()
        .map(|(_, pruned)| pruned.provenance())
        .unwrap_or_default();
    if let (Some(path), Some(sequences)) = (&args.amount.calibration, &text) {
        let tokens: usize = sequences.iter().map(Vec::len).sum();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let told = format!("{tokens} tokens of {name}");
        options.provenance.insert("calibration".to_owned(), told);
    }
    let built = stage(&args.export, &args.output, |output, progress| {
        build_from(&export, graph, output, &options, progress)
    })?;
    let pruned = pruned.map(|(_, pruned)| pruned);
    // There is none where nothing was calibrated.
    let _ = std::fs::remove_dir_all(&shelf);
    let warnings = plan::warnings(
        &built.plan,
        &wishes,
        built.quality.is_some(),
        &args.export,
        &args.output,
    );
    print_built(&args.output, &built, pruned.as_ref(), &warnings, args.json)
}

impl BuildArgs {
    /// Whether a text has a say in how weights are quantized.
    fn quantizes_by_text(&self) -> bool {
        let four_bits =
            |weights: FloatWeights| matches!(weights, FloatWeights::Codebook4 | FloatWeights::Int4);
        let chooses = self.target_size.is_some()
            || self.bits.is_some()
            || self.max_perplexity_increase.is_some();
        match self.method {
            Some(Quantization::Rtn) => chooses,
            Some(_) => true,
            None => {
                chooses
                    || self.weights.is_none_or(four_bits)
                    || self.embedding.is_some_and(four_bits)
            }
        }
    }
}

/// Lowers, packs and writes one model, with progress on a terminal. Configuration and tokenizer come from
/// `companions`, or from beside the model.
pub(super) fn write_bundle(
    model: &Path,
    companions: Option<&Path>,
    output: &Path,
    wishes: impl Into<Wishes>,
) -> Result<Built, CommandError> {
    stage(model, output, |output, progress| {
        build(model, companions, output, wishes, &mut |share| {
            progress(Phase::Building, share);
        })
    })
}

/// Shows progress while `build` writes, and puts what it wrote in its place.
fn stage(
    model: &Path,
    output: &Path,
    build: impl FnOnce(&Path, &mut (dyn FnMut(Phase, f64) + Send)) -> Result<Built, BuildError>,
) -> Result<Built, CommandError> {
    give_back_large_blocks();
    let staging = Staging::new(output).map_err(CommandError::write(output))?;
    let mut shown: Option<(Phase, Progress)> = None;
    let mut progress = |phase: Phase, share: f64| {
        if shown.as_ref().map(|(phase, _)| *phase) != Some(phase) {
            shown = None;
            shown = Some((phase, Progress::share(phase_name(phase))));
        }
        if let Some((_, progress)) = &shown {
            progress.at(share);
        }
    };
    let built = build(&staging.path(), &mut progress);
    drop(shown);
    let built = built.map_err(|source| CommandError::Build {
        path: model.to_owned(),
        source: Box::new(source),
    })?;
    staging.publish().map_err(CommandError::write(output))?;
    Ok(built)
}

/// What quantization costs, in words.
fn quality(quality: &Quality) -> String {
    let error = quality.kl_nats_standard_error;
    format!(
        "on {} held-out tokens: KL {:.4} nats{}, the most likely token is the float model's in {:.1} %,\n\
         perplexity {:.2}, the float model's is {:.2}: {}\n",
        terminal::count(quality.tokens as u64),
        quality.kl_nats,
        error
            .map(|error| format!(" ± {error:.4}"))
            .unwrap_or_default(),
        100.0 * quality.top1_agreement,
        quality.perplexity,
        quality.reference_perplexity,
        terminal::percent_change(quality.perplexity, quality.reference_perplexity),
    )
}

/// Where quantized matrices lie until the bundle at `output` is written.
fn shelf_of(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".unfinished");
    PathBuf::from(name)
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Writing => "writing a text",
        Phase::Calibrating => "calibrating",
        Phase::Measuring => "measuring",
        Phase::Building => "building",
    }
}

/// Tells what was built.
pub(super) fn print_built(
    output: &Path,
    built: &Built,
    pruned: Option<&Pruned>,
    warnings: &[String],
    json: bool,
) -> Result<(), CommandError> {
    if json {
        return print_json(&Summary {
            built,
            pruned,
            warnings,
        });
    }
    let mut text = format!(
        "{}: {} parameters, {}, {}\n\n{}",
        output.display(),
        terminal::count(built.parameters),
        built.weights,
        terminal::bytes(built.size_bytes),
        plan::table(&built.plan)
    );
    let resumed = match built.resumed {
        0 => String::new(),
        count => {
            format!("went on with {count} matrices that a build before this one had quantized\n")
        }
    };
    let measured = built.quality.as_ref().map(quality).unwrap_or_default();
    let pruned = pruned.map(ToString::to_string).unwrap_or_default();
    let notes = built
        .notes
        .iter()
        .chain(&built.missing)
        .map(|note| format!("note: {note}\n"));
    let warnings = warnings
        .iter()
        .map(|warning| format!("warning: {warning}\n"));
    let rest: String = [resumed, measured, pruned]
        .into_iter()
        .chain(notes)
        .chain(warnings)
        .collect();
    if !rest.is_empty() {
        text.push_str(&format!("\n{rest}"));
    }
    print(&text)
}

impl From<FloatWeights> for Weights {
    fn from(weights: FloatWeights) -> Weights {
        match weights {
            FloatWeights::Codebook4 => Weights::Codebook4,
            FloatWeights::Int4 => Weights::Int4,
            FloatWeights::Int8 => Weights::Int8,
            FloatWeights::F16 => Weights::F16,
            FloatWeights::F32 => Weights::F32,
        }
    }
}
