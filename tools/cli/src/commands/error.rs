//! Why a command failed, and what the user can do about it.

use niwaki_convert::build::BuildError;
use niwaki_convert::evaluate::EvaluateError;
use niwaki_convert::lora::AdapterError;
use niwaki_convert::lower::LeftOver;
use niwaki_convert::prune::PruneError;
use niwaki_convert::quantize::QuantizeError;
use niwaki_route::{BackendFailure, CloudError, Refusal, RouteFailure};
use std::io;
use std::path::{Path, PathBuf};

/// Failure of a command. The message says what was being done, the sources why it did not work.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// Stdout is gone or full.
    #[error("cannot write to stdout")]
    Stdout(#[source] io::Error),
    /// A result could not be turned into JSON.
    #[error("cannot write the result as JSON")]
    Json(#[source] serde_json::Error),
    /// An input could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// An output could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A text is not UTF-8.
    #[error("{} is not UTF-8 text: the byte at offset {offset} does not fit", path.display())]
    NotText { path: PathBuf, offset: usize },
    /// A text has too few tokens to predict one.
    #[error("{} has nothing to predict: it holds too few tokens ({tokens})", path.display())]
    NothingToScore { path: PathBuf, tokens: usize },
    /// A window is longer than a context.
    #[error("{} holds {context_tokens} tokens at once, a window would have {window_tokens}", path.display())]
    WindowTooLong {
        path: PathBuf,
        window_tokens: usize,
        context_tokens: usize,
    },
    /// Two models read the same text as different tokens.
    #[error(
        "{} and {} turn the text into different tokens: only models with the same tokenizer can be compared",
        path.display(), reference.display()
    )]
    OtherTokenizer { path: PathBuf, reference: PathBuf },
    /// A model could not be measured.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    /// The model is neither a bundle, nor an export folder, nor ONNX.
    #[error("{} is not a model", path.display())]
    NotAModel { path: PathBuf },
    /// Only bundles are measured.
    #[error("{} is an ONNX model, not a bundle", path.display())]
    NotABundle { path: PathBuf },
    /// A test needs a longer context than the model has.
    #[error("the tests take a context of {tokens} tokens, {} has {context_tokens}", path.display())]
    TestTooLong {
        path: PathBuf,
        tokens: usize,
        context_tokens: usize,
    },
    /// The bundle was refused.
    #[error("cannot open {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: niwaki::OpenError,
    },
    /// The model has no tokenizer, so it reads ids but no text.
    #[error("{} has no tokenizer", path.display())]
    NoTokenizer { path: PathBuf },
    /// The model's tokenizer would not encode a text.
    #[error("the tokenizer of {} does not encode this text", path.display())]
    Encode {
        path: PathBuf,
        #[source]
        source: niwaki::TextError,
    },
    /// The model has no beginning-of-text token, and one was asked for.
    #[error("{} has no beginning-of-text token", path.display())]
    NoBos { path: PathBuf },
    /// There is no token to start from.
    #[error("the prompt is empty, and {} has no beginning-of-text token to start from", path.display())]
    EmptyPrompt { path: PathBuf },
    /// No bundle could be made of the model.
    #[error("cannot make a bundle of {}", path.display())]
    Build {
        path: PathBuf,
        #[source]
        source: Box<BuildError>,
    },
    /// An adapter cannot be used.
    #[error("cannot use the LoRA adapter {}", path.display())]
    Adapter {
        path: PathBuf,
        #[source]
        source: AdapterError,
    },
    /// The model could not be quantized.
    #[error("cannot quantize {}", path.display())]
    Quantize {
        path: PathBuf,
        #[source]
        source: QuantizeError,
    },
    /// The model could not be pruned.
    #[error("cannot prune {}", path.display())]
    Prune {
        path: PathBuf,
        #[source]
        source: Box<PruneError>,
    },
    /// How much to prune, and not whether.
    #[error(
        "--sparsity, --keep, --calibration and --calibration-tokens say how to prune, and --prune METHOD is missing"
    )]
    AmountWithoutMethod,
    /// A text that nothing is measured on.
    #[error("nothing that was asked for measures on a text, and a calibration was given")]
    UnusedCalibration,
    /// A pattern of zeros for parts that go.
    #[error("--keep says how zeros lie, and pruning {method} sets no weights to zero")]
    KeepOfParts { method: &'static str },
    /// A model of other sizes beside the one that it was made of.
    #[error("{} has the configuration of the model that is pruned, and the result needs another", folder.display())]
    OtherConfiguration { folder: PathBuf },
    /// Nothing to measure on.
    #[error("{method} needs a text to measure on")]
    NoCalibration { method: &'static str },
    /// Nothing was measured when the bundle was built.
    #[error("{} has no quality report", path.display())]
    NoReport { path: PathBuf },
    /// The report is none that this version understands.
    #[error("the quality report of {} cannot be read: {reason}", path.display())]
    Report { path: PathBuf, reason: String },
    /// Something in a recipe is not understood.
    #[error("the recipe {} is not understood", path.display())]
    Recipe {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A form of the model with float weights could not be written.
    #[error("the model cannot be written with its weights as floats")]
    FloatForm {
        #[source]
        source: niwaki_bundle::write::WriteError,
    },
    /// The model would not run.
    #[error("{} does not run", path.display())]
    Session {
        path: PathBuf,
        #[source]
        source: niwaki::SessionError,
    },
    /// Generation stopped.
    #[error("generation stopped")]
    Generate(#[source] niwaki::GenerateError),
    /// There is no chat template that works.
    #[error("cannot chat with the template of {}", path.display())]
    Template {
        path: PathBuf,
        #[source]
        source: niwaki::TemplateError,
    },
    /// The prompt was not answered, neither here nor elsewhere.
    #[error(transparent)]
    Route(#[from] niwaki_route::RouteError),
    /// The endpoint cannot be used.
    #[error("cannot use the endpoint")]
    Endpoint(#[source] niwaki_route::CloudError),
    /// The calls are not the JSON they should be.
    #[error("{} is not a list of calls", path.display())]
    CallsSyntax {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// A call makes no sense.
    #[error("{}: call \"{name}\" {problem}", path.display())]
    Calls {
        path: PathBuf,
        name: String,
        problem: &'static str,
    },
    /// The model refused a call.
    #[error("call \"{name}\" does not run")]
    Call {
        name: String,
        #[source]
        source: niwaki::SessionError,
    },
}

impl CommandError {
    /// Maps a failure to read `path`.
    pub(super) fn read(path: &Path) -> impl FnOnce(io::Error) -> CommandError + use<> {
        let path = path.to_owned();
        move |source| CommandError::Read { path, source }
    }

    /// Maps a failure to write `path`.
    pub(super) fn write(path: &Path) -> impl FnOnce(io::Error) -> CommandError + use<> {
        let path = path.to_owned();
        move |source| CommandError::Write { path, source }
    }

    /// The nodes that did not lower, when that is what failed.
    pub(super) fn not_lowered(&self) -> Option<&[LeftOver]> {
        match self {
            CommandError::Build { source, .. } => source.not_lowered(),
            _ => None,
        }
    }

    /// Whether the reader of stdout went away, which is no failure.
    pub(super) fn is_broken_pipe(&self) -> bool {
        matches!(self, CommandError::Stdout(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// What the user can do, where that is not plain from the message.
    pub(super) fn hint(&self) -> Option<String> {
        let hint = match self {
            CommandError::NotAModel { .. } => {
                "give a .niwaki bundle, an .onnx file, or the folder an exporter wrote (with model.onnx)"
            }
            CommandError::NoTokenizer { .. } => {
                "put tokenizer.json beside the model and build the bundle again"
            }
            CommandError::NotABundle { .. } => "make one with niwaki build",
            CommandError::TestTooLong { .. } => "ask for shorter prompts or a smaller depth",
            CommandError::Template {
                source: niwaki::TemplateError::Missing,
                ..
            } => "give a template with --template FILE, or continue a text with `niwaki run`",
            CommandError::NoCalibration { .. } => {
                "give --calibration FILE, or prune by magnitude or quantize by rtn, which need no text"
            }
            CommandError::NoReport { .. } => {
                "build it with a calibrated method, such as gptq, or measure it with niwaki eval"
            }
            CommandError::KeepOfParts { .. } => "say how much should go with --sparsity",
            CommandError::OtherConfiguration { .. } => "write it into another folder",
            CommandError::UnusedCalibration => {
                "leave out --calibration and --calibration-tokens, prune by wanda or sparsegpt, or quantize to int4 or int8"
            }
            CommandError::Quantize {
                source:
                    QuantizeError::NothingQuantized {
                        can_be_asked_for: true,
                        ..
                    },
                ..
            } => {
                "--weights quantizes projections that the export left in floats, --embedding the embedding"
            }
            CommandError::NoBos { .. } => "choose --bos none",
            CommandError::WindowTooLong { .. } => "give a smaller --window",
            CommandError::NothingToScore { .. } => {
                "give a longer text, or ask for less with --min-context"
            }
            CommandError::Evaluate(EvaluateError::NotFinite { .. }) => {
                "build it again from its export; if the export itself gives NaN in another runtime, its weights are damaged"
            }
            CommandError::CallsSyntax { .. } => {
                "it should look like [{\"name\": \"prefill\", \"ids\": [1, 2, 3], \"reset\": true}]"
            }
            CommandError::Endpoint(CloudError::PlaintextForbidden { .. }) => {
                "--cloud-allow-plaintext allows it"
            }
            CommandError::Route(error) => match &error.failure {
                RouteFailure::Failed(BackendFailure::Cloud(CloudError::Unauthorized {
                    ..
                })) => "put the key into NIWAKI_CLOUD_API_KEY",
                RouteFailure::Refused(Refusal::NoEndpoint) => {
                    "give --cloud-endpoint and --cloud-model"
                }
                _ => return None,
            },
            CommandError::Write { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "the folder has to exist"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
