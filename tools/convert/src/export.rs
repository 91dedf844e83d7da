//! An export folder: the ONNX file and what lies beside it.

mod missing;

use crate::lower::ModelFacts;
use niwaki::{TextError, Tokenizer};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Largest configuration file that is read, in bytes.
const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// Largest tokenizer file that is read, in bytes.
const TOKENIZER_BYTES_MAX: u64 = 256 << 20;

/// What is wrong with an export folder.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// No model.
    #[error("{} holds no ONNX model; give the folder or the .onnx file that an exporter wrote", .0.display())]
    NoModel(PathBuf),
    /// More than one candidate.
    #[error("{} holds several ONNX models ({names}); give the one you mean as a file", folder.display())]
    Ambiguous {
        /// The folder.
        folder: PathBuf,
        /// The candidates.
        names: String,
    },
    /// A file could not be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is too large to be what its name says.
    #[error("{} has {size_bytes} bytes, more than the {limit_bytes} that such a file may have", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// A folder was given for configuration and tokenizer, and has neither.
    #[error(
        "{} holds none of config.json, genai_config.json, tokenizer.json and the files that go with them", .0.display()
    )]
    NoCompanions(PathBuf),
    /// A text is not UTF-8.
    #[error("{} is not UTF-8 text", .0.display())]
    NotText(PathBuf),
    /// A configuration file is not JSON.
    #[error("{} is not valid JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// The files of one export.
#[derive(Clone, Debug, Default)]
pub struct Export {
    /// The ONNX file.
    pub model: PathBuf,
    /// `config.json`, `Null` when absent.
    pub config: Value,
    /// `genai_config.json` of onnxruntime-genai, `Null` when absent.
    pub genai_config: Value,
    /// `generation_config.json`, `Null` when absent.
    pub generation_config: Value,
    /// `tokenizer_config.json`, `Null` when absent.
    pub tokenizer_config: Value,
    /// The bytes of `tokenizer.json`.
    pub tokenizer: Option<Vec<u8>>,
    /// The chat template, from `chat_template.jinja` or the tokenizer's configuration.
    pub chat_template: Option<String>,
    /// Where all but the model was looked for.
    folders: Vec<PathBuf>,
}

impl Export {
    /// Finds the files of an export: `path` is its folder or its ONNX file. What is not beside a model in a folder called
    /// `onnx` is looked for in the folder above, where repositories with several precisions keep it.
    pub fn open(path: &Path) -> Result<Export, ExportError> {
        let model = if path.is_dir() {
            find_model(path)?
        } else {
            path.to_owned()
        };
        let beside = model.parent().map(Path::to_owned).unwrap_or_default();
        let mut folders = vec![beside.clone()];
        if path.is_dir() && beside != path {
            folders.push(path.to_owned());
        } else if let Some(above) = above(&beside) {
            folders.push(above);
        }
        Ok(Export {
            model,
            ..Export::beside(&folders)?
        })
    }

    /// This model with what lies in `folder` in place of what lies beside it.
    ///
    /// # Errors
    /// As [`companions`](Self::companions).
    pub fn with_companions(self, folder: &Path) -> Result<Export, ExportError> {
        Ok(Export {
            model: self.model,
            ..Export::companions(folder)?
        })
    }

    /// What lies in `folder` apart from the model, or above it if it is called `onnx`.
    ///
    /// # Errors
    /// [`ExportError::NoCompanions`] when nothing does, and as [`open`](Self::open).
    pub fn companions(folder: &Path) -> Result<Export, ExportError> {
        let folders: Vec<PathBuf> = [folder.to_owned()]
            .into_iter()
            .chain(above(folder))
            .collect();
        let export = Export::beside(&folders)?;
        let jsons = [
            &export.config,
            &export.genai_config,
            &export.generation_config,
            &export.tokenizer_config,
        ];
        if jsons.into_iter().all(Value::is_null)
            && export.tokenizer.is_none()
            && export.chat_template.is_none()
        {
            return Err(ExportError::NoCompanions(folder.to_owned()));
        }
        Ok(export)
    }

