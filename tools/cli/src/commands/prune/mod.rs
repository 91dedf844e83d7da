//! `niwaki prune`: ONNX to ONNX without the least important weights, or parts.

mod report;

pub(super) use report::Pruned;

use super::error::CommandError;
use super::eval::read_text;
use super::model::{self, EngineArgs, Model};
use super::staging::{Scratch, Staging};
use super::{print, print_json};
use crate::terminal::Progress;
use clap::{Args, ValueEnum};
use niwaki_convert::calibrate::Calibration;
use niwaki_convert::evaluate::{Beginnings, Cut, Subject, TokenStream, evaluate};
use niwaki_convert::export::Export;
use niwaki_convert::memory::give_back_large_blocks;
use niwaki_convert::onnx::{OnnxModel, WeightLocation, write_model};
use niwaki_convert::prune::structure::{Part, RemoveOptions, remove_parts};
use niwaki_convert::prune::{self, Pattern, PruneError, PruneOptions, prune_model};
use report::{Outcome, Perplexities, Summary};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Set the least important weights of an ONNX model to zero, or take whole parts out of it.
///
/// The projections inside a decoder's layers are pruned; embeddings and the output head are not. Of any other model
/// all matrix products and convolutions are, but what gives its results; by magnitude, since nothing can be measured in it.
/// The result is standard ONNX with the same tensors, so every tool that takes the input takes the output. Prune before
/// quantizing.
///
/// The methods ffn-channels, heads and layers make tensors smaller instead, and the model faster: the least important channels,
/// key/value heads with their query heads, or layers go, and what stays is fitted to do without on the calibration text. The
/// output's folder then gets the configuration that fits, tokenizer and settings too.
#[derive(Args)]
pub(super) struct PruneArgs {
    /// The model to read; its external data, configuration and tokenizer are found beside it.
    #[arg(value_name = "IN.onnx")]
    input: PathBuf,
    /// The model to write.
    #[arg(short, long, value_name = "OUT.onnx")]
    output: PathBuf,
    /// Which weights are the least important.
    #[arg(long, value_enum, default_value_t = Method::Wanda)]
    method: Method,
    #[command(flatten)]
    amount: PruneAmount,
    /// A text that the model was not trained on, to measure what pruning costs.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Print what was pruned as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Measures of a weight's importance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Method {
    /// Magnitude times the norm of the input it meets, on a calibration text (Sun et al., 2024).
    Wanda,
    /// What going costs if the weights that stay take over, which they do, on a calibration text (SparseGPT: Frantar &
    /// Alistarh, 2023).
    #[value(name = "sparsegpt")]
    SparseGpt,
    /// Magnitude alone; needs no text, and takes any model.
    Magnitude,
    /// Channels of the feed-forward go, those that others can take over from best on the calibration text; more in layers where
    /// that costs less.
    FfnChannels,
    /// Key/value heads go with the query heads that read them, as many in every layer; in exports whose attention is one
    /// operator, as those of onnxruntime-genai.
    Heads,
    /// Layers go, those whose output is most like their input (Men et al., 2024).
    Layers,
}

/// What a method does.
enum Deed {
    /// It sets weights to zero.
    Zeros(prune::Method),
    /// It takes parts out.
    Parts(Part),
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Method::Wanda => "wanda",
            Method::SparseGpt => "sparsegpt",
            Method::Magnitude => "magnitude",
            Method::FfnChannels => "ffn-channels",
            Method::Heads => "heads",
            Method::Layers => "layers",
        }
    }

    fn deed(self) -> Deed {
        match self {
            Method::Wanda => Deed::Zeros(prune::Method::Wanda),
            Method::SparseGpt => Deed::Zeros(prune::Method::SparseGpt),
            Method::Magnitude => Deed::Zeros(prune::Method::Magnitude),
            Method::FfnChannels => Deed::Parts(Part::FfnChannels),
            Method::Heads => Deed::Parts(Part::Heads),
            Method::Layers => Deed::Parts(Part::Layers),
        }
    }

    /// Whether it measures on a text.
    pub(super) fn measures(self) -> bool {
        !matches!(self, Method::Magnitude)
    }
}

