//! `niwaki prune`: ONNX to ONNX with the least important weights set to zero.

use super::error::CommandError;
use super::eval::read_text;
use super::model::{self, EngineArgs, Model};
use super::staging::{Scratch, Staging};
use super::{plan, print, print_json};
use crate::terminal::{self, Progress, Table};
use clap::{Args, ValueEnum};
use niwaki_convert::calibrate::Calibration;
use niwaki_convert::evaluate::{Beginnings, Cut, Subject, TokenStream, evaluate};
use niwaki_convert::export::Export;
use niwaki_convert::memory::give_back_large_blocks;
use niwaki_convert::onnx::{OnnxModel, WeightLocation, write_model};
use niwaki_convert::prune::{Pattern, PruneError, PruneOptions, PruneReport, prune_model};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Set the least important weights of an ONNX model to zero.
///
/// The projections inside the decoder's layers are pruned; embeddings and the output head are not. The result is
/// standard ONNX with the same tensors, so every tool that takes the input takes the output. Prune before
/// quantizing.
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
    /// Magnitude alone; needs no text.
    Magnitude,
}

/// How much is pruned, and on which text importance is measured.
#[derive(Args, Clone, Debug)]
pub(super) struct PruneAmount {
    /// Share of the weights that become zero, above 0 and below 1; 0.5 if nothing is said.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    sparsity: Option<f64>,
    /// Keep M of every N weights along the input instead, as in 2:4.
    #[arg(long, value_name = "M:N", conflicts_with = "sparsity")]
    keep: Option<Kept>,
    /// UTF-8 text like those the model will see: what is measured is measured on it.
    #[arg(long, value_name = "FILE")]
    pub(super) calibration: Option<PathBuf>,
    /// Tokens of the calibration text that are used, 8192 if nothing is said. Memory grows with them: one row of the
    /// model's width each.
    #[arg(long, value_name = "N")]
    calibration_tokens: Option<NonZeroUsize>,
}

/// Half of the weights.
const DEFAULT_SPARSITY: f64 = 0.5;

/// Tokens that wanda measures on.
const DEFAULT_CALIBRATION_TOKENS: usize = 8192;

/// Tokens that see each other in calibration and evaluation.
const WINDOW_TOKENS: usize = 256;

/// `M:N`.
#[derive(Clone, Copy, Debug)]
struct Kept {
    kept: usize,
    of: usize,
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

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err("give a number above 0 and below 1".to_owned()),
    }
}

