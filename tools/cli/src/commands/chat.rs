//! `niwaki chat`: a conversation, line by line.

use super::error::CommandError;
use super::generation::{GenerationArgs, PrintedLogProbs, finish_reason};
use super::model::{self, EngineArgs, Model};
use super::{print, staging};
use clap::Args;
use niwaki::{Chat, ChatTemplate, ContextEnd, GenerateOptions, Message, TemplateError};
use serde::Serialize;
use std::io::{self, BufRead, IsTerminal};
use std::path::{Path, PathBuf};

/// Longest template file that is read.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;

/// Talk with a model.
///
/// Every line you type is a message; the reply streams to stdout. Ctrl-C ends a reply, at the prompt it ends the
/// chat, as Ctrl-D does. When the context is full, the oldest turns are forgotten.
#[derive(Args)]
pub(super) struct ChatArgs {
    /// A .niwaki bundle, an export folder or an .onnx file.
    model: PathBuf,
    /// How the model shall behave.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// A chat template in Jinja, instead of the model's own.
    #[arg(long, value_name = "FILE")]
    template: Option<PathBuf>,
    /// Print one JSON object per reply on a line of its own, instead of the stream.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// One reply, as `--json` prints it.
#[derive(Serialize)]
struct Outcome<'a> {
    reply: &'a str,
    finish_reason: &'static str,
    prompt_tokens: usize,
    reused_tokens: usize,
    reply_tokens: usize,
    forgotten_messages: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    log_probs: Vec<PrintedLogProbs>,
}

pub(super) fn run(args: &ChatArgs) -> Result<(), CommandError> {
    let model = model::open(&args.model, &args.engine)?;
    let template = template(&model, args.template.as_deref())?;
    let mut chat = Chat::new(model.session()?, template);
    if let Some(system) = &args.system {
        chat.set_messages(vec![Message::system(system.as_str())]);
    }
    let options = args
        .generation
        .options(model.engine().generation_defaults())
        .with_context_end(ContextEnd::ForgetOldest);
    let stdin = io::stdin();
    let interactive = stdin.is_terminal() && !args.json;
    let mut lines = stdin.lock().lines();
    loop {
        if interactive {
            print("> ")?;
        }
        let Some(line) = lines.next() else { break };
        let line = line.map_err(CommandError::read(Path::new("stdin")))?;
        if !line.trim().is_empty() {
            reply(&mut chat, line, &options, args.json)?;
        }
    }
    if interactive { print("\n") } else { Ok(()) }
}

fn reply(
    chat: &mut Chat,
    message: String,
    options: &GenerateOptions,
    json: bool,
) -> Result<(), CommandError> {
    let mut reply = chat.reply(message, options);
    let _interrupt = staging::cancel_on_interrupt(reply.cancellation());
    let mut text = String::new();
    let mut reply_tokens = 0;
    let mut log_probs = Vec::new();
    for token in reply.by_ref() {
        let token = token.map_err(CommandError::Generate)?;
        log_probs.extend(PrintedLogProbs::of(&token));
        reply_tokens += usize::from(token.id.is_some());
        if !json {
            print(&token.text)?;
        }
        text.push_str(&token.text);
    }
    let reason = finish_reason(reply.finish_reason());
    let (prompt_tokens, reused_tokens) = (reply.prompt_tokens(), reply.reused_tokens());
    drop(reply);
    if !json {
        return print("\n");
    }
    let outcome = Outcome {
        reply: &text,
        finish_reason: reason,
        prompt_tokens,
        reused_tokens,
        reply_tokens,
        forgotten_messages: chat.forgotten_messages(),
        log_probs,
    };
    let line = serde_json::to_string(&outcome).map_err(CommandError::Json)?;
    print(&format!("{line}\n"))
}

/// The template the user gave, else the model's own.
fn template(model: &Model, file: Option<&Path>) -> Result<ChatTemplate, CommandError> {
    let engine = model.engine();
    let (path, template) = match file {
        None => (model.path(), engine.chat_template()),
        Some(path) => (path, read_template(model, path)?),
    };
    template.map_err(|source| CommandError::Template {
        path: path.to_owned(),
        source,
    })
}

fn read_template(
    model: &Model,
    path: &Path,
) -> Result<Result<ChatTemplate, TemplateError>, CommandError> {
    use io::Read;
    let mut source = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_TEMPLATE_BYTES).read_to_string(&mut source))
        .map_err(CommandError::read(path))?;
    let special_tokens = model.engine().generation_defaults().special_tokens.clone();
    Ok(ChatTemplate::new(&source, special_tokens))
}