    /// The name of the folder that the model came in.
    pub fn folder_name(&self) -> Option<String> {
        let folder = std::path::absolute(self.model.parent()?).ok()?;
        let folder = above(&folder).unwrap_or(folder);
        Some(folder.file_name()?.to_string_lossy().into_owned())
    }

    /// Whether its files are looked for in this folder.
    pub fn is_in(&self, folder: &Path) -> bool {
        let absolute = |path: &Path| {
            let path = if path.as_os_str().is_empty() {
                Path::new(".")
            } else {
                path
            };
            std::fs::canonicalize(path).ok()
        };
        let folder = absolute(folder);
        let mut folders = self.folders.iter().map(|folder| absolute(folder));
        folder.is_some() && folders.any(|own| own == folder)
    }

    /// The files beside the model that runtimes read and that do not depend on its sizes: tokenizer, chat template, settings.
    pub fn companion_files(&self) -> Vec<PathBuf> {
        const NAMES: [&str; 8] = [
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
            "vocab.json",
            "merges.txt",
            "chat_template.jinja",
        ];
        self.find_all(&NAMES)
    }

    fn beside(folders: &[PathBuf]) -> Result<Export, ExportError> {
        let find = |name: &str| {
            folders
                .iter()
                .map(|folder| folder.join(name))
                .find(|path| path.is_file())
        };
        let json = |name: &str| find(name).map_or(Ok(Value::Null), |path| read_json(&path));
        let tokenizer_config = json("tokenizer_config.json")?;
        let tokenizer = match find("tokenizer.json") {
            Some(path) => Some(read_bounded(&path, TOKENIZER_BYTES_MAX)?),
            None => None,
        };
        let chat_template = match find("chat_template.jinja") {
            Some(path) => {
                let bytes = read_bounded(&path, CONFIG_BYTES_MAX)?;
                Some(String::from_utf8(bytes).map_err(|_| ExportError::NotText(path))?)
            }
            None => default_template(&tokenizer_config["chat_template"]),
        };
        Ok(Export {
            model: PathBuf::new(),
            config: json("config.json")?,
            genai_config: json("genai_config.json")?,
            generation_config: json("generation_config.json")?,
            tokenizer_config,
            tokenizer,
            chat_template,
            folders: folders.to_vec(),
        })
    }

    /// The files that were read beside the model.
    pub fn files_beside(&self) -> Vec<PathBuf> {
        const NAMES: [&str; 6] = [
            "config.json",
            "genai_config.json",
            "generation_config.json",
            "tokenizer_config.json",
            "tokenizer.json",
            "chat_template.jinja",
        ];
        self.find_all(&NAMES)
    }

    /// Those of the files of these names that there are, in the first folder that has one.
    fn find_all(&self, names: &[&str]) -> Vec<PathBuf> {
        let found = names.iter().filter_map(|name| {
            let mut paths = self.folders.iter().map(|folder| folder.join(name));
            paths.find(|path| path.is_file())
        });
        found.collect()
    }

    /// What the configuration says about the model.
    pub fn facts(&self) -> ModelFacts {
        let text = match &self.config["text_config"] {
            Value::Null => &self.config,
            nested => nested,
        };
        let decoder = &self.genai_config["model"]["decoder"];
        let size = |value: &Value| value.as_u64().and_then(|size| usize::try_from(size).ok());
        let first = |names: &[&str]| names.iter().find_map(|name| size(&text[*name]));
        let heads =
            first(&["num_attention_heads", "n_head"]).or(size(&decoder["num_attention_heads"]));
        let hidden = first(&["hidden_size", "n_embd"]).or(size(&decoder["hidden_size"]));
        let computed = hidden
            .zip(heads)
            .and_then(|(hidden, heads)| hidden.checked_div(heads));
        let mut sizes = BTreeSet::new();
        for value in [text, decoder] {
            if let Value::Object(fields) = value {
                sizes.extend(fields.values().filter_map(size));
            }
        }
        let head_dim = first(&["head_dim"])
            .or(size(&decoder["head_size"]))
            .or(computed);
        if let (Some(heads), Some(head_dim)) = (heads, head_dim) {
            sizes.extend([head_dim, head_dim / 2, heads * head_dim]);
        }
        ModelFacts {
            context_tokens: first(&["max_position_embeddings", "n_positions", "n_ctx"])
                .or(size(&self.genai_config["model"]["context_length"])),
            kv_heads: first(&["num_key_value_heads"])
                .or(size(&decoder["num_key_value_heads"]))
                .or(heads),
            head_dim,
            window: first(&["sliding_window"]).or(size(&decoder["sliding_window"]["window_size"])),
            sizes,
        }
    }

