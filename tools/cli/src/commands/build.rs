//! `niwaki build`: export folder to bundle in one step.

use super::error::CommandError;
use super::model::EngineArgs;
use super::prune::{Method, PruneAmount, Pruned, prune_file};
use super::staging::{Scratch, Staging};
use super::{plan, print, print_json};
use crate::terminal::{self, Progress};
use clap::{Args, ValueEnum};
use niwaki_convert::build::{BuildError, Built, Weights, Wishes, build, build_from};
use niwaki_convert::export::Export;
use niwaki_convert::memory::give_back_large_blocks;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Turn an exported model into one .niwaki file.
///
/// Reads the export folder (model.onnx with its external data, config.json, tokenizer.json,
/// generation_config.json, the chat template), lowers the graph, prunes it if asked to, quantizes float weights
/// and packs everything. Weights that the export already holds quantized are kept exactly as they are. What its
/// quantizer left in floats is left so, unless --weights or --embedding ask for something else.
///
/// The summary says of every kind of matrix how it is stored, and why.
#[derive(Args)]
pub(super) struct BuildArgs {
    /// Folder that the exporter wrote, or its .onnx file.
    #[arg(value_name = "EXPORT_DIR")]
    export: PathBuf,
    /// The bundle to write.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// How float weights are stored; int4 if nothing is said, or as they are in an export that holds quantized ones.
    #[arg(long, value_enum)]
    weights: Option<FloatWeights>,
    /// How a float embedding is stored; if nothing is said, as --weights says, or as it is in an export that holds
    /// quantized weights.
    #[arg(long, value_enum)]
    embedding: Option<FloatWeights>,
    /// Prune the layers first, as `niwaki prune` does.
    #[arg(long, value_enum, value_name = "METHOD")]
    prune: Option<Method>,
    #[command(flatten)]
    amount: PruneAmount,
    /// Print what was built as JSON.
    #[arg(long)]
    json: bool,
}

/// Stored form of weights that the export holds as floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FloatWeights {
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
    };
    let (built, pruned) = match args.prune {
        None if args.amount.is_given() => return Err(CommandError::AmountWithoutMethod),
        None => (
            write_bundle(&args.export, None, &args.output, wishes)?,
            None,
        ),
        Some(method) => {
            let scratch = Scratch::new().map_err(CommandError::write(&std::env::temp_dir()))?;
            let model = scratch.path().join("model.onnx");
            let engine = EngineArgs::default();
            let pruned = prune_file(&args.export, &model, method, &args.amount, &engine)?;
            let built = stage(&args.export, &args.output, |output, progress| {
                let mut export = Export::open(&args.export)?;
                if let Some(removed) = pruned.removed() {
                    removed.describe_in(&mut export);
                }
                build_from(
                    &export,
                    &model,
                    output,
                    wishes,
                    pruned.provenance(),
                    progress,
                )
            })?;
            (built, Some(pruned))
        }
    };
    let warnings = plan::warnings(&built.plan, &wishes, &args.export, &args.output);
    print_built(&args.output, &built, pruned.as_ref(), &warnings, args.json)
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
        build(model, companions, output, wishes, progress)
    })
}

/// Shows progress while `build` writes, and puts what it wrote in its place.
fn stage(
    model: &Path,
    output: &Path,
    build: impl FnOnce(&Path, &mut dyn FnMut(f64)) -> Result<Built, BuildError>,
) -> Result<Built, CommandError> {
    give_back_large_blocks();
    let staging = Staging::new(output).map_err(CommandError::write(output))?;
    let progress = Progress::share("building");
    let built = build(&staging.path(), &mut |share| progress.at(share)).map_err(|source| {
        CommandError::Build {
            path: model.to_owned(),
            source: Box::new(source),
        }
    })?;
    staging.publish().map_err(CommandError::write(output))?;
    Ok(built)
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
    let pruned = pruned.map(ToString::to_string).unwrap_or_default();
    let notes = built
        .notes
        .iter()
        .chain(&built.missing)
        .map(|note| format!("note: {note}\n"));
    let warnings = warnings
        .iter()
        .map(|warning| format!("warning: {warning}\n"));
    let rest: String = [pruned].into_iter().chain(notes).chain(warnings).collect();
    if !rest.is_empty() {
        text.push_str(&format!("\n{rest}"));
    }
    print(&text)
}

impl From<FloatWeights> for Weights {
    fn from(weights: FloatWeights) -> Weights {
        match weights {
            FloatWeights::Int4 => Weights::Int4,
            FloatWeights::Int8 => Weights::Int8,
            FloatWeights::F16 => Weights::F16,
            FloatWeights::F32 => Weights::F32,
        }
    }
}
