//! What `niwaki build` says of what it built.

use crate::commands::error::CommandError;
use crate::commands::prune::Pruned;
use crate::commands::{plan, print, print_json};
use crate::terminal;
use niwaki_convert::build::{Built, Quality};
use serde::Serialize;
use std::path::Path;

/// What `--json` prints.
#[derive(Serialize)]
struct Summary<'a> {
    #[serde(flatten)]
    built: &'a Built,
    #[serde(skip_serializing_if = "Option::is_none")]
    pruned: Option<&'a Pruned>,
    warnings: &'a [String],
}

/// Tells what was built.
pub(in crate::commands) fn print_built(
    output: &Path,
    built: &Built,
    pruned: Option<&Pruned>,
    warnings: &[String],
    json: bool,
) -> Result<(), CommandError> {
    if json {
        return print_json(&Summary {
            built,
            pruned,
            warnings,
        });
    }
    let mut text = format!(
        "{}: {} parameters, {}, {}\n\n{}",
        output.display(),
        terminal::count(built.parameters),
        built.weights,
        terminal::bytes(built.size_bytes),
        plan::table(&built.plan)
    );
    let resumed = match built.resumed {
        0 => String::new(),
        count => {
            format!("went on with {count} matrices that a build before this one had quantized\n")
        }
    };
    let measured = built.quality.as_ref().map(quality).unwrap_or_default();
    let pruned = pruned.map(ToString::to_string).unwrap_or_default();
    let notes = built
        .notes
        .iter()
        .chain(&built.missing)
        .map(|note| format!("note: {note}\n"));
    let warnings = warnings
        .iter()
        .map(|warning| format!("warning: {warning}\n"));
    let rest: String = [resumed, measured, pruned]
        .into_iter()
        .chain(notes)
        .chain(warnings)
        .collect();
    if !rest.is_empty() {
        text.push_str(&format!("\n{rest}"));
    }
    print(&text)
}

/// What quantization costs, in words.
fn quality(quality: &Quality) -> String {
    let error = quality.kl_nats_standard_error;
    format!(
        "on {} held-out tokens: KL {:.4} nats{}, the most likely token is the float model's in {:.1} %,\n\
         perplexity {:.2}, the float model's is {:.2}: {}\n",
        terminal::count(quality.tokens as u64),
        quality.kl_nats,
        error
            .map(|error| format!(" ± {error:.4}"))
            .unwrap_or_default(),
        100.0 * quality.top1_agreement,
        quality.perplexity,
        quality.reference_perplexity,
        terminal::percent_change(quality.perplexity, quality.reference_perplexity),
    )
}
