//! `niwaki run`: text in, text out.

use super::error::CommandError;
use super::model::{self, EngineArgs, Model};
use super::{print, print_json};
use clap::Args;
use niwaki::{FinishReason, GenerateOptions, Sampling};
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Sampling when neither the user nor the model says how.
const TEMPERATURE: f32 = 0.8;
const TOP_K: usize = 40;
const TOP_P: f32 = 0.95;

/// Continue a text with a model.
///
/// The continuation streams to stdout as it is made. The same model, prompt, options and seed give the same
/// text on every device.
#[derive(Args)]
pub(super) struct RunArgs {
    /// A .niwaki bundle, an export folder or an .onnx file.
    model: PathBuf,
    /// Text to continue; "-" reads it from stdin. Nothing: the model starts a text of its own.
    #[arg(default_value = "", hide_default_value = true)]
    prompt: String,
    /// Stop after this many tokens.
    #[arg(long, default_value_t = 256, value_name = "N")]
    max_new_tokens: usize,
    /// 0 always takes the most likely token; higher values are more daring [default: the model's own, else 0.8].
    #[arg(long, value_name = "T", value_parser = temperature)]
    temperature: Option<f32>,
    /// Draw only from the K most likely tokens; 0 means all [default: the model's own, else 40].
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw only from the most likely tokens whose probabilities reach P together [default: the model's own, else
    /// 0.95].
    #[arg(long, value_name = "P", value_parser = probability)]
    top_p: Option<f32>,
    /// Seed of the random numbers.
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Do not put the model's beginning-of-text token before the prompt.
    #[arg(long)]
    no_bos: bool,
    /// Print one JSON object with the text, the tokens and timings at the end, instead of the stream.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// What was generated, as `--json` prints it.
#[derive(Serialize)]
pub(super) struct Outcome {
    pub(super) text: String,
    tokens: Vec<u32>,
    prompt_tokens: usize,
    finish_reason: &'static str,
    first_token_s: f64,
    decode_tokens_per_s: f64,
}

pub(super) fn run(args: &RunArgs) -> Result<(), CommandError> {
    let prompt = match args.prompt.as_str() {
        "-" => io::read_to_string(io::stdin()).map_err(CommandError::read(Path::new("stdin")))?,
        prompt => prompt.to_owned(),
    };
    let model = model::open(&args.model, &args.engine)?;
    let prompt = model.encode_prompt(&prompt, !args.no_bos)?;
    let defaults = model.engine().generation_defaults();
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        sampling: Sampling {
            temperature: args
                .temperature
                .or(defaults.temperature)
                .unwrap_or(TEMPERATURE),
            top_k: args
                .top_k
                .or(defaults.top_k)
                .or(Some(TOP_K))
                .filter(|&top_k| top_k > 0),
            top_p: args.top_p.or(defaults.top_p).or(Some(TOP_P)),
            seed: args.seed,
            ..Sampling::from_defaults(defaults, args.seed)
        },
        ..GenerateOptions::default()
    };
    let outcome = generate(&model, &prompt, &options, |text| match args.json {
        true => Ok(()),
        false => print(text),
    })?;
    if args.json {
        print_json(&outcome)
    } else {
        print("\n")
    }
}

/// Generates and hands every piece of text on as it comes.
pub(super) fn generate(
    model: &Model,
    prompt: &[u32],
    options: &GenerateOptions,
    mut on_text: impl FnMut(&str) -> Result<(), CommandError>,
) -> Result<Outcome, CommandError> {
    let mut session = model.session()?;
    let start = Instant::now();
    let mut generation = session.generate(prompt, options);
    let mut text = String::new();
    let mut tokens = Vec::new();
    let mut first_token_s = 0.0;
    for token in generation.by_ref() {
        let token = token.map_err(CommandError::Generate)?;
        if tokens.is_empty() {
            first_token_s = start.elapsed().as_secs_f64();
        }
        tokens.extend(token.id);
        text.push_str(&token.text);
        on_text(&token.text)?;
    }
    let decode_s = start.elapsed().as_secs_f64() - first_token_s;
    Ok(Outcome {
        decode_tokens_per_s: tokens.len().saturating_sub(1) as f64 / decode_s,
        finish_reason: match generation.finish_reason() {
            Some(FinishReason::EndOfText) => "end_of_text",
            Some(FinishReason::StopToken) => "stop_token",
            Some(FinishReason::StopString) => "stop_string",
            Some(FinishReason::MaxTokens) => "max_new_tokens",
            Some(FinishReason::ContextFull) => "context_full",
            Some(FinishReason::Cancelled) => "cancelled",
            Some(FinishReason::Failed) | None => "failed",
        },
        prompt_tokens: prompt.len(),
        text,
        tokens,
        first_token_s,
    })
}

fn temperature(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("it has to be a number, 0 or more".to_owned()),
    }
}

fn probability(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("it has to be a number above 0, and at most 1".to_owned()),
    }
}
