//! Opening what the user calls a model: a bundle, an export folder or an ONNX file.

use super::build::write_bundle;
use super::error::CommandError;
use super::staging::Scratch;
use clap::{Args, ValueEnum};
use niwaki::{Engine, KvElement, OpenOptions, Session, TextError, Tokenizer};
use niwaki_bundle::MAGIC;
use niwaki_convert::build::Weights;
use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// Options of every command that runs a model.
#[derive(Args, Default)]
pub(super) struct EngineArgs {
    /// Threads to compute with; by default as many as there are fast cores.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// How keys and values are kept; by default as the engine chooses.
    #[arg(long, value_enum)]
    kv: Option<KeptAs>,
}

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum KeptAs {
    /// Integers of 8 bits with scales.
    I8,
    /// Half precision.
    F16,
    /// Full precision.
    F32,
}

impl KeptAs {
    pub(super) fn element(self) -> KvElement {
        match self {
            KeptAs::I8 => KvElement::I8,
            KeptAs::F16 => KvElement::F16,
            KeptAs::F32 => KvElement::F32,
        }
    }
}

impl EngineArgs {
    /// Computing with this many threads.
    pub(super) fn with_threads(threads: Option<NonZeroUsize>) -> EngineArgs {
        EngineArgs { threads, kv: None }
    }

    /// Threads to compute with; 0 for as many as there are fast cores.
    pub(super) fn threads(&self) -> usize {
        self.threads.map_or(0, NonZeroUsize::get)
    }

    /// For the reference that a model is compared with: keys and values are kept as the engine chooses, so that the
    /// comparison shows what keeping them otherwise costs.
    pub(super) fn of_reference(&self) -> EngineArgs {
        EngineArgs::with_threads(self.threads)
    }

    fn options(&self) -> OpenOptions {
        OpenOptions::default()
            .with_threads(self.threads())
            .with_kv(self.kv.map(KeptAs::element))
    }
}

/// An opened model and where it came from.
pub(super) struct Model {
    path: PathBuf,
    bundle: PathBuf,
    engine: Engine,
    /// What is not computed as the export computes it.
    notes: Vec<String>,
    /// Holds the bundle when the model is ONNX.
    _scratch: Option<Scratch>,
}

/// Opens a model. ONNX is lowered to a temporary bundle that computes what the ONNX operators mean: all in f32,
/// quantized weights expanded.
pub(super) fn open(path: &Path, args: &EngineArgs) -> Result<Model, CommandError> {
    open_with(path, None, args, Weights::AsExported)
}

/// As [`open`]; an ONNX file's configuration and tokenizer come from another folder.
pub(super) fn open_beside(
    path: &Path,
    companions: &Path,
    args: &EngineArgs,
) -> Result<Model, CommandError> {
    open_with(path, Some(companions), args, Weights::AsExported)
}

/// Opens a model; ONNX is lowered to a temporary bundle with these weights.
pub(super) fn open_with(
    path: &Path,
    companions: Option<&Path>,
    args: &EngineArgs,
    weights: Weights,
) -> Result<Model, CommandError> {
    let (bundle, scratch, notes) = match kind(path)? {
        Kind::Bundle => (path.to_owned(), None, vec![]),
        Kind::Onnx => {
            let scratch = Scratch::new().map_err(CommandError::write(&std::env::temp_dir()))?;
            let bundle = scratch.path().join("model.niwaki");
            let built = write_bundle(path, companions, &bundle, weights)?;
            (bundle, Some(scratch), built.notes)
        }
    };
    let engine = Engine::open(&bundle, &args.options()).map_err(|source| CommandError::Open {
        path: path.to_owned(),
        source,
    })?;
    Ok(Model {
        path: path.to_owned(),
        bundle,
        engine,
        notes,
        _scratch: scratch,
    })
}

impl Model {
    /// What the user called it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The bundle that it was opened from.
    pub(super) fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// What messages call it.
    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// What is not computed as the export computes it, where the model is ONNX: a sentence each.
    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// A session with an empty context.
    pub(super) fn session(&self) -> Result<Session, CommandError> {
        self.engine
            .session()
            .map_err(|source| CommandError::Session {
                path: self.path.clone(),
                source,
            })
    }

    pub(super) fn tokenizer(&self) -> Result<&Tokenizer, CommandError> {
        self.engine
            .tokenizer()
            .ok_or_else(|| CommandError::NoTokenizer {
                path: self.path.clone(),
            })
    }

    /// The model's beginning-of-text token, if it has one.
    pub(super) fn bos(&self) -> Option<u32> {
        self.engine.generation_defaults().bos_token
    }

    /// Maps a failure of its tokenizer.
    pub(super) fn cannot_encode(&self) -> impl FnOnce(TextError) -> CommandError + use<> {
        let path = self.path.clone();
        move |source| CommandError::Encode { path, source }
    }

    /// The tokens of a prompt: with `bos`, as the model begins texts.
    pub(super) fn encode_prompt(&self, prompt: &str, bos: bool) -> Result<Vec<u32>, CommandError> {
        encode_prompt(&self.path, self.tokenizer()?, self.bos(), prompt, bos)
    }
}

/// The tokens of a prompt for the model at `path`, which has this beginning-of-text token. With `add_special` the
/// tokenizer begins the text as the model wants it, and an empty prompt becomes the token that begins texts.
pub(super) fn encode_prompt(
    path: &Path,
    tokenizer: &Tokenizer,
    bos: Option<u32>,
    prompt: &str,
    add_special: bool,
) -> Result<Vec<u32>, CommandError> {
    let mut tokens =
        tokenizer
            .encode(prompt, add_special)
            .map_err(|source| CommandError::Encode {
                path: path.to_owned(),
                source,
            })?;
    if tokens.is_empty() && add_special {
        tokens.extend(bos);
    }
    if tokens.is_empty() {
        return Err(CommandError::EmptyPrompt {
            path: path.to_owned(),
        });
    }
    Ok(tokens)
}

/// What lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A .niwaki bundle.
    Bundle,
    /// An ONNX file or a folder that should hold one.
    Onnx,
}

/// Looks at a path: folders and .onnx files are exports, everything else has to begin as a bundle does.
pub(super) fn kind(path: &Path) -> Result<Kind, CommandError> {
    let metadata = std::fs::metadata(path).map_err(CommandError::read(path))?;
    if metadata.is_dir()
        || path
            .extension()
            .is_some_and(|extension| extension == "onnx")
    {
        return Ok(Kind::Onnx);
    }
    let mut begins = Vec::with_capacity(MAGIC.len());
    File::open(path)
        .and_then(|file| file.take(MAGIC.len() as u64).read_to_end(&mut begins))
        .map_err(CommandError::read(path))?;
    // A bundle by name goes to the engine, which says what is wrong with it.
    if begins == MAGIC
        || path
            .extension()
            .is_some_and(|extension| extension == "niwaki")
    {
        Ok(Kind::Bundle)
    } else {
        Err(CommandError::NotAModel {
            path: path.to_owned(),
        })
    }
}
