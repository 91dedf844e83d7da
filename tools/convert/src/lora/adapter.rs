//! An adapter's folder.

use crate::onnx::map_file;
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The largest configuration that is read.
const LARGEST_CONFIG_BYTES: u64 = 1 << 20;

/// The highest rank that is believed.
const HIGHEST_RANK: usize = 4096;

/// Why an adapter cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A file cannot be read.
    #[error(
        "{} cannot be read; a LoRA adapter is a folder with adapter_config.json and adapter_model.safetensors, as PEFT saves it",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The configuration is absurdly large.
    #[error("{} has {size_bytes} bytes: that is no adapter's configuration", path.display())]
    ConfigSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
    },
    /// The configuration is not what PEFT writes.
    #[error("{} is not the configuration of a PEFT adapter", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The tensors are not in safetensors' form.
    #[error("{} is not a safetensors file", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// An adapter of another kind.
    #[error(
        "the adapter uses {what}, and Niwaki merges plain LoRA; merge it with PEFT (`merge_and_unload`) and export that"
    )]
    NotPlain {
        /// What it uses.
        what: String,
    },
    /// A tensor that cannot be used.
    #[error("the adapter's tensor `{name}` {why}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing in it.
    #[error("the adapter changes nothing: {} has no lora_A and lora_B", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// A LoRA adapter.
#[derive(Clone, Debug)]
pub struct Adapter {
    deltas: Vec<Delta>,
    blake3: String,
}

/// What becomes of one projection: `B A`, times `scale`.
#[derive(Clone, Debug)]
pub(super) struct Delta {
    /// The module's name, without what PEFT puts around it: `model.layers.3.self_attn.q_proj`.
    pub(super) module: String,
    /// `[rank, columns]`.
    pub(super) a: Arc<[f32]>,
    /// `[rows, rank]`.
    pub(super) b: Vec<f32>,
    rank: usize,
    /// `alpha / rank`, or `alpha / sqrt(rank)` (rsLoRA, Kalajdzievski 2023).
    pub(super) scale: f32,
}

impl Delta {
    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    /// Outputs of the projection.
    pub(super) fn rows(&self) -> usize {
        self.b.len() / self.rank
    }

    /// Its inputs.
    pub(super) fn columns(&self) -> usize {
        self.a.len() / self.rank
    }
}

/// What of adapter_config.json matters here; whatever changes the arithmetic and is not among it is refused.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    peft_type: Option<String>,
    r: usize,
    lora_alpha: f32,
    #[serde(default)]
    use_rslora: Option<bool>,
    #[serde(default)]
    use_dora: Option<bool>,
    #[serde(default)]
    lora_bias: Option<bool>,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    rank_pattern: Option<BTreeMap<String, usize>>,
    #[serde(default)]
    alpha_pattern: Option<BTreeMap<String, f32>>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// What changes what an adapter computes where it is set.
const VARIANTS: [&str; 6] = [
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
];

impl Adapter {
    /// Reads the adapter in a folder.
    ///
    /// # Errors
    /// [`AdapterError`], for whatever is no plain LoRA.
    pub fn open(folder: &Path) -> Result<Adapter, AdapterError> {
        let config = read_config(&folder.join("adapter_config.json"))?;
        config.check()?;
        let path = folder.join("adapter_model.safetensors");
        let read = |source| AdapterError::Read {
            path: path.clone(),
            source,
        };
        let bytes = map_file(&path).map_err(read)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|source| AdapterError::Tensors {
            path: path.clone(),
            source,
        })?;
        let deltas = config.deltas(&tensors)?;
        if deltas.is_empty() {
            return Err(AdapterError::Empty { path });
        }
        Ok(Adapter {
            deltas,
            blake3: blake3::hash(&bytes).to_hex().to_string(),
        })
    }

    pub(super) fn deltas(&self) -> &[Delta] {
        &self.deltas
    }

    /// Number of projections that it changes.
    pub fn projections(&self) -> usize {
        self.deltas.len()
    }

    /// Hash of its tensors' file.
    pub fn blake3(&self) -> &str {
        &self.blake3
    }
}

fn read_config(path: &Path) -> Result<Config, AdapterError> {
    let read = |source| AdapterError::Read {
        path: path.to_owned(),
        source,
    };
    let text = map_file(path).map_err(read)?;
    let size_bytes = text.len() as u64;
    if size_bytes > LARGEST_CONFIG_BYTES {
        return Err(AdapterError::ConfigSize {
            path: path.to_owned(),
            size_bytes,
        });
    }
    serde_json::from_slice(&text).map_err(|source| AdapterError::Config {
        path: path.to_owned(),
        source,
    })
}

