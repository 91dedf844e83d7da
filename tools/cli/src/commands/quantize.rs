//! `niwaki quantize`: ONNX to smaller ONNX.

use super::error::CommandError;
use super::prune::calibration_tokens;
use super::staging::{Scratch, Staging};
use super::{plan, print, print_json};
use crate::terminal::{self, Progress};
use clap::{Args, ValueEnum};
use niwaki_convert::calibrate::Calibration;
use niwaki_convert::export::Export;
use niwaki_convert::memory::give_back_large_blocks;
use niwaki_convert::onnx::{OnnxModel, WeightLocation, write_model};
use niwaki_convert::plan::{Weights, Wishes};
use niwaki_convert::quantize::{
    Gptq, LeftTensor, QuantizeOptions, QuantizeReport, Quantizer, RoundToNearest, ScaleSearch,
    quantize_model, quantize_model_calibrated,
};
use serde::Serialize;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// Quantize the weights of an ONNX model.
///
/// Float matrices become blocks of 32 with one scale each, rounded to nearest and symmetric, in the standard
/// operators com.microsoft MatMulNBits and GatherBlockQuantized: onnxruntime runs the result. Weights of
/// convolutions, of Einsum, of recurrences and of other products become int8 with a scale for each output channel,
/// before a DequantizeLinear. What stays float is listed, with its reason and its bytes.
///
/// Weights that are quantized already stay as they are, and so do the floats beside them, unless --weights or
/// --embedding ask for something else. A model in which nothing can be quantized is refused.
#[derive(Args)]
pub(super) struct QuantizeArgs {
    /// The model to read; its external data is found beside it.
    #[arg(value_name = "IN.onnx")]
    input: PathBuf,
    /// The model to write.
    #[arg(short, long, value_name = "OUT.onnx")]
    output: PathBuf,
    /// Bits of a weight in blocks; int4 if nothing is said, or none in a model that holds quantized weights.
    #[arg(long, value_enum)]
    weights: Option<Integers>,
    /// How a float embedding is stored; if nothing is said, as --weights says, or as it is in a model that holds
    /// quantized weights.
    #[arg(long, value_enum)]
    embedding: Option<Embedding>,
    /// How weights in blocks are quantized.
    #[arg(long, value_enum, default_value_t = Method::Rtn)]
    method: Method,
    /// UTF-8 text like those the model will see, for search and gptq, which take decoders that `niwaki build` takes.
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Tokens of the calibration text that are used, from all over it.
    #[arg(
        long,
        value_name = "N",
        default_value = "8192",
        requires = "calibration"
    )]
    calibration_tokens: NonZeroUsize,
    /// Print what was quantized as JSON.
    #[arg(long)]
    json: bool,
}

/// Methods of quantization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Method {
    /// Round to nearest: needs no text, and takes any model.
    Rtn,
    /// The scale of each block with the least error, weighted by how strongly its inputs are driven.
    Search,
    /// GPTQ: later columns make up for what rounding earlier ones does wrong.
    Gptq,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Method::Rtn => "rtn",
            Method::Search => "search",
            Method::Gptq => "gptq",
        }
    }

    fn quantizer(self) -> &'static dyn Quantizer {
        match self {
            Method::Rtn => &RoundToNearest,
            Method::Search => &ScaleSearch,
            Method::Gptq => &Gptq::USUAL,
        }
    }
}

/// Tokens that see each other in calibration.
const WINDOW_TOKENS: usize = 512;

/// Quantized forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Integers {
    /// 4 bits.
    Int4,
    /// 8 bits.
    Int8,
}

/// Forms of an embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Embedding {
    /// 4 bits.
    Int4,
    /// 8 bits.
    Int8,
    /// Floats, as they are.
    Float,
}

impl From<Integers> for Weights {
    fn from(integers: Integers) -> Weights {
        match integers {
            Integers::Int4 => Weights::Int4,
            Integers::Int8 => Weights::Int8,
        }
    }
}

