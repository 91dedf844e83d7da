//! `niwaki eval`: how well a model predicts a text, and how far it is from a reference.

use super::error::CommandError;
use super::model::{self, EngineArgs, Model};
use super::staging::Scratch;
use super::{print, print_json};
use crate::terminal::{self, Progress};
use clap::{Args, ValueEnum};
use niwaki::{Engine, KvElement, OpenOptions};
use niwaki_bundle::Verify;
use niwaki_convert::evaluate::{
    Beginnings, Comparison, Cut, Evaluation, Subject, TokenStream, compare, evaluate,
    write_float_form,
};
use serde::Serialize;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// Measure perplexity on a text file, and what quantization changed.
///
/// The text is scored as it is, line ends and empty lines included, in windows that do not see each other. With a
/// reference, usually the export that the model was built from, every prediction is compared with the reference's.
/// docs/evaluation.md tells what the figures mean and how to get those of transformers and llama.cpp.
#[derive(Args)]
pub(super) struct EvalArgs {
    /// A .niwaki bundle, an export folder or an .onnx file (computed in f32, as ONNX means it).
    model: PathBuf,
    /// UTF-8 text that the model was not trained on.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Compare with this model, which should have lost nothing: the same in f32.
    #[arg(long, value_name = "MODEL")]
    reference: Option<PathBuf>,
    /// Tell the damage of weights, of activations and of the cache of keys and values apart.
    #[arg(long, requires = "reference")]
    split_damage: bool,
    /// Tokens that the model sees in one window [default: 512, or the context if that is shorter].
    #[arg(long, value_name = "N")]
    window: Option<NonZeroUsize>,
    /// Tokens from the beginning of a window to that of the next; where windows overlap, the later one scores only what
    /// the earlier did not [default: the window, so that every token but the first is scored once].
    #[arg(long, value_name = "N")]
    stride: Option<NonZeroUsize>,
    /// Score only tokens with at least this many before them in their window.
    #[arg(long, default_value = "1", value_name = "N")]
    min_context: NonZeroUsize,
    /// Score only this many windows from the beginning.
    #[arg(long, value_name = "N")]
    max_windows: Option<NonZeroUsize>,
    /// Where the model's beginning-of-text token stands.
    #[arg(long, value_enum, default_value_t = Bos::Auto)]
    bos: Bos,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Window where nothing is said, as llama.cpp's.
const WINDOW_TOKENS: usize = 512;

/// Where the model's beginning-of-text token stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bos {
    /// "window" if the model begins texts with it, else "none".
    Auto,
    /// In place of the first token of each window.
    Window,
    /// Before the text, if the model begins texts with it.
    Text,
    /// Before each passage, for models trained so; passages are separated by empty lines, which are left out.
    Passage,
    /// Nowhere.
    None,
}