impl PruneAmount {
    /// For a bundle's provenance: `wanda 0.5`, `magnitude 2:4`.
    pub(super) fn describe(&self, method: Method) -> String {
        let method = match method {
            Method::Wanda => "wanda",
            Method::Magnitude => "magnitude",
        };
        match self.keep {
            Some(Kept { kept, of }) => format!("{method} {kept}:{of}"),
            None => format!("{method} {}", self.sparsity.unwrap_or(DEFAULT_SPARSITY)),
        }
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

    fn pattern(&self) -> Pattern {
        match self.keep {
            Some(Kept { kept, of }) => Pattern::OfConsecutive { kept, of },
            None => Pattern::Unstructured(self.sparsity.unwrap_or(DEFAULT_SPARSITY)),
        }
    }
}

/// What was pruned, and by which measure.
#[derive(Serialize)]
pub(super) struct Pruned {
    /// Method and amount, as provenances tell it: `wanda 0.5`.
    by: String,
    weights: u64,
    zeros: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    calibration: Option<CalibrationUsed>,
    #[serde(flatten)]
    report: PruneReport,
}

/// What a method measured on.
#[derive(Serialize)]
struct CalibrationUsed {
    text: PathBuf,
    tokens: usize,
    /// The text has fewer tokens than were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    asked_for: Option<usize>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Summary<'a> {
    input: &'a Path,
    output: &'a Path,
    method: Method,
    #[serde(skip_serializing_if = "Option::is_none")]
    perplexity: Option<Perplexities>,
    #[serde(flatten)]
    pruned: &'a Pruned,
}

/// What pruning cost on a text.
#[derive(Clone, Copy, Serialize)]
struct Perplexities {
    before: f64,
    after: f64,
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
    let sequences = match method {
        Method::Magnitude if amount.names_calibration() => {
            return Err(CommandError::UnusedCalibration);
        }
        Method::Magnitude => None,
        Method::Wanda => Some(calibration_tokens(&export, input, amount, WINDOW_TOKENS)?),
    };
    let options = PruneOptions {
        pattern: amount.pattern(),
        calibration: sequences.as_deref().map(|sequences| Calibration {
            sequences,
            scratch: scratch.path(),
            threads: engine.threads(),
        }),
    };
    let staging = Staging::new(output).map_err(CommandError::write(output))?;
    let progress = Progress::share("pruning");
    let model = OnnxModel::open(&export.model).map_err(|error| failed(error.into()))?;
    let (pruned, report) = prune_model(&model, &export.facts(), &options, &mut |share| {
        progress.at(share)
    })
    .map_err(failed)?;
    write_model(&pruned, &staging.path(), WeightLocation::Automatic)
        .map_err(|error| failed(error.into()))?;
    // The mapped input may be the file that the output replaces.
    drop((pruned, model));
    staging.publish().map_err(CommandError::write(output))?;
    let tokens = options.calibration.map(|calibration| calibration.tokens());
    Ok(Pruned::new(report, method, amount, tokens))
}

/// The calibration text in windows.
pub(super) fn calibration_tokens(
    export: &Export,
    input: &Path,
    amount: &PruneAmount,
    window_tokens: usize,
) -> Result<Vec<Vec<u32>>, CommandError> {
    let path = amount
        .calibration
        .as_deref()
        .ok_or(CommandError::NoCalibration)?;
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
    let mut left = amount.wanted_tokens();
    let mut sequences = vec![];
    for window in stream.windows(&Cut::every(window_tokens.min(context))) {
        let mut inputs = window.inputs;
        inputs.truncate(left);
        left -= inputs.len();
        sequences.push(inputs);
        if left == 0 {
            break;
        }
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
    let after = model::open_beside(&args.output, folder, &args.engine)?;
    Ok(Perplexities {
        before: first,
        after: perplexity(&after)?,
    })
}

impl Pruned {
    fn new(
        report: PruneReport,
        method: Method,
        amount: &PruneAmount,
        tokens: Option<usize>,
    ) -> Pruned {
        let (weights, zeros) = report.weights_and_zeros();
        let calibration = amount.calibration.clone().zip(tokens);
        Pruned {
            by: amount.describe(method),
            weights,
            zeros,
            calibration: calibration.map(|(text, tokens)| CalibrationUsed {
                text,
                tokens,
                asked_for: Some(amount.wanted_tokens()).filter(|asked| *asked > tokens),
            }),
            report,
        }
    }

    /// For a bundle's provenance: what was really done.
    pub(super) fn provenance(&self) -> BTreeMap<String, String> {
        let (pruned, left) = (self.report.pruned.len(), self.report.left.len());
        let prune = match left {
            0 => self.by.clone(),
            left => format!("{}, {pruned} of {} matrices", self.by, pruned + left),
        };
        let mut options = BTreeMap::from([("prune".to_owned(), prune)]);
        if let Some(CalibrationUsed { text, tokens, .. }) = &self.calibration {
            let name = text.file_name().unwrap_or_default().to_string_lossy();
            options.insert(
                "calibration".to_owned(),
                format!("{tokens} tokens of {name}"),
            );
        }
        options
    }
}

impl fmt::Display for Pruned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "pruned {} of {} weights in {} matrices ({}) by {}",
            terminal::count(self.zeros),
            terminal::count(self.weights),
            self.report.pruned.len(),
            share_of(self.zeros, self.weights),
            self.by,
        )?;
        if let Some(used) = &self.calibration {
            write!(
                f,
                "measured on {} tokens of {}",
                terminal::count(used.tokens as u64),
                used.text.display()
            )?;
            if let Some(asked_for) = used.asked_for {
                let asked_for = terminal::count(asked_for as u64);
                write!(f, ": it has no more, {asked_for} were asked for")?;
            }
            writeln!(f)?;
        }
        write!(f, "{}", plan::left(&self.report.left))
    }
}

fn share_of(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["matrix", "shape", "zeros", "error"]);
        for matrix in &self.pruned.report.pruned {
            let weights = (matrix.rows * matrix.columns) as u64;
            table.row([
                matrix.node.clone(),
                format!("{} x {}", matrix.rows, matrix.columns),
                share_of(matrix.zeros, weights),
                format!("{:.3}", matrix.relative_error),
            ]);
        }
        writeln!(f, "{table}")?;
        writeln!(f, "{}", self.output.display())?;
        write!(f, "{}", self.pruned)?;
        if let Some(Perplexities { before, after }) = self.perplexity {
            let change = terminal::percent_change(after, before);
            writeln!(
                f,
                "perplexity {before:.3} before, {after:.3} after: {change}"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use niwaki_convert::plan::LeftNode;
    use niwaki_convert::prune::PrunedMatrix;

    #[test]
    fn a_provenance_says_how_many_matrices_were_pruned_where_not_all_were() {
        let amount = PruneAmount {
            sparsity: None,
            keep: Some(Kept { kept: 2, of: 4 }),
            calibration: Some(PathBuf::from("texts/tales.txt")),
            calibration_tokens: None,
        };
        let matrix = PrunedMatrix {
            node: "a".to_owned(),
            rows: 4,
            columns: 8,
            zeros: 16,
            relative_error: 0.1,
        };
        let mut report = PruneReport {
            pruned: vec![matrix],
            left: vec![],
        };
        let told = |report: &PruneReport| {
            let pruned = Pruned::new(report.clone(), Method::Wanda, &amount, Some(99));
            (pruned.provenance(), pruned.to_string())
        };
        let (provenance, text) = told(&report);
        assert_eq!(provenance["prune"], "wanda 2:4");
        assert_eq!(provenance["calibration"], "99 tokens of tales.txt");
        assert!(text.contains("8 192 were asked for"), "{text}");
        report.left.push(LeftNode {
            node: "b".to_owned(),
            reason: "it is odd".to_owned(),
        });
        let (provenance, text) = told(&report);
        assert_eq!(provenance["prune"], "wanda 2:4, 1 of 2 matrices");
        assert!(text.contains("left as it is: b: it is odd"), "{text}");
    }
}