impl Config {
    fn check(&self) -> Result<(), AdapterError> {
        let refuse = |what: String| Err(AdapterError::NotPlain { what });
        match self.peft_type.as_deref() {
            None | Some("LORA") => {}
            Some(other) => return refuse(format!("{other:?} in place of LoRA")),
        }
        if self.use_dora == Some(true) {
            return refuse("DoRA, which scales rows too".to_owned());
        }
        if self.lora_bias == Some(true) || self.bias.as_deref().is_some_and(|bias| bias != "none") {
            return refuse("trained biases".to_owned());
        }
        for variant in VARIANTS {
            match self.others.get(variant) {
                None | Some(Value::Null | Value::Bool(false)) => {}
                Some(_) => return refuse(format!("`{variant}`")),
            }
        }
        Ok(())
    }

    /// Rank and alpha of a module: those of the first pattern that its name ends with, as PEFT reads them.
    fn rank_and_alpha(&self, module: &str) -> (usize, f32) {
        fn of<T: Copy>(patterns: Option<&BTreeMap<String, T>>, module: &str) -> Option<T> {
            let ends = |pattern: &str| {
                let rest = module.strip_suffix(pattern.trim_start_matches('^'));
                rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            };
            let mut found = patterns?.iter().filter(|(pattern, _)| ends(pattern));
            found.next().map(|(_, value)| *value)
        }
        (
            of(self.rank_pattern.as_ref(), module).unwrap_or(self.r),
            of(self.alpha_pattern.as_ref(), module).unwrap_or(self.lora_alpha),
        )
    }

    fn deltas(&self, tensors: &SafeTensors<'_>) -> Result<Vec<Delta>, AdapterError> {
        let mut names = tensors.names();
        names.sort_unstable();
        let mut deltas = vec![];
        for name in names {
            let tensor = |why: String| AdapterError::Tensor {
                name: name.to_owned(),
                why,
            };
            if name.ends_with(".lora_B.weight") {
                // With its lora_A.
                continue;
            }
            let Some(whole) = name.strip_suffix(".lora_A.weight") else {
                return Err(AdapterError::NotPlain {
                    what: format!("a tensor `{name}`, which is neither lora_A nor lora_B"),
                });
            };
            let other = format!("{whole}.lora_B.weight");
            let b = tensors
                .tensor(&other)
                .map_err(|_| tensor(format!("has no `{other}` beside it")))?;
            let a = tensors
                .tensor(name)
                .map_err(|error| tensor(format!("cannot be read: {error}")))?;
            let module = whole.strip_prefix("base_model.model.").unwrap_or(whole);
            let (rank, alpha) = self.rank_and_alpha(module);
            let ([a_rank, _], [_, b_rank]) = (shape(&a, name)?, shape(&b, &other)?);
            if a_rank != rank || b_rank != rank || rank == 0 || rank > HIGHEST_RANK {
                return Err(tensor(format!(
                    "has rank {a_rank} and its lora_B {b_rank}, where the configuration says {rank}"
                )));
            }
            let scale = match self.use_rslora {
                Some(true) => alpha / (rank as f32).sqrt(),
                _ => alpha / rank as f32,
            };
            let (a, b) = (floats(&a, name)?, floats(&b, &other)?);
            if !scale.is_finite() {
                return Err(tensor(format!("would be scaled by {scale}")));
            }
            deltas.push(Delta {
                module: module.to_owned(),
                a: a.into(),
                b,
                rank,
                scale,
            });
        }
        if let Some(alone) = tensors.names().into_iter().find(|name| {
            name.strip_suffix(".lora_B.weight")
                .is_some_and(|whole| tensors.tensor(&format!("{whole}.lora_A.weight")).is_err())
        }) {
            return Err(AdapterError::Tensor {
                name: alone.to_owned(),
                why: "has no lora_A beside it".to_owned(),
            });
        }
        Ok(deltas)
    }
}

fn shape(tensor: &TensorView<'_>, name: &str) -> Result<[usize; 2], AdapterError> {
    tensor.shape().try_into().map_err(|_| AdapterError::Tensor {
        name: name.to_owned(),
        why: format!(
            "has the shape {:?}; LoRA of a projection has two dimensions",
            tensor.shape()
        ),
    })
}

fn floats(tensor: &TensorView<'_>, name: &str) -> Result<Vec<f32>, AdapterError> {
    let bytes = tensor.data();
    let pairs = || bytes.as_chunks::<2>().0.iter();
    let values: Vec<f32> = match tensor.dtype() {
        Dtype::F32 => {
            let fours = bytes.as_chunks::<4>().0.iter();
            fours.map(|bytes| f32::from_le_bytes(*bytes)).collect()
        }
        Dtype::F16 => pairs()
            .map(|bytes| f16::from_le_bytes(*bytes).to_f32())
            .collect(),
        Dtype::BF16 => pairs()
            .map(|bytes| bf16::from_le_bytes(*bytes).to_f32())
            .collect(),
        other => {
            return Err(AdapterError::Tensor {
                name: name.to_owned(),
                why: format!("has the type {other:?}; f32, f16 and bf16 are read"),
            });
        }
    };
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(at) => Err(AdapterError::Tensor {
            name: name.to_owned(),
            why: format!("holds {} at {at}: the adapter is broken", values[at]),
        }),
    }
}
