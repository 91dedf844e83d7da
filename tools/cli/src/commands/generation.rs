//! Options of every command that generates text.

use clap::Args;
use niwaki::{FinishReason, GenerateOptions, RepetitionPenalty, Sampling};
use niwaki_bundle::GenerationDefaults;

/// Sampling when neither the user nor the model says how.
const TEMPERATURE: f32 = 0.8;
const TOP_K: usize = 40;
const TOP_P: f32 = 0.95;

/// When to stop and how to choose.
#[derive(Args)]
pub(super) struct GenerationArgs {
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
    /// Draw only from tokens with at least this share of the most likely token's probability [default: the model's
    /// own, else all].
    #[arg(long, value_name = "P", value_parser = share)]
    min_p: Option<f32>,
    /// Divide the logits of tokens that were there already by this; 1 changes nothing [default: the model's own,
    /// else 1].
    #[arg(long, value_name = "X", value_parser = factor)]
    repetition_penalty: Option<f32>,
    /// Only the last N tokens count as there already; by default all.
    #[arg(long, value_name = "N")]
    repetition_last_tokens: Option<usize>,
    /// Seed of the random numbers.
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// End when this text comes up, which is not printed; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

impl GenerationArgs {
    /// What the user asked for, the model's defaults where nothing was.
    pub(super) fn options(&self, defaults: &GenerationDefaults) -> GenerateOptions {
        let temperature = self.temperature.or(defaults.temperature);
        let top_k = self.top_k.or(defaults.top_k).or(Some(TOP_K));
        let penalty = self.repetition_penalty.or(defaults.repetition_penalty);
        let penalty = penalty.map(|factor| {
            RepetitionPenalty::new(factor).with_last_tokens(self.repetition_last_tokens)
        });
        let sampling = Sampling::GREEDY
            .with_temperature(temperature.unwrap_or(TEMPERATURE))
            .with_top_k(top_k.filter(|&top_k| top_k > 0))
            .with_top_p(self.top_p.or(defaults.top_p).or(Some(TOP_P)))
            .with_min_p(self.min_p.or(defaults.min_p))
            .with_repetition_penalty(penalty)
            .with_seed(self.seed);
        GenerateOptions::default()
            .with_max_new_tokens(self.max_new_tokens)
            .with_sampling(sampling)
            .with_stop_strings(self.stop.clone())
    }
}

/// A reason as `--json` prints it.
pub(super) fn finish_reason(reason: Option<FinishReason>) -> &'static str {
    match reason {
        Some(FinishReason::EndOfText) => "end_of_text",
        Some(FinishReason::StopToken) => "stop_token",
        Some(FinishReason::StopString) => "stop_string",
        Some(FinishReason::MaxTokens) => "max_new_tokens",
        Some(FinishReason::ContextFull) => "context_full",
        Some(FinishReason::NothingAllowed) => "nothing_allowed",
        Some(FinishReason::Filtered) => "filtered",
        Some(FinishReason::Cancelled) => "cancelled",
        Some(FinishReason::Failed) | None => "failed",
        Some(_) => "other",
    }
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

fn share(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("it has to be a number from 0 to 1".to_owned()),
    }
}

fn factor(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err("it has to be a number above 0".to_owned()),
    }
}
