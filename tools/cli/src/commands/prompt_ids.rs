//! `niwaki run --print-ids`: the tokens that a prompt becomes.

use super::error::CommandError;
use super::model::{self, Kind, encode_prompt};
use super::{print, print_json};
use niwaki::{OpenError, Tokenizer};
use niwaki_bundle::{Bundle, Verify};
use niwaki_convert::export::Export;
use serde::Serialize;
use std::path::Path;

/// What `--json` prints.
#[derive(Serialize)]
struct PromptIds {
    ids: Vec<u32>,
    /// Each token as the vocabulary spells it.
    pieces: Vec<String>,
}

/// Prints the tokens of a prompt for the model at `path`, which is not run. With `bos` the text begins as the model wants
/// it.
pub(super) fn print_ids(
    path: &Path,
    prompt: &str,
    bos: bool,
    json: bool,
) -> Result<(), CommandError> {
    let (tokenizer, bos_token) = tokenizer(path)?;
    let ids = encode_prompt(path, &tokenizer, bos_token, prompt, bos)?;
    let pieces = ids
        .iter()
        .map(|id| tokenizer.piece(*id).unwrap_or_default());
    let tokens = PromptIds {
        pieces: pieces.collect(),
        ids,
    };
    if json {
        return print_json(&tokens);
    }
    let widest = tokens.ids.iter().max().map_or(1, |id| id.to_string().len());
    let mut lines = String::new();
    for (id, piece) in tokens.ids.iter().zip(&tokens.pieces) {
        let piece = serde_json::to_string(piece).map_err(CommandError::Json)?;
        lines.push_str(&format!("{id:>widest$}  {piece}\n"));
    }
    print(&lines)
}

/// A model's tokenizer and its beginning-of-text token. Weights are not looked at.
fn tokenizer(path: &Path) -> Result<(Tokenizer, Option<u32>), CommandError> {
    let (tokenizer, bos_token) = match model::kind(path)? {
        Kind::Bundle => of_bundle(path).map_err(|source| CommandError::Open {
            path: path.to_owned(),
            source,
        })?,
        Kind::Onnx => {
            let export = Export::open(path).map_err(|source| CommandError::Build {
                path: path.to_owned(),
                source: Box::new(source.into()),
            })?;
            let tokenizer = export
                .text_tokenizer()
                .map_err(|source| CommandError::Encode {
                    path: path.to_owned(),
                    source,
                })?;
            (tokenizer, export.begin_token_id())
        }
    };
    let tokenizer = tokenizer.ok_or_else(|| CommandError::NoTokenizer {
        path: path.to_owned(),
    })?;
    Ok((tokenizer, bos_token))
}

fn of_bundle(path: &Path) -> Result<(Option<Tokenizer>, Option<u32>), OpenError> {
    let bundle = Bundle::open(path, Verify::Structure)?;
    let defaults = bundle.generation_defaults();
    let json = bundle.tokenizer_json()?;
    let tokenizer = json.map(|json| Tokenizer::from_bytes(&json)).transpose()?;
    let tokenizer = tokenizer.map(|tokenizer| tokenizer.with_first_token(defaults.first_token()));
    Ok((tokenizer, defaults.bos_token))
}