impl From<Embedding> for Weights {
    fn from(embedding: Embedding) -> Weights {
        match embedding {
            Embedding::Int4 => Weights::Int4,
            Embedding::Int8 => Weights::Int8,
            Embedding::Float => Weights::AsStored,
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Summary<'a> {
    input: &'a Path,
    output: &'a Path,
    size_bytes: u64,
    #[serde(flatten)]
    report: &'a QuantizeReport,
    warnings: Vec<String>,
}

pub(super) fn run(args: &QuantizeArgs) -> Result<(), CommandError> {
    let failed = |source| CommandError::Quantize {
        path: args.input.clone(),
        source,
    };
    give_back_large_blocks();
    let sequences = sequences(args)?;
    let scratch = Scratch::new().map_err(CommandError::write(&std::env::temp_dir()))?;
    let progress = Progress::share("quantizing");
    let model = OnnxModel::open(&args.input).map_err(|error| failed(error.into()))?;
    let staging = Staging::new(&args.output).map_err(CommandError::write(&args.output))?;
    let wishes = Wishes {
        weights: args.weights.map(Weights::from),
        embedding: args.embedding.map(Weights::from),
        ..Wishes::default()
    };
    let options = QuantizeOptions {
        wishes,
        // A configuration helps to tell what matrices are for; what is wrong with it is no reason not to quantize.
        facts: Export::open(&args.input)
            .map(|export| export.facts())
            .unwrap_or_default(),
        ..QuantizeOptions::default()
    };
    let mut tell = |share| progress.at(share);
    let made = match &sequences {
        None => quantize_model(&model, &options, &mut tell),
        Some(sequences) => {
            let calibration = Calibration {
                sequences,
                scratch: scratch.path(),
                threads: 0,
            };
            let quantizer = args.method.quantizer();
            quantize_model_calibrated(quantizer, &model, &options, calibration, &mut tell)
        }
    };
    let (quantized, report) = made.map_err(failed)?;
    write_model(&quantized, &staging.path(), WeightLocation::Automatic)
        .map_err(|error| failed(error.into()))?;
    let size_bytes = staging
        .size_bytes()
        .map_err(CommandError::write(&args.output))?;
    // The mapped input may be the file that the output replaces.
    drop((quantized, model));
    staging
        .publish()
        .map_err(CommandError::write(&args.output))?;
    drop(progress);

    let summary = Summary {
        input: &args.input,
        output: &args.output,
        size_bytes,
        warnings: plan::warnings(&report.plan, &wishes, false, &args.input, &args.output),
        report: &report,
    };
    if args.json {
        print_json(&summary)
    } else {
        print(&summary.to_string())
    }
}

/// The calibration text, where the method wants one.
fn sequences(args: &QuantizeArgs) -> Result<Option<Vec<Vec<u32>>>, CommandError> {
    match (&args.calibration, args.method) {
        (None, Method::Rtn) => Ok(None),
        (Some(_), Method::Rtn) => Err(CommandError::UnusedCalibration),
        (None, method) => Err(CommandError::NoCalibration {
            method: method.name(),
        }),
        (Some(text), _) => {
            let export = Export::open(&args.input).map_err(|source| CommandError::Build {
                path: args.input.clone(),
                source: Box::new(source.into()),
            })?;
            let tokens = args.calibration_tokens.get();
            calibration_tokens(&export, &args.input, text, tokens, WINDOW_TOKENS).map(Some)
        }
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let QuantizeReport { plan, left, .. } = self.report;
        let (matrices, weights) = plan.quantized();
        writeln!(
            f,
            "quantized {} weights in {} matrices: {}, {}\n",
            terminal::count(weights),
            matrices,
            self.output.display(),
            terminal::bytes(self.size_bytes)
        )?;
        writeln!(f, "{}", plan::table(plan))?;
        write!(f, "{}", left_floats(left))?;
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}

/// Reasons that are printed; --json has every tensor.
const MOST_REASONS: usize = 8;

/// What stays float: how much of it, and a line for each reason, the most bytes first.
fn left_floats(left: &[LeftTensor]) -> String {
    struct Line<'a> {
        first: &'a LeftTensor,
        count: usize,
        size_bytes: u64,
    }
    let mut lines: Vec<Line<'_>> = vec![];
    for tensor in left {
        match lines
            .iter_mut()
            .find(|line| line.first.reason == tensor.reason)
        {
            Some(line) => {
                line.count += 1;
                line.size_bytes = line.size_bytes.saturating_add(tensor.size_bytes);
            }
            None => lines.push(Line {
                first: tensor,
                count: 1,
                size_bytes: tensor.size_bytes,
            }),
        }
    }
    lines.sort_by_key(|line| std::cmp::Reverse(line.size_bytes));
    let all = lines.iter().map(|line| line.size_bytes);
    let all = all.fold(0, u64::saturating_add);
    let (shown, others) = lines.split_at(lines.len().min(MOST_REASONS));
    let mut text = match left.len() {
        0 => return String::new(),
        1 => format!("left in floats: 1 tensor, {}\n", terminal::bytes(all)),
        count => format!(
            "left in floats: {count} tensors, {}\n",
            terminal::bytes(all)
        ),
    };
    for line in shown {
        let more = match line.count - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let size = terminal::bytes(line.size_bytes);
        let LeftTensor { name, reason, .. } = line.first;
        text.push_str(&format!("  {size:>9}  {name}{more}: {reason}\n"));
    }
    if !others.is_empty() {
        let size = others.iter().map(|line| line.size_bytes);
        let size = terminal::bytes(size.fold(0, u64::saturating_add));
        let reasons = others.len();
        text.push_str(&format!(
            "  {size:>9}  for {reasons} other reasons: see --json\n"
        ));
    }
    text
}
