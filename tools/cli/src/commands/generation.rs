//! Options of every command that generates text.

use clap::Args;
use niwaki::{
    Dry, FinishReason, GenerateOptions, Mirostat, RepetitionPenalty, Sampling, Token, Xtc,
};
use niwaki_bundle::GenerationDefaults;
use serde::Serialize;
use std::time::Duration;

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
    /// End when this token comes up, by its id; may be given several times.
    #[arg(long, value_name = "TOKEN")]
    stop_token: Vec<u32>,
    /// Begin no token after so many milliseconds.
    #[arg(long, value_name = "MS")]
    max_time_ms: Option<u64>,
    /// With --json, give the log-probabilities of each token and of the N most likely ones, before penalties,
    /// temperature and cuts.
    #[arg(long, value_name = "N")]
    log_probs: Option<usize>,
    #[command(flatten)]
    more: MoreSampling,
}

/// Settings that no model has a default for.
#[derive(Args)]
#[command(next_help_heading = "More sampling")]
struct MoreSampling {
    /// Never choose this token, by its id; may be given several times.
    #[arg(long, value_name = "TOKEN")]
    ban_token: Vec<u32>,
    /// Begin with this token, by its id; may be given several times.
    #[arg(long, value_name = "TOKEN")]
    force_token: Vec<u32>,
    /// No N tokens in a row come twice, the prompt included.
    #[arg(long, value_name = "N")]
    no_repeat_ngram: Option<usize>,
    /// Add to the logit of a token, by its id; may be given several times.
    #[arg(long, value_name = "TOKEN=X", value_parser = logit_bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Take this from a token's logit for each time it was generated.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_hyphen_values = true
    )]
    frequency_penalty: f32,
    /// Take this once from the logit of a token that was generated.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_hyphen_values = true
    )]
    presence_penalty: f32,
    /// Make tokens that would go on with a repetition less likely (DRY); 0.8 is usual.
    #[arg(long, value_name = "X")]
    dry_multiplier: Option<f32>,
    /// How fast that grows with the repetition's length.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 1.75,
        requires = "dry_multiplier"
    )]
    dry_base: f32,
    /// So many tokens may repeat freely.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 2,
        requires = "dry_multiplier"
    )]
    dry_allowed_length: usize,
    /// Only the last N tokens are searched for repetitions; by default all.
    #[arg(long, value_name = "N", requires = "dry_multiplier")]
    dry_last_tokens: Option<usize>,
    /// No repetition goes across this token, by its id; may be given several times.
    #[arg(long, value_name = "TOKEN", requires = "dry_multiplier")]
    dry_breaker: Vec<u32>,
    /// Draw only from tokens with a logit at most N standard deviations below the best one's.
    #[arg(long, value_name = "N")]
    top_n_sigma: Option<f32>,
    /// Draw only from the tokens nearest to the expected surprise whose probabilities reach P together.
    #[arg(long, value_name = "P", value_parser = probability)]
    typical_p: Option<f32>,
    /// Leave out the top choices but the last, with this probability at each token (XTC).
    #[arg(long, value_name = "P", value_parser = share)]
    xtc_probability: Option<f32>,
    /// What makes a token a top choice.
    #[arg(long, value_name = "P", value_parser = share, default_value_t = 0.1, requires = "xtc_probability")]
    xtc_threshold: f32,
    /// Hold the surprise of the text near so many bits (mirostat 2); 5 is usual.
    #[arg(long, value_name = "BITS", value_parser = factor)]
    mirostat_tau: Option<f32>,
    /// How fast mirostat follows.
    #[arg(long, value_name = "X", value_parser = factor, default_value_t = 0.1, requires = "mirostat_tau")]
    mirostat_eta: f32,
}

impl MoreSampling {
    fn add_to(&self, sampling: Sampling) -> Sampling {
        let dry = self.dry_multiplier.map(|multiplier| {
            let mut dry = Dry::new(multiplier);
            dry.base = self.dry_base;
            dry.allowed_length = self.dry_allowed_length;
            dry.last_tokens = self.dry_last_tokens;
            dry.breakers = self.dry_breaker.clone();
            dry
        });
        let xtc = self.xtc_probability;
        let tau = self.mirostat_tau;
        sampling
            .with_banned_tokens(self.ban_token.clone())
            .with_forced_tokens(self.force_token.clone())
            .with_no_repeat_ngram(self.no_repeat_ngram)
            .with_logit_bias(self.logit_bias.clone())
            .with_frequency_penalty(self.frequency_penalty)
            .with_presence_penalty(self.presence_penalty)
            .with_dry(dry)
            .with_top_n_sigma(self.top_n_sigma)
            .with_typical_p(self.typical_p)
            .with_xtc(xtc.map(|probability| Xtc::new(probability, self.xtc_threshold)))
            .with_mirostat(tau.map(|tau| Mirostat::new(tau, self.mirostat_eta)))
    }
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
            .with_sampling(self.more.add_to(sampling))
            .with_max_time(self.max_time_ms.map(Duration::from_millis))
            .with_log_probs(self.log_probs)
            .with_stop_tokens(self.stop_token.clone())
            .with_stop_strings(self.stop.clone())
    }
}

/// Log-probabilities of a token, as `--json` prints them.
#[derive(Serialize)]
pub(super) struct PrintedLogProbs {
    token: u32,
    log_prob: f32,
    /// Pairs of token and logarithm.
    best: Vec<(u32, f32)>,
}

impl PrintedLogProbs {
    /// `None` where they were not asked for.
    pub(super) fn of(token: &Token) -> Option<PrintedLogProbs> {
        let log_probs = token.log_probs.as_ref()?;
        Some(PrintedLogProbs {
            token: token.id?,
            log_prob: log_probs.chosen,
            best: log_probs.best.clone(),
        })
    }
}

/// A reason as `--json` prints it.
pub(super) fn finish_reason(reason: Option<FinishReason>) -> &'static str {
    match reason {
        Some(FinishReason::EndOfText) => "end_of_text",
        Some(FinishReason::StopToken) => "stop_token",
        Some(FinishReason::StopString) => "stop_string",
        Some(FinishReason::MaxTokens) => "max_new_tokens",
        Some(FinishReason::MaxTime) => "max_time",
        Some(FinishReason::ContextFull) => "context_full",
        Some(FinishReason::NothingAllowed) => "nothing_allowed",
        Some(FinishReason::Filtered) => "filtered",
        Some(FinishReason::Cancelled) => "cancelled",
        Some(FinishReason::Failed) | None => "failed",
        Some(_) => "other",
    }
}

fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text.split_once('=').and_then(|(token, bias)| {
        let bias = bias.parse::<f32>().ok()?;
        let fits = bias.is_finite() || bias == f32::NEG_INFINITY;
        Some((token.parse().ok()?, bias)).filter(|_| fits)
    });
    parsed
        .ok_or_else(|| "it has to be a token's id, = and a number, or -inf, which bans".to_owned())
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
