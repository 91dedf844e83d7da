//! What the model is and how it was made.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The manifest section. Fields that a later version adds are passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Name of the model, for people.
    pub name: String,
    /// Architecture as the export calls it (`llama`, `qwen3`), or `unknown`.
    pub architecture: String,
    /// Number of parameters of the exported model.
    pub parameters: u64,
    /// How most weights are stored, for people: `int4, block 32`.
    pub weights: String,
    /// Licence identifiers (SPDX) or texts, of the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub licences: Vec<String>,
    /// How the bundle was made.
    #[serde(default)]
    pub provenance: Provenance,
}

/// Which tool made the bundle, with which options, from which files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Name and version of the tool.
    #[serde(default)]
    pub tool: String,
    /// Options that change the result.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// The files the bundle was made from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceFile>,
}

/// A file that went into a bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// File name without folders.
    pub name: String,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// Its BLAKE3 hash, lower-case hexadecimal.
    pub blake3: String,
}