    /// Token ids that end a text, without repetition.
    pub fn end_token_ids(&self) -> Vec<u32> {
        let mut ids = vec![];
        let sources = [
            &self.generation_config["eos_token_id"],
            &self.config["eos_token_id"],
            &self.genai_config["model"]["eos_token_id"],
        ];
        for source in sources {
            let found: Vec<u32> = match source {
                Value::Array(values) => values.iter().filter_map(token_id).collect(),
                value => token_id(value).into_iter().collect(),
            };
            for id in found {
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
        ids
    }

    /// The beginning-of-text token's id; none where the tokenizer's configuration says that there is none.
    pub fn begin_token_id(&self) -> Option<u32> {
        let own = self.tokenizer_config.get("bos_token");
        if own.is_some_and(Value::is_null) {
            return None;
        }
        [
            &self.generation_config["bos_token_id"],
            &self.config["bos_token_id"],
            &self.genai_config["model"]["bos_token_id"],
        ]
        .into_iter()
        .find_map(token_id)
    }

    /// Whether the tokenizer's configuration puts the beginning-of-text token before every text. Where it does not, the
    /// post-processor of tokenizer.json may; a configuration that says no takes nothing away from that, as in
    /// transformers 5.
    pub fn adds_begin_token(&self) -> bool {
        self.tokenizer_config["add_bos_token"] == true && self.begin_token_id().is_some()
    }

    /// The tokenizer, which begins texts as the bundle's will.
    ///
    /// # Errors
    /// When tokenizer.json is not one.
    pub fn text_tokenizer(&self) -> Result<Option<Tokenizer>, TextError> {
        let json = self.tokenizer.as_deref();
        let tokenizer = json.map(Tokenizer::from_bytes).transpose()?;
        let first = self.begin_token_id().filter(|_| self.adds_begin_token());
        Ok(tokenizer.map(|tokenizer| tokenizer.with_first_token(first)))
    }

    /// The special tokens' texts by the names that chat templates know them by.
    pub fn special_tokens(&self) -> BTreeMap<String, String> {
        let text = |name: &str| {
            let token = &self.tokenizer_config[name];
            token.as_str().or_else(|| token["content"].as_str())
        };
        [
            "bos_token",
            "eos_token",
            "unk_token",
            "pad_token",
            "sep_token",
        ]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), text(name)?.to_owned())))
        .collect()
    }

    /// Licences that the export names.
    pub fn licences(&self) -> Vec<String> {
        [&self.config["license"], &self.config["license_name"]]
            .into_iter()
            .filter_map(|value| value.as_str().map(str::to_owned))
            .collect()
    }

    /// The architecture's name.
    pub fn architecture(&self) -> String {
        let name = [
            &self.config["model_type"],
            &self.genai_config["model"]["type"],
        ];
        name.into_iter()
            .find_map(Value::as_str)
            .unwrap_or("unknown")
            .to_owned()
    }
}

