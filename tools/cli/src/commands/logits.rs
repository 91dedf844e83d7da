//! `niwaki logits`: raw model outputs, for comparison with another runtime.

use super::error::CommandError;
use super::model::{self, EngineArgs};
use super::print;
use super::staging::Staging;
use crate::terminal::Progress;
use clap::Args;
use niwaki::{Logits, LogitsFor};
use npyz::WriterBuilder;
use npyz::npz::{NpzWriter, file_name_from_array_name};
use npyz::zip::CompressionMethod;
use npyz::zip::write::FileOptions;
use serde::Deserialize;
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

/// Write the logits of chosen token ids to an .npz file
///
/// CALLS.json is a list of calls, each a part of one sequence:
///
///   [{"name": "prefill", "ids": [1, 5, 9], "reset": true}, {"name": "next", "ids": [4]}]
///
/// "reset" starts a fresh KV cache, other calls continue it. The output holds one float32 array
/// [tokens, vocabulary] per name. `niwaki run MODEL PROMPT --print-ids` tells the ids of a text.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct LogitsArgs {
    /// A .niwaki bundle, an export folder or an .onnx file (computed in f32, as ONNX means it).
    model: PathBuf,
    /// The calls, as JSON.
    #[arg(long, value_name = "CALLS.json")]
    calls: PathBuf,
    /// The .npz file to write.
    #[arg(short, long, value_name = "OUT.npz")]
    output: PathBuf,
    #[command(flatten)]
    engine: EngineArgs,
}

/// One entry of CALLS.json.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    name: String,
    ids: Vec<u32>,
    #[serde(default)]
    reset: bool,
}

pub(super) fn run(args: &LogitsArgs) -> Result<(), CommandError> {
    let calls = read_calls(&args.calls)?;
    let staging = Staging::new(&args.output).map_err(CommandError::write(&args.output))?;
    let model = model::open(&args.model, &args.engine)?;
    let mut session = model.session()?;
    let file = std::fs::File::create(staging.path()).map_err(CommandError::write(&args.output))?;
    let mut archive = NpzWriter::new(io::BufWriter::new(file));
    let progress = Progress::steps("running calls", calls.len());
    for call in &calls {
        let failed = |source| CommandError::Call {
            name: call.name.clone(),
            source,
        };
        if call.reset {
            session.reset().map_err(failed)?;
        }
        let logits = session
            .append(&call.ids, LogitsFor::EveryToken)
            .map_err(failed)?;
        write_array(&mut archive, &call.name, &logits)
            .map_err(CommandError::write(&args.output))?;
        progress.step();
    }
    archive
        .zip_writer()
        .finish()
        .map_err(io::Error::from)
        .and_then(|mut file| io::Write::flush(&mut file))
        .map_err(CommandError::write(&args.output))?;
    staging
        .publish()
        .map_err(CommandError::write(&args.output))?;
    let notes = model.notes().iter().map(|note| format!("note: {note}\n"));
    print(&notes.collect::<String>())
}

fn read_calls(path: &Path) -> Result<Vec<Call>, CommandError> {
    let text = std::fs::read(path).map_err(CommandError::read(path))?;
    let calls: Vec<Call> =
        serde_json::from_slice(&text).map_err(|source| CommandError::CallsSyntax {
            path: path.to_owned(),
            source,
        })?;
    let mut names = HashSet::new();
    for call in &calls {
        let problem = if call.name.is_empty() {
            "has an empty name"
        } else if !names.insert(call.name.as_str()) {
            "appears twice; each array needs a name of its own"
        } else if call.ids.is_empty() {
            "has no ids"
        } else {
            continue;
        };
        return Err(CommandError::Calls {
            path: path.to_owned(),
            name: call.name.clone(),
            problem,
        });
    }
    Ok(calls)
}

/// Bytes that are handed to the archive at once.
const BUFFER_BYTES: usize = 1 << 16;

/// Adds an array as it is: deflating saves an eighth and takes longer than computing the logits.
fn write_array<W: io::Write + io::Seek>(
    archive: &mut NpzWriter<W>,
    name: &str,
    logits: &Logits,
) -> io::Result<()> {
    let values = logits.as_slice();
    // The header of an array takes far less than what is left here to the format's limit of 4 GiB.
    let is_large = size_of_val(values) > 1 << 31;
    let options = FileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .large_file(is_large);
    let zip = archive.zip_writer();
    zip.start_file(file_name_from_array_name(name), options)?;
    let mut buffered = io::BufWriter::with_capacity(BUFFER_BYTES, zip);
    let mut writer = npyz::WriteOptions::new()
        .default_dtype()
        .shape(&[logits.rows() as u64, logits.width() as u64])
        .writer(&mut buffered)
        .begin_nd()?;
    writer.extend(values.iter().copied())?;
    writer.finish()?;
    io::Write::flush(&mut buffered)
}
