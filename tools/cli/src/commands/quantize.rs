//! `niwaki quantize`: ONNX to smaller ONNX.

use super::error::CommandError;
use super::staging::Staging;
use super::{print, print_json};
use crate::terminal::{self, Progress};
use clap::{Args, ValueEnum};
use niwaki_convert::onnx::{OnnxModel, WeightLocation, write_model};
use niwaki_convert::quantize::{Bits, QuantizeOptions, QuantizeReport, quantize_model};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};

/// Quantize the weights of an ONNX model.
///
/// Float matrices become blocks of 32 with one scale each, rounded to nearest and symmetric, in the standard
/// operators com.microsoft MatMulNBits and GatherBlockQuantized: onnxruntime runs the result. Weights that
/// are quantized already stay as they are.
#[derive(Args)]
pub(super) struct QuantizeArgs {
    /// The model to read; its external data is found beside it.
    #[arg(value_name = "IN.onnx")]
    input: PathBuf,
    /// The model to write.
    #[arg(short, long, value_name = "OUT.onnx")]
    output: PathBuf,
    /// Bits of a weight.
    #[arg(long, value_enum, default_value_t = Weights::Int4)]
    weights: Weights,
    /// Print what was quantized as JSON.
    #[arg(long)]
    json: bool,
}

/// Quantized forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Weights {
    /// 4 bits.
    Int4,
    /// 8 bits.
    Int8,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Summary<'a> {
    input: &'a Path,
    output: &'a Path,
    size_bytes: u64,
    #[serde(flatten)]
    report: &'a QuantizeReport,
}

pub(super) fn run(args: &QuantizeArgs) -> Result<(), CommandError> {
    let failed = |source| CommandError::Quantize {
        path: args.input.clone(),
        source,
    };
    let progress = Progress::open_ended("quantizing");
    let model = OnnxModel::open(&args.input).map_err(|error| failed(error.into()))?;
    let staging = Staging::new(&args.output).map_err(CommandError::write(&args.output))?;
    let options = QuantizeOptions::new(match args.weights {
        Weights::Int4 => Bits::Four,
        Weights::Int8 => Bits::Eight,
    });
    let (quantized, report) = quantize_model(&model, &options).map_err(failed)?;
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
        report: &report,
    };
    if args.json {
        print_json(&summary)
    } else {
        print(&summary.to_string())
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let QuantizeReport { quantized, left } = self.report;
        let weights: usize = quantized
            .iter()
            .map(|matrix| matrix.rows * matrix.columns)
            .sum();
        writeln!(
            f,
            "quantized {} weights in {} matrices: {}, {}",
            terminal::count(weights as u64),
            quantized.len(),
            self.output.display(),
            terminal::bytes(self.size_bytes)
        )?;
        for left in left {
            writeln!(f, "left as it is: {}: {}", left.node, left.reason)?;
        }
        Ok(())
    }
}