/// How much is pruned, and on which text importance is measured.
#[derive(Args, Clone, Debug)]
pub(super) struct PruneAmount {
    /// Share of the weights that become zero, or of the channels, heads or layers that go, above 0 and below 1. If nothing is
    /// said, 0.5 of weights and 0.1 of parts.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub(super) sparsity: Option<f64>,
    /// Keep M of every N weights along the input instead, as in 2:4.
    #[arg(long, value_name = "M:N", conflicts_with = "sparsity")]
    pub(super) keep: Option<Kept>,
    /// UTF-8 text like those the model will see: what is measured is measured on it.
    #[arg(long, value_name = "FILE")]
    pub(super) calibration: Option<PathBuf>,
    /// Tokens of the calibration text that are used, from all over it; 8192 if nothing is said. Memory grows with them: one
    /// row of the model's width each, and for parts three.
    #[arg(long, value_name = "N")]
    pub(super) calibration_tokens: Option<NonZeroUsize>,
}

/// Half of the weights.
const DEFAULT_SPARSITY: f64 = 0.5;

/// A tenth of the parts.
const DEFAULT_SHARE: f64 = 0.1;

/// Tokens that are measured on.
const DEFAULT_CALIBRATION_TOKENS: usize = 8192;

/// Tokens that see each other in calibration and evaluation.
const WINDOW_TOKENS: usize = 256;

/// `M:N`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    kept: usize,
    of: usize,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kept, self.of)
    }
}

impl FromStr for Kept {
    type Err = String;

    fn from_str(text: &str) -> Result<Kept, String> {
        let parsed = text
            .split_once(':')
            .and_then(|(kept, of)| Some((kept.parse().ok()?, of.parse().ok()?)));
        match parsed {
            Some((kept, of)) if 0 < kept && kept < of && of <= 64 => Ok(Kept { kept, of }),
            _ => Err("give two numbers, the first the smaller one, as in 2:4".to_owned()),
        }
    }
}

/// A share above 0 and below 1.
pub(super) fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err("give a number above 0 and below 1".to_owned()),
    }
}

impl PruneAmount {
    /// For a bundle's provenance: `wanda 0.5`, `magnitude 2:4`.
    pub(super) fn describe(&self, method: Method) -> String {
        let name = method.name();
        match self.keep {
            Some(kept) => format!("{name} {kept}"),
            None => format!("{name} {}", self.share(method)),
        }
    }

    fn share(&self, method: Method) -> f64 {
        self.sparsity.unwrap_or(match method.deed() {
            Deed::Zeros(_) => DEFAULT_SPARSITY,
            Deed::Parts(_) => DEFAULT_SHARE,
        })
    }

    /// Whether anything was said.
    pub(super) fn is_given(&self) -> bool {
        self.sparsity.is_some() || self.keep.is_some()
    }

    pub(super) fn names_calibration(&self) -> bool {
        self.calibration.is_some() || self.calibration_tokens.is_some()
    }

    /// For a method that measures on no text.
    pub(super) fn leave_out_calibration(&mut self) {
        self.calibration = None;
        self.calibration_tokens = None;
    }

    pub(super) fn wanted_tokens(&self) -> usize {
        self.calibration_tokens
            .map_or(DEFAULT_CALIBRATION_TOKENS, NonZeroUsize::get)
    }

    fn pattern(&self, method: Method) -> Pattern {
        match self.keep {
            Some(Kept { kept, of }) => Pattern::OfConsecutive { kept, of },
            None => Pattern::Unstructured(self.share(method)),
        }
    }
}

