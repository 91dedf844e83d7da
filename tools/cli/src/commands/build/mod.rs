//! `niwaki build`: export folder to bundle in one step.
//!
//! - `recipe`: the options that decide what a bundle becomes, from the command line and from a file; `preset`: sets of them
//! - `adapters`: LoRA adapters that are merged first
//! - `told`: what is said of what was built

mod adapters;
mod preset;
mod recipe;
mod told;

pub(super) use told::print_built;

use super::error::CommandError;
use super::model::EngineArgs;
use super::plan;
use super::prune::{calibration_tokens, prune_file};
use super::report::Report;
use super::staging::{Scratch, Staging};
use crate::terminal::Progress;
use adapters::LoraFolder;
use clap::Args;
use niwaki_bundle::{Bundle, Verify};
use niwaki_convert::build::{
    BuildError, BuildOptions, Built, Made, Phase, Text, WINDOW_TOKENS, Wishes, build, build_from,
    source_file,
};
use niwaki_convert::export::Export;
use niwaki_convert::lora::Adapter;
use niwaki_convert::memory::give_back_large_blocks;
use recipe::{Quantization, Recipe, file_name};
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
    #[command(flatten)]
    options: Recipe,
    /// A TOML file with options, their names without the dashes: weights = "int4". Those of the command line go before, those
    /// of a preset after it.
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Write the quality report as a page for a browser; what quantization costs is then measured in any case.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Print what was built as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &BuildArgs) -> Result<(), CommandError> {
    let said = args.options.clone();
    let recipe = match &args.recipe {
        Some(path) => said.over(Recipe::read(path)?),
        None => said,
    };
    let recipe = recipe.with_preset();
    if let Some(path) = &args.report {
        // What cannot be written is better known now than in some minutes.
        Staging::new(path).map_err(CommandError::write(path))?;
    }
    let (wishes, amount) = (recipe.wishes(), recipe.amount());
    let quantizes_by_text = args.report.is_some() || recipe.quantizes_by_text();
    let scratch = Scratch::new().map_err(CommandError::write(&std::env::temp_dir()))?;
    let pruned = match recipe.prune {
        None if amount.is_given() => return Err(CommandError::AmountWithoutMethod),
        None if amount.names_calibration() && !quantizes_by_text => {
            return Err(CommandError::UnusedCalibration);
        }
        None => None,
        Some(method) => {
            let model = scratch.path().join("model.onnx");
            let engine = EngineArgs::default();
            let mut amount = amount.clone();
            if !method.measures() && quantizes_by_text {
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
    let calibration = amount.calibration.as_deref();
    let text = calibration
        .map(|path| {
            let tokens = amount.wanted_tokens();
            calibration_tokens(&export, &args.export, path, tokens, WINDOW_TOKENS)
        })
        .transpose()?;
    let graph = match &pruned {
        Some((model, _)) => model,
        None => &export.model,
    };
    let mut options = BuildOptions::new(wishes);
    options.quantizers = recipe.method.map_or(&[], Quantization::quantizers);
    options.budget = recipe.budget();
    options.max_perplexity_increase = recipe.max_perplexity_increase;
    options.refine_share = recipe.refine_share();
    options.measures = args.report.is_some();
    // Stays when the build is stopped, so that it can go on.
    let shelf = shelf_of(&args.output);
    options.shelf = Some(&shelf);
    options.text = match &text {
        Some(sequences) => Text::Given(sequences),
        None => Text::Own {
            tokens: amount.wanted_tokens(),
        },
    };
    options.provenance = pruned
        .as_ref()
        .map(|(_, pruned)| pruned.provenance())
        .unwrap_or_default();
    options.made = Made {
        command: recipe.command(&args.export),
        recipe: recipe.said(),
        inputs: vec![],
        pruned: pruned.as_ref().map(|(_, pruned)| pruned.before()),
    };
    if let (Some(path), Some(sequences)) = (calibration, &text) {
        let tokens: usize = sequences.iter().map(Vec::len).sum();
        let told = format!("{tokens} tokens of {}", file_name(path));
        options.provenance.insert("calibration".to_owned(), told);
        let file = source_file(path).map_err(|source| CommandError::Build {
            path: args.export.clone(),
            source: Box::new(source),
        })?;
        options.made.inputs.push(file);
    }
    let opened = recipe.lora.iter().map(LoraFolder::open);
    let opened = opened.collect::<Result<Vec<_>, _>>()?;
    let adapters: Vec<(&Adapter, f32)> = opened
        .iter()
        .map(|(adapter, strength)| (adapter, *strength))
        .collect();
    options.adapters = &adapters;
    for adapter in &recipe.lora {
        let file = adapter.file();
        let file = source_file(&file).map_err(|source| CommandError::Build {
            path: args.export.clone(),
            source: Box::new(source),
        })?;
        options.made.inputs.push(file);
        let merged = options.provenance.entry("lora".to_owned()).or_default();
        *merged = [merged.as_str(), &adapter.to_string()]
            .join(" ")
            .trim()
            .to_owned();
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
    if let Some(path) = &args.report {
        let bundle = Bundle::open(&args.output, Verify::Structure);
        let bundle = bundle.map_err(|source| CommandError::Open {
            path: args.output.clone(),
            source: source.into(),
        })?;
        Report::of(&bundle, &args.output)?.write_page(path)?;
    }
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
