//! Beam search for `niwaki run`.

use super::error::CommandError;
use super::generation::finish_reason;
use super::model::Model;
use super::{print, print_json};
use clap::{Args, ValueEnum};
use niwaki::{BeamOptions, EarlyStopping, GenerateOptions, Hypothesis};
use serde::Serialize;

/// How to search for the most likely texts.
#[derive(Args)]
#[command(next_help_heading = "Beam search")]
pub(super) struct BeamArgs {
    /// Search for the most likely text with N beams, on the device; constraints and penalties count, temperature and
    /// cuts do not.
    #[arg(long, value_name = "N", conflicts_with_all = ["cloud_endpoint", "routing", "max_local_prompt_tokens", "explain", "log_probs", "stop"])]
    beams: Option<usize>,
    /// Divide a text's log-probability by its length to this power: above 0 prefers longer texts, below 0 shorter ones.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 1.0,
        requires = "beams",
        allow_hyphen_values = true
    )]
    length_penalty: f32,
    /// Part the beams into G groups that keep away from each other's tokens.
    #[arg(long, value_name = "G", default_value_t = 1, requires = "beams")]
    beam_groups: usize,
    /// Take this from a token's log-probability for each beam of an earlier group that chose it at the same place.
    #[arg(long, value_name = "X", default_value_t = 0.0, requires = "beams")]
    diversity_penalty: f32,
    /// When to end once there are as many texts as beams.
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Mode::Unlikely, requires = "beams")]
    early_stopping: Mode,
    /// Print the K best texts, each after its score.
    #[arg(long, value_name = "K", default_value_t = 1, requires = "beams")]
    n_best: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    /// When a better text is unlikely.
    Unlikely,
    /// At once.
    WhenFull,
    /// When no better text is possible.
    Never,
}

/// What was found, as `--json` prints it.
#[derive(Serialize)]
struct Found {
    prompt_tokens: usize,
    hypotheses: Vec<PrintedHypothesis>,
}

#[derive(Serialize)]
struct PrintedHypothesis {
    text: String,
    tokens: Vec<u32>,
    score: f64,
    log_prob: f64,
    finish_reason: &'static str,
}

impl From<Hypothesis> for PrintedHypothesis {
    fn from(found: Hypothesis) -> Self {
        PrintedHypothesis {
            text: found.text,
            tokens: found.tokens,
            score: found.score,
            log_prob: found.log_prob,
            finish_reason: finish_reason(Some(found.finish_reason)),
        }
    }
}

impl BeamArgs {
    /// What the user asked for; `None` for no beams.
    pub(super) fn options(&self) -> Option<BeamOptions> {
        let options = BeamOptions::new(self.beams?)
            .with_length_penalty(self.length_penalty)
            .with_groups(self.beam_groups)
            .with_diversity_penalty(self.diversity_penalty)
            .with_n_best(self.n_best)
            .with_early_stopping(match self.early_stopping {
                Mode::Unlikely => EarlyStopping::Unlikely,
                Mode::WhenFull => EarlyStopping::WhenFull,
                Mode::Never => EarlyStopping::Never,
            });
        Some(options)
    }
}

/// Searches and prints what was found.
pub(super) fn search(
    model: &Model,
    prompt: &[u32],
    beams: &BeamOptions,
    options: &GenerateOptions,
    json: bool,
) -> Result<(), CommandError> {
    let found = model
        .session()?
        .beam_search(prompt, beams, options, None)
        .map_err(CommandError::Generate)?;
    if json {
        return print_json(&Found {
            prompt_tokens: prompt.len(),
            hypotheses: found.into_iter().map(Into::into).collect(),
        });
    }
    found.iter().try_for_each(|found| match beams.n_best {
        1 => print(&format!("{}\n", found.text)),
        _ => print(&format!("{:.4}\t{}\n", found.score, found.text)),
    })
}