pub(super) fn run(args: &PruneArgs) -> Result<(), CommandError> {
    let pruned = prune_file(
        &args.input,
        &args.output,
        args.method,
        &args.amount,
        &args.engine,
    )?;
    let perplexity = match &args.text {
        None => None,
        Some(text) => Some(measure(args, text)?),
    };
    let summary = Summary {
        input: &args.input,
        output: &args.output,
        method: args.method,
        perplexity,
        pruned: &pruned,
    };
    if args.json {
        print_json(&summary)
    } else {
        print(&summary.to_string())
    }
}

/// Prunes the model at `input`, a file or an export's folder, into `output`, with progress on a terminal. Configuration
/// and tokenizer come from beside the model.
pub(super) fn prune_file(
    input: &Path,
    output: &Path,
    method: Method,
    amount: &PruneAmount,
    engine: &EngineArgs,
) -> Result<Pruned, CommandError> {
    let failed = |source: PruneError| CommandError::Prune {
        path: input.to_owned(),
        source: Box::new(source),
    };
    let export = Export::open(input).map_err(|source| CommandError::Build {
        path: input.to_owned(),
        source: Box::new(source.into()),
    })?;

    give_back_large_blocks();
    let scratch = Scratch::new().map_err(CommandError::write(&std::env::temp_dir()))?;
    let folder = output.parent().unwrap_or(Path::new(""));
    if let Deed::Parts(_) = method.deed() {
        if amount.keep.is_some() {
            return Err(CommandError::KeepOfParts {
                method: method.name(),
            });
        }
        if export.is_in(folder) {
            return Err(CommandError::OtherConfiguration {
                folder: folder.to_owned(),
            });
        }
    }
    let sequences = match method.measures() {
        false if amount.names_calibration() => return Err(CommandError::UnusedCalibration),
        false => None,
        true => {
            let path = amount.calibration.as_deref();
            let path = path.ok_or(CommandError::NoCalibration {
                method: method.name(),
            })?;
            let tokens = amount.wanted_tokens();
            Some(calibration_tokens(
                &export,
                input,
                path,
                tokens,
                WINDOW_TOKENS,
            )?)
        }
    };
    let calibration = sequences.as_deref().map(|sequences| Calibration {
        sequences,
        scratch: scratch.path(),
        threads: engine.threads(),
    });
    let staging = Staging::new(output).map_err(CommandError::write(output))?;
    let progress = Progress::share("pruning");
    let model = OnnxModel::open(&export.model).map_err(|error| failed(error.into()))?;
    let facts = export.facts();
    let mut tell = |share| progress.at(share);
    let (pruned, outcome) = match (method.deed(), calibration) {
        (Deed::Parts(part), Some(calibration)) => {
            let options = RemoveOptions {
                part,
                share: amount.share(method),
                calibration,
            };
            let (pruned, report) =
                remove_parts(&model, &facts, &options, &mut tell).map_err(failed)?;
            (pruned, Outcome::Parts(report))
        }
        (Deed::Parts(_), None) => {
            return Err(CommandError::NoCalibration {
                method: method.name(),
            });
        }
        (Deed::Zeros(by), calibration) => {
            let options = PruneOptions {
                pattern: amount.pattern(method),
                method: by,
                calibration,
            };
            let (pruned, report) =
                prune_model(&model, &facts, &options, &mut tell).map_err(failed)?;
            let (weights, zeros) = report.weights_and_zeros();
            (
                pruned,
                Outcome::Zeros {
                    weights,
                    zeros,
                    report,
                },
            )
        }
    };
    write_model(&pruned, &staging.path(), WeightLocation::Automatic)
        .map_err(|error| failed(error.into()))?;
    if let Outcome::Parts(report) = &outcome {
        let mut export = export;
        report.removed.describe_in(&mut export);
        write_companions(&export, &staging.path()).map_err(CommandError::write(output))?;
    }
    // The mapped input may be the file that the output replaces.
    drop((pruned, model));
    staging.publish().map_err(CommandError::write(output))?;
    let tokens = calibration.map(|calibration| calibration.tokens());
    Ok(Pruned::new(outcome, method, amount, tokens))
}

