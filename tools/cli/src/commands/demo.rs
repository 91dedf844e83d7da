//! `niwaki demo`: the whole path on the built-in model.

use super::build::write_bundle;
use super::error::CommandError;
use super::model::{self, EngineArgs, Model};
use super::run::generate;
use super::staging::Scratch;
use super::{print, print_json};
use crate::demo_model;
use crate::terminal::{self, Progress, Table};
use clap::Args;
use niwaki::{GenerateOptions, LogitsFor, RepetitionPenalty, Sampling, SessionError};
use niwaki_convert::build::Weights;
use niwaki_convert::evaluate::{Beginnings, Cut, Subject, TokenStream, compare};
use serde::Serialize;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Build the built-in model to int8 and int4, compare them with fp32, and tell a story.
///
/// Every figure is measured while you wait.
#[derive(Args)]
pub(super) struct DemoArgs {
    /// How the story begins.
    #[arg(
        long,
        default_value = "Once upon a time there was",
        value_name = "TEXT"
    )]
    prompt: String,
    /// Seed of the story.
    #[arg(long, default_value_t = 4, value_name = "N")]
    seed: u64,
    /// Threads to compute with; by default as many as there are cores.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Keep the bundles and the exported model in this folder.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Print the figures and the story as JSON.
    #[arg(long)]
    json: bool,
}

/// Tokens in one of the windows in which the held-out text is scored.
const WINDOW_TOKENS: usize = 256;
/// Tokens of one timed prefill and of the timed decoding after it; the median of several is taken.
const PREFILL_TOKENS: usize = 256;
const DECODE_TOKENS: usize = 64;
const REPEATS: usize = 5;
/// Length of the story.
const STORY_TOKENS: usize = 160;

/// One column of the comparison, as `--json` prints it.
#[derive(Serialize)]
struct Figures {
    weights: &'static str,
    build_s: f64,
    size_bytes: u64,
    perplexity: f64,
    /// Mean Kullback-Leibler divergence of the probabilities from those of fp32, in nats a token.
    kl_nats: f64,
    /// Share of positions, 0 to 1, with the same most likely token as fp32.
    top1_agreement: f64,
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
    /// Mapped from the bundle, by the engine's plan.
    file_bytes: u64,
    /// Everything else, by the engine's plan.
    anonymous_bytes: u64,
}

/// Everything `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    model: &'static str,
    threads: usize,
    isa: &'static str,
    scored_tokens: usize,
    figures: &'a [Figures],
    prompt: &'a str,
    story: &'a str,
}

/// A built form of the model.
struct Built {
    weights: &'static str,
    build_s: f64,
    size_bytes: u64,
    model: Model,
}

impl Built {
    fn subject(&self) -> Subject<'_> {
        Subject::new(self.weights, self.model.engine())
    }
}

