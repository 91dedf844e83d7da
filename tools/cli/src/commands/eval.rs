//! `niwaki eval`: how well a model predicts a text.

use super::error::CommandError;
use super::model::{self, EngineArgs, Model};
use super::{print, print_json};
use crate::terminal::{self, Progress};
use clap::{Args, ValueEnum};
use niwaki::Tokenizer;
use niwaki_convert::evaluate::{Beginnings, Evaluation, TokenStream, evaluate};
use serde::Serialize;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// Measure perplexity on a text file.
///
/// The text is scored in windows that do not see each other.
#[derive(Args)]
pub(super) struct EvalArgs {
    /// A .niwaki bundle, an export folder or an .onnx file (computed in f32, as ONNX means it).
    model: PathBuf,
    /// UTF-8 text that the model was not trained on.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens in one window.
    #[arg(long, default_value = "256", value_name = "N")]
    window: NonZeroUsize,
    /// Score only this many windows from the beginning.
    #[arg(long, value_name = "N")]
    max_windows: Option<NonZeroUsize>,
    /// Also count how often the most likely token is the one this model chooses.
    #[arg(long, value_name = "MODEL")]
    reference: Option<PathBuf>,
    /// Where the model's beginning-of-text token stands.
    #[arg(long, value_enum, default_value_t = Bos::Auto)]
    bos: Bos,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Where the model's beginning-of-text token stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Bos {
    /// "window" if the tokenizer puts it before every text, else "passage" if the model has one, else "none".
    Auto,
    /// Before each passage; passages are separated by empty lines.
    Passage,
    /// At the start of each window.
    Window,
    /// Nowhere.
    None,
}

/// The figures of one evaluation, as `--json` prints them.
#[derive(Serialize)]
struct Figures {
    model: PathBuf,
    text: PathBuf,
    window_tokens: usize,
    windows: usize,
    scored_tokens: usize,
    nats_per_token: f64,
    perplexity: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<ReferenceFigures>,
}

#[derive(Serialize)]
struct ReferenceFigures {
    model: PathBuf,
    perplexity: f64,
    /// Share of positions with the same most likely token, 0 to 1.
    top1_agreement: f64,
}

pub(super) fn run(args: &EvalArgs) -> Result<(), CommandError> {
    let text = read_text(&args.text)?;
    let model = model::open(&args.model, &args.engine)?;
    let stream = TokenStream::encode(&text, model.tokenizer()?, beginnings(&model, args.bos)?)
        .map_err(|source| CommandError::Encode {
            path: args.model.clone(),
            source,
        })?;
    let evaluation = measure(&model, &stream, args)?;
    if evaluation.choices.is_empty() {
        return Err(CommandError::NothingToScore {
            path: args.text.clone(),
        });
    }
    let reference = match &args.reference {
        None => None,
        Some(path) => {
            let reference = measure(&model::open(path, &args.engine)?, &stream, args)?;
            Some(ReferenceFigures {
                model: path.clone(),
                perplexity: reference.perplexity(),
                top1_agreement: evaluation.agreement(&reference),
            })
        }
    };
    let figures = Figures {
        model: args.model.clone(),
        text: args.text.clone(),
        window_tokens: args.window.get(),
        windows: window_count(&stream, args),
        scored_tokens: evaluation.choices.len(),
        nats_per_token: evaluation.nats_per_token,
        perplexity: evaluation.perplexity(),
        reference,
    };
    if args.json {
        print_json(&figures)
    } else {
        print(&figures.to_string())
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "perplexity  {:.3} ({:.4} nats a token)",
            self.perplexity, self.nats_per_token
        )?;
        writeln!(
            f,
            "scored      {} tokens in {} windows of {}",
            terminal::count(self.scored_tokens as u64),
            self.windows,
            self.window_tokens
        )?;
        if let Some(reference) = &self.reference {
            let change = terminal::percent_change(self.perplexity, reference.perplexity);
            writeln!(f, "reference   {:.3}, so {change}", reference.perplexity)?;
            writeln!(
                f,
                "agreement   {:.2} % of the top-1 choices",
                reference.top1_agreement * 100.0
            )?;
        }
        Ok(())
    }
}

/// A text file.
pub(super) fn read_text(path: &Path) -> Result<String, CommandError> {
    let bytes = std::fs::read(path).map_err(CommandError::read(path))?;
    String::from_utf8(bytes).map_err(|error| CommandError::NotText {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to(),
    })
}

/// Where an opened model's beginning-of-text token stands.
pub(super) fn beginnings(model: &Model, bos: Bos) -> Result<Beginnings, CommandError> {
    bos.beginnings(model.bos(), model.tokenizer()?, model.path())
}

impl Bos {
    /// Where the token `bos` of the model at `path` stands.
    pub(super) fn beginnings(
        self,
        bos: Option<u32>,
        tokenizer: &Tokenizer,
        path: &Path,
    ) -> Result<Beginnings, CommandError> {
        let required = || {
            bos.ok_or_else(|| CommandError::NoBos {
                path: path.to_owned(),
            })
        };
        Ok(match self {
            Bos::None => Beginnings::None,
            Bos::Passage => Beginnings::OfPassages(required()?),
            Bos::Window => Beginnings::OfWindows(required()?),
            Bos::Auto => match bos {
                None => Beginnings::None,
                Some(bos) if model::adds_first(tokenizer, bos, path)? => Beginnings::OfWindows(bos),
                Some(bos) => Beginnings::OfPassages(bos),
            },
        })
    }
}

fn window_count(stream: &TokenStream, args: &EvalArgs) -> usize {
    let limit = args.max_windows.map_or(usize::MAX, NonZeroUsize::get);
    stream.windows(args.window.get()).len().min(limit)
}

fn measure(
    model: &Model,
    stream: &TokenStream,
    args: &EvalArgs,
) -> Result<Evaluation, CommandError> {
    let count = window_count(stream, args);
    let progress = Progress::steps("windows", count);
    evaluate(
        model.engine(),
        stream.windows(args.window.get()).take(count),
        || progress.step(),
    )
    .map_err(|source| CommandError::Session {
        path: model.path().to_owned(),
        source,
    })
}
