//! `niwaki run`: text in, text out.

use super::beams::{self, BeamArgs};
use super::error::CommandError;
use super::generation::{GenerationArgs, PrintedLogProbs, finish_reason};
use super::model::{self, EngineArgs, Model};
use super::prompt_ids::print_ids;
use super::routing::RoutingArgs;
use super::{print, print_json};
use clap::Args;
use niwaki::GenerateOptions;
use niwaki_route::{Decision, Prompt};
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

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
    /// Do not put the beginning-of-text token before the prompt, where the model begins texts with it.
    #[arg(long)]
    no_bos: bool,
    /// Only print the tokens that the prompt becomes, one id with its piece of the vocabulary a line.
    #[arg(long)]
    print_ids: bool,
    /// Print one JSON object with the text, the tokens and timings at the end, instead of the stream.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    beams: BeamArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    routing: RoutingArgs,
}

/// What was generated, as `--json` prints it.
#[derive(Serialize)]
pub(super) struct Outcome {
    pub(super) text: String,
    tokens: Vec<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    log_probs: Vec<PrintedLogProbs>,
    prompt_tokens: usize,
    finish_reason: &'static str,
    first_token_s: f64,
    decode_tokens_per_s: f64,
    /// Who answered and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<Decision>,
}

pub(super) fn run(args: &RunArgs) -> Result<(), CommandError> {
    let text = match args.prompt.as_str() {
        "-" => io::read_to_string(io::stdin()).map_err(CommandError::read(Path::new("stdin")))?,
        prompt => prompt.to_owned(),
    };
    if args.print_ids {
        return print_ids(&args.model, &text, !args.no_bos, args.json);
    }
    let model = model::open(&args.model, &args.engine)?;
    let tokens = model.encode_prompt(&text, !args.no_bos)?;
    let prompt_tokens = tokens.len();
    let options = args
        .generation
        .options(model.engine().generation_defaults());
    if let Some(beams) = args.beams.options() {
        return beams::search(&model, &tokens, &beams, &options, args.json);
    }
    let start = Instant::now();
    let answered = args.routing.answer(
        &model,
        Prompt::Tokens { tokens, text },
        &options,
        |text| match args.json {
            true => Ok(()),
            false => print(text),
        },
    )?;
    let decode_s = start
        .elapsed()
        .saturating_sub(answered.first_token)
        .as_secs_f64();
    if args.json {
        print_json(&Outcome {
            decode_tokens_per_s: answered.generated_tokens.saturating_sub(1) as f64 / decode_s,
            finish_reason: finish_reason(Some(answered.finish_reason)),
            prompt_tokens,
            text: answered.text,
            tokens: answered.tokens,
            log_probs: answered.log_probs,
            first_token_s: answered.first_token.as_secs_f64(),
            decision: Some(answered.decision),
        })
    } else {
        print("\n")
    }
}

/// Generates on the device and hands every piece of text on as it comes.
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
    let mut log_probs = Vec::new();
    let mut first_token_s = 0.0;
    for token in generation.by_ref() {
        let token = token.map_err(CommandError::Generate)?;
        if tokens.is_empty() {
            first_token_s = start.elapsed().as_secs_f64();
        }
        tokens.extend(token.id);
        log_probs.extend(PrintedLogProbs::of(&token));
        text.push_str(&token.text);
        on_text(&token.text)?;
    }
    let decode_s = start.elapsed().as_secs_f64() - first_token_s;
    Ok(Outcome {
        decode_tokens_per_s: tokens.len().saturating_sub(1) as f64 / decode_s,
        finish_reason: finish_reason(generation.finish_reason()),
        prompt_tokens: prompt.len(),
        text,
        tokens,
        log_probs,
        first_token_s,
        decision: None,
    })
}