/// The folder above one that is called `onnx`.
fn above(folder: &Path) -> Option<PathBuf> {
    let folder = std::path::absolute(folder).ok()?;
    let is_onnx = folder.file_name().is_some_and(|name| name == "onnx");
    is_onnx
        .then(|| folder.parent().map(Path::to_owned))
        .flatten()
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// The template itself, or the one called "default" of a list of named ones.
fn default_template(value: &Value) -> Option<String> {
    match value {
        Value::String(template) => Some(template.clone()),
        Value::Array(named) => named
            .iter()
            .find(|entry| entry["name"] == "default")
            .and_then(|entry| entry["template"].as_str())
            .map(str::to_owned),
        _ => None,
    }
}

/// The decoder's ONNX file in a folder, or in its `onnx` subfolder.
fn find_model(folder: &Path) -> Result<PathBuf, ExportError> {
    const NAMES: [&str; 4] = [
        "model.onnx",
        "decoder_model_merged.onnx",
        "decoder_with_past_model.onnx",
        "decoder_model.onnx",
    ];
    for place in [folder.to_owned(), folder.join("onnx")] {
        for name in NAMES {
            let path = place.join(name);
            if path.is_file() {
                return Ok(path);
            }
        }
        let Ok(entries) = std::fs::read_dir(&place) else {
            continue;
        };
        let mut found: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "onnx")
            })
            .collect();
        found.sort();
        match found.as_slice() {
            [] => {}
            [only] => return Ok(only.clone()),
            several => {
                let names: Vec<String> = several
                    .iter()
                    .filter_map(|path| {
                        path.file_name()
                            .map(|name| name.to_string_lossy().into_owned())
                    })
                    .collect();
                return Err(ExportError::Ambiguous {
                    folder: place,
                    names: names.join(", "),
                });
            }
        }
    }
    Err(ExportError::NoModel(folder.to_owned()))
}