pub(super) fn run(args: &DemoArgs) -> Result<(), CommandError> {
    let say = |text: &str| if args.json { Ok(()) } else { print(text) };
    let scratch = Scratch::new().map_err(CommandError::write(&std::env::temp_dir()))?;
    let folder = args.keep.as_deref().unwrap_or(scratch.path());
    let export = folder.join(demo_model::NAME);
    demo_model::write_export(&export).map_err(CommandError::write(&export))?;
    say(&format!(
        "{} is a small Llama trained on public-domain folk tales, exported to ONNX.\n\n",
        demo_model::NAME
    ))?;

    let forms = [
        ("fp32", Weights::F32),
        ("int8", Weights::Int8),
        ("int4", Weights::Int4),
    ];
    let mut built = Vec::with_capacity(forms.len());
    for (name, weights) in forms {
        let form = build_form(args, folder, &export, name, weights)?;
        say(&format!(
            "built {name} in {:.1} s: {}\n",
            form.build_s,
            terminal::bytes(form.size_bytes)
        ))?;
        built.push(form);
    }

    let (scored_tokens, qualities) = compare_all(&built)?;
    let speeds = measure_speeds(&built)?;
    let figures: Vec<Figures> = built
        .iter()
        .zip(&qualities)
        .zip(&speeds)
        .map(|((form, quality), speed)| figures(form, quality, speed))
        .collect();
    let Some(smallest) = built.last() else {
        return Ok(());
    };
    let engine = smallest.model.engine();
    say(&format!("\n{}", table(&figures)))?;
    say(&format!(
        "\nPerplexity on {} tokens of held-out text in windows of {WINDOW_TOKENS}; KL is how far the\n\
         probabilities are from fp32's, in nats a token; top-1 is how often the most likely token is fp32's.\n\
         Speed with {} threads and {} kernels. Memory is what the engine plans for a full context of\n\
         {} tokens, the mapped file included.\n\n",
        terminal::count(scored_tokens as u64),
        engine.threads(),
        engine.isa().name(),
        engine.context_tokens(),
    ))?;

    let prompt = smallest.model.encode_prompt(&args.prompt, true)?;
    let options = GenerateOptions::default()
        .with_max_new_tokens(STORY_TOKENS)
        .with_sampling(
            Sampling::GREEDY
                .with_temperature(0.7)
                .with_top_k(40)
                .with_top_p(0.9)
                // A model this small would tell of the king's daughter's daughter for ever.
                .with_repetition_penalty(RepetitionPenalty::new(1.15))
                .with_seed(args.seed),
        );
    say(&args.prompt)?;
    let story = generate(&smallest.model, &prompt, &options, |text| say(text))?;
    say("\n")?;
    if let Some(folder) = &args.keep {
        say(&format!(
            "\nThe export and the bundles are in {}.\n",
            folder.display()
        ))?;
    }
    if args.json {
        print_json(&Report {
            model: demo_model::NAME,
            threads: engine.threads(),
            isa: engine.isa().name(),
            scored_tokens,
            figures: &figures,
            prompt: &args.prompt,
            story: &story.text,
        })?;
    }
    Ok(())
}

fn build_form(
    args: &DemoArgs,
    folder: &Path,
    export: &Path,
    name: &'static str,
    weights: Weights,
) -> Result<Built, CommandError> {
    let bundle = folder.join(format!("{}-{name}.niwaki", demo_model::NAME));
    let progress = Progress::open_ended(&format!("building {name}"));
    let start = Instant::now();
    write_bundle(export, None, &bundle, weights)?;
    let build_s = start.elapsed().as_secs_f64();
    drop(progress);
    let size_bytes = std::fs::metadata(&bundle)
        .map_err(CommandError::read(&bundle))?
        .len();
    let model = model::open(&bundle, &EngineArgs::with_threads(args.threads))?;
    Ok(Built {
        weights: name,
        build_s,
        size_bytes,
        model,
    })
}

/// How well a form predicts the held-out text, and how far it is from the first one.
struct Quality {
    perplexity: f64,
    kl_nats: f64,
    top1_agreement: f64,
}

/// Compares every form with the first one, on so many tokens.
fn compare_all(built: &[Built]) -> Result<(usize, Vec<Quality>), CommandError> {
    let Some((reference, others)) = built.split_first() else {
        return Ok((0, Vec::new()));
    };
    let stream = held_out(&reference.model)?;
    let windows = stream.windows(&Cut::every(WINDOW_TOKENS));
    let progress = Progress::steps("measuring perplexity", windows.len());
    let others: Vec<Subject<'_>> = others.iter().map(Built::subject).collect();
    let comparisons = compare(reference.subject(), &others, windows, || progress.step())?;
    let mut qualities = Vec::with_capacity(built.len());
    qualities.extend(comparisons.first().map(|comparison| Quality {
        perplexity: comparison.reference().perplexity().value,
        kl_nats: 0.0,
        top1_agreement: 1.0,
    }));
    qualities.extend(comparisons.iter().map(|comparison| Quality {
        perplexity: comparison.model().perplexity().value,
        kl_nats: comparison.kl_nats().value,
        top1_agreement: comparison.top1_agreement().value,
    }));
    let scored_tokens = comparisons
        .first()
        .map_or(0, |found| found.positions().len());
    Ok((scored_tokens, qualities))
}