/// The figures of one evaluation, as `--json` prints them. Standard errors are null where there is one window only.
#[derive(Serialize)]
struct Figures {
    model: PathBuf,
    text: PathBuf,
    window_tokens: usize,
    stride_tokens: usize,
    min_context_tokens: usize,
    /// Where the beginning-of-text token stood.
    bos: &'static str,
    windows: usize,
    scored_tokens: usize,
    nats_per_token: f64,
    perplexity: f64,
    perplexity_standard_error: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<ReferenceFigures>,
    /// What is not computed as an export computes it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// The model beside its reference.
#[derive(Serialize)]
struct ReferenceFigures {
    model: PathBuf,
    perplexity: f64,
    perplexity_standard_error: Option<f64>,
    /// The model's perplexity over the reference's.
    perplexity_ratio: f64,
    perplexity_ratio_standard_error: Option<f64>,
    kl_nats: Divergence,
    /// Share of positions with the same most likely token, 0 to 1.
    top1_agreement: f64,
    top1_agreement_standard_error: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage_nats: Option<Damage>,
}

/// Where the divergence comes from: what each step adds to the mean, one after the other.
#[derive(Clone, Copy, Serialize)]
struct Damage {
    /// The weights are what they were rounded to; activations and cache are floats.
    weights: f64,
    /// Activations are int8 as well.
    activations: f64,
    /// Keys and values are kept as the model keeps them.
    cache: f64,
}

/// Kullback-Leibler divergence of the model's probabilities from the reference's, over the positions.
#[derive(Serialize)]
struct Divergence {
    mean: f64,
    mean_standard_error: Option<f64>,
    median: f64,
    p99: f64,
    max: f64,
}

pub(super) fn run(args: &EvalArgs) -> Result<(), CommandError> {
    let text = read_text(&args.text)?;
    let model = model::open(&args.model, &args.engine)?;
    let beginnings = args.bos.beginnings(&model)?;
    let stream = encode(&model, &text, beginnings)?;
    let reference = match &args.reference {
        None => None,
        Some(path) => Some(model::open(path, &args.engine.of_reference())?),
    };
    if let Some(reference) = &reference {
        // One without a tokenizer is taken at its word, as long as its vocabulary has the same size.
        let has_tokenizer = reference.engine().tokenizer().is_some();
        if has_tokenizer && encode(reference, &text, beginnings)? != stream {
            return Err(CommandError::OtherTokenizer {
                path: args.model.clone(),
                reference: reference.path().to_owned(),
            });
        }
    }
    let cut = args.cut(&model, reference.as_ref())?;
    let limit = args.max_windows.map_or(usize::MAX, NonZeroUsize::get);
    let windows = stream.windows(&cut);
    let windows = windows.len().min(limit);
    if windows == 0 {
        return Err(CommandError::NothingToScore {
            path: args.text.clone(),
            tokens: stream.tokens().len(),
        });
    }
    let steps = match args.split_damage {
        true => Some(Steps::of(&model, &args.engine)?),
        false => None,
    };
    let measured = measure(
        &model,
        reference.as_ref(),
        steps.as_ref(),
        &stream,
        &cut,
        windows,
    )?;
    let mut figures = Figures::new(args, &cut, beginnings, &measured);
    for model in [Some(&model), reference.as_ref()].into_iter().flatten() {
        let notes = model.notes().iter();
        figures
            .notes
            .extend(notes.map(|note| format!("{}: {note}", model.name())));
    }
    if args.json {
        print_json(&figures)
    } else {
        print(&figures.to_string())
    }
}

impl EvalArgs {
    /// How the text is cut, so that its windows fit into the contexts.
    fn cut(&self, model: &Model, reference: Option<&Model>) -> Result<Cut, CommandError> {
        let mut window_tokens = self.window.map_or(WINDOW_TOKENS, NonZeroUsize::get);
        for model in [Some(model), reference].into_iter().flatten() {
            let context_tokens = model.engine().context_tokens();
            if self.window.is_some() && window_tokens > context_tokens {
                return Err(CommandError::WindowTooLong {
                    path: model.path().to_owned(),
                    window_tokens,
                    context_tokens,
                });
            }
            window_tokens = window_tokens.min(context_tokens);
        }
        Ok(Cut {
            stride_tokens: self.stride.map_or(window_tokens, NonZeroUsize::get),
            min_context_tokens: self.min_context.get(),
            window_tokens,
        })
    }
}

/// The model on the way from its floats to what it is.
struct Steps {
    /// Its weights as floats, activations and cache too.
    float: Engine,
    /// With int8 activations, and a cache of floats.
    float_cache: Engine,
    _scratch: Scratch,
}

impl Steps {
    fn of(model: &Model, args: &EngineArgs) -> Result<Steps, CommandError> {
        let scratch = Scratch::new().map_err(CommandError::write(&std::env::temp_dir()))?;
        let path = scratch.path().join("float.niwaki");
        let bundle = model.engine().bundle();
        write_float_form(bundle, &path).map_err(|source| CommandError::FloatForm { source })?;
        let options = OpenOptions::default()
            .with_threads(args.threads())
            .with_verify(Verify::Structure)
            .with_kv(KvElement::F32);
        let failed = |source| CommandError::Open {
            path: model.path().to_owned(),
            source,
        };
        Ok(Steps {
            float: Engine::open(&path, &options).map_err(failed)?,
            float_cache: Engine::open(model.bundle(), &options).map_err(failed)?,
            _scratch: scratch,
        })
    }
}

/// A model's predictions, and the reference's beside them if there is one.
enum Measured {
    Alone(Evaluation),
    Beside {
        reference: PathBuf,
        comparison: Comparison,
        damage: Option<Damage>,
    },
}

fn measure(
    model: &Model,
    reference: Option<&Model>,
    steps: Option<&Steps>,
    stream: &TokenStream,
    cut: &Cut,
    windows: usize,
) -> Result<Measured, CommandError> {
    let progress = Progress::steps("windows", windows);
    let windows = stream.windows(cut).take(windows);
    let on_window = || progress.step();
    let name = model.name();
    let subject = Subject::new(&name, model.engine());
    let Some(reference) = reference else {
        return Ok(Measured::Alone(evaluate(subject, windows, on_window)?));
    };
    let name = reference.name();
    let beside = Subject::new(&name, reference.engine());
    let mut subjects = vec![subject];
    if let Some(steps) = steps {
        subjects.push(Subject::new(
            "the model with a cache of floats",
            &steps.float_cache,
        ));
        subjects.push(Subject::new("the model in floats", &steps.float));
    }
    let comparisons = compare(beside, &subjects, windows, on_window)?;
    let kl = |index: usize| comparisons.get(index).map(|found| found.kl_nats().value);
    let damage = match (kl(0), kl(1), kl(2)) {
        (Some(whole), Some(float_cache), Some(float)) => Some(Damage {
            weights: float,
            activations: float_cache - float,
            cache: whole - float_cache,
        }),
        _ => None,
    };
    Ok(Measured::Beside {
        reference: reference.path().to_owned(),
        comparison: comparisons.into_iter().next().unwrap_or_default(),
        damage,
    })
}

impl Figures {
    fn new(args: &EvalArgs, cut: &Cut, beginnings: Beginnings, measured: &Measured) -> Figures {
        let (evaluation, reference) = match measured {
            Measured::Alone(evaluation) => (evaluation.clone(), None),
            Measured::Beside {
                reference,
                comparison,
                damage,
            } => {
                let reference = ReferenceFigures::new(reference, comparison, *damage);
                (comparison.model(), Some(reference))
            }
        };
        let perplexity = evaluation.perplexity();
        Figures {
            model: args.model.clone(),
            text: args.text.clone(),
            window_tokens: cut.window_tokens,
            stride_tokens: cut.stride_tokens,
            min_context_tokens: cut.min_context_tokens,
            bos: match beginnings {
                Beginnings::None => "none",
                Beginnings::OfText => "text",
                Beginnings::OfWindows(_) => "window",
                Beginnings::OfPassages(_) => "passage",
            },
            windows: evaluation.windows(),
            scored_tokens: evaluation.positions().len(),
            nats_per_token: evaluation.nats().value,
            perplexity: perplexity.value,
            perplexity_standard_error: perplexity.standard_error,
            reference,
            notes: vec![],
        }
    }
}

impl ReferenceFigures {
    fn new(path: &Path, comparison: &Comparison, damage: Option<Damage>) -> ReferenceFigures {
        let perplexity = comparison.reference().perplexity();
        let ratio = comparison.perplexity_ratio();
        let kl_nats = comparison.kl_nats();
        let agreement = comparison.top1_agreement();
        ReferenceFigures {
            model: path.to_owned(),
            perplexity: perplexity.value,
            perplexity_standard_error: perplexity.standard_error,
            perplexity_ratio: ratio.value,
            perplexity_ratio_standard_error: ratio.standard_error,
            kl_nats: Divergence {
                mean: kl_nats.value,
                mean_standard_error: kl_nats.standard_error,
                median: comparison.kl_nats_quantile(0.5),
                p99: comparison.kl_nats_quantile(0.99),
                max: comparison.kl_nats_quantile(1.0),
            },
            top1_agreement: agreement.value,
            top1_agreement_standard_error: agreement.standard_error,
            damage_nats: damage,
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_less = |error: Option<f64>, text: &dyn Fn(f64) -> String| {
            error.map_or_else(String::new, |error| format!(" ± {}", text(error)))
        };
        let error = or_less(self.perplexity_standard_error, &|error| {
            format!("{error:.3}")
        });
        writeln!(
            f,
            "perplexity  {:.3}{error} ({:.4} nats a token)",
            self.perplexity, self.nats_per_token
        )?;
        write!(
            f,
            "scored      {} tokens in {} windows of {}",
            terminal::count(self.scored_tokens as u64),
            self.windows,
            self.window_tokens
        )?;
        if self.stride_tokens != self.window_tokens {
            write!(f, ", one every {}", self.stride_tokens)?;
        }
        writeln!(f)?;
        if let Some(reference) = &self.reference {
            let percent = |share: f64| format!("{:.2} %", share * 100.0);
            let error = or_less(reference.perplexity_ratio_standard_error, &percent);
            writeln!(
                f,
                "reference   {:.3}, so {}{error}",
                reference.perplexity,
                terminal::percent_change(self.perplexity, reference.perplexity)
            )?;
            let kl = &reference.kl_nats;
            let error = or_less(kl.mean_standard_error, &terminal::significant);
            writeln!(
                f,
                "KL          {}{error} nats a token; median {}, 99th percentile {}, largest {}",
                terminal::significant(kl.mean),
                terminal::significant(kl.median),
                terminal::significant(kl.p99),
                terminal::significant(kl.max)
            )?;
            let error = or_less(reference.top1_agreement_standard_error, &percent);
            writeln!(
                f,
                "agreement   {}{error} of the most likely tokens are the reference's",
                percent(reference.top1_agreement)
            )?;
            if let Some(damage) = reference.damage_nats {
                writeln!(
                    f,
                    "damage      weights {}, activations {:+.4}, keys and values {:+.4} nats a token",
                    terminal::significant(damage.weights),
                    damage.activations,
                    damage.cache
                )?;
            }
            writeln!(
                f,
                "\nKL is how far the model's probabilities are from the reference's: 0 means that nothing changed."
            )?;
        }
        if self.perplexity_standard_error.is_some() {
            writeln!(
                f,
                "± is one standard error, from how much the windows differ."
            )?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
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

/// A text as a model's tokens.
fn encode(model: &Model, text: &str, beginnings: Beginnings) -> Result<TokenStream, CommandError> {
    TokenStream::encode(text, model.tokenizer()?, beginnings).map_err(model.cannot_encode())
}

impl Bos {
    fn beginnings(self, model: &Model) -> Result<Beginnings, CommandError> {
        let tokenizer = model.tokenizer()?;
        let bos = || match tokenizer.first_token() {
            Ok(first) => first.or(model.bos()).ok_or_else(|| CommandError::NoBos {
                path: model.path().to_owned(),
            }),
            Err(source) => Err(model.cannot_encode()(source)),
        };
        Ok(match self {
            Bos::Auto => Beginnings::of(tokenizer).map_err(model.cannot_encode())?,
            Bos::Window => Beginnings::OfWindows(bos()?),
            Bos::Text => Beginnings::OfText,
            Bos::Passage => Beginnings::OfPassages(bos()?),
            Bos::None => Beginnings::None,
        })
    }
}
