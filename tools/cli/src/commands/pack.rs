//! `niwaki pack`: ONNX to bundle, weights as they are.

use super::build::{print_built, write_bundle};
use super::error::CommandError;
use clap::Args;
use niwaki_convert::build::Weights;
use std::path::PathBuf;

/// Pack an ONNX model into a .niwaki bundle, every weight as the model stores it.
///
/// This is the last step of `niwaki build`: for models that were quantized or pruned before. Tokenizer,
/// configuration and chat template are read from the model's folder.
#[derive(Args)]
pub(super) struct PackArgs {
    /// An .onnx file or a folder with one.
    model: PathBuf,
    /// The bundle to write.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Folder with config.json, tokenizer.json and the other files; the model's own by default.
    #[arg(long, value_name = "DIR")]
    config: Option<PathBuf>,
    /// Print what was packed as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &PackArgs) -> Result<(), CommandError> {
    let built = write_bundle(
        &args.model,
        args.config.as_deref(),
        &args.output,
        Weights::AsStored,
    )?;
    print_built(&args.output, &built, None, &[], args.json)
}