/// The held-out text as the model was trained: token 0 before each passage.
fn held_out(model: &Model) -> Result<TokenStream, CommandError> {
    let beginnings = model.bos().map_or(Beginnings::None, Beginnings::OfPassages);
    TokenStream::encode(demo_model::HELD_OUT_TEXT, model.tokenizer()?, beginnings)
        .map_err(model.cannot_encode())
}

/// Tokens per second.
struct Speed {
    prefill: f64,
    decode: f64,
}

/// Medians of repeats that take turns, so that a busy moment of the machine strikes all forms alike.
fn measure_speeds(built: &[Built]) -> Result<Vec<Speed>, CommandError> {
    let progress = Progress::steps("measuring speed", built.len() * REPEATS);
    let mut seconds = vec![(Vec::new(), Vec::new()); built.len()];
    for _ in 0..REPEATS {
        for (form, (prefill_s, decode_s)) in built.iter().zip(&mut seconds) {
            let (prefill, decode) = time(&form.model)?;
            prefill_s.push(prefill);
            decode_s.push(decode);
            progress.step();
        }
    }
    let speed = |(prefill_s, decode_s): (Vec<f64>, Vec<f64>)| Speed {
        prefill: PREFILL_TOKENS as f64 / median(prefill_s),
        decode: DECODE_TOKENS as f64 / median(decode_s),
    };
    Ok(seconds.into_iter().map(speed).collect())
}

/// Seconds of one prefill and of the decoding after it.
fn time(model: &Model) -> Result<(f64, f64), CommandError> {
    let stream = held_out(model)?;
    let (prompt, rest) = stream
        .tokens()
        .split_at(PREFILL_TOKENS.min(stream.tokens().len()));
    let mut session = model.session()?;
    let start = Instant::now();
    session
        .append(prompt, LogitsFor::LastToken)
        .map_err(failed(model))?;
    let prefill_s = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for token in rest.iter().take(DECODE_TOKENS) {
        session
            .append(&[*token], LogitsFor::LastToken)
            .map_err(failed(model))?;
    }
    Ok((prefill_s, start.elapsed().as_secs_f64()))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn failed(model: &Model) -> impl FnOnce(SessionError) -> CommandError + use<> {
    let path = model.path().to_owned();
    move |source| CommandError::Session { path, source }
}

fn figures(form: &Built, quality: &Quality, speed: &Speed) -> Figures {
    let plan = form.model.engine().memory_plan();
    Figures {
        weights: form.weights,
        build_s: form.build_s,
        size_bytes: form.size_bytes,
        perplexity: quality.perplexity,
        kl_nats: quality.kl_nats,
        top1_agreement: quality.top1_agreement,
        prefill_tokens_per_s: speed.prefill,
        decode_tokens_per_s: speed.decode,
        file_bytes: plan.file_bytes(),
        anonymous_bytes: plan.anonymous_bytes(),
    }
}

fn table(figures: &[Figures]) -> Table {
    let mut table = Table::new([
        "weights",
        "size",
        "perplexity",
        "change",
        "KL",
        "top-1",
        "prefill tok/s",
        "decode tok/s",
        "memory",
    ]);
    let reference = figures
        .first()
        .map_or(f64::NAN, |reference| reference.perplexity);
    for (index, form) in figures.iter().enumerate() {
        let compared = |text: String| if index == 0 { "-".to_owned() } else { text };
        table.row([
            form.weights.to_owned(),
            terminal::bytes(form.size_bytes),
            format!("{:.3}", form.perplexity),
            compared(terminal::percent_change(form.perplexity, reference)),
            compared(terminal::significant(form.kl_nats)),
            compared(format!("{:.1} %", form.top1_agreement * 100.0)),
            format!("{:.0}", form.prefill_tokens_per_s),
            format!("{:.0}", form.decode_tokens_per_s),
            terminal::bytes(form.file_bytes.saturating_add(form.anonymous_bytes)),
        ]);
    }
    table
}