fn read_bounded(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, ExportError> {
    let failed = |source| ExportError::Read {
        path: path.to_owned(),
        source,
    };
    let size_bytes = std::fs::metadata(path).map_err(failed)?.len();
    if size_bytes > limit_bytes {
        return Err(ExportError::TooLarge {
            path: path.to_owned(),
            size_bytes,
            limit_bytes,
        });
    }
    std::fs::read(path).map_err(failed)
}

fn read_json(path: &Path) -> Result<Value, ExportError> {
    let bytes = read_bounded(path, CONFIG_BYTES_MAX)?;
    serde_json::from_slice(&bytes).map_err(|source| ExportError::Json {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn export(tokenizer_config: Value) -> Export {
        Export {
            config: json!({ "bos_token_id": 7, "eos_token_id": [2, 3] }),
            generation_config: json!({ "eos_token_id": 3 }),
            tokenizer_config,
            ..Export::default()
        }
    }

    #[test]
    fn the_token_that_begins_texts_is_the_configured_one_unless_the_tokenizer_has_none() {
        for (tokenizer_config, token) in [
            (Value::Null, Some(7)),
            (json!({ "bos_token": "<s>" }), Some(7)),
            (json!({ "add_bos_token": false }), Some(7)),
            (json!({ "bos_token": null }), None),
        ] {
            let export = export(tokenizer_config);
            assert_eq!(export.begin_token_id(), token);
            assert!(!export.adds_begin_token());
        }
        let without_any = json!({ "add_bos_token": true, "bos_token": null });
        assert!(!export(without_any).adds_begin_token());
        assert!(export(json!({ "add_bos_token": true })).adds_begin_token());
    }

    /// A post-processor that puts token 0 before every text.
    fn puts_first() -> Value {
        json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}
        })
    }

    /// How these models' files say it; what transformers 4.57 makes of such files. The last one is where its classes differ:
    /// Llama's takes the token away, the general one and all of version 5 leave it.
    #[test]
    fn a_text_begins_as_in_transformers() {
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
        let bytes_then_first = json!({"type": "Sequence", "processors": [bytes, puts_first()]});
        let nothing = json!({
            "type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {}
        });
        let flag = |add: bool| json!({"bos_token": "<s>", "add_bos_token": add});
        let without_flag = json!({"bos_token": "<s>"});
        for (model, post_processor, tokenizer_config, begins) in [
            ("Llama 2, Mistral, Gemma", puts_first(), flag(true), true),
            ("Llama 3", bytes_then_first, without_flag.clone(), true),
            ("Phi-3", nothing, flag(false), false),
            ("GPT-2", bytes.clone(), without_flag.clone(), false),
            (
                "Qwen2, Qwen3",
                bytes.clone(),
                json!({"bos_token": null, "add_bos_token": false}),
                false,
            ),
            ("SmolLM2", Value::Null, without_flag, false),
            ("DeepSeek", bytes, flag(true), true),
            ("another", puts_first(), flag(false), true),
        ] {
            let tokenizer = json!({
                "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
                "post_processor": post_processor, "decoder": null,
                "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                                  "normalized": false, "special": true}],
                "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                          "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                          "ignore_merges": false, "vocab": {"<s>": 0, "a": 1, "b": 2}, "merges": []}
            });
            let export = Export {
                config: json!({ "bos_token_id": 0 }),
                tokenizer: Some(tokenizer.to_string().into_bytes()),
                tokenizer_config,
                ..Export::default()
            };
            let tokens = export.text_tokenizer().unwrap().unwrap().encode("ab", true);
            let expected: &[u32] = if begins { &[0, 1, 2] } else { &[1, 2] };
            assert_eq!(tokens.unwrap(), expected, "{model}");
        }
    }

    #[test]
    fn special_tokens_are_texts_or_objects_with_one() {
        let tokens = export(json!({
            "bos_token": "<s>", "eos_token": { "content": "</s>", "special": true }, "pad_token": null
        }))
        .special_tokens();
        let expected = [("bos_token", "<s>"), ("eos_token", "</s>")];
        assert_eq!(
            tokens,
            expected
                .map(|(name, text)| (name.to_owned(), text.to_owned()))
                .into()
        );
    }

    #[test]
    fn the_default_of_several_chat_templates_is_taken() {
        let named = json!([
            { "name": "rag", "template": "no" }, { "name": "default", "template": "yes" }
        ]);
        assert_eq!(default_template(&named).as_deref(), Some("yes"));
        assert_eq!(default_template(&json!("text")).as_deref(), Some("text"));
        assert_eq!(default_template(&Value::Null), None);
    }

    #[test]
    fn end_tokens_of_all_files_are_joined_without_repetition() {
        assert_eq!(export(Value::Null).end_token_ids(), [3, 2]);
    }

    #[test]
    fn sizes_are_read_under_any_of_their_names() {
        let facts = Export {
            config: json!({ "n_embd": 64, "n_head": 4, "n_positions": 128 }),
            ..Export::default()
        }
        .facts();
        assert_eq!(
            (facts.head_dim, facts.kv_heads, facts.context_tokens),
            (Some(16), Some(4), Some(128))
        );
    }

    #[test]
    fn a_model_in_a_folder_called_onnx_has_its_configuration_above() {
        let folder = tempfile::tempdir().unwrap();
        let onnx = folder.path().join("onnx");
        std::fs::create_dir(&onnx).unwrap();
        std::fs::write(onnx.join("model_q4.onnx"), "").unwrap();
        std::fs::write(
            folder.path().join("config.json"),
            r#"{"model_type": "llama"}"#,
        )
        .unwrap();
        for path in [onnx.join("model_q4.onnx"), onnx, folder.path().to_owned()] {
            let export = Export::open(&path).unwrap();
            assert_eq!(export.architecture(), "llama", "{}", path.display());
            let name = folder.path().file_name().unwrap().to_string_lossy();
            assert_eq!(export.folder_name().unwrap(), name);
        }
    }

    #[test]
    fn a_folder_for_companions_has_some() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_owned(), folder.path().join("missing")] {
            assert!(matches!(
                Export::companions(&path),
                Err(ExportError::NoCompanions(_))
            ));
        }
        std::fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
        assert!(Export::companions(folder.path()).is_ok());
    }

    #[test]
    fn a_template_that_is_no_text_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("chat_template.jinja"), b"{{ \xff }}").unwrap();
        let refused = Export::companions(folder.path());
        assert!(matches!(refused, Err(ExportError::NotText(_))));
    }

    #[test]
    fn a_folder_with_several_models_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.onnx", "b.onnx"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let error = Export::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("a.onnx, b.onnx"), "{error}");
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(
            Export::open(empty.path()),
            Err(ExportError::NoModel(_))
        ));
    }
}