/// Writes what lies beside a model: its configuration as it is in memory, and copies of the other files.
fn write_companions(export: &Export, model: &Path) -> io::Result<()> {
    let mut genai = export.genai_config.clone();
    if let (Some(name), Some(filename)) = (
        model.file_name(),
        genai.pointer_mut("/model/decoder/filename"),
    ) {
        *filename = name.to_string_lossy().into();
    }
    for (name, value) in [
        ("config.json", &export.config),
        ("genai_config.json", &genai),
    ] {
        if !value.is_null() {
            let text = serde_json::to_string_pretty(value)?;
            fs::write(model.with_file_name(name), text + "\n")?;
        }
    }
    for file in export.companion_files() {
        if let Some(name) = file.file_name() {
            fs::copy(&file, model.with_file_name(name))?;
        }
    }
    Ok(())
}

/// Windows of a calibration text, so many tokens together.
pub(super) fn calibration_tokens(
    export: &Export,
    input: &Path,
    path: &Path,
    wanted_tokens: usize,
    window_tokens: usize,
) -> Result<Vec<Vec<u32>>, CommandError> {
    let text = read_text(path)?;
    let encode = |source| CommandError::Encode {
        path: input.to_owned(),
        source,
    };
    let tokenizer = export.text_tokenizer().map_err(encode)?;
    let tokenizer = tokenizer.ok_or_else(|| CommandError::NoTokenizer {
        path: input.to_owned(),
    })?;
    let beginnings = Beginnings::of(&tokenizer).map_err(encode)?;
    let stream = TokenStream::encode(&text, &tokenizer, beginnings).map_err(encode)?;
    let context = export.facts().context_tokens.unwrap_or(window_tokens);
    let window = window_tokens.min(context).max(1);
    let windows = stream.windows(&Cut::every(window));
    // From all over the text: its beginning is about one thing.
    let there = windows.len();
    let taken = wanted_tokens.div_ceil(window).min(there);
    let places: BTreeSet<usize> = (0..taken).map(|index| index * there / taken).collect();
    let mut left = wanted_tokens;
    let mut sequences = vec![];
    for (_, window) in windows.enumerate().filter(|(at, _)| places.contains(at)) {
        let mut inputs = window.inputs;
        inputs.truncate(left);
        left -= inputs.len();
        sequences.push(inputs);
    }
    Ok(sequences)
}

fn measure(args: &PruneArgs, text: &Path) -> Result<Perplexities, CommandError> {
    let before = model::open(&args.input, &args.engine)?;
    let tokens = read_text(text)?;
    let tokenizer = before.tokenizer()?;
    let stream = Beginnings::of(tokenizer)
        .and_then(|beginnings| TokenStream::encode(&tokens, tokenizer, beginnings))
        .map_err(before.cannot_encode())?;
    let perplexity = |model: &Model| {
        let cut = Cut::every(WINDOW_TOKENS.min(model.engine().context_tokens()));
        let windows = stream.windows(&cut);
        if windows.len() == 0 {
            return Err(CommandError::NothingToScore {
                path: text.to_owned(),
                tokens: stream.tokens().len(),
            });
        }
        let progress = Progress::steps("windows", windows.len());
        let name = model.name();
        let subject = Subject::new(&name, model.engine());
        let evaluation = evaluate(subject, windows, || progress.step())?;
        Ok(evaluation.perplexity().value)
    };
    let first = perplexity(&before)?;
    let folder = match args.input.parent() {
        _ if args.input.is_dir() => args.input.as_path(),
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let own = args.output.parent().unwrap_or(Path::new("."));
    let folder = match args.method.deed() {
        Deed::Zeros(_) => folder,
        // What was taken out changes the configuration.
        Deed::Parts(_) if own.as_os_str().is_empty() => Path::new("."),
        Deed::Parts(_) => own,
    };
    let after = model::open_beside(&args.output, folder, &args.engine)?;
    Ok(Perplexities {
        before: first,
        after: perplexity(&after)?,
    })
}
