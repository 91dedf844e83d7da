//! The commands of `niwaki`: one file each, arguments above, work below.

mod beams;
mod bench;
mod build;
mod chat;
mod demo;
mod error;
mod eval;
mod generation;
mod inspect;
mod logits;
mod model;
mod pack;
mod plan;
mod prompt_ids;
mod prune;
mod quantize;
mod report;
mod routing;
mod run;
mod staging;

use crate::terminal;
use clap::{Parser, Subcommand};
use error::CommandError;
use niwaki::Isa;
use std::io::{self, Write};
use std::process::ExitCode;

/// What stands below the help of the command.
fn exit_codes_and_environment() -> String {
    let kernels = Isa::ALL.iter().map(|isa| isa.name());
    let kernels = kernels.collect::<Vec<_>>().join(", ");
    format!(
        "\
Exit codes:
  0  done
  1  failed; the reason is on stderr
  2  the command line was not understood

Environment:
  NIWAKI_ISA  use these kernels instead of the best this CPU has; results do not depend on it:
              {kernels}
  NIWAKI_CLOUD_API_KEY
              key of the endpoint that --cloud-endpoint names
  NO_COLOR    print without colours and emphasis"
    )
}

/// Imports, prunes, quantizes, packs, measures and runs language models for phones and small boards.
///
/// An exported ONNX model becomes one .niwaki file, which is mapped into memory and run with the same
/// results, to the bit, on every CPU.
#[derive(Parser)]
#[command(
    name = "niwaki",
    version,
    after_help = exit_codes_and_environment(),
    max_term_width = 100,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Build(build::BuildArgs),
    Prune(prune::PruneArgs),
    Quantize(quantize::QuantizeArgs),
    Pack(pack::PackArgs),
    Inspect(inspect::InspectArgs),
    Eval(eval::EvalArgs),
    Bench(bench::BenchArgs),
    Run(run::RunArgs),
    Chat(chat::ChatArgs),
    Logits(logits::LogitsArgs),
    Demo(demo::DemoArgs),
}

/// Parses the command line, runs the command and reports its failure.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody is left to tell when this fails too.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    staging::clean_up_on_interrupt();
    let done = match cli.command {
        Command::Build(args) => build::run(&args),
        Command::Prune(args) => prune::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Pack(args) => pack::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Demo(args) => demo::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output has seen enough: `niwaki run ... | head`.
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            let text = terminal::describe(&error, error.hint().as_deref());
            // A closed stderr must not turn a failure into a crash.
            let _ = io::stderr().write_all(text.as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// Writes to stdout at once: what a person or a script reads.
fn print(text: &str) -> Result<(), CommandError> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(CommandError::Stdout)
}

/// Prints a value as JSON for scripts, indented, with a final newline.
fn print_json(value: &impl serde::Serialize) -> Result<(), CommandError> {
    let mut text = serde_json::to_string_pretty(value).map_err(CommandError::Json)?;
    text.push('\n');
    print(&text)
}
