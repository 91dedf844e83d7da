//! `niwaki build`: export folder to bundle in one step.

use super::error::CommandError;
use super::model::EngineArgs;
use super::prune::{Method, PruneAmount, prune_file};
use super::staging::{Scratch, Staging};
use super::{print, print_json};
use crate::terminal::{self, Progress};
use clap::{Args, ValueEnum};
use niwaki_convert::build::{BuildError, Built, Weights, build, build_from};
use niwaki_convert::export::Export;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Turn an exported model into one .niwaki file.
///
/// Reads the export folder (model.onnx with its external data, config.json, tokenizer.json,
/// generation_config.json, the chat template), lowers the graph, prunes it if asked to, quantizes float weights
/// and packs everything. Weights that the export already holds quantized are kept exactly as they are.
#[derive(Args)]
pub(super) struct BuildArgs {
    /// Folder that the exporter wrote.
    #[arg(value_name = "EXPORT_DIR")]
    export: PathBuf,
    /// The bundle to write.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// How float weights are stored.
    #[arg(long, value_enum, default_value_t = FloatWeights::Int4)]
    weights: FloatWeights,
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

pub(super) fn run(args: &BuildArgs) -> Result<(), CommandError> {
    let weights = args.weights.into();
    let built = match args.prune {
        None if args.amount.is_given() => return Err(CommandError::AmountWithoutMethod),
        None => write_bundle(&args.export, None, &args.output, weights)?,
        Some(method) => {
            let scratch = Scratch::new().map_err(CommandError::write(&std::env::temp_dir()))?;
            let pruned = scratch.path().join("model.onnx");
            let engine = EngineArgs::default();
            prune_file(&args.export, &pruned, method, &args.amount, &engine)?;
            let options = BTreeMap::from([("prune".to_owned(), args.amount.describe(method))]);
            stage(&args.export, &args.output, |output, progress| {
                let export = Export::open(&args.export)?;
                build_from(&export, &pruned, output, weights, options, progress)
            })?
        }
    };
    print_built(&args.output, &built, args.json)
}

/// Lowers, packs and writes one model, with progress on a terminal. Configuration and tokenizer come from
/// `companions`, or from beside the model.
pub(super) fn write_bundle(
    model: &Path,
    companions: Option<&Path>,
    output: &Path,
    weights: Weights,
) -> Result<Built, CommandError> {
    stage(model, output, |output, progress| {
        build(model, companions, output, weights, progress)
    })
}

/// Shows progress while `build` writes, and puts what it wrote in its place.
fn stage(
    model: &Path,
    output: &Path,
    build: impl FnOnce(&Path, &mut dyn FnMut(f64)) -> Result<Built, BuildError>,
) -> Result<Built, CommandError> {
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
pub(super) fn print_built(output: &Path, built: &Built, json: bool) -> Result<(), CommandError> {
    if json {
        return print_json(built);
    }
    let mut text = format!(
        "{}: {} parameters, {}, {}\n",
        output.display(),
        terminal::count(built.parameters),
        built.weights,
        terminal::bytes(built.size_bytes)
    );
    for note in &built.notes {
        text.push_str(&format!("note: {note}\n"));
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
